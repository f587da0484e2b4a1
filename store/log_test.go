package store

import (
	"path/filepath"
	"testing"

	"accessbroker.internal/audit"
	"accessbroker.internal/audit/verify"
)

func verifyLog(t testing.TB, src audit.Source) *verify.Report {
	t.Helper()
	report, err := verify.Verify(t.Context(), src, verify.Options{}) // few of these logs are signed
	if err != nil {
		t.Fatalf("the log does not verify: %v", err)
	}
	return report
}

func TestLogSurvivesReopening(t *testing.T) {
	path := filepath.Join(t.TempDir(), "broker.db")
	s := open(t, path)
	for n := range 20 {
		i := newIssuance(t, n)
		if err := i.store(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		if i.entry.Index != int64(n)+1 || i.entry.LeafHash != i.entry.Hash() {
			t.Errorf("entry %d has the index %d and the hash %s", n, i.entry.Index, i.entry.LeafHash)
		}
	}
	before := s.Head()
	if r := verifyLog(t, s.Source()); r.Records != 21 || r.Root != before.Root {
		t.Errorf("verified %d records, root %s; the head is %+v", r.Records, r.Root, before)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := OpenSource(t.Context(), testURL(t, path))
	if err != nil {
		t.Fatal(err)
	}
	verifyLog(t, f)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if after := open(t, path).Head(); after != before {
		t.Errorf("reopened with the head %+v, closed with %+v", after, before)
	}
}
