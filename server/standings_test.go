package server

import (
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
)

// Auditors read what access rests on; a request and its lease name the fact that ended them.
func TestFactsAreListed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	ctx, me, op := t.Context(), w.as(agent), w.as(operator)
	credential := must[*api.Credential](t)(me.Collect(ctx, must[*api.Request](t)(me.Ask(ctx, api.Ask{Entitlement: "tickets", Scopes: []string{"tickets:read"}})).ID))
	facts := w.cfg.Broker.Facts
	key := broker.StandingKey{Kind: broker.FactAgent, Name: agent}
	report := func(f broker.Fact) {
		t.Helper()
		if err := facts.Report(ctx, broker.Caller{At: time.Now()}, key, f); err != nil {
			t.Fatal(err)
		}
	}
	report(broker.Fact{Source: "file", State: broker.FactActive, Details: map[string]string{"note": "pilot"}})
	page := must[*api.StandingPage](t)(op.Standings(ctx, api.StandingFilter{Kind: "agent"}))
	if len(page.Standings) != 1 || page.Standings[0].Name != agent || !page.Standings[0].Holds || page.Standings[0].Facts[0].Details["note"] != "pilot" {
		t.Errorf("while it holds: %+v", page.Standings)
	}
	report(broker.Fact{Source: "file", State: broker.FactEnded, Cause: "pilot_over"})
	if err := facts.End(ctx, time.Now()); err != nil {
		t.Fatal(err)
	}
	one := must[*api.StandingPage](t)(op.Standings(ctx, api.StandingFilter{Kind: "agent", Name: agent})).Standings
	if len(one) != 1 || one[0].Holds || one[0].Cause != "pilot_over" || one[0].EndedAt.IsZero() {
		t.Errorf("after its end: %+v", one)
	}
	want := api.EndedBy{Fact: "agent " + agent, Cause: "pilot_over"}
	if l := must[*api.Lease](t)(me.Lease(ctx, credential.Lease)); l.EndHow != "fact_ended" || l.EndedBy == nil || *l.EndedBy != want {
		t.Errorf("the lease: %+v", l)
	}
	if r := must[*api.Request](t)(me.Request(ctx, credential.Request)); r.Status != api.StatusEnded || r.EndedBy == nil || *r.EndedBy != want {
		t.Errorf("the request: %+v", r)
	}
	if _, _, err := me.AskAndCollect(ctx, api.Ask{Entitlement: "tickets", Scopes: []string{"tickets:read"}}); err == nil || !strings.Contains(err.Error(), "fact_ended") || !strings.Contains(err.Error(), "pilot over") {
		t.Errorf("another request: %v", err)
	}
	if _, err := me.Standings(ctx, api.StandingFilter{Kind: "agent"}); err == nil || !strings.Contains(err.Error(), "denied") {
		t.Errorf("a caller who is no auditor: %v", err)
	}
	if _, err := op.Standings(ctx, api.StandingFilter{Kind: "planet"}); err == nil || !strings.Contains(err.Error(), "kind") {
		t.Errorf("another kind: %v", err)
	}
	if page := must[*api.StandingPage](t)(op.Standings(ctx, api.StandingFilter{Kind: "ticket"})); len(page.Standings) != 0 {
		t.Errorf("without any: %+v", page)
	}
}
