package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/issuers/ldap"
	"accessbroker.internal/issuers/scim"
)

const membershipExample = "../../docs/examples/memberships.yaml"

// checkExample checks the example of the documentation with a change.
func checkExample(t *testing.T, from, to string) (*Config, string) {
	t.Helper()
	text, err := os.ReadFile(membershipExample)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), from) {
		t.Fatalf("the example does not have %q", from)
	}
	dir := sealedDir(t)
	err = errors.Join(
		os.WriteFile(filepath.Join(dir, "broker.yaml"), []byte(strings.Replace(string(text), from, to, 1)), 0o600),
		os.WriteFile(filepath.Join(dir, "login.secret"), []byte("secret"), 0o600),
		os.Mkdir(filepath.Join(dir, "policies"), 0o700),
		os.WriteFile(filepath.Join(dir, "policies/a.cedar"), []byte(`@id("a") permit (principal, action == Action::"request", resource);`), 0o600),
	)
	if err != nil {
		t.Fatal(err)
	}
	c, err := Load(filepath.Join(dir, "broker.yaml"), nil)
	if err != nil {
		return nil, err.Error()
	}
	return c, ""
}

func TestMembershipExampleLoads(t *testing.T) {
	c, problem := checkExample(t, "", "")
	if c == nil {
		t.Fatal(problem)
	}
	sales, admins := c.Catalogue["crm-sales"], c.Catalogue["production-admins"]
	if s, ok := sales.Spec.(*scim.Spec); !ok || s.Group != "Sales" || !sales.Persists || sales.Revocation != broker.RevokedImmediate {
		t.Errorf("crm-sales: got %+v", sales)
	}
	if s, ok := admins.Spec.(*ldap.Spec); !ok || s.Role || !strings.HasPrefix(s.Group, "cn=production-admins,") {
		t.Errorf("production-admins: got %+v", admins)
	}
	if onCall := c.Catalogue["on-call"]; onCall.MaxTTL != 168*time.Hour || onCall.DefaultTTL != time.Hour {
		t.Errorf("on-call: got %+v", onCall)
	}
	seen := map[string]bool{}
	for name, e := range c.Catalogue {
		if seen[e.Effect.String()] {
			t.Errorf("%s has the effect of another entitlement", name)
		}
		seen[e.Effect.String()] = true
	}
}

func TestMembershipMistakes(t *testing.T) {
	for name, test := range map[string]struct{ from, to, want string }{
		"no address":          {"https://crm.acme.test/scim/v2", "http://crm.acme.test/scim/v2", "issuers.crm.scim.url: write the https URL"},
		"no login":            {"      token_file: crm.token\n", "", "issuers.crm.scim: write one way to log in"},
		"half a certificate":  {"token_file: crm.token", "cert: f", "issuers.crm.scim.cert: a client certificate needs both"},
		"an attribute":        {"match: userName", "match: nickName", "issuers.crm.scim.match: choose"},
		"no members":          {"members:\n        people: {login: sub}          # a person is the entry whose uid is the person's subject", "members: {}", "issuers.directory.ldap.members: write who is which member"},
		"a provider":          {"people: {login: email}", "people: {corp: email}", `people.corp: there is no provider "corp"`},
		"a source":            {"people: {login: email}", "people: {login: name}", "people.login: choose sub"},
		"an account":          {"login/ana: ana.smith@acme.test", "ana: ana.smith@acme.test", "write a SPIFFE ID, or a person"},
		"LDAP in the clear":   {"ldaps://ldap.acme.test", "ldap://ldap.acme.test", "issuers.directory.ldap.url: use ldaps://"},
		"TLS twice":           {"url: ldaps://ldap.acme.test", "url: ldaps://ldap.acme.test\n      start_tls: true", "issuers.directory.ldap.start_tls: ldaps has TLS"},
		"no bind":             {`bind: {dn: "cn=broker,ou=services,dc=acme,dc=test", password_file: ldap.password}`, "bind: {external: true}", "issuers.directory.ldap.bind.external: needs the client certificate"},
		"a base":              {"base: dc=acme,dc=test ", "base: acme ", "issuers.directory.ldap.base: write a DN"},
		"too often":           {"compare_every: 5m", "compare_every: 1s", "compare_every: must be at least 10s"},
		"two groups":          {"scim: {group: Sales}", "scim: {group: Sales, role: x}", "entitlements.crm-sales.scim: write exactly one"},
		"no group":            {"    scim: {group: Sales}\n", "", "entitlements.crm-sales.scim: write exactly one"},
		"another issuer's":    {"scim: {group: Sales}", "scim: {group: Sales}\n    ldap: {group: \"cn=x\"}", "entitlements.crm-sales.ldap: issuer \"crm\" is not an LDAP directory"},
		"no DN":               {`ldap: {role: "cn=on-call,ou=roles,dc=acme,dc=test"}`, "ldap: {role: on-call}", "entitlements.on-call.ldap: write the DN"},
		"scopes":              {"scim: {group: Sales}", "scim: {group: Sales}\n    scopes: [read]", "entitlements.crm-sales.scopes: a membership has no scopes"},
		"too long":            {"max_ttl: 168h", "max_ttl: 721h", "entitlements.on-call.max_ttl: must be at most 720h"},
		"two kinds of issuer": {"    scim:\n      url", "    token: {audience: \"https://x.test\"}\n    scim:\n      url", "issuers.crm: write exactly one kind"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, problem := checkExample(t, test.from, test.to); !strings.Contains(problem, test.want) {
				t.Errorf("got %s\nwant %s", problem, test.want)
			}
		})
	}
}
