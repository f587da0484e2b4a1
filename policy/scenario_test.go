package policy_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"testing/fstest"

	"accessbroker.internal/policy"
)

func TestSampleScenarios(t *testing.T) {
	r, err := policy.Test(context.Background(), sample(t), os.DirFS("testdata/sample"))
	if err != nil || r.Ran == 0 || len(r.Failures) > 0 {
		t.Errorf("%v, %v", r, err)
	}
}

func TestReportText(t *testing.T) {
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
	for _, dir := range []fstest.MapFS{{}, {"x_test.yaml": {Data: []byte("scenarios: []\n")}}, {"x_test.yaml": {}}, {"x_test.yml": {Data: []byte("scenarios: 1")}}} {
		if r, err := policy.Test(context.Background(), sample(t), dir); !errors.Is(err, policy.ErrNoScenario) {
			t.Errorf("got %v, %v; want ErrNoScenario", r, err)
		}
	}
}

func TestTestRejectsMalformedScenario(t *testing.T) {
	const good = "scenarios:\n- name: n\n  principal: login/ana\n  entitlement: reports\n"
	for text, want := range map[string]string{
		"scenario: []\n":                             `x_test.yaml:1:1: unknown field "scenario"`,
		good + "  expects: permit\n":                 `x_test.yaml:5:3: unknown field "expects"`,
		good + "  expect: allow\n":                   `x_test.yaml:2:1: expect: "allow": write permit or deny`,
		good:                                         `expect: "": write permit or deny`,
		"scenarios:\n- expect: deny\n":               `the scenario has no name`,
		"scenarios:\n- name: n\n  expect: deny\n":    `the scenario has no principal`,
		good + "  expect: deny\n  obligations: {}\n": `a denial has no obligations`,
		good + "  expect: permit\n  obligations: {max_ttl: 5}\n":   `obligations: max_ttl: "5": write a duration`,
		good + "  expect: permit\n  obligations: {approvals: 5}\n": `unknown field "approvals"`,
		good + "  expect: permit\n  duration: -1h\n":               `duration: "-1h"`,
		good + "  expect: permit\n  ttl: fast\n":                   `x_test.yaml:2:1: ttl: "fast"`,
		good + "  expect: permit\n  now: noon\n":                   `now: "noon": write a time`,
		good + "  expect: permit\n  source_ip: 10.0.0\n":           `x_test.yaml:`,
		"scenarios: [\n": `x_test.yaml:`,
	} {
		_, err := policy.Test(context.Background(), sample(t), fstest.MapFS{"x_test.yaml": {Data: []byte(text)}})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got error\n  %v\nwant\n  %s", text, err, want)
		}
	}
}

func TestTestReadsEveryDocument(t *testing.T) {
	const one = "scenarios:\n- {name: n, principal: spiffe://acme.test/x, entitlement: tickets-api, scopes: [tickets:read], expect: deny}\n"
	r, err := policy.Test(context.Background(), sample(t), fstest.MapFS{"x_test.yaml": {Data: []byte(one + "---\n" + one)}})
	if err != nil || r.Ran != 2 || len(r.Failures) != 0 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestListItemKeepsColons(t *testing.T) {
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
