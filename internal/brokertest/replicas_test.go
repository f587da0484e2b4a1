package brokertest

import (
	"testing"

	"accessbroker.internal/api"
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
