package broker_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// called returns a world whose tokens may be used in calls, a lease, and the time of its
// issue: records have the time of the store.
func called(t *testing.T, record bool) (*world, *broker.Lease, time.Time) {
	t.Helper()
	w, now := tokenWorld(t), time.Now()
	w.broker.Rules().Catalogue["tickets"].Egress = &broker.Egress{Record: record}
	issued, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(now), now), read("tickets:read"), broker.IdempotencyKey{})
	if err != nil {
		t.Fatal(err)
	}
	return w, issued.Lease, now
}

func TestAnnouncedCallsAreRecorded(t *testing.T) {
	w, l, now := called(t, true)
	me := broker.Self(agent(now), now)
	long := "https://tickets.acme.test/" + strings.Repeat("a", 5000)
	for range broker.MaxListed + 10 {
		if _, recorded, err := w.broker.Calls.Announce(t.Context(), me, l.ID, broker.Call{Method: "GET", Target: long}); err != nil || !recorded {
			t.Fatalf("got recorded: %t, %v", recorded, err)
		}
	}
	calls := 0
	for _, r := range w.records(t) {
		if r.Kind == audit.LeaseCalled {
			calls++
			if r.Call.Method != "GET" || r.Lease.ID != l.ID.String() || r.Request.Entitlement != "tickets" || r.Caller.ID != me.Actor.ID || r.Call.Target.IsZero() {
				t.Fatalf("got %+v", r)
			}
		}
	}
	if calls != broker.MaxListed+10 {
		t.Errorf("got %d records, want one per call", calls)
	}
	stored, err := w.broker.Lease(t.Context(), me, l.ID)
	if err != nil || len(stored.Records) != broker.MaxListed {
		t.Errorf("the lease lists %d records, %v; want %d", len(stored.Records), err, broker.MaxListed)
	}
	if _, whole, err := w.broker.RecordsOf(t.Context(), me, l.Request); whole || err != nil {
		t.Errorf("the list is whole: %t, %v", whole, err)
	}
	if _, err := w.broker.Revoke(t.Context(), me, l.ID, ""); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.broker.Calls.Announce(t.Context(), me, l.ID, broker.Call{Method: "GET"}); !errors.Is(err, broker.ErrCallNotAllowed) {
		t.Errorf("with an ended lease: got %v", err)
	}
}

func TestCallsWithoutRecords(t *testing.T) {
	w, l, now := called(t, false)
	me, before := broker.Self(agent(now), now), len(w.records(t))
	if _, recorded, err := w.broker.Calls.Announce(t.Context(), me, l.ID, broker.Call{Method: "GET"}); err != nil || recorded || len(w.records(t)) != before {
		t.Errorf("got recorded: %t, %v", recorded, err)
	}
	late := now.Add(time.Hour)
	if _, _, err := w.broker.Calls.Announce(t.Context(), broker.Self(agent(late), late), l.ID, broker.Call{Method: "GET"}); !errors.Is(err, broker.ErrCallNotAllowed) {
		t.Errorf("with an expired lease: got %v", err)
	}
	w.broker.Rules().Catalogue["tickets"].Egress = nil
	if _, _, err := w.broker.Calls.Announce(t.Context(), me, l.ID, broker.Call{Method: "GET"}); !errors.Is(err, broker.ErrCallNotAllowed) {
		t.Errorf("without rules: got %v", err)
	}
}

func TestCountsAreBounded(t *testing.T) {
	w, l, now := called(t, false)
	me := broker.Self(agent(now), now)
	for _, n := range []broker.CallTotals{{Made: -1}, {Received: 1<<40 + 1}} {
		if _, err := w.broker.Calls.Count(t.Context(), me, l.ID, n); !errors.Is(err, broker.ErrInvalidRequest) {
			t.Errorf("%+v: got %v", n, err)
		}
	}
	for range 3 {
		if _, err := w.broker.Calls.Count(t.Context(), me, l.ID, broker.CallTotals{Made: 1, Sent: 1 << 40}); err != nil {
			t.Fatal(err)
		}
	}
	if stored, err := w.broker.Lease(t.Context(), me, l.ID); err != nil || stored.Calls.Made != 3 || stored.Calls.Sent != 3<<40 || !stored.Calls.Last.Equal(now) {
		t.Errorf("got %+v, %v", stored.Calls, err)
	}
	other := broker.Self(workload("spiffe://acme.test/agent/other", now), now)
	if _, err := w.broker.Calls.Count(t.Context(), other, l.ID, broker.CallTotals{Made: 1}); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("another caller: got %v", err)
	}
}

// The effect that approvers read has the calls of the rules, within bounds.
func TestEffectHasCalls(t *testing.T) {
	w, l, now := called(t, false)
	me := broker.Self(agent(now), now)
	effect := func(rules ...broker.EgressRule) string {
		t.Helper()
		w.broker.Rules().Catalogue["tickets"].Egress = &broker.Egress{Allow: rules}
		r, err := w.broker.Request(t.Context(), me, l.Request)
		if err != nil {
			t.Fatal(err)
		}
		text, err := w.broker.Effect(t.Context(), me, r)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	rule := broker.EgressRule{Hosts: []string{"a.acme.test", "b.acme.test"}, Methods: []string{"GET", "PUT"}, Paths: []string{"/v1/*", "/v2/**"}}
	if got, want := effect(rule), "calls through broker proxy and call_api:\n  GET, PUT /v1/*, /v2/** on a.acme.test, b.acme.test"; !strings.HasSuffix(got, want) {
		t.Errorf("got %q, want %q at the end", got, want)
	}
	long := broker.EgressRule{Hosts: []string{"a.acme.test"}, Methods: []string{"GET"}, Paths: []string{"/" + strings.Repeat("ä", 2000)}}
	if got := effect(slices.Repeat([]broker.EgressRule{long}, 50)...); len(got) > 12<<10 || !utf8.ValidString(got) || !strings.HasSuffix(got, "and those of 30 more rules") {
		t.Errorf("got %d bytes: …%q", len(got), got[max(0, len(got)-60):])
	}
}
