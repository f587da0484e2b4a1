package verify

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"accessbroker.internal/audit"
)

// Options are what the auditor brings along.
type Options struct {
	// Key is the log's public key, from somewhere else than the log itself.
	// Empty: the log's own word is taken for it, and the report says so.
	Key string
	// Checkpoints are signed notes that the auditor kept from before.
	Checkpoints []string
	// Approvers are the passkeys that signatures of approvals must be of.
	// Empty: the log's own word is taken for whose they are.
	Approvers []Approver
	// Progress, if set, is told now and then how many records were read.
	Progress func(records int64)
}

// A Report is what was found.
type Report struct {
	Origin      string               `json:"origin"`
	Key         string               `json:"key"`         // the public key that was verified by
	KeyTrusted  bool                 `json:"key_trusted"` // it came from the auditor
	Records     int64                `json:"records"`
	Root        audit.Digest         `json:"root"`
	First       time.Time            `json:"first"` // time of the first record
	Last        time.Time            `json:"last"`
	Checkpoints int                  `json:"checkpoints"` // verified signed checkpoints
	Signed      int64                `json:"signed"`      // so many records, from the first, are covered by them
	Opened      int64                `json:"opened"`      // commitments whose texts are there, and are what was committed to
	Signatures  int64                `json:"signatures"`  // of passkeys, all of approvers
	KeysPinned  bool                 `json:"keys_pinned"` // those came from the auditor
	Unjudged    int64                `json:"unjudged"`    // records about requests that the log before holds, or of more than are remembered
	Kinds       map[audit.Kind]int64 `json:"kinds"`
	Problems    []Problem            `json:"problems,omitempty"` // at most maxProblems
	More        int                  `json:"more,omitempty"`     // problems beyond those
	Verified    bool                 `json:"verified"`           // all of it was read, and everything holds
}

// maxProblems bounds the report of a log that is damaged all over.
const maxProblems = 100

// A Problem says where a log does not hold, and why. It is an error.
type Problem struct {
	Index int64      `json:"index"`          // of the record; -1: the log as a whole
	Kind  audit.Kind `json:"kind,omitempty"` // as the record says, if that can be read
	Time  time.Time  `json:"time,omitzero"`  // as the record says
	What  string     `json:"what"`
}

// Error names the record and says what is wrong with it.
func (p *Problem) Error() string {
	switch {
	case p.Index < 0:
		return p.What
	case p.Kind == "":
		return fmt.Sprintf("record %d: %s", p.Index, p.What)
	}
	return fmt.Sprintf("record %d (%s, %s): %s", p.Index, p.Kind, p.Time.Format(audit.TimeFormat), p.What)
}

// Verify reads a whole log and checks everything that can be checked offline:
// that every leaf is a record in canonical form, that the leaves hash to the
// tree and the tree to every checkpoint, that checkpoints are signed by the
// log's key, that times never go back, that stored texts are what was
// committed to, that no lease is issued twice or after its end, that each is of
// a request whose grant lasts, and within it, that people approved what policy
// wanted them to, and that approvals which it wants signed are, by passkeys that
// count. It uses the same memory however long the log is.
//
// It goes on after a problem, to tell all of them. The error is the first one,
// or says why the log could not be read.
func Verify(ctx context.Context, src audit.Source, opts Options) (*Report, error) {
	h, err := src.Header(ctx)
	if err != nil {
		return nil, fmt.Errorf("verifying the log: %w", err)
	}
	v := &verification{header: h, leases: newLeaseBook(), keys: newKeyBook(opts.Approvers), requests: newRequestBook()}
	v.report = Report{Origin: h.Origin, Key: h.Key, KeysPinned: len(opts.Approvers) > 0, Kinds: map[audit.Kind]int64{}}
	if opts.Key != "" {
		v.report.Key, v.report.KeyTrusted = opts.Key, true
	}
	v.openCheckpoints(slices.Concat(h.Checkpoints, opts.Checkpoints))
	v.checkpointsAt(0)
	for item, err := range src.Items(ctx) {
		if err != nil {
			return &v.report, fmt.Errorf("verifying the log: %w", err)
		}
		v.item(&item)
		if opts.Progress != nil && v.tree.Size()%8192 == 0 {
			opts.Progress(v.tree.Size())
		}
	}
	v.finish()
	if len(v.report.Problems) > 0 {
		return &v.report, &v.report.Problems[0]
	}
	v.report.Verified = true
	return &v.report, nil
}

// verification is the state of one Verify.
type verification struct {
	header      audit.Header
	report      Report
	tree        audit.Tree
	checkpoints []audit.Checkpoint // those not reached yet, by size
	leases      *leaseBook
	keys        *keyBook
	requests    *requestBook
	current     audit.Record // the record being looked at
	unsigned    time.Time    // of the first record that no checkpoint has covered yet
}

// maxUnsigned is how long records go without a signature in a log that is well:
// they are signed within seconds.
const maxUnsigned = 10 * time.Minute

func (v *verification) problem(index int64, format string, args ...any) {
	if len(v.report.Problems) == maxProblems {
		v.report.More++
		return
	}
	p := Problem{Index: index, What: fmt.Sprintf(format, args...)}
	if index >= 0 {
		p.Kind, p.Time = v.current.Kind, v.current.Time
	}
	v.report.Problems = append(v.report.Problems, p)
}

// openCheckpoints verifies the signatures, and sorts the checkpoints by the
// size at which each is compared with the tree.
func (v *verification) openCheckpoints(signed []string) {
	for _, s := range signed {
		c, err := audit.OpenCheckpoint([]byte(s), v.report.Key)
		if err != nil {
			v.problem(-1, "%v", err)
			continue
		}
		v.checkpoints = append(v.checkpoints, c)
	}
	slices.SortStableFunc(v.checkpoints, func(a, b audit.Checkpoint) int { return int(min(max(a.Size-b.Size, -1), 1)) })
}

// checkpointsAt compares the checkpoints of this size with the tree.
func (v *verification) checkpointsAt(size int64) {
	for len(v.checkpoints) > 0 && v.checkpoints[0].Size == size {
		if root := v.tree.Root(); v.checkpoints[0].Root != root {
			v.problem(-1, "the first %d records have the root %s, their signed checkpoint says %s: one of them, or more, is not what it was", size, root, v.checkpoints[0].Root)
		} else {
			v.report.Checkpoints++
			v.report.Signed = size
		}
		v.checkpoints = v.checkpoints[1:]
	}
}

func (v *verification) item(it *audit.Item) {
	index := v.tree.Size()
	last := v.current.Time
	r, err := audit.Decode(it.Leaf)
	v.current = r
	if it.Index != index {
		v.problem(index, "the record in its place has the index %d: records are missing, doubled or out of order", it.Index)
	}
	genuine := v.hashes(index, it)
	switch {
	case err != nil:
		v.problem(index, "%v", err)
		v.current.Time = last
	case !genuine:
		v.current.Time = last // what it says is not worth comparing with the rest
	default:
		v.record(index, &r, last)
		v.openings(index, &r, it.Openings)
	}
	v.checkpointsAt(v.tree.Size())
}

// hashes compares the leaf, and the nodes that it completes, with the hashes in
// the record's row, and adds them to the tree. It says whether the leaf is what
// the row says. Where they differ, the tree goes on with those of the row: if
// they lead to the signed root, then it is these bytes that were changed, and
// no others.
func (v *verification) hashes(index int64, it *audit.Item) (genuine bool) {
	own := audit.Digest(tlog.RecordHash(it.Leaf))
	stored := own
	if len(it.Hashes) >= len(stored) {
		stored = audit.Digest(it.Hashes[:len(stored)])
	}
	if own != stored {
		v.problem(index, "its bytes hash to %s, the tree says %s", own, stored)
	}
	nodes := v.tree.Append(stored)
	switch len(it.Hashes) {
	case len(nodes) * tlog.HashSize:
		v.nodes(index, it, nodes)
	case 0, tlog.HashSize: // an export: the leaf's own hash at most
	default:
		v.problem(index, "its row holds %d bytes of hashes, and not those of %d nodes", len(it.Hashes), len(nodes))
	}
	return own == stored
}

func (v *verification) nodes(index int64, it *audit.Item, nodes []tlog.Hash) {
	for level, node := range nodes {
		if there := it.Hashes[level*tlog.HashSize:][:tlog.HashSize]; !bytes.Equal(there, node[:]) {
			v.problem(index, "records %d to %d hash to %s, the tree says %s: one of them is not what it was",
				index+1-1<<level, index, audit.Digest(node), audit.Digest(there))
			v.tree.ReplaceLast(tlog.Hash(it.Hashes[len(it.Hashes)-tlog.HashSize:]))
			return // those above follow from this one
		}
	}
}

// record checks what can be known of a record from those before it.
func (v *verification) record(index int64, r *audit.Record, last time.Time) {
	v.report.Kinds[r.Kind]++
	if index == 0 {
		v.report.First = r.Time
	}
	v.report.Last = r.Time
	if index == v.report.Signed {
		v.unsigned = r.Time
	}
	if r.Time.Before(last) {
		v.problem(index, "its time is before that of the record before it, %s", last.Format(audit.TimeFormat))
	}
	switch opened := r.Kind == audit.LogOpened; {
	case opened && index > 0:
		v.problem(index, "a log is opened by its first record only")
	case !opened && index == 0:
		v.problem(index, "the first record must be %s", audit.LogOpened)
	case opened && (r.Log == nil || r.Log.Origin != v.header.Origin):
		v.problem(index, "it opens another log than %s", v.header.Origin)
	}
	if what := v.leases.check(r); what != "" {
		v.problem(index, "%s", what)
	}
	signed, what := v.keys.check(r)
	if what != "" {
		v.problem(index, "%s", what)
	}
	if signed {
		v.report.Signatures++
	}
	if what := v.requests.check(r, signed); what != "" {
		v.problem(index, "%s", what)
	}
}

func (v *verification) openings(index int64, r *audit.Record, stored []byte) {
	openings, err := audit.DecodeOpenings(stored)
	if err == nil {
		err = r.CheckOpenings(openings)
	}
	if err != nil {
		v.problem(index, "%v", err)
		return
	}
	v.report.Opened += int64(len(openings))
}

// finish compares the whole tree with what the log says of itself.
func (v *verification) finish() {
	v.report.Records, v.report.Root = v.tree.Size(), v.tree.Root()
	v.report.Unjudged = v.requests.unjudged
	h := v.header
	if h.Size != v.report.Records {
		v.problem(-1, "the log says that it has %d records, and %d are there", h.Size, v.report.Records)
	} else if h.Root != v.report.Root {
		v.problem(-1, "the records have the root %s, the log says %s", v.report.Root, h.Root)
	}
	v.signatures()
	for _, c := range v.checkpoints {
		v.problem(-1, "a signed checkpoint covers %d records, and %d are there: the end of the log is missing", c.Size, v.report.Records)
	}
}

// signatures says what is missing of them. Whoever has the database and not the
// log's key can write anything that no checkpoint covers: a log of nothing but
// that proves nothing, and so does one that went without for long. What was
// written last may not be signed yet.
func (v *verification) signatures() {
	r := &v.report
	if name, _, _ := strings.Cut(r.Key, "+"); r.KeyTrusted && name != r.Origin {
		v.problem(-1, "the key that you gave is of the log %s, and this is %s", name, r.Origin)
	}
	switch {
	case r.Signed == r.Records:
	case r.Signed == 0 && r.KeyTrusted && len(r.Problems) == 0:
		v.problem(-1, "nothing in it is signed by the key that you gave: anybody may have written it")
	case r.Signed > 0 && r.Last.Sub(v.unsigned) > maxUnsigned:
		v.problem(-1, "records %d to %d are not signed, though %s passed between them: anybody may have written them", r.Signed, r.Records-1, r.Last.Sub(v.unsigned).Round(time.Second))
	}
}
