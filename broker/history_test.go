package broker_test

import (
	"testing"
	"time"

	"accessbroker.internal/broker"
)

// A history has the newest requests for the same entitlement, what became of them, and
// how many credentials were collected.
func TestHistoryOfEntitlement(t *testing.T) {
	w := peopleWorld(t, `@approval("1 of support")`)
	ben := func(at time.Time) broker.Identity { return approver("ben", at) }
	at := func(minutes int) time.Time { return noon.Add(time.Duration(minutes) * time.Minute) }
	decided := func(scope string, minutes int, v broker.Vote) *broker.Request {
		t.Helper()
		r, err := w.vote(t, ben(at(minutes)), w.askAt(t, read(scope), at(minutes)), v, at(minutes))
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	decided("tickets:read", 0, denial)
	granted := decided("tickets:read", 1, yes)
	for i := range 2 {
		if _, err := w.broker.Collect(t.Context(), broker.Self(agent(at(2+i)), at(2+i)), granted.ID, broker.IdempotencyKey{}); err != nil {
			t.Fatal(err)
		}
	}
	denied := decided("tickets:close", 4, denial)
	waiting := w.askAt(t, read("tickets:close"), at(5))
	r := w.askAt(t, read("tickets:read", "tickets:close"), at(6))

	h, err := w.broker.RequestHistory(t.Context(), broker.Self(ben(at(7)), at(7)), r)
	if err != nil {
		t.Fatal(err)
	}
	if want := (broker.EntitlementCount{Entitlement: "tickets", Asked: 4, Granted: 1, Refused: 2, Pending: 1}); len(h.Counts) != 1 || h.Counts[0] != want || h.Partial {
		t.Errorf("got the counts %+v, partial %t; want %+v", h.Counts, h.Partial, want)
	}
	want := []struct {
		id          broker.RequestID
		state       broker.RequestStatus
		credentials int
	}{{waiting.ID, broker.RequestPending, 0}, {denied.ID, broker.RequestDenied, 0}, {granted.ID, broker.RequestApproved, 2}}
	if len(h.Similar) != len(want) {
		t.Fatalf("got %d earlier requests, want %d", len(h.Similar), len(want))
	}
	for i, p := range h.Similar {
		if p.ID != want[i].id || p.State(at(7)) != want[i].state || p.Credentials != want[i].credentials || p.More || !p.Visible {
			t.Errorf("earlier request %d: got %s %d, %d credentials, more %t, visible %t; want %+v", i, p.ID, p.State(at(7)), p.Credentials, p.More, p.Visible, want[i])
		}
	}

	first, err := w.broker.RequestHistory(t.Context(), broker.Self(ben(at(7)), at(7)), granted)
	if err != nil || len(first.Similar) != 1 || first.Similar[0].Status != broker.RequestDenied {
		t.Errorf("before the second request: got %+v, %v, want the first alone", first.Similar, err)
	}
	month := at(30*24*60 + 10)
	late := w.askAt(t, read("tickets:read"), month)
	if h, err := w.broker.RequestHistory(t.Context(), broker.Self(ben(month), month), late); err != nil || len(h.Counts) != 0 || len(h.Similar) != 0 {
		t.Errorf("after a month: got %+v, %v, want nothing", h, err)
	}
}

// The history counts all requests, but names only those that the reader may view.
func TestHistoryNamesVisibleRequests(t *testing.T) {
	w := peopleWorld(t, `@approval("1 of security")`)
	hidden := w.ask(t, read("tickets:comment"))
	w.adopt(t, closePolicies(`@approval("1 of support")`), testGroups)
	r := w.ask(t, read("tickets:close"))
	h, err := w.broker.RequestHistory(t.Context(), broker.Self(approver("cleo", noon), noon), r)
	if err != nil || len(h.Similar) != 1 || h.Similar[0].ID != hidden.ID || h.Similar[0].Visible {
		t.Errorf("got %+v, %v, want the request %s, not visible", h.Similar, err, hidden.ID)
	}
}
