package policy_test

import (
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"accessbroker.internal/broker"
	"accessbroker.internal/policy"
)

const (
	requesting = `principal, action == Action::"request", resource`
	agents     = `principal is Agent, action == Action::"request", resource`
	onView     = `principal, action == Action::"view", resource`
)

// literalInputs has one value of every kind that a policy may compare a literal with.
func literalInputs(cedar string) policy.Inputs {
	in := inputs(fstest.MapFS{
		"a.cedar": {Data: []byte(cedar)},
		"groups.yaml": {Data: []byte("support: {members: [login/ana]}\ndba: {members: [login/cleo]}\n" +
			"security: {members: [login/ana]}\nbots: {workloads: [\"spiffe://acme.test/agent\"]}\n")},
	})
	in.Labels = append(in.Labels, broker.WorkloadLabels{Under: "spiffe://supplier.test/etl", Kind: broker.KindWorkload, Team: "suppliers"})
	in.Aliases = [][]string{{"login/ana", "login/ana.admin"}}
	in.Catalogue["reports"].Labels = map[string]string{"tier": "gold"}
	in.Catalogue["reports"].Parameters = map[string]broker.Parameter{
		"account": {Pattern: regexp.MustCompile(`^(?:[0-9]{4})$`)}, "note": {MaxLength: 5},
	}
	return in
}

// literalWarnings returns the warnings of the policy "x".
func literalWarnings(t *testing.T, cedar string) (found []string) {
	t.Helper()
	e, err := policy.Load(literalInputs(cedar))
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range e.Warnings() {
		if strings.Contains(w, `policy "x"`) {
			found = append(found, w)
		}
	}
	return found
}

func TestWarningsOnLiterals(t *testing.T) {
	t.Parallel()
	tests := []struct{ head, condition, want string }{
		// Principals.
		{requesting, `(principal is Agent || principal is Workload) && principal has team && principal.team == "suport"`,
			`a.cedar:2:97: policy "x": none of the forbid's principals has the team "suport": did you mean "support"?`},
		{agents, `principal has team && principal.team != "suport"`, `has the team "suport": did you mean "support"?`},
		{agents, `principal has team && ["suport"].contains(principal.team)`, `has the team "suport"`},
		{agents, `principal has team && principal.team == (if context.break_glass then "support" else "helpdesk")`,
			`has the team "helpdesk": correct it or set the team in attest.workloads`},
		{agents, `principal has team && principal.team like "dev-*"`, `none of the forbid's principals has a team like "dev-*": correct the pattern`},
		{agents, `principal has team && principal.team == "suppliers"`, `has the team "suppliers": correct it or the policy's head`},
		{agents, `principal.accountable.contains("login/anna")`, `2:39: policy "x": none of the forbid's principals has the accountable person "login/anna": did you mean "login/ana"?`},
		{agents, `principal.accountable.containsAny(["login/ana", "login/bob"])`, `has the accountable person "login/bob": correct it or list the person under accountable`},
		{agents, `["login/bob"].containsAll(principal.accountable)`, `accountable person "login/bob"`},
		{agents, `principal.trust_domain == "acme.tset"`, `has the trust domain "acme.tset": did you mean "acme.test"?`},
		{`principal is Person, action == Action::"request", resource`, `principal.provider == "logon"`, `has the provider "logon": did you mean "login"?`},
		{requesting, `principal.id == "ana"`, `can have the id "ana": "ana" is not a person`},
		{requesting, `principal.id == "logn/ana"`, `can have the id "logn/ana": provider "logn" does not exist: did you mean "login"?`},
		{requesting, `["spiffe://acme.tst/agent"].contains(principal.id)`, `trust domain "acme.tst" does not exist: did you mean "acme.test"?`},
		{requesting, `principal.id like "spiffe://acme.tst/agent/*"`, `none of the forbid's principals can have an id like "spiffe://acme.tst/agent/*": trust domain "acme.tst" does not exist`},
		{requesting, `principal.id like "logn/*"`, `provider "logn" does not exist`},
		{agents, `principal.id == "login/ana"`, `the policy's head matches only workloads`},
		{`principal is Person, action, resource`, `principal.id == "spiffe://acme.test/agent/a"`, `the policy's head matches only people`},
		{`principal in Path::"spiffe://acme.test/agent", action, resource`, `principal.id == "spiffe://acme.test/agnet/a"`, `matches only ids in spiffe://acme.test/agent`},
		{agents, `principal in Group::"dba"`, `none of the forbid's principals can be in group "dba", which has no workloads: add workloads`},
		{`principal is Person, action, resource`, `principal in [Group::"dba", Group::"bots"]`, `can be in group "bots", which has no people: add members or claims`},
		// Entitlements.
		{requesting, `resource.hasTag("enviroment")`, `2:24: policy "x": none of the forbid's entitlements has the label "enviroment": correct it or add the label`},
		{requesting, `resource.hasTag("evn")`, `has the label "evn": did you mean "env"?`},
		{requesting, `resource.hasTag("evn") && resource.getTag("evn") == "prod"`, `has the label "evn"`},
		{requesting, `resource.hasTag("env") && resource.getTag("env") == "prd"`, `2:60: policy "x": none of the forbid's entitlements has the label "env" with the value "prd": did you mean "prod"?`},
		{requesting, `resource.hasTag("env") && resource.getTag("env") like "stag*"`, `has the label "env" with a value like "stag*": correct the pattern`},
		{`principal, action == Action::"request", resource == Entitlement::"reports"`, `resource.hasTag("env")`, `has the label "env": correct it or the policy's head`},
		{requesting, `Entitlement::"reports".hasTag("env")`, `entitlement "reports" never has the label "env"`},
		{requesting, `Entitlement::"reports".issuer == "vault"`, `entitlement "reports" never has the issuer "vault"`},
		{requesting, `resource.issuer == "valt"`, `none of the forbid's entitlements has the issuer "valt": did you mean "vault"?`},
		{requesting, `resource has owner && resource.owner == Group::"security"`, `has the owner "security": correct it`},
		{requesting, `resource has owner && resource.owner in [Group::"dba", Group::"security"]`, `has the owner "security"`},
		{requesting, `resource.scopes.contains("tickets:raed")`, `has the scope "tickets:raed": did you mean "tickets:read"?`},
		{`principal, action, resource in System::"orders"`, `resource == Entitlement::"reports"`, `the policy's head leaves out Entitlement::"reports"`},
		{`principal, action, resource == Entitlement::"reports"`, `resource in System::"orders"`, `the policy's head leaves out System::"orders"`},
		// Parameters.
		{requesting, `context.parameters.hasTag("acount")`, `2:34: policy "x": none of the forbid's entitlements has the parameter "acount": did you mean "account"?`},
		{requesting, `context.parameters.hasTag("region")`, `has the parameter "region": correct it or add the parameter to an entitlement`},
		{requesting, `context.parameters.hasTag("account") && context.parameters.getTag("account") == "12"`, `accepts "12" as the parameter "account": correct it or the parameter's pattern`},
		{requesting, `context.parameters.hasTag("note") && context.parameters.getTag("note") == "123456"`, `accepts "123456" as the parameter "note"`},
		// Requests.
		{onView, `resource is Request && resource has team && resource.team == "suport"`, `none of the forbid's requesters has the team "suport": did you mean "support"?`},
		{onView, `resource.accountable.contains("login/anna")`, `none of the forbid's requesters has the accountable person "login/anna"`},
		{onView, `resource.requester == "logn/ana"`, `none of the forbid's requesters can have the id "logn/ana"`},
		{`principal, action == Action::"view", resource is Request in System::"orders"`, `resource.scopes.contains("tickets:read")`, `has the scope "tickets:read": correct it or the policy's head`},
	}
	for _, test := range tests {
		t.Run(test.condition, func(t *testing.T) {
			got := literalWarnings(t, "@id(\"x\") forbid ("+test.head+")\nwhen { "+test.condition+" };")
			if len(got) != 1 || !strings.Contains(got[0], test.want) {
				t.Errorf("got warnings:\n  %s\nwant one with:\n  %s", strings.Join(got, "\n  "), test.want)
			}
		})
	}
}

// TestNoWarningsOnOpenSets checks that literals that a caller may send, or that a
// provider or another trust domain chooses, lead to no warning.
func TestNoWarningsOnOpenSets(t *testing.T) {
	t.Parallel()
	tests := []struct{ head, condition string }{
		{agents, `principal has team && principal.team == "support" && principal.accountable.contains("login/ana")`},
		{agents, `principal.accountable.contains("login/ana.admin")`},
		{`principal in TrustDomain::"supplier.test", action, resource`, `principal has team && principal.team == "suppliers"`},
		{`principal in TrustDomain::"supplier.test", action, resource`, `principal.trust_domain == "supplier.test"`},
		{requesting, `principal is Workload && principal has team && principal.team like "supp*"`},
		{requesting, `principal is Workload && principal.trust_domain == "supplier.test"`},
		{requesting, `principal.id == "login/someone" || principal.id == "spiffe://supplier.test/anything"`},
		{requesting, `principal.id like "spiffe://acme.*" || principal.id like "log*"`},
		{requesting, `principal in Group::"dba" || principal in Group::"bots" || principal in Path::"spiffe://acme.test/new"`},
		{requesting, `context has ticket && context.ticket == "INC-1" && context has justification && context.justification like "*urgent*"`},
		{requesting, `context has source_ip && context.source_ip.isInRange(ip("10.0.0.0/8"))`},
		{requesting, `context.parameters.hasTag("account") && context.parameters.getTag("account") == "1234"`},
		{requesting, `context.parameters.hasTag("note") && context.parameters.getTag("note") like "acme-customer-*"`},
		{requesting, `resource.hasTag("env") && resource.getTag("env") == "prod" && resource has owner && resource.owner == Group::"dba"`},
		{requesting, `resource in System::"orders" || resource == Entitlement::"reports"`},
		{requesting, `Entitlement::"orders-db-ro".hasTag("env") && Entitlement::"orders-db-ro".getTag("env") == "prod"`},
		{onView, `resource.requester == "spiffe://supplier.test/x" && resource.scopes.contains("tickets:read")`},
	}
	for _, test := range tests {
		t.Run(test.condition, func(t *testing.T) {
			if got := literalWarnings(t, "@id(\"x\") forbid ("+test.head+")\nwhen { "+test.condition+" };"); len(got) > 0 {
				t.Errorf("got warnings:\n  %s", strings.Join(got, "\n  "))
			}
		})
	}
}

// TestWarningsOnForeignDomains checks that a permit for every principal, which applies to
// the home domain only, is not taken for one that can match another domain.
func TestWarningsOnForeignDomains(t *testing.T) {
	t.Parallel()
	const permit = `@id("x") permit (principal is Workload, action == Action::"request", resource) when { `
	for condition, want := range map[string]string{
		`principal.trust_domain == "supplier.test"`:           `none of the permit's principals has the trust domain "supplier.test": correct it or the policy's head`,
		`principal has team && principal.team == "suppliers"`: `none of the permit's principals has the team "suppliers": correct it or the policy's head`,
	} {
		got := literalWarnings(t, permit+condition+" };")
		if !slices.ContainsFunc(got, func(w string) bool { return strings.Contains(w, want) }) {
			t.Errorf("%s: got warnings %q, want one with %q", condition, got, want)
		}
	}
}

func TestLoadNamesTheTagOfAnAttribute(t *testing.T) {
	t.Parallel()
	for condition, want := range map[string]string{
		`context.parameters.account == "1"`: `entity type Parameters has no attribute "account": a parameter is a tag, as in context.parameters.hasTag("account") && context.parameters.getTag("account")`,
		`context.parameters.acount == "1"`:  `a parameter is a tag, as in context.parameters.hasTag("account") && context.parameters.getTag("account"); no entitlement has the parameter "acount": did you mean "account"?`,
		`context.parameters.region == "1"`:  `context.parameters.getTag("region"); no entitlement has the parameter "region"`,
		`resource.colour == "red"`:          `resource.getTag("colour"); no entitlement has the label "colour"`,
	} {
		_, err := policy.Load(literalInputs("@id(\"x\") forbid (" + requesting + ") when { " + condition + " };"))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got error %v, want one with %q", condition, err, want)
		}
	}
}
