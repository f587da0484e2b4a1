package policy_test

import (
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"accessbroker.internal/broker"
	"accessbroker.internal/policy"
)

// loadBindings loads policies over a catalogue with every binding.
func loadBindings(t *testing.T, cedar string) *policy.Engine {
	t.Helper()
	in := inputs(fstest.MapFS{"a.cedar": {Data: []byte(cedar)}, "groups.yaml": {Data: []byte("support: {members: [login/ana]}\ndba: {members: [login/cleo]}\n")}})
	for name, binding := range map[string]broker.Binding{"open": 0, "by-key": broker.BindingDPoP, "by-certificate": broker.BindingMTLS, "either": broker.BindingDPoP | broker.BindingMTLS} {
		in.Catalogue[name] = &broker.Entitlement{Name: name, Issuer: "tokens", Audience: "https://" + name + ".acme.test", Binding: binding}
	}
	e, err := policy.Load(in)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

const on = `permit (principal, action == Action::"request", resource == Entitlement::"`

// The bindings of all permits and of the entitlement intersect. An empty set denies.
func TestBindingsOfPermitsIntersect(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		entitlement string
		permits     []string
		want        string // "": denied
	}{
		{"open", []string{``}, "none"},
		{"open", []string{`@binding("dpop")`}, "dpop"},
		{"open", []string{`@binding("mtls or dpop")`}, "dpop or mtls"},
		{"open", []string{`@binding("dpop or mtls")`, `@binding("mtls")`}, "mtls"},
		{"open", []string{`@binding("dpop")`, ``}, "dpop"},
		{"open", []string{`@binding("dpop")`, `@binding("mtls")`}, ""},
		{"open", []string{`@binding("dpop")`, `@binding("mtls")`, `@binding("dpop or mtls")`}, ""},
		{"by-key", []string{``}, "none"}, // the entitlement demands it by itself
		{"by-key", []string{`@binding("dpop or mtls")`}, "dpop"},
		{"by-key", []string{`@binding("mtls")`}, ""},
		{"either", []string{`@binding("mtls")`}, "mtls"},
		{"by-certificate", []string{`@binding("dpop or mtls")`, `@binding("dpop")`}, ""},
		{"orders-db-ro", []string{`@binding("dpop or mtls")`}, ""}, // no token
	} {
		cedar := ""
		for i, annotation := range test.permits {
			cedar += `@id("p` + string(rune('a'+i)) + `") ` + annotation + " " + on + test.entitlement + "\");\n"
		}
		e := loadBindings(t, cedar)
		q := query("spiffe://acme.test/agent/triage", "tickets-api")
		if q.Entitlement = &(broker.Entitlement{Name: test.entitlement}); test.entitlement == "orders-db-ro" {
			q.Entitlement = catalogue()[test.entitlement]
		}
		d, err := e.Decide(t.Context(), q, noon)
		if err != nil {
			t.Fatal(err)
		}
		if got := d.Obligations.Binding.String(); d.Permit != (test.want != "") || d.Permit && got != test.want || !d.Permit && !strings.Contains(strings.Join(d.Reasons, " "), "policy") {
			t.Errorf("%s with %q: got permit %t, %s, %q, want %q", test.entitlement, test.permits, d.Permit, got, d.Reasons, test.want)
		}
	}
}

func TestWarningsOnBindings(t *testing.T) {
	t.Parallel()
	for cedar, want := range map[string]string{
		`@id("x") @binding("dpop") ` + on + `open");`:           "",
		`@id("x") @binding("dpop or mtls") ` + on + `by-key");`: "",
		`@id("x") @binding("mtls") ` + on + `by-key");`:         `"mtls" and the binding of entitlement "by-key" exclude each other`,
		`@id("x") @binding("dpop") ` + on + `orders-db-ro");`:   `entitlement "orders-db-ro" issues credentials that are not tokens of the broker and cannot be bound`,
	} {
		e := loadBindings(t, cedar)
		got := slices.DeleteFunc(e.Warnings(), func(w string) bool {
			return !strings.Contains(w, "@binding") && !strings.Contains(w, "bound") && !strings.Contains(w, "exclude")
		})
		if want == "" && len(got) > 0 || want != "" && (len(got) != 1 || !strings.Contains(got[0], want)) {
			t.Errorf("%s: got %q, want %q", cedar, got, want)
		}
	}
}

func TestBindingAnnotations(t *testing.T) {
	t.Parallel()
	for _, value := range []string{"none", "", "tls", "dpop,mtls", "dpop or dpop", "DPoP"} {
		in := inputs(fstest.MapFS{"a.cedar": {Data: []byte(`@id("x") @binding("` + value + `") ` + on + `tickets-api");`)}, "groups.yaml": {Data: []byte("support: {members: [login/ana]}\ndba: {members: [login/cleo]}\n")}})
		if _, err := policy.Load(in); err == nil || !strings.Contains(err.Error(), "dpop or mtls") {
			t.Errorf("%q: got %v, want an error that says what to write", value, err)
		}
	}
}
