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

// everything covers every entitlement and domain, so that a test sees only its own
// warning.
const everything = `
@id("all") permit (principal in TrustDomain::"acme.test", action == Action::"request", resource);
@id("suppliers") permit (principal in TrustDomain::"supplier.test", action == Action::"request", resource == Entitlement::"reports");
`

func TestWarningsOnPermits(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, cedar, want string }{
		{"no mistake", "", ""},
		{"a scope with a typo", `@id("x") permit (principal, action == Action::"request", resource == Entitlement::"tickets-api")
			when { ["tickets:read", "tickets:reed"].containsAll(context.scopes) };`, `a.cedar:5:28: policy "x": none of the permit's entitlements has the scope "tickets:reed"`},
		{"a scope of another entitlement", `@id("x") permit (principal, action == Action::"request", resource in System::"orders") when { context.scopes.contains("read") };`,
			`none of the permit's entitlements has the scope "read"`},
		{"a scope in an equation with a typo", `@id("x") permit (principal, action == Action::"request", resource == Entitlement::"reports") when { context.scopes == ["raed"] };`,
			`has the scope "raed"`},
		{"strings that are not scopes", `@id("x") permit (principal, action == Action::"request", resource == Entitlement::"reports")
			when { ["login/x", "login/y"].contains(principal.id) && context.scopes.contains("read") };`, ""},
		{"a TTL below the minimum", `@id("x") @max_ttl("10m") permit (principal, action == Action::"request", resource == Entitlement::"reports");`,
			`a.cedar:4:10: policy "x": @max_ttl 10m is below the minimum of 15m for entitlement "reports", so no credential can be issued`},
		{"a duration below the minimum", `@id("x") @max_duration("10m") permit (principal, action == Action::"request", resource == Entitlement::"reports");`,
			`@max_duration 10m is below the minimum of 15m`},
		{"more approvals than members", `@id("x") @approval("2 of dba") permit (principal, action == Action::"request", resource in System::"orders");`,
			`@approval requires 2 of group "dba", which has only 1, so no request can be approved`},
		{"more approvals than owners", `@id("x") @approval("3 of owner") permit (principal, action == Action::"request", resource == Entitlement::"tickets-api");`,
			`@approval requires 3 of group "support", which has only 2`},
		{"a group with claims", `@id("x") @approval("5 of security") permit (principal, action == Action::"request", resource in System::"orders");`, ""},
		{"a path without agents", `@id("x") permit (principal is Agent in Path::"spiffe://acme.test/billing", action == Action::"request", resource);`,
			`no principal there has kind agent, so the permit never applies`},
		{"a path with agents only", `@id("x") permit (principal is Workload in Path::"spiffe://acme.test/agent/a", action == Action::"request", resource);`,
			`no principal there has kind workload, so the permit never applies`},
		{"a domain with agents", `@id("x") permit (principal is Agent in TrustDomain::"acme.test", action == Action::"request", resource);`, ""},
		{"a forbid of the whole permit", `@id("x") permit (principal in Path::"spiffe://acme.test/agent/a", action == Action::"request", resource == Entitlement::"orders-db-ro");
			@id("f") forbid (principal in Path::"spiffe://acme.test/agent", action, resource in System::"orders");`,
			`policy "x": forbid "f" forbids everything that this policy permits`},
		{"a forbid of a part of the permit", `@id("f") forbid (principal in Path::"spiffe://acme.test/agent", action, resource in System::"orders");`, ""},
		{"a forbid of other principals", `@id("x") permit (principal in Path::"spiffe://acme.test/agents", action == Action::"request", resource == Entitlement::"orders-db-ro");
			@id("f") forbid (principal in Path::"spiffe://acme.test/agent", action, resource in System::"orders");`, ""},
		{"a scope in a conjunction", `@id("x") permit (principal, action == Action::"request", resource == Entitlement::"reports")
			when { principal.id == "login/x" && context.scopes.containsAny(["reed"]) };`, `has the scope "reed"`},
		{"a scope of the resource", `@id("x") permit (principal, action == Action::"request", resource == Entitlement::"reports") when { resource.scopes.contains("other") };`,
			`none of the permit's entitlements has the scope "other": correct it`},
		{"a string of another attribute", `@id("x") permit (principal, action == Action::"request", resource == Entitlement::"reports")
			when { context has ticket && context.ticket == "INC-1" };`, ""},
		{"a scope on the left", `@id("x") permit (principal, action == Action::"request", resource == Entitlement::"reports") when { ["raed"] == context.scopes };`,
			`has the scope "raed"`},
		{"an owner quorum in a system", `@id("x") @approval("2 of owner") permit (principal, action == Action::"request", resource in System::"orders");`,
			`@approval requires 2 of group "dba", which has only 1`},
		{"an owner quorum in another system", `@id("x") @approval("2 of owner") permit (principal, action == Action::"request", resource in System::"desk");`, ""},
		{"the exact TTL", `@id("x") @max_ttl("15m") @max_duration("15m") permit (principal, action == Action::"request", resource == Entitlement::"reports");`, ""},
		{"a domain without agents", `@id("x") permit (principal is Agent in TrustDomain::"supplier.test", action == Action::"request", resource);`,
			`no principal there has kind agent`},
		{"a domain with workloads", `@id("x") permit (principal is Workload in TrustDomain::"supplier.test", action == Action::"request", resource);`, ""},
		{"workloads everywhere", `@id("x") permit (principal is Workload, action == Action::"request", resource);`, ""},
		{"agents everywhere", `@id("x") permit (principal is Agent, action == Action::"request", resource);`, ""},
		{"a forbid of an equal head", `@id("x") permit (principal == Agent::"spiffe://acme.test/agent/a", action == Action::"request", resource == Entitlement::"reports");
			@id("f") forbid (principal == Agent::"spiffe://acme.test/agent/a", action, resource == Entitlement::"reports");`, `forbid "f" forbids everything`},
		{"a forbid of one workload", `@id("x") permit (principal in Path::"spiffe://acme.test/agent/a", action == Action::"request", resource == Entitlement::"reports");
			@id("f") forbid (principal == Agent::"spiffe://acme.test/agent/a", action, resource);`, ""},
		{"a forbid of a kind", `@id("x") permit (principal == Agent::"spiffe://acme.test/agent/a", action == Action::"request", resource == Entitlement::"reports");
			@id("f") forbid (principal is Agent, action, resource);`, `forbid "f" forbids everything`},
		{"a forbid of another kind", `@id("x") permit (principal == Agent::"spiffe://acme.test/agent/a", action == Action::"request", resource == Entitlement::"reports");
			@id("f") forbid (principal is Workload, action, resource);`, ""},
		{"a forbid of a kind in a path", `@id("x") permit (principal in Path::"spiffe://acme.test/agent/a", action == Action::"request", resource == Entitlement::"reports");
			@id("f") forbid (principal is Agent, action, resource);`, ""},
		{"a forbid of one entitlement", `@id("x") permit (principal in Path::"spiffe://acme.test/agent/a", action == Action::"request", resource in System::"orders");
			@id("f") forbid (principal, action, resource == Entitlement::"orders-db-ro");`, ""},
		{"a forbid in a narrower path", `@id("x") permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource == Entitlement::"reports");
			@id("f") forbid (principal in Path::"spiffe://acme.test/agent/a", action, resource);`, ""},
		{"a forbid of one action", `@id("x") permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource == Entitlement::"reports");
			@id("f") forbid (principal, action == Action::"view", resource);`, ""},
		{"a forbid of an unknown scope", `@id("f") forbid (principal, action == Action::"request", resource) when { context.scopes.contains("reed") };`,
			`a.cedar:4:99: policy "f": none of the forbid's entitlements has the scope "reed"`},
		{"a forbid of a known scope", `@id("f") forbid (principal, action == Action::"request", resource) unless { context.scopes == ["tickets:read"] };`, ""},
		{"a forbid of another entitlement's scope", `@id("f") forbid (principal, action == Action::"request", resource == Entitlement::"reports") when { ["tickets:read"].containsAny(context.scopes) };`,
			`none of the forbid's entitlements has the scope "tickets:read"`},
		{"a forbid with a condition", `@id("f") forbid (principal, action, resource) when { principal is Agent };`, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			in := inputs(fstest.MapFS{
				"a.cedar":     {Data: []byte(everything + test.cedar)},
				"groups.yaml": {Data: []byte("support: {members: [login/ana, login/ben]}\ndba: {members: [login/cleo]}\nsecurity: {members: [login/ana], claims: [{provider: login, group: sec}]}\n")},
			})
			in.Catalogue["tickets-api"].System = "desk"
			in.Catalogue["orders-db-rw"] = &broker.Entitlement{Name: "orders-db-rw", Issuer: "vault", Owner: "dba", System: "orders"}
			e, err := policy.Load(in)
			if err != nil {
				t.Fatal(err)
			}
			expectWarning(t, e, test.want)
		})
	}
}

// expectWarning fails the test unless e has exactly one warning and it contains
// want, or no warning if want is empty.
func expectWarning(t *testing.T, e *policy.Engine, want string) {
	t.Helper()
	got := e.Warnings()
	if want == "" && len(got) == 0 || len(got) == 1 && want != "" && strings.Contains(got[0], want) {
		return
	}
	t.Errorf("got warnings:\n  %s\nwant:\n  %s", strings.Join(got, "\n  "), want)
}

func TestWarningsOnFolderAndCatalogue(t *testing.T) {
	t.Parallel()
	in := inputs(fstest.MapFS{"groups.yaml": {Data: []byte("support: {}\ndba: {members: [login/cleo]}\n")}, "a.ceder": {}, "sub/groups.yaml": {}, "notes.md": {}})
	in.Catalogue["reports"].MaxTTL = time.Minute
	in.Catalogue["reports"].Shares, in.Catalogue["tickets-api"].Shares = "role/reports", "role/reports"
	e, err := policy.Load(in)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		`.: no policy, so every request is denied: add a *.cedar file with a permit`,
		`a.ceder: ignored: a policy folder holds *.cedar, groups.yaml, suppliers.yaml, people.yaml, *_test.yaml and *.md: rename or move this file`,
		`attest.trust_domains: no permit names "supplier.test" in its head, so its workloads can authenticate but every request is denied: add a permit or remove the domain`,
		`entitlements.orders-db-ro: no permit covers it, so every request for it is denied: add a permit for Action::"request"`,
		`entitlements.reports: max_ttl 1m is below the issuer's minimum of 15m, so no credential can be issued: raise max_ttl`,
		`entitlements.reports: no permit covers it, so every request for it is denied: add a permit for Action::"request"`,
		`entitlements.reports: revoking one credential also revokes all earlier credentials of role/reports, including those of tickets-api`,
		`entitlements.tickets-api: no permit covers it, so every request for it is denied: add a permit for Action::"request"`,
		`entitlements.tickets-api: revoking one credential also revokes all earlier credentials of role/reports, including those of reports`,
		`groups.yaml: group "support" is empty: add members, claims or workloads`,
		`sub/groups.yaml: ignored: move groups.yaml to the top of the policy folder`,
	}
	got := e.Warnings()
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("got warnings:\n  %s\nwant:\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

func TestSampleHasNoWarnings(t *testing.T) { expectWarning(t, sample(t), "") }

// Labels below a path of agents may turn some of them into workloads.
func TestWarningsConsiderLabelsBelowPath(t *testing.T) {
	t.Parallel()
	in := inputs(fstest.MapFS{
		"a.cedar":     {Data: []byte(everything + `@id("x") permit (principal is Workload in Path::"spiffe://acme.test/agent", action == Action::"request", resource);`)},
		"groups.yaml": {Data: []byte("support: {members: [login/ana]}\ndba: {members: [login/cleo]}\n")},
	})
	in.Labels = append(in.Labels, broker.WorkloadLabels{Under: "spiffe://acme.test/agent/tools", Kind: broker.KindWorkload})
	e, err := policy.Load(in)
	if err != nil {
		t.Fatal(err)
	}
	expectWarning(t, e, "")
}

func TestWarningsOnAccountablePeopleWhoCannotLogIn(t *testing.T) {
	t.Parallel()
	for _, providers := range [][]string{nil, {"login"}} {
		in := inputs(fstest.MapFS{
			"a.cedar":     {Data: []byte(everything)},
			"groups.yaml": {Data: []byte("support: {members: [login/ana]}\ndba: {members: [login/cleo]}\n")},
		})
		in.Providers = providers
		in.Labels = []broker.WorkloadLabels{{Under: "spiffe://acme.test/batch", Kind: broker.KindWorkload, Accountable: []string{"login/ana", "login/ben"}}}
		e, err := policy.Load(in)
		if err != nil {
			t.Fatal(err)
		}
		want := ""
		if providers == nil {
			want = `attest.workloads: under "spiffe://acme.test/batch": login/ana, login/ben can't log in: no provider is configured`
		}
		expectWarning(t, e, want)
	}
}

// The broker refuses requests with @exclude_team if the requester's team is not a
// group. Only the teams of the permit's own principals matter.
func TestWarningsOnExcludedTeams(t *testing.T) {
	t.Parallel()
	const support, tools = `the team "support" of workloads under "spiffe://acme.test/agent" is not a group`, `the team "tooling" of workloads under "spiffe://acme.test/agent/tools" is not a group`
	for head, want := range map[string][]string{
		`principal in Path::"spiffe://acme.test/agent/a"`:        {support},
		`principal in Path::"spiffe://acme.test/agent"`:          {support, tools},
		`principal is Agent in Path::"spiffe://acme.test/agent"`: {support},
		`principal in Path::"spiffe://acme.test/agent/tools"`:    {tools},
		`principal in Path::"spiffe://acme.test/agent/tools/a"`:  {tools},
		`principal == Agent::"spiffe://acme.test/agent"`:         {support},
		`principal in Path::"spiffe://acme.test/billing"`:        {`workloads under "spiffe://acme.test/billing" have no team`},
		`principal in Path::"spiffe://acme.test/known"`:          nil,
		`principal in Path::"spiffe://acme.test/batch"`:          {"none of the permit's principals has a team"},
		`principal in TrustDomain::"acme.test"`:                  {support, tools, "billing"},
		`principal in TrustDomain::"supplier.test"`:              {"none of the permit's principals has a team"},
		`principal in Group::"machines"`:                         {support, tools},
		`principal in Group::"dba"`:                              {"none of the permit's principals has a team"},
		`principal is Person`:                                    {"none of the permit's principals has a team"},
		`principal == Person::"login/ana"`:                       {"none of the permit's principals has a team"},
		`principal`:                                              {support, tools, "billing"},
	} {
		in := inputs(fstest.MapFS{
			"a.cedar":     {Data: []byte(everything + `@id("x") @approval("1 of dba") @exclude_team("yes") permit (` + head + `, action == Action::"request", resource == Entitlement::"orders-db-ro");`)},
			"groups.yaml": {Data: []byte("dba: {members: [login/cleo]}\nknown: {members: [login/ana]}\nmachines: {workloads: [spiffe://acme.test/agent]}\n")},
		})
		for _, e := range in.Catalogue {
			e.Owner = ""
		}
		in.Labels = append(in.Labels,
			broker.WorkloadLabels{Under: "spiffe://acme.test/agent/tools", Kind: broker.KindWorkload, Team: "tooling"},
			broker.WorkloadLabels{Under: "spiffe://acme.test/billing", Kind: broker.KindWorkload},
			broker.WorkloadLabels{Under: "spiffe://acme.test/known", Kind: broker.KindWorkload, Team: "known"},
		)
		e, err := policy.Load(in)
		if err != nil {
			t.Errorf("%s: %v", head, err)
			continue
		}
		got := e.Warnings()
		for _, w := range want {
			if !slices.ContainsFunc(got, func(g string) bool {
				return strings.Contains(g, "a.cedar:4:") && strings.Contains(g, "@exclude_team: ") && strings.Contains(g, w)
			}) {
				t.Errorf("%s: no warning about %q", head, w)
			}
		}
		if len(got) != len(want) {
			t.Errorf("%s: got %d warnings, want %d:\n  %s", head, len(got), len(want), strings.Join(got, "\n  "))
		}
	}
}

// Next to each mistake is a similar text without a mistake.
func TestWarningsOnCatalogueAndDomains(t *testing.T) {
	t.Parallel()
	in := inputs(fstest.MapFS{
		"a.cedar": {Data: []byte(`
			@id("p") permit (principal, action == Action::"request", resource is Entitlement) when { context.scopes == ["reed"] };
			@id("f") forbid (principal in TrustDomain::"supplier.test", action, resource) when { context.now == context.now };
			@id("v") permit (principal, action == Action::"view", resource is Request);`)},
		"groups.yaml": {Data: []byte("support: {members: [login/ana], workloads: [spiffe://acme.test/a]}\ndba: {claims: [{provider: login, group: dba}]}\n")},
	})
	in.Catalogue["reports"].MaxTTL = 15 * time.Minute // its minimum
	in.Catalogue["tickets-api"].MaxTTL, in.Catalogue["tickets-api"].MinTTL = 0, time.Minute
	e, err := policy.Load(in)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		`a.cedar:2:112: policy "p": none of the permit's entitlements has the scope "reed": did you mean "read"?`,
		`attest.trust_domains: no permit names "supplier.test" in its head, so its workloads can authenticate but every request is denied: add a permit or remove the domain`,
	}
	if got := e.Warnings(); !slices.Equal(got, want) {
		t.Errorf("got warnings:\n  %s\nwant:\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

func TestWarningsOnEntitlementWithForbidOnly(t *testing.T) {
	t.Parallel()
	e := load(t, fstest.MapFS{
		"a.cedar": {Data: []byte(`
			@id("p") permit (principal in TrustDomain::"supplier.test", action == Action::"request", resource == Entitlement::"reports");
			@id("v") permit (principal, action == Action::"view", resource in Entitlement::"tickets-api");
			@id("f") forbid (principal, action == Action::"request", resource == Entitlement::"orders-db-ro");
			@id("q") permit (principal, action == Action::"request", resource == Entitlement::"tickets-api");`)},
		"groups.yaml": {Data: []byte("support: {members: [login/ana]}\ndba: {members: [login/cleo]}\n")},
	})
	expectWarning(t, e, "entitlements.orders-db-ro: no permit covers it")
}

// One permit leads to one warning per group and team.
func TestWarningsAreNotRepeated(t *testing.T) {
	t.Parallel()
	in := inputs(fstest.MapFS{
		"a.cedar": {Data: []byte(everything + `
			@id("x") @approval("2 of owner, 3 of dba") @exclude_team("yes") permit (principal is Agent, action == Action::"request", resource in System::"orders");
			@id("y") @approval("1 of owner, 2 of leads") permit (principal is Agent, action == Action::"request", resource in System::"led");`)},
		"groups.yaml": {Data: []byte("dba: {members: [login/cleo]}\nleads: {claims: [{provider: login, group: leads}]}\n")},
	})
	in.Catalogue["reports"].Owner, in.Catalogue["tickets-api"].Owner = "", ""
	in.Catalogue["orders-db-rw"] = &broker.Entitlement{Name: "orders-db-rw", Issuer: "vault", Owner: "dba", System: "orders"}
	for _, name := range []string{"led-a", "led-b"} {
		in.Catalogue[name] = &broker.Entitlement{Name: name, Issuer: "vault", Owner: "leads", System: "led"}
	}
	in.Labels = append(in.Labels, broker.WorkloadLabels{Under: "spiffe://acme.test/other", Kind: broker.KindAgent, Team: "support"})
	e, err := policy.Load(in)
	if err != nil {
		t.Fatal(err)
	}
	got := e.Warnings()
	if len(got) != 3 || !strings.Contains(strings.Join(got, "\n"), `requires 3 of group "dba"`) && !strings.Contains(strings.Join(got, "\n"), `requires 2 of group "dba"`) {
		t.Errorf("got %d warnings, want 3:\n  %s", len(got), strings.Join(got, "\n  "))
	}
}

func TestWarningsOnSharedRevocation(t *testing.T) {
	t.Parallel()
	in := inputs(fstest.MapFS{
		"a.cedar":     {Data: []byte(everything)},
		"groups.yaml": {Data: []byte("support: {members: [login/ana]}\ndba: {members: [login/cleo]}\n")},
	})
	in.Catalogue["reports"].Shares = "role/reports"
	e, err := policy.Load(in)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := e.Warnings(), "entitlements.reports: revoking one credential also revokes all earlier credentials of role/reports"; len(got) != 1 || got[0] != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
