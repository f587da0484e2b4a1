package store

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"accessbroker.internal/broker"
)

// put writes rows without records.
func put(t testing.TB, s *Store, rows ...broker.Row) {
	t.Helper()
	err := s.Update(t.Context(), nil, func(tx broker.Tx) error {
		for _, r := range rows {
			tx.Put(r)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// leaseIn stores a lease and returns its id.
func leaseIn(t *testing.T, s *Store, holder string, status broker.LeaseStatus, change func(*broker.Lease)) broker.LeaseID {
	t.Helper()
	l := newIssuance(t, 0).lease
	l.Holder, l.Status = holder, status
	if change != nil {
		change(&l)
	}
	put(t, s, &l)
	return l.ID
}

// listAll reads all pages, newest first.
func listAll(t *testing.T, s *Store, q broker.LeaseQuery) (ids []broker.LeaseID) {
	t.Helper()
	for {
		err := s.View(t.Context(), func(tx broker.Tx) error {
			page, next, err := tx.Leases(q)
			for _, l := range page {
				ids = append(ids, l.ID)
			}
			q.Before = next
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if q.Before.IsZero() {
			return ids
		}
	}
}

func TestListsOfLeases(t *testing.T) {
	s := newStore(t)
	expired := func(l *broker.Lease) { l.Expires = testNow }
	vault := func(l *broker.Lease) {
		l.Issuer, l.Entitlement, l.Revocation = "vault", "orders-db-ro", broker.RevokedImmediate
	}
	var (
		a       = leaseIn(t, s, "spiffe://acme.test/agent/a", broker.LeaseActive, nil)
		b       = leaseIn(t, s, "spiffe://acme.test/agent/b", broker.LeaseActive, vault)
		gone    = leaseIn(t, s, "spiffe://acme.test/agent/a", broker.LeaseRevoked, nil)
		over    = leaseIn(t, s, "spiffe://acme.test/agent/a", broker.LeaseActive, expired)
		issuing = leaseIn(t, s, "spiffe://acme.test/agent", broker.LeaseIssuing, func(l *broker.Lease) { l.Deadline = testNow })
		ending  = leaseIn(t, s, "spiffe://acme.test/agentx", broker.LeaseRevoking, func(l *broker.Lease) { l.NextTry = testNow.Add(time.Second); expired(l) })
		owed    = leaseIn(t, s, "spiffe://acme.test/agent/b", broker.LeaseActive, func(l *broker.Lease) { vault(l); expired(l) })
		foreign = leaseIn(t, s, "spiffe://acme.test.evil/agent/a", broker.LeaseActive, nil)
	)
	first := broker.RequestID{}
	if err := s.View(t.Context(), func(tx broker.Tx) error {
		row, err := tx.Get(a)
		first = row.(*broker.Lease).Request
		return err
	}); err != nil {
		t.Fatal(err)
	}
	type ids = []broker.LeaseID
	for _, test := range []struct {
		q    broker.LeaseQuery
		want ids
	}{
		{broker.LeaseQuery{}, ids{foreign, owed, ending, issuing, over, gone, b, a}},
		{broker.LeaseQuery{Live: true}, ids{foreign, owed, ending, issuing, b, a}},
		{broker.LeaseQuery{Holder: "spiffe://acme.test/agent/a"}, ids{over, gone, a}},
		{broker.LeaseQuery{Holder: "spiffe://acme.test/agent/a", Live: true}, ids{a}},
		{broker.LeaseQuery{Under: "spiffe://acme.test/agent"}, ids{owed, issuing, over, gone, b, a}},
		{broker.LeaseQuery{Under: "spiffe://acme.test/agent", Live: true}, ids{owed, issuing, b, a}},
		{broker.LeaseQuery{TrustDomain: "acme.test"}, ids{owed, ending, issuing, over, gone, b, a}},
		{broker.LeaseQuery{TrustDomain: "acme.test", Live: true}, ids{owed, ending, issuing, b, a}},
		{broker.LeaseQuery{Entitlement: "orders-db-ro"}, ids{owed, b}},
		{broker.LeaseQuery{Entitlement: "orders-db-ro", Live: true}, ids{owed, b}},
		{broker.LeaseQuery{Issuer: "tickets", Live: true}, ids{foreign, ending, issuing, a}},
		{broker.LeaseQuery{Request: first}, ids{a}},
		{broker.LeaseQuery{Request: first, Live: true}, ids{a}},
		{broker.LeaseQuery{Before: gone}, ids{b, a}},
		{broker.LeaseQuery{Before: issuing, Live: true}, ids{b, a}},
		{broker.LeaseQuery{Due: true}, ids{issuing, owed}},
		{broker.LeaseQuery{Due: true, Now: testNow.Add(time.Minute)}, ids{issuing, owed, ending}},
		{broker.LeaseQuery{Due: true, Now: testNow.Add(time.Hour)}, ids{issuing, owed, ending, b}},
		{broker.LeaseQuery{Due: true, Now: testNow.Add(-time.Millisecond)}, nil},
		{broker.LeaseQuery{Due: true, Issuer: "tickets", Now: testNow.Add(time.Hour)}, ids{issuing, ending}},
		{broker.LeaseQuery{Due: true, Issuer: "unknown", Now: testNow.Add(time.Hour)}, nil},
	} {
		if test.q.Now.IsZero() {
			test.q.Now = testNow
		}
		for _, limit := range []int{0, 1, 2} {
			want := test.want
			if test.q.Limit = limit; test.q.Due && limit > 0 {
				want = want[:min(limit, len(want))]
			}
			if got := listAll(t, s, test.q); !slices.Equal(got, want) {
				t.Errorf("%+v gave %v, want %v", test.q, got, want)
			}
		}
	}
}

func TestListsOfRequests(t *testing.T) {
	s := newStore(t)
	var ids []broker.RequestID
	for n, status := range []broker.RequestStatus{broker.RequestPending, broker.RequestPending, broker.RequestApproved, broker.RequestDenied} {
		r := newIssuance(t, n).request
		r.Status = status
		if status == broker.RequestPending {
			r.Lapses = testNow.Add(time.Duration(n) * time.Hour) // the first has lapsed
		}
		put(t, s, &r)
		ids = append(ids, r.ID)
	}
	for _, test := range []struct {
		q    broker.RequestQuery
		want []int
	}{
		{broker.RequestQuery{}, []int{3, 2, 1, 0}},
		{broker.RequestQuery{Status: broker.RequestPending}, []int{1}},
		{broker.RequestQuery{Status: broker.RequestLapsed}, []int{0}},
		{broker.RequestQuery{Status: broker.RequestApproved}, []int{2}},
		{broker.RequestQuery{Requester: "spiffe://acme.test/agent/a3"}, []int{3}},
		{broker.RequestQuery{Entitlement: "other"}, nil},
		{broker.RequestQuery{Before: ids[2]}, []int{1, 0}},
	} {
		test.q.Now = testNow
		var got []int
		err := s.View(t.Context(), func(tx broker.Tx) error {
			page, next, err := tx.Requests(test.q)
			for _, r := range page {
				got = append(got, slices.Index(ids, r.ID))
			}
			if !next.IsZero() {
				t.Errorf("%+v has more pages", test.q)
			}
			return err
		})
		if err != nil || !slices.Equal(got, test.want) {
			t.Errorf("%+v gave %v, %v; want %v", test.q, got, err, test.want)
		}
	}
	if counts, err := s.CountPending(t.Context(), testNow); err != nil || counts != 1 {
		t.Errorf("pending: %v, %v", counts, err)
	}
}

// The requests of a person are found by an index, newest first, also those that were
// stored before the index existed.
func TestListsOfPeople(t *testing.T) {
	path := filepath.Join(t.TempDir(), "broker.db")
	s := open(t, path)
	var want []broker.RequestID
	for n := range 30 {
		r := newIssuance(t, n).request
		if n%3 == 0 {
			r.Requester = broker.Identity{ID: "login/ana", Kind: broker.KindPerson}
			want = append(want, r.ID)
		}
		put(t, s, &r)
	}
	slices.Reverse(want)
	check := func(when string) {
		t.Helper()
		var got []broker.RequestID
		q := broker.RequestQuery{Requester: "login/ana", Now: testNow, Limit: 4}
		for more := true; more; more = !q.Before.IsZero() {
			err := s.View(t.Context(), func(tx broker.Tx) error {
				page, next, err := tx.Requests(q)
				for _, r := range page {
					got = append(got, r.ID)
				}
				q.Before = next
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", when, got, want)
		}
	}
	check("from the start")
	if s.Shared() {
		return // no database of PostgreSQL is from before version 9
	}
	setBack(t, s, 8)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, path)
	check("after the upgrade")
}

// The requests that lapse last are in the middle of the list.
func TestPendingRequestsAreListedNewestFirst(t *testing.T) {
	s := newStore(t)
	var want []broker.RequestID
	for n := range 30 {
		r := broker.Request{ID: broker.NewRequestID(testNow), Version: 1, Status: broker.RequestPending, Lapses: testNow.Add(time.Duration(1+n*7%30) * time.Minute)}
		put(t, s, &r)
		want = append(want, r.ID)
	}
	slices.Reverse(want)
	var got []broker.RequestID
	q := broker.RequestQuery{Status: broker.RequestPending, Now: testNow, Limit: 7}
	for more := true; more; more = !q.Before.IsZero() {
		err := s.View(t.Context(), func(tx broker.Tx) error {
			page, next, err := tx.Requests(q)
			for _, r := range page {
				got = append(got, r.ID)
			}
			q.Before = next
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("listed\n%v, want\n%v", got, want)
	}
}

// There are more rows than one call reads, and the only match is the last one.
func TestALongListIsReadInParts(t *testing.T) {
	s := newStore(t)
	wanted := leaseIn(t, s, "spiffe://acme.test/first", broker.LeaseActive, nil)
	fillLeases(t, s, maxScan+10)
	q := broker.LeaseQuery{Holder: "spiffe://acme.test/first", Now: testNow}
	var parts [][]*broker.Lease
	for range 2 {
		err := s.View(t.Context(), func(tx broker.Tx) error {
			page, next, err := tx.Leases(q)
			parts, q.Before = append(parts, page), next
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(parts[0]) != 0 || len(parts[1]) != 1 || parts[1][0].ID != wanted || !q.Before.IsZero() {
		t.Errorf("read %d and %d leases; more: %v", len(parts[0]), len(parts[1]), !q.Before.IsZero())
	}
}

func fillLeases(t *testing.T, s *Store, n int) {
	t.Helper()
	rows := make([]broker.Row, n)
	for i := range rows {
		l := newIssuance(t, i).lease
		rows[i] = &l
	}
	put(t, s, rows...)
}

func TestSweep(t *testing.T) {
	s := newStore(t)
	later := testNow.Add(48 * time.Hour)
	for n := range sweepBatch + 3 {
		put(t, s, &broker.Counter{CounterKey: broker.CounterKey{Policy: fmt.Sprint(n)}, Expires: testNow}, &broker.Notice{ID: broker.NoticeID{byte(n >> 8), byte(n)}, Channel: "slack:dba"})
	}
	kept := []broker.Row{
		&broker.Notice{ID: broker.NoticeID{0xff}, Channel: "slack:dba", Due: testNow},
		&broker.Counter{CounterKey: broker.CounterKey{Policy: "kept"}, Expires: later},
		&broker.Idempotency{IdempotencyID: broker.IdempotencyID{1}, Created: later},
		&broker.OpenAsk{AskKey: broker.AskKey{1}, Expires: later},
	}
	put(t, s, kept...)
	put(t, s, &broker.Idempotency{IdempotencyID: broker.IdempotencyID{2}, Created: testNow.Add(-24 * time.Hour)}, &broker.OpenAsk{AskKey: broker.AskKey{2}, Expires: testNow})
	live := leaseIn(t, s, "spiffe://acme.test/a", broker.LeaseActive, func(l *broker.Lease) { l.Expires = later })
	ended := leaseIn(t, s, "spiffe://acme.test/a", broker.LeaseActive, func(l *broker.Lease) { l.Expires = testNow })
	n, err := s.Sweep(t.Context(), testNow)
	if want := int64(2*(sweepBatch+3) + 2 + 1); err != nil || n != want {
		t.Errorf("swept %d rows, %v; want %d", n, err, want)
	}
	for _, r := range kept {
		if _, err := get(t, s, r.Key()); err != nil {
			t.Errorf("reading %v: %v", r.Key(), err)
		}
	}
	if got := listAll(t, s, broker.LeaseQuery{Live: true, Now: testNow}); !slices.Equal(got, []broker.LeaseID{live}) {
		t.Errorf("live: %v", got)
	}
	if _, err := get(t, s, ended); err != nil {
		t.Errorf("a lease that ended is kept: %v", err)
	}
}

// Stuck leases are counted no matter how many others are due before them, and when
// their next attempt is.
func TestCountStuck(t *testing.T) {
	s := newStore(t)
	rows := make([]broker.Row, 1500)
	for i := range rows {
		l := newIssuance(t, i).lease
		l.Status, l.Revocation, l.Expires = broker.LeaseActive, broker.RevokedImmediate, testNow.Add(time.Minute)
		rows[i] = &l
	}
	put(t, s, rows...)
	asked := func(ago, next time.Duration) func(*broker.Lease) {
		return func(l *broker.Lease) {
			l.EndAsked, l.NextTry, l.LastError = testNow.Add(-ago), testNow.Add(next), "issuer_unavailable"
		}
	}
	leaseIn(t, s, "spiffe://acme.test/a", broker.LeaseRevoking, asked(broker.StuckAfter, 2*time.Minute))
	leaseIn(t, s, "spiffe://acme.test/a", broker.LeaseRevoking, asked(time.Hour, 5*time.Minute))
	leaseIn(t, s, "spiffe://acme.test/a", broker.LeaseRevoking, asked(broker.StuckAfter-time.Second, time.Minute))
	was := rows[0].(*broker.Lease) // it was active, and is now being revoked
	was.Status, was.EndAsked, was.NextTry, was.LastError = broker.LeaseRevoking, testNow.Add(-time.Hour), testNow, "issuer_unavailable"
	put(t, s, was)
	if n, err := s.CountStuck(t.Context(), testNow); n != 3 || err != nil {
		t.Errorf("%d are stuck, %v; want 3", n, err)
	}
	was.Status, was.Ended = broker.LeaseAbandoned, testNow
	put(t, s, was)
	if n, err := s.CountStuck(t.Context(), testNow); n != 2 || err != nil {
		t.Errorf("after one was abandoned, %d are stuck, %v; want 2", n, err)
	}
	if live := listAll(t, s, broker.LeaseQuery{Live: true, Now: testNow.Add(1000 * time.Hour)}); len(live) < 3 {
		t.Errorf("leases that are being revoked are not live: %v", live)
	}
}

func TestBlocksAndKeys(t *testing.T) {
	s := newStore(t)
	a := &broker.Block{Selector: broker.BlockKey{Kind: "holder", Name: "a"}, Since: testNow}
	b := &broker.Block{Selector: broker.BlockKey{Kind: "holder", Name: "b"}, Since: testNow, Lifted: testNow}
	put(t, s, a, b)
	list, err := s.Blocks(t.Context())
	if err != nil || len(list) != 1 || list[0].Selector != a.Selector {
		t.Errorf("in force: %v, %v", list, err)
	}
	// Updates see all blocks, lifted ones included.
	err = s.Update(t.Context(), []broker.Key{a.Selector, b.Selector}, func(tx broker.Tx) error {
		row, err := tx.Get(b.Selector)
		if err != nil || !row.(*broker.Block).Lifted.Equal(testNow) {
			t.Errorf("the lifted block: %+v, %v", row, err)
		}
		_, err = tx.Get(a.Selector)
		return err
	})
	if err != nil {
		t.Error(err)
	}
	put(t, s, &broker.SigningKey{ID: broker.SigningKeyID{Purpose: "token", ID: "2"}}, &broker.SigningKey{ID: broker.SigningKeyID{Purpose: "token", ID: "1"}})
	keys, err := s.SigningKeys(t.Context(), "token")
	if err != nil || len(keys) != 2 || keys[0].ID.ID != "1" {
		t.Errorf("keys: %v, %v", keys, err)
	}
}

// A returned lease whose credential still works is found until the credential
// expires or is denied.
func TestOutlivingLeases(t *testing.T) {
	s := newStore(t)
	const holder = "spiffe://acme.test/agent/a"
	atExpiry := func(l *broker.Lease) { l.Revocation, l.Ended = broker.RevokedAtExpiry, testNow }
	outlives := leaseIn(t, s, holder, broker.LeaseRevoked, atExpiry)
	leaseIn(t, s, holder, broker.LeaseRevoked, func(l *broker.Lease) { l.Revocation = broker.RevokedImmediate })
	leaseIn(t, s, holder, broker.LeaseActive, func(l *broker.Lease) { l.Revocation = broker.RevokedAtExpiry })
	q := broker.LeaseQuery{Under: "spiffe://acme.test/agent", Outliving: true, Now: testNow}
	if got := listAll(t, s, q); !slices.Equal(got, []broker.LeaseID{outlives}) {
		t.Errorf("%v outlive their end, want %v", got, outlives)
	}
	l := newIssuance(t, 0).lease
	l.ID, l.Holder, l.Status, l.NextTry = outlives, holder, broker.LeaseRevoking, testNow.Add(time.Minute)
	put(t, s, &l)
	indexed := func() (n int) {
		if err := s.readers.QueryRowContext(t.Context(), "SELECT count(*) FROM lingering").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := indexed(); n != 0 {
		t.Errorf("after the denial, %d index rows are left", n)
	}
	if got := listAll(t, s, q); len(got) != 0 {
		t.Errorf("after the denial, %v outlive their end", got)
	}
	l.Status, l.Revocation, l.Ended = broker.LeaseRevoked, broker.RevokedAtExpiry, testNow
	put(t, s, &l)
	q.Now = l.Expires
	if got := listAll(t, s, q); len(got) != 0 {
		t.Errorf("after their expiry, %v outlive their end", got)
	}
	if _, err := s.Sweep(t.Context(), l.Expires); err != nil {
		t.Fatal(err)
	}
	if n := indexed(); n != 0 {
		t.Errorf("after their expiry, %d index rows are left", n)
	}
}

func TestDueLeasesCanBeSkipped(t *testing.T) {
	s := newStore(t)
	var all []broker.LeaseID
	for n := range 5 {
		all = append(all, leaseIn(t, s, "spiffe://acme.test/a", broker.LeaseRevoking, func(l *broker.Lease) { l.NextTry = testNow.Add(time.Duration(n) * time.Second) }))
	}
	for _, issuer := range []string{"", "tickets"} {
		q := broker.LeaseQuery{Due: true, Issuer: issuer, Skip: 2, Now: testNow.Add(time.Hour)}
		if got := listAll(t, s, q); !slices.Equal(got, all[2:]) {
			t.Errorf("of issuer %q: %v, want %v", issuer, got, all[2:])
		}
	}
}

// The index keeps milliseconds; the body decides.
func TestALeaseIsNotDueAFractionTooEarly(t *testing.T) {
	s := newStore(t)
	id := leaseIn(t, s, "spiffe://acme.test/a", broker.LeaseRevoking, func(l *broker.Lease) { l.NextTry = testNow.Add(500 * time.Microsecond) })
	for after, want := range map[time.Duration][]broker.LeaseID{0: nil, time.Millisecond: {id}} {
		if got := listAll(t, s, broker.LeaseQuery{Due: true, Now: testNow.Add(after)}); !slices.Equal(got, want) {
			t.Errorf("after %s, %v are due, want %v", after, got, want)
		}
	}
}
