package store

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"accessbroker.internal/broker"
)

// A heldBy is a lease of a leaseSet with the hash of its holder.
type heldBy struct {
	held
	holder uint64
}

func heldIn(s *leaseSet) (list []heldBy) {
	for _, c := range s.chunks {
		list = append(list, heldOf(c)...)
	}
	return list
}

func heldOf(c chunk) (list []heldBy) {
	for i, h := range c.leases {
		list = append(list, heldBy{h, c.holders[i]})
	}
	return list
}

// A leaseSet is compared with a map, and its memory with its bound.
func TestLeaseSet(t *testing.T) {
	random := seeded(t)
	var set leaseSet
	model := map[broker.LeaseID]heldBy{}
	id := func() (id broker.LeaseID) {
		// Ids from a small range, so that the same ones are drawn again.
		id[0], id[1] = byte(random.IntN(16)), byte(random.IntN(256))
		id[15] = 1
		return id
	}
	for n := range 100_000 {
		// The set grows, shrinks and grows again.
		if e := (heldBy{held{id: id(), until: int64(n)}, uint64(n)}); random.IntN(10) < 3+n/10_000%2*5 {
			set.put(e.held, e.holder)
			model[e.id] = e
		} else {
			set.remove(e.id)
			delete(model, e.id)
		}
		if n%5000 != 0 {
			continue
		}
		want := slices.SortedFunc(maps.Values(model), func(a, b heldBy) int { return compareIDs(a.id, b.id) })
		if got := heldIn(&set); !slices.Equal(got, want) || set.size != len(want) {
			t.Fatalf("after %d steps: got %d leases, want %d", n, set.size, len(want))
		}
		below := id()
		var got []heldBy
		for c := range set.before(below) {
			got = append(heldOf(c), got...)
		}
		i, _ := slices.BinarySearchFunc(want, below, func(h heldBy, id broker.LeaseID) int { return compareIDs(h.id, id) })
		if !slices.Equal(got, want[:i]) {
			t.Fatalf("after %d steps: got %d leases below %x, want %d", n, len(got), below, i)
		}
		for i := range len(set.chunks) - 1 {
			a, b := set.chunks[i], set.chunks[i+1]
			if len(a.leases)+len(b.leases) <= mergeSize || cap(a.leases) != chunkSize || cap(a.holders) != chunkSize {
				t.Fatalf("after %d steps: chunks of %d and %d leases, with room for %d", n, len(a.leases), len(b.leases), cap(a.leases))
			}
		}
	}
}

// checkHoldings compares the copy in memory with the tables.
func checkHoldings(t testing.TB, s *Store) {
	t.Helper()
	tables := &holdings{seed: s.holdings.seed}
	if err := s.fillHoldings(context.Background(), tables); err != nil {
		t.Errorf("reading the tables: %v", err)
		return
	}
	err := s.readHoldings(context.Background(), func(h *holdings) {
		for i, name := range holdingTables {
			if got, want := remaining(&h.tables[i]), remaining(&tables.tables[i]); !slices.Equal(got, want) {
				t.Errorf("%s: memory has %d leases, the table %d, or they differ", name, len(got), len(want))
			}
		}
		if !maps.Equal(h.stuck, tables.stuck) {
			t.Errorf("stuck: memory has %v, the tables %v", h.stuck, tables.stuck)
		}
		for e := range h.tables[liveTable].all() {
			if h.kinds[e.kind()] != tables.kinds[e.kind()] {
				t.Errorf("kind %d: memory has %v, the table %v", e.kind(), h.kinds[e.kind()], tables.kinds[e.kind()])
			}
		}
	})
	if err != nil {
		t.Error(err)
	}
}

// remaining returns the leases of a set, except expired ones that are carried: Sweep drops
// those only from memory.
func remaining(s *leaseSet) []heldBy {
	return slices.DeleteFunc(heldIn(s), func(h heldBy) bool { return h.carried() && h.until <= testNow.UnixMilli() })
}

var leaseStatuses = []broker.LeaseStatus{broker.LeaseIssuing, broker.LeaseActive, broker.LeaseRevoking, broker.LeaseRevoked, broker.LeaseFailed, broker.LeaseAbandoned}

// change draws another state of a lease.
func change(random *rand.Rand, l *broker.Lease) {
	l.Status = leaseStatuses[random.IntN(len(leaseStatuses))]
	l.Revocation = []broker.Revocation{broker.RevokedImmediate, broker.RevokedAtExpiry, broker.RevokedPending, broker.RevokedNever}[random.IntN(4)]
	l.Expires = testNow.Add(time.Duration(random.IntN(20)-5) * time.Minute)
	l.EndAsked, l.LastError = testNow.Add(-time.Duration(random.IntN(10))*time.Minute), ""
	if random.IntN(2) == 0 {
		l.LastError = "issuer_unavailable"
	}
}

// Whatever happens to leases, memory has what the tables have, and answers as a
// search of all rows would.
func TestHoldingsFollowEveryChange(t *testing.T) {
	random := seeded(t)
	path := filepath.Join(t.TempDir(), "broker.db")
	s := open(t, path)
	leases := map[broker.LeaseID]broker.Lease{}
	for n := range 300 {
		l := newIssuance(t, random.IntN(5)).lease
		if ids := slices.Collect(maps.Keys(leases)); len(ids) > 0 && random.IntN(2) == 0 {
			l = leases[ids[random.IntN(len(ids))]]
		} else {
			l.Entitlement, l.Issuer = fmt.Sprintf("e%d", random.IntN(3)), fmt.Sprintf("i%d", random.IntN(2))
			l.Request = broker.NewRequestID(testNow)
		}
		change(random, &l)
		leases[l.ID] = l
		put(t, s, &l)
		switch {
		case n%50 == 17:
			if _, err := s.Sweep(t.Context(), testNow); err != nil {
				t.Fatal(err)
			}
		case n%50 == 33:
			s.holdings.forget()
		case n%50 == 49:
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = open(t, path)
		}
		if n%10 == 0 {
			checkHoldings(t, s)
			checkAnswers(t, s, leases)
		}
	}
	checkHoldings(t, s)
}

// checkAnswers compares counts and lists with all leases.
func checkAnswers(t *testing.T, s *Store, all map[broker.LeaseID]broker.Lease) {
	t.Helper()
	var live, stuck int64
	for _, l := range all {
		if l.Live(testNow) {
			live++
		}
		if l.State(testNow) == broker.LeaseStuck {
			stuck++
		}
	}
	counts, err := s.CountActive(t.Context(), testNow)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range counts {
		live -= c.Leases
	}
	if n, err := s.CountStuck(t.Context(), testNow); err != nil || live != 0 || n != stuck {
		t.Errorf("got %+v and %d stuck, %v; want %d more live, %d stuck", counts, n, err, live, stuck)
	}
	queries := 0
	for _, q := range []broker.LeaseQuery{{Holder: "spiffe://acme.test/agent/a1"}, {Entitlement: "e1"}, {Issuer: "i0"}, {Holder: "spiffe://acme.test/agent/a2", Entitlement: "e0", Issuer: "i1"}, {Request: anyLease(all).Request}} {
		for _, outliving := range []bool{false, true} {
			q.Live, q.Outliving, q.Now, q.Limit = !outliving, outliving, testNow, 3
			var want, got []broker.LeaseID
			for _, l := range all {
				if wantsLease(&q, &l) {
					want = append(want, l.ID)
				}
			}
			slices.SortFunc(want, func(a, b broker.LeaseID) int { return compareIDs(b, a) })
			for q.Before = (broker.LeaseID{}); ; {
				err := s.View(t.Context(), func(tx broker.Tx) error {
					page, next, err := tx.Leases(q)
					for _, l := range page {
						got = append(got, l.ID)
					}
					q.Before = next
					return err
				})
				if err != nil {
					t.Fatal(err)
				}
				if q.Before.IsZero() {
					break
				}
			}
			if queries++; !slices.Equal(got, want) {
				t.Errorf("%+v: got %d leases, want %d", q, len(got), len(want))
			}
		}
	}
	if queries != 10 {
		t.Errorf("made %d queries, want 10", queries)
	}
}

func anyLease(all map[broker.LeaseID]broker.Lease) (l broker.Lease) {
	for _, l = range all {
		break
	}
	return l
}

// Commits during a load are not lost, and callers that come meanwhile wait for it,
// even if they hold every connection.
func TestHoldingsLoadDuringCommits(t *testing.T) {
	s := newStore(t)
	for n := range 200 {
		i := newIssuance(t, n)
		if err := i.store(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	var all sync.WaitGroup
	for w := range 4 {
		all.Go(func() {
			for n := range 50 {
				i := newIssuance(t, w*50+n)
				if err := i.store(t.Context(), s); err != nil {
					t.Error(err)
				}
				if n%2 == 0 {
					if err := revoke(t, s, i.lease.ID); err != nil {
						t.Error(err)
					}
				}
				s.holdings.forget()
			}
		})
		for range maxReaders {
			all.Go(func() {
				q := broker.LeaseQuery{Holder: "spiffe://acme.test/agent/a1", Live: true, Now: testNow, Limit: 10}
				if err := s.View(t.Context(), func(tx broker.Tx) error { _, _, err := tx.Leases(q); return err }); err != nil {
					t.Error(err)
				}
			})
		}
	}
	all.Wait()
	checkHoldings(t, s)
	if counts, err := s.CountActive(t.Context(), testNow); err != nil || len(counts) != 1 || counts[0].Leases != 300 {
		t.Errorf("got %v, %v, want 300 leases", counts, err)
	}
}
