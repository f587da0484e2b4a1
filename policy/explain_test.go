package policy_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/fstest"

	"accessbroker.internal/broker"
	"accessbroker.internal/policy"
)

func TestExplainText(t *testing.T) {
	t.Parallel()
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

// The verdicts are in the order errors, forbids that apply, permits that apply,
// permits and forbids that do not, and near misses.
func TestExplainOrdersVerdicts(t *testing.T) {
	t.Parallel()
	const head = `(principal is Workload, action == Action::"request", resource == Entitlement::"tickets-api") `
	e := load(t, fstest.MapFS{"groups.yaml": {Data: []byte(groupsText)}, "a.cedar": {Data: []byte(`
		@id("a-near-miss") permit (principal is Agent, action == Action::"request", resource == Entitlement::"tickets-api");
		@id("b-forbid-unmet") forbid ` + head + `unless { context.scopes.contains("tickets:close") || context.scopes.contains("tickets:read") };
		@id("c-permit-unmet") permit ` + head + `when { context.break_glass };
		@id("d-permit") permit ` + head + `;
		@id("e-forbid") forbid ` + head + `unless { context.break_glass || context.scopes.contains("tickets:close") };
		@id("f-error") permit ` + head + `when { context.ttl.toMilliseconds() * 9000000000000000 > 0 };
		@id("g-permit-home") permit (principal, action == Action::"request", resource == Entitlement::"reports");
		`)}})
	var b strings.Builder
	for i := range 25 {
		fmt.Fprintf(&b, `@id("p%d") permit (principal in Path::"spiffe://acme.test/team-%d", action == Action::"request", resource == Entitlement::"tickets-api");`, i, i)
	}
	crowded := loadText(t, b.String())
	b.Reset()
	for _, x := range []struct {
		name string
		e    *policy.Engine
		q    broker.Query
	}{
		{"every kind of verdict", e, query(billing, "tickets-api", "tickets:read")},
		{"federated principal", e, query("spiffe://supplier.test/sync", "reports", "read")},
		{"no policy on the action", e, broker.Query{Principal: identity("login/cleo"), Action: broker.ActionAudit}},
		{"more near misses than the limit", crowded, query(billing, "tickets-api", "tickets:read")},
		{"alternative without obligations", loadText(t, `@id("p") permit (principal, action == Action::"request", resource) when { context.scopes == ["read"] };`), query(billing, "reports", "read", "write")},
	} {
		fmt.Fprintf(&b, "# %s\n%s\n", x.name, x.e.Explain(context.Background(), x.q, noon))
	}
	golden(t, "testdata/verdicts.golden", b.String())
}

func TestExplainLimitsNearMisses(t *testing.T) {
	t.Parallel()
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
	t.Parallel()
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
