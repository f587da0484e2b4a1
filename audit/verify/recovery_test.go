package verify

import (
	"testing"
	"time"

	"accessbroker.internal/audit"
)

// A recovery ends credentials whose records are lost, and no others.
func TestRecoveryOfAKnownLeaseIsAProblem(t *testing.T) {
	s := newLeaseState(8)
	issued := audit.Record{Kind: audit.LeaseIssued, Request: &audit.RequestFacts{ID: "req_1"}, Lease: &audit.LeaseFacts{ID: "lse_1", Expires: time.Now()}}
	found := func(id string) *audit.Record {
		return &audit.Record{Kind: audit.RecoveryFound, Lease: &audit.LeaseFacts{ID: id}, Recovery: &audit.RecoveryFacts{Outcome: "revoked"}}
	}
	if got := s.check(&issued); got != "" {
		t.Fatal(got)
	}
	if got := s.check(found("lse_2")); got != "" {
		t.Errorf("a lost lease: got %q", got)
	}
	if got := s.check(found("lse_1")); got == "" {
		t.Error("a lease of this log: got no problem")
	}
	if got := s.check(&audit.Record{Kind: audit.RecoveryFound}); got != "" {
		t.Errorf("a group of credentials: got %q", got)
	}
}
