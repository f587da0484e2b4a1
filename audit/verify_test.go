package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"
	"time"
)

// Header and Items make a memory a Source.
func (m *memory) Header(context.Context) (Header, error) {
	return Header{origin, public, m.tree.Size(), m.tree.Root(), m.notes}, nil
}

func (m *memory) Items(context.Context) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		for _, item := range m.items {
			if !yield(item, nil) {
				return
			}
		}
	}
}

func (m *memory) record(t testing.TB, r Record) {
	t.Helper()
	if r.Time.IsZero() {
		r.Time = someTime.Add(time.Duration(len(m.items)) * time.Second)
	}
	r = m.settle(t, r)
	e := mustEntry(t, r)
	m.append(e.Leaf(), e.Openings())
}

// settle puts the digest of a request where a record says ownDigest, and signs
// anew what was rightly signed over that.
func (m *memory) settle(t testing.TB, r Record) Record {
	t.Helper()
	if r.Request == nil {
		return r
	}
	f := r.Request
	signed := r.Signature != nil && r.Approval != nil && r.Signature.Verify(r.Approval.Challenge(r.Caller.ID, f.ID, r.Signature.Nonce), keyHolders[string(r.Signature.Credential)].public, "broker.test") == nil
	r = edited(r, func(r *Record) {
		own := m.sums[f.ID]
		if f.TTL > 0 && r.Decision != nil && r.Caller != nil { // it is made here
			own = r.Request.Sum(r.Caller.ID, r.Decision)
			if m.sums == nil {
				m.sums = map[string]Digest{}
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
		r.Signature = holder.sign(t, func(nonce Digest) Digest { return r.Approval.Challenge(r.Caller.ID, f.ID, nonce) })
	}
	return r
}

// ownDigest stands for the digest of the request that a record is about.
var ownDigest = digest(1)

// lease is a lease whose request is filed and collected in one call, or one of
// its later records.
func lease(kind Kind, id string) Record {
	why, opening := Commit("because of " + id)
	r := Record{Kind: kind, Lease: &LeaseFacts{ID: id, Expires: someTime.Add(time.Hour)}, Request: &RequestFacts{Justification: why}, Openings: map[string]Opening{"justification": opening}}
	if kind == LeaseOpened || kind == LeaseIssued {
		r.Caller, r.Decision = &Party{ID: "spiffe://acme.test/agent"}, &DecisionFacts{Permit: true}
		r.Request.ID, r.Request.Entitlement, r.Request.TTL, r.Request.Duration = "req_"+id, "db", time.Hour, time.Hour
	}
	return r
}

// issued is how a lease goes on that was opened.
func issued(id string) Record {
	return Record{Kind: LeaseIssued, Lease: &LeaseFacts{ID: id, Expires: someTime.Add(time.Minute)}}
}

// goodLog is a log of 18 records with two checkpoints.
func goodLog(t testing.TB) *memory {
	m := &memory{}
	m.record(t, Record{Kind: LogOpened, Log: &LogFacts{Origin: origin}})
	for n := range 8 {
		m.record(t, lease(LeaseIssued, fmt.Sprint("lse_", n)))
		m.record(t, lease(LeaseRevoked, fmt.Sprint("lse_", n)))
		if n == 3 {
			m.sign(t)
		}
	}
	m.sign(t)
	m.record(t, Record{Kind: PolicyLoaded})
	return m
}

func TestVerifyGoodLog(t *testing.T) {
	m := goodLog(t)
	var told int64
	r, err := Verify(t.Context(), m, Options{Key: public, Checkpoints: m.notes[:1], Progress: func(n int64) { told = n }})
	if err != nil {
		t.Fatal(err)
	}
	if r.Records != 18 || r.Checkpoints != 3 || r.Opened != 16 || r.Kinds[LeaseIssued] != 8 || !r.KeyTrusted || r.Root != m.tree.Root() ||
		!r.First.Equal(someTime) || !r.Last.Equal(someTime.Add(17*time.Second)) || told != 0 {
		t.Errorf("%+v", r)
	}
	if r, err := Verify(t.Context(), m, Options{}); err != nil || r.KeyTrusted {
		t.Errorf("by its own key: %+v, %v", r, err)
	}
	if r, err := Verify(t.Context(), &memory{}, Options{}); err != nil || r.Records != 0 {
		t.Errorf("an empty log: %+v, %v", r, err)
	}
}

// TestVerifySaysWhere breaks one thing at a time, and wants to be told that
// one thing, and where it is.
func TestVerifySaysWhere(t *testing.T) {
	flip := func(b []byte, text string) { b[bytes.Index(b, []byte(text))+len(text)-1] ^= 1 }
	for _, test := range []struct {
		name   string
		change func(m *memory)
		says   []string // one a problem
	}{
		{"a byte of a record", func(m *memory) { flip(m.items[5].Leaf, `"lse_2`) },
			[]string{`record 5 (lease.issued, 2026-11-03T12:00:05.123Z): its bytes hash to `}},
		{"a byte that is no record any more", func(m *memory) { flip(m.items[5].Leaf, `{"`) },
			[]string{"record 5: its bytes hash to ", "record 5: decoding a record: "}},
		{"a record and its hash", func(m *memory) { m.rewrite(5, "lse_2", "lse_x") },
			[]string{"record 5 (lease.issued, 2026-11-03T12:00:05.123Z): records 4 to 5 hash to "}},
		{"a hash", func(m *memory) { m.items[4].Hashes[3] ^= 1 },
			[]string{"record 4 (lease.revoked, 2026-11-03T12:00:04.123Z): its bytes hash to ", "record 5 (lease.issued, 2026-11-03T12:00:05.123Z): records 4 to 5 hash to "}},
		{"a record and all hashes above", func(m *memory) { *m = *m.forge(5, "lse_2", "lse_x") },
			[]string{"the first 9 records have the root ", "the first 17 records have the root "}},
		{"a node", func(m *memory) { m.items[7].Hashes[33] ^= 1 }, []string{"record 7 (lease.issued, 2026-11-03T12:00:07.123Z): records 6 to 7 hash to "}},
		{"hashes cut off", func(m *memory) { m.items[7].Hashes = m.items[7].Hashes[:64] }, []string{"record 7 (lease.issued, 2026-11-03T12:00:07.123Z): its row holds 64 bytes of hashes"}},
		{"the last record taken away", func(m *memory) { m.items = m.items[:17] }, []string{"the log says that it has 18 records, and 17 are there"}},
		{"the end taken away", func(m *memory) { m.items = m.items[:16] },
			[]string{"the log says that it has 18 records, and 16 are there", "a signed checkpoint covers 17 records, and 16 are there: the end of the log is missing"}},
		{"an opening that was replaced", func(m *memory) {
			m.items[5].Openings = bytes.Replace(m.items[5].Openings, []byte("because"), []byte("BECAUSE"), 1)
		},
			[]string{`record 5 (lease.issued, 2026-11-03T12:00:05.123Z): the opening "justification" does not open`}},
		{"an opening of nothing", func(m *memory) { m.items[0].Openings = m.items[1].Openings },
			[]string{`record 0 (log.opened, 2026-11-03T12:00:00.123Z): the opening "justification" has no commitment`}},
		{"a checkpoint's signature", func(m *memory) { m.notes[0] = strings.Replace(m.notes[0], "\n9\n", "\n8\n", 1) }, []string{"opening a checkpoint by the key of " + origin}},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := goodLog(t)
			test.change(m)
			r, err := Verify(t.Context(), m, Options{Key: public})
			var first *Problem
			if !errors.As(err, &first) {
				t.Fatalf("it verifies: %v", err)
			}
			for i, p := range r.Problems {
				if i >= len(test.says) || !strings.HasPrefix(p.Error(), test.says[i]) {
					t.Errorf("problem %d is %q", i, p.Error())
				}
			}
			if len(r.Problems) < len(test.says) {
				t.Errorf("not said: %q", test.says[len(r.Problems):])
			}
		})
	}
}

// rewrite changes a record together with its own hash, as somebody would who
// can write to the database and has no key.
func (m *memory) rewrite(index int, old, new string) {
	it := &m.items[index]
	it.Leaf = bytes.Replace(it.Leaf, []byte(old), []byte(new), 1)
	h := (&Entry{hashed: append([]byte{leafPrefix}, it.Leaf...)}).Hash()
	copy(it.Hashes, h[:])
}

// forge makes the log anew with a changed record, and with the old signatures.
func (m *memory) forge(index int, old, new string) *memory {
	forged := &memory{notes: m.notes}
	for i, it := range m.items {
		if i == index {
			it.Leaf = bytes.Replace(it.Leaf, []byte(old), []byte(new), 1)
		}
		forged.append(it.Leaf, it.Openings)
	}
	return forged
}

// TestVerifyKnowsWhatCantBe are logs whose hashes are all right, and whose
// records are not.
func TestVerifyKnowsWhatCantBe(t *testing.T) {
	opened := Record{Kind: LogOpened, Log: &LogFacts{Origin: origin}}
	for _, test := range []struct {
		says    string
		records []Record
	}{
		{"record 0 (policy.loaded", []Record{{Kind: PolicyLoaded}}},
		{"it opens another log than " + origin, []Record{{Kind: LogOpened, Log: &LogFacts{Origin: "x"}}}},
		{"record 1 (log.opened, 2026-11-03T12:00:01.123Z): a log is opened by its first record only", []Record{opened, opened}},
		{"its time is before that of the record before it, 2026-11-03T12:00:00.123Z", []Record{opened, {Kind: PolicyLoaded, Time: someTime.Add(-time.Hour)}}},
		{"it names no lease", []Record{opened, {Kind: LeaseIssued}}},
		{"the lease was issued before", []Record{opened, lease(LeaseIssued, "a"), lease(LeaseIssued, "a")}},
		{"the lease had ended before", []Record{opened, lease(LeaseRevoked, "a"), lease(LeaseIssued, "a")}},
		{"the lease had ended before", []Record{opened, lease(LeaseFailed, "a"), lease(LeaseRevoked, "a")}},
		{"the lease was opened before", []Record{opened, lease(LeaseIssued, "a"), lease(LeaseOpened, "a")}},
		{"the lease was opened before", []Record{opened, lease(LeaseOpened, "a"), lease(LeaseOpened, "a")}},
		{"it names no request, and the lease was not opened for one before", []Record{opened, issued("a")}},
		{"the lease is more than it was opened for", []Record{opened, lease(LeaseOpened, "a"), edited(issued("a"), func(r *Record) { r.Lease.Expires = someTime.Add(2 * time.Hour) })}},
		{"the lease is more than it was opened for", []Record{opened, lease(LeaseOpened, "a"), edited(issued("a"), func(r *Record) { r.Lease.Scopes = []string{"all"} })}},
		{"", []Record{opened, lease(LeaseOpened, "a"), issued("a"), lease(LeaseRevoking, "a"), lease(LeaseRevoking, "a"), lease(LeaseRevoked, "a")}},
		{"", []Record{opened, lease(LeaseOpened, "a"), issued("a"), lease(LeaseRevoked, "a"), lease(LeaseRevoking, "a"), lease(LeaseRevoked, "a")}},
		{"had ended before", []Record{opened, lease(LeaseOpened, "a"), lease(LeaseFailed, "a"), lease(LeaseRevoking, "a"), issued("a")}},
	} {
		m := &memory{}
		for _, r := range test.records {
			m.record(t, r)
		}
		m.sign(t)
		_, err := Verify(t.Context(), m, Options{Key: public})
		if test.says == "" && err != nil || test.says != "" && (err == nil || !strings.Contains(err.Error(), test.says)) {
			t.Errorf("want %q, got %v", test.says, err)
		}
	}
}

// TestVerifyWantsSignatures: whoever has the database and not the key writes
// what they like, and no checkpoint covers it.
func TestVerifyWantsSignatures(t *testing.T) {
	whole := goodLog(t)
	size := int64(len(whole.items))
	for _, test := range []struct {
		name   string
		change func(m *memory)
		opts   Options
		signed int64
		says   string
	}{
		{"a tail that is not signed yet", func(*memory) {}, Options{Key: public}, 17, ""},
		{"no signature", func(m *memory) { m.notes = nil }, Options{Key: public}, 0, "nothing in it is signed by the key that you gave"},
		{"no signature, and the log's own word", func(m *memory) { m.notes = nil }, Options{}, 0, ""},
		{"all written anew", func(m *memory) { *m = *m.forge(12, "lse_", "lse_x"); m.notes = nil }, Options{Key: public}, 0, "nothing in it is signed"},
		{"one kept from before", func(m *memory) { kept := m.notes[0]; *m = *m.forge(12, "lse_", "lse_x"); m.notes = []string{kept} }, Options{Key: public}, 9, ""},
		{"not signed for long", func(m *memory) {
			m.notes = m.notes[:1]
			m.record(t, edited(lease(LeaseOpened, "z"), func(r *Record) { r.Time = someTime.Add(time.Hour) }))
		}, Options{Key: public}, 9, "records 9 to 18 are not signed, though 59m51s passed between them"},
		{"the key of another log", func(*memory) {}, Options{Key: "x" + public}, 0, "is of the log x"},
	} {
		m := goodLog(t)
		test.change(m)
		r, err := Verify(t.Context(), m, test.opts)
		if r.Signed != test.signed || r.Records < size || test.says == "" && err != nil {
			t.Errorf("%s: %d of %d signed, %v", test.name, r.Signed, r.Records, err)
		}
		if found := slices.ContainsFunc(r.Problems, func(p Problem) bool { return strings.Contains(p.What, test.says) }); test.says != "" && !found {
			t.Errorf("%s: %+v", test.name, r.Problems)
		}
	}
}

func TestReportIsBounded(t *testing.T) {
	m := leaves(500)
	r, err := Verify(t.Context(), m, Options{Key: public})
	if err == nil || len(r.Problems) != maxProblems || r.More != 400 {
		t.Errorf("%d problems, %d more, %v", len(r.Problems), r.More, err)
	}
	book := newLeaseBook()
	for n := range bookSize + 10 {
		book.check(&Record{Kind: LeaseIssued, Lease: &LeaseFacts{ID: fmt.Sprint(n)}})
	}
	if len(book.leases) != bookSize {
		t.Errorf("it remembers %d leases", len(book.leases))
	}
}

func TestExport(t *testing.T) {
	m := goodLog(t)
	m.items[3].Openings = nil // erased
	var out bytes.Buffer
	if err := Export(t.Context(), &out, m); err != nil {
		t.Fatal(err)
	}
	good := out.String()
	if n := strings.Count(good, "\n"); n != 19 {
		t.Errorf("%d lines for a header and 18 records", n)
	}
	verify := func(text string) (*Report, error) {
		f, err := OpenExport(strings.NewReader(text))
		if err != nil {
			return nil, err
		}
		return Verify(t.Context(), f, Options{Key: public})
	}
	if r, err := verify(good); err != nil || !r.Verified || r.Root != m.tree.Root() || r.Checkpoints != 2 || r.Opened != 15 {
		t.Errorf("%+v, %v", r, err)
	}
	lines := strings.SplitAfter(good, "\n")
	for name, test := range map[string]struct{ text, says string }{
		"a byte":                {strings.Replace(good, `"id":"lse_4"`, `"id":"lse_5"`, 1), "record 9 (lease.issued, 2026-11-03T12:00:09.123Z): its bytes hash to "},
		"a space":               {strings.Replace(good, `"id":"lse_4"`, `"id": "lse_4"`, 1), "record 9"},
		"a line less":           {strings.Join(append(append([]string{}, lines[:5]...), lines[6:]...), ""), "record 4 (lease.issued, 2026-11-03T12:00:05.123Z): the record in its place has the index 5"},
		"two lines exchanged":   {lines[0] + lines[1] + lines[3] + lines[2] + strings.Join(lines[4:], ""), "has the index 2"},
		"cut off":               {strings.Join(lines[:12], ""), "the log says that it has 18 records, and 11 are there"},
		"cut off in a line":     {good[:len(good)-20], "reading the line of record 17"},
		"a line that is none":   {good + "x\n", "reading the line of record 18"},
		"an unknown field":      {strings.Replace(good, `{"index":3,`, `{"index":3,"x":1,`, 1), "reading the line of record 3"},
		"nothing":               {"", "reading the export's header: unexpected EOF"},
		"something else":        {"{}\n", "it is of format 0, this program reads 1"},
		"a newer format":        {`{"accessbroker_log":2}`, "it is of format 2"},
		"a line without an end": {good[:len(lines[0])] + strings.Repeat("x", maxLine+1), "token too long"},
	} {
		r, err := verify(test.text)
		if err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: want %q, got %v", name, test.says, err)
		}
		if r != nil && r.Verified {
			t.Errorf("%s: the report says that it is verified", name)
		}
	}
}

// What is no key and no checkpoint is told from what is one, of whatever log.
func TestFormsOfKeysAndCheckpoints(t *testing.T) {
	m := goodLog(t)
	if err := errors.Join(CheckKey(public), CheckForm([]byte(m.notes[0]))); err != nil {
		t.Error(err)
	}
	if err := CheckKey("foo"); err == nil || !strings.Contains(err.Error(), "is not the public key of a log") {
		t.Errorf("a key: %v", err)
	}
	for text, says := range map[string]string{
		"foo": "it is not a signed checkpoint",
		strings.Replace(m.notes[0], "\n", "\nx", 1): "size \"x",
	} {
		if err := CheckForm([]byte(text)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestVerifyStopsWithItsContext(t *testing.T) {
	var out bytes.Buffer
	if err := Export(t.Context(), &out, goodLog(t)); err != nil {
		t.Fatal(err)
	}
	f, err := OpenExport(&out)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Verify(ctx, f, Options{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func BenchmarkVerify(b *testing.B) {
	m := &memory{}
	m.record(b, Record{Kind: LogOpened, Log: &LogFacts{Origin: origin}})
	for n := range 10_000 {
		m.record(b, lease(LeaseIssued, fmt.Sprint("lse_", n)))
	}
	for b.Loop() {
		if _, err := Verify(b.Context(), m, Options{Key: public}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)*10_001/b.Elapsed().Seconds(), "records/s")
}
