package audit

import (
	"testing"
	"time"
)

// The sample of an encoded record is that of the decoded one, also at the bounds of
// lifetimes.
func TestSampleIsThatOfTheLeaf(t *testing.T) {
	at := time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC)
	lease := func(life time.Duration) *LeaseFacts {
		return &LeaseFacts{ID: "lse_x", Type: "userpass", Revocation: "immediate", Expires: at.Add(life)}
	}
	agent := &Party{ID: "spiffe://acme.test/a", Kind: "agent", Method: "x509-svid"}
	for name, one := range map[string]struct {
		record Record
		want   Sample
	}{
		"five minutes and a fraction": {Record{Kind: LeaseIssued, Caller: agent, Lease: lease(5*time.Minute + 900*time.Microsecond)},
			Sample{Traits{Kind: LeaseIssued, Caller: "agent", Method: "x509-svid", Type: "userpass", Revocation: "immediate", Lifetime: "5m"}, 1, 5 * time.Minute}},
		"longer than all bounds": {Record{Kind: LeaseIssued, Lease: lease(25 * time.Hour)},
			Sample{Traits{Kind: LeaseIssued, Type: "userpass", Revocation: "immediate", Lifetime: Longer}, 1, 25 * time.Hour}},
		"end of a fact": {Record{Kind: LeaseRevoked, Lease: lease(time.Hour), End: &EndFacts{How: "fact_ended", Fact: "supplier acme-data", Cause: "contract_ended"}},
			Sample{Traits{Kind: LeaseRevoked, Type: "userpass", Revocation: "immediate", Outcome: "fact_ended", About: "supplier", Cause: "contract_ended"}, 1, 0}},
		"fact": {Record{Kind: FactChanged, Fact: &FactFacts{Subject: "person login/ana", Source: "scim:corp", State: "ended", Cause: "account_disabled"}},
			Sample{Traits{Kind: FactChanged, Outcome: "ended", About: "person", Source: "scim", Cause: "account_disabled"}, 1, 0}},
		"denials": {Record{Kind: RequestDenied, Caller: agent, Decision: &DecisionFacts{Code: "denied"}, Request: &RequestFacts{Justification: Digest{1}, BreakGlass: true}, Count: 7},
			Sample{Traits{Kind: RequestDenied, Caller: "agent", Method: "x509-svid", Outcome: "denied", Reason: true, BreakGlass: true}, 7, 0}},
		"vote": {Record{Kind: RequestApproved, Decision: &DecisionFacts{Permit: true, Approvals: []string{"1 of dba"}}, Approval: &ApprovalFacts{Decision: "approve", TTL: time.Minute}},
			Sample{Traits{Kind: RequestApproved, Outcome: "approve", Approvals: true, Narrowed: true}, 1, 0}},
		"block": {Record{Kind: BlockPlaced, Block: &BlockFacts{Selector: "under spiffe://acme.test/a"}}, Sample{Traits{Kind: BlockPlaced, About: "under"}, 1, 0}},
		"key":   {Record{Kind: KeyCreated, Key: &KeyFacts{Purpose: "token"}}, Sample{Traits{Kind: KeyCreated, About: "token"}, 1, 0}},
	} {
		entry, err := one.record.Entry()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		entry.SetTime(at)
		decoded, err := Decode(entry.Leaf())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got := decoded.Sample(decoded.Time); got != one.want {
			t.Errorf("%s: got %+v, want %+v", name, got, one.want)
		}
		if got := entry.Record().Sample(at); got != one.want {
			t.Errorf("%s: the entry has %+v, want %+v", name, got, one.want)
		}
		if LeafHash(entry.Leaf()) != entry.Hash() {
			t.Errorf("%s: got the hash %s", name, LeafHash(entry.Leaf()))
		}
	}
}
