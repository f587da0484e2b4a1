package policy_test

import (
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/policy"
)

// marked loads policies with one mark on the agents.
func marked(t *testing.T, policies string, change func(*broker.WorkloadLabels)) (*policy.Engine, error) {
	t.Helper()
	in := inputs(fstest.MapFS{"a.cedar": {Data: []byte(policies)}, "groups.yaml": {Data: []byte("support: {members: [login/ana]}\ndba: {members: [login/ana]}\n")}})
	change(&in.Labels[0])
	return policy.Load(in)
}

func TestLoadRejectsCeilingsWithUnknownNames(t *testing.T) {
	t.Parallel()
	for want, part := range map[string]broker.CeilingPart{
		`entitlement "tickets-ap" does not exist`:                   {Entitlement: "tickets-ap"},
		`entitlement "tickets-api" has no scope "tickets:delete"`:   {Entitlement: "tickets-api", Scopes: []string{"tickets:delete"}},
		`entitlement "orders-db-ro" has no scopes: write orders-db`: {Entitlement: "orders-db-ro", Scopes: []string{"read"}},
	} {
		_, err := marked(t, "", func(m *broker.WorkloadLabels) { m.Ceiling = &broker.Ceiling{Parts: []broker.CeilingPart{part}} })
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want an error with %q", err, want)
		}
	}
}

// The decision, its explanation, the permits of the identity and the warnings respect a
// ceiling. Conditions on purpose and model see the marks.
func TestCeilingsInTheToolsOfPolicies(t *testing.T) {
	t.Parallel()
	const policies = `@id("tickets") permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource == Entitlement::"tickets-api")
when { principal is Agent && principal has purpose && principal.purpose == "sorts tickets" && principal has model && principal.model like "claude-*" };
@id("orders") permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource == Entitlement::"orders-db-ro");
@id("everyone") permit (principal in TrustDomain::"acme.test", action == Action::"request", resource == Entitlement::"orders-db-ro");`
	e, err := marked(t, policies, func(m *broker.WorkloadLabels) {
		m.Purpose, m.Model = "sorts tickets", "claude-opus"
		m.Ceiling = &broker.Ceiling{Parts: []broker.CeilingPart{{Entitlement: "tickets-api", Scopes: []string{"tickets:comment", "tickets:read"}}}}
	})
	if err != nil {
		t.Fatal(err)
	}
	rules := e.Rules()
	ask := func(entitlement string, scopes ...string) broker.Query {
		q := query(triage, entitlement, scopes...)
		q.Principal = rules.WithLabels(q.Principal)
		return q
	}
	for range 2 { // the second decision is remembered
		if d := decide(t, e, ask("tickets-api", "tickets:read")); !d.Permit {
			t.Errorf("within the ceiling: got %+v", d)
		}
		for _, q := range []broker.Query{ask("tickets-api", "tickets:close"), ask("tickets-api", "tickets:close", "tickets:read"), ask("orders-db-ro")} {
			if d := decide(t, e, q); d.Permit || len(d.Reasons) != 1 || !strings.Contains(d.Reasons[0], "no policy can permit") {
				t.Errorf("%s %v: got %+v", q.Entitlement.Name, q.Scopes, d)
			}
		}
	}
	x := e.Explain(t.Context(), ask("tickets-api", "tickets:close"), noon)
	if !strings.Contains(x.Outside, "has only tickets:comment tickets:read of tickets-api") || len(x.Alternatives) != 2 {
		t.Errorf("got explanation %+v", x)
	}
	list, _ := e.Permits(rules.WithLabels(identity(triage)), 10)
	if got, want := reaches(list), "tickets: tickets-api[tickets:comment tickets:read]\n"; got != want {
		t.Errorf("got permits %q, want %q", got, want)
	}
	var got []string
	for _, w := range e.Warnings() {
		if strings.Contains(w, "ceiling") {
			got = append(got, w[strings.Index(w, "policy "):])
		}
	}
	slices.Sort(got)
	want := []string{
		`policy "orders": orders-db-ro is above the ceiling of its principals`,
		`policy "tickets": tickets:close of tickets-api is above the ceiling of its principals`,
	}
	if len(got) != 2 || !strings.HasPrefix(got[0], want[0]) || !strings.HasPrefix(got[1], want[1]) {
		t.Errorf("got warnings %q, want %q", got, want)
	}
}

// A mark's new keys are part of the revision, and those who review the mark read them.
func TestMarksInTheRevisionAndInReviews(t *testing.T) {
	t.Parallel()
	plain, err := marked(t, "", func(*broker.WorkloadLabels) {})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]string{plain.Revision().String(): "no marks"}
	for name, change := range map[string]func(*broker.WorkloadLabels){
		"purpose: sorts":   func(m *broker.WorkloadLabels) { m.Purpose = "sorts" },
		"model: claude":    func(m *broker.WorkloadLabels) { m.Model = "claude" },
		"ceiling: nothing": func(m *broker.WorkloadLabels) { m.Ceiling = &broker.Ceiling{} },
		"ceiling: orders-db-ro: all": func(m *broker.WorkloadLabels) {
			m.Ceiling = &broker.Ceiling{Parts: []broker.CeilingPart{{Entitlement: "orders-db-ro"}}}
		},
		"ends: 2026-12-31T00:00:00Z": func(m *broker.WorkloadLabels) { m.Ends = time.Date(2026, 12, 31, 0, 0, 0, 0, time.UTC) },
	} {
		e, err := marked(t, "", change)
		if err != nil {
			t.Fatal(err)
		}
		if before := seen[e.Revision().String()]; before != "" {
			t.Errorf("%s: got the revision of %s", name, before)
		}
		seen[e.Revision().String()] = name
		item, ok := e.Find(broker.PermissionKey{Kind: broker.PermissionMark, Name: "spiffe://acme.test/agent"})
		if !ok || !strings.Contains(item.Content, "\n"+name+"\n") {
			t.Errorf("%s: got the item %q", name, item.Content)
		}
	}
}
