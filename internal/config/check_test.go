package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// One check reports every mistake of form, of reference and of policy, and none that only
// follows from another.
func TestCheckReportsEveryMistakeOnce(t *testing.T) {
	dir := sealedDir(t)
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "policies"), 0o700), os.WriteFile(filepath.Join(dir, "policies/a.cedar"), []byte(`@id("a") permit (principal, action == Action::"audit", resource);`), 0o600)); err != nil {
		t.Fatal(err)
	}
	const unread = "the policies were not checked: fix these mistakes first"
	for name, test := range map[string]struct {
		change []string // from, to
		want   []string
	}{
		"nothing": {nil, nil},
		"three layers": {[]string{"issuer: tickets", "issuer: nope\n    owner: nogroup", "default_ttl: 10m", "default_ttl: bana"}, []string{
			"broker.yaml:26:18: a duration is a positive number",
			`broker.yaml:22:5: entitlements.tickets-api.issuer: there is no issuer "nope": choose from aws`,
			"policies in DIR/policies do not load:",
			`broker.yaml:23:5: entitlements.tickets-api.owner: group "nogroup" does not exist`,
		}},
		"a binding": {[]string{"max_ttl: 15m", "max_ttl: 15m\n    binding: mtls or dpop"}, nil},
		"no binding": {[]string{"max_ttl: 15m", "max_ttl: 15m\n    binding: tls"}, []string{
			`broker.yaml:27:5: entitlements.tickets-api.binding: choose none, mtls, dpop or "dpop or mtls"`,
		}},
		"keys and values": {[]string{"metrics:", "metricz:", "max_ttl: 15m", "max_ttl: 15", "max_ttl: 30m", "max_tll: 30m", "max_ttl: 1h", "maximum: 1h"}, []string{
			`broker.yaml:5:3: unknown key "metricz": did you mean "metrics"?`,
			"broker.yaml:26:14: a duration is a positive number",
			`broker.yaml:27:74: unknown key "max_tll": did you mean "max_ttl"?`,
			`broker.yaml:34:5: unknown key "maximum"; known keys: authorization_details, aws, binding, collect_within, `,
			unread, // "maximum" may have been meant for an owner
		}},
		"status lists": {[]string{"metrics:", "status_lists: {ttl: 2h}\n  metrics:", "issuer: aws", "issuer: aws\n    status_list: true"}, []string{
			"server.status_lists.ttl: write whole seconds, from 1s to 1h", "status_list: only the broker's own tokens can be in a status list",
		}},
		"a whole part":           {[]string{"server:", "servr:"}, []string{`broker.yaml:1:1: unknown key "servr": did you mean "server"?`}},
		"a list of another kind": {[]string{"listeners:\n    - {listen: 127.0.0.1:8443, tls: {svid: true}, client_certs: optional, serve: [api, oauth, log]}", "listeners: none"}, []string{"broker.yaml:3:14: server.listeners: write a list of entries, each after a dash"}},
		"one of a list":          {[]string{"tls: {svid: true}", "tls: [svid]"}, []string{"broker.yaml:4:37: server.listeners.0.tls: write keys with values here"}},
		"an agent":               {[]string{"workload_api: unix:", "workload_ap: unix:"}, []string{`unknown key "workload_ap": did you mean "workload_api"?`, unread}},
		"a trust domain":         {[]string{"trust_domain: acme", "trust_domian: acme"}, []string{`unknown key "trust_domian": did you mean "trust_domain"?`, unread}},
		"a malformed domain":     {[]string{"trust_domain: acme", "trust_domain: ACME"}, []string{`attest.trust_domain: "ACME.test" is not a trust domain`, unread}},
		"in a list":              {[]string{"{under: spiffe://acme.test/agent, kind: agent,", "{undr: spiffe://acme.test/agent, kind: agnt,"}, []string{`unknown key "undr": did you mean "under"?`, "attest.workloads.0.kind: choose workload or agent", unread}},
		"a kind of issuer":       {[]string{"tickets: {token:", "tickets: {tokn:"}, []string{`unknown key "tokn": did you mean "token"?`}},
		"an issuer's name":       {[]string{"issuer: tickets", "isuer: tickets"}, []string{`unknown key "isuer": did you mean "issuer"?`}},
		"scopes":                 {[]string{"    scopes: [", "    scope: ["}, []string{`unknown key "scope": did you mean "scopes"?`}},
		"scopes of a role":       {[]string{"    scopes:\n", "    scops:\n"}, []string{`unknown key "scops": did you mean "scopes"?`}},
		"the longest time":       {[]string{"max_ttl: 15m", "max_ttl: bana", "default_ttl: 10m", "default_ttl: 20m"}, []string{"broker.yaml:26:14: a duration is"}},
		"too long a time":        {[]string{"max_ttl: 15m", "max_ttl: 100h"}, []string{"entitlements.tickets-api.max_ttl: must be at most 24h"}},
		"an owner":               {[]string{"default_ttl: 10m", "default_ttl: 10m\n    ownr: x"}, []string{`unknown key "ownr": did you mean "owner"?`, unread}},
		"the URL":                {[]string{"https://broker.acme.test", "http://broker.acme.test"}, []string{"server.external_url: write the https URL"}},
		"with an alias":          {[]string{"metrics: 127.0.0.1:9464", "metricz: &m 127.0.0.1:9464"}, []string{`broker.yaml:5:3: unknown key "metricz"`}},
	} {
		t.Run(name, func(t *testing.T) {
			text := goodConfig
			for i := 0; i < len(test.change); i += 2 {
				if !strings.Contains(text, test.change[i]) {
					t.Fatalf("the file does not have %q", test.change[i])
				}
				text = strings.Replace(text, test.change[i], test.change[i+1], 1)
			}
			d, err := parseDocument(filepath.Join(dir, "broker.yaml"), []byte(text))
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			if _, _, err := d.checkAll(nil); err != nil {
				got = strings.Split(strings.ReplaceAll(strings.ReplaceAll(err.Error(), dir+"/broker", "broker"), dir, "DIR"), "\n")
			}
			for i, line := range got {
				if i >= len(test.want) || !strings.Contains(line, test.want[i]) {
					t.Errorf("line %d: got %q", i, line)
				}
			}
			if len(got) != len(test.want) {
				t.Errorf("got %d mistakes, want %q", len(got), test.want)
			}
		})
	}
}
