package verify

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"accessbroker.internal/audit"
)

const origin = "broker.test/log/abcdefgh"

var (
	secret, public, _ = audit.NewLogKey(origin)
	signer, _         = audit.NewSigner(secret)
	someTime          = time.Date(2026, 11, 3, 12, 0, 0, 123e6, time.UTC)
)

func digest(b byte) audit.Digest { return audit.Digest(bytes.Repeat([]byte{b}, len(audit.Digest{}))) }

func mustEntry(t testing.TB, r audit.Record) *audit.Entry {
	t.Helper()
	e, err := r.Entry()
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// Header implements audit.Source.
func (m *testLog) Header(context.Context) (audit.Header, error) {
	return audit.Header{Origin: origin, Key: public, Size: m.tree.Size(), Root: m.tree.Root(), Checkpoints: m.notes}, nil
}

// Items implements audit.Source.
func (m *testLog) Items(context.Context) iter.Seq2[audit.Item, error] {
	return func(yield func(audit.Item, error) bool) {
		for _, item := range m.items {
			if !yield(item, nil) {
				return
			}
		}
	}
}

func (m *testLog) record(t testing.TB, r audit.Record) {
	t.Helper()
	if r.Time.IsZero() {
		r.Time = someTime.Add(time.Duration(len(m.items)) * time.Second)
	}
	r = m.settle(t, r)
	e := mustEntry(t, r)
	m.append(e.Leaf(), e.Openings())
}

// settle replaces ownDigest with the digest of the request, and renews a signature
// that was valid before.
func (m *testLog) settle(t testing.TB, r audit.Record) audit.Record {
	t.Helper()
	if r.Request == nil {
		return r
	}
	f := r.Request
	signed := r.Signature != nil && r.Approval != nil && r.Caller != nil && r.Signature.Verify(r.Approval.Challenge(r.Caller.ID, f.ID, r.Signature.Nonce), keyHolders[string(r.Signature.Credential)].public, "broker.test") == nil
	r = edited(r, func(r *audit.Record) {
		own := m.sums[f.ID]
		if f.TTL > 0 && r.Decision != nil && r.Caller != nil { // this record makes the request
			own = r.Request.Sum(r.Requester(), r.Decision)
			if m.sums == nil {
				m.sums = map[string]audit.Digest{}
			}
			m.sums[f.ID] = own
			if f.Digest.IsZero() {
				r.Request.Digest = own
			}
		}
		if f.Digest == ownDigest {
			r.Request.Digest = own
		}
		if r.Approval != nil && r.Approval.Digest == ownDigest {
			r.Approval.Digest = own
		}
	})
	if signed {
		holder := keyHolders[string(r.Signature.Credential)]
		r.Signature = holder.sign(t, func(nonce audit.Digest) audit.Digest { return r.Approval.Challenge(r.Caller.ID, f.ID, nonce) })
	}
	return r
}

// ownDigest is a placeholder for the digest of the record's request. settle replaces
// it.
var ownDigest = digest(1)

// A testLog is a log in memory, with the rows of a database.
type testLog struct {
	sums  map[string]audit.Digest // digests of the requests so far, by id
	tree  audit.Tree
	items []audit.Item
	notes []string
}

func (m *testLog) append(leaf, openings []byte) {
	var row []byte
	index := m.tree.Size()
	for _, h := range m.tree.Append(audit.Digest(tlog.RecordHash(leaf))) {
		row = append(row, h[:]...)
	}
	m.items = append(m.items, audit.Item{Index: index, Leaf: leaf, Hashes: row, Openings: openings})
}

func (m *testLog) sign(t testing.TB) []byte {
	t.Helper()
	signed, err := signer.Sign(audit.Checkpoint{Origin: origin, Size: m.tree.Size(), Root: m.tree.Root()})
	if err != nil {
		t.Fatal(err)
	}
	m.notes = append(m.notes, string(signed))
	return signed
}

// noRecords returns a log of n leaves that are not records.
func noRecords(n int) *testLog {
	m := &testLog{}
	for i := range n {
		m.append(fmt.Appendf(nil, "leaf %d", i), nil)
	}
	return m
}
