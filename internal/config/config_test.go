package config

import (
	"bytes"
	"encoding/base64"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/broker"
)

// goodConfig has no mistake. Each test adds one.
const goodConfig = `server:
  external_url: https://broker.acme.test
  listeners:
    - {listen: 127.0.0.1:8443, tls: {svid: true}, client_certs: optional, serve: [api, oauth, log]}
  metrics: 127.0.0.1:9464
  seal_keys: [{file: seal.key}]
attest:
  trust_domain: acme.test
  trust_domains: [acme.test, supplier.test]
  workload_api: unix:///run/spire/agent.sock
  workloads:
    - {under: spiffe://acme.test/agent, kind: agent, team: support}
store: sqlite:broker.db
policies: policies
issuers:
  tickets: {token: {audience: https://tickets.acme.test}}
  vault: {vault: {address: https://vault:8200, auth: {jwt: {role: broker}}, token_role: leases}}
  aws: {aws: {region: eu-west-1, auth: {web_identity: {}}}}
  old: {token: {audience: https://old.acme.test}, retired: true}
entitlements:
  tickets-api:
    issuer: tickets
    scopes: [tickets:read, tickets:close]
    default_scopes: [tickets:read]
    default_ttl: 10m
    max_ttl: 15m
  orders-db-ro: {issuer: vault, vault: {path: database/creds/orders-ro}, max_ttl: 30m}
  reports:
    issuer: aws
    aws: {role_arn: arn:aws:iam::123456789012:role/reports}
    parameters: {prefix: {pattern: "[a-z0-9-]{1,40}", required: true}}
    scopes:
      read: {actions: [s3:GetObject], resources: ["arn:aws:s3:::reports/${prefix}/*"]}
    max_ttl: 1h
`

func sealedDir(t testing.TB) (dir string) {
	t.Helper()
	dir = t.TempDir()
	key := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7}, 32))
	if err := os.WriteFile(filepath.Join(dir, "seal.key"), []byte(key), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func understand(dir, text string) (*Config, error) {
	return Parse(filepath.Join(dir, "broker.yaml"), []byte(text), nil)
}

func TestGoodConfig(t *testing.T) {
	s, err := understand(sealedDir(t), goodConfig)
	if err != nil {
		t.Fatal(err)
	}
	e := s.Catalogue["reports"]
	if e.MinTTL == 0 || len(e.Scopes) != 1 || e.Spec == nil || e.Effect.IsZero() || s.Catalogue["orders-db-ro"].Revocation != "immediate" || s.Catalogue["tickets-api"].Audience == "" {
		t.Errorf("got catalogue %+v", s.Catalogue)
	}
}

// The delay of a drain may be zero, unlike its timeout.
func TestDrain(t *testing.T) {
	for text, want := range map[string]Drain{
		"":                                     {5 * time.Second, 20 * time.Second},
		"  drain: {delay: 0s}\n":               {0, 20 * time.Second},
		"  drain: {delay: 1m, timeout: 40s}\n": {time.Minute, 40 * time.Second},
	} {
		s, err := understand(sealedDir(t), strings.Replace(goodConfig, "  metrics:", text+"  metrics:", 1))
		if err != nil || s.Drain != want {
			t.Errorf("%q: got %+v, %v; want %+v", text, s, err, want)
		}
	}
}

func TestAdmissionOfResourceServers(t *testing.T) {
	c, err := understand(sealedDir(t), strings.Replace(goodConfig, "metrics: 127", "admission: {per_second: 5, resource_servers: {per_second: 500, pending: 7}}\n  metrics: 127", 1))
	if err != nil || c.Admission.PerSecond != 5 || c.Admission.ResourceServers != (Limit{500, 7}) {
		t.Errorf("got %+v, %v", c.Admission, err)
	}
}

func TestWaitingRequests(t *testing.T) {
	c, err := understand(sealedDir(t), strings.Replace(goodConfig, "metrics: 127", "admission: {waiting_requests: 7}\n  metrics: 127", 1))
	if err != nil || c.Admission.Waiting != 7 {
		t.Errorf("got %d, %v, want 7", c.Admission.Waiting, err)
	}
}

// Without scopes, a provider gets the usual ones, which include people's names. An empty
// list means none.
func TestProviderScopes(t *testing.T) {
	for said, want := range map[string][]string{"": nil, ", scopes: []": {}, ", scopes: [groups]": {"groups"}} {
		dir := sealedDir(t)
		if err := os.WriteFile(filepath.Join(dir, "client.secret"), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := understand(dir, strings.Replace(goodConfig, "  workloads:", "  people: {login: {issuer: \"https://login.acme.test\", client_id: broker, client_secret_file: client.secret"+said+"}}\n  workloads:", 1))
		if err != nil {
			t.Fatal(err)
		}
		if got := s.Providers[0].Scopes; (got == nil) != (want == nil) || !slices.Equal(got, want) {
			t.Errorf("%q: %#v, want %#v", said, got, want)
		}
	}
}

// Scopes of every kind can have descriptions, which do not change the effect.
func TestScopeDescriptions(t *testing.T) {
	dir := sealedDir(t)
	before, err := understand(dir, goodConfig)
	if err != nil {
		t.Fatal(err)
	}
	for name, scopes := range map[string]string{
		"in a line":  `{"tickets:read": {description: "read tickets: all"}, "tickets:close": {}}`,
		"in a block": "\n      tickets:read: {description: \"read tickets: all\"}\n      tickets:close:",
		"in blocks":  "\n      tickets:read:\n        description: >\n          read tickets: all\n      tickets:close: {description: \"\"}",
	} {
		s, err := understand(dir, strings.NewReplacer("[tickets:read, tickets:close]", scopes, "read: {actions", "read: {description: look into reports, actions").Replace(goodConfig))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		tickets, reports := s.Catalogue["tickets-api"], s.Catalogue["reports"]
		if got := tickets.Scopes; !slices.Equal(got, []string{"tickets:close", "tickets:read"}) {
			t.Errorf("%s: got scopes %q", name, got)
		}
		if got := tickets.ScopeTexts; !maps.Equal(got, map[string]string{"tickets:read": "read tickets: all"}) {
			t.Errorf("%s: got descriptions %q", name, got)
		}
		if got := reports.ScopeTexts["read"]; got != "look into reports" {
			t.Errorf("%s: got description %q of read", name, got)
		}
		if tickets.Effect != before.Catalogue["tickets-api"].Effect || reports.Effect != before.Catalogue["reports"].Effect {
			t.Errorf("%s: the descriptions changed the effect", name)
		}
	}
}

// max_length is the operator's, up to the maximum of a request.
func TestParameterMaxLength(t *testing.T) {
	for parameter, want := range map[string]int{
		`{pattern: ".*"}`:                                256,
		`{pattern: ".*", max_length: 1024}`:              broker.MaxParameter,
		`{pattern: ".*", lines: true}`:                   256,
		`{pattern: ".*", lines: true, max_length: 4096}`: broker.MaxLines,
	} {
		s, err := understand(sealedDir(t), strings.Replace(goodConfig, "max_ttl: 15m", "max_ttl: 15m\n    parameters: {p: "+parameter+"}", 1))
		if err != nil {
			t.Errorf("%s: %v", parameter, err)
			continue
		}
		if got := s.Catalogue["tickets-api"].Parameters["p"].MaxLength; got != want {
			t.Errorf("%s: got %d bytes, want %d", parameter, got, want)
		}
	}
}

var (
	placed  = regexp.MustCompile(`^broker\.yaml:[0-9]+:[0-9]+: `)
	goNames = regexp.MustCompile(`\*?(main|config)\.|struct|\binterface\b|Go value|map\[|\[\]`)
)

// Every mistake has file, line, column, key and correction, without names of Go.
func TestBadConfigs(t *testing.T) {
	dir := sealedDir(t)
	for name, test := range map[string]struct{ from, to, want string }{
		"not YAML":                        {"server:", "server: [", "broker.yaml:7:1: "},
		"drain that takes too long":       {"metrics:", "drain: {delay: 6m}\n  metrics:", `server.drain: delay and timeout must be at most 5m`},
		"drain of less than a second":     {"metrics:", "drain: {delay: 0.5s}\n  metrics:", "broker.yaml:5:18: a delay is a number of whole seconds"},
		"limit below zero":                {"metrics:", "limits: {connections: -1}\n  metrics:", "server.limits: limits must be positive"},
		"limit that admits no call":       {"metrics:", "limits: {unproved_bytes: 1024}\n  metrics:", "server.limits.unproved_bytes: must be at least 1048576"},
		"proxies without networks":        {"metrics:", "trusted_proxies: {header: forwarded}\n  metrics:", "server.trusted_proxies.networks: list the addresses"},
		"proxies anywhere":                {"metrics:", "trusted_proxies: {networks: [\"0.0.0.0/0\"], header: forwarded}\n  metrics:", `server.trusted_proxies.networks.0: "0.0.0.0/0" contains every address`},
		"proxies with more bits":          {"metrics:", "trusted_proxies: {networks: [10.0.0.1, 10.0.0.1/8], header: forwarded}\n  metrics:", `server.trusted_proxies.networks.1: "10.0.0.1/8" is not a network`},
		"proxies by name":                 {"metrics:", "trusted_proxies: {networks: [proxy.acme.test], header: forwarded}\n  metrics:", `server.trusted_proxies.networks.0: "proxy.acme.test" is not a network`},
		"proxies with another header":     {"metrics:", "trusted_proxies: {networks: [10.0.0.1], header: x-real-ip}\n  metrics:", "server.trusted_proxies.header: choose forwarded"},
		"proxies without a use":           {"metrics:", "trusted_proxies: {networks: [10.0.0.1]}\n  metrics:", "server.trusted_proxies: write header, or proxy_protocol"},
		"PROXY protocol of anyone":        {"client_certs: optional", "client_certs: optional, proxy_protocol: true", "server.listeners.0.proxy_protocol: list the proxies"},
		"PROXY protocol and certificates": {"client_certs: optional", "proxy_protocol: true", "server.listeners.0.client_certs: say what the proxy does: write off if it ends TLS"},
		"host that is a URL":              {"metrics:", "hosts: [\"https://broker.svc\"]\n  metrics:", `server.hosts.0: "https://broker.svc" is not a host`},
		"host with a bad port":            {"metrics:", "hosts: [\"b.svc\", \"b.svc:65536\"]\n  metrics:", `server.hosts.1: "b.svc:65536" is not a host`},
		"unknown key":                     {"metrics:", "metricz:", `broker.yaml:5:3: unknown key "metricz"`},
		"wrong kind of value":             {"listeners:\n    - {listen: 127.0.0.1:8443, tls: {svid: true}, client_certs: optional, serve: [api, oauth, log]}", "listeners: none", "broker.yaml:3:14: server.listeners: write a list of entries, each after a dash"},
		"a list for a text":               {"policies: policies", "policies: [a]", "broker.yaml:14:"},
		"no URL":                          {"https://broker.acme.test", "broker", "broker.yaml:2:3: server.external_url: write the https URL by which callers reach the broker"},
		"a host with a dot at its end":    {"https://broker.acme.test", "https://broker.acme.test.", "server.external_url: write the https URL"},
		"a host that is not ASCII":        {"https://broker.acme.test", "https://bröker.acme.test", "xn--"},
		"a user in the URL":               {"https://broker.acme.test", "https://ana@broker.acme.test", "contains a user"},
		"a path with dots":                {"https://broker.acme.test", "https://broker.acme.test/a/../b", "has a path that"},
		"plain HTTP":                      {"https://broker.acme.test", "http://broker.acme.test", "server.external_url"},
		"no port":                         {"127.0.0.1:9464", "127.0.0.1", "broker.yaml:5:3: server.metrics: write host and port"},
		"no TLS":                          {"tls: {svid: true}, ", "", "broker.yaml:4:7: server.listeners.0.tls: every listener needs TLS"},
		"client certs":                    {"client_certs: optional", "client_certs: maybe", "server.listeners.0.client_certs: choose off, optional or required"},
		"a part to serve":                 {"[api, oauth, log]", "[api, pages]", `server.listeners.0.serve.1: "pages" cannot be served`},
		"tickets":                         {"metrics: 127", "ticket_url: \"javascript:alert(1)//{ticket}\"\n  metrics: 127", "server.ticket_url: write an https URL that contains {ticket}"},
		"a ticket in the host":            {"metrics: 127", "ticket_url: \"https://{ticket}.acme.test/\"\n  metrics: 127", "server.ticket_url: write an https URL that contains {ticket}"},
		"no ticket":                       {"metrics: 127", "ticket_url: https://tracker.acme.test/\n  metrics: 127", "server.ticket_url: write an https URL that contains {ticket}"},
		"no seal key":                     {"seal_keys: [{file: seal.key}]", "seal_keys: []", "server.seal_keys: the broker seals its signing keys"},
		"not a seal key":                  {"file: seal.key", "file: broker.yaml", "server.seal_keys.0: reading the seal key"},
		"trust domain":                    {"trust_domain: acme.test", "trust_domain: Acme/Test", `attest.trust_domain: "Acme/Test" is not a trust domain: use only a-z in lower case, 0-9, '.', '-' and '_'; write the broker's own trust domain`},
		"own domain not listed":           {"[acme.test, supplier.test]", "[supplier.test]", "attest.trust_domains: must also list the broker's own trust domain"},
		"a short bundle_max_age":          {"trust_domain: acme.test\n", "trust_domain: acme.test\n  bundle_max_age: 1s\n", "attest.bundle_max_age: must be 1m to"},
		"a long bundle_max_age":           {"trust_domain: acme.test\n", "trust_domain: acme.test\n  bundle_max_age: 200h\n", "attest.bundle_max_age: must be 1m to"},
		"no bundles":                      {"workload_api: unix:///run/spire/agent.sock", "workload_api:", "attest"},
		"a workload of another domain":    {"spiffe://acme.test/agent", "spiffe://other.test/agent", "attest.workloads.0.under"},
		"a workload with a glob":          {"spiffe://acme.test/agent", "spiffe://acme.test/agent*", "attest.workloads.0.under"},
		"a workload's empty segment":      {"spiffe://acme.test/agent", "spiffe://acme.test/agent//x", "its path has an empty segment"},
		"a workload in capitals":          {"spiffe://acme.test/agent", "spiffe://ACME.test/agent", "attest.workloads.0.under: \"ACME.test\" is not a trust domain"},
		"a misspelt trust domain":         {"spiffe://acme.test/agent", "spiffe://acme.tst/agent", `"acme.tst" is not in attest.trust_domains: did you mean "acme.test"?`},
		"a trust domain as an ID":         {"[acme.test, supplier.test]", "[acme.test, \"spiffe://supplier.test\"]", "attest.trust_domains.1: \"spiffe://supplier.test\" is not a trust domain: write it without spiffe://"},
		"a resource server's domain":      {"{audience: https://tickets.acme.test}", "{audience: https://tickets.acme.test, resource_servers: [\"spiffe://acme.test\"]}", "issuers.tickets.token.resource_servers.0: \"spiffe://acme.test\" is a whole trust domain"},
		"a resource server's percent":     {"{audience: https://tickets.acme.test}", "{audience: https://tickets.acme.test, resource_servers: [\"spiffe://acme.test/%74\"]}", "no percent-encoding"},
		"a foreign resource server":       {"{audience: https://tickets.acme.test}", "{audience: https://tickets.acme.test, resource_servers: [\"spiffe://other.test/a\"]}", `"other.test" is not in attest.trust_domains`},
		"an account of two people":        {"store: sqlite", "people: {aliases: [[login/ana, corp/ana], [login/ben, corp/ana]]}\nstore: sqlite", `people.aliases.1.1: "corp/ana" is also an account of another person`},
		"an account of no provider":       {"store: sqlite", "people: {aliases: [[login/ana, logn/ana]]}\nstore: sqlite", `people.aliases.0.1: there is no provider "logn" in attest.people`},
		"one account":                     {"store: sqlite", "people: {aliases: [[login/ana]]}\nstore: sqlite", `people.aliases.0: ["login/ana"] links no accounts`},
		"an account that is no person":    {"store: sqlite", "people: {aliases: [[login/ana, ana]]}\nstore: sqlite", `people.aliases.0: "ana" is not a person`},
		"a workload twice":                {"team: support}", "team: support}\n    - {under: spiffe://acme.test/agent, kind: workload}", "attest.workloads.1.under: spiffe://acme.test/agent is listed twice"},
		"no store":                        {"store: sqlite:broker.db", "store: mysql:x", `broker.yaml:13:1: store: the URL of the store has the unknown scheme "mysql": write sqlite:/path/to/broker.db or postgres://USER@HOST/DATABASE`},
		"dangling issuer":                 {"issuer: tickets", "issuer: ticket", `broker.yaml:22:5: entitlements.tickets-api.issuer: there is no issuer "ticket": choose from aws, old, tickets, vault`},
		"retired issuer":                  {"issuer: tickets", "issuer: old", `entitlements.tickets-api.issuer: "old" is retired`},
		"two kinds of issuer":             {"{token: {audience: https://tickets.acme.test}}", "{token: {audience: https://tickets.acme.test}, aws: {region: x}}", "issuers.tickets: write exactly one kind"},
		"an audience of AWS":              {"web_identity: {}", "web_identity: {audience: \"https://tickets.acme.test\"}", "issuers.tickets.token.audience: https://tickets.acme.test is the audience of the broker's own assertions to AWS (issuer aws)"},
		"relative audience":               {"https://tickets.acme.test", "tickets", "issuers.tickets.token.audience: write the absolute URI"},
		"default scope":                   {"default_scopes: [tickets:read]", "default_scopes: [tickets:burn]", `entitlements.tickets-api.default_scopes.0: "tickets:burn" is not one of the scopes`},
		"a scope twice":                   {"[tickets:read, tickets:close]", "[tickets:read, tickets:read]", "entitlements.tickets-api.scopes: a scope is listed twice"},
		"a text of two lines":             {"read: {actions", "read: {description: \"a\\nb\", actions", "broker.yaml:33:14: entitlements.reports.scopes.read.description: must be one line of at most 300 bytes"},
		"a text for a terminal":           {"read: {actions", "read: {description: \"\\e[2J\", actions", "entitlements.reports.scopes.read.description: must be one line"},
		"a text that changes direction":   {"    issuer: tickets", "    issuer: tickets\n    description: \"\\u202edaer\"", "entitlements.tickets-api.description: must be one line"},
		"a text too long":                 {"required: true}", "required: true, description: \"" + strings.Repeat("x", 301) + "\"}", "entitlements.reports.parameters.prefix.description: must be one line"},
		"policies of a token":             {"[tickets:read, tickets:close]", `{"tickets:read": {policies: [a]}}`, `entitlements.tickets-api.scopes.tickets:read.policies: issuer "tickets" is not a Vault`},
		"actions of a token":              {"[tickets:read, tickets:close]", `{"tickets:read": {actions: [a]}}`, `entitlements.tickets-api.scopes.tickets:read.actions: issuer "tickets" is not AWS`},
		"an unknown key of a scope":       {"[tickets:read, tickets:close]", `{"tickets:read": {describtion: a}}`, `unknown key "describtion"`},
		"ttl":                             {"max_ttl: 15m", "max_ttl: 15", "broker.yaml:26:14: a duration is a positive number of whole seconds"},
		"half a second":                   {"max_ttl: 15m", "max_ttl: 1500ms", "broker.yaml:26:14: a duration is a positive number of whole seconds"},
		"ttl too long":                    {"max_ttl: 15m", "max_ttl: 100h", "entitlements.tickets-api.max_ttl: must be at most 24h"},
		"default longer than max":         {"default_ttl: 10m", "default_ttl: 20m", "entitlements.tickets-api.default_ttl: must not be longer than max_ttl, 15m"},
		"a pattern that closes":           {"[a-z0-9-]{1,40}", "a)|(?:.*", "entitlements.reports.parameters.prefix.pattern: write a regular expression"},
		"an unused parameter":             {"reports/${prefix}/*", "reports/*", "entitlements.reports.parameters.prefix: the parameter has no effect"},
		"not a role":                      {"arn:aws:iam::123456789012:role/reports", "reports", "entitlements.reports.aws.role_arn: give the ARN of a role"},
		"half a revocation":               {"role/reports}", "role/reports, revoke_sessions: session}", "entitlements.reports.aws.revoke_sessions: name the role that may deny sessions in the issuer's revoker_role_arn"},
		"a way to revoke":                 {"role/reports}", "role/reports, revoke_sessions: all}", "entitlements.reports.aws.revoke_sessions: choose session, "},
		"not a revoker":                   {"web_identity: {}}", "web_identity: {}}, revoker_role_arn: root", "issuers.aws.aws.revoker_role_arn: give the ARN of the role"},
		"too short for AWS":               {"    max_ttl: 1h", "    max_ttl: 1m", "entitlements.reports.max_ttl"},
		"vault without spec":              {"vault: {path: database/creds/orders-ro}, ", "", "entitlements.orders-db-ro.vault: write what to request from the Vault"},
		"vault path":                      {"database/creds/orders-ro", "/v1/database", "entitlements.orders-db-ro.vault.path: give the path"},
		"vault without login":             {"auth: {jwt: {role: broker}}, ", "", "issuers.vault.vault.auth: write exactly one way to log in"},
		"vault over HTTP":                 {"https://vault:8200", "http://vault:8200", "issuers.vault.vault.address: write the Vault's URL"},
		"default shorter than AWS's":      {"    max_ttl: 1h\n", "    max_ttl: 1h\n    default_ttl: 10m\n", "entitlements.reports.default_ttl: must be at least 15m, the shortest lifetime that the issuer supports"},
		"a session shorter than AWS's":    {"vault: {path: database/creds/orders-ro}, max_ttl: 30m", "vault: {path: aws/sts/reports}, max_ttl: 10m", "entitlements.orders-db-ro.vault.path: AWS makes no session shorter than 15m: max_ttl can't be shorter"},
		"a vault key for a token":         {"    default_ttl: 10m", "    default_ttl: 10m\n    vault: {path: a/b}", `entitlements.tickets-api.vault: issuer "tickets" is not a Vault`},
		"negative introspections":         {"metrics: 127", "admission: {resource_servers: {per_second: -1}}\n  metrics: 127", "server.admission.resource_servers: limits must be positive"},
		"unknown limit":                   {"metrics: 127", "admission: {resource_servers: {waiting_requests: 1}}\n  metrics: 127", "waiting_requests"},
		"negative waiting requests":       {"metrics: 127", "admission: {waiting_requests: -1}\n  metrics: 127", "server.admission.waiting_requests: must be from 1 to 500"},
		"too many waiting requests":       {"metrics: 127", "admission: {waiting_requests: 501}\n  metrics: 127", "server.admission.waiting_requests: must be from 1 to 500"},
		"keys published too late":         {"metrics: 127", "signing: {publish_ahead: 1s}\n  metrics: 127", "server.signing.publish_ahead: must be at least 10m"},
		"too short a rotation":            {"metrics: 127", "signing: {rotate_every: 20m, publish_ahead: 10m}\n  metrics: 127", "server.signing: signing keys rotate every 20m"},
		"a parameter too long":            {"required: true", "required: true, max_length: 1025", "broker.yaml:31:71: entitlements.reports.parameters.prefix.max_length: must be between 1 and 1024 bytes"},
		"lines too long":                  {"required: true", "required: true, lines: true, max_length: 4097", "entitlements.reports.parameters.prefix.max_length: must be between 1 and 4096 bytes"},
		"a negative length":               {"required: true", "required: true, max_length: -1", "entitlements.reports.parameters.prefix.max_length: must be between 1 and 1024 bytes"},
		"a huge length":                   {"required: true", "required: true, max_length: 1000000000000", "entitlements.reports.parameters.prefix.max_length: must be between 1 and 1024 bytes"},
		"too many parameters":             {"prefix: {pattern", "a: {pattern: a}, b: {pattern: a}, c: {pattern: a}, d: {pattern: a}, e: {pattern: a}, f: {pattern: a}, g: {pattern: a}, h: {pattern: a}, i: {pattern: a}, j: {pattern: a}, k: {pattern: a}, l: {pattern: a}, m: {pattern: a}, n: {pattern: a}, o: {pattern: a}, p: {pattern: a}, prefix: {pattern", "entitlements.reports.parameters: must be at most 16"},
	} {
		t.Run(name, func(t *testing.T) {
			if !strings.Contains(goodConfig, test.from) {
				t.Fatalf("the good file does not have %q", test.from)
			}
			_, err := understand(dir, strings.Replace(goodConfig, test.from, test.to, 1))
			if err == nil {
				t.Fatalf("got no mistake, want %q", test.want)
			}
			text := strings.ReplaceAll(err.Error(), dir+"/", "")
			if !strings.Contains(text, test.want) {
				t.Errorf("got\n%s\nwant\n%s", text, test.want)
			}
			for line := range strings.SplitSeq(text, "\n") {
				if !placed.MatchString(line) || goNames.MatchString(line) {
					t.Errorf("a mistake without a position, or with a name of Go: %s", line)
				}
			}
		})
	}
}

// The examples have no mistakes.
func TestExamplesAreGood(t *testing.T) {
	text, err := os.ReadFile("../../deploy/broker.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	s, err := understand(sealedDir(t), string(text))
	if err != nil {
		t.Fatal(err)
	}
	if s.Policies, err = filepath.Abs("../../deploy/policies"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Engine(); err != nil {
		t.Errorf("the example's policies: %v", err)
	}
}

// Any text is a good file, or is refused with a position.
func FuzzConfig(f *testing.F) {
	dir := sealedDir(f)
	f.Add(goodConfig)
	f.Add("")
	f.Add("server: {listen: x}")
	f.Add("a: &a [*a]")
	f.Add("entitlements: {x: {scopes: {a: {actions: [b]}}}}")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := understand(dir, text)
		switch {
		case err == nil && (len(s.Catalogue) == 0 || len(s.Issuers) == 0 || len(s.SealKeys) == 0):
			t.Errorf("a file without issuers, entitlements or keys is accepted: %+v", s)
		case err != nil && !strings.Contains(err.Error(), "broker.yaml"):
			t.Errorf("an error without a position: %v", err)
		}
	})
}

// The URL has one spelling, which browsers send as the origin.
func TestExternalURLIsNormalized(t *testing.T) {
	for text, warned := range map[string]bool{"https://broker.acme.test": false, "https://broker.acme.test/": false, "https://broker.acme.test:443": true, "HTTPS://Broker.ACME.test:0443/": true} {
		c, err := understand(sealedDir(t), strings.Replace(goodConfig, "https://broker.acme.test\n", text+"\n", 1))
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if c.ExternalURL.String() != "https://broker.acme.test" || c.Audiences[0] != "https://broker.acme.test" || c.UIURL.Host != "broker.acme.test" {
			t.Errorf("%s: got %s, audiences %q", text, c.ExternalURL, c.Audiences)
		}
		if got := strings.Contains(strings.Join(c.Warnings, "\n"), "server.external_url: the broker uses the spelling https://broker.acme.test"); got != warned {
			t.Errorf("%s: got warnings %q", text, c.Warnings)
		}
	}
}

func TestOrphanGrace(t *testing.T) {
	for text, want := range map[string]map[broker.Kind]time.Duration{
		"": {broker.KindAgent: 0, broker.KindWorkload: 72 * time.Hour},
		"  orphan_grace: {agents: 1h, workloads: 0s}\n": {broker.KindAgent: time.Hour, broker.KindWorkload: 0},
	} {
		s, err := understand(sealedDir(t), strings.Replace(goodConfig, "  workloads:", text+"  workloads:", 1))
		if err != nil || !maps.Equal(s.OrphanGrace, want) {
			t.Errorf("%q: got %v, %v; want %v", text, s, err, want)
		}
	}
	for text, want := range map[string]string{
		"  orphan_grace: {agents: 9000h}\n":    "attest.orphan_grace.agents",
		"  internal_domains: [acme.test]\n":    "own trust domain",
		"  internal_domains: [partner.test]\n": "is not in attest.trust_domains",
	} {
		if _, err := understand(sealedDir(t), strings.Replace(goodConfig, "  workloads:", text+"  workloads:", 1)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got error %v, want %q", text, err, want)
		}
	}
}
