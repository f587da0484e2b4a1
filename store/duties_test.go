package store

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"accessbroker.internal/broker"
	"accessbroker.internal/internal/storetest"
)

// openDuties returns a connection pool with an empty table of duties, and a function that
// returns further processes on it.
func openDuties(t *testing.T) (*sql.DB, func(name string) *claims) {
	t.Helper()
	schema := strings.ToLower(fmt.Sprintf("duties_%d_%d", os.Getpid(), schemas.Add(1)))
	admin := postgresPool(t, nil)
	mustExec(t, admin, "CREATE SCHEMA "+schema)
	t.Cleanup(func() { mustExec(t, admin, "DROP SCHEMA "+schema+" CASCADE") })
	db := postgresPool(t, func(c *postgresConfig) {
		server := c.settings
		c.settings = func() (*pgx.ConnConfig, error) {
			cfg, err := server()
			if err == nil {
				cfg.RuntimeParams["search_path"] = schema
			}
			return cfg, err
		}
	})
	if _, err := db.ExecContext(t.Context(), dutyTables); err != nil {
		t.Fatal(err)
	}
	return db, func(name string) *claims { return newClaims(db, name, slog.New(slog.DiscardHandler)) }
}

var schemas atomic.Int64

// holds reports whether the process gets the duty now.
func holds(t *testing.T, c *claims, name string) bool {
	t.Helper()
	h := c.Hold(t.Context(), name)
	defer h.End()
	return h.Has(name)
}

// waitUntil calls f until it returns true.
func waitUntil(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !f(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited a minute, and %s", what)
		}
	}
}

// keep makes one pass of the keeper.
func keep(t *testing.T, list ...*claims) {
	t.Helper()
	for _, c := range list {
		if err := c.keep(t.Context(), time.Now()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOneProcessHasADuty(t *testing.T) {
	_, process := openDuties(t)
	a, b := process("a"), process("b")
	if !holds(t, a, "sweep") {
		t.Fatal("a did not get a free duty")
	}
	if holds(t, b, "sweep") {
		t.Error("b got the duty of a")
	}
	if !holds(t, b, "mail") {
		t.Error("b did not get another duty")
	}
	if !holds(t, a, "sweep") {
		t.Error("a lost its duty between two pieces of work")
	}
}

func TestConcurrentClaimsHaveOneOwner(t *testing.T) {
	_, process := openDuties(t)
	const processes, duties = 8, 20
	names := make([]string, duties)
	for i := range names {
		names[i] = fmt.Sprintf("duty-%02d", i)
	}
	var got [processes][]string
	var group sync.WaitGroup
	for i := range processes {
		c := process(fmt.Sprint("p", i))
		mixed := slices.Concat(names[i:], names[:i]) // in another order, which must not lead to deadlocks
		group.Go(func() {
			h := c.Hold(t.Context(), mixed...)
			defer h.End()
			for _, name := range mixed {
				if h.Has(name) {
					got[i] = append(got[i], name)
				}
			}
		})
	}
	group.Wait()
	all := slices.Sorted(slices.Values(slices.Concat(got[:]...)))
	if !slices.Equal(all, names) {
		t.Errorf("got owners of %v, want one for each of %v", all, names)
	}
}

func TestDutyOfADeadProcessIsTakenOver(t *testing.T) {
	_, process := openDuties(t)
	a, b := process("a"), process("b")
	a.lasts = 300 * time.Millisecond
	work := a.Hold(t.Context(), "sweep")
	if !work.Has("sweep") {
		t.Fatal("a did not get a free duty")
	}
	// a is paused or dead: it renews nothing.
	waitUntil(t, "b did not take over", func() bool { return holds(t, b, "sweep") })
	if work.Has("sweep") {
		t.Error("a still has the duty of b")
	}
	<-work.Context().Done()
	// a wakes up.
	keep(t, a)
	if holds(t, a, "sweep") {
		t.Error("a took the duty back from b, which has it")
	}
	// A process that was restarted does not continue with the claim of the dead one.
	if c := process("a2"); holds(t, c, "sweep") {
		t.Error("a process with another name got the duty of b")
	}
}

func TestRenewedDutyLasts(t *testing.T) {
	_, process := openDuties(t)
	a, b := process("a"), process("b")
	a.lasts = 2 * time.Second
	work := a.Hold(t.Context(), "sweep")
	until := func() time.Time {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.mine["sweep"].until
	}
	for first := until(); !until().After(first.Add(a.lasts)); time.Sleep(100 * time.Millisecond) {
		keep(t, a)
	}
	if !work.Has("sweep") || holds(t, b, "sweep") {
		t.Error("a duty that was renewed for longer than a claim lasts has another owner")
	}
	// Work that makes no progress loses its duty.
	a.mu.Lock()
	a.mine["sweep"].used = time.Now().Add(-dutyStuck)
	a.mu.Unlock()
	keep(t, a)
	waitUntil(t, "the work that hangs was not ended", func() bool { return work.Context().Err() != nil })
	waitUntil(t, "no one took over from the work that hangs", func() bool { return holds(t, b, "sweep") })
}

func TestReleasedDutiesAreFreeAtOnce(t *testing.T) {
	_, process := openDuties(t)
	a, b := process("a"), process("b")
	work := a.Hold(t.Context(), "sweep", "mail")
	keep(t, a)
	if err := a.release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if work.Context().Err() == nil || work.Has("mail") {
		t.Error("the process still works on what it released")
	}
	if !holds(t, b, "sweep") || !holds(t, b, "mail") {
		t.Error("a released duty is not free")
	}
	keep(t, a)
	if holds(t, a, "other") {
		t.Error("a process that released its duties claims new ones")
	}
}

func TestProcessesShareDuties(t *testing.T) {
	_, process := openDuties(t)
	list := []*claims{process("a"), process("b"), process("c")}
	var names []string
	for i := range 60 {
		names = append(names, fmt.Sprint("duty-", i))
	}
	counts := func() (of []int) {
		for _, c := range list {
			h := c.Hold(t.Context(), names...)
			n := 0
			for _, name := range names {
				if h.Has(name) {
					n++
				}
			}
			h.End()
			of = append(of, n)
		}
		return of
	}
	if got, want := counts(), []int{60, 0, 0}; !slices.Equal(got, want) {
		t.Fatalf("got %v, want %v: the first has all", got, want)
	}
	var got []int
	waitUntil(t, fmt.Sprintf("the three do not share the work: %v", got), func() bool {
		keep(t, list...)
		got = counts()
		return got[0]+got[1]+got[2] == 60 && slices.Min(got) >= 10
	})
	// The shares are stable: nothing moves without need.
	before := got
	for range 5 {
		keep(t, list...)
		if got = counts(); !slices.Equal(got, before) {
			t.Fatalf("got shares of %v, want %v still", got, before)
		}
	}
	// The work of one that leaves goes to the others.
	if err := list[0].release(t.Context()); err != nil {
		t.Fatal(err)
	}
	list = list[1:]
	waitUntil(t, "the two others do not share the work", func() bool {
		keep(t, list...)
		got = counts()
		return got[0]+got[1] == 60 && slices.Min(got) >= 15
	})
}

func TestHandOverWaitsForTheWork(t *testing.T) {
	_, process := openDuties(t)
	a, b := process("a"), process("b")
	name := ""
	for i := 0; name == ""; i++ {
		if n := fmt.Sprint("duty-", i); preferred(n, "a", []string{"b"}) == "b" {
			name = n
		}
	}
	work := a.Hold(t.Context(), name)
	for range 4 {
		keep(t, a, b)
		if holds(t, b, name) {
			t.Fatal("b got the duty while a works")
		}
	}
	work.End()
	waitUntil(t, "b did not get the duty that it should have", func() bool { keep(t, a, b); return holds(t, b, name) })
}

func TestProcessWithAWrongClockLeavesItsDuties(t *testing.T) {
	_, process := openDuties(t)
	a, b := process("a"), process("b")
	unfit := atomic.Bool{}
	a.unfit = unfit.Load
	if !holds(t, a, "sweep") {
		t.Fatal("a did not get a free duty")
	}
	unfit.Store(true)
	keep(t, a)
	if !holds(t, a, "sweep") {
		t.Error("a left its work, and there is no other process")
	}
	keep(t, b, a, b)
	if holds(t, a, "sweep") {
		t.Error("a process whose clock is wrong claimed its work again")
	}
	if !holds(t, b, "sweep") {
		t.Error("b did not get the work of a process whose clock is wrong")
	}
}

func TestLockExcludesOtherProcesses(t *testing.T) {
	_, process := openDuties(t)
	a, b := process("a"), process("b")
	unlock, err := a.Lock(t.Context(), "membership/1")
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 3*dutyRetry)
	defer cancel()
	if _, err := b.Lock(short, "membership/1"); err == nil {
		t.Fatal("b got the lock of a")
	}
	got := make(chan error)
	go func() {
		unlock, err := b.Lock(t.Context(), "membership/1")
		if err == nil {
			unlock()
		}
		got <- err
	}()
	unlock()
	if err := <-got; err != nil {
		t.Errorf("b did not get the lock that a left: %v", err)
	}
}

// One process writes the tables that follow the log. A reader in any process sees the records
// of all that were committed before.
func TestReadersSeeTheRecordsOfAllProcesses(t *testing.T) {
	storetest.OnlyPostgres(t)
	path := filepath.Join(t.TempDir(), "broker.db")
	a, b := open(t, path), open(t, path)
	for _, p := range []*projection{a.counting, a.surveying, a.tallying} {
		if err := a.catchUpOnDuty(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range []*projection{b.counting, b.surveying, b.tallying} {
		if err := b.catchUpOnDuty(t.Context(), p); err != nil || !p.theirs {
			t.Errorf("%s: got %v, want that another process writes it (%v)", p.table, p.theirs, err)
		}
	}
	for n := range 40 {
		i := newIssuance(t, n)
		if err := i.store(t.Context(), []*Store{a, b}[n%2]); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range []*Store{b, a} {
		for _, p := range []*projection{s.counting, s.surveying, s.tallying} {
			if err := s.catchUp(t.Context(), p); err != nil {
				t.Fatal(err)
			}
			err := s.View(t.Context(), func(tx broker.Tx) error {
				behind, err := tx.(*viewTx).recordsBehind(p)
				if behind != 0 {
					t.Errorf("%s: %d records are not counted", p.table, behind)
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}
