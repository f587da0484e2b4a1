package store

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

const testDay = 24 * time.Hour

// idTime returns the time of the next IDs, which is later than testNow if another test has made
// later ones.
func idTime() time.Time { return broker.NewRequestID(testNow).Time() }

// pruneAt makes a pass at a time, and requires that it prunes as many rows.
func pruneAt(t *testing.T, s *Store, keep broker.Retention, now time.Time, want map[string]int64) {
	t.Helper()
	if _, err := s.Sweep(t.Context(), now); err != nil { // as the service does every 15 seconds
		t.Fatal(err)
	}
	got, err := s.NewPruner(keep, nil).Prune(t.Context(), now)
	if err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{audit.PrunedRequests, audit.PrunedLeases, audit.PrunedTexts} {
		if got[what] != want[what] {
			t.Errorf("at %s: pruned %d %s, want %d", now.Format(time.DateOnly), got[what], what, want[what])
		}
	}
}

// hasRows reports which of an issuance's rows exist.
func hasRows(t *testing.T, s *Store, i *issuance) (request, lease bool) {
	t.Helper()
	_, err := get(t, s, i.request.ID)
	_, err2 := get(t, s, i.lease.ID)
	for _, err := range []error{err, err2} {
		if err != nil && !errors.Is(err, broker.ErrNotFound) {
			t.Fatal(err)
		}
	}
	return err == nil, err2 == nil
}

// Only what ended long enough ago is deleted, and what is not over yet is looked at again.
func TestRetentionKeepsWhatIsNotOver(t *testing.T) {
	keep := broker.Retention{Requests: 30 * testDay, Leases: 30 * testDay}
	base := idTime()
	later := base.Add(60 * testDay) // when what is not over at first is over
	for name, c := range map[string]struct {
		change    func(s *Store, i *issuance) // before it is stored
		own       bool                        // the lease has a row of its own
		goes      bool                        // at first
		then      func(r *broker.Request, l *broker.Lease)
		goesAtEnd bool
	}{
		"carried":          {goes: true},
		"lease of its own": {own: true, goes: true},
		"denied by policy": {change: func(_ *Store, i *issuance) {
			i.request.Status, i.request.DeniedBy = broker.RequestDenied, broker.DeniedByPolicy
		}, own: true, goes: true},
		"withdrawn": {change: func(_ *Store, i *issuance) { i.request.Status = broker.RequestWithdrawn }, own: true, goes: true},
		"lapsed": {change: func(_ *Store, i *issuance) {
			i.request.Status, i.request.Lapses = broker.RequestPending, testNow.Add(time.Hour)
		}, own: true, goes: true},
		"pending": {change: func(_ *Store, i *issuance) {
			i.request.Status, i.request.Lapses = broker.RequestPending, later.Add(-31*testDay)
		}, own: true, goesAtEnd: true},
		"long grant": {change: func(_ *Store, i *issuance) { i.request.CollectUntil = base.Add(20 * testDay) }, own: true, goesAtEnd: true},
		"open review": {change: func(_ *Store, i *issuance) { i.request.BreakGlass, i.request.ReviewDue = true, testNow.Add(time.Hour) },
			own: true, then: func(r *broker.Request, _ *broker.Lease) { r.Reviewed = testNow.Add(2 * time.Hour) }, goesAtEnd: true},
		"revocation that fails": {change: func(_ *Store, i *issuance) {
			i.lease.Status, i.lease.Revocation, i.lease.EndAsked, i.lease.LastError = broker.LeaseRevoking, broker.RevokedPending, testNow, "issuer_unavailable"
			i.lease.NextTry = testNow.Add(time.Minute)
		}, own: true, then: func(_ *broker.Request, l *broker.Lease) {
			l.Status, l.Ended, l.Revocation = broker.LeaseRevoked, testNow.Add(time.Hour), broker.RevokedImmediate
		}, goesAtEnd: true},
		"never revoked": {change: func(_ *Store, i *issuance) { i.lease.Revocation = broker.RevokedNever }, own: true},
		"rotation unknown": {change: func(_ *Store, i *issuance) {
			i.lease.Status, i.lease.Ended, i.lease.Revocation = broker.LeaseRevoked, testNow, broker.RevokedAtRotation
		}, own: true},
		"in an access review": {change: func(s *Store, i *issuance) {
			item := &broker.ReviewItem{ReviewItemKey: broker.ReviewItemKey{Number: 1}, Permission: broker.PermissionKey{Kind: broker.PermissionGrant, Name: i.request.ID.String()},
				Reviewer: broker.Reviewer{Group: "dba"}, Status: broker.ReviewOpen}
			mustPut(t, s, item)
		}, own: false},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			t.Cleanup(s.holdings.forget) // leases that Sweep dropped are read again
			i := newIssuance(t, 1)
			if c.change != nil {
				c.change(s, &i)
			}
			if c.own {
				mustPut(t, s, &i.request)
				mustPut(t, s, &i.lease)
			} else if err := i.store(t.Context(), s); err != nil {
				t.Fatal(err)
			}
			size := s.Head().Size
			rows := int64(0)
			if c.own {
				rows = 1
			}
			want := map[string]int64{}
			if c.goes {
				want = map[string]int64{audit.PrunedRequests: 1, audit.PrunedLeases: rows}
			}
			// The clock of the first pass is just past the period of what ended at once.
			pruneAt(t, s, keep, base.Add(38*testDay), want)
			checkKept(t, s, &i, !c.goes, size)
			if c.then != nil {
				together(t, s, replacing(i.request.ID, func(r *broker.Request) { c.then(r, &broker.Lease{}) }))
				together(t, s, replacing(i.lease.ID, func(l *broker.Lease) { c.then(&broker.Request{}, l) }))
			}
			if want = (map[string]int64{}); c.goesAtEnd {
				want = map[string]int64{audit.PrunedRequests: 1, audit.PrunedLeases: rows}
			}
			pruneAt(t, s, keep, later, want)
			checkKept(t, s, &i, !c.goes && !c.goesAtEnd, size)
		})
	}
}

// checkKept checks which rows of an issuance exist, and that records state what does not.
func checkKept(t *testing.T, s *Store, i *issuance, kept bool, size int64) {
	t.Helper()
	if request, lease := hasRows(t, s, i); request != kept || lease != kept {
		t.Errorf("request kept: %t, lease kept: %t, want %t", request, lease, kept)
	}
	records := 0
	for n := size; n < s.Head().Size; n++ {
		item, err := s.Record(t.Context(), n)
		if err != nil {
			t.Fatal(err)
		}
		r, err := audit.Decode(item.Leaf)
		if err != nil || r.Kind != audit.RetentionPruned {
			t.Fatalf("record %d is %s (%v)", n, r.Kind, err)
		}
		if r.Pruned.Rows != 1 || r.Pruned.From.After(r.Pruned.Until) || !r.Pruned.Until.Before(r.Pruned.Before) {
			t.Errorf("got %+v", r.Pruned)
		}
		records++
	}
	if !kept && records == 0 {
		t.Error("no record states what was deleted")
	}
	if kept && records > 0 {
		t.Errorf("%d records state a deletion", records)
	}
}

func mustPut(t *testing.T, s *Store, row broker.Row) {
	t.Helper()
	together(t, s, &member{reads: []broker.Key{row.Key()}, f: func(tx broker.Tx) error {
		tx.Put(row)
		return nil
	}})
}

// withTexts gives an issuance texts, in its rows and in its record.
func withTexts(t *testing.T, i *issuance) {
	t.Helper()
	r := *i.entry.Record()
	request := *r.Request
	var justification, ticket audit.Opening
	request.Justification, justification = audit.Commit("the customer Ana Lima cannot log in")
	request.Ticket, ticket = audit.Commit("HELP-7")
	r.Request, r.Openings = &request, map[string]audit.Opening{"justification": justification, "ticket": ticket}
	entry, err := r.Entry()
	if err != nil {
		t.Fatal(err)
	}
	i.entry = entry
	i.request.Justification, i.request.Ticket = justification.Text, ticket.Text
	i.request.Salts = map[string][16]byte{"justification": justification.Salt, "ticket": ticket.Salt}
	i.request.Parameters, i.lease.Parameters = map[string]string{"customer": "Ana Lima"}, map[string]string{"customer": "Ana Lima"}
}

// Texts go from the log and from rows, their hashes stay, and the log still verifies.
func TestRetentionErasesTexts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "broker.db")
	s := open(t, path)
	base := s.Head().Time
	carried, own, pending := newIssuance(t, 1), newIssuance(t, 2), newIssuance(t, 3)
	for _, i := range []*issuance{&carried, &own, &pending} {
		withTexts(t, i)
	}
	pending.request.Status, pending.request.Lapses = broker.RequestPending, base.Add(20*testDay)
	for _, i := range []*issuance{&carried, &own, &pending} {
		if err := i.store(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	together(t, s, replacing(own.lease.ID, func(l *broker.Lease) { l.Status, l.Ended = broker.LeaseRevoked, testNow }))
	before := map[int64]audit.Item{}
	for n := range s.Head().Size {
		before[n] = mustRecord(t, s, n)
	}
	keep := broker.Retention{Texts: 7 * testDay}
	s.w.now = func() time.Time { return base.Add(10 * testDay) }
	pruneAt(t, s, keep, base.Add(10*testDay), map[string]int64{audit.PrunedTexts: 2})
	for n, was := range before {
		now := mustRecord(t, s, n)
		if string(now.Leaf) != string(was.Leaf) || string(now.Hashes) != string(was.Hashes) {
			t.Errorf("record %d changed", n)
		}
	}
	wantTexts(t, s, &carried, false)
	wantTexts(t, s, &own, false)
	wantTexts(t, s, &pending, true)
	if got := carriedIDs(t, s); len(got) != 1 {
		t.Errorf("%d requests carry a lease, want 1", len(got))
	}
	// The request that was pending has lapsed.
	s.w.now = func() time.Time { return base.Add(30 * testDay) }
	pruneAt(t, s, keep, base.Add(30*testDay), map[string]int64{audit.PrunedTexts: 1})
	wantTexts(t, s, &pending, false)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, path) // which verifies the tree
}

// A new log does not make the records of the one before older than they are.
func TestRetentionKeepsRecentTextsOfAnEarlierLog(t *testing.T) {
	s := newStore(t)
	now := audit.Millis(s.Head().Time)
	reason, opening := audit.Commit("Ana Lima's laptop is lost")
	appendRecord(t, s, audit.Record{Kind: audit.PolicyLoaded, Rules: &audit.RulesFacts{}, End: &audit.EndFacts{How: "revoked", Reason: reason}, Openings: map[string]audit.Opening{"reason": opening}})
	n := s.Head().Size - 1
	openings := func() (text string) {
		t.Helper()
		if err := s.readers.QueryRowContext(t.Context(), "SELECT COALESCE(openings, '') FROM records WHERE id = ?", recordID(1, n)).Scan(&text); err != nil {
			t.Fatal(err)
		}
		return text
	}
	if err := newEpoch(t.Context(), s, "next", testPublic); err != nil {
		t.Fatal(err)
	}
	keep := broker.Retention{Texts: 7 * testDay}
	pruneAt(t, s, keep, now.Add(testDay), map[string]int64{})
	if openings() == "" {
		t.Error("the text is gone after a day")
	}
	s.w.now = func() time.Time { return now.Add(20 * testDay) }
	pruneAt(t, s, keep, now.Add(20*testDay), map[string]int64{audit.PrunedTexts: 1})
	if openings() != "" {
		t.Error("the text is still there after 20 days")
	}
}

func mustRecord(t *testing.T, s *Store, n int64) audit.Item {
	t.Helper()
	item, err := s.Record(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	return item
}

// wantTexts checks whether the texts of an issuance are anywhere.
func wantTexts(t *testing.T, s *Store, i *issuance, want bool) {
	t.Helper()
	item := mustRecord(t, s, i.entry.Index)
	if got := strings.Contains(string(item.Openings), "Ana Lima"); got != want {
		t.Errorf("the record's openings have the text: %t, want %t", got, want)
	}
	request, err := get(t, s, i.request.ID)
	if err != nil {
		t.Fatal(err)
	}
	lease, err := get(t, s, i.lease.ID)
	if err != nil {
		t.Fatal(err)
	}
	r, l := request.(*broker.Request), lease.(*broker.Lease)
	if got := strings.Contains(fmt.Sprintf("%+v %+v", r, l), "Ana Lima") || len(r.Salts) > 0; got != want || r.Erased == want {
		t.Errorf("the rows have the text: %t, want %t; erased: %t", got, want, r.Erased)
	}
	if r.Digest != i.request.Digest || len(r.Records) != 1 || l.Holder != i.lease.Holder || !l.Expires.Equal(i.lease.Expires) {
		t.Errorf("got %+v, %+v", r, l)
	}
}

// A pass goes over many rows in steps, and while it does, others are issued.
func TestRetentionPrunesInSteps(t *testing.T) {
	s := newStore(t)
	t.Cleanup(s.holdings.forget)
	const n = 3 * mostStep
	for from := 0; from < n; from += 256 {
		var group []*member
		for k := range 256 {
			i := newIssuance(t, from+k)
			group = append(group, filing(&i))
		}
		together(t, s, group...)
	}
	var steps []int64
	p := s.NewPruner(broker.Retention{Requests: 30 * testDay, Leases: 30 * testDay}, func(_ string, rows int64) {
		steps = append(steps, rows)
		i := newIssuance(t, len(steps))
		if err := i.store(t.Context(), s); err != nil {
			t.Error(err)
		}
	})
	now := idTime().Add(60 * testDay)
	if _, err := s.Sweep(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Prune(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	sum := int64(0)
	for _, rows := range steps {
		if sum += rows; rows > mostStep {
			t.Errorf("a step pruned %d rows, want at most %d", rows, mostStep)
		}
	}
	if sum < n || len(steps) < 3 {
		t.Errorf("%d steps pruned %d rows, want at least %d", len(steps), sum, n)
	}
}

// A row that changes between the decision and the group is kept.
func TestRetentionKeepsRowsThatChange(t *testing.T) {
	s := newStore(t)
	i := newIssuance(t, 1)
	if err := i.store(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	p := s.NewPruner(broker.Retention{Requests: 30 * testDay}, nil)
	now := idTime().Add(60 * testDay)
	w := p.requests(now)
	judge := w.judge
	w.judge = func(v *viewTx, rows []*prunable) error {
		err := judge(v, rows)
		together(t, s, replacing(i.request.ID, func(r *broker.Request) { r.Version++ }))
		return err
	}
	if n, err := p.walk(t.Context(), w); n != 0 || err != nil {
		t.Errorf("pruned %d (%v), want 0", n, err)
	}
	if request, _ := hasRows(t, s, &i); !request {
		t.Error("the request is gone")
	}
	w.judge = judge
	pruneAt(t, s, p.keep, now, map[string]int64{})
}
