package broker_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/broker"
)

// Two brokers share a database. Once one of them has loaded new rules, the other one
// issues nothing and counts no vote until it has loaded them, too.
func TestOldRulesIssueNothing(t *testing.T) {
	issuers := map[string]broker.Issuer{"tickets": signer{}, "db": &system{live: map[string]time.Time{}}}
	w := newWorld(t, worldConfig{issuers: issuers})
	other := w.restart(t, issuers)
	who, cleo := broker.Self(agent(noon), noon), broker.Self(approver("cleo", noon), noon)
	closing := read("tickets:close")
	closing.Justification = "a duplicate"
	pending, err := other.Ask(t.Context(), who, closing, broker.IdempotencyKey{})
	if err != nil {
		t.Fatal(err)
	}
	granted, err := other.Ask(t.Context(), who, broker.Ask{Entitlement: "db"}, broker.IdempotencyKey{})
	if err != nil {
		t.Fatal(err)
	}
	issued, _, err := other.AskAndCollect(t.Context(), who, read("tickets:read"), broker.IdempotencyKey{})
	if err != nil {
		t.Fatal(err)
	}

	newer := testRules(t, strings.Replace(testPolicies, "this path is under investigation", "this path is closed", 1))
	if newer.Revision == w.rules.Revision {
		t.Fatal("the rules did not change")
	}
	if err := w.broker.SetRules(t.Context(), broker.Caller{At: noon}, newer); err != nil {
		t.Fatal(err)
	}
	calls := map[string]func() error{
		"ask and collect": func() error {
			_, _, err := other.AskAndCollect(t.Context(), who, read("tickets:read"), broker.IdempotencyKey{})
			return err
		},
		"ask and collect from an upstream": func() error {
			_, _, err := other.AskAndCollect(t.Context(), who, broker.Ask{Entitlement: "db"}, broker.IdempotencyKey{})
			return err
		},
		"collect": func() error {
			_, err := other.Collect(t.Context(), who, granted.ID, broker.IdempotencyKey{})
			return err
		},
		"renew": func() error {
			_, err := other.Renew(t.Context(), who, issued.Lease.ID, broker.IdempotencyKey{})
			return err
		},
		"vote": func() error {
			_, err := other.Vote(t.Context(), cleo, pending.ID, broker.Vote{Approve: true, Digest: pending.Digest})
			return err
		},
	}
	before := len(w.leases(t))
	for name, call := range calls {
		if err := call(); !errors.Is(err, broker.ErrUnavailable) {
			t.Errorf("%s by old rules: got %v, want %v", name, err, broker.ErrUnavailable)
		}
	}
	if n := len(w.leases(t)); n != before {
		t.Errorf("old rules opened %d leases", n-before)
	}

	if err := other.SetRules(t.Context(), broker.Caller{At: noon}, newer); err != nil {
		t.Fatal(err)
	}
	for name, call := range calls {
		if err := call(); err != nil {
			t.Errorf("%s by the rules in force: %v", name, err)
		}
	}
	w.verify(t)
}
