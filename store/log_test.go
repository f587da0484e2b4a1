package store

import (
	"bytes"
	"errors"
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

// A log has one checkpoint of a size, whatever several processes sign. One that shares its
// database also refuses a checkpoint over records that the log does not have.
func TestLogHasOneCheckpointOfASize(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "broker.db"))
	first, second := newIssuance(t, 1), newIssuance(t, 2)
	if err := first.store(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	head := s.Head()
	log, err := s.Log(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	signer, err := audit.NewSigner(testSecret)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(size int64, root audit.Digest) []byte {
		t.Helper()
		signed, err := signer.Sign(audit.Checkpoint{Origin: log.Origin, Size: size, Root: root})
		if err != nil {
			t.Fatal(err)
		}
		return signed
	}
	right, wrong := sign(head.Size, head.Root), sign(head.Size, audit.Digest{1})
	for range 2 { // after a lost answer, it is saved again
		if err := s.SaveCheckpoint(t.Context(), head.Size, right); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.SaveCheckpoint(t.Context(), head.Size, wrong); !errors.Is(err, ErrCheckpoint) {
		t.Errorf("got error %v for another checkpoint of the same size, want %v", err, ErrCheckpoint)
	}
	if saved, err := s.Checkpoint(t.Context()); err != nil || !bytes.Equal(saved, right) {
		t.Errorf("got the checkpoint %q (%v), want the first", saved, err)
	}
	if !s.Shared() {
		return
	}
	if err := second.store(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		size   int64
		signed []byte
	}{
		"records that are not there yet": {head.Size + 9, sign(head.Size+9, head.Root)},
		"other records":                  {head.Size + 1, sign(head.Size+1, head.Root)},
		"fewer other records":            {head.Size - 1, sign(head.Size-1, head.Root)},
		"another size":                   {head.Size + 1, right},
	} {
		if err := s.SaveCheckpoint(t.Context(), c.size, c.signed); !errors.Is(err, ErrCheckpoint) {
			t.Errorf("%s: got error %v, want %v", name, err, ErrCheckpoint)
		}
	}
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
