package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"accessbroker.internal/audit"
	"accessbroker.internal/audit/verify"
	"accessbroker.internal/broker"
	"accessbroker.internal/internal/storetest"
)

func TestOpenReturnsErrors(t *testing.T) {
	storetest.OnlySQLite(t, "how PostgreSQL is opened has tests of its own")
	path := filepath.Join(t.TempDir(), "broker.db")
	s := open(t, path)
	for _, test := range []struct{ url, says string }{
		{"sqlite:" + path, "in use by another broker (process "},
		{"mysql://localhost/broker", "unknown scheme"},
		{"sqlite:", "not of the form"},
		{"sqlite:" + filepath.Join(path, "x"), "not a directory"},
	} {
		if _, err := Open(t.Context(), Config{URL: test.url}); err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %v", test.url, err)
		}
	}
	if _, err := s.w.conn.ExecContext(t.Context(), "PRAGMA user_version = 99"); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	newer := fmt.Sprintf("schema version 99, and this program knows versions up to %d: run the newer program", len(migrations))
	if _, err := Open(t.Context(), Config{URL: "sqlite:" + path}); err == nil || !strings.Contains(err.Error(), newer) {
		t.Errorf("a newer database: %v", err)
	}
	if _, err := OpenSource(t.Context(), path); err == nil || !strings.Contains(err.Error(), newer) {
		t.Errorf("a newer database, offline: %v", err)
	}
}

func TestOpenSourceReturnsErrors(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notes.txt")
	if err := os.WriteFile(path, bytes.Repeat([]byte("no database "), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ path, says string }{
		{path, "not a database"},
		{path + "x", "no such file"},
	} {
		if _, err := OpenSource(t.Context(), test.path); err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %v", test.path, err)
		}
	}
}

// The error for a reader who can neither read nor create SQLite's files next to a
// database in use states what to do instead.
func TestOpenSourceWithoutPermission(t *testing.T) {
	storetest.OnlySQLite(t, "the files are the server's")
	path := filepath.Join(t.TempDir(), "broker.db")
	if err := open(t, path).Close(); err != nil {
		t.Fatal(err)
	}
	// Not even root can read or create these files.
	if err := errors.Join(os.WriteFile(path+"-wal", []byte("changes"), 0o600), os.Symlink("nowhere", path+"-shm")); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenSource(t.Context(), path); err == nil || !strings.Contains(err.Error(), "read an export (broker audit export) or a backup (reading the schema version: unable to open database file (14))") {
		t.Errorf("%v", err)
	}
}

func TestFilesAreOnlyForTheirOwner(t *testing.T) {
	storetest.OnlySQLite(t, "the files are the server's")
	dir := t.TempDir()
	s := open(t, filepath.Join(dir, "broker.db"))
	works(t, s)
	files, err := os.ReadDir(dir)
	if err != nil || len(files) < 4 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, f := range files {
		if info, err := f.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has the mode %v, %v", f.Name(), info.Mode(), err)
		}
	}
}

func TestADatabaseInUseCanBeVerified(t *testing.T) {
	path := filepath.Join(t.TempDir(), "broker.db")
	s := open(t, path)
	works(t, s)
	f, err := OpenSource(t.Context(), testURL(t, path))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if r := verifyLog(t, f); r.Records != 2 {
		t.Errorf("%d records", r.Records)
	}
	works(t, s)
	if r := verifyLog(t, f); r.Records != 3 {
		t.Errorf("%d records", r.Records)
	}
}

// A byte is flipped in a copy of the database; the verifier names the record.
func TestOneFlippedByte(t *testing.T) {
	storetest.OnlySQLite(t, "a byte of a file")
	path := filepath.Join(t.TempDir(), "broker.db")
	s := open(t, path)
	for n := range 9 {
		i := newIssuance(t, n)
		if err := i.store(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	sixth, err := s.Record(t.Context(), 6)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(b, sixth.Leaf) + bytes.Index(sixth.Leaf, []byte(`"tickets-api"`)) + 3
	b[at] ^= 1
	copied := filepath.Join(t.TempDir(), "copy.db")
	if err := os.WriteFile(copied, b, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := OpenSource(t.Context(), copied)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	report, err := verify.Verify(t.Context(), f, verify.Options{Key: testPublic})
	var problem *verify.Problem
	if !errors.As(err, &problem) || problem.Index != 6 || len(report.Problems) != 1 {
		t.Fatalf("%v, %+v", err, report)
	}
	for _, says := range []string{"record 6 (lease.issued, 20", "its bytes hash to ", ", but the tree has "} {
		if !strings.Contains(err.Error(), says) {
			t.Errorf("%q does not contain %q", err, says)
		}
	}
	files, err := os.ReadDir(filepath.Dir(copied))
	if err != nil || len(files) != 1 {
		t.Errorf("verifying left files: %v, %v", files, err)
	}
}

func TestProofsAndCheckpoints(t *testing.T) {
	s := newStore(t)
	signer, err := audit.NewSigner(testSecret)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Prove(t.Context(), 0); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("without a checkpoint: %v", err)
	}
	for n := range keptCheckpoints + 5 {
		i := newIssuance(t, n)
		if err := errors.Join(i.store(t.Context(), s), saveCheckpoint(t, s, signer)); err != nil {
			t.Fatal(err)
		}
	}
	works(t, s) // one more record, which the checkpoint does not cover
	for _, index := range []int64{0, 1, 50, keptCheckpoints + 5} {
		p, err := s.Prove(t.Context(), index)
		if err != nil {
			t.Fatal(err)
		}
		document, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		var read audit.Proof
		if err := json.Unmarshal(document, &read); err != nil {
			t.Fatal(err)
		}
		if _, err := read.Verify(testPublic); err != nil {
			t.Errorf("record %d: %v", index, err)
		}
	}
	if _, err := s.Prove(t.Context(), keptCheckpoints+6); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("past the checkpoint: %v", err)
	}
	for _, index := range []int64{-1, s.Head().Size, 1000} {
		if _, err := s.Record(t.Context(), index); !errors.Is(err, broker.ErrNotFound) {
			t.Errorf("record %d, outside of the log: %v", index, err)
		}
	}
	if r := verifyLog(t, s.Source()); r.Checkpoints != keptCheckpoints {
		t.Errorf("%d checkpoints are kept", r.Checkpoints)
	}
	var export bytes.Buffer
	if err := verify.Export(t.Context(), &export, s.Source()); err != nil {
		t.Fatal(err)
	}
	f, err := verify.OpenExport(&export)
	if err != nil {
		t.Fatal(err)
	}
	if r := verifyLog(t, f); r.Root != s.Head().Root || r.Checkpoints != keptCheckpoints {
		t.Errorf("the export: %+v", r)
	}
}

func TestLogsOfADatabase(t *testing.T) {
	s, err := Open(t.Context(), Config{URL: testURL(t, filepath.Join(t.TempDir(), "broker.db")), Reserve: 1 << 16})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	if _, err := s.Log(t.Context()); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("no log: %v", err)
	}
	i := newIssuance(t, 1)
	if err := i.store(t.Context(), s); !errors.Is(err, broker.ErrUnavailable) || !strings.Contains(err.Error(), "OpenLog comes first") {
		t.Errorf("appending to no log: %v", err)
	}
	if err := openLog(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if err := openLog(t.Context(), s); !errors.Is(err, ErrLogOpen) {
		t.Errorf("opening it again: %v", err)
	}
	works(t, s)

	const second = "broker.test/log/11111111"
	_, public, err := audit.NewLogKey(second)
	if err != nil {
		t.Fatal(err)
	}
	if err := newEpoch(t.Context(), s, second, public); err != nil {
		t.Fatal(err)
	}
	i = newIssuance(t, 2)
	if err := i.store(t.Context(), s); err != nil || i.entry.Index != 1 {
		t.Errorf("the second record of the second log has the index %d, %v", i.entry.Index, err)
	}
	if report, err := verify.Verify(t.Context(), s.Source(), verify.Options{}); err != nil || report.Records != 2 || report.Key != public {
		t.Errorf("the second log: %+v, %v", report, err)
	}
	if log, err := s.Log(t.Context()); err != nil || log != (Log{2, second, public}) {
		t.Errorf("the log: %+v, %v", log, err)
	}
}

func newEpoch(ctx context.Context, s *Store, origin, public string) error {
	first, err := audit.Record{Kind: audit.LogOpened, Log: &audit.LogFacts{Origin: origin, Previous: "the last checkpoint"}}.Entry()
	if err != nil {
		return err
	}
	return s.NewEpoch(ctx, origin, public, &broker.SigningKey{ID: broker.SigningKeyID{Purpose: "log", ID: origin}}, first, nil, nil)
}

// Commits wait for the disk unless a test asks for the opposite.
func TestCommitsAreDurable(t *testing.T) {
	storetest.OnlySQLite(t, "the server decides what is durable")
	const off, full = 0, 2 // as SQLite numbers them
	for noSync, want := range map[bool]int{false: full, true: off} {
		s, err := Open(t.Context(), Config{URL: "sqlite:" + filepath.Join(t.TempDir(), "broker.db"), Reserve: 1 << 16, NoSync: noSync})
		if err != nil {
			t.Fatal(err)
		}
		var got int
		err = s.w.conn.QueryRowContext(t.Context(), "PRAGMA synchronous").Scan(&got)
		if err := errors.Join(err, s.Close()); err != nil || got != want {
			t.Errorf("NoSync %t: synchronous is %d, %v; want %d", noSync, got, err, want)
		}
	}
}
