// Package verify verifies a whole audit log offline, from a database or an
// export. It needs neither the broker nor a secret.
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

// Verify reads a whole log and checks what can be checked offline:
//
//   - every leaf is a record in canonical form, at its index, and times never
//     decrease;
//   - the leaves hash to the tree, and the tree to every checkpoint, and the log's
//     key signed the checkpoints;
//   - stored texts match their commitments;
//   - a lease is issued once, not after its end, for a request whose grant is in
//     force, and within that grant;
//   - a membership is removed only if the broker made it, and only when no other lease
//     relies on it;
//   - the people whom policy requires approved, and every required signature is
//     valid and from a passkey that counts;
//   - in access reviews, the seed of a decision in bulk chose the second looks, and two
//     people restored what was suspended.
//
// Its memory does not grow with the number of records, only with the number of
// enrolled passkeys and checkpoints.
//
// Verify continues after a problem, to report all of them. The error is the first
// problem, or the reason why the log could not be read.
func Verify(ctx context.Context, src audit.Source, opts Options) (*Report, error) {
	h, err := src.Header(ctx)
	if err != nil {
		return nil, fmt.Errorf("verifying the log: %w", err)
	}
	v := &verification{header: h, leases: newLeaseState(maxRemembered), memberships: newMembershipState(maxRemembered), keys: newKeyState(opts.Approvers), campaigns: newCampaignState(), requests: newRequestState(maxRemembered)}
	v.delegations = newDelegationState(v.leases, maxRemembered)
	v.report = Report{Origin: h.Origin, Key: h.Key, KeysPinned: len(opts.Approvers) > 0, Kinds: map[audit.Kind]int64{}}
	if opts.Key != "" {
		v.report.Key, v.report.KeyTrusted = opts.Key, true
	}
	v.openCheckpoints(slices.Concat(h.Checkpoints, opts.Checkpoints))
	v.compareCheckpoints(0)
	for p := range prepareAll(ctx, src) {
		if p.read != nil {
			return &v.report, fmt.Errorf("verifying the log: %w", p.read)
		}
		v.item(p)
		if opts.Progress != nil && v.tree.Size()%progressInterval == 0 {
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

// verification is the state of one call of Verify.
type verification struct {
	header      audit.Header
	report      Report
	tree        audit.Tree
	checkpoints []audit.Checkpoint // larger than the tree so far, in ascending order of size
	delegations *delegationState
	leases      *leaseState
	memberships *membershipState
	keys        *keyState
	requests    *requestState
	campaigns   *campaignState
	current     audit.Record
	unsigned    time.Time // time of the first record that no checkpoint covers yet
}

// maxUnsigned is how long records may be without a signed checkpoint. A broker
// signs one about every second.
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

// openCheckpoints verifies the signatures of the checkpoints and sorts them by
// size.
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

// compareCheckpoints compares the checkpoints of this size with the tree.
func (v *verification) compareCheckpoints(size int64) {
	for len(v.checkpoints) > 0 && v.checkpoints[0].Size == size {
		if root := v.tree.Root(); v.checkpoints[0].Root != root {
			v.problem(-1, "the first %d records have the root %s, but their signed checkpoint has %s: at least one of them was changed", size, root, v.checkpoints[0].Root)
		} else {
			v.report.Checkpoints++
			v.report.Signed = size
		}
		v.checkpoints = v.checkpoints[1:]
	}
}

func (v *verification) item(p *prepared) {
	index := v.tree.Size()
	last := v.current.Time
	v.current = p.record
	if p.Index != index {
		v.problem(index, "the record at this place has the index %d: records are missing, duplicated or out of order", p.Index)
	}
	genuine := v.hashes(index, p)
	switch {
	case p.leaf != nil:
		v.problem(index, "%v", p.leaf)
		v.current.Time = last
	case !genuine:
		v.current.Time = last // don't compare a changed record with the others
	default:
		v.requests.terms = p.terms
		v.record(index, &p.record, last)
		v.openings(index, p)
	}
	v.compareCheckpoints(v.tree.Size())
}

// hashes compares the hashes of the leaf, and of the nodes that it completes, with
// the stored ones, and adds them to the tree. It reports whether the leaf matches
// its stored hash. After a mismatch it continues with the stored hashes: if those
// lead to the signed root, only this record was changed.
func (v *verification) hashes(index int64, it *prepared) (genuine bool) {
	own := it.hash
	stored := own
	if len(it.Hashes) >= len(stored) {
		stored = audit.Digest(it.Hashes[:len(stored)])
	}
	if own != stored {
		v.problem(index, "its bytes hash to %s, but the tree has %s: the record or its hash was changed", own, stored)
	}
	nodes := v.tree.Append(stored)
	switch len(it.Hashes) {
	case len(nodes) * tlog.HashSize:
		v.nodes(index, &it.Item, nodes)
	case 0, tlog.HashSize: // an export has at most the hash of the leaf
	default:
		v.problem(index, "its row has %d bytes of hashes, but needs %d: hashes were removed or added", len(it.Hashes), len(nodes)*tlog.HashSize)
	}
	return own == stored
}

func (v *verification) nodes(index int64, it *audit.Item, nodes []tlog.Hash) {
	for level, node := range nodes {
		if stored := it.Hashes[level*tlog.HashSize:][:tlog.HashSize]; !bytes.Equal(stored, node[:]) {
			v.problem(index, "records %d to %d hash to %s, but the tree has %s: one of them, or a hash, was changed",
				index+1-1<<level, index, audit.Digest(node), audit.Digest(stored))
			v.tree.ReplaceLast(tlog.Hash(it.Hashes[len(it.Hashes)-tlog.HashSize:]))
			return // the nodes above this one differ as a consequence
		}
	}
}

// record checks a record against those before it.
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
		v.problem(index, "its time is before the time of the previous record, %s", last.Format(audit.TimeFormat))
	}
	switch opened := r.Kind == audit.LogOpened; {
	case opened && index > 0:
		v.problem(index, "only the first record can open a log")
	case !opened && index == 0:
		v.problem(index, "the first record must be %s", audit.LogOpened)
	case opened && (r.Log == nil || r.Log.Origin != v.header.Origin):
		v.problem(index, "it opens another log than %s", v.header.Origin)
	}
	signed, keys := v.keys.check(r)
	if signed {
		v.report.Signatures++
	}
	for _, what := range []string{v.delegations.check(r), v.leases.check(r), v.memberships.check(r), keys, v.requests.check(r, signed), v.campaigns.check(r, signed), checkPruned(r)} {
		if what != "" {
			v.problem(index, "%s", what)
		}
	}
}

// checkPruned returns what is wrong with a step of the operator's retention, or "".
func checkPruned(r *audit.Record) string {
	switch {
	case r.Kind == audit.RetentionPruned && r.Pruned == nil:
		return "it does not state what was pruned"
	case r.Pruned != nil:
		return r.Pruned.Problem(r.Time)
	}
	return ""
}

func (v *verification) openings(index int64, p *prepared) {
	if p.texts != nil {
		v.problem(index, "%v", p.texts)
		return
	}
	v.report.Opened += int64(p.opened)
}

// finish compares the whole tree with the header and the remaining checkpoints.
func (v *verification) finish() {
	v.report.Records, v.report.Root = v.tree.Size(), v.tree.Root()
	v.report.Unchecked = v.requests.unchecked
	h := v.header
	if h.Size != v.report.Records {
		v.problem(-1, "the log states that it has %d records, but %d were found", h.Size, v.report.Records)
	} else if h.Root != v.report.Root {
		v.problem(-1, "the records have the root %s, but the log states %s", v.report.Root, h.Root)
	}
	v.coverage()
	for _, c := range v.checkpoints {
		v.problem(-1, "a signed checkpoint covers %d records, but %d were found: records are missing at the end", c.Size, v.report.Records)
	}
}

// coverage checks how far signed checkpoints cover the log. Anyone who can write
// to the database, without the log's key, can add records that no checkpoint
// covers. The newest records of a running broker may not be signed yet, but records
// must not go without a signature for long, and a log without any proves nothing.
func (v *verification) coverage() {
	r := &v.report
	if name, _, _ := strings.Cut(r.Key, "+"); r.KeyTrusted && name != r.Origin {
		v.problem(-1, "the key you gave is for the log %s, but this is %s", name, r.Origin)
	}
	switch {
	case r.Signed == r.Records:
	case r.Signed == 0 && r.KeyTrusted && len(r.Problems) == 0:
		v.problem(-1, "no checkpoint is signed with the key you gave: anyone with access to the database could have written this log")
	case r.Signed > 0 && r.Last.Sub(v.unsigned) > maxUnsigned:
		v.problem(-1, "records %d to %d are not signed, although they span %s: anyone with access to the database could have written them", r.Signed, r.Records-1, r.Last.Sub(v.unsigned).Round(time.Second))
	}
}
