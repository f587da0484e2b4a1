package inventory

import (
	"testing"
	"time"

	"accessbroker.internal/audit"
)

// A credential on behalf of a person uses the permits of both: an agent that only acts for
// people has used its own, or a proposal would remove them.
func TestTallyCountsBothSides(t *testing.T) {
	at := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	tally := NewTally()
	tally.Add(&audit.Record{
		Kind: audit.LeaseIssued, Time: at,
		Caller:   &audit.Party{ID: "spiffe://acme.test/agent", Kind: "agent", Method: "x509-svid"},
		Subject:  &audit.Party{ID: "login/ana", Kind: "person", Method: "id-jag"},
		Request:  &audit.RequestFacts{Entitlement: "tickets", Scopes: []string{"read"}},
		Lease:    &audit.LeaseFacts{},
		Decision: &audit.DecisionFacts{Permit: true, Policies: []string{"agents"}}, Delegated: &audit.DecisionFacts{Permit: true, Policies: []string{"people"}},
	}, at)
	for id, policy := range map[string]string{"spiffe://acme.test/agent": "agents", "login/ana": "people"} {
		s, use := tally.Seen[id], tally.Uses[UseKey{id, "tickets"}]
		if s == nil || s.Issued.N != 1 || use == nil || use.Issued.N != 1 || len(use.Policies) != 1 || tally.Policies[policy] == nil || tally.Policies[policy].Issued.N != 1 {
			t.Errorf("%s: got %+v, %+v", id, s, use)
		}
	}
	if n := tally.Entitlements["tickets"].Issued.N; n != 1 {
		t.Errorf("the entitlement: got %d credentials, want 1", n)
	}
}
