package broker_test

import (
	"errors"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// Only a person who may revoke a lease can abandon it. An abandoned lease never
// counts as revoked, even if its issuer becomes available again.
func TestAbandon(t *testing.T) {
	db := &moody{system: system{live: map[string]time.Time{}}}
	w := newWorld(t, worldConfig{issuers: map[string]broker.Issuer{"db": db}, policies: testPolicies + `
@id("security-revokes")
permit (principal in Group::"security", action in [Action::"view", Action::"revoke"], resource);

@id("support-looks")
permit (principal in Group::"support", action == Action::"view", resource);
`})
	issued, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(noon), noon), broker.Ask{Entitlement: "db"}, broker.IdempotencyKey{})
	if err != nil {
		t.Fatal(err)
	}
	id := issued.Lease.ID
	dan := approver("dan", noon)
	if _, err := w.broker.Abandon(t.Context(), broker.Self(dan, noon), id, "too early"); !errors.Is(err, broker.ErrInvalidRequest) {
		t.Errorf("before any revocation: got %v", err)
	}
	db.down.Store(true)
	if _, err := w.broker.Revoke(t.Context(), broker.Self(agent(noon), noon), id, ""); err != nil {
		t.Fatal(err)
	}
	later := noon.Add(broker.StuckAfter + time.Minute)
	if l := w.leases(t)[0]; l.State(later) != broker.LeaseStuck {
		t.Fatalf("got state %d", l.State(later))
	}
	for name, test := range map[string]struct {
		who    broker.Identity
		reason string
		want   error
	}{
		"its holder":        {agent(noon), "gone", broker.ErrDenied},
		"who may look":      {approver("ana", noon), "gone", broker.ErrDenied},
		"who may not":       {approver("zoe", noon), "gone", broker.ErrNotFound},
		"without a reason":  {dan, " \n", broker.ErrInvalidRequest},
		"a proof that ends": {approver("dan", noon.Add(-24*time.Hour)), "gone", broker.ErrNotFound},
	} {
		if _, err := w.broker.Abandon(t.Context(), broker.Self(test.who, later), id, test.reason); !errors.Is(err, test.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if l, err := w.broker.Abandon(t.Context(), broker.Self(dan, later), id, "the cluster was deleted"); err != nil || l.Status != broker.LeaseAbandoned || l.Live(later) {
		t.Fatalf("abandoned: got %+v, %v", l, err)
	}

	db.down.Store(false)
	tries := db.tries.Load()
	for _, who := range []broker.Identity{agent(noon), root} {
		if _, err := w.broker.Revoke(t.Context(), broker.Self(who, later), id, "again"); err != nil {
			t.Errorf("revoking an abandoned lease: got %v", err)
		}
	}
	if _, err := w.broker.RevokeAll(t.Context(), broker.Self(root, later), broker.Selector{Issuer: "db"}, "incident", broker.Consent{Force: true}); err != nil {
		t.Error(err)
	}
	w.reap(t, later.Add(time.Hour))
	if n := db.tries.Load(); n != tries {
		t.Errorf("got %d more calls to the issuer", n-tries)
	}
	if l := w.leases(t)[0]; l.Status != broker.LeaseAbandoned || l.Revocation == broker.RevokedImmediate || !l.Ended.Equal(later) || len(l.Handle) != 0 {
		t.Errorf("at the end: got %+v", l)
	}
	wantKinds(t, w, audit.LeaseOpened, audit.LeaseIssued, audit.LeaseRevoking, audit.LeaseAbandoned, audit.BlockPlaced)
	if r := w.records(t)[5]; r.Kind != audit.LeaseAbandoned || r.Caller.ID != dan.ID || r.End.Reason.IsZero() {
		t.Errorf("record: got %+v", r)
	}
	w.verify(t)
}
