package broker_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/broker"
)

// markedRules returns rules with these marks in place of the usual one.
func markedRules(t testing.TB, policies string, marks ...broker.WorkloadLabels) *broker.Rules {
	t.Helper()
	for i := range marks {
		marks[i].Kind, marks[i].Accountable, marks[i].Team = broker.KindAgent, []string{"login/ana"}, "agents"
	}
	return testRulesOf(t, policies, testGroups, marks)
}

func (w *world) mark(t testing.TB, marks ...broker.WorkloadLabels) {
	t.Helper()
	if err := w.broker.SetRules(t.Context(), broker.Caller{At: noon}, markedRules(t, factPolicies, marks...)); err != nil {
		t.Fatal(err)
	}
}

func ceilingOf(parts ...broker.CeilingPart) *broker.Ceiling { return &broker.Ceiling{Parts: parts} }

var onlyRead = ceilingOf(broker.CeilingPart{Entitlement: "tickets", Scopes: []string{"tickets:read"}})

// What is above the ceiling is refused at every step, whatever policies permit, and an
// unknown entitlement gets the same answer as one above the ceiling.
func TestCeilingHoldsAgainstEveryPermit(t *testing.T) {
	w, _ := factWorld(t, worldConfig{})
	w.mark(t, broker.WorkloadLabels{Under: "spiffe://acme.test/agent", Ceiling: onlyRead})
	who := workload("spiffe://acme.test/agent/triage", noon)
	for _, one := range []struct {
		name string
		ask  broker.Ask
		want string
	}{
		{"a scope above", broker.Ask{Entitlement: "tickets", Scopes: []string{"tickets:close"}, Justification: "why"}, "no policy can permit tickets:close"},
		{"a scope above and one within", broker.Ask{Entitlement: "tickets", Scopes: []string{"tickets:close", "tickets:read"}, Justification: "why"}, "no policy can permit tickets:close"},
		{"break-glass", broker.Ask{Entitlement: "tickets", Scopes: []string{"tickets:close"}, BreakGlass: true, Justification: "why"}, "no policy can permit tickets:close"},
		{"another entitlement", broker.Ask{Entitlement: "db"}, "does not have db"},
		{"an unknown entitlement", broker.Ask{Entitlement: "unknown"}, "does not have unknown"},
	} {
		t.Run(one.name, func(t *testing.T) {
			_, err := w.collect(t, who, one.ask, noon)
			var refusal *broker.Refusal
			if !errors.As(err, &refusal) || !errors.Is(err, broker.ErrDenied) || refusal.DeniedBy != broker.DeniedByCeiling || !strings.Contains(refusal.Detail, one.want) {
				t.Fatalf("got %v, want a refusal with %q", err, one.want)
			}
			if one.ask.Entitlement == "tickets" && !one.ask.BreakGlass && (refusal.Allowed == nil || !slices.Equal(refusal.Allowed.Scopes, []string{"tickets:read"})) {
				t.Errorf("got allowed %+v, want tickets:read", refusal.Allowed)
			}
		})
	}
	offers, err := w.broker.Entitlements(t.Context(), broker.Self(who, noon))
	if err != nil || len(offers) != 1 || offers[0].Entitlement.Name != "tickets" {
		t.Fatalf("got offers %+v, %v, want tickets only", offers, err)
	}
	for _, s := range offers[0].Scopes {
		if permit := s.Decision.Permit || s.BreakGlassOnly; permit != (s.Scope == "tickets:read") {
			t.Errorf("%s: got permit %t", s.Scope, permit)
		}
	}
	if w.broker.MayAsk(t.Context(), broker.Self(who, noon), "db") || !w.broker.MayAsk(t.Context(), broker.Self(who, noon), "tickets") {
		t.Error("the caller may request db, or not tickets")
	}
	if _, err := w.collect(t, who, read("tickets:read"), noon); err != nil {
		t.Errorf("within the ceiling: %v", err)
	}
}

// A ceiling that is lowered holds for grants from before: they neither renew nor collect.
func TestCeilingHoldsAtEachCollection(t *testing.T) {
	w, _ := factWorld(t, worldConfig{})
	who := workload("spiffe://acme.test/agent/triage", noon)
	caller := broker.Self(who, noon)
	issued, err := w.collect(t, who, broker.Ask{Entitlement: "db"}, noon)
	if err != nil {
		t.Fatal(err)
	}
	w.mark(t, broker.WorkloadLabels{Under: "spiffe://acme.test/agent", Ceiling: onlyRead})
	_, renew := w.broker.Renew(t.Context(), caller, issued.Lease.ID, broker.IdempotencyKey{})
	_, collect := w.broker.Collect(t.Context(), caller, issued.Request.ID, broker.IdempotencyKey{})
	_, extend := w.broker.Ask(t.Context(), caller, broker.Ask{Entitlement: "db", Extends: issued.Request.ID}, broker.IdempotencyKey{})
	for name, err := range map[string]error{"renew": renew, "collect": collect} {
		if !errors.Is(err, broker.ErrNoLongerAllowed) || !strings.Contains(err.Error(), "does not have db") {
			t.Errorf("%s: got %v, want no_longer_allowed by the ceiling", name, err)
		}
	}
	if !errors.Is(extend, broker.ErrDenied) {
		t.Errorf("an extension: got %v, want denied", extend)
	}
}

// A narrower path never loosens what a broader one bounds, and a path ends at a segment.
func TestNarrowerMarksOnlyLower(t *testing.T) {
	all := ceilingOf(broker.CeilingPart{Entitlement: "db"}, broker.CeilingPart{Entitlement: "tickets"})
	none := ceilingOf()
	marks := []broker.WorkloadLabels{
		{Under: "spiffe://acme.test/agent", Ceiling: onlyRead, Ends: noon.Add(2 * time.Hour)},
		{Under: "spiffe://acme.test/agent/free"},
		{Under: "spiffe://acme.test/agent/all", Ceiling: all, Ends: noon.Add(9 * time.Hour)},
		{Under: "spiffe://acme.test/agent/all/none", Ceiling: none, Ends: noon.Add(time.Hour)},
		{Under: "spiffe://acme.test/agents", Ceiling: all},
	}
	rules := markedRules(t, testPolicies, marks...)
	for id, want := range map[string]string{
		"spiffe://acme.test/agent":            "tickets: tickets:read until 14:00",
		"spiffe://acme.test/agent/x":          "tickets: tickets:read until 14:00",
		"spiffe://acme.test/agent/free/x":     "tickets: tickets:read until 14:00",
		"spiffe://acme.test/agent/all":        "tickets: tickets:read until 14:00",
		"spiffe://acme.test/agent/all/none/x": " until 13:00",
		"spiffe://acme.test/agents/x":         "db: all, tickets: all until 00:00",
		"spiffe://acme.test/agentx":           "unbounded",
		"spiffe://acme.test/other/agent":      "unbounded",
	} {
		who := rules.WithLabels(broker.Identity{ID: id, Kind: broker.KindWorkload})
		got := "unbounded"
		if who.Ceiling != nil {
			got = fmt.Sprintf("%s until %s", strings.Join(who.Ceiling.Texts(), ", "), who.Ends.Format("15:04"))
		}
		if got != want {
			t.Errorf("%s: got %q, want %q", id, got, want)
		}
	}
}

// The end of a mark cuts what is granted, refuses what comes later, and ends what runs when
// a reload brings it forward, also for grants from before there was an end.
func TestAccessEndsWithTheMark(t *testing.T) {
	const under = "spiffe://acme.test/agent"
	w, _ := factWorld(t, worldConfig{})
	before, err := w.collect(t, workload("spiffe://acme.test/agent/early", noon), broker.Ask{Entitlement: "db", TTL: time.Hour}, noon)
	if err != nil {
		t.Fatal(err)
	}
	waiting, err := w.broker.Ask(t.Context(), broker.Self(workload("spiffe://acme.test/agent/waits", noon), noon), broker.Ask{Entitlement: "tickets", Scopes: []string{"tickets:close"}, Justification: "why"}, broker.IdempotencyKey{})
	if err != nil || waiting.Status != broker.RequestPending {
		t.Fatal(waiting, err)
	}
	other, err := w.collect(t, approver("gus", noon), broker.Ask{Entitlement: "db", TTL: time.Hour}, noon)
	if err != nil {
		t.Fatal(err)
	}
	w.mark(t, broker.WorkloadLabels{Under: under, Ends: noon.Add(5 * time.Minute)})
	cut, err := w.collect(t, workload("spiffe://acme.test/agent/late", noon), broker.Ask{Entitlement: "db", TTL: time.Hour}, noon)
	if err != nil || !cut.Lease.Expires.Equal(noon.Add(5*time.Minute)) || cut.Request.CollectUntil.After(noon.Add(5*time.Minute)) {
		t.Fatalf("got lease %+v, %v, want one until the end of the mark", cut, err)
	}
	w.mark(t, broker.WorkloadLabels{Under: under, Ends: noon.Add(3 * time.Minute)})
	at := noon.Add(3 * time.Minute)
	w.end(t, at)
	for _, l := range w.leases(t) {
		ends := l.ID != other.Lease.ID
		if got := l.EndHow == broker.EndFact; got != ends {
			t.Errorf("%s of %s: got ended by the mark: %t", l.Entitlement, l.Holder, got)
		}
	}
	if got := w.stored(t, waiting.ID); got.Status != broker.RequestDenied || got.DeniedBy != broker.DeniedByFact {
		t.Errorf("the waiting request: got %v by %s", got.Status, got.DeniedBy)
	}
	_, err = w.collect(t, workload("spiffe://acme.test/agent/late", at), broker.Ask{Entitlement: "db"}, at)
	var refusal *broker.Refusal
	if !errors.As(err, &refusal) || !errors.Is(err, broker.ErrDenied) || !strings.Contains(fmt.Sprint(refusal.Reasons), "ended at 2026") {
		t.Errorf("after the end: got %v, want a denial that states the end", err)
	}
	// A later end lets the agents begin again, but does not revive what ended.
	w.mark(t, broker.WorkloadLabels{Under: under, Ends: noon.Add(time.Hour)})
	at = at.Add(time.Minute)
	w.end(t, at)
	if _, err := w.broker.Collect(t.Context(), broker.Self(workload("spiffe://acme.test/agent/early", at), at), before.Request.ID, broker.IdempotencyKey{}); !errors.Is(err, broker.ErrFactEnded) && !errors.Is(err, broker.ErrGrantEnded) {
		t.Errorf("a grant from before the end: got %v", err)
	}
	if _, err := w.collect(t, workload("spiffe://acme.test/agent/late", at), broker.Ask{Entitlement: "db"}, at); err != nil {
		t.Errorf("with a later end: %v", err)
	}
}

func (w *world) stored(t testing.TB, id broker.RequestID) (r *broker.Request) {
	t.Helper()
	err := w.store.View(t.Context(), func(tx broker.Tx) (err error) {
		r, err = broker.Get[*broker.Request](tx, id)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}
