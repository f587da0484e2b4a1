package evidence

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"accessbroker.internal/audit"
)

// ErrUnsigned means that no signed checkpoint covers the records that a report needs.
var ErrUnsigned = errors.New("no signed checkpoint of the log covers these records")

// A Scan is a Source that reads a whole log once, record by record, such as an export. It
// computes the hashes itself. It does not verify what a record states: package
// audit/verify does.
type Scan struct {
	log  audit.Source
	kept map[int64]audit.Item // the samples
}

// NewScan returns a Source over a log. Only one report can be made of it.
func NewScan(log audit.Source) *Scan { return &Scan{log, map[int64]audit.Item{}} }

// Tally implements Source.
func (s *Scan) Tally(ctx context.Context, q Query) (Tally, Basis, error) {
	header, err := s.log.Header(ctx)
	if err != nil {
		return nil, Basis{}, err
	}
	covered, err := newest(header)
	switch {
	case err != nil:
		return nil, Basis{}, err
	case q.Size > covered.Size:
		return nil, Basis{}, fmt.Errorf("%w: the newest covers %d records, fewer than %d", ErrUnsigned, covered.Size, q.Size)
	case q.Size == 0:
		q.Size = covered.Size
	}
	tally, tree, basis := Tally{}, &audit.Tree{}, Basis{Origin: header.Origin, Size: q.Size, First: -1}
	for item, err := range s.log.Items(ctx) {
		if err != nil {
			return nil, basis, fmt.Errorf("reading the log: %w", err)
		}
		if item.Index != tree.Size() {
			return nil, basis, fmt.Errorf("reading the log: record %d is in the place of record %d", item.Index, tree.Size())
		}
		hash := audit.LeafHash(item.Leaf)
		tree.Append(hash)
		r, err := audit.Decode(item.Leaf)
		if err != nil {
			return nil, basis, fmt.Errorf("record %d: %w", item.Index, err)
		}
		if basis.First < 0 && !r.Time.Before(q.From) {
			basis.First = item.Index
		}
		if !r.Time.Before(q.From) && r.Time.Before(q.To) {
			basis.Count++
			s.keep(tally, &item, hash, r.Sample(r.Time))
		}
		if tree.Size() == q.Size {
			break
		}
	}
	if tree.Size() != q.Size {
		return nil, basis, fmt.Errorf("reading the log: it has %d records, fewer than %d", tree.Size(), q.Size)
	}
	if basis.First < 0 {
		basis.First = q.Size
	}
	if basis.Root = tree.Root(); q.Size == covered.Size && basis.Root != covered.Root {
		return nil, basis, errors.New("the records are not those of the log's checkpoint: run \"broker audit verify\"")
	}
	return tally, basis, nil
}

// newest returns the newest signed checkpoint of a log.
func newest(h audit.Header) (c audit.Checkpoint, err error) {
	for _, note := range h.Checkpoints {
		one, err := audit.OpenCheckpoint([]byte(note), h.Key)
		if err != nil {
			return c, err
		}
		if one.Size > c.Size {
			c = one
		}
	}
	if c.Size == 0 {
		return c, ErrUnsigned
	}
	return c, nil
}

// keep counts a record, and keeps it while it is a sample.
func (s *Scan) keep(tally Tally, item *audit.Item, hash audit.Digest, sample audit.Sample) {
	var before []int64
	if sum := tally[sample.Traits]; sum != nil {
		before = sum.samples()
	}
	tally.Add(item.Index, hash, sample)
	after := tally[sample.Traits].samples()
	for _, index := range before {
		if !slices.Contains(after, index) {
			delete(s.kept, index)
		}
	}
	if slices.Contains(after, item.Index) {
		s.kept[item.Index] = audit.Item{Index: item.Index, Leaf: slices.Clone(item.Leaf)}
	}
}

// Record implements Source, for the samples of the tally.
func (s *Scan) Record(_ context.Context, index int64) (audit.Item, error) {
	item, known := s.kept[index]
	if !known {
		return item, fmt.Errorf("record %d is not a sample", index)
	}
	return item, nil
}
