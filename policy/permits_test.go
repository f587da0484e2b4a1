package policy_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/fstest"

	"accessbroker.internal/broker"
	"accessbroker.internal/policy"
)

// reaches describes permits, one a line.
func reaches(list []*broker.Permit) (text string) {
	for _, p := range list {
		text += p.ID + ":"
		for _, r := range p.Reaches {
			text += " " + r.Entitlement + "[" + strings.Join(r.Scopes, " ") + "]"
		}
		if len(p.Groups) > 0 {
			text += " by " + strings.Join(p.Groups, " ")
		}
		text += "\n"
	}
	return text
}

func TestPermitsOfAnIdentity(t *testing.T) {
	t.Parallel()
	const policies = `@id("all-home") permit (principal, action == Action::"request", resource == Entitlement::"tickets-api") when { context.scopes == ["tickets:read"] };
@id("path") @ticket("X-[0-9]+") permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource) when { context has ticket && context.now < datetime("2020-01-01") };
@id("team") permit (principal is Agent, action == Action::"request", resource == Entitlement::"reports") when { principal has team && principal.team == "support" && context.scopes.contains("read") };
@id("other-team") permit (principal is Agent, action == Action::"request", resource == Entitlement::"reports") when { principal has team && principal.team == "billing" };
@id("pair") permit (principal in Group::"jobs", action == Action::"request", resource == Entitlement::"reports") when { context.scopes == ["read", "write"] };
@id("never") permit (principal, action == Action::"request", resource == Entitlement::"reports") when { resource.issuer == "vault" };
@id("glass") @break_glass("dba") permit (principal == Agent::"spiffe://acme.test/agent/triage", action == Action::"request", resource == Entitlement::"orders-db-ro");
@id("if-member") permit (principal is Person, action == Action::"request", resource == Entitlement::"reports") when { principal in Group::"dba" };
@id("elsewhere") permit (principal in Path::"spiffe://acme.test/billing", action == Action::"request", resource);
@id("sees") permit (principal, action == Action::"view", resource);
@id("no-orders") forbid (principal in Path::"spiffe://acme.test/agent/blocked", action == Action::"request", resource in System::"orders");`
	const groups = "support: {members: [login/sue]}\ndba: {members: [login/ana]}\njobs: {workloads: [spiffe://acme.test/jobs, spiffe://supplier.test]}\n"
	e := load(t, fstest.MapFS{"a.cedar": {Data: []byte(policies)}, "groups.yaml": {Data: []byte(groups)}})
	all := "tickets-api[tickets:close tickets:comment tickets:read]"
	for who, want := range map[string]string{
		triage:                             "all-home: tickets-api[tickets:read]\nglass: orders-db-ro[]\npath: orders-db-ro[] reports[read write] " + all + "\nteam: reports[read]\n",
		"spiffe://acme.test/agent/blocked": "all-home: tickets-api[tickets:read]\npath: reports[read write] " + all + "\nteam: reports[read]\n",
		"spiffe://acme.test/jobs/a":        "all-home: tickets-api[tickets:read]\npair: reports[read write] by jobs\n",
		"spiffe://supplier.test/x":         "pair: reports[read write] by jobs\n",
		"login/ana":                        "all-home: tickets-api[tickets:read]\nif-member: reports[read write] by dba\n",
		"login/ben":                        "all-home: tickets-api[tickets:read]\n",
		"spiffe://unknown.test/x":          "",
	} {
		got, more := e.Permits(identity(who), 10)
		if reaches(got) != want || more {
			t.Errorf("%s: got\n%s(%t), want\n%s", who, reaches(got), more, want)
		}
	}
	if got, more := e.Permits(identity(triage), 2); len(got) != 2 || !more {
		t.Errorf("with a limit of 2: got %d, more: %t", len(got), more)
	}
	if got := e.AllPermits(); len(got) != 9 || got[8].ID != "team" {
		t.Errorf("all: got\n%s", reaches(got))
	}
}

// What an identity is permitted to request, one scope at a time, is among its permits.
func TestPermitsCoverDecisions(t *testing.T) {
	t.Parallel()
	e := sample(t)
	permitted := 0
	for _, who := range []string{triage, billing, "spiffe://acme.test/batch/x", "spiffe://supplier.test/sync", "login/ana", "spiffe://acme.test/agent"} {
		list, _ := e.Permits(identity(who), 100)
		for name, known := range catalogue() {
			for _, scope := range append([]string{""}, known.Scopes...) {
				q := query(who, name, strings.Fields(scope)...)
				q.Parameters, q.Ticket, q.Justification = map[string]string{"prefix": "a"}, "INC-1", "because"
				d, err := e.Decide(t.Context(), q, noon)
				if err != nil || !d.Permit {
					continue
				}
				permitted++
				if text := reaches(list); !strings.Contains(text, d.Policies[0]+":") || !strings.Contains(text, name+"[") || !strings.Contains(text, scope) {
					t.Errorf("%s may request %s %s by %s, and its permits are\n%s", who, name, scope, d.Policies, text)
				}
			}
		}
	}
	if permitted < 5 {
		t.Errorf("%d requests were permitted", permitted)
	}
}

// BenchmarkPermits lists what an identity may request, with 10,000 policies.
func BenchmarkPermits(b *testing.B) {
	var text strings.Builder
	for n := range 10_000 {
		fmt.Fprintf(&text, "@id(\"p%d\") permit (principal in Path::\"spiffe://acme.test/w%d\", action == Action::\"request\", resource == Entitlement::\"tickets-api\") when { context.scopes == [\"tickets:read\"] };\n", n, n/10)
	}
	e := load(b, fstest.MapFS{"a.cedar": {Data: []byte(text.String())}, "groups.yaml": {Data: []byte("support: {members: [login/sue]}\ndba: {members: [login/ana]}\n")}})
	for n := 0; b.Loop(); n++ {
		if list, _ := e.Permits(identity(fmt.Sprintf("spiffe://acme.test/w%d/x", n%1000)), 100); len(list) != 10 {
			b.Fatalf("got %d permits, want 10", len(list))
		}
	}
}

var _ broker.PermitLister = (*policy.Engine)(nil)
