package store

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/internal/storetest"
)

// fillUp issues until the store returns an error, and returns the leases that were
// issued.
func fillUp(t *testing.T, s *Store) (issued []broker.LeaseID, err error) {
	t.Helper()
	for n := range 100_000 {
		i := newIssuance(t, n)
		if err := i.store(t.Context(), s); err != nil {
			if i.entry.Index != 0 {
				t.Errorf("a failed issuance has the index %d", i.entry.Index)
			}
			if _, err := get(t, s, i.lease.ID); !errors.Is(err, broker.ErrNotFound) {
				t.Errorf("reading the lease of a failed issuance: got %v", err)
			}
			return issued, err
		}
		issued = append(issued, i.lease.ID)
	}
	t.Fatal("the disk never became full")
	return nil, nil
}

// checkFull checks that a full disk is reported, and that nothing is lost.
func checkFull(t *testing.T, s *Store, issued []broker.LeaseID, err error) {
	t.Helper()
	if !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("the caller got %v", err)
	}
	if err := s.Degraded(); !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("degraded: %v", err)
	}
	report := verifyLog(t, s.Source())
	if got := report.Kinds[audit.LeaseIssued]; got != int64(len(issued)) {
		t.Errorf("%d were issued and %d are recorded", len(issued), got)
	}
}

// recovers checks that the store notices by itself that there is space again.
func recovers(t *testing.T, s *Store) {
	t.Helper()
	now := time.Now().Add(2 * retryReserve)
	s.w.now = func() time.Time { return now }
	works(t, s)
	if err := s.Degraded(); err != nil {
		t.Errorf("still degraded: %v", err)
	}
}

// SQLite itself limits the size of the database.
func TestFullDatabase(t *testing.T) {
	storetest.OnlySQLite(t, "the disk is the server's")
	s := newStore(t)
	limit := func(pages string) {
		if _, err := s.w.conn.ExecContext(t.Context(), "PRAGMA max_page_count = "+pages); err != nil {
			t.Fatal(err)
		}
	}
	limit("100")
	issued, err := fillUp(t, s)
	checkFull(t, s, issued, err)
	if n, err := s.Sweep(t.Context(), testNow.Add(time.Hour)); n != 0 || !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("swept %d rows of a full database, %v", n, err)
	}
	limit("1000000")
	recovers(t, s)
}

// On a full disk, nothing is issued, and ends of leases are recorded in the
// reserve.
func TestFullDisk(t *testing.T) {
	storetest.OnlySQLite(t, "the disk is the server's")
	dir := smallDisk(t, "8m")
	s := open(t, filepath.Join(dir, "broker.db"))
	s.w.reserve.size = 2 << 20
	if err := s.w.reserve.hold(); err != nil {
		t.Fatal(err)
	}
	issued, err := fillUp(t, s)
	checkFull(t, s, issued, err)

	for _, id := range issued[:50] {
		if err := revoke(t, s, id); err != nil {
			t.Fatalf("a revocation on a full disk: %v", err)
		}
	}
	block := &broker.Block{Selector: broker.BlockKey{Kind: "under", Name: "spiffe://acme.test"}, Since: testNow}
	entry, err := audit.Record{Kind: audit.BlockPlaced, Block: &audit.BlockFacts{Selector: "under spiffe://acme.test"}}.Entry()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Update(t.Context(), nil, func(tx broker.Tx) error { tx.Put(block); tx.Append(entry); return nil }); err != nil {
		t.Errorf("a block on a full disk: %v", err)
	}
	i := newIssuance(t, 1)
	if err := i.store(t.Context(), s); err == nil {
		t.Error("an issuance on a full disk succeeded")
	}
	if r := verifyLog(t, s.Source()); r.Kinds[audit.LeaseRevoked] != 50 || r.Kinds[audit.BlockPlaced] != 1 {
		t.Errorf("the log has %v", r.Kinds)
	}

	// Reopened on a full disk, the store has all of its records.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, filepath.Join(dir, "broker.db"))
	if s.w.reserve.size = 2 << 20; s.Head().Size != int64(len(issued)+52) {
		t.Errorf("%d records after reopening", s.Head().Size)
	}
	if err := os.Remove(filepath.Join(dir, "ballast")); err != nil {
		t.Fatal(err)
	}
	lift(t, s, block)
	recovers(t, s)
}

// lift removes a block from memory.
func lift(t *testing.T, s *Store, b *broker.Block) {
	t.Helper()
	delete(s.w.blocks, b.Selector)
}

// The store also reports a database that cannot be written for reasons other than
// space, until the statement of Run succeeds.
func TestUnwritableDatabase(t *testing.T) {
	storetest.OnlySQLite(t, "the disk is the server's")
	s := open(t, filepath.Join(t.TempDir(), "broker.db"))
	s.w.fault = func(string, func() error) error { return errors.New("input/output error") }
	i := newIssuance(t, 1)
	if err := i.store(t.Context(), s); !errors.Is(err, broker.ErrUnavailable) {
		t.Fatalf("the caller got %v", err)
	}
	if err := s.Degraded(); !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("degraded: %v", err)
	}
	s.w.fault = nil
	if _, err := s.delete(t.Context(), "UPDATE head SET time = time"); err != nil {
		t.Fatal(err)
	}
	if err := s.Degraded(); err != nil {
		t.Errorf("still degraded: %v", err)
	}
	works(t, s)
}

// A reserve that was removed while the disk had space is made again.
func TestRemovedReserve(t *testing.T) {
	storetest.OnlySQLite(t, "the disk is the server's")
	s := newStore(t)
	works(t, s)
	if err := os.Remove(s.w.reserve.path); err != nil {
		t.Fatal(err)
	}
	now := time.Now().Add(2 * retryReserve)
	s.w.now = func() time.Time { return now }
	works(t, s)
	if info, err := os.Stat(s.w.reserve.path); err != nil || info.Size() != s.w.reserve.size || s.Degraded() != nil {
		t.Errorf("got the reserve %v, %v, degraded %v", info, err, s.Degraded())
	}
}
