package policy_test

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/policy"
)

const groupsText = `
support: {members: [login/ana, login/ben]}
dba: {members: [login/cleo]}
suppliers: {workloads: [spiffe://supplier.test]}
`

// loadText loads policies with groupsText.
func loadText(t testing.TB, cedar string) *policy.Engine {
	t.Helper()
	return load(t, fstest.MapFS{"a.cedar": {Data: []byte(cedar)}, "groups.yaml": {Data: []byte(groupsText)}})
}

func permits(t *testing.T, cedar string, q broker.Query) bool {
	t.Helper()
	return decide(t, loadText(t, `@id("p") `+cedar+`;`), q).Permit
}

func TestDecideDeniesWithoutPolicies(t *testing.T) {
	t.Parallel()
	if d := decide(t, loadText(t, ""), query(triage, "tickets-api", "tickets:read")); d.Permit || d.Policies != nil {
		t.Errorf("got %+v, want a denial without policies", d)
	}
}

// A permit applies to a federated identity only if its head names the domain, a
// path in it or a group of the identity.
func TestDecideMatchesFederatedIdentityByHead(t *testing.T) {
	t.Parallel()
	federated := query("spiffe://supplier.test/sync/a", "tickets-api", "tickets:read")
	for head, want := range map[string]bool{
		`principal`:             false,
		`principal is Workload`: false,
		`principal in TrustDomain::"supplier.test"`:                    true,
		`principal in TrustDomain::"acme.test"`:                        false,
		`principal in Path::"spiffe://supplier.test/sync"`:             true,
		`principal in Path::"spiffe://supplier.test/syn"`:              false,
		`principal is Workload in Path::"spiffe://supplier.test/sync"`: true,
		`principal == Workload::"spiffe://supplier.test/sync/a"`:       true,
		`principal in Group::"suppliers"`:                              true,
		`principal in Group::"support"`:                                false,
	} {
		if got := permits(t, `permit (`+head+`, action == Action::"request", resource)`, federated); got != want {
			t.Errorf("%s: %v, want %v", head, got, want)
		}
	}
	if permits(t, `permit (principal, action == Action::"request", resource) when { principal in TrustDomain::"supplier.test" }`, federated) {
		t.Error("a condition on the domain permits a federated workload")
	}
	if !permits(t, `permit (principal, action == Action::"request", resource)`, query(billing, "tickets-api", "tickets:read")) {
		t.Error("a permit for every principal denies a workload of the home domain")
	}
}

func TestForbidAppliesToFederatedIdentity(t *testing.T) {
	t.Parallel()
	e := loadText(t, `
		@id("p") permit (principal in TrustDomain::"supplier.test", action == Action::"request", resource);
		@id("f") @reason("not today") forbid (principal, action, resource);`)
	d := decide(t, e, query("spiffe://supplier.test/sync", "tickets-api", "tickets:read"))
	if d.Permit || !slices.Equal(d.Policies, []string{"f"}) || !slices.Equal(d.Reasons, []string{"not today"}) {
		t.Errorf("%+v", d)
	}
}

// Cedar skips a policy that errs, so a forbid that errs would not forbid.
func TestDecideDeniesIfPolicyErrs(t *testing.T) {
	t.Parallel()
	e := loadText(t, `
		@id("p") permit (principal, action == Action::"request", resource);
		@id("broken") @reason("too long") forbid (principal, action == Action::"request", resource)
		when { context.ttl.toMilliseconds() * 9000000000000000 > 0 };`)
	d, err := e.Decide(context.Background(), query(billing, "tickets-api", "tickets:read"), noon)
	if err == nil || !strings.Contains(err.Error(), `a.cedar:3:3: policy "broken": evaluation failed: `) {
		t.Errorf("got error %v", err)
	}
	if d.Permit || d.Revision != e.Revision() || !slices.Equal(d.Policies, []string{"broken"}) || len(d.Reasons) != 2 || !strings.Contains(d.Reasons[1], "could not be evaluated") {
		t.Errorf("%+v", d)
	}
	if x := e.Explain(context.Background(), query(billing, "tickets-api", "tickets:read"), noon); !strings.Contains(x.Policies[0].Error, "overflow") {
		t.Errorf("got verdict %+v, want the overflow", x.Policies[0])
	}
}

func TestDecideAddsUpObligations(t *testing.T) {
	t.Parallel()
	e := loadText(t, `
		@id("broad") @max_ttl("1h") @approval("1 of owner") permit (principal, action == Action::"request", resource == Entitlement::"tickets-api");
		@id("narrow") @max_ttl("5m") @approval("2 of support, 1 of dba") @limit("3 per 1h") @max_duration("2h")
		permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource == Entitlement::"tickets-api");
		@id("other") @max_ttl("1m") permit (principal, action == Action::"request", resource == Entitlement::"orders-db-ro");`)
	d := decide(t, e, query(triage, "tickets-api", "tickets:read"))
	o := d.Obligations
	if !d.Permit || !slices.Equal(d.Policies, []string{"broad", "narrow"}) {
		t.Fatalf("%+v", d)
	}
	if o.MaxTTL != 5*time.Minute || o.MaxDuration != 2*time.Hour {
		t.Errorf("got max_ttl %s and max_duration %s, want 5m and 2h", o.MaxTTL, o.MaxDuration)
	}
	if want := []broker.ApprovalNeed{{Group: "dba", Count: 1}, {Group: "support", Count: 2}}; !slices.Equal(o.Approvals, want) {
		t.Errorf("got approvals %v, want %v", o.Approvals, want)
	}
	if want := []broker.Limit{{Policy: "narrow", Count: 3, Per: time.Hour}}; !slices.Equal(o.Limits, want) {
		t.Errorf("got limits %v, want %v", o.Limits, want)
	}
}

// The decision of a query that is not valid has only a revision.
func TestDecideRejectsInvalidQuery(t *testing.T) {
	t.Parallel()
	e := loadText(t, `@id("p") permit (principal, action in [Action::"request", Action::"audit"], resource);`)
	tests := map[string]func(q *broker.Query){
		"no principal":           func(q *broker.Query) { q.Principal = broker.Identity{} },
		"an operator":            func(q *broker.Query) { q.Principal = broker.Identity{ID: "root", Kind: broker.KindOperator} },
		"an unlisted domain":     func(q *broker.Query) { q.Principal = identity("spiffe://evil.test/a") },
		"malformed SPIFFE ID":    func(q *broker.Query) { q.Principal.ID = "acme.test/agent" },
		"an unknown provider":    func(q *broker.Query) { q.Principal = identity("google/ana") },
		"an unknown action":      func(q *broker.Query) { q.Action = "destroy" },
		"no entitlement":         func(q *broker.Query) { q.Entitlement = nil },
		"an unknown entitlement": func(q *broker.Query) { q.Entitlement = &broker.Entitlement{Name: "other"} },
		"no scopes":              func(q *broker.Query) { q.Scopes = nil },
		"an unknown scope":       func(q *broker.Query) { q.Scopes = []string{"tickets:read", "tickets:admin"} },
		"no request":             func(q *broker.Query) { q.Action = broker.ActionView },
	}
	for name, change := range tests {
		q := query(triage, "tickets-api", "tickets:read")
		change(&q)
		d, err := e.Decide(context.Background(), q, noon)
		if err == nil || d.Permit || d.Policies != nil || d.Revision != e.Revision() {
			t.Errorf("%s: got %+v, %v; want a denial and an error", name, d, err)
		}
	}
}

// The test has one condition for each attribute in the schema.
func TestPolicySeesAttributes(t *testing.T) {
	t.Parallel()
	q := query(triage, "tickets-api", "tickets:read", "tickets:comment")
	q.Justification, q.Ticket, q.Parameters = "because", "INC-7", map[string]string{"prefix": "a"}
	for condition, want := range map[string]bool{
		`principal is Agent`: true,
		`principal.id == "spiffe://acme.test/agent/triage"`:                                 true,
		`principal is Agent && principal.trust_domain == "acme.test"`:                       true,
		`principal is Agent && principal has team && principal.team == "support"`:           true,
		`principal is Agent && principal.accountable.contains("login/ana")`:                 true,
		`principal in Path::"spiffe://acme.test/agent/triage"`:                              true,
		`resource.issuer == "tickets"`:                                                      true,
		`resource has owner && resource.owner == Group::"support"`:                          true,
		`resource.scopes.contains("tickets:close")`:                                         true,
		`resource.hasTag("env") && resource.getTag("env") == "prod"`:                        true,
		`resource.hasTag("tier")`:                                                           false,
		`context.break_glass`:                                                               false,
		`resource in System::"orders"`:                                                      false,
		`context.scopes == ["tickets:comment", "tickets:read"]`:                             true,
		`context.ttl == duration("5m")`:                                                     true,
		`context.duration <= duration("1h")`:                                                true,
		`context has justification && context.justification == "because"`:                   true,
		`context has ticket && context.ticket like "INC-*"`:                                 true,
		`context.parameters.hasTag("prefix") && context.parameters.getTag("prefix") == "a"`: true,
		`context.now == datetime("2026-11-23T12:00:00Z")`:                                   true,
		`context has source_ip && context.source_ip.isInRange(ip("10.0.0.0/8"))`:            true,
	} {
		if got := permits(t, `permit (principal, action == Action::"request", resource) when { `+condition+` }`, q); got != want {
			t.Errorf("%s: got %v, want %v", condition, got, want)
		}
	}
}

func TestPolicySeesMappedIPv4Address(t *testing.T) {
	t.Parallel()
	q := query(triage, "tickets-api", "tickets:read")
	q.SourceIP = netip.MustParseAddr("::ffff:10.1.2.3")
	if !permits(t, `permit (principal, action == Action::"request", resource) when { context has source_ip && context.source_ip.isInRange(ip("10.0.0.0/8")) }`, q) {
		t.Error("::ffff:10.1.2.3 is not in 10.0.0.0/8")
	}
}

func TestPolicyMatchesOwnerGroup(t *testing.T) {
	t.Parallel()
	const cedar = `permit (principal is Person, action == Action::"request", resource) when { resource has owner && principal in resource.owner }`
	if !permits(t, cedar, query("login/cleo", "orders-db-ro")) || permits(t, cedar, query("login/ana", "orders-db-ro")) {
		t.Error("the policy does not permit exactly the owners")
	}
}

// onRequest returns a query about requester's request for the orders database.
func onRequest(who string, action broker.Action, requester string) broker.Query {
	return broker.Query{Principal: identity(who), Action: action, Request: &broker.Request{
		Requester: identity(requester), Entitlement: "orders-db-ro", Scopes: nil,
	}}
}

func TestRequestIsInEntitlementAndSystem(t *testing.T) {
	t.Parallel()
	for what, want := range map[string]bool{
		`resource in Entitlement::"orders-db-ro"`: true,
		`resource in Entitlement::"tickets-api"`:  false,
		`resource in System::"orders"`:            true,
	} {
		cedar := `permit (principal in Group::"dba", action in [Action::"view", Action::"revoke"], ` + what + `)`
		if got := permits(t, cedar, onRequest("login/cleo", broker.ActionRevoke, billing)); got != want {
			t.Errorf("%s: got %v, want %v", what, got, want)
		}
	}
}

func TestSampleViewOfRequests(t *testing.T) {
	t.Parallel()
	e := sample(t)
	for _, test := range []struct {
		who, requester string
		want           bool
	}{
		{triage, triage, true},
		{"login/ana", triage, true}, // accountable for the agent
		{"login/ben", triage, false},
		{triage, billing, false},
		{"login/cleo", billing, true}, // in group "dba"
	} {
		if got := decide(t, e, onRequest(test.who, broker.ActionView, test.requester)).Permit; got != test.want {
			t.Errorf("%s views a request of %s: got %v, want %v", test.who, test.requester, got, test.want)
		}
	}
}

// @approval permits the members of its groups to approve, so no permit is needed.
func TestApproveIsPermittedUnlessForbidden(t *testing.T) {
	t.Parallel()
	e := loadText(t, `@id("f") forbid (principal in Group::"support", action == Action::"approve", resource in System::"orders");`)
	if !decide(t, e, onRequest("login/cleo", "approve", billing)).Permit {
		t.Error("got a denial without a forbid")
	}
	if d := decide(t, e, onRequest("login/ana", "approve", billing)); d.Permit || !slices.Equal(d.Policies, []string{"f"}) {
		t.Errorf("%+v", d)
	}
	broken := loadText(t, `@id("f") forbid (principal, action == Action::"approve", resource) when { context.now.offset(duration("9223372036854775807ms")) > context.now };`)
	if d, err := broken.Decide(context.Background(), onRequest("login/cleo", "approve", billing), noon); d.Permit || err == nil {
		t.Error("got a permit although a forbid errs")
	}
}

func TestSampleActionsOnBroker(t *testing.T) {
	t.Parallel()
	e := sample(t)
	for _, action := range []broker.Action{broker.ActionAudit, broker.ActionUsage, broker.ActionOperate} {
		for who, want := range map[string]bool{"login/cleo": true, "login/ana": false, triage: false} {
			if got := decide(t, e, broker.Query{Principal: identity(who), Action: action}).Permit; got != want {
				t.Errorf("%s by %s: got %v, want %v", action, who, got, want)
			}
		}
	}
	if decide(t, e, broker.Query{Principal: identity("login/cleo"), Action: broker.ActionBlock}).Permit {
		t.Error("block is permitted without a permit")
	}
}

func TestGroupsReturnsListedGroups(t *testing.T) {
	t.Parallel()
	e := sample(t)
	for who, want := range map[string][]string{
		"login/ana":                    {"support"},
		"spiffe://acme.test/batch/x":   {"batch"},
		"spiffe://acme.test/batches":   nil,
		"spiffe://supplier.test/sync":  {"supplier-jobs"},
		"spiffe://supplier.test/other": nil,
	} {
		if got, _ := e.Groups(identity(who)); !slices.Equal(got, want) {
			t.Errorf("%s: got groups %q, want %q", who, got, want)
		}
	}
}

func TestPolicySeesPersonAndRequest(t *testing.T) {
	t.Parallel()
	q := onRequest("login/cleo", broker.ActionView, triage)
	q.Request.Scopes = []string{"read"}
	for condition, want := range map[string]bool{
		`principal is Person && principal.provider == "login"`:       true,
		`resource has team && resource.team == "support"`:            true,
		`resource.requester == "spiffe://acme.test/agent/triage"`:    true,
		`resource.accountable.contains("login/ana")`:                 true,
		`resource.scopes == ["read"]`:                                true,
		`resource has team && resource.team == "billing"`:            false,
		`resource in Entitlement::"orders-db-ro"`:                    true,
		`context.now == datetime("2026-11-23T12:00:00Z")`:            true,
		`context has source_ip && context.source_ip.isLoopback()`:    false,
		`principal in Group::"dba" && !(principal in Group::"dba2")`: true,
	} {
		e := load(t, fstest.MapFS{
			"a.cedar":     {Data: []byte(`@id("p") permit (principal, action in Action::"view", resource) when { ` + condition + ` };`)},
			"groups.yaml": {Data: []byte(groupsText + "dba2: {members: [login/ben]}\n")},
		})
		if got := decide(t, e, q).Permit; got != want {
			t.Errorf("%s: got %v, want %v", condition, got, want)
		}
	}
}

// The index returns rules in an order that depends on the heads. Decisions list
// them by id, each once, even if the head names an action twice or the identity is
// in a group in two ways.
func TestDecideListsPoliciesByID(t *testing.T) {
	t.Parallel()
	e := load(t, fstest.MapFS{
		"a.cedar": {Data: []byte(`
			@id("z") @reason("last") permit (principal, action == Action::"view", resource);
			@id("m") @reason("middle") permit (principal in Group::"twice", action in [Action::"view", Action::"view"], resource);
			@id("a") @reason("first") permit (principal in TrustDomain::"acme.test", action == Action::"view", resource in System::"orders");`)},
		"groups.yaml": {Data: []byte(groupsText + "twice: {workloads: [spiffe://acme.test, spiffe://acme.test/billing]}\n")},
	})
	d := decide(t, e, onRequest(billing, broker.ActionView, triage))
	if !slices.Equal(d.Policies, []string{"a", "m", "z"}) || !slices.Equal(d.Reasons, []string{"first", "middle", "last"}) {
		t.Errorf("got policies %q, reasons %q", d.Policies, d.Reasons)
	}
}

// A denial because of an error also lists the forbids that apply.
func TestDecideListsForbidsNextToErrors(t *testing.T) {
	t.Parallel()
	const overflow = ` when { context.ttl.toMilliseconds() * 9000000000000000 > 0 };`
	e := loadText(t, `
		@id("z") permit (principal, action == Action::"request", resource)`+overflow+`
		@id("m") @reason("not today") forbid (principal, action == Action::"request", resource);
		@id("a") permit (principal in TrustDomain::"acme.test", action == Action::"request", resource)`+overflow)
	d, err := e.Decide(context.Background(), query(billing, "tickets-api", "tickets:read"), noon)
	if err == nil || d.Permit || !slices.Equal(d.Policies, []string{"a", "m", "z"}) || len(d.Reasons) != 2 || d.Reasons[0] != "not today" {
		t.Errorf("got %+v, %v", d, err)
	}
}

func TestRulesReturnsGroups(t *testing.T) {
	t.Parallel()
	groups := sample(t).Rules().Groups
	dba, support := groups["dba"], groups["support"]
	if len(groups) != 4 || !dba.Claimed || !slices.Equal(dba.Members, []string{"login/cleo"}) || dba.Notify != nil ||
		support.Claimed || !slices.Equal(support.Notify, []string{"slack:support"}) {
		t.Errorf("got %+v", groups)
	}
}

func TestGroupsAreSortedAndUnique(t *testing.T) {
	t.Parallel()
	e := load(t, fstest.MapFS{"groups.yaml": {Data: []byte(`
support: {workloads: [spiffe://acme.test]}
dba: {workloads: [spiffe://acme.test, spiffe://acme.test/billing/api]}
all: {workloads: [spiffe://acme.test/billing]}
`)}})
	for range 20 { // the index is built from a map
		if got, _ := e.Groups(identity(billing)); !slices.Equal(got, []string{"all", "dba", "support"}) {
			t.Fatalf("got %q", got)
		}
	}
}
