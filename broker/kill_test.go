package broker_test

import (
	"errors"
	"testing"

	"accessbroker.internal/broker"
)

var root = broker.Identity{ID: "root", Kind: broker.KindOperator, Proof: broker.Proof{Method: broker.MethodAdminSocket}}

func TestKillSwitch(t *testing.T) {
	w := tokenWorld(t)
	for _, ask := range []broker.Ask{read("tickets:read"), {Entitlement: "db"}} {
		if _, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(noon), noon), ask, broker.IdempotencyKey{}); err != nil {
			t.Fatal(err)
		}
	}
	under := broker.Selector{Under: "spiffe://acme.test/agent"}
	if _, err := w.broker.Preview(t.Context(), broker.Self(agent(noon), noon), under); !errors.Is(err, broker.ErrDenied) {
		t.Fatalf("a workload uses the kill switch: got %v", err)
	}
	seen, err := w.broker.Preview(t.Context(), broker.Self(root, noon), under)
	if err != nil || seen.Leases != 2 || seen.Irrevocable != 1 {
		t.Fatalf("preview: %+v, %v", seen, err)
	}
	if _, err := w.broker.RevokeAll(t.Context(), broker.Self(root, noon), under, "incident", broker.Consent{}); !errors.Is(err, broker.ErrPreviewStale) {
		t.Fatalf("without a preview: got %v", err)
	}
	if _, err := w.broker.RevokeAll(t.Context(), broker.Self(root, noon), under, "incident", broker.Consent{Seen: seen.Digest}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(noon), noon), read("tickets:read"), broker.IdempotencyKey{}); !errors.Is(err, broker.ErrBlocked) {
		t.Errorf("a blocked identity: got %v", err)
	}
	for _, name := range []string{"tickets:read", "tickets:close"} { // approved by policy, and approved by people
		ask := broker.Ask{Entitlement: "tickets", Scopes: []string{name}, Justification: "incident"}
		if _, err := w.broker.Ask(t.Context(), broker.Self(agent(noon), noon), ask, broker.IdempotencyKey{}); !errors.Is(err, broker.ErrBlocked) {
			t.Errorf("a blocked identity requests %s: got %v", name, err)
		}
	}
	if n, err := w.broker.Reap(t.Context(), noon); err != nil || n != 1 {
		t.Errorf("got %d due leases, %v", n, err)
	}
	if w.count(t, broker.LeaseRevoked) != 2 {
		t.Errorf("%d leases are revoked", w.count(t, broker.LeaseRevoked))
	}
	if err := w.broker.Lift(t.Context(), broker.Self(root, noon), under, "over"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(noon), noon), read("tickets:read"), broker.IdempotencyKey{}); err != nil {
		t.Errorf("after lifting the block: got %v", err)
	}
}

// The preview counts leases that are not selected but end with the selected ones.
func TestPreviewCountsSharedLeases(t *testing.T) {
	w := tokenWorld(t)
	for _, e := range w.rules.Catalogue {
		e.Shares = "role/all"
	}
	for _, who := range []string{"spiffe://acme.test/agent/a", "spiffe://acme.test/agent/b"} {
		for _, ask := range []broker.Ask{read("tickets:read"), {Entitlement: "db"}} {
			if _, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(workload(who, noon), noon), ask, broker.IdempotencyKey{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, test := range []struct {
		selector       broker.Selector
		leases, beyond int
	}{
		{broker.Selector{Entitlement: "db"}, 2, 2},
		{broker.Selector{Under: "spiffe://acme.test/agent/a"}, 2, 2},
		{broker.Selector{Under: "spiffe://acme.test/agent"}, 4, 0},
		{broker.Selector{Under: "spiffe://acme.test/other"}, 0, 0},
	} {
		seen, err := w.broker.Preview(t.Context(), broker.Self(root, noon), test.selector)
		if err != nil || seen.Leases != test.leases || seen.Beyond != test.beyond {
			t.Errorf("%+v: %+v, %v", test.selector, seen, err)
		}
	}
}
