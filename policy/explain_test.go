package policy_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"accessbroker.internal/broker"
)

func TestExplainText(t *testing.T) {
	e := sample(t)
	outside := query(billing, "orders-db-ro")
	outside.SourceIP = outside.SourceIP.Prev().Unmap()
	outside.Principal = identity(billing)
	late := query("spiffe://acme.test/batch/a", "reports", "read")
	late.Parameters = map[string]string{"prefix": "a"}
	queries := []struct {
		name string
		q    broker.Query
	}{
		{"permit", query(triage, "tickets-api", "tickets:close")},
		{"too many scopes", query("spiffe://supplier.test/sync", "tickets-api", "tickets:read", "tickets:comment")},
		{"condition on time", late},
		{"forbid", query(triage, "orders-db-ro")},
		{"federated domain", query("spiffe://supplier.test/other", "orders-db-ro")},
		{"action on a request", onRequest("login/ben", broker.ActionView, triage)},
		{"action on the broker", broker.Query{Principal: identity("login/cleo"), Action: broker.ActionAudit}},
		{"invalid query", query(triage, "tickets-api", "tickets:reed")},
	}
	var b strings.Builder
	for _, x := range queries {
		fmt.Fprintf(&b, "# %s\n%s\n", x.name, e.Explain(context.Background(), x.q, noon))
	}
	golden(t, "testdata/explain.golden", b.String())
}

func TestExplainLimitsNearMisses(t *testing.T) {
	var text strings.Builder
	for i := range 100 {
		fmt.Fprintf(&text, `@id("p%d") permit (principal in Path::"spiffe://acme.test/team-%d", action == Action::"request", resource == Entitlement::"tickets-api");`, i, i)
	}
	x := loadText(t, text.String()).Explain(context.Background(), query("spiffe://acme.test/team-50/a", "tickets-api", "tickets:read"), noon)
	if !x.Permit || x.Policies[0].ID != "p50" || !x.Policies[0].Applies || len(x.Policies) != 21 || x.NearMisses != 79 {
		t.Errorf("got permit %v, %d verdicts, first %+v, %d left off", x.Permit, len(x.Policies), x.Policies[0], x.NearMisses)
	}
}

func TestExplainAgreesWithDecide(t *testing.T) {
	e, permitted, denied := sample(t), 0, 0
	for _, who := range []string{triage, billing, "login/ana", "spiffe://supplier.test/sync/a", "spiffe://acme.test/batch/b"} {
		for name, about := range catalogue() {
			for _, s := range append(about.Scopes, "") {
				q := query(who, name, s)
				if s == "" {
					q.Scopes = about.Scopes
				}
				d := decide(t, e, q)
				if d.Permit {
					permitted++
				} else {
					denied++
				}
				applying := map[string]bool{}
				for _, v := range e.Explain(context.Background(), q, noon).Policies {
					if v.Applies && (v.Effect == "permit") == d.Permit {
						applying[v.ID] = true
					}
				}
				if len(applying) != len(d.Policies) {
					t.Errorf("%s, %s %s: Decide names %q, Explain %v", who, name, q.Scopes, d.Policies, applying)
				}
			}
		}
	}
	if permitted < 5 || denied < 5 {
		t.Errorf("got %d permits and %d denials, want at least 5 of each", permitted, denied)
	}
}
