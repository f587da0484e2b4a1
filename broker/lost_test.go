package broker_test

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/internal/storetest"
)

// Without its database, the broker issues nothing, and revocations reach the
// issuers: of the holder, of the kill switch and of the reaper.
func TestRevocationsWithoutTheDatabase(t *testing.T) {
	storetest.OnlySQLite(t, "the files are the server's")
	system := &system{live: map[string]time.Time{}}
	w := newWorld(t, worldConfig{issuers: map[string]broker.Issuer{"db": system, "tickets": signer{}}})
	caller, operator := broker.Self(agent(noon), noon), broker.Caller{Actor: broker.Identity{ID: "operator", Kind: broker.KindOperator}, At: noon}
	operator.Subject = operator.Actor
	var leases []broker.LeaseID
	for range 3 {
		issued, _, err := w.broker.AskAndCollect(t.Context(), caller, broker.Ask{Entitlement: "db"}, broker.IdempotencyKey{})
		if err != nil {
			t.Fatal(err)
		}
		leases = append(leases, issued.Lease.ID)
	}
	if err := errors.Join(os.Remove(w.database), os.Remove(w.database+"-wal"), os.Remove(w.database+"-shm")); err != nil {
		t.Fatal(err)
	}
	for _, entitlement := range []string{"db", "tickets"} {
		ask := broker.Ask{Entitlement: entitlement}
		if entitlement == "tickets" {
			ask.Scopes = []string{"tickets:read"}
		}
		if issued, _, err := w.broker.AskAndCollect(t.Context(), caller, ask, broker.IdempotencyKey{}); !errors.Is(err, broker.ErrUnavailable) {
			t.Errorf("%s: got %+v, %v, want %v", entitlement, issued, err, broker.ErrUnavailable)
		}
	}
	if n := system.working(noon); n != 3 {
		t.Fatalf("%d credentials work, want the 3 that were answered", n)
	}
	if _, err := w.broker.Revoke(t.Context(), caller, leases[0], "done"); !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("returning a lease: got %v, want %v", err, broker.ErrUnavailable)
	}
	if n := system.working(noon); n != 2 {
		t.Errorf("after a return, %d credentials work, want 2", n)
	}
	// The reaper ends what the kill switch selects.
	if _, err := w.broker.RevokeAll(t.Context(), operator, broker.Selector{Holder: caller.Subject.ID}, "incident", broker.Consent{Force: true}); !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("the kill switch: got %v, want %v", err, broker.ErrUnavailable)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.broker.Run(ctx) }()
	for end := time.Now().Add(time.Minute); system.working(noon) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after the kill switch, %d credentials work", system.working(noon))
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
