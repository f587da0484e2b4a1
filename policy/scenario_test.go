package policy_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"accessbroker.internal/policy"
)

func TestSampleScenarios(t *testing.T) {
	t.Parallel()
	r, err := policy.Test(context.Background(), sample(t), os.DirFS("testdata/sample"))
	if err != nil || r.Ran == 0 || len(r.Failures) > 0 {
		t.Errorf("%v, %v", r, err)
	}
}

func TestReportText(t *testing.T) {
	t.Parallel()
	scenarios := fstest.MapFS{"x_test.yaml": {Data: []byte(`scenarios:
  - name: passes
    principal: spiffe://acme.test/agent/triage
    entitlement: tickets-api
    scopes: [tickets:read]
    expect: permit

  - name: closing is denied
    principal: spiffe://acme.test/agent/triage
    entitlement: tickets-api
    scopes: [tickets:close]
    expect: deny
    policies: []
  - name: other obligations
    principal: spiffe://acme.test/agent/triage
    entitlement: tickets-api
    scopes: [tickets:read]
    expect: permit
    reasons: []
    obligations: {max_ttl: 5m}
  - name: unknown scope
    principal: spiffe://acme.test/agent/triage
    entitlement: tickets-api
    scopes: [tickets:reed]
    expect: deny
  - name: unknown entitlement
    principal: spiffe://acme.test/agent/triage
    entitlement: tickets
    expect: deny
  - name: unknown domain
    principal: spiffe://evil.test/agent/triage
    entitlement: tickets-api
    expect: deny
`)}}
	r, err := policy.Test(context.Background(), sample(t), scenarios)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/failures.golden", r.String())
}

// golden compares got with a file. UPDATE_GOLDEN=1 writes the file.
func golden(t *testing.T, name, got string) {
	t.Helper()
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("got:\n%s\nwant (%s):\n%s", got, name, want)
	}
}

func TestTestFailsWithoutScenario(t *testing.T) {
	t.Parallel()
	for _, dir := range []fstest.MapFS{{}, {"x_test.yaml": {Data: []byte("scenarios: []\n")}}, {"x_test.yaml": {}}, {"x_test.yml": {Data: []byte("scenarios: 1")}}} {
		if r, err := policy.Test(context.Background(), sample(t), dir); !errors.Is(err, policy.ErrNoScenario) {
			t.Errorf("got %v, %v; want ErrNoScenario", r, err)
		}
	}
}

func TestTestRejectsMalformedScenario(t *testing.T) {
	t.Parallel()
	const good = "scenarios:\n- name: n\n  principal: login/ana\n  entitlement: reports\n"
	for text, want := range map[string]string{
		"scenario: []\n":                             `x_test.yaml:1:1: unknown key "scenario"`,
		good + "  expects: permit\n":                 `x_test.yaml:5:3: unknown key "expects"`,
		good + "  expect: allow\n":                   `x_test.yaml:2:1: expect: "allow": write permit or deny`,
		good:                                         `expect: "": write permit or deny`,
		"scenarios:\n- expect: deny\n":               `the scenario has no name`,
		"scenarios:\n- name: n\n  expect: deny\n":    `the scenario has no principal`,
		good + "  expect: deny\n  obligations: {}\n": `a denial has no obligations`,
		good + "  expect: permit\n  obligations: {max_ttl: 5}\n":   `obligations: max_ttl: "5": write a duration`,
		good + "  expect: permit\n  obligations: {approvals: 5}\n": `unknown key "approvals"`,
		good + "  expect: permit\n  duration: -1h\n":               `duration: "-1h"`,
		good + "  expect: permit\n  ttl: fast\n":                   `x_test.yaml:2:1: ttl: "fast"`,
		good + "  expect: permit\n  now: noon\n":                   `now: "noon": write a time`,
		good + "  expect: permit\n  source_ip: 10.0.0\n":           `x_test.yaml:6:14: scenarios.0.source_ip: "10.0.0" is not an IP address: write one such as 192.0.2.1`,
		good + "  expect: permit\n  policies:\n":                   `scenarios.0.policies: the key has no value: write one, or remove the key`,
		good + "  expect: permit\n  policies: null\n":              `x_test.yaml:6:13: scenarios.0.policies: the key has no value`,
		good + "  expect: permit\n  reasons:\n":                    `scenarios.0.reasons: the key has no value`,
		good + "  expect: permit\n  obligations:\n":                `scenarios.0.obligations: the key has no value`,
		good + "  expect: permit\n  scopes: read\n":                `x_test.yaml:6:11: scenarios.0.scopes: write a list, such as [read]`,
		"scenarios: [\n": `x_test.yaml:1:12: the closing ] is missing`,
	} {
		_, err := policy.Test(context.Background(), sample(t), fstest.MapFS{"x_test.yaml": {Data: []byte(text)}})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got error\n  %v\nwant\n  %s", text, err, want)
		}
	}
}

func TestTestReadsEveryDocument(t *testing.T) {
	t.Parallel()
	const one = "scenarios:\n- {name: n, principal: spiffe://acme.test/x, entitlement: tickets-api, scopes: [tickets:read], expect: deny}\n"
	r, err := policy.Test(context.Background(), sample(t), fstest.MapFS{"x_test.yaml": {Data: []byte(one + "---\n" + one)}})
	if err != nil || r.Ran != 2 || len(r.Failures) != 0 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestListItemKeepsColons(t *testing.T) {
	t.Parallel()
	for scopes, want := range map[string]string{
		"[tickets:read]":                    "",
		`["tickets:read", tickets:comment]`: "",
		"[tickets:re:ad]":                   `no scope "tickets:re:ad"`,
		"[tickets: read]":                   `x_test.yaml:2:`,
	} {
		text := "scenarios:\n- {name: n, principal: " + triage + ", entitlement: tickets-api, scopes: " + scopes + ", expect: permit}\n"
		r, err := policy.Test(context.Background(), sample(t), fstest.MapFS{"x_test.yaml": {Data: []byte(text)}})
		got := ""
		if err != nil {
			got = err.Error()
		} else if len(r.Failures) > 0 {
			got = r.Failures[0].Text
		}
		if (want == "") != (got == "") || !strings.Contains(got, want) {
			t.Errorf("%s: got %q, want %q", scopes, got, want)
		}
	}
}

func TestScenarioDefaults(t *testing.T) {
	t.Parallel()
	in := inputs(fstest.MapFS{"groups.yaml": {Data: []byte(groupsText + "security: {members: [login/ben]}\n")}, "a.cedar": {Data: []byte(`
		@id("now") permit (principal, action == Action::"audit", resource) when { context.now == datetime("2026-01-01T12:00:00Z") };
		@id("short") permit (principal in Group::"dba", action == Action::"request", resource == Entitlement::"tickets-api")
		when { context.scopes == ["tickets:read"] && context.ttl == duration("10m") && context.duration == duration("2h") };
		@id("long") @break_glass("security") @review_within("4h") permit (principal in Group::"dba", action == Action::"request", resource == Entitlement::"reports")
		when { context.ttl == duration("1h") && context.duration == duration("1h") };`)}})
	in.Catalogue["tickets-api"].DefaultScopes = []string{"tickets:read"}
	in.Catalogue["tickets-api"].CollectWithin = 2 * time.Hour
	e, err := policy.Load(in)
	if err != nil {
		t.Fatal(err)
	}
	scenarios := fstest.MapFS{"x_test.yaml": {Data: []byte(`scenarios:
  - {name: default time, principal: login/ana, action: audit, expect: permit, policies: [now]}
  - {name: default scopes TTL and duration, principal: login/cleo, entitlement: tickets-api, expect: permit, policies: [short]}
  - {name: given TTL, principal: login/cleo, entitlement: tickets-api, ttl: 9m, expect: deny}
  - {name: given duration, principal: login/cleo, entitlement: tickets-api, duration: 1h, expect: deny}
  - {name: given time, principal: login/ana, action: audit, now: "2026-01-01T12:00:01Z", expect: deny}
  - name: maximum TTL and one hour
    principal: login/cleo
    entitlement: reports
    scopes: [read]
    break_glass: true
    expect: permit
    obligations: {review: 1 of security, review_within: 4h}
`)}}
	r, err := policy.Test(context.Background(), e, scenarios)
	if err != nil || r.Ran != 6 || len(r.Failures) > 0 {
		t.Errorf("got %v, %v", r, err)
	}
}

func TestScenarioWithoutRequiredKeyFails(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"principal: login/ana": "the scenario has no entitlement",
		"principal: login/ana, action: view, requester: login/ben":               "add requester and entitlement",
		"principal: login/ana, action: view, entitlement: reports":               "add requester and entitlement",
		"principal: login/ana, action: view, entitlement: reports, requester: x": "requester: ",
	} {
		r, err := policy.Test(context.Background(), sample(t), fstest.MapFS{"x_test.yaml": {Data: []byte("scenarios:\n- {name: n, expect: deny, " + text + "}\n")}})
		if err != nil || len(r.Failures) != 1 || !strings.Contains(r.Failures[0].Text, want) {
			t.Errorf("%s: got %+v, %v; want %q", text, r, err, want)
		}
	}
}

// A justification, ticket or parameter is what the file has.
func TestScenarioTextsAreReadAsWritten(t *testing.T) {
	t.Parallel()
	folder := fstest.MapFS{
		"a.cedar": {Data: []byte(`@id("x") permit (principal, action == Action::"request", resource == Entitlement::"reports")
			when { context has ticket && context.ticket == "0777" && context.parameters.hasTag("prefix") && context.parameters.getTag("prefix") == "1.10" };`)},
		"groups.yaml": {Data: []byte("support: {}\ndba: {}\n")},
		"x_test.yaml": {Data: []byte("\ufeffscenarios:\n- {name: 1.0, principal: login/ana, entitlement: reports, scopes: [read], ticket: 0777, parameters: {prefix: 1.10}, expect: permit}\n")},
	}
	e := load(t, folder)
	r, err := policy.Test(t.Context(), e, folder)
	if err != nil || r.Ran != 1 || len(r.Failures) > 0 {
		t.Errorf("got %+v, %v", r, err)
	}
	folder["x_test.yaml"].Data = []byte("scenarios:\n- {name: n, principal: login/ana, entitlement: reports, break_glass: \"yes\", expect: deny}\n")
	if _, err := policy.Test(t.Context(), e, folder); err == nil || !strings.Contains(err.Error(), `x_test.yaml:2:70: scenarios.0.break_glass: "yes": write true or false`) {
		t.Errorf("got error %v", err)
	}
}
