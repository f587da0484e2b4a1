package broker_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

func newSystem() *system { return &system{live: map[string]time.Time{}} }

// hookedStore calls *before once, ahead of the next Update.
type hookedStore struct {
	broker.Store
	before *func()
}

func (s hookedStore) Update(ctx context.Context, reads []broker.Key, f func(broker.Tx) error) error {
	if before := *s.before; before != nil {
		*s.before = nil
		before()
	}
	return s.Store.Update(ctx, reads, f)
}

// hookedWorld returns a peopleWorld whose store is a hookedStore.
func hookedWorld(t *testing.T, annotations string, before *func()) *world {
	t.Helper()
	w := newWorld(t, worldConfig{
		policies: closePolicies(annotations), issuers: map[string]broker.Issuer{"tickets": signer{}, "db": newSystem()},
		wrap: func(s broker.Store) broker.Store { return hookedStore{s, before} },
	})
	t.Cleanup(func() { w.verify(t) })
	return w
}

// granted returns a request that was approved at noon.
func (w *world) granted(t *testing.T) *broker.Request {
	t.Helper()
	r, err := w.vote(t, approver("ben", noon), w.ask(t, read("tickets:close")), yes, noon)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// A grant that ends between the decision and the write is not collected.
func TestGrantRevokedWhileCollecting(t *testing.T) {
	var before func()
	w := hookedWorld(t, `@approval("1 of support")`, &before)
	r := w.granted(t)
	before = func() {
		if _, err := w.broker.RevokeAll(t.Context(), broker.Self(root, noon), broker.Selector{Request: r.ID}, "incident", broker.Consent{Force: true}); err != nil {
			t.Error(err)
		}
	}
	if _, err := w.broker.Collect(t.Context(), broker.Self(agent(noon), noon), r.ID, broker.IdempotencyKey{}); !errors.Is(err, broker.ErrNotPending) {
		t.Errorf("got %v, want %v", err, broker.ErrNotPending)
	}
	if leases := w.leases(t); len(leases) != 0 {
		t.Errorf("got %d leases of a revoked grant", len(leases))
	}
}

// Two calls that both see no earlier credential: only the first may outlive the
// grant.
func TestFirstCollectionOvertaken(t *testing.T) {
	for name, test := range map[string]struct {
		after  time.Duration
		want   error
		leases int
	}{
		"within the grant":      {0, nil, 2},
		"longer than the grant": {55 * time.Minute, broker.ErrNotPending, 1},
	} {
		t.Run(name, func(t *testing.T) {
			var before func()
			w := hookedWorld(t, `@approval("1 of support")`, &before)
			r := w.granted(t)
			at := noon.Add(test.after)
			collect := func() error {
				_, err := w.broker.Collect(t.Context(), broker.Self(agent(at), at), r.ID, broker.IdempotencyKey{})
				return err
			}
			before = func() {
				if err := collect(); err != nil {
					t.Error(err)
				}
			}
			if err := collect(); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			if leases := w.leases(t); len(leases) != test.leases {
				t.Errorf("got %d leases, want %d", len(leases), test.leases)
			}
		})
	}
}

// A preparing system creates a credential in Prepare.
type preparing struct{ *system }

func (s preparing) Prepare(ctx context.Context, o broker.Order) (broker.Prepared, error) {
	p, err := s.system.Prepare(ctx, o)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.live[string(p.Handle)] = o.Lease.Expires
	return p, err
}

// Prepare is undone if the lease is refused.
func TestPreparationIsUndone(t *testing.T) {
	db := newSystem()
	w := newWorld(t, worldConfig{issuers: map[string]broker.Issuer{"db": preparing{db}}, policies: `@id("one") @max_active("1")
permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource == Entitlement::"db");`})
	for _, want := range []error{nil, broker.ErrMaxActive} {
		if _, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(noon), noon), broker.Ask{Entitlement: "db"}, broker.IdempotencyKey{}); !errors.Is(err, want) {
			t.Fatalf("got %v, want %v", err, want)
		}
	}
	if n := db.working(noon); n != 1 {
		t.Errorf("got %d prepared credentials, want that of the lease", n)
	}
	w.verify(t)
}

// The record of an upstream credential has the credential's hash, and the caller's
// lease is active.
func TestUpstreamCredentialIsRecorded(t *testing.T) {
	w := tokenWorld(t)
	issued, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(noon), noon), broker.Ask{Entitlement: "db"}, broker.IdempotencyKey{})
	if err != nil {
		t.Fatal(err)
	}
	if issued.Lease.Status != broker.LeaseActive {
		t.Errorf("got lease %+v, want an active one", issued.Lease)
	}
	records := slices.DeleteFunc(w.records(t), func(r audit.Record) bool { return r.Kind != audit.LeaseIssued })
	if len(records) != 1 || records[0].Lease.Credential != (audit.Digest{1}) {
		t.Errorf("got records %+v, want one with the credential's hash", records)
	}
}

// A sick system fails.
type sick struct {
	*system
	err error
}

func (s sick) Prepare(context.Context, broker.Order) (broker.Prepared, error) {
	return broker.Prepared{}, s.err
}

// Callers see which of the known errors an issuer returned, and no other.
func TestErrorsOfIssuers(t *testing.T) {
	for _, test := range []struct{ err, want error }{
		{broker.ErrIssuerRefused, broker.ErrIssuerRefused},
		{broker.ErrIssuerUnavailable, broker.ErrIssuerUnavailable},
		{broker.ErrInvalidParameter, broker.ErrInvalidParameter},
		{broker.ErrInvalidTTL, broker.ErrInvalidTTL},
		{broker.ErrPolicyTooLarge, broker.ErrPolicyTooLarge},
		{errors.New("dial tcp"), broker.ErrIssuerUnavailable},
		{broker.ErrDenied, broker.ErrIssuerUnavailable},
	} {
		var events []broker.Event
		w := newWorld(t, worldConfig{
			issuers: map[string]broker.Issuer{"db": sick{newSystem(), fmt.Errorf("preparing: %w", test.err)}},
			observe: func(e broker.Event) {
				if e.Kind == broker.EventUpstream {
					events = append(events, e)
				}
			},
		})
		_, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(noon), noon), broker.Ask{Entitlement: "db"}, broker.IdempotencyKey{})
		if !errors.Is(err, test.want) || test.want == broker.ErrIssuerUnavailable != errors.Is(err, broker.ErrIssuerUnavailable) {
			t.Errorf("%v: got %v, want %v", test.err, err, test.want)
		}
		if len(events) != 1 || events[0].Issuer != "db" || events[0].Entitlement != "db" {
			t.Errorf("%v: got events %+v, want one", test.err, events)
		}
	}
}

// An interrupted system runs a function while it issues. Its credential has another
// handle than Prepare announced.
type interrupted struct {
	*system
	during func()
}

func (s *interrupted) Issue(ctx context.Context, o broker.Order) (broker.Credential, []byte, error) {
	s.during()
	handle := []byte("final handle of " + o.Lease.ID.String())
	o.Lease.Handle = handle
	c, _, err := s.system.Issue(ctx, o)
	return c, handle, err
}

// If the kill switch ended a lease while its credential was being made, the caller
// does not get the credential, also if the block is lifted by then, and the
// credential is revoked by its final handle.
func TestKilledWhileIssuing(t *testing.T) {
	db := &interrupted{system: newSystem()}
	w := newWorld(t, worldConfig{issuers: map[string]broker.Issuer{"db": db}})
	holder := broker.Selector{Holder: "spiffe://acme.test/agent/triage"}
	db.during = func() {
		if _, err := w.broker.RevokeAll(t.Context(), broker.Self(root, noon), holder, "incident", broker.Consent{Force: true}); err != nil {
			t.Error(err)
		}
		if err := w.broker.Lift(t.Context(), broker.Self(root, noon), holder, "over"); err != nil {
			t.Error(err)
		}
	}
	_, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(noon), noon), broker.Ask{Entitlement: "db"}, broker.IdempotencyKey{})
	if !errors.Is(err, broker.ErrIssuerUnavailable) {
		t.Errorf("got %v, want %v", err, broker.ErrIssuerUnavailable)
	}
	if n := db.working(noon); n != 0 {
		t.Errorf("%d credentials still work", n)
	}
	if live := w.count(t, broker.LeaseActive); live != 0 {
		t.Errorf("%d leases are active", live)
	}
	w.verify(t)
}

// A renewal ends the old lease at once and is recorded as its replacement.
func TestRenewalEndsTheOldLease(t *testing.T) {
	w := tokenWorld(t)
	first, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(noon), noon), broker.Ask{Entitlement: "db"}, broker.IdempotencyKey{})
	if err != nil {
		t.Fatal(err)
	}
	at := noon.Add(time.Minute)
	second, err := w.broker.Renew(t.Context(), broker.Self(agent(at), at), first.Lease.ID, broker.IdempotencyKey{})
	if err != nil || second.Lease.Replaces != first.Lease.ID {
		t.Fatalf("got %+v, %v", second, err)
	}
	old, err := w.broker.Lease(t.Context(), broker.Self(agent(at), at), first.Lease.ID)
	if err != nil || old.Status != broker.LeaseRevoked || old.EndHow != broker.EndReplaced {
		t.Errorf("got old lease %+v, %v, want a revoked one", old, err)
	}
	opened := slices.DeleteFunc(w.records(t), func(r audit.Record) bool {
		return r.Kind != audit.LeaseOpened || r.Lease.ID != second.Lease.ID.String()
	})
	if len(opened) != 1 || opened[0].End == nil || opened[0].End.How != broker.EndReplaced || !opened[0].End.ValidUntil.Equal(first.Lease.Expires) {
		t.Errorf("got records %+v, want one that names the replaced lease's end", opened)
	}
}

// A lease that its holder returns while it is being renewed has no successor.
func TestReturnedWhileRenewing(t *testing.T) {
	var before func()
	w := hookedWorld(t, `@approval("1 of support")`, &before)
	r := w.granted(t)
	issued, err := w.broker.Collect(t.Context(), broker.Self(agent(noon), noon), r.ID, broker.IdempotencyKey{})
	if err != nil {
		t.Fatal(err)
	}
	before = func() {
		if _, err := w.broker.Revoke(t.Context(), broker.Self(agent(noon), noon), issued.Lease.ID, ""); err != nil {
			t.Error(err)
		}
	}
	if _, err := w.broker.Renew(t.Context(), broker.Self(agent(noon), noon), issued.Lease.ID, broker.IdempotencyKey{}); !errors.Is(err, broker.ErrNotRenewable) {
		t.Errorf("got %v, want %v", err, broker.ErrNotRenewable)
	}
	if leases := w.leases(t); len(leases) != 1 {
		t.Errorf("got %d leases, want 1", len(leases))
	}
}
