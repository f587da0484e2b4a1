package store

import (
	"context"
	"errors"
	"testing"
	"time"

	"accessbroker.internal/broker"
)

// A lease whose kind has no number, because it never worked, does not stop the others.
func TestFeedHasLeasesThatNeverWorked(t *testing.T) {
	list := replicas(t, 2)
	i := newIssuance(t, 1)
	i.lease.Status, i.lease.Ended, i.lease.Issuer = broker.LeaseFailed, testNow.Add(time.Hour), "never-used"
	err := list[0].Update(t.Context(), []broker.Key{i.lease.ID}, func(tx broker.Tx) error {
		tx.Put(&i.lease)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	other := newIssuance(t, 2)
	if err := other.store(t.Context(), list[1]); err != nil {
		t.Fatal(err)
	}
	if _, err := list[1].Lease(t.Context(), i.lease.ID); err != nil {
		t.Error(err)
	}
	checkAlike(t, list)
}

// What a newer version writes does not stop this one: it reads its memory again.
func TestFeedOfANewerVersion(t *testing.T) {
	list := replicas(t, 2)
	for n, change := range []string{"UPDATE commits SET changes = '\\x7f'", "UPDATE commits SET changes = substring(changes FROM 1 FOR length(changes) - 1)"} {
		i := newIssuance(t, n)
		if err := i.store(t.Context(), list[0]); err != nil {
			t.Fatal(err)
		}
		if _, err := list[0].w.conn.ExecContext(t.Context(), change+" WHERE seq = (SELECT max(seq) FROM commits)"); err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			if err := list[1].fresh(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		other := newIssuance(t, n)
		if err := other.store(t.Context(), list[1]); err != nil {
			t.Fatal(err)
		}
		checkAlike(t, list)
	}
}

// A note has rows of tables that only a newer version knows.
func TestFeedLeavesUnknownTablesOut(t *testing.T) {
	i := newIssuance(t, 1)
	known := &row{}
	if err := known.encode(&i.request, nil); err != nil {
		t.Fatal(err)
	}
	n := &commitNote{before: []byte{1}, head: Head{Epoch: 1}}
	changes, err := n.encode()
	if err != nil {
		t.Fatal(err)
	}
	c := &coder{buf: changes}
	for _, number := range []int64{int64(tableCount), 300, int64(known.table)} {
		one := &coder{}
		one.fields(&number, &known.id)
		c.put(rowTag, one.buf)
	}
	got := &commitNote{}
	if err := got.decode(c.buf); err != nil {
		t.Fatal(err)
	}
	if len(got.rows) != 1 || got.rows[0].key != known.key {
		t.Errorf("got %d rows, want that of the table that is known", len(got.rows))
	}
}

// A group that fails before its statements are sent leaves nothing to the next one.
func TestAFailedFlushDoesNotSwallowTheNextGroup(t *testing.T) {
	s := replicas(t, 1)[0]
	i := newIssuance(t, 1)
	s.w.fault = func(step string, f func() error) error {
		if step == "records" {
			s.w.fault = nil
			return errFault
		}
		return f()
	}
	if err := i.store(t.Context(), s); !errors.Is(err, errFault) {
		t.Fatalf("got %v, want the fault", err)
	}
	var n int64
	err := s.exec(t.Context(), func(ctx context.Context, w *writer) (err error) {
		n, err = w.execCount(ctx, "INSERT INTO prune_positions (what, position) VALUES (?, ?)", "a test", []byte{1})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var rows int64
	if err := s.readers.QueryRowContext(t.Context(), "SELECT count(*) FROM prune_positions").Scan(&rows); err != nil {
		t.Fatal(err)
	}
	if n != 1 || rows != 1 {
		t.Errorf("the statement changed %d rows, and there are %d, want 1", n, rows)
	}
}

// The database has another isolation than PostgreSQL's own default.
func TestReplicasInASerializableDatabase(t *testing.T) {
	list := replicas(t, 2)
	admin := postgresPool(t, nil)
	if _, err := admin.ExecContext(t.Context(), "ALTER DATABASE "+databaseOf(t, list[0])+" SET default_transaction_isolation = 'serializable'"); err != nil {
		t.Fatal(err)
	}
	for _, s := range list {
		if err := s.w.close(); err != nil { // the next group connects again
			t.Fatal(err)
		}
	}
	errs := make(chan error)
	const callers, each = 8, 10
	for n := range callers {
		go func() {
			var err error
			for range each {
				i := newIssuance(t, n)
				err = errors.Join(err, i.store(t.Context(), list[n%2]))
			}
			errs <- err
		}()
	}
	for range callers {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	checkAlike(t, list)
}

// All connections of the readers wait for the feed, which waits for the standings.
func TestStandingsAreLoadedWithoutTheReaders(t *testing.T) {
	s := replicas(t, 1)[0]
	for range maxReaders {
		tx, err := s.readers.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = tx.Rollback() }() // it wrote nothing
	}
	s.forget()
	key := broker.StandingKey{Kind: broker.FactPerson, Name: "login/ana"}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, err := s.Standing(ctx, key); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("got %v, want %v", err, broker.ErrNotFound)
	}
}

// Standings that are forgotten while a group runs are not missing.
func TestForgottenStandingsAreNotMissing(t *testing.T) {
	s := newStore(t)
	key := broker.StandingKey{Kind: broker.FactPerson, Name: "login/ana"}
	err := s.Update(t.Context(), []broker.Key{key}, func(tx broker.Tx) error {
		s.standings.forget()
		_, err := tx.Get(key)
		return err
	})
	if !errors.Is(err, broker.ErrUnavailable) || errors.Is(err, broker.ErrNotFound) {
		t.Errorf("got %v, want %v", err, broker.ErrUnavailable)
	}
}

// A record of one replica is found by the others at once.
func TestRecordOfAnotherReplica(t *testing.T) {
	list := replicas(t, 2)
	i := newIssuance(t, 1)
	if err := i.store(t.Context(), list[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := list[1].Record(t.Context(), list[0].Head().Size-1); err != nil {
		t.Error(err)
	}
	if _, err := list[1].Record(t.Context(), list[0].Head().Size); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("a record after the last: %v", err)
	}
}

// A panic while a group begins ends neither the queue nor the calls that wait in it.
func TestAPanicAtTheBeginEndsNoQueue(t *testing.T) {
	s := newStore(t)
	const calls = 3
	s.w.fault = func(step string, f func() error) error {
		if step == "begin" {
			s.w.fault = nil
			for { // until the others wait in the group of this leader
				s.queue.mu.Lock()
				n := len(s.queue.waiting)
				s.queue.mu.Unlock()
				if n == calls {
					panic("a fault")
				}
				time.Sleep(time.Millisecond)
			}
		}
		return f()
	}
	type outcome struct {
		err      error
		panicked any
	}
	outcomes := make(chan outcome)
	for n := range calls {
		go func() {
			var o outcome
			defer func() { outcomes <- o }()
			defer func() { o.panicked = recover() }()
			i := newIssuance(t, n)
			o.err = i.store(t.Context(), s)
		}()
	}
	panics, refused := 0, 0
	for range calls {
		switch o := <-outcomes; {
		case o.panicked != nil:
			panics++
		case errors.Is(o.err, broker.ErrUnavailable):
			refused++
		}
	}
	if panics != 1 || refused != calls-1 {
		t.Errorf("%d panicked and %d were refused, want 1 and %d", panics, refused, calls-1)
	}
	i := newIssuance(t, calls)
	if err := i.store(t.Context(), s); err != nil {
		t.Error(err)
	}
}

// Each start of a process adds a row, so those of processes that ended are deleted.
func TestSweepDeletesProcessesThatEnded(t *testing.T) {
	list := replicas(t, 2)
	s := list[0]
	if _, err := s.w.conn.ExecContext(t.Context(), "INSERT INTO writers (process, nonce, at) VALUES (?, ?, ?)", "ended", []byte{1}, time.Now().Add(-writerKept-time.Hour).UnixMilli()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Sweep(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	var ended, others int64
	if err := s.readers.QueryRowContext(t.Context(), "SELECT count(CASE WHEN process = 'ended' THEN 1 END), count(CASE WHEN process <> 'ended' THEN 1 END) FROM writers").Scan(&ended, &others); err != nil {
		t.Fatal(err)
	}
	if ended != 0 || others != int64(len(list)) {
		t.Errorf("there are %d rows of processes that ended and %d others, want 0 and %d", ended, others, len(list))
	}
}
