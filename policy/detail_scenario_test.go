package policy_test

import (
	"strings"
	"testing"
	"testing/fstest"

	"accessbroker.internal/broker"
	"accessbroker.internal/policy"
)

const refundPolicies = `@id("small-refunds") @max_ttl("5m")
permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource == Entitlement::"tickets-api")
when { context has detail && context.detail.type == "ticket" && ["close"].containsAll(context.detail.actions) && context.detail has tool && context.detail.tool == "refund" &&
  context.detail.arguments.hasTag("amount") && context.detail.arguments.getTag("amount").maximum <= 50 };`

// Scenarios state fine grants, and an explanation is about the element that is denied. A type
// or an argument that no entitlement declares is a warning.
func TestScenariosStateFineGrants(t *testing.T) {
	t.Parallel()
	in := inputs(fstest.MapFS{"a.cedar": {Data: []byte(refundPolicies + strings.ReplaceAll(strings.ReplaceAll(refundPolicies, "small-refunds", "typo"), `"ticket"`, `"tikcet"`))}, "groups.yaml": {Data: []byte("support: {members: [login/ana]}\ndba: {members: [login/ana]}\n")}})
	in.Catalogue["tickets-api"].Audience = "https://tickets.acme.test"
	in.Catalogue["tickets-api"].Details = map[string]*broker.DetailType{"ticket": {Actions: []string{"close", "read"}, Tools: map[string]broker.Tool{
		"refund": {Arguments: map[string]broker.Argument{"amount": {ArgumentBound: broker.ArgumentBound{Number: true, Max: 100}}}},
	}}}
	e, err := policy.Load(in)
	if err != nil {
		t.Fatal(err)
	}
	const head = `
    principal: spiffe://acme.test/agent/triage
    entitlement: tickets-api
    scopes: [tickets:read]
    authorization_details:
      - {type: ticket, actions: [close], tool: refund, arguments: {amount: {minimum: 0, maximum: 50}}}`
	report, err := policy.Test(t.Context(), e, fstest.MapFS{"d_test.yaml": {Data: []byte(`scenarios:
  - name: a small refund` + head + `
    expect: permit
    policies: [small-refunds]
  - name: a large refund beside it` + head + `
      - {type: ticket, actions: [close], tool: refund, arguments: {amount: {minimum: 0, maximum: 51}}}
    expect: deny
  - name: no details
    principal: spiffe://acme.test/agent/triage
    entitlement: tickets-api
    scopes: [tickets:read]
    expect: deny
`)}})
	if err != nil || report.Ran != 3 || len(report.Failures) > 0 {
		t.Fatalf("got %v, %v", report, err)
	}
	q := query(triage, "tickets-api", "tickets:read")
	q.Entitlement = in.Catalogue["tickets-api"]
	refund := func(most int) broker.Detail {
		return broker.Detail{Type: "ticket", Actions: []string{"close"}, Tool: "refund", Arguments: []broker.ArgumentBound{{Name: "amount", Number: true, Max: most}}}
	}
	q.Details = []broker.Detail{refund(1), refund(60)}
	if x := e.Explain(t.Context(), q, noon); x.Permit || !strings.HasPrefix(x.Element, "element 2 of 2: ticket: close tool refund with amount from 0 to 60") {
		t.Errorf("got %+v", x)
	}
	if !strings.Contains(strings.Join(e.Warnings(), "\n"), `has the type of details "tikcet": did you mean "ticket"?`) {
		t.Errorf("got warnings %q", e.Warnings())
	}
	// The inventory knows what is permitted with details alone.
	list, _ := e.Permits(identity(triage), 10)
	if got := reaches(list); !strings.Contains(got, "small-refunds: tickets-api[tickets:close tickets:comment tickets:read]") {
		t.Errorf("got permits %q", got)
	}
}
