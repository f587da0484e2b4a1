package brokertest

import (
	"errors"
	"strings"
	"testing"

	"accessbroker.internal/api"
	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/store"
)

// What one replica issues, another one introspects; what one ends, has ended everywhere when
// the call returns.
func TestReplicasAgreeOnTokens(t *testing.T) {
	r := Replicas(t, 2)
	a, b := r[0], r[1]
	token, err := a.Token(Agent, "tickets:read")
	if err != nil {
		t.Fatal(err)
	}
	for i, one := range r {
		if in, err := one.Client(Tickets).Introspect(t.Context(), token.AccessToken); err != nil || !in.Active {
			t.Fatalf("replica %d: got %+v, %v; want an active token", i, in, err)
		}
	}
	if l, err := b.Bearer(Agent).Revoke(t.Context(), token.Lease, "done"); err != nil || l.Status != api.LeaseRevoked {
		t.Fatalf("got %+v, %v", l, err)
	}
	for i, one := range r {
		if in, err := one.Client(Tickets).Introspect(t.Context(), token.AccessToken); err != nil || in.Active {
			t.Errorf("replica %d: got %+v, %v; want a token that has ended", i, in, err)
		}
	}
}

// further is a policy that some replicas have and others do not.
const further = `
@id("further")
permit (principal in Path::"spiffe://acme.test/further", action == Action::"request", resource == Entitlement::"tickets-api");
`

// addPolicy adds a policy to the files of one replica.
func (b *Broker) addPolicy() { b.write("policies/further.cedar", further) }

func (b *Broker) reload() {
	b.t.Helper()
	if _, err := b.service.Reload(b.t.Context(), broker.Identity{ID: "admin-socket/0", Kind: broker.KindOperator}); err != nil {
		b.t.Fatal(err)
	}
}

// ready waits until the state of a replica is as wanted: a result is reused for a second.
func (b *Broker) ready(what string, wanted func(*api.Readiness) bool) {
	b.t.Helper()
	Eventually(b.t, what, func() bool {
		ready, err := b.Anonymous().Ready(b.t.Context())
		return err == nil && wanted(ready)
	})
}

// revision returns the revision by which a replica decides.
func (b *Broker) revision() string {
	b.t.Helper()
	list, err := store.ReplicasOf(b.Store).List(b.t.Context())
	b.must(err)
	for _, r := range list {
		if r.Name == b.service.Replica() {
			return r.Revision
		}
	}
	return ""
}

// A replica whose rules another one has replaced decides by its own for a while, and follows
// when it has the same files.
func TestReplicasFollowRules(t *testing.T) {
	r := startReplicas(t, 2, files{operator: "replicas: {revision_grace: 1h}\n"})
	a, b := r[0], r[1]
	a.addPolicy()
	a.reload()
	if _, err := b.Token(Agent, "tickets:read"); err != nil {
		t.Errorf("within the grace: got %v", err)
	}
	b.ready("a replica that is ready, and warns of its rules", func(r *api.Readiness) bool {
		return r.Ready && strings.Contains(r.Degraded["rules"], "is in force since")
	})
	if _, err := b.Token("spiffe://acme.test/further/x", "tickets:read"); !errors.Is(err, api.Denied) {
		t.Errorf("by the rules before: got %v, want a denial", err)
	}
	b.addPolicy()
	Eventually(t, "the replica with the same files follows", func() bool {
		_, err := b.Token("spiffe://acme.test/further/x", "tickets:read")
		return err == nil
	})
	Eventually(t, "both replicas show one revision", func() bool { return a.revision() != "" && a.revision() == b.revision() })
	b.ready("a replica without a warning", func(r *api.Readiness) bool { return r.Ready && r.Degraded["rules"] == "" })
	loaded := 0
	for _, record := range a.Records() {
		if record.Kind == audit.PolicyLoaded {
			loaded++
		}
	}
	if loaded != 3 { // two starts and one reload
		t.Errorf("got %d records of loaded policies, want 3: a replica that follows records nothing", loaded)
	}
}

// Without a grace, a replica with other rules issues nothing. It does not put them in force
// by starting again, but only on an operator's word.
func TestReplicaWithStaleRulesIsNotReady(t *testing.T) {
	r := startReplicas(t, 2, files{operator: "replicas: {revision_grace: 0s}\n"})
	a, b := r[0], r[1]
	Eventually(t, "both replicas are announced", func() bool { return a.revision() != "" && b.revision() != "" })
	a.addPolicy()
	a.reload()
	stale := func(when string) {
		t.Helper()
		if _, err := b.Token(Agent, "tickets:read"); !errors.Is(err, api.Unavailable) {
			t.Errorf("%s: got %v, want %s", when, err, api.Unavailable)
		}
		b.ready(when+": a replica that is not ready because of its rules", func(r *api.Readiness) bool {
			return !r.Ready && strings.Contains(r.NotReady["rules"], "nothing is issued here")
		})
		if _, err := a.Token("spiffe://acme.test/further/x", "tickets:read"); err != nil {
			t.Errorf("%s, by the replica with the new rules: got %v", when, err)
		}
	}
	stale("after a reload of the other replica")
	b.restart()
	stale("after a restart")
	b.reload()
	if _, err := b.Token(Agent, "tickets:read"); err != nil {
		t.Errorf("after its reload: got %v", err)
	}
	a.ready("the replica whose rules were replaced is not ready", func(r *api.Readiness) bool { return !r.Ready })
}
