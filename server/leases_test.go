package server

import (
	"errors"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/audit/verify"
	"accessbroker.internal/broker"
)

// issue requests and collects a credential.
func (w *world) issue(who, entitlement string, scopes ...string) *api.Credential {
	w.t.Helper()
	c, _, err := w.as(who).AskAndCollect(w.t.Context(), api.Ask{Entitlement: entitlement, Scopes: scopes, Justification: "incident"})
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// change modifies a lease in the store.
func (w *world) change(id string, f func(*broker.Lease)) {
	w.t.Helper()
	lease, err := broker.ParseLeaseID(id)
	if err == nil {
		err = w.store.Update(w.t.Context(), []broker.Key{lease}, func(tx broker.Tx) error {
			row, err := tx.Get(lease)
			if err == nil {
				f(row.(*broker.Lease))
				tx.Put(row)
			}
			return err
		})
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// A lease and lists of leases show the same state. A lease whose revocation keeps
// failing is stuck, and its credential may still work.
func TestLeaseStates(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	me, now := w.as(agent), time.Now()
	revoking := func(before time.Duration, lastError string) func(*broker.Lease) {
		return func(l *broker.Lease) {
			l.Status, l.EndAsked, l.LastError, l.EndHow = broker.LeaseRevoking, now.Add(-before), lastError, broker.EndRevoked
		}
	}
	status := func(s broker.LeaseStatus) func(*broker.Lease) { return func(l *broker.Lease) { l.Status = s } }
	for want, state := range map[string]struct {
		change func(*broker.Lease)
		live   bool
	}{
		api.LeaseIssuing:   {status(broker.LeaseIssuing), true},
		api.LeaseActive:    {status(broker.LeaseActive), true},
		api.LeaseExpired:   {func(l *broker.Lease) { l.Expires = now.Add(-time.Second) }, true}, // the issuer has not ended it yet
		api.LeaseRevoking:  {revoking(time.Second, "issuer_unavailable"), true},
		api.LeaseStuck:     {revoking(broker.StuckAfter, "issuer_unavailable"), true},
		api.LeaseRevoked:   {status(broker.LeaseRevoked), false},
		api.LeaseFailed:    {status(broker.LeaseFailed), false},
		api.LeaseAbandoned: {status(broker.LeaseAbandoned), false},
	} {
		c := w.issue(agent, "gone")
		w.change(c.Lease, state.change)
		l := must[*api.Lease](t)(me.Lease(t.Context(), c.Lease))
		if l.Status != want || want == api.LeaseStuck && l.LastError != "issuer_unavailable" {
			t.Errorf("got %+[2]v, want %[1]s", want, l)
		}
		for _, live := range []bool{false, true} {
			page := must[*api.LeasePage](t)(me.Leases(t.Context(), api.LeaseFilter{Request: c.Request, Live: live}))
			if found := len(page.Leases) == 1 && page.Leases[0].Status == want; found != (state.live || !live) {
				t.Errorf("%s, listed with live=%t: got %+v", want, live, page.Leases)
			}
		}
	}
}

// An agent's owner may view its lease but not abandon it. A person whom policy lets
// revoke may. An abandoned lease never becomes revoked, and the log verifies.
func TestAbandonByPeople(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	ctx, lease := t.Context(), w.issue(agent, "gone").Lease
	must[*api.Lease](t)(w.as(agent).Revoke(ctx, lease, "done"))
	for who, want := range map[string]api.Code{"login/ana": api.Denied, "login/zoe": api.NotFound, agent: api.Denied} {
		if _, err := w.as(who).Abandon(ctx, lease, "gone"); !errors.Is(err, want) {
			t.Errorf("abandoned by %s: %v", who, err)
		}
	}
	cleo := w.as("login/cleo")
	if l := must[*api.Lease](t)(cleo.Abandon(ctx, lease, "the cluster was deleted")); l.Status != api.LeaseAbandoned {
		t.Errorf("abandoned: %+v", l)
	}
	must[*api.Lease](t)(cleo.Revoke(ctx, lease, "incident"))
	must[*api.KillPreview](t)(w.as(operator).Kill(ctx, api.Kill{Selector: api.Selector{Holder: agent}, Reason: "incident", Force: true}))
	if l := must[*api.Lease](t)(w.as(agent).Lease(ctx, lease)); l.Status != api.LeaseAbandoned || l.Revocation == "immediate" {
		t.Errorf("after the kill: %+v", l)
	}
	if report, err := verify.Verify(ctx, w.store.Source(), verify.Options{}); err != nil || len(report.Problems) > 0 {
		t.Errorf("the log: %+v, %v", report, err)
	}
}
