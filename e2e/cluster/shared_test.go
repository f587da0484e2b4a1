package cluster

import (
	"testing"

	"accessbroker.internal/api"
)

// TestSharedWorld starts three replicas on a PostgreSQL with a standby, two of them through
// PgBouncer or relays, behind a balancer.
func TestSharedWorld(t *testing.T) {
	t.Parallel()
	w, err := Start(t.Context(), Options{Replicas: 3, Balancer: true, Postgres: &PostgresOptions{}, Standby: true, PgBouncer: true, Relays: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := w.Close(); err != nil {
			t.Log(err) // a broker whose connection is cut while it stops says so
		}
	}()
	for _, b := range append([]*Broker{nil}, w.Replicas...) {
		c := w.Client(b, "spiffe://acme.test/service/report")
		got, _, err := c.AskAndCollect(t.Context(), api.Ask{Entitlement: "tickets-api", Scopes: []string{"tickets:read"}})
		if err != nil || got.Secret["token"] == "" {
			t.Errorf("asking %s: %v", c.BaseURL, err)
		}
	}
}
