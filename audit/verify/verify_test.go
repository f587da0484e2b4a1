package verify

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"accessbroker.internal/audit"
)

// leaseRecord returns a record of a lease. The records that open or issue a lease
// also make its request, as if one call requested and collected.
func leaseRecord(kind audit.Kind, id string) audit.Record {
	why, opening := audit.Commit("because of " + id)
	r := audit.Record{Kind: kind, Lease: &audit.LeaseFacts{ID: id, Expires: someTime.Add(time.Hour)}, Request: &audit.RequestFacts{Justification: why}, Openings: map[string]audit.Opening{"justification": opening}}
	if kind == audit.LeaseOpened || kind == audit.LeaseIssued {
		r.Caller, r.Decision = &audit.Party{ID: "spiffe://acme.test/agent"}, &audit.DecisionFacts{Permit: true}
		r.Request.ID, r.Request.Entitlement, r.Request.TTL, r.Request.Duration = "req_"+id, "db", time.Hour, time.Hour
	}
	return r
}

// issued returns the record that issues an opened lease.
func issued(id string) audit.Record {
	return audit.Record{Kind: audit.LeaseIssued, Lease: &audit.LeaseFacts{ID: id, Expires: someTime.Add(time.Minute)}}
}

// goodLog returns a log of 18 records with two checkpoints.
func goodLog(t testing.TB) *testLog {
	m := &testLog{}
	m.record(t, audit.Record{Kind: audit.LogOpened, Log: &audit.LogFacts{Origin: origin}})
	for n := range 8 {
		m.record(t, leaseRecord(audit.LeaseIssued, fmt.Sprint("lse_", n)))
		m.record(t, leaseRecord(audit.LeaseRevoked, fmt.Sprint("lse_", n)))
		if n == 3 {
			m.sign(t)
		}
	}
	m.sign(t)
	m.record(t, audit.Record{Kind: audit.PolicyLoaded})
	return m
}

func TestVerifyGoodLog(t *testing.T) {
	m := goodLog(t)
	calls := 0
	r, err := Verify(t.Context(), m, Options{Key: public, Checkpoints: m.notes[:1], Progress: func(int64) { calls++ }})
	if err != nil {
		t.Fatal(err)
	}
	if r.Records != 18 || r.Checkpoints != 3 || r.Opened != 16 || r.Kinds[audit.LeaseIssued] != 8 || !r.KeyTrusted || r.Root != m.tree.Root() ||
		!r.First.Equal(someTime) || !r.Last.Equal(someTime.Add(17*time.Second)) || calls != 0 {
		t.Errorf("got report %+v, %d calls of Progress", r, calls)
	}
	if r, err := Verify(t.Context(), m, Options{}); err != nil || r.KeyTrusted {
		t.Errorf("with its own key: %+v, %v", r, err)
	}
	empty := &testLog{}
	empty.sign(t)
	if r, err := Verify(t.Context(), m, Options{Key: public, Checkpoints: empty.notes}); err != nil || r.Checkpoints != 3 {
		t.Errorf("with a checkpoint of the empty log: %+v, %v", r, err)
	}
	if r, err := Verify(t.Context(), &testLog{}, Options{}); err != nil || r.Records != 0 {
		t.Errorf("an empty log: %+v, %v", r, err)
	}
}

// Each case makes one change. Verify must report that change, at its place, and no
// other.
func TestVerifyReportsWhatWasChanged(t *testing.T) {
	flip := func(b []byte, text string) { b[bytes.Index(b, []byte(text))+len(text)-1] ^= 1 }
	for _, test := range []struct {
		name   string
		change func(m *testLog)
		want   []string // prefixes of the problems
	}{
		{"a byte of a record", func(m *testLog) { flip(m.items[5].Leaf, `"lse_2`) },
			[]string{`record 5 (lease.issued, 2026-11-03T12:00:05.123Z): its bytes hash to `}},
		{"the time of a record", func(m *testLog) { flip(m.items[5].Leaf, `"time":"2026`) },
			[]string{`record 5 (lease.issued, 2027-11-03T12:00:05.123Z): its bytes hash to `}},
		{"a byte that makes the record unreadable", func(m *testLog) { flip(m.items[5].Leaf, `{"`) },
			[]string{"record 5: its bytes hash to ", "record 5: decoding a record: "}},
		{"a record and its hash", func(m *testLog) { m.rewrite(5, "lse_2", "lse_x") },
			[]string{"record 5 (lease.issued, 2026-11-03T12:00:05.123Z): records 4 to 5 hash to "}},
		{"a hash", func(m *testLog) { m.items[4].Hashes[3] ^= 1 },
			[]string{"record 4 (lease.revoked, 2026-11-03T12:00:04.123Z): its bytes hash to ", "record 5 (lease.issued, 2026-11-03T12:00:05.123Z): records 4 to 5 hash to "}},
		{"a record and all hashes above it", func(m *testLog) { *m = *m.forge(5, "lse_2", "lse_x") },
			[]string{"the first 9 records have the root ", "the first 17 records have the root "}},
		{"a node", func(m *testLog) { m.items[7].Hashes[33] ^= 1 }, []string{"record 7 (lease.issued, 2026-11-03T12:00:07.123Z): records 6 to 7 hash to "}},
		{"truncated hashes", func(m *testLog) { m.items[7].Hashes = m.items[7].Hashes[:64] }, []string{"record 7 (lease.issued, 2026-11-03T12:00:07.123Z): its row has 64 bytes of hashes, but needs 128"}},
		{"the last record removed", func(m *testLog) { m.items = m.items[:17] }, []string{"the log states that it has 18 records, but 17 were found"}},
		{"the end removed", func(m *testLog) { m.items = m.items[:16] },
			[]string{"the log states that it has 18 records, but 16 were found", "a signed checkpoint covers 17 records, but 16 were found: records are missing at the end"}},
		{"a replaced opening", func(m *testLog) {
			m.items[5].Openings = bytes.Replace(m.items[5].Openings, []byte("because"), []byte("BECAUSE"), 1)
		},
			[]string{`record 5 (lease.issued, 2026-11-03T12:00:05.123Z): the opening "justification" does not match`}},
		{"an opening without a commitment", func(m *testLog) { m.items[0].Openings = m.items[1].Openings },
			[]string{`record 0 (log.opened, 2026-11-03T12:00:00.123Z): the opening "justification" has no commitment`}},
		{"a checkpoint's signature", func(m *testLog) { m.notes[0] = strings.Replace(m.notes[0], "\n9\n", "\n8\n", 1) }, []string{"opening a checkpoint with the key of " + origin}},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := goodLog(t)
			test.change(m)
			r, err := Verify(t.Context(), m, Options{Key: public})
			var first *Problem
			if !errors.As(err, &first) {
				t.Fatalf("got error %v, want a problem", err)
			}
			for i, p := range r.Problems {
				if i >= len(test.want) || !strings.HasPrefix(p.Error(), test.want[i]) {
					t.Errorf("got problem %d: %q", i, p.Error())
				}
			}
			if len(r.Problems) < len(test.want) {
				t.Errorf("missing problems: %q", test.want[len(r.Problems):])
			}
		})
	}
}

// rewrite changes a record and its own hash, as a person with access to the database
// but without the log's key can.
func (m *testLog) rewrite(index int, old, new string) {
	it := &m.items[index]
	it.Leaf = bytes.Replace(it.Leaf, []byte(old), []byte(new), 1)
	h := tlog.RecordHash(it.Leaf)
	copy(it.Hashes, h[:])
}

// forge rebuilds the log with a changed record and the old checkpoints.
func (m *testLog) forge(index int, old, new string) *testLog {
	forged := &testLog{notes: m.notes}
	for i, it := range m.items {
		if i == index {
			it.Leaf = bytes.Replace(it.Leaf, []byte(old), []byte(new), 1)
		}
		forged.append(it.Leaf, it.Openings)
	}
	return forged
}

// The hashes of these logs are correct, but their records contradict each other.
func TestVerifyReportsContradictions(t *testing.T) {
	opened := audit.Record{Kind: audit.LogOpened, Log: &audit.LogFacts{Origin: origin}}
	for _, test := range []struct {
		want    string
		records []audit.Record
	}{
		{"record 0 (policy.loaded", []audit.Record{{Kind: audit.PolicyLoaded}}},
		{"it opens another log than " + origin, []audit.Record{{Kind: audit.LogOpened, Log: &audit.LogFacts{Origin: "x"}}}},
		{"record 1 (log.opened, 2026-11-03T12:00:01.123Z): only the first record can open a log", []audit.Record{opened, opened}},
		{"its time is before the time of the previous record, 2026-11-03T12:00:00.123Z", []audit.Record{opened, {Kind: audit.PolicyLoaded, Time: someTime.Add(-time.Hour)}}},
		{"it names no lease", []audit.Record{opened, {Kind: audit.LeaseIssued}}},
		{"the lease was already issued", []audit.Record{opened, leaseRecord(audit.LeaseIssued, "a"), leaseRecord(audit.LeaseIssued, "a")}},
		{"the lease had already ended", []audit.Record{opened, leaseRecord(audit.LeaseRevoked, "a"), leaseRecord(audit.LeaseIssued, "a")}},
		{"the lease had already ended", []audit.Record{opened, leaseRecord(audit.LeaseFailed, "a"), leaseRecord(audit.LeaseRevoked, "a")}},
		{"the lease was already opened", []audit.Record{opened, leaseRecord(audit.LeaseIssued, "a"), leaseRecord(audit.LeaseOpened, "a")}},
		{"the lease was already opened", []audit.Record{opened, leaseRecord(audit.LeaseOpened, "a"), leaseRecord(audit.LeaseOpened, "a")}},
		{"it names no request, and no earlier record opened the lease for one", []audit.Record{opened, issued("a")}},
		{"the lease has other scopes or a later expiry than when it was opened", []audit.Record{opened, leaseRecord(audit.LeaseOpened, "a"), edited(issued("a"), func(r *audit.Record) { r.Lease.Expires = someTime.Add(2 * time.Hour) })}},
		{"the lease has other scopes or a later expiry than when it was opened", []audit.Record{opened, leaseRecord(audit.LeaseOpened, "a"), edited(issued("a"), func(r *audit.Record) { r.Lease.Scopes = []string{"all"} })}},
		{"", []audit.Record{opened, leaseRecord(audit.LeaseOpened, "a"), issued("a"), leaseRecord(audit.LeaseRevoking, "a"), leaseRecord(audit.LeaseRevoking, "a"), leaseRecord(audit.LeaseRevoked, "a")}},
		{"", []audit.Record{opened, leaseRecord(audit.LeaseOpened, "a"), issued("a"), leaseRecord(audit.LeaseRevoked, "a"), leaseRecord(audit.LeaseRevoking, "a"), leaseRecord(audit.LeaseRevoked, "a")}},
		{"had already ended", []audit.Record{opened, leaseRecord(audit.LeaseOpened, "a"), leaseRecord(audit.LeaseFailed, "a"), leaseRecord(audit.LeaseRevoking, "a"), issued("a")}},
	} {
		m := &testLog{}
		for _, r := range test.records {
			m.record(t, r)
		}
		m.sign(t)
		_, err := Verify(t.Context(), m, Options{Key: public})
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("got %v, want %q", err, test.want)
		}
	}
}

// An unreadable record does not hide that the record after it is older than the
// record before it.
func TestVerifyComparesTimesAcrossUnreadableRecords(t *testing.T) {
	m := &testLog{}
	m.record(t, audit.Record{Kind: audit.LogOpened, Log: &audit.LogFacts{Origin: origin}})
	m.append([]byte("leaf"), nil)
	m.record(t, audit.Record{Kind: audit.PolicyLoaded, Time: someTime.Add(-time.Hour)})
	report, err := Verify(t.Context(), m, Options{})
	if err == nil || len(report.Problems) != 2 || !strings.Contains(report.Problems[1].Error(), "its time is before the time of the previous record, 2026-11-03T12:00:00.123Z") {
		t.Errorf("got %+v, %v, want two problems", report.Problems, err)
	}
}

// A person with access to the database but without the log's key can write records,
// but no checkpoint that covers them.
func TestVerifyRequiresSignedCheckpoints(t *testing.T) {
	whole := goodLog(t)
	size := int64(len(whole.items))
	for _, test := range []struct {
		name   string
		change func(m *testLog)
		opts   Options
		signed int64
		want   string
	}{
		{"an unsigned end", func(*testLog) {}, Options{Key: public}, 17, ""},
		{"no checkpoint", func(m *testLog) { m.notes = nil }, Options{Key: public}, 0, "no checkpoint is signed with the key you gave"},
		{"no checkpoint and no given key", func(m *testLog) { m.notes = nil }, Options{}, 0, ""},
		{"a rewritten log", func(m *testLog) { *m = *m.forge(12, "lse_", "lse_x"); m.notes = nil }, Options{Key: public}, 0, "no checkpoint is signed"},
		{"a rewritten end", func(m *testLog) { kept := m.notes[0]; *m = *m.forge(12, "lse_", "lse_x"); m.notes = []string{kept} }, Options{Key: public}, 9, ""},
		{"unsigned for an hour", func(m *testLog) {
			m.notes = m.notes[:1]
			m.record(t, edited(leaseRecord(audit.LeaseOpened, "z"), func(r *audit.Record) { r.Time = someTime.Add(time.Hour) }))
		}, Options{Key: public}, 9, "records 9 to 18 are not signed, although they span 59m51s"},
		{"the key of another log", func(*testLog) {}, Options{Key: "x" + public}, 0, "is for the log x"},
	} {
		m := goodLog(t)
		test.change(m)
		r, err := Verify(t.Context(), m, test.opts)
		if r.Signed != test.signed || r.Records < size || test.want == "" && err != nil {
			t.Errorf("%s: got %d of %d records signed, %v", test.name, r.Signed, r.Records, err)
		}
		if found := slices.ContainsFunc(r.Problems, func(p Problem) bool { return p.Index == -1 && strings.Contains(p.What, test.want) }); test.want != "" && !found {
			t.Errorf("%s: got problems %+v, want %q", test.name, r.Problems, test.want)
		}
	}
}

func TestReportIsBounded(t *testing.T) {
	m := noRecords(500)
	r, err := Verify(t.Context(), m, Options{Key: public})
	if err == nil || len(r.Problems) != maxProblems || r.More != 400 {
		t.Errorf("got %d problems and %d more, %v", len(r.Problems), r.More, err)
	}
}

func TestLeasesAreBounded(t *testing.T) {
	const size = 100
	s := newLeaseState(size)
	for n := range size + 10 {
		s.check(&audit.Record{Kind: audit.LeaseIssued, Lease: &audit.LeaseFacts{ID: fmt.Sprint(n)}})
	}
	if _, oldest := s.leases["9"]; oldest || len(s.leases) != size {
		t.Errorf("got %d leases, the tenth among them: %t, want the last %d", len(s.leases), oldest, size)
	}
}

func TestProgressIsReported(t *testing.T) {
	var calls []int64
	_, err := Verify(t.Context(), noRecords(2*progressInterval+1), Options{Progress: func(records int64) { calls = append(calls, records) }})
	if err == nil {
		t.Error("leaves that are not records verify")
	}
	if !slices.Equal(calls, []int64{progressInterval, 2 * progressInterval}) {
		t.Errorf("got calls with %v", calls)
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
		t.Errorf("got %d lines, want a header and 18 records", n)
	}
	verify := func(text string) (*Report, error) {
		f, err := OpenExport(strings.NewReader(text))
		if err != nil {
			return nil, err
		}
		return Verify(t.Context(), f, Options{Key: public})
	}
	if r, err := verify(good); err != nil || !r.Verified || r.Root != m.tree.Root() || r.Checkpoints != 2 || r.Opened != 15 {
		t.Errorf("got report %+v, %v", r, err)
	}
	lines := strings.SplitAfter(good, "\n")
	for name, test := range map[string]struct{ text, want string }{
		"a byte":                {strings.Replace(good, `"id":"lse_4"`, `"id":"lse_5"`, 1), "record 9 (lease.issued, 2026-11-03T12:00:09.123Z): its bytes hash to "},
		"a space":               {strings.Replace(good, `"id":"lse_4"`, `"id": "lse_4"`, 1), "record 9"},
		"a missing line":        {strings.Join(append(append([]string{}, lines[:5]...), lines[6:]...), ""), "record 4 (lease.issued, 2026-11-03T12:00:05.123Z): the record at this place has the index 5"},
		"two lines swapped":     {lines[0] + lines[1] + lines[3] + lines[2] + strings.Join(lines[4:], ""), "has the index 2"},
		"truncated":             {strings.Join(lines[:12], ""), "the log states that it has 18 records, but 11 were found"},
		"truncated in a line":   {good[:len(good)-20], "reading the line of record 17"},
		"a malformed line":      {good + "x\n", "reading the line of record 18"},
		"an unknown field":      {strings.Replace(good, `{"index":3,`, `{"index":3,"x":1,`, 1), "reading the line of record 3"},
		"an empty file":         {"", "reading the export's header: unexpected EOF"},
		"another file":          {"{}\n", "its format is 0, this program reads format 1"},
		"another root":          {strings.Replace(good, `"root":"`+m.tree.Root().String(), `"root":"`+digest(0).String(), 1), "but the log states " + digest(0).String()},
		"a newer format":        {`{"accessbroker_log":2}`, "its format is 2"},
		"a line without an end": {good[:len(lines[0])] + strings.Repeat("x", maxLine+1), "token too long"},
	} {
		r, err := verify(test.text)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %q", name, err, test.want)
		}
		if r != nil && r.Verified {
			t.Errorf("%s: the report is verified", name)
		}
	}
}

// A record with the longest texts is longer than the lines that bufio reads by
// default.
func TestExportOfALargeRecord(t *testing.T) {
	m := &testLog{}
	m.record(t, audit.Record{Kind: audit.LogOpened, Log: &audit.LogFacts{Origin: origin}})
	r := leaseRecord(audit.LeaseIssued, "a")
	commitment, opening := audit.Commit(strings.Repeat("x", 100_000))
	r.Request.Justification, r.Openings = commitment, map[string]audit.Opening{"justification": opening}
	m.record(t, r)
	var out bytes.Buffer
	if err := Export(t.Context(), &out, m); err != nil {
		t.Fatal(err)
	}
	f, err := OpenExport(&out)
	if err != nil {
		t.Fatal(err)
	}
	if report, err := Verify(t.Context(), f, Options{}); err != nil || report.Opened != 1 {
		t.Errorf("got %+v, %v, want one opened commitment", report, err)
	}
}

func TestVerifyEndsWithItsContext(t *testing.T) {
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

// BenchmarkVerify verifies an export of 10,000 records, or of as many as RECORDS says.
func BenchmarkVerify(b *testing.B) {
	records := 10_000
	if text := os.Getenv("RECORDS"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			b.Fatal(err)
		}
		records = n
	}
	path := filepath.Join(b.TempDir(), "export")
	writeExport(b, path, records)
	b.ReportAllocs()
	used := cpuSeconds(b)
	for b.Loop() {
		f, err := os.Open(path)
		if err != nil {
			b.Fatal(err)
		}
		export, err := OpenExport(f)
		if err != nil {
			b.Fatal(err)
		}
		if r, err := Verify(b.Context(), export, Options{Key: public}); err != nil || r.Records != int64(records) {
			b.Fatalf("%+v, %v", r, err)
		}
		_ = f.Close()
	}
	b.ReportMetric(float64(b.N)*float64(records)/b.Elapsed().Seconds(), "records/s")
	b.ReportMetric((cpuSeconds(b)-used)/float64(b.N), "cpu-s/op")
	b.ReportMetric(peakMemory(b), "peak-MB")
}

// cpuSeconds returns the CPU time of the process so far. Unlike the elapsed time, it
// does not depend on what else runs.
func cpuSeconds(b *testing.B) float64 {
	b.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano()).Seconds()
}

// peakMemory returns the largest resident memory of the process so far.
func peakMemory(b *testing.B) float64 {
	b.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	var kilobytes float64
	_, after, _ := strings.Cut(string(status), "VmHWM:")
	if _, err := fmt.Sscan(after, &kilobytes); err != nil {
		b.Fatal(err)
	}
	return kilobytes / 1024
}

// issuedByPolicy returns a record with the facts that the broker records for a
// credential that one call requested and collected.
func issuedByPolicy(n int) audit.Record {
	r := leaseRecord(audit.LeaseIssued, fmt.Sprint("lse_", n))
	r.Time = someTime.Add(time.Duration(n) * 100 * time.Millisecond)
	d := audit.Digest{1, 2, 3}
	*r.Caller = audit.Party{ID: fmt.Sprintf("spiffe://acme.test/agent/%d", n%1000), Kind: "agent", Method: "jwt-svid", Proof: d, Expires: someTime.Add(time.Hour)}
	*r.Decision = audit.DecisionFacts{Permit: true, Policies: []string{"agents-read-tickets"}, Revision: d, MaxTTL: time.Hour}
	r.Request.Effect, r.Request.Scopes = d, []string{"tickets:comment", "tickets:read"}
	source, opening := audit.Commit("192.0.2.7")
	r.Request.Source, r.Openings["source"] = source, opening
	r.Lease.Issuer, r.Lease.Type, r.Lease.Revocation, r.Lease.Credential = "tickets", "bearer", "immediate", d
	return r
}

// writeExport writes an export with the records of that many issued credentials. It
// holds one record at a time in memory.
func writeExport(b *testing.B, path string, records int) {
	b.Helper()
	m := &testLog{}
	body, err := os.Create(path + ".body")
	if err != nil {
		b.Fatal(err)
	}
	out := bufio.NewWriter(body)
	for n := range records {
		if n == 0 {
			m.record(b, audit.Record{Kind: audit.LogOpened, Log: &audit.LogFacts{Origin: origin}})
		} else {
			m.record(b, issuedByPolicy(n))
		}
		m.sums = nil // not needed, since no record is about an earlier request
		_, _ = out.Write(appendLine(nil, &m.items[0]))
		m.items = m.items[:0]
	}
	m.sign(b)
	if err := errors.Join(out.Flush(), body.Close()); err != nil {
		b.Fatal(err)
	}
	h, _ := m.Header(b.Context())
	file, err1 := os.Create(path)
	lines, err2 := os.Open(path + ".body")
	err3 := json.NewEncoder(file).Encode(exportHeader{exportFormat, h.Origin, h.Key, int64(records), h.Root, h.Checkpoints})
	_, err4 := io.Copy(file, lines)
	if err := errors.Join(err1, err2, err3, err4, lines.Close(), file.Close(), os.Remove(path+".body")); err != nil {
		b.Fatal(err)
	}
}
