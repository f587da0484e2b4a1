package broker_test

import (
	"errors"
	"strings"
	"testing"

	"accessbroker.internal/broker"
)

// The kill switch and blocks refuse malformed names and names that are not configured,
// whatever the caller confirms.
func TestKillSwitchRefusesNames(t *testing.T) {
	w := tokenWorld(t)
	for _, test := range []struct {
		selector broker.Selector
		want     string
	}{
		{broker.Selector{Under: "spiffe://acme.test/agent/*"}, "no wildcards"},
		{broker.Selector{Under: "spiffe://ACME.test/agent"}, "lower case"},
		{broker.Selector{Under: "spiffe://acme.test/agent//x"}, "empty segment"},
		{broker.Selector{Under: "spiffe://acme.test/agent/"}, "empty segment"},
		{broker.Selector{Under: "spiffe://acme.test/agent/../x"}, "'.' or '..'"},
		{broker.Selector{Under: "spiffe://acme.test"}, "whole trust domain: select trust_domain acme.test"},
		{broker.Selector{Holder: "spiffe://acme.test"}, "whole trust domain: select trust_domain acme.test"},
		{broker.Selector{Under: "spiffe://acme.tst/agent"}, `did you mean "acme.test"?`},
		{broker.Selector{Under: "login/ana"}, "must start with spiffe://"},
		{broker.Selector{Holder: "spiffe://acme.test/agent/%62ench-0000"}, "no percent-encoding"},
		{broker.Selector{Holder: "spiffe://acme.test/agent/tri*"}, "no wildcards"},
		{broker.Selector{Holder: "spiffe://other.test/agent/a"}, `there is no trust domain "other.test"`},
		{broker.Selector{Holder: "tri*"}, "neither a SPIFFE ID"},
		{broker.Selector{Holder: "logni/ana"}, `did you mean "login"?`},
		{broker.Selector{Holder: "Login/ana"}, "neither a SPIFFE ID"},
		{broker.Selector{TrustDomain: "ACME.test"}, "lower case"},
		{broker.Selector{TrustDomain: "acme.tst"}, `did you mean "acme.test"?`},
		{broker.Selector{TrustDomain: "spiffe://acme.test"}, "without spiffe://"},
		{broker.Selector{TrustDomain: "acme.*"}, "not a trust domain"},
		{broker.Selector{Entitlement: "ticket"}, `did you mean "tickets"?`},
		{broker.Selector{Entitlement: "t*"}, "there is no entitlement"},
		{broker.Selector{Issuer: "dbb"}, `did you mean "db"?`},
	} {
		ctx, root := t.Context(), broker.Self(root, noon)
		check := func(what string, err error) {
			t.Helper()
			if !errors.Is(err, broker.ErrInvalidRequest) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%s %+v: got %v, want %v with %q", what, test.selector, err, broker.ErrInvalidRequest, test.want)
			}
		}
		_, err := w.broker.Preview(ctx, root, test.selector)
		check("preview", err)
		_, err = w.broker.RevokeAll(ctx, root, test.selector, "incident", broker.Consent{Force: true, Unmatched: true})
		check("kill", err)
		check("block", w.broker.Block(ctx, root, test.selector, "incident", true))
	}
	if list, err := w.store.Blocks(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("got %d blocks, %v, want none", len(list), err)
	}
}

// A well-formed name that matches nothing needs a second confirmation. What is live,
// what requested once, and what the rules name match.
func TestKillSwitchNeedsConfirmationIfNothingMatches(t *testing.T) {
	ctx, root := t.Context(), broker.Self(root, noon)
	for name, test := range map[string]struct {
		selector broker.Selector
		near     string
		matches  bool
	}{
		"typo in a path":            {broker.Selector{Under: "spiffe://acme.test/agnet"}, "spiffe://acme.test/agent", false},
		"typo in a holder":          {broker.Selector{Holder: "spiffe://acme.test/agent/traige"}, "spiffe://acme.test/agent/triage", false},
		"path above no one":         {broker.Selector{Under: "spiffe://acme.test/agent/triage/x"}, "spiffe://acme.test/agent/triage", false},
		"part of a segment":         {broker.Selector{Under: "spiffe://acme.test/age"}, "spiffe://acme.test/agent", false},
		"typo in a person":          {broker.Selector{Holder: "login/anna"}, "login/ana", false},
		"idle entitlement":          {broker.Selector{Entitlement: "db"}, "", false},
		"holder who requested":      {broker.Selector{Holder: "spiffe://acme.test/agent/triage"}, "", true},
		"path of one who did":       {broker.Selector{Under: "spiffe://acme.test/agent"}, "", true},
		"trust domain of one":       {broker.Selector{TrustDomain: "acme.test"}, "", true},
		"requested entitlement":     {broker.Selector{Entitlement: "tickets"}, "", true},
		"path of others as holder":  {broker.Selector{Holder: "spiffe://acme.test/agent"}, "", false},
		"labelled holder":           {broker.Selector{Holder: "spiffe://acme.test/labelled/x"}, "", true},
		"owner of a workload":       {broker.Selector{Holder: "login/ana"}, "", true},
		"workload that is labelled": {broker.Selector{Under: "spiffe://acme.test/labelled"}, "", true},
	} {
		t.Run(name, func(t *testing.T) {
			w := tokenWorld(t)
			w.rules.Labels = append(w.rules.Labels, broker.WorkloadLabels{Under: "spiffe://acme.test/labelled/x", Kind: broker.KindAgent, Accountable: []string{"login/ana"}})
			if _, err := w.broker.Ask(ctx, broker.Self(agent(noon), noon), read("tickets:read"), broker.IdempotencyKey{}); err != nil {
				t.Fatal(err)
			}
			seen, err := w.broker.Preview(ctx, root, test.selector)
			if err != nil || seen.Leases != 0 || seen.Unmatched == test.matches || seen.Near != test.near {
				t.Errorf("got the preview %+v, %v; want unmatched %t, near %q", seen, err, !test.matches, test.near)
			}
			_, killed := w.broker.RevokeAll(ctx, root, test.selector, "incident", broker.Consent{Seen: seen.Digest})
			forced := error(nil)
			if !test.matches {
				_, forced = w.broker.RevokeAll(ctx, root, test.selector, "incident", broker.Consent{Force: true})
			}
			blocked := w.broker.Block(ctx, root, test.selector, "incident", false)
			for what, err := range map[string]error{"kill": killed, "forced kill": forced, "block": blocked} {
				if matched := err == nil; matched != test.matches && (what != "forced kill" || matched) || !matched && !errors.Is(err, broker.ErrUnmatched) {
					t.Errorf("%s: got %v", what, err)
				}
			}
			if blocks, err := w.store.Blocks(ctx); err != nil || (len(blocks) == 1) != test.matches {
				t.Errorf("got %d blocks, %v", len(blocks), err)
			}
			if _, err := w.broker.RevokeAll(ctx, root, test.selector, "incident", broker.Consent{Force: true, Unmatched: true}); err != nil {
				t.Errorf("confirmed: %v", err)
			}
			if err := w.broker.Block(ctx, root, test.selector, "incident", false); err != nil {
				t.Errorf("repeated: %v", err)
			}
			if blocks, err := w.store.Blocks(ctx); err != nil || len(blocks) != 1 {
				t.Errorf("got %d blocks, %v, want 1", len(blocks), err)
			}
			if err := w.broker.Lift(ctx, root, test.selector, "over"); err != nil {
				t.Error(err)
			}
		})
	}
}

// A preview lists what it hits, up to a bound.
func TestPreviewListsHits(t *testing.T) {
	w := tokenWorld(t)
	const leases = 53
	for range leases {
		if _, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(noon), noon), read("tickets:read"), broker.IdempotencyKey{}); err != nil {
			t.Fatal(err)
		}
	}
	seen, err := w.broker.Preview(t.Context(), broker.Self(root, noon), broker.Selector{Entitlement: "tickets"})
	if err != nil || seen.Leases != leases || len(seen.Hits) != 50 || seen.Hits[0].Holder != agent(noon).ID || seen.Unmatched {
		t.Errorf("got %d leases, %d hits, unmatched %t, %v", seen.Leases, len(seen.Hits), seen.Unmatched, err)
	}
}

// Leases can be ended after their trust domain was removed from the configuration.
func TestKillSwitchOnRemovedTrustDomain(t *testing.T) {
	w := tokenWorld(t)
	if _, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(noon), noon), read("tickets:read"), broker.IdempotencyKey{}); err != nil {
		t.Fatal(err)
	}
	w.rules.TrustDomains = []string{"other.test"}
	for _, s := range []broker.Selector{{TrustDomain: "acme.test"}, {Under: "spiffe://acme.test/agent"}, {Holder: agent(noon).ID}} {
		if err := w.broker.Block(t.Context(), broker.Self(root, noon), s, "incident", false); err != nil {
			t.Errorf("block %+v: %v", s, err)
		}
	}
	if p, err := w.broker.RevokeAll(t.Context(), broker.Self(root, noon), broker.Selector{TrustDomain: "acme.test"}, "incident", broker.Consent{Force: true}); err != nil || p.Leases != 1 {
		t.Errorf("got %+v, %v, want one lease", p, err)
	}
}
