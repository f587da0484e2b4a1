package checker

import (
	"context"
	"encoding/hex"
	"fmt"
	"os"
	"slices"

	"accessbroker.internal/audit"
	"accessbroker.internal/audit/verify"
)

// A Log is the audit log of a run, as another process exported it from the database.
type Log struct {
	Records  []audit.Record // by index
	Leaves   []audit.Digest // the hashes of their leaves
	Problems []string       // that the verification found, with every checkpoint that a client saw

	byTrace map[string][]int // indexes of the records that an operation caused
}

// NewLog returns a log of records whose leaves have these hashes.
func NewLog(records []audit.Record, leaves []audit.Digest) *Log {
	l := &Log{Records: records, Leaves: leaves, byTrace: map[string][]int{}}
	for i := range records {
		if t := records[i].Trace; !t.IsZero() {
			id := hex.EncodeToString(t.TraceID[:])
			l.byTrace[id] = append(l.byTrace[id], i)
		}
	}
	return l
}

// of returns the indexes of the records of certain kinds that an operation caused.
func (l *Log) of(o *Operation, kinds ...audit.Kind) (found []int) {
	for _, i := range l.byTrace[o.Trace] {
		if slices.Contains(kinds, l.Records[i].Kind) {
			found = append(found, i)
		}
	}
	return found
}

// ReadLog reads and verifies an export of the log. notes are signed checkpoints that the
// log must continue.
func ReadLog(ctx context.Context, file string, notes []string) (*Log, error) {
	log, err := readRecords(ctx, file)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("reading the log: %w", err)
	}
	defer func() { _ = f.Close() }()
	source, err := verify.OpenExport(f)
	if err != nil {
		return nil, err
	}
	report, err := verify.Verify(ctx, source, verify.Options{Checkpoints: notes})
	if err != nil && report == nil {
		return nil, err
	}
	for _, p := range report.Problems {
		log.Problems = append(log.Problems, p.Error())
	}
	if err != nil && len(log.Problems) == 0 {
		log.Problems = append(log.Problems, err.Error())
	}
	return log, nil
}

func readRecords(ctx context.Context, file string) (*Log, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("reading the log: %w", err)
	}
	defer func() { _ = f.Close() }()
	source, err := verify.OpenExport(f)
	if err != nil {
		return nil, err
	}
	var records []audit.Record
	var leaves []audit.Digest
	for item, err := range source.Items(ctx) {
		if err != nil {
			return nil, fmt.Errorf("reading the log: %w", err)
		}
		r, err := audit.Decode(item.Leaf)
		if err != nil {
			return nil, fmt.Errorf("reading record %d: %w", item.Index, err)
		}
		records, leaves = append(records, r), append(leaves, audit.LeafHash(item.Leaf))
	}
	return NewLog(records, leaves), nil
}
