package server

import (
	"net/http/httptest"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
)

// Blocks, lifts and kills count from the next introspection on, also one by another
// Broker with the same store.
func TestIntrospectionFollowsBlocksAndKills(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	ctx, op := t.Context(), w.as(operator)
	second, err := broker.New(ctx, broker.Config{
		Store: w.store, Issuers: map[string]broker.Issuer{"token": &minter{}}, Reader: w.store, Blocks: w.store.Blocks,
	}, testRules(), broker.Self(broker.Identity{ID: operator, Kind: broker.KindOperator}, time.Now()))
	if err != nil {
		t.Fatal(err)
	}
	token := must[*api.TokenResponse](t)(w.as(agent).Exchange(ctx, api.TokenRequest{SubjectToken: agent, Audience: "tickets", Scopes: []string{"tickets:read"}}))
	who, err := authenticate(httptest.NewRequest("GET", "/", nil), tickets)
	if err != nil {
		t.Fatal(err)
	}
	wantActive := func(when string, want bool) {
		t.Helper()
		for range 2 {
			if in := must[*api.Introspection](t)(w.as(tickets).Introspect(ctx, token.AccessToken)); in.Active != want {
				t.Errorf("%s: active is %t, want %t", when, in.Active, want)
			}
			if in := must[*broker.Introspection](t)(second.Introspect(ctx, broker.Self(who, time.Now()), string(token.AccessToken))); (in != nil) != want {
				t.Errorf("%s: for another Broker, active is %t, want %t", when, in != nil, want)
			}
		}
	}
	wantActive("issued", true)
	for _, selector := range []api.Selector{{Entitlement: "tickets"}, {Holder: agent}, {Under: "spiffe://acme.test/agent"}, {TrustDomain: "acme.test"}, {Issuer: "token"}} {
		change := api.BlockChange{Selector: selector, Reason: "incident"}
		if err := op.Block(ctx, change); err != nil {
			t.Fatal(err)
		}
		wantActive("blocked", false)
		if err := op.Lift(ctx, change); err != nil {
			t.Fatal(err)
		}
		wantActive("lifted", true)
	}
	if err := op.Block(ctx, api.BlockChange{Selector: api.Selector{Holder: partner}, Reason: "incident", Unmatched: true}); err != nil {
		t.Fatal(err)
	}
	wantActive("another holder is blocked", true)
	kill := api.Kill{Selector: api.Selector{Holder: agent}, Reason: "incident", Force: true}
	must[*api.KillPreview](t)(op.Kill(ctx, kill))
	wantActive("killed", false)
	if err := op.Lift(ctx, api.BlockChange{Selector: api.Selector{Holder: agent}, Reason: "over"}); err != nil {
		t.Fatal(err)
	}
	wantActive("killed and lifted", false)
}
