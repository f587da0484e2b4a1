package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/internal/storetest"
)

// together commits Updates as one group.
func together(t *testing.T, s *Store, members ...*member) {
	t.Helper()
	for _, m := range members {
		m.ctx = t.Context()
	}
	s.commit(members, s.begin())
	for i, m := range members {
		if m.err != nil || m.panicked != nil {
			t.Fatalf("member %d: %v, %v", i, m.err, m.panicked)
		}
	}
}

// filing is the Update that files a request and opens its lease.
func filing(i *issuance) *member {
	return &member{f: func(tx broker.Tx) error {
		tx.Put(&i.request)
		tx.Put(&i.lease)
		tx.Append(i.entry)
		return nil
	}}
}

// replacing is an Update that changes a row.
func replacing[R broker.Row](key broker.Key, change func(R)) *member {
	return &member{reads: []broker.Key{key}, f: func(tx broker.Tx) error {
		row, err := broker.Get[R](tx, key)
		if err == nil {
			change(row)
			tx.Put(row)
		}
		return err
	}}
}

// carriedIDs returns the leases that requests carry, and ownIDs those with rows of their own.
func carriedIDs(t *testing.T, s *Store) []broker.LeaseID {
	return idsOf(t, s, "SELECT id FROM requests WHERE lease IS NOT NULL ORDER BY id")
}

func ownIDs(t *testing.T, s *Store) []broker.LeaseID {
	return idsOf(t, s, "SELECT id FROM leases ORDER BY id")
}

func idsOf(t *testing.T, s *Store, query string) (ids []broker.LeaseID) {
	t.Helper()
	rows, err := s.readers.QueryContext(t.Context(), query)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var id []byte
		if err := rows.Scan(&id); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, broker.LeaseID(id))
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return ids
}

// wantLease fails the test unless every way to read the lease finds it as it should be.
func wantLease(t *testing.T, s *Store, want *broker.Lease) {
	t.Helper()
	err := s.View(t.Context(), func(tx broker.Tx) error {
		got, err := broker.Get[*broker.Lease](tx, want.ID)
		if err == nil && !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v\nwant %+v", got, want)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.Lease(t.Context(), want.ID); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("the reader got %+v (%v)\nwant %+v", got, err, want)
	}
	together(t, s, &member{reads: []broker.Key{want.ID}, f: func(tx broker.Tx) error {
		got, err := broker.Get[*broker.Lease](tx, want.ID)
		if err == nil && !reflect.DeepEqual(got, want) {
			t.Errorf("the writer got %+v\nwant %+v", got, want)
		}
		return err
	}})
}

// A lease that is carried is read as it was put.
func TestCarriedLeasesKeepEveryField(t *testing.T) {
	for name, change := range map[string]func(*broker.Request, *broker.Lease){
		"plain": func(*broker.Request, *broker.Lease) {},
		"on behalf": func(r *broker.Request, l *broker.Lease) {
			r.Delegation = &broker.Delegation{Subject: broker.Identity{ID: "login/ana", Kind: broker.KindPerson}, Parent: broker.NewLeaseID(testNow), Actors: []string{"spiffe://acme.test/agent/b"}}
			l.Subject, l.Actors, l.Parent = "login/ana", r.Delegation.Actors, r.Delegation.Parent
		},
		"fine grants": func(r *broker.Request, l *broker.Lease) {
			r.Details = []broker.Detail{{Type: "tickets", Actions: []string{"read"}}}
			l.Details = r.Details
		},
		"parameters": func(r *broker.Request, l *broker.Lease) {
			r.Parameters = map[string]string{"queue": "support"}
			l.Parameters = r.Parameters
		},
		"bound": func(r *broker.Request, l *broker.Lease) {
			r.KeyThumbprint, l.KeyThumbprint, l.Confirm = audit.Digest{7}, audit.Digest{7}, audit.Digest{8}
		},
		"counted, listed": func(r *broker.Request, l *broker.Lease) {
			l.Limits = []broker.CounterKey{{Policy: "p", Holder: l.Holder, Entitlement: l.Entitlement}}
			l.Listed = broker.StatusPlace{List: broker.StatusListID(broker.NewLeaseID(testNow)), Index: 12}
		},
		"own words": func(r *broker.Request, l *broker.Lease) {
			l.Issuer, l.Type, l.Revocation, l.Rotates, l.Persists, l.Exchanged = "i", "t", broker.RevokedNever, testNow.Add(time.Minute), true, true
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			i := newIssuance(t, 1)
			change(&i.request, &i.lease)
			together(t, s, filing(&i))
			want := i.lease
			want.Records = []broker.RecordID{broker.NewRecordID(1, i.entry.Index)}
			wantLease(t, s, &want)
			if got := carriedIDs(t, s); len(got) != 1 || len(ownIDs(t, s)) != 0 {
				t.Errorf("%d leases are carried, want 1", len(got))
			}
		})
	}
}

// A lease that does not follow from its request has a row of its own.
func TestOtherLeasesAreNotCarried(t *testing.T) {
	for name, change := range map[string]func(*issuance){
		"another id":        func(i *issuance) { i.lease.ID = broker.NewLeaseID(testNow) },
		"another request":   func(i *issuance) { i.lease.Request = broker.NewRequestID(testNow) },
		"another holder":    func(i *issuance) { i.lease.Holder += "x" },
		"fewer scopes":      func(i *issuance) { i.lease.Scopes = i.lease.Scopes[:1] },
		"another expiry":    func(i *issuance) { i.lease.Expires = i.lease.Expires.Add(time.Second) },
		"another opening":   func(i *issuance) { i.lease.Opened = i.lease.Opened.Add(time.Second) },
		"other parameters":  func(i *issuance) { i.lease.Parameters = map[string]string{"a": "b"} },
		"other details":     func(i *issuance) { i.lease.Details = []broker.Detail{{Type: "t"}} },
		"another key":       func(i *issuance) { i.lease.KeyThumbprint = audit.Digest{1} },
		"a subject":         func(i *issuance) { i.lease.Subject = "login/ana" },
		"a pending request": func(i *issuance) { i.request.Status = broker.RequestPending },
		"an issuing lease":  func(i *issuance) { i.lease.Status = broker.LeaseIssuing },
		"to be revoked":     func(i *issuance) { i.lease.Revocation = broker.RevokedImmediate },
		"of a person":       func(i *issuance) { i.request.Requester.ID, i.lease.Holder = "login/ana", "login/ana" },
		"longer than an hour": func(i *issuance) {
			i.lease.Expires = testNow.Add(time.Hour + 1)
			i.request.FirstExpires = i.lease.Expires
		},
		"older than the start": func(i *issuance) {
			i.request.ID = broker.RequestID{}
			i.lease.ID = broker.LeaseID{}
			i.request.ID[15], i.lease.ID[15] = 1, 1
			i.lease.Request = i.request.ID
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			s.w.carriedSince = []byte{1}
			i := newIssuance(t, 1)
			change(&i)
			together(t, s, filing(&i))
			want := i.lease
			want.Records = []broker.RecordID{broker.NewRecordID(1, i.entry.Index)}
			wantLease(t, s, &want)
			if got := ownIDs(t, s); len(got) != 1 || got[0] != i.lease.ID || len(carriedIDs(t, s)) != 0 {
				t.Errorf("%d leases have a row, want 1", len(got))
			}
		})
	}
}

// A lease is moved to a row of its own when it or its request is replaced, whether that
// happens in the group that filed the request or later, and nothing of it is lost.
func TestReplacedLeasesAreNoLongerCarried(t *testing.T) {
	end := func(l *broker.Lease) {
		l.Status, l.Revocation, l.Ended = broker.LeaseRevoked, broker.RevokedAtExpiry, testNow
	}
	reviewed := func(r *broker.Request) { r.Reviewed = testNow }
	for name, test := range map[string]struct{ lease, request bool }{
		"lease": {lease: true}, "request": {request: true}, "both": {true, true},
	} {
		for _, same := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, same group %t", name, same), func(t *testing.T) {
				s := newStore(t)
				i, other := newIssuance(t, 1), newIssuance(t, 2)
				members := []*member{filing(&i), filing(&other)}
				want := i.lease
				if test.lease {
					members = append(members, replacing(i.lease.ID, end))
					end(&want)
				}
				if test.request {
					members = append(members, replacing(i.request.ID, reviewed))
				}
				if same {
					together(t, s, members...)
				} else {
					for _, m := range members {
						together(t, s, m)
					}
				}
				want.Records = []broker.RecordID{broker.NewRecordID(1, i.entry.Index)}
				wantLease(t, s, &want)
				if own, carried := ownIDs(t, s), carriedIDs(t, s); !slices.Equal(own, []broker.LeaseID{i.lease.ID}) || !slices.Equal(carried, []broker.LeaseID{other.lease.ID}) {
					t.Errorf("%v have rows and %v are carried, want %v and %v", own, carried, i.lease.ID, other.lease.ID)
				}
				if got := listAll(t, s, broker.LeaseQuery{Now: testNow}); !slices.Equal(got, []broker.LeaseID{other.lease.ID, i.lease.ID}) {
					t.Errorf("listed %v", got)
				}
			})
		}
	}
}

// A damaged row fails only the Update that reads it.
func TestDamagedCarriedLease(t *testing.T) {
	s := newStore(t)
	i, other := newIssuance(t, 1), newIssuance(t, 2)
	together(t, s, filing(&i))
	for _, column := range []string{"lease", "body"} {
		if _, err := s.w.conn.ExecContext(t.Context(), "UPDATE requests SET "+column+" = x'0105' WHERE id = ?", i.request.ID[:]); err != nil {
			t.Fatal(err)
		}
		for _, key := range []broker.Key{i.lease.ID, i.request.ID} {
			other = newIssuance(t, 2)
			bad, good := replacing(key, func(broker.Row) {}), filing(&other)
			bad.ctx, good.ctx = t.Context(), t.Context()
			s.commit([]*member{bad, good}, s.begin())
			if !errors.Is(bad.err, errBody) || good.err != nil {
				t.Errorf("%s, %T: got %v and %v, want an error and none", column, key, bad.err, good.err)
			}
		}
	}
	if _, err := s.w.conn.ExecContext(t.Context(), "DELETE FROM requests WHERE id = ?", i.request.ID[:]); err != nil {
		t.Fatal(err)
	}
	s.holdings.forget()
}

// Whatever happens to requests and their leases, the rows are those of a store that carries
// no leases.
func TestCarriedLeasesAreLikeOthers(t *testing.T) {
	random := seeded(t)
	path := filepath.Join(t.TempDir(), "broker.db")
	s := open(t, path)
	leases := map[broker.LeaseID]broker.Lease{}
	carried := 0
	for n := range 100 {
		var members []*member
		var filed []*issuance
		for range 1 + random.IntN(4) {
			i := drawn(t, random)
			leases[i.lease.ID], filed = i.lease, append(filed, i)
			members = append(members, filing(i))
		}
		for range random.IntN(4) {
			l := leases[slices.Collect(maps.Keys(leases))[random.IntN(len(leases))]]
			if random.IntN(2) == 0 {
				members = append(members, replacing(l.Request, func(r *broker.Request) { r.Version++ }))
				continue
			}
			changed := l
			change(random, &changed)
			members = append(members, replacing(l.ID, func(now *broker.Lease) {
				records := now.Records
				*now = changed
				now.Records = records
			}))
			leases[l.ID] = changed
		}
		together(t, s, members...)
		for _, i := range filed {
			l := leases[i.lease.ID]
			l.Records = []broker.RecordID{broker.NewRecordID(1, i.entry.Index)}
			leases[l.ID] = l
		}
		switch n % 20 {
		case 7:
			if _, err := s.Sweep(t.Context(), testNow); err != nil {
				t.Fatal(err)
			}
		case 13:
			s.holdings.forget()
		case 19:
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = open(t, path)
		}
		if n%10 == 0 {
			carried = max(carried, len(carriedIDs(t, s)))
			checkHoldings(t, s)
			checkAnswers(t, s, leases)
			checkLists(t, s, leases)
		}
	}
	if own := len(ownIDs(t, s)); carried < 20 || own < 20 {
		t.Errorf("%d leases were carried and %d have rows: want both to occur", carried, own)
	}
	for _, l := range leases {
		wantLease(t, s, &l)
	}
}

// drawn returns an issuance that may have a lease that is carried.
func drawn(t *testing.T, random *rand.Rand) *issuance {
	i := newIssuance(t, random.IntN(5))
	i.request.Entitlement, i.lease.Issuer = fmt.Sprintf("e%d", random.IntN(3)), fmt.Sprintf("i%d", random.IntN(2))
	i.lease.Entitlement = i.request.Entitlement
	if random.IntN(5) == 0 {
		i.lease.Expires = testNow.Add(time.Duration(random.IntN(20)-5) * time.Minute)
	} else if random.IntN(4) == 0 {
		i.lease.Expires = testNow.Add(time.Duration(random.IntN(20)-5) * time.Minute)
		i.request.FirstExpires = i.lease.Expires
	}
	if random.IntN(5) == 0 {
		i.lease.ID = broker.NewLeaseID(testNow)
	}
	return &i
}

// checkLists compares lists with all leases, in pages of several sizes.
func checkLists(t *testing.T, s *Store, all map[broker.LeaseID]broker.Lease) {
	t.Helper()
	lists := 0
	for _, q := range []broker.LeaseQuery{{}, {Live: true}, {Under: "spiffe://acme.test/agent"}, {Under: "spiffe://acme.test/agent/a1", Live: true}, {TrustDomain: "acme.test", Live: true, Issuer: "i1"}, {Holder: "spiffe://acme.test/agent/a2"}, {TrustDomain: "acme.tes", Live: true}} {
		for _, limit := range []int{0, 1, 7} {
			q.Now, q.Limit = testNow, limit
			var want []broker.LeaseID
			for _, l := range all {
				if wantsLease(&q, &l) {
					want = append(want, l.ID)
				}
			}
			slices.SortFunc(want, func(a, b broker.LeaseID) int { return compareIDs(b, a) })
			if lists++; !slices.Equal(listAll(t, s, q), want) {
				t.Errorf("%+v: the list differs from the %d leases", q, len(want))
			}
		}
	}
	if lists != 21 {
		t.Errorf("read %d lists, want 21", lists)
	}
}

// A start reads only the requests since the first live lease that was carried when Sweep
// ran last, and finds all live leases.
func TestStartReadsFromTheFirstCarriedLease(t *testing.T) {
	path := filepath.Join(t.TempDir(), "broker.db")
	s := open(t, path)
	var list []issuance
	for n := range 20 {
		i := newIssuance(t, n)
		if n < 10 {
			i.lease.Expires, i.request.FirstExpires = testNow.Add(time.Minute), testNow.Add(time.Minute)
		}
		together(t, s, filing(&i))
		list = append(list, i)
	}
	late := testNow.Add(2 * time.Minute)
	if _, err := s.Sweep(t.Context(), late); err != nil {
		t.Fatal(err)
	}
	if got := listAll(t, s, broker.LeaseQuery{Live: true, Now: late}); len(got) != 10 {
		t.Errorf("%d leases are live, want 10", len(got))
	}
	for range 2 {
		if first := list[10].lease.ID; string(s.w.carriedSince) != string(first[:]) {
			t.Errorf("a start reads from %x, want %x", s.w.carriedSince, first)
		}
		// An Update that took long: its lease is older than the leases that a start reads.
		slow := newIssuance(t, 30)
		slow.request.ID, slow.lease.ID, slow.lease.Request = list[0].request.ID, list[0].lease.ID, list[0].request.ID
		slow.request.ID[15]++
		slow.lease.ID[15]++
		slow.lease.Request[15]++
		if err := s.View(t.Context(), func(tx broker.Tx) error { _, err := tx.Get(slow.lease.ID); return err }); errors.Is(err, broker.ErrNotFound) {
			together(t, s, filing(&slow))
		}
		if got := listAll(t, s, broker.LeaseQuery{Live: true, Now: late}); len(got) != 11 {
			t.Errorf("%d leases are live, want 11", len(got))
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open(t, path)
	}
}

// A database of version 11 has leases in rows of their own, and keeps them.
func TestLeasesOfVersion11(t *testing.T) {
	storetest.OnlySQLite(t, "databases from before PostgreSQL")
	path := filepath.Join(t.TempDir(), "broker.db")
	s := open(t, path)
	old := newIssuance(t, 1)
	s.w.carriedSince = []byte{0xff} // version 11 carries none
	together(t, s, filing(&old))
	setBack(t, s, 11)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, path)
	fresh := newIssuance(t, 2)
	together(t, s, filing(&fresh))
	if got := listAll(t, s, broker.LeaseQuery{Live: true, Now: testNow}); !slices.Equal(got, []broker.LeaseID{fresh.lease.ID, old.lease.ID}) {
		t.Errorf("listed %v, want %v and %v", got, fresh.lease.ID, old.lease.ID)
	}
	if own, carried := ownIDs(t, s), carriedIDs(t, s); !slices.Equal(own, []broker.LeaseID{old.lease.ID}) || !slices.Equal(carried, []broker.LeaseID{fresh.lease.ID}) {
		t.Errorf("%v have rows and %v are carried", own, carried)
	}
	if string(s.w.carriedSince) != string(old.request.ID[:]) {
		t.Errorf("a start reads from %x, want %x", s.w.carriedSince, old.request.ID)
	}
}

// A status list finds the tokens of leases that requests carry.
func TestStatusListsFindCarriedLeases(t *testing.T) {
	s := newStore(t)
	i := newIssuance(t, 1)
	opened := i.request.ID.Time()
	list := broker.StatusList{ID: broker.StatusListID(broker.NewLeaseID(testNow)), Opened: opened, Closes: opened.Add(time.Hour), Expires: opened.Add(2 * time.Hour)}
	put(t, s, &list)
	i.lease.Listed = broker.StatusPlace{List: list.ID, Index: 9}
	together(t, s, filing(&i))
	var found []broker.LeaseID
	err := s.ListedLeases(context.Background(), &list, broker.ListedQuery{Names: []string{i.lease.Holder}, Now: testNow, Catalogue: broker.Catalogue{i.lease.Entitlement: {}}},
		func(l *broker.Lease) { found = append(found, l.ID) })
	if err != nil || !slices.Equal(found, []broker.LeaseID{i.lease.ID}) {
		t.Errorf("found %v, %v", found, err)
	}
	if bits, _, err := s.EndedPlaces(t.Context(), &list); err != nil || bits[1]&2 != 0 {
		t.Errorf("the place is set before the lease ended (%v)", err)
	}
	if err := revoke(t, s, i.lease.ID); err != nil {
		t.Fatal(err)
	}
	s.statuses.forget()
	if bits, _, err := s.EndedPlaces(t.Context(), &list); err != nil || bits[1]&2 == 0 {
		t.Errorf("the place is not set after the lease ended (%v)", err)
	}
}

// After a quiet time, a start reads no requests whose leases have ended.
func TestQuietTimeMovesSince(t *testing.T) {
	s := newStore(t)
	t.Cleanup(s.holdings.forget) // a lease that Sweep dropped is read again
	i := newIssuance(t, 1)
	together(t, s, filing(&i))
	later := i.request.ID.Time().Add(2 * time.Hour)
	if _, err := s.Sweep(t.Context(), later); err != nil {
		t.Fatal(err)
	}
	if string(s.w.carriedSince) < string(i.request.ID[:]) {
		t.Errorf("a start reads from %x, want %x", s.w.carriedSince, i.request.ID)
	}
	next := newIssuanceAt(t, 2, later, 10*time.Minute)
	together(t, s, filing(&next))
	if got := carriedIDs(t, s); len(got) != 2 {
		t.Errorf("%d leases are carried, want 2", len(got))
	}
}
