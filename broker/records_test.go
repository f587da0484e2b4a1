package broker_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// kindsOf returns the kinds of the records that RecordsOf lists.
func (w *world) kindsOf(t *testing.T, id broker.RequestID, now time.Time) (kinds []audit.Kind, whole bool) {
	t.Helper()
	ids, whole, err := w.broker.RecordsOf(t.Context(), broker.Self(agent(now), now), id)
	if err != nil {
		t.Fatal(err)
	}
	records := w.records(t)
	for _, id := range ids {
		kinds = append(kinds, records[id.Index()].Kind)
	}
	return kinds, whole
}

func TestRecordsOfARequest(t *testing.T) {
	w := peopleWorld(t, `@approval("1 of support")`)
	// Ids are monotonic in a process and leases are found by the time in their ids, so
	// this time is later than any in another test.
	now := noon.AddDate(0, 0, 4)
	r := w.askAt(t, read("tickets:close"), now)
	w.askAt(t, read("tickets:close", "tickets:comment"), now) // another request
	if _, err := w.vote(t, approver("cleo", now), r, yes, now); err != nil {
		t.Fatal(err)
	}
	first, err := w.broker.Collect(t.Context(), broker.Self(agent(now), now), r.ID, broker.IdempotencyKey{})
	if err != nil {
		t.Fatal(err)
	}
	second, err := w.broker.Renew(t.Context(), broker.Self(agent(now), now), first.Lease.ID, broker.IdempotencyKey{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.broker.Revoke(t.Context(), broker.Self(agent(now), now), second.Lease.ID, "done"); err != nil {
		t.Fatal(err)
	}
	want := []audit.Kind{audit.RequestCreated, audit.RequestApproved, audit.LeaseIssued, audit.LeaseIssued, audit.LeaseRevoked}
	if got, whole := w.kindsOf(t, r.ID, now); !slices.Equal(got, want) || !whole {
		t.Errorf("listed %v (whole: %t), want %v", got, whole, want)
	}
	stranger := workload("spiffe://acme.test/stranger", now)
	if ids, _, err := w.broker.RecordsOf(t.Context(), broker.Self(stranger, now), r.ID); !errors.Is(err, broker.ErrNotFound) || ids != nil {
		t.Errorf("a stranger reads %v, %v", ids, err)
	}
}

// Refusals to collect change no state but are listed: the first of a minute, and the
// count of the others. A caller in a loop cannot fill the row.
func TestRefusalsAreListedUpToABound(t *testing.T) {
	w := peopleWorld(t, `@approval("1 of support")`)
	ask := read("tickets:close")
	ask.Duration = 4 * time.Hour
	r := w.ask(t, ask)
	if _, err := w.vote(t, approver("cleo", noon), r, yes, noon); err != nil {
		t.Fatal(err)
	}
	w.adopt(t, strings.Replace(closePolicies(``), `"agents-close")  permit`, `"agents-close")  forbid`, 1), testGroups)
	refused := func(now time.Time) {
		t.Helper()
		if _, err := w.broker.Collect(t.Context(), broker.Self(agent(now), now), r.ID, broker.IdempotencyKey{}); !errors.Is(err, broker.ErrNoLongerAllowed) {
			t.Fatal(err)
		}
	}
	refused(noon)
	refused(noon)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.broker.Run(ended); err != nil { // counts the repeated refusal
		t.Fatal(err)
	}
	want := []audit.Kind{audit.RequestCreated, audit.RequestApproved, audit.CollectRefused, audit.CollectRefused}
	if got, whole := w.kindsOf(t, r.ID, noon); !slices.Equal(got, want) || !whole {
		t.Errorf("listed %v (whole: %t), want %v", got, whole, want)
	}
	for n := range broker.MaxListed {
		refused(noon.Add(time.Duration(n+1) * 2 * time.Minute))
	}
	now := noon.Add(210 * time.Minute)
	if got, whole := w.kindsOf(t, r.ID, now); len(got) != broker.MaxListed || whole {
		t.Errorf("%d records are listed (whole: %t), want %d", len(got), whole, broker.MaxListed)
	}
	if logged := len(w.kinds(t)); logged < broker.MaxListed+4 {
		t.Errorf("the log has %d records: refusals past the bound are missing", logged)
	}
}

// checkLists checks that every stored request lists the records about it and
// its leases, and no others.
func (w *world) checkLists(t *testing.T, records []audit.Record) {
	t.Helper()
	requestOf, lists, full := map[string]string{}, map[string][]broker.RecordID{}, map[string]bool{}
	for _, l := range w.leases(t) {
		request := l.Request.String()
		requestOf[l.ID.String()] = request
		lists[request] = append(lists[request], l.Records...)
		full[request] = full[request] || len(l.Records) >= broker.MaxListed
	}
	about := func(r *audit.Record) string {
		switch {
		case r.Request != nil:
			return r.Request.ID
		case r.Lease != nil:
			return requestOf[r.Lease.ID]
		}
		return ""
	}
	err := w.store.View(context.Background(), func(tx broker.Tx) error { // in cleanups, too
		for _, r := range records {
			id, err := broker.ParseRequestID(about(&r))
			if err != nil {
				continue // not about a request
			}
			row, err := tx.Get(id)
			if errors.Is(err, broker.ErrNotFound) {
				delete(lists, id.String()) // refused when it was made, and never stored
				continue
			}
			if err != nil {
				return err
			}
			request := row.(*broker.Request)
			lists[id.String()] = append(lists[id.String()], request.Records...)
			full[id.String()] = full[id.String()] || len(request.Records) >= broker.MaxListed
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range records {
		list, stored := lists[about(&r)]
		if stored && !slices.Contains(list, broker.NewRecordID(1, int64(i))) && !(full[about(&r)] && (r.Kind == audit.CollectRefused || r.Kind == audit.LeaseCalled)) {
			t.Errorf("record %d (%s) is not listed by its request %s", i, r.Kind, about(&r))
		}
	}
	for request, list := range lists {
		for _, id := range list {
			if about(&records[id.Index()]) != request {
				t.Errorf("request %s lists record %d, which is about %q", request, id.Index(), about(&records[id.Index()]))
			}
		}
	}
}
