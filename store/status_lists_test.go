package store

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"accessbroker.internal/broker"
)

// newStatusList returns a list for leases that are issued from now on. Another test may have
// made IDs of a later time than testNow, and IDs never go back.
func newStatusList(t testing.TB, s *Store) *broker.StatusList {
	t.Helper()
	opened := broker.NewLeaseID(testNow).Time()
	list := &broker.StatusList{ID: broker.StatusListID{1}, Opened: opened, Closes: opened.Add(time.Hour), Expires: testNow.Add(2 * time.Hour)}
	put(t, s, list)
	return list
}

// newListed returns an active lease with a place in the list.
func newListed(t testing.TB, list *broker.StatusList, index uint32) *broker.Lease {
	l := newIssuance(t, int(index)).lease
	l.Status, l.Revocation, l.Expires = broker.LeaseActive, broker.RevokedAtExpiry, testNow.Add(15*time.Minute)
	l.Listed = broker.StatusPlace{List: list.ID, Index: index}
	return &l
}

// endListed ends a lease in one of the ways in which leases end, or goes on with its end.
func endListed(random *rand.Rand, l *broker.Lease) {
	l.Status = []broker.LeaseStatus{broker.LeaseRevoking, broker.LeaseRevoked, broker.LeaseAbandoned, broker.LeaseFailed}[random.IntN(4)]
	l.Revocation = []broker.Revocation{broker.RevokedAtExpiry, broker.RevokedImmediate, broker.RevokedPending}[random.IntN(3)]
	if l.HasEnded() {
		l.Ended = testNow.Add(time.Minute)
	}
}

// places returns the set bits of a list.
func places(t testing.TB, s *Store, list *broker.StatusList) map[uint32]bool {
	t.Helper()
	bits, _, err := s.EndedPlaces(t.Context(), list)
	if err != nil {
		t.Fatal(err)
	}
	set := map[uint32]bool{}
	for i := range uint32(broker.StatusListSize) {
		if bits[i/8]&(1<<(i%8)) != 0 {
			set[i] = true
		}
	}
	return set
}

// The places of ended leases are known, whichever way they ended, and whether the list was
// read before, is read after a restart, or another process wrote.
func TestEndedPlacesFollowEveryChange(t *testing.T) {
	random := seeded(t)
	path := filepath.Join(t.TempDir(), "broker.db")
	s := open(t, path)
	list := newStatusList(t, s)
	var leases []*broker.Lease
	want := map[uint32]bool{}
	for n := range 200 {
		if len(leases) == 0 || random.IntN(2) == 0 {
			l := newListed(t, list, uint32(n))
			leases = append(leases, l)
			put(t, s, l)
		} else {
			l := leases[random.IntN(len(leases))]
			endListed(random, l)
			put(t, s, l)
			want[l.Listed.Index] = true
		}
		switch random.IntN(20) {
		case 0:
			s.forget()
		case 1:
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = open(t, path)
		case 2:
			if _, err := s.Sweep(t.Context(), testNow); err != nil {
				t.Fatal(err)
			}
		}
		if n%5 != 0 {
			continue
		}
		got := places(t, s, list)
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("after %d steps: got the places %v, want %v", n, got, want)
		}
	}
	if len(want) < 20 || len(want) == len(leases) {
		t.Fatalf("%d of %d leases ended", len(want), len(leases))
	}
	checkHoldings(t, s)
}

// A lease that ends while its list is loaded for the first time is not missed.
func TestEndedPlacesWhileLoading(t *testing.T) {
	s := newStore(t)
	list := newStatusList(t, s)
	const n = 64
	var leases []*broker.Lease
	for i := range uint32(n) {
		leases = append(leases, newListed(t, list, i))
		put(t, s, leases[i])
	}
	var group sync.WaitGroup
	for _, l := range leases {
		group.Go(func() {
			l.Status, l.Ended = broker.LeaseRevoked, testNow
			put(t, s, l)
			if !places(t, s, list)[l.Listed.Index] {
				t.Errorf("the place %d is not set after its lease ended", l.Listed.Index)
			}
		})
		group.Go(s.statuses.forget)
	}
	group.Wait()
	if got := len(places(t, s, list)); got != n {
		t.Errorf("got %d places, want %d", got, n)
	}
}

// A place of another list, and one beyond the end, are not set.
func TestEndedPlacesOfOthers(t *testing.T) {
	s := newStore(t)
	list := newStatusList(t, s)
	_ = places(t, s, list)
	for _, place := range []broker.StatusPlace{{List: broker.StatusListID{2}, Index: 1}, {List: list.ID, Index: broker.StatusListSize}, {}} {
		l := newListed(t, list, 1)
		l.Listed, l.Status, l.Ended = place, broker.LeaseRevoked, testNow
		put(t, s, l)
	}
	if got := places(t, s, list); len(got) != 0 {
		t.Errorf("got the places %v", got)
	}
	s.forget()
	if got := places(t, s, list); len(got) != 0 {
		t.Errorf("after loading: got the places %v", got)
	}
}

// Bits that a reader has do not change, and the version changes only with them.
func TestEndedPlacesAreCopied(t *testing.T) {
	s := newStore(t)
	list := newStatusList(t, s)
	l := newListed(t, list, 9)
	put(t, s, l)
	before, v1, err := s.EndedPlaces(t.Context(), list)
	if err != nil {
		t.Fatal(err)
	}
	if _, again, err := s.EndedPlaces(t.Context(), list); err != nil || again != v1 {
		t.Errorf("without a change: got version %d, want %d, %v", again, v1, err)
	}
	l.Status, l.Ended = broker.LeaseRevoked, testNow
	put(t, s, l)
	after, v2, err := s.EndedPlaces(t.Context(), list)
	if err != nil || before[1] != 0 || after[1] != 2 || v1 == v2 {
		t.Errorf("got %d before and %d after, versions %d and %d, %v", before[1], after[1], v1, v2, err)
	}
}

// Only the leases that a query needs are read.
func TestListedLeases(t *testing.T) {
	s := newStore(t)
	list := newStatusList(t, s)
	holders := []string{"spiffe://acme.test/a", "spiffe://acme.test/b", "spiffe://acme.test/c"}
	for i, holder := range holders {
		l := newListed(t, list, uint32(i))
		l.Holder, l.Entitlement = holder, fmt.Sprintf("e%d", i)
		put(t, s, l)
	}
	catalogue := broker.Catalogue{"e0": {}, "e1": {}}
	for name, test := range map[string]struct {
		q    broker.ListedQuery
		want []string
	}{
		"an unknown entitlement": {broker.ListedQuery{Catalogue: catalogue}, holders[2:]},
		"a holder":               {broker.ListedQuery{Catalogue: catalogue, Names: []string{holders[0]}}, []string{holders[0], holders[2]}},
		"a trust domain":         {broker.ListedQuery{Catalogue: catalogue, Names: []string{"acme.test"}}, holders},
	} {
		test.q.Now = testNow
		var got []string
		if err := s.ListedLeases(t.Context(), list, test.q, func(l *broker.Lease) { got = append(got, l.Holder) }); err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(got) != fmt.Sprint(test.want) {
			t.Errorf("%s: got %v, want %v", name, got, test.want)
		}
	}
}

// Lists are listed until all of their tokens have expired, and then swept.
func TestStatusListsExpire(t *testing.T) {
	s := newStore(t)
	list := newStatusList(t, s)
	for now, want := range map[time.Time]int{testNow: 1, list.Expires: 0} {
		lists, err := s.StatusLists(t.Context(), now, 10)
		if err != nil || len(lists) != want {
			t.Errorf("at %s: got %d lists, want %d, %v", now, len(lists), want, err)
		}
	}
	if n, err := s.Sweep(t.Context(), list.Expires); err != nil || n == 0 {
		t.Errorf("swept %d rows, %v", n, err)
	}
	err := s.View(t.Context(), func(tx broker.Tx) error {
		_, err := tx.Get(list.ID)
		return err
	})
	if err != broker.ErrNotFound {
		t.Errorf("after the sweep: got %v", err)
	}
}

// BenchmarkStatusList measures what a list of many leases costs: after a start, after an end,
// and after a block, which looks at the leases that have not ended.
func BenchmarkStatusList(b *testing.B) {
	n := 100_000
	if testing.Short() {
		n = 100
	}
	s := newStore(b)
	list := newStatusList(b, s)
	for from := 0; from < n; from += 1000 {
		err := s.Update(b.Context(), nil, func(tx broker.Tx) error {
			for i := from; i < min(from+1000, n); i++ {
				l := newListed(b, list, uint32(i))
				if i%100 == 0 {
					l.Status, l.Ended = broker.LeaseRevoked, testNow
				}
				tx.Put(l)
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	read := func(b *testing.B) {
		if _, _, err := s.EndedPlaces(b.Context(), list); err != nil {
			b.Fatal(err)
		}
	}
	b.Run("start", func(b *testing.B) {
		for b.Loop() {
			s.forget()
			read(b)
		}
	})
	read(b)
	b.Run("end", func(b *testing.B) {
		for i := 1; b.Loop(); i++ {
			s.statuses.mu.Lock()
			s.statuses.set(s.statuses.byList[list.ID], uint32(i%broker.StatusListSize))
			s.statuses.mu.Unlock()
			read(b)
		}
	})
	b.Run("block", func(b *testing.B) {
		q := broker.ListedQuery{Catalogue: broker.Catalogue{newListed(b, list, 0).Entitlement: {}}, Names: []string{"spiffe://acme.test/nowhere"}, Now: testNow}
		for b.Loop() {
			if err := s.ListedLeases(b.Context(), list, q, func(*broker.Lease) {}); err != nil {
				b.Fatal(err)
			}
		}
	})
}
