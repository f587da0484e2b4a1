package store

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"accessbroker.internal/broker"
)

// put stores a lease in that state.
func putLease(t testing.TB, s *Store, id broker.LeaseID, status broker.LeaseStatus) {
	t.Helper()
	err := s.Update(t.Context(), []broker.Key{id}, func(tx broker.Tx) error {
		tx.Put(&broker.Lease{ID: id, Status: status, Holder: "spiffe://acme.test/a", Entitlement: "e", Issuer: "i", Revocation: broker.RevokedAtExpiry, Opened: someTime, Expires: someTime.Add(time.Hour)})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

var someTime = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

func TestLeaseFollowsCommits(t *testing.T) {
	s := newStore(t)
	id := broker.NewLeaseID(time.Now())
	if l, err := s.Lease(t.Context(), id); !errors.Is(err, broker.ErrNotFound) {
		t.Fatalf("got %v, %v, want ErrNotFound", l, err)
	}
	for _, status := range []broker.LeaseStatus{broker.LeaseActive, broker.LeaseRevoked, broker.LeaseActive} {
		putLease(t, s, id, status)
		for range 2 { // from the database, then from memory
			if l, err := s.Lease(t.Context(), id); err != nil || l.Status != status || l.Holder != "spiffe://acme.test/a" {
				t.Fatalf("got %+v, %v, want the status %d", l, err, status)
			}
		}
	}
	s.forget()
	if l, err := s.Lease(t.Context(), id); err != nil || l.Status != broker.LeaseActive {
		t.Errorf("after forgetting: got %+v, %v", l, err)
	}
	if len(s.recent.reading) != 0 {
		t.Errorf("%d readings did not end", len(s.recent.reading))
	}
}

// A reading that began before a commit must not keep what it read.
func TestCommitDuringReadingIsNotMissed(t *testing.T) {
	s := newStore(t)
	id := broker.NewLeaseID(time.Now())
	putLease(t, s, id, broker.LeaseActive)
	if l := s.recent.get(id); l != nil { // two readings begin
		t.Fatalf("got %+v from memory", l)
	}
	s.recent.get(id)
	stale := &broker.Lease{ID: id, Status: broker.LeaseActive}
	putLease(t, s, id, broker.LeaseRevoked)
	s.recent.put(id, stale)
	if l, err := s.Lease(t.Context(), id); err != nil || l.Status != broker.LeaseRevoked {
		t.Errorf("after the first reading: got %+v, %v", l, err)
	}
	s.recent.put(id, stale)
	if l, err := s.Lease(t.Context(), id); err != nil || l.Status != broker.LeaseRevoked {
		t.Errorf("after the second reading: got %+v, %v", l, err)
	}
	s.forget()
	s.recent.get(id)
	s.forget() // another process may have written during the reading
	s.recent.put(id, stale)
	if l, err := s.Lease(t.Context(), id); err != nil || l.Status != broker.LeaseRevoked {
		t.Errorf("after forgetting: got %+v, %v", l, err)
	}
}

// Once an Update has returned, no reader sees an older state.
func TestReadersNeverSeeOlderState(t *testing.T) {
	s := newStore(t)
	const leases, steps, readers = 8, 40, 4
	var ids [leases]broker.LeaseID
	var committed [leases]struct {
		sync.Mutex
		step int
	}
	for i := range ids {
		ids[i] = broker.NewLeaseID(time.Now())
		putLease(t, s, ids[i], broker.LeaseActive)
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	done := make(chan struct{})
	var all sync.WaitGroup
	reads := make([]int, readers)
	for r := range readers {
		all.Go(func() {
			random := rand.New(rand.NewPCG(seed, uint64(r)))
			for {
				select {
				case <-done:
					if reads[r] > 0 {
						return
					}
				default:
				}
				i := random.IntN(leases)
				committed[i].Lock()
				least := committed[i].step
				committed[i].Unlock()
				l, err := s.Lease(t.Context(), ids[i])
				if err != nil || l.Attempts < least {
					t.Errorf("lease %d: got step %d, %v, want at least %d", i, l.Attempts, err, least)
					return
				}
				reads[r]++
			}
		})
	}
	var writers sync.WaitGroup
	for i := range ids {
		writers.Go(func() {
			for step := 1; step <= steps; step++ {
				err := s.Update(t.Context(), []broker.Key{ids[i]}, func(tx broker.Tx) error {
					l, err := broker.Get[*broker.Lease](tx, ids[i])
					if err != nil {
						return err
					}
					l.Attempts = step
					tx.Put(l)
					return nil
				})
				if err != nil {
					t.Error(err)
					return
				}
				committed[i].Lock()
				committed[i].step = step
				committed[i].Unlock()
			}
		})
	}
	writers.Wait()
	close(done)
	all.Wait()
}

func TestRecentIsBounded(t *testing.T) {
	var r recent
	for n := range 5 * maxRecent {
		id := broker.NewLeaseID(someTime.Add(time.Duration(n) * time.Millisecond))
		r.get(id)
		r.put(id, &broker.Lease{ID: id})
	}
	if n := len(r.newer) + len(r.older); n > 2*maxRecent || n < maxRecent {
		t.Errorf("%d leases are kept, want %d to %d", n, maxRecent, 2*maxRecent)
	}
	if len(r.reading) != 0 {
		t.Errorf("%d readings did not end", len(r.reading))
	}
}

func TestBlockedFollowsCommits(t *testing.T) {
	s := newStore(t)
	key := broker.BlockKey{Kind: "entitlement", Name: "e"}
	for n, lifted := range []time.Time{{}, someTime, {}} {
		if n == 0 {
			if blocked, err := s.Blocked(t.Context(), []broker.Key{key}); blocked || err != nil {
				t.Fatalf("got %t, %v without a block", blocked, err)
			}
		}
		err := s.Update(t.Context(), []broker.Key{key}, func(tx broker.Tx) error {
			tx.Put(&broker.Block{Selector: key, Reason: fmt.Sprint(n), Since: someTime, Lifted: lifted})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		other := broker.BlockKey{Kind: "entitlement", Name: "f"}
		for range 2 {
			if blocked, err := s.Blocked(t.Context(), []broker.Key{other, key}); err != nil || blocked != lifted.IsZero() {
				t.Fatalf("change %d: got %t, %v", n, blocked, err)
			}
			if blocked, err := s.Blocked(t.Context(), []broker.Key{other}); err != nil || blocked {
				t.Fatalf("another key: got %t, %v", blocked, err)
			}
		}
	}
}

// A lease with large parameters is read, and not kept in memory.
func TestLargeLeaseIsNotKept(t *testing.T) {
	s := newStore(t)
	for size, want := range map[int]int{100: 1, maxRecentRow: 0} {
		s.forget()
		l := &broker.Lease{
			ID: broker.NewLeaseID(time.Now()), Status: broker.LeaseActive, Holder: "spiffe://acme.test/a", Entitlement: "e", Issuer: "i",
			Parameters: map[string]string{"p": strings.Repeat("x", size)}, Revocation: broker.RevokedAtExpiry, Opened: someTime, Expires: someTime.Add(time.Hour),
		}
		if err := s.Update(t.Context(), []broker.Key{l.ID}, func(tx broker.Tx) error { tx.Put(l); return nil }); err != nil {
			t.Fatal(err)
		}
		got, err := s.Lease(t.Context(), l.ID)
		if err != nil || len(got.Parameters["p"]) != size || len(s.recent.newer) != want {
			t.Errorf("%d bytes: got %v, %v, and %d leases kept, want %d", size, got, err, len(s.recent.newer), want)
		}
	}
}
