package store

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// crashEnv makes the test binary the process that is to be killed: it names
// the database.
const crashEnv = "STORE_TEST_CRASH"

func TestMain(m *testing.M) {
	if path := os.Getenv(crashEnv); path != "" {
		if err := issueForever(path); err != nil {
			fmt.Println(err)
		}
		os.Exit(1) // it was to be killed
	}
	os.Exit(m.Run())
}

// issueForever issues from many goroutines and prints what was confirmed. On
// the way it ends what it issued, counts, and sweeps.
func issueForever(path string) error {
	ctx := context.Background()
	s, err := Open(ctx, Config{URL: "sqlite:" + path, Reserve: 1 << 16})
	if err != nil {
		return err
	}
	if err := openLog(ctx, s); err != nil && !errors.Is(err, ErrLogOpen) {
		return err
	}
	errs := make(chan error)
	for n := range 16 {
		go func() {
			for {
				if err := issueAndConfirm(ctx, s, n); err != nil {
					errs <- err
					return
				}
			}
		}()
	}
	return <-errs
}

func issueAndConfirm(ctx context.Context, s *Store, n int) error {
	i := newIssuance(nil, n)
	if err := i.store(ctx, s); err != nil {
		return err
	}
	// One write: a line is there whole or not at all.
	fmt.Printf("%d %s %s\n", i.entry.Index, i.entry.LeafHash, i.lease.ID)
	if n == 0 {
		if _, err := s.Sweep(ctx, testNow); err != nil {
			return err
		}
	}
	return count(ctx, s, 1<<30)
}

// TestKilledInTheMiddle kills the process with SIGKILL while it commits, again
// and again on the same database: whatever was confirmed is there, and the log
// verifies, which includes that no half of a transaction is.
func TestKilledInTheMiddle(t *testing.T) {
	path := filepath.Join(t.TempDir(), "broker.db")
	total := 0
	for range 8 {
		confirmed := runAndKill(t, path, 1+rand.IntN(400))
		checkConfirmed(t, path, confirmed)
		total += len(confirmed)
	}
	t.Logf("%d confirmed issuances survived 8 kills", total)
}

// runAndKill lets a process confirm that many issuances, kills it, and gives
// the lines that it wrote.
func runAndKill(t *testing.T, path string, confirmations int) (lines []string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), crashEnv+"="+path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	scanner := bufio.NewScanner(out)
	for scanner.Scan() {
		if lines = append(lines, scanner.Text()); len(lines) == confirmations {
			_ = cmd.Process.Kill()
		}
	}
	_ = cmd.Wait() // "signal: killed"
	if len(lines) < confirmations {
		t.Fatalf("the process stopped by itself: %q", lines[max(0, len(lines)-1):])
	}
	return lines
}

func checkConfirmed(t *testing.T, path string, confirmed []string) {
	t.Helper()
	// As an auditor sees it, before anybody has recovered anything.
	f, err := OpenSource(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	verifyLog(t, f)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	s := open(t, path)
	report := verifyLog(t, s.Source())
	for _, line := range confirmed {
		var index int64
		var hash, lease string
		if _, err := fmt.Sscan(line, &index, &hash, &lease); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		item, err := s.Record(t.Context(), index)
		if err != nil {
			t.Fatalf("the confirmed record is lost: %v", err)
		}
		if !strings.Contains(string(item.Leaf), lease) || audit.Digest(item.Hashes[:32]).String() != hash {
			t.Fatalf("record %d is not what was confirmed: %s", index, item.Leaf)
		}
		id, err := broker.ParseLeaseID(lease)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := get(t, s, id); err != nil {
			t.Fatalf("the lease of record %d: %v", index, err)
		}
	}
	if issued, live := report.Kinds[audit.LeaseIssued], countLive(t, s); issued != live {
		t.Errorf("%d leases for %d records: a transaction took place by half", live, issued)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func countLive(t *testing.T, s *Store) (n int64) {
	t.Helper()
	counts, err := s.CountActive(t.Context(), testNow)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range counts {
		n += c.Leases
	}
	return n
}

// TestInterleavings lets goroutines do everything at once, in an order that
// differs from run to run, and then compares the store with what they saw.
func TestInterleavings(t *testing.T) {
	s := newStore(t)
	signer, err := audit.NewSigner(testSecret)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	issued, ended := map[broker.LeaseID]int64{}, map[broker.LeaseID]bool{}
	var wg sync.WaitGroup
	for n := range 12 {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(n), 7))
			for range 60 {
				var err error
				switch i := newIssuance(t, n); random.IntN(6) {
				case 0, 1, 2:
					if err = i.store(t.Context(), s); err == nil {
						mu.Lock()
						issued[i.lease.ID] = i.entry.Index
						mu.Unlock()
						if random.IntN(2) == 0 {
							err = revoke(t, s, i.lease.ID)
							mu.Lock()
							ended[i.lease.ID] = true
							mu.Unlock()
						}
					}
				case 3:
					err = count(t.Context(), s, 1<<30)
				case 4:
					ctx, cancel := context.WithCancel(t.Context())
					go cancel() // in time or not
					if i.store(ctx, s) == nil {
						mu.Lock()
						issued[i.lease.ID] = i.entry.Index
						mu.Unlock()
					}
				case 5:
					err = saveCheckpoint(t, s, signer)
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	report := verifyLog(t, s.Source())
	if report.Kinds[audit.LeaseIssued] != int64(len(issued)) || report.Kinds[audit.LeaseRevoked] != int64(len(ended)) {
		t.Errorf("the log has %v; %d were issued and %d ended", report.Kinds, len(issued), len(ended))
	}
	if live := countLive(t, s); live != int64(len(issued)-len(ended)) {
		t.Errorf("%d live leases; %d were issued and %d ended", live, len(issued), len(ended))
	}
	for id, index := range issued {
		if item, err := s.Record(t.Context(), index); err != nil || !strings.Contains(string(item.Leaf), id.String()) {
			t.Errorf("record %d is not about %s: %s, %v", index, id, item.Leaf, err)
		}
	}
}

// revoke ends a lease, as the broker does.
func revoke(t testing.TB, s *Store, id broker.LeaseID) error {
	entry, err := audit.Record{Kind: audit.LeaseRevoked, Lease: &audit.LeaseFacts{ID: id.String()}, End: &audit.EndFacts{How: "returned"}}.Entry()
	if err != nil {
		return err
	}
	return s.Update(t.Context(), []broker.Key{id}, func(tx broker.Tx) error {
		row, err := tx.Get(id)
		if err != nil {
			return err
		}
		l := row.(*broker.Lease)
		l.Status, l.Ended = broker.LeaseRevoked, testNow
		tx.Put(l)
		tx.Append(entry)
		return nil
	})
}

func saveCheckpoint(t testing.TB, s *Store, signer *audit.Signer) error {
	head := s.Head()
	signed, err := signer.Sign(audit.Checkpoint{Origin: testOrigin, Size: head.Size, Root: head.Root})
	if err != nil {
		return err
	}
	return s.SaveCheckpoint(t.Context(), head.Size, signed)
}
