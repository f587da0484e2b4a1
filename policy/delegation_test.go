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

const delegationPolicies = `
@id("staff") @max_ttl("10m") @delegates("2") @approval("1 of leads")
permit (principal in Group::"leads", action == Action::"request", resource == Entitlement::"tickets-api")
when { context has actor && context.actor has agent && context.actor.agent in Path::"spiffe://acme.test/agent" };

@id("agents") @max_ttl("5m") @delegates("1") @justification("required")
permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource == Entitlement::"tickets-api")
when { context has on_behalf_of && context.on_behalf_of has person && context.on_behalf_of.person in Group::"leads" && context.depth <= 2 };
`

func delegationEngine(t *testing.T) *policy.Engine {
	t.Helper()
	e, err := policy.Load(policy.Inputs{
		FS: fstest.MapFS{
			"all.cedar":   {Data: []byte(delegationPolicies)},
			"groups.yaml": {Data: []byte("leads:\n  members: [login/ana, login/bo]\n")},
		},
		HomeDomain: "acme.test", TrustDomains: []string{"acme.test"}, Providers: []string{"login"},
		Labels:    []broker.WorkloadLabels{{Under: "spiffe://acme.test/agent", Kind: broker.KindAgent, Accountable: []string{"login/bo"}}},
		Catalogue: broker.Catalogue{"tickets-api": {Name: "tickets-api", Issuer: "tickets", Scopes: []string{"tickets:read"}, MaxTTL: time.Hour}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// A scenario with on_behalf_of decides both sides: silence of either denies, and the
// obligations of both add up.
func TestScenariosDecideBothSides(t *testing.T) {
	t.Parallel()
	e := delegationEngine(t)
	r, err := policy.Test(t.Context(), e, fstest.MapFS{"d_test.yaml": {Data: []byte(`scenarios:
  - name: both permit
    principal: spiffe://acme.test/agent/triage
    on_behalf_of: login/ana
    entitlement: tickets-api
    scopes: [tickets:read]
    expect: permit
    policies: [agents, staff]
    obligations: {approval: 1 of leads, max_ttl: 5m, justification: required, delegates: "1"}
  - name: a person whom no policy names
    principal: spiffe://acme.test/agent/triage
    on_behalf_of: login/carl
    entitlement: tickets-api
    scopes: [tickets:read]
    expect: deny
  - name: no policy permits the workload
    principal: spiffe://acme.test/batch
    on_behalf_of: login/ana
    entitlement: tickets-api
    scopes: [tickets:read]
    expect: deny
  - name: the agent for itself
    principal: spiffe://acme.test/agent/triage
    entitlement: tickets-api
    scopes: [tickets:read]
    expect: deny
  - name: the person for themselves
    principal: login/ana
    entitlement: tickets-api
    scopes: [tickets:read]
    expect: deny
  - name: too many actors
    principal: spiffe://acme.test/agent/triage
    on_behalf_of: login/ana
    depth: 3
    entitlement: tickets-api
    scopes: [tickets:read]
    expect: deny
  - name: on behalf of an agent
    principal: spiffe://acme.test/agent/triage
    on_behalf_of: spiffe://acme.test/agent/other
    entitlement: tickets-api
    scopes: [tickets:read]
    expect: deny
`)}})
	if err != nil || r.Ran != 7 || len(r.Failures) > 0 {
		t.Errorf("got %d scenarios, %v\n%s", r.Ran, err, r)
	}
	for _, wrong := range []string{"depth: 2", "on_behalf_of: ana"} {
		r, err := policy.Test(t.Context(), e, fstest.MapFS{"d_test.yaml": {Data: []byte(
			"scenarios:\n  - name: wrong\n    principal: spiffe://acme.test/agent/triage\n    entitlement: tickets-api\n    scopes: [tickets:read]\n    expect: deny\n    " + wrong + "\n")}})
		if err == nil && len(r.Failures) == 0 {
			t.Errorf("%s: got no error", wrong)
		}
	}
}

// An explanation shows the policies of both sides.
func TestExplainShowsBothSides(t *testing.T) {
	t.Parallel()
	e := delegationEngine(t)
	for subject, want := range map[string][]string{
		"login/ana":  {"permit\n", "requires delegates: 1", "at most 5m", "permit agents (all.cedar:6) applies", "permit staff (all.cedar:2) applies"},
		"login/carl": {"deny\n", "permit agents (all.cedar:6) does not apply", "policies for login/carl, on whose behalf:\n", "permit staff (all.cedar:2) does not apply"},
	} {
		triage, err := e.ParsePrincipal("spiffe://acme.test/agent/triage")
		if err != nil {
			t.Fatal(err)
		}
		who, err := e.ParsePrincipal(subject)
		if err != nil {
			t.Fatal(err)
		}
		q := broker.Query{
			Principal: triage, OnBehalfOf: &who, Depth: 1, Action: broker.ActionRequest, Entitlement: &broker.Entitlement{Name: "tickets-api"},
			Scopes: []string{"tickets:read"}, TTL: time.Minute, Duration: time.Minute, Justification: "x",
		}
		text := e.Explain(t.Context(), q, time.Now()).String()
		for _, w := range want {
			if !strings.Contains(text, w) {
				t.Errorf("%s: got\n%s\nwant %q", subject, text, w)
			}
		}
	}
}

// The inventory counts a permit that only delegations meet.
func TestPermitsListDelegations(t *testing.T) {
	t.Parallel()
	e := delegationEngine(t)
	triage, err := e.ParsePrincipal("spiffe://acme.test/agent/triage")
	if err != nil {
		t.Fatal(err)
	}
	list, _ := e.Permits(triage, 10)
	if !slices.ContainsFunc(list, func(p *broker.Permit) bool { return p.ID == "agents" && len(p.Reaches) == 1 }) {
		t.Errorf("got %d permits, want agents to reach tickets-api", len(list))
	}
}

func TestDelegatesIsBounded(t *testing.T) {
	t.Parallel()
	for value, ok := range map[string]bool{"1": true, "8": true, "0": false, "9": false, "two": false, "": false} {
		_, err := policy.Load(policy.Inputs{
			FS:         fstest.MapFS{"a.cedar": {Data: []byte(`@id("p") @delegates("` + value + `") permit (principal, action == Action::"request", resource);`)}},
			HomeDomain: "acme.test", TrustDomains: []string{"acme.test"}, Catalogue: broker.Catalogue{},
		})
		if (err == nil) != ok {
			t.Errorf("%q: got %v", value, err)
		}
	}
}
