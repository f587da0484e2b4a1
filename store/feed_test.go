package store

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net/url"
	"os"
	"reflect"
	"sync"
	"testing"
	"time"

	"accessbroker.internal/broker"
)

// replicas opens stores on one new database of PostgreSQL.
func replicas(t *testing.T, n int) []*Store {
	t.Helper()
	server := os.Getenv(postgresEnv)
	if server == "" {
		t.Skip("replicas share a PostgreSQL: set " + postgresEnv)
	}
	admin := postgresPool(t, nil)
	random := make([]byte, 8)
	_, _ = rand.Read(random) // never fails
	name := "feed_" + hex.EncodeToString(random)
	if _, err := admin.ExecContext(t.Context(), "CREATE DATABASE "+name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := admin.ExecContext(context.Background(), "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
			t.Error(err)
		}
	})
	u, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + name
	list := make([]*Store, n)
	for i := range list {
		if list[i], err = Open(t.Context(), Config{URL: u.String()}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := list[i].Close(); err != nil {
				t.Error(err)
			}
		})
		if err := openLog(t.Context(), list[i]); (i == 0) != (err == nil) || err != nil && !errors.Is(err, ErrLogOpen) {
			t.Fatalf("opening the log at the replica %d: %v", i, err)
		}
	}
	return list
}

// changeAnything makes one of the changes that other replicas must follow.
func changeAnything(t *testing.T, s *Store, rng *mathrand.Rand, issued *[]broker.LeaseID) {
	t.Helper()
	ctx := t.Context()
	var err error
	switch n := rng.IntN(6); {
	case n == 0 && len(*issued) > 0: // end a lease
		id := (*issued)[rng.IntN(len(*issued))]
		err = s.Update(ctx, []broker.Key{id}, func(tx broker.Tx) error {
			l, err := broker.Get[*broker.Lease](tx, id)
			if err != nil {
				return err
			}
			l.Status, l.Ended = broker.LeaseRevoked, testNow.Add(time.Second)
			tx.Put(l)
			return nil
		})
	case n == 1:
		block := broker.BlockKey{Kind: "holder", Name: fmt.Sprintf("spiffe://acme.test/agent/blocked%d", rng.IntN(4))}
		lifted := time.Time{}
		if rng.IntN(2) == 0 {
			lifted = testNow
		}
		err = s.Update(ctx, []broker.Key{block}, func(tx broker.Tx) error {
			tx.Put(&broker.Block{Selector: block, Reason: "a test", Since: testNow, Lifted: lifted})
			return nil
		})
	case n == 2:
		key := broker.StandingKey{Kind: broker.FactPerson, Name: fmt.Sprintf("login/p%d", rng.IntN(4))}
		err = s.Update(ctx, []broker.Key{key}, func(tx broker.Tx) error {
			tx.Put(&broker.Standing{StandingKey: key})
			return nil
		})
	case n == 3:
		key := broker.SpentKey{byte(rng.IntN(256)), byte(rng.IntN(256)), 2}
		err = s.Update(ctx, []broker.Key{key}, func(tx broker.Tx) error {
			if _, err := tx.Get(key); err == nil {
				return nil
			}
			tx.Put(&broker.Spent{SpentKey: key, Expires: time.Now().Add(time.Hour)})
			return nil
		})
	default:
		i := newIssuance(t, rng.IntN(1000))
		if err = i.store(ctx, s); err == nil {
			*issued = append(*issued, i.lease.ID)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

// checkAlike compares what memory has at every replica with the tables, and the replicas with
// each other.
func checkAlike(t *testing.T, list []*Store) {
	t.Helper()
	for _, s := range list {
		if err := s.exec(t.Context(), func(context.Context, *writer) error { return nil }); err != nil {
			t.Fatal(err) // a group makes the writer follow
		}
	}
	for _, s := range list {
		if err := s.fresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		checkHoldings(t, s)
	}
	first := list[0]
	if err := first.fresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	for n, s := range list[1:] {
		if s.Head() != first.Head() {
			t.Errorf("the head of the replica %d is %+v, and that of the first %+v", n+1, s.Head(), first.Head())
		}
		if s.feed.seq != first.feed.seq || string(s.feed.nonce) != string(first.feed.nonce) {
			t.Errorf("the replica %d follows the commit %d, and the first %d", n+1, s.feed.seq, first.feed.seq)
		}
	}
	// The writers follow when they write: each of them knows what the one before it did.
	for n, s := range list {
		err := s.exec(t.Context(), func(ctx context.Context, w *writer) error {
			fresh := newWriter(w.engine, w.url)
			fresh.conn, fresh.stmts = w.conn, w.stmts
			if err := fresh.load(ctx); err != nil {
				return err
			}
			if !reflect.DeepEqual(w.blocks, fresh.blocks) || !reflect.DeepEqual(w.kinds, fresh.kinds) || w.head != fresh.head ||
				w.tree.Root() != fresh.tree.Root() || string(w.nonce) != string(fresh.nonce) || string(w.carriedSince) != string(fresh.carriedSince) {
				t.Errorf("the memory of the writer %d differs from the tables", n)
			}
			if w.used != nil {
				if err := fresh.loadUsed(ctx); err != nil {
					return err
				}
				if !reflect.DeepEqual(w.used.ids, fresh.used.ids) || !reflect.DeepEqual(w.used.last, fresh.used.last) {
					t.Errorf("the writer %d knows %d used, and the table has %d", n, len(w.used.ids), len(fresh.used.ids))
				}
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	verifyLog(t, first.Source())
}

func TestReplicasFollowEachOther(t *testing.T) {
	list := replicas(t, 3)
	for _, s := range list {
		if err := s.loadHoldings(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := s.loadStandings(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	seed := mathrand.Uint64()
	t.Logf("seed %d", seed)
	rng := mathrand.New(mathrand.NewPCG(seed, 0))
	var issued []broker.LeaseID
	for n := range 300 {
		writer, reader := list[rng.IntN(len(list))], list[rng.IntN(len(list))]
		changeAnything(t, writer, rng, &issued)
		if len(issued) == 0 {
			continue
		}
		// What memory answers at another replica includes the change.
		id := issued[len(issued)-1]
		l, err := reader.Lease(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		row, err := get(t, writer, id)
		if err != nil || !reflect.DeepEqual(l, row) {
			t.Errorf("after the change %d, memory has %+v, and the database %+v, %v", n, l, row, err)
		}
	}
	if len(issued) == 0 {
		t.Error("nothing was issued")
	}
	checkAlike(t, list)
}

// A replica that finds its successor missing in the feed forgets what it knew.
func TestAReplicaFallsBehindTheFeed(t *testing.T) {
	list := replicas(t, 2)
	rng := mathrand.New(mathrand.NewPCG(1, 1))
	var issued []broker.LeaseID
	for range 30 {
		changeAnything(t, list[0], rng, &issued)
		changeAnything(t, list[1], rng, &issued)
	}
	for range 3 {
		for range 20 {
			changeAnything(t, list[0], rng, &issued)
		}
		if _, err := list[0].delete(t.Context(), "DELETE FROM commits WHERE seq < ?", list[0].feed.seq-3); err != nil {
			t.Fatal(err)
		}
		if l, err := list[1].Lease(t.Context(), issued[len(issued)-1]); err != nil || l == nil {
			t.Errorf("the replica that fell behind: %v", err)
		}
		changeAnything(t, list[1], rng, &issued)
		checkAlike(t, list)
	}
}

// A database that lacks commits that a replica has seen is refused by it, whatever was
// written since.
func TestADatabaseThatWentBackIsRefused(t *testing.T) {
	for name, steps := range map[string][]string{
		"the last commit is missing": {"UPDATE head SET seq = seq - 1, nonce = x'0102'"},
		"another is in its place":    {"UPDATE head SET nonce = x'0102'"},
		"another came after it":      {"UPDATE commits SET nonce = x'0102' WHERE seq = (SELECT seq FROM head)", "UPDATE head SET nonce = x'0102'"},
		"many are missing, and the feed": {"UPDATE head SET seq = seq + 100, nonce = x'0102', size = size - 1",
			"DELETE FROM commits"},
	} {
		for _, writes := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, writes %t", name, writes), func(t *testing.T) {
				s := replicas(t, 1)[0]
				i := newIssuance(t, 1)
				if err := i.store(t.Context(), s); err != nil {
					t.Fatal(err)
				}
				for _, step := range steps {
					if _, err := s.w.conn.ExecContext(t.Context(), step); err != nil {
						t.Fatal(err)
					}
				}
				next := newIssuance(t, 2)
				if writes {
					if err := next.store(t.Context(), s); !errors.Is(err, ErrRewound) || !errors.Is(err, broker.ErrUnavailable) {
						t.Errorf("writing: %v", err)
					}
				}
				if _, err := s.Lease(t.Context(), i.lease.ID); !errors.Is(err, ErrRewound) {
					t.Errorf("reading from memory: %v", err)
				}
				if _, err := get(t, s, i.lease.ID); !errors.Is(err, ErrRewound) {
					t.Errorf("reading: %v", err)
				}
				if err := next.store(t.Context(), s); !errors.Is(err, ErrRewound) {
					t.Errorf("writing later: %v", err)
				}
				if err := s.Degraded(); !errors.Is(err, ErrRewound) {
					t.Errorf("its state: %v", err)
				}
			})
		}
	}
}

// The answer of COMMIT is lost, and others have committed before it is looked for.
func TestALostCommitIsFoundAmongThoseOfOthers(t *testing.T) {
	list := replicas(t, 2)
	for _, happens := range []bool{true, false} {
		for _, others := range []int{0, 1, 5} {
			i := newIssuance(t, 1)
			s := list[0]
			s.w.fault = func(step string, f func() error) error {
				if step != "commit" {
					return f()
				}
				s.w.fault = nil
				var err error
				if happens {
					err = f()
				} else {
					s.w.rollback()
				}
				for n := range others {
					other := newIssuance(t, n)
					if err := other.store(t.Context(), list[1]); err != nil {
						t.Error(err)
					}
				}
				return errors.Join(err, errFault)
			}
			err := i.store(t.Context(), s)
			if (err == nil) != happens {
				t.Errorf("happens %t, then %d others: the caller got %v", happens, others, err)
			}
			if _, err := get(t, list[1], i.lease.ID); (err == nil) != happens {
				t.Errorf("happens %t, then %d others: its row: %v", happens, others, err)
			}
		}
	}
	checkAlike(t, list)
}

// The server ends the connection of a writer at any moment.
func TestLostConnectionsOfAWriter(t *testing.T) {
	list := replicas(t, 2)
	ctx, cancel := context.WithCancel(t.Context())
	var killer sync.WaitGroup
	killer.Go(func() {
		admin := postgresPool(t, nil)
		for ctx.Err() == nil {
			var n int64
			_ = admin.QueryRowContext(ctx, "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = ? AND query LIKE '%COMMIT%' OR datname = ? AND state = 'idle in transaction'",
				databaseOf(t, list[0]), databaseOf(t, list[0])).Scan(&n)
			time.Sleep(5 * time.Millisecond) // between two faults
		}
	})
	var callers sync.WaitGroup
	var mu sync.Mutex
	answered, failed := map[broker.LeaseID]bool{}, 0
	for n := range 16 {
		callers.Go(func() {
			for range 25 {
				i := newIssuance(t, n)
				err := i.store(t.Context(), list[n%2])
				mu.Lock()
				answered[i.lease.ID] = err == nil
				if err != nil {
					failed++
				}
				mu.Unlock()
			}
		})
	}
	callers.Wait()
	cancel()
	killer.Wait()
	t.Logf("%d of %d failed", failed, len(answered))
	for id, ok := range answered {
		if _, err := get(t, list[0], id); (err == nil) != ok {
			t.Errorf("the caller of %v got success %t, and its row: %v", id, ok, err)
		}
	}
	checkAlike(t, list)
}

// Limits are exact, however many replicas count at once.
func TestReplicasCountTogether(t *testing.T) {
	list := replicas(t, 3)
	const most = 50
	key := broker.CounterKey{Policy: "p", Holder: "spiffe://acme.test/agent/a", Entitlement: "e"}
	errMost := errors.New("the limit is reached")
	var callers sync.WaitGroup
	var mu sync.Mutex
	got := 0
	for n := range 24 {
		callers.Go(func() {
			for range 10 {
				err := list[n%3].Update(t.Context(), []broker.Key{key}, func(tx broker.Tx) error {
					c, err := broker.Get[*broker.Counter](tx, key)
					if errors.Is(err, broker.ErrNotFound) {
						c = &broker.Counter{CounterKey: key, Buckets: map[int64]int{}}
					} else if err != nil {
						return err
					}
					if c.Buckets[1] == most {
						return errMost
					}
					c.Buckets[1]++
					c.Expires = testNow
					tx.Put(c)
					return nil
				})
				mu.Lock()
				if err == nil {
					got++
				} else if !errors.Is(err, errMost) {
					t.Error(err)
				}
				mu.Unlock()
			}
		})
	}
	callers.Wait()
	if got != most {
		t.Errorf("%d were counted, want %d", got, most)
	}
}

func databaseOf(t *testing.T, s *Store) string {
	u, err := url.Parse(s.cfg.URL)
	if err != nil {
		t.Error(err)
		return ""
	}
	return u.Path[1:]
}

// What the feed has of a commit is what a replica reads.
func TestFeedCarriesRows(t *testing.T) {
	i := newIssuance(t, 1)
	n := &commitNote{before: []byte{1}, head: Head{Epoch: 1, Size: 2, Time: testNow}, blocks: 3, since: []byte{4}, kinds: kindNumbers{}}
	for _, r := range []broker.Row{&i.request, &i.lease, &broker.Block{Selector: broker.BlockKey{Kind: "holder", Name: "x"}}, &broker.Spent{SpentKey: broker.SpentKey{1}, Expires: testNow}} {
		encoded := &row{}
		if err := encoded.encode(r, nil); err != nil {
			t.Fatal(err)
		}
		n.rows = append(n.rows, encoded)
	}
	n.kinds[n.rows[1].index.kind] = 7
	n.rows[1].carried, n.rows[3].at = true, 42
	changes, err := n.encode()
	if err != nil {
		t.Fatal(err)
	}
	got := &commitNote{}
	if err := got.decode(changes); err != nil {
		t.Fatal(err)
	}
	if got.head != n.head || got.blocks != 3 || got.kinds[n.rows[1].index.kind] != 7 || len(got.rows) != 4 {
		t.Errorf("got %+v", got)
	}
	for at, r := range got.rows {
		want := n.rows[at]
		if r.key != want.key || r.table != want.table || r.carried != want.carried || r.at != want.at || !reflect.DeepEqual(r.index, want.index) {
			t.Errorf("the row %d: got %+v, want %+v", at, r, want)
		}
	}
	for cut := range changes {
		_ = (&commitNote{}).decode(changes[:cut]) // must not panic
	}
}

func TestClockMeasuresOnlyWhatTheWayDoesNotExplain(t *testing.T) {
	var c clock
	s := &Store{}
	for _, test := range []struct{ at, sent, received, want time.Duration }{
		{0, 0, 0, 0}, {5, 0, 10, 0}, {-3, 0, 10, 3}, {13, 0, 10, -3}, {0, 0, 10, 0}, {10, 0, 10, 0},
	} {
		c.measured(testNow.Add(test.at*time.Second), testNow.Add(test.sent*time.Second), testNow.Add(test.received*time.Second))
		if got := time.Duration(c.offset.Load()); got != test.want*time.Second {
			t.Errorf("%+v: got %s", test, got)
		}
	}
	s.clock.offset.Store(int64(2 * time.Second))
	if err := s.Degraded(); !errors.Is(err, broker.ErrUnavailable) || !errors.Is(err, errClock) {
		t.Errorf("2 s ahead: %v", err)
	}
	s.clock.offset.Store(int64(-2*time.Second + 1))
	if err := s.Degraded(); err != nil {
		t.Errorf("nearly 2 s behind: %v", err)
	}
}
