package store

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"accessbroker.internal/broker"
)

// hold keeps the writer busy with a group of one until release is called, so that
// later Updates wait and form the next group.
func hold(t *testing.T, s *Store) (release func()) {
	t.Helper()
	running, free, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	var once sync.Once
	go func() {
		done <- s.Update(context.Background(), nil, func(broker.Tx) error {
			once.Do(func() { close(running) })
			<-free
			return nil
		})
	}()
	<-running
	return func() {
		close(free)
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// waitFor waits until there are n members in the queue.
func waitFor(s *Store, n int) {
	for {
		s.queue.mu.Lock()
		waiting := len(s.queue.waiting)
		s.queue.mu.Unlock()
		if waiting == n {
			return
		}
		runtime.Gosched()
	}
}

var tally = broker.CounterKey{Policy: "limit p", Holder: "spiffe://acme.test/a", Entitlement: "e"}

// count adds one to a counter row, and fails if the counter has reached most.
func count(ctx context.Context, s *Store, most int) error {
	return s.Update(ctx, []broker.Key{tally}, func(tx broker.Tx) error {
		c := &broker.Counter{CounterKey: tally, Buckets: map[int64]int{}, Expires: testNow.Add(time.Hour)}
		row, err := tx.Get(tally)
		if err == nil {
			c = row.(*broker.Counter)
		} else if !errors.Is(err, broker.ErrNotFound) {
			return err
		}
		if c.Buckets[1] >= most {
			return broker.ErrLimit
		}
		c.Buckets[1]++
		tx.Put(c)
		return nil
	})
}

func TestLimitsHoldUnderConcurrency(t *testing.T) {
	s := newStore(t)
	var won, lost atomic.Int64
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			switch err := count(t.Context(), s, 10); {
			case err == nil:
				won.Add(1)
			case errors.Is(err, broker.ErrLimit):
				lost.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 10 || lost.Load() != 54 {
		t.Errorf("%d of 64 passed and %d were refused; the limit is 10", won.Load(), lost.Load())
	}
}

func TestWaitingUpdatesShareATransaction(t *testing.T) {
	s := newStore(t)
	var commits []Commit
	s.cfg.Observe = func(c Commit) { commits = append(commits, c) } // only the leader calls it
	release := hold(t, s)
	var wg sync.WaitGroup
	for n := range 20 {
		wg.Go(func() {
			i := newIssuance(t, n)
			if err := i.store(t.Context(), s); err != nil {
				t.Error(err)
			}
		})
	}
	waitFor(s, 20)
	release()
	wg.Wait()
	if len(commits) != 1 || commits[0].Members != 20 || commits[0].Records != 20 {
		t.Errorf("20 updates were committed as %+v", commits)
	}
}

func TestFailingMemberHasNoEffect(t *testing.T) {
	refusal := errors.New("no")
	failing := map[string]func(tx broker.Tx) error{
		"error":                  func(broker.Tx) error { return refusal },
		"read of an unnamed row": func(tx broker.Tx) error { _, err := tx.Get(tally); return err },
		"row without a table":    func(tx broker.Tx) error { tx.Put(foreign{}); return nil },
		"list in an Update":      func(tx broker.Tx) error { _, _, err := tx.Leases(broker.LeaseQuery{}); return err },
	}
	for name, f := range failing {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			release := hold(t, s)
			before, bad, after := newIssuance(t, 1), newIssuance(t, 2), newIssuance(t, 3)
			errs := make(chan error, 3)
			go func() { errs <- before.store(t.Context(), s) }()
			waitFor(s, 1)
			failed := make(chan error, 1)
			go func() {
				failed <- s.Update(t.Context(), nil, func(tx broker.Tx) error {
					tx.Put(&bad.lease)
					tx.Append(bad.entry)
					return f(tx)
				})
			}()
			waitFor(s, 2)
			go func() { errs <- after.store(t.Context(), s) }()
			waitFor(s, 3)
			release()
			if err := errors.Join(<-errs, <-errs); err != nil {
				t.Errorf("the others failed: %v", err)
			}
			if err := <-failed; err == nil {
				t.Error("the member did not fail")
			}
			if _, err := get(t, s, bad.lease.ID); !errors.Is(err, broker.ErrNotFound) {
				t.Errorf("reading its row: got %v", err)
			}
			if r := verifyLog(t, s.Source()); r.Records != 3 {
				t.Errorf("the log has %d records", r.Records)
			}
		})
	}
}

// foreign is a row without a table.
type foreign struct{ broker.Row }

func (foreign) Key() broker.Key { return nil }

func get(t testing.TB, s *Store, key broker.Key) (row broker.Row, err error) {
	t.Helper()
	err = s.View(t.Context(), func(tx broker.Tx) error {
		row, err = tx.Get(key)
		return err
	})
	return row, err
}

func TestAPanicReachesItsCaller(t *testing.T) {
	s := newStore(t)
	release := hold(t, s)
	good := newIssuance(t, 1)
	errs, panics := make(chan error, 1), make(chan any, 1)
	go func() { errs <- good.store(t.Context(), s) }()
	waitFor(s, 1)
	go func() {
		defer func() { panics <- recover() }()
		_ = s.Update(t.Context(), nil, func(broker.Tx) error { panic("oops") })
	}()
	waitFor(s, 2)
	release()
	if err := <-errs; err != nil {
		t.Errorf("the other member: %v", err)
	}
	if p := <-panics; p != "oops" {
		t.Errorf("the caller recovered %v, want oops", p)
	}
	works(t, s)
}

// works checks that the store can still issue, and that its log verifies.
func works(t *testing.T, s *Store) {
	t.Helper()
	i := newIssuance(t, 99)
	if err := i.store(t.Context(), s); err != nil {
		t.Errorf("the next issuance: %v", err)
	}
	verifyLog(t, s.Source())
}

func TestGoexitInAnUpdateDoesNotBlockTheQueue(t *testing.T) {
	s := newStore(t)
	release := hold(t, s)
	go func() {
		_ = s.Update(context.Background(), nil, func(broker.Tx) error { runtime.Goexit(); return nil })
	}()
	waitFor(s, 1)
	good := newIssuance(t, 1)
	errs := make(chan error, 1)
	go func() { errs <- good.store(t.Context(), s) }()
	waitFor(s, 2)
	release()
	if err := <-errs; !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("a member of an abandoned group got %v", err)
	}
	works(t, s)
}

// A member that a leader took, or that was appointed leader, cannot leave the queue
// any more, even if its context has ended.
func TestOnlyWaitingMembersLeaveTheQueue(t *testing.T) {
	waits, leads, taken := &member{}, &member{leads: true}, &member{}
	q := &queue{waiting: []*member{waits, leads}, leading: true}
	for _, m := range []*member{leads, taken} {
		if q.leave(m) {
			t.Errorf("a member left (leads: %t)", m.leads)
		}
	}
	if !q.leave(waits) || len(q.waiting) != 1 || q.waiting[0] != leads {
		t.Errorf("a waiting member did not leave; %d are left", len(q.waiting))
	}
}

func TestCancelledCallerHasNoEffect(t *testing.T) {
	s := newStore(t)
	release := hold(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	i := newIssuance(t, 1)
	errs := make(chan error, 1)
	go func() { errs <- i.store(ctx, s) }()
	waitFor(s, 1)
	cancel()
	if err := <-errs; !errors.Is(err, context.Canceled) {
		t.Errorf("the caller got %v", err)
	}
	release()
	if _, err := get(t, s, i.lease.ID); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("reading its row: got %v", err)
	}
	if err := i.store(ctx, s); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that had ended: %v", err)
	}
}

func TestCallerCancelledInGroupGetsOutcome(t *testing.T) {
	s := newStore(t)
	ctx, cancel := context.WithCancel(t.Context())
	i := newIssuance(t, 1)
	err := s.Update(ctx, nil, func(tx broker.Tx) error {
		cancel()
		tx.Put(&i.lease)
		tx.Append(i.entry)
		return nil
	})
	if err != nil {
		t.Errorf("the Update was committed, and the caller got %v", err)
	}
	if _, err := get(t, s, i.lease.ID); err != nil {
		t.Errorf("reading its row: got %v", err)
	}
}

// refuseBadHolders makes the database refuse live leases of the holder bad.
func refuseBadHolders(t *testing.T, s *Store) {
	t.Helper()
	change := "CREATE TRIGGER t BEFORE INSERT ON live WHEN NEW.holder = 'bad' BEGIN SELECT RAISE(ABORT, 'constraint'); END"
	if s.Shared() {
		change = "ALTER TABLE live ADD CHECK (holder <> 'bad')"
	}
	if _, err := s.w.conn.ExecContext(t.Context(), change); err != nil {
		t.Fatal(err)
	}
}

func TestRejectedRowsFailOnlyTheirMember(t *testing.T) {
	s := newStore(t)
	refuseBadHolders(t, s)
	release := hold(t, s)
	var wg sync.WaitGroup
	for n := range 5 {
		wg.Go(func() {
			i := newIssuance(t, n)
			if n == 2 {
				i.lease.Holder = "bad"
			}
			if err := i.store(t.Context(), s); (err != nil) != (n == 2) {
				t.Errorf("member %d: %v", n, err)
			}
		})
	}
	waitFor(s, 5)
	release()
	wg.Wait()
	if r := verifyLog(t, s.Source()); r.Records != 5 {
		t.Errorf("the log has %d records", r.Records)
	}
}

func TestMembersSeeTheRowsOfEarlierMembers(t *testing.T) {
	s := newStore(t)
	release := hold(t, s)
	var wg sync.WaitGroup
	for range 30 { // one group, one row
		wg.Go(func() {
			if err := count(t.Context(), s, 100); err != nil {
				t.Error(err)
			}
		})
	}
	waitFor(s, 30)
	release()
	wg.Wait()
	row, err := get(t, s, tally)
	if err != nil || row.(*broker.Counter).Buckets[1] != 30 {
		t.Errorf("the counter is %+v, %v", row, err)
	}
}

func TestARowBelongsToTheCaller(t *testing.T) {
	s := newStore(t)
	i := newIssuance(t, 1)
	if err := i.store(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	err := s.Update(t.Context(), []broker.Key{i.lease.ID}, func(tx broker.Tx) error {
		row, err := tx.Get(i.lease.ID)
		if err != nil {
			return err
		}
		lease := row.(*broker.Lease)
		lease.Attempts = 1
		tx.Put(lease)
		lease.Attempts = 2 // after Put, this changes nothing
		again, err := tx.Get(i.lease.ID)
		if err != nil || again.(*broker.Lease).Attempts != 1 {
			return fmt.Errorf("read %+v, %v", again, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if row, err := get(t, s, i.lease.ID); err != nil || row.(*broker.Lease).Attempts != 1 {
		t.Errorf("stored %+v, %v", row, err)
	}
}

func TestTimesNeverGoBack(t *testing.T) {
	s := newStore(t)
	clock := time.Now().Add(time.Hour)
	s.w.now = func() time.Time { clock = clock.Add(-time.Minute); return clock }
	for n := range 5 {
		i := newIssuance(t, n)
		if err := i.store(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	verifyLog(t, s.Source())
}

func TestAClosedStoreReturnsErrors(t *testing.T) {
	s := newStore(t)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	i := newIssuance(t, 1)
	if err := i.store(t.Context(), s); !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("Update: %v", err)
	}
	if err := s.View(t.Context(), func(broker.Tx) error { return nil }); !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("View: %v", err)
	}
}

// secondWriter opens the database a second time without taking the lock, as a
// second process could on a file system that ignores locks.
func secondWriter(t *testing.T, s *Store) *Store {
	t.Helper()
	if s.Shared() {
		second, err := Open(t.Context(), s.cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := second.Close(); err != nil {
				t.Error(err)
			}
		})
		return second
	}
	w, err := openWriter(t.Context(), s.w.engine.(*sqliteEngine).path, s.cfg, s.presence.check)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.close(); err != nil {
			t.Error(err)
		}
	})
	return &Store{cfg: s.cfg, w: w, readers: s.readers, holdings: newHoldings(), standings: new(standingSet), counting: newCounting(), surveying: newSurveying(), tallying: newTallying()}
}

func TestASecondWriterIsNotOverwritten(t *testing.T) {
	s := newStore(t)
	second := secondWriter(t, s)
	for n := range 6 {
		i := newIssuance(t, n)
		if err := i.store(t.Context(), []*Store{s, second}[n%2]); err != nil || i.entry.Index != int64(n)+1 {
			t.Errorf("issuance %d has the index %d, %v", n, i.entry.Index, err)
		}
	}
	verifyLog(t, s.Source())
}

// A block that another process placed stops the next Update of this one. Blocks
// are read again only if one changed.
func TestBlocksOfAnotherProcessAreSeen(t *testing.T) {
	s := newStore(t)
	second := secondWriter(t, s)
	i := newIssuance(t, 1)
	holder := broker.BlockKey{Kind: "holder", Name: i.lease.Holder}
	for _, since := range []time.Time{testNow, testNow.Add(time.Minute)} {
		put(t, second, &broker.Block{Selector: holder, Since: since})
		err := s.Update(t.Context(), []broker.Key{holder}, func(tx broker.Tx) error {
			row, err := tx.Get(holder)
			if err != nil {
				return err
			}
			if got := row.(*broker.Block).Since; !got.Equal(since) {
				return fmt.Errorf("the block is of %s, want %s", got, since)
			}
			tx.Put(&i.lease)
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	blocks := s.w.blocks
	blocks[broker.BlockKey{Kind: "issuer", Name: "only in memory"}] = nil
	put(t, second, &i.request)
	put(t, s, &i.request)
	if len(s.w.blocks) != len(blocks) {
		t.Error("blocks were read again although none changed")
	}
}
