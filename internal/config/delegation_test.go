package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// understandPeople loads the usual file with these providers and further sections.
func understandPeople(t *testing.T, people, more string) (*Config, error) {
	t.Helper()
	dir := sealedDir(t)
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return understand(dir, strings.Replace(goodConfig, "store: sqlite", "  people:\n"+people+"store: sqlite", 1)+more)
}

func delegatingProvider(more string) string {
	return `    login: {issuer: "https://login.acme.test", client_id: broker, client_secret_file: secret, groups_claim: groups, ` + more + "}\n"
}

func TestDelegationConfig(t *testing.T) {
	c, err := understandPeople(t, delegatingProvider(`delegation_audiences: [broker-agents], delegation: {id_jag: true, tenant: acme, clients: {mcp-client: ["spiffe://acme.test/agent"]}}`), "scim: {corp: {provider: login, subject: externalId, stale_after: 1h}}\n")
	if err != nil {
		t.Fatal(err)
	}
	d := c.Providers[0].Delegation
	if !d.IDJAGs || d.Tenant != "acme" || d.Audience != c.ExternalURL.String() || d.Audiences[0] != "broker-agents" || d.Clients["mcp-client"][0] != "spiffe://acme.test/agent" || !d.GroupsElsewhere {
		t.Errorf("got %+v", d)
	}
	if text := strings.Join(c.Warnings, "\n"); strings.Contains(text, "attest.people") {
		t.Errorf("got warnings %s", text)
	}
}

func TestDelegationWarnings(t *testing.T) {
	for name, test := range map[string]struct{ more, want string }{
		"no clients":     {"delegation: {id_jag: true}", "attest.people.login.delegation: without clients"},
		"no groups":      {"delegation_audiences: [x]", `attest.people.login.groups_claim: a token without the claim "groups"`},
		"nothing issued": {`delegation: {clients: {c: ["spiffe://acme.test/agent"]}}`, "no token lets anyone act for people"},
	} {
		c, err := understandPeople(t, delegatingProvider(test.more), "")
		if err != nil {
			t.Errorf("%s: got %v", name, err)
			continue
		}
		if text := strings.Join(c.Warnings, "\n"); !strings.Contains(text, test.want) {
			t.Errorf("%s: got warnings %s, want %s", name, text, test.want)
		}
	}
}

func TestDelegationMistakes(t *testing.T) {
	for name, test := range map[string]struct{ more, want string }{
		"the login client as audience": {"delegation_audiences: [broker]", "delegation_audiences are other clients"},
		"an empty audience":            {`delegation_audiences: [""]`, "delegation_audiences.0: write an audience"},
		"an audience twice":            {"delegation_audiences: [a, a]", "delegation_audiences.1: write an audience"},
		"the login client":             {`delegation: {id_jag: true, clients: {broker: ["spiffe://acme.test/agent"]}}`, "is the broker's own client"},
		"a client without callers":     {"delegation: {id_jag: true, clients: {c: []}}", "write the SPIFFE IDs of the callers"},
		"a SPIFFE ID as client":        {`delegation: {id_jag: true, clients: {"spiffe://acme.test/a": ["spiffe://acme.test/a"]}}`, "stands for itself"},
		"a malformed caller":           {"delegation: {id_jag: true, clients: {c: [agent]}}", "clients.c.0"},
		"a pattern":                    {`delegation: {id_jag: true, clients: {c: ["spiffe://acme.test/agent/*"]}}`, "clients.c.0"},
		"another trust domain":         {`delegation: {id_jag: true, clients: {c: ["spiffe://evil.test/agent"]}}`, `"evil.test" is not in attest.trust_domains`},
		"a caller twice":               {`delegation: {id_jag: true, clients: {c: ["spiffe://acme.test/a", "spiffe://acme.test/a"]}}`, "is listed twice"},
		"an unknown key":               {"delegation: {idjag: true}", "idjag"},
	} {
		_, err := understandPeople(t, delegatingProvider(test.more), "")
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %s", name, err, test.want)
		}
	}
	twin := strings.Replace(delegatingProvider(""), "login:", "twin:", 1)
	_, err := understandPeople(t, delegatingProvider("delegation: {id_jag: true}")+twin, "")
	if err == nil || !strings.Contains(err.Error(), "another provider has the same issuer") {
		t.Errorf("two providers with one issuer: got %v", err)
	}
}
