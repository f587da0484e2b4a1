package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// commitSteps are the steps of a commit, in order: the points at which the tests
// below make it fail, or kill the process.
var commitSteps = []string{"begin", "fetch", "head", "rows", "records", "commit"}

// crashPoints are all points at which a process can be killed: before each step,
// and after it.
func crashPoints() (points []string) {
	for _, step := range commitSteps {
		points = append(points, "before "+step, "after "+step)
	}
	return points
}

// seedEnv is the environment variable with the seed of the random tests.
const seedEnv = "TEST_SEED"

// seeded returns a random number generator and logs its seed.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	if text := os.Getenv(seedEnv); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("%s: %v", seedEnv, err)
		}
	}
	t.Logf("to repeat this run: %s=%d", seedEnv, seed)
	return rand.New(rand.NewPCG(seed, 0))
}

var errFault = errors.New("injected fault")

func TestStepsOfACommitAreNamed(t *testing.T) {
	s := newStore(t)
	var steps []string
	s.w.fault = func(step string, f func() error) error {
		steps = append(steps, step)
		return f()
	}
	works(t, s)
	if !slices.Equal(steps, commitSteps) {
		t.Errorf("a commit has the steps %q, want %q", steps, commitSteps)
	}
}

// Every step of a commit fails once, and succeeds once with its answer lost. The
// caller gets the true outcome each time, and the store continues.
func TestEveryStepOfACommitFails(t *testing.T) {
	var struck []string
	for _, step := range commitSteps {
		for _, happens := range []bool{false, true} {
			name := "before " + step
			if happens {
				name = "after " + step
			}
			t.Run(name, func(t *testing.T) {
				s := newStore(t)
				s.w.fault = func(at string, f func() error) error {
					if at != step {
						return f()
					}
					struck = append(struck, name)
					if happens {
						return errors.Join(f(), errFault)
					}
					return errFault
				}
				i := newIssuance(t, 1)
				err := i.store(t.Context(), s)
				s.w.fault = nil
				done := name == "after commit"
				if (err == nil) != done || err != nil && !errors.Is(err, broker.ErrUnavailable) {
					t.Errorf("the caller got %v", err)
				}
				if _, err := get(t, s, i.lease.ID); (err == nil) != done {
					t.Errorf("its row: %v", err)
				}
				if done && (i.entry.Index != 1 || i.entry.LeafHash != i.entry.Hash()) {
					t.Errorf("its entry: %d, %s", i.entry.Index, i.entry.LeafHash)
				}
				works(t, s)
			})
		}
	}
	if !slices.Equal(struck, crashPoints()) {
		t.Errorf("struck %q, want %q", struck, crashPoints())
	}
}

// These variables make the test binary the process that is killed: they name the
// database, the point, and after how many commits it is killed there.
const (
	crashURL   = "STORE_TEST_CRASH"
	crashPoint = "STORE_TEST_POINT"
	crashAfter = "STORE_TEST_COMMITS"
)

func TestMain(m *testing.M) {
	if url := os.Getenv(crashURL); url != "" {
		if err := issueUntilKilled(url); err != nil {
			fmt.Println(err)
		}
		os.Exit(1) // it was to be killed
	}
	if path := os.Getenv(openPath); path != "" {
		openOnce(path)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// issueUntilKilled issues from many goroutines and prints each confirmed
// issuance. It revokes, counts and sweeps as well. At the crash point, it prints
// the point and kills its own process.
func issueUntilKilled(url string) error {
	ctx := context.Background()
	s, err := Open(ctx, Config{URL: url, Reserve: 1 << 16})
	if err != nil {
		return err
	}
	if err := openLog(ctx, s); err != nil && !errors.Is(err, ErrLogOpen) {
		return err
	}
	left, err := strconv.Atoi(os.Getenv(crashAfter))
	if err != nil {
		return err
	}
	s.w.fault = func(step string, f func() error) error {
		if left--; left > 0 {
			return f()
		}
		switch os.Getenv(crashPoint) {
		case "before " + step:
			die()
		case "after " + step:
			if err := f(); err != nil {
				return err
			}
			die()
		}
		return f()
	}
	errs := make(chan error)
	for n := range 16 {
		go func() {
			for range 5000 {
				if err := issueAndConfirm(ctx, s, n); err != nil {
					errs <- err
					return
				}
			}
			errs <- errors.New("the process was never killed")
		}()
	}
	return <-errs
}

// die prints the crash point and kills the process, as a power cut would.
func die() {
	fmt.Println("killed " + os.Getenv(crashPoint))
	self, err := os.FindProcess(os.Getpid())
	if err == nil {
		err = self.Kill()
	}
	if err != nil {
		fmt.Println(err)
	}
	select {} // the signal is on its way
}

func issueAndConfirm(ctx context.Context, s *Store, n int) error {
	i := newIssuance(nil, n)
	if err := i.store(ctx, s); err != nil {
		return err
	}
	// A single write prints the line completely or not at all.
	fmt.Printf("confirmed %d %s %s\n", i.entry.Index, i.entry.LeafHash, i.lease.ID)
	if n == 0 {
		if _, err := s.Sweep(ctx, testNow); err != nil {
			return err
		}
		for _, p := range []*projection{s.counting, s.surveying} {
			if err := s.catchUp(ctx, p); err != nil {
				return err
			}
		}
	}
	return count(ctx, s, 1<<30)
}

// The process is killed with SIGKILL at every crash point, again and again on
// the same database. Everything that was confirmed is there, and the log
// verifies, so no transaction happened by half.
func TestKilledAtEveryStep(t *testing.T) {
	random := seeded(t)
	path := filepath.Join(t.TempDir(), "broker.db")
	var struck []string
	for _, point := range crashPoints() {
		confirmed, at := runAndKill(t, path, point, 200+random.IntN(800))
		checkConfirmed(t, path, confirmed)
		struck = append(struck, at)
	}
	if !slices.Equal(struck, crashPoints()) {
		t.Errorf("killed at %q, want %q", struck, crashPoints())
	}
}

// runAndKill has a process run that many steps and kills it at the next occurrence
// of the point. It returns the writes that the process confirmed and the point at
// which it was killed.
func runAndKill(t *testing.T, path, point string, steps int) (confirmed []string, at string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), crashURL+"="+testURL(t, path), crashPoint+"="+point, fmt.Sprintf("%s=%d", crashAfter, steps))
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.Exited() {
		t.Fatalf("%s: the process was not killed: %v\n%s", point, err, out)
	}
	for line := range strings.Lines(string(out)) {
		if c, ok := strings.CutPrefix(line, "confirmed "); ok {
			confirmed = append(confirmed, c)
		} else if p, ok := strings.CutPrefix(line, "killed "); ok {
			at = strings.TrimSpace(p)
		} else {
			t.Fatalf("%s: the process printed %q", point, line)
		}
	}
	if len(confirmed) == 0 {
		t.Fatalf("%s: nothing was confirmed before the kill", point)
	}
	return confirmed, at
}

func checkConfirmed(t *testing.T, path string, confirmed []string) {
	t.Helper()
	// First as an auditor reads it, before a broker has recovered the database.
	f, err := OpenSource(t.Context(), testURL(t, path))
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
			t.Fatalf("a confirmed record is lost: %v", err)
		}
		if !strings.Contains(string(item.Leaf), lease) || audit.Digest(item.Hashes[:32]).String() != hash {
			t.Fatalf("record %d is not the one that was confirmed: %s", index, item.Leaf)
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
		t.Errorf("%d leases for %d records: a transaction happened by half", live, issued)
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

// Goroutines do everything at once, in an order that differs from run to run; then
// the store has to agree with the outcomes that they saw.
func TestInterleavings(t *testing.T) {
	s := newStore(t)
	seed := seeded(t).Uint64()
	signer, err := audit.NewSigner(testSecret)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	issued, ended := map[broker.LeaseID]int64{}, map[broker.LeaseID]bool{}
	var wg sync.WaitGroup
	for n := range 12 {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(seed, uint64(n)))
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
					go cancel() // before the group takes it, or later
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
	if len(issued) == 0 || len(ended) == 0 {
		t.Fatalf("%d leases were issued and %d ended", len(issued), len(ended))
	}
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

// revoke ends a lease as the broker does.
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
