package config

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// withEgress adds rules to an entitlement of goodConfig.
func withEgress(entitlement, rules string) string {
	at := strings.Index(goodConfig, "  "+entitlement+":")
	line := at + strings.IndexByte(goodConfig[at:], '\n')
	if before, isInline := strings.CutSuffix(goodConfig[at:line], "}"); isInline {
		return goodConfig[:at] + before + ", egress: " + rules + "}" + goodConfig[line:]
	}
	return goodConfig[:line] + "\n    egress: " + rules + goodConfig[line:]
}

const goodEgress = `{inject: {as: bearer}, allow: [{hosts: [api.acme.test, "*.eu.acme.test:8443"], paths: ["/v1/**"], headers: [x-request-id]}]}`

func TestEgressDefaults(t *testing.T) {
	c, err := understand(sealedDir(t), withEgress("tickets-api", goodEgress))
	if err != nil {
		t.Fatal(err)
	}
	e := c.Catalogue["tickets-api"].Egress
	if e == nil || e.MaxRequest != 10<<20 || e.MaxAnswer != 100<<20 || e.Timeout != 5*time.Minute || e.IdleTimeout != time.Minute || e.Record {
		t.Errorf("got %+v", e)
	}
	if !slices.Equal(e.Allow[0].Methods, []string{"GET", "HEAD"}) || e.Allow[0].Query != nil {
		t.Errorf("got the rule %+v", e.Allow[0])
	}
	if c.Catalogue["orders-db-ro"].Egress != nil {
		t.Error("an entitlement without rules has some")
	}
}

// Approvals are bound to the rules: each change makes another effect.
func TestEgressIsPartOfTheEffect(t *testing.T) {
	seen := map[string]string{}
	for _, edit := range [][2]string{
		{"", ""}, {"api.acme.test", "api2.acme.test"}, {"/v1/**", "/v2/**"}, {"x-request-id", "x-other"}, {`paths:`, `methods: [GET, DELETE], paths:`},
		{"inject: {as: bearer}", "inject: {as: header, name: X-Key}"}, {"allow:", "record: true, allow:"},
		{"allow:", "max_request: 1KiB, allow:"}, {"allow:", "max_answer: 1KiB, allow:"}, {"allow:", "timeout: 1s, allow:"}, {"allow:", "idle_timeout: 1s, allow:"},
		{"headers:", "websocket: true, headers:"}, {"headers:", "query: [], headers:"}, {"headers:", "query: [page], headers:"}, {"headers:", "addresses: [10.0.0.0/8], headers:"},
	} {
		c, err := understand(sealedDir(t), withEgress("tickets-api", strings.Replace(goodEgress, edit[0], edit[1], 1)))
		if err != nil {
			t.Errorf("%q: %v", edit, err)
			continue
		}
		effect := c.Catalogue["tickets-api"].Effect.String()
		if other, known := seen[effect]; known {
			t.Errorf("%q has the effect of %q", edit[1], other)
		}
		seen[effect] = edit[1]
	}
	if len(seen) != 15 {
		t.Errorf("got %d effects, want 15", len(seen))
	}
	plain, err := understand(sealedDir(t), goodConfig)
	if err != nil || seen[plain.Catalogue["tickets-api"].Effect.String()] != "" {
		t.Errorf("without rules: %v, or the effect of rules", err)
	}
}

func TestEgressMistakes(t *testing.T) {
	rule := func(key, value string) [2]string {
		return [2]string{"hosts: [api.acme.test]", "hosts: [api.acme.test], " + key + ": " + value}
	}
	host := func(h string) [2]string { return [2]string{"api.acme.test", h} }
	path := func(p string) [2]string { return [2]string{`"/v1/**"`, `"` + p + `"`} }
	inject := func(in string) [2]string { return [2]string{"{as: bearer}", in} }
	for _, c := range []struct {
		edit [2]string
		want string
	}{
		{inject("{as: cookie}"), "egress.inject.as: choose bearer, basic, header or aws-sigv4"},
		{inject("{as: bearer, name: X-Key}"), "egress.inject.name: has no effect with bearer"},
		{inject("{as: header}"), "egress.inject.name: write the name of the header"},
		{inject("{as: header, name: Transfer-Encoding}"), "egress.inject.name: write the name of the header"},
		{inject("{as: header, name: \"X-Key\\r\\nX\"}"), "egress.inject.name: "},
		{inject("{as: basic}"), "egress.inject.as: a token is sent as bearer or header"},
		{inject("{as: aws-sigv4, service: s3, region: eu-central-1}"), "egress.inject.as: a token is sent as bearer or header"},
		{[2]string{"allow: [{hosts: [api.acme.test], paths: [\"/v1/**\"]}]", "allow: []"}, "egress.allow: write 1 to 50 rules"},
		{[2]string{"hosts: [api.acme.test]", "hosts: []"}, "egress.allow.0.hosts: write 1 to"},
		{[2]string{"paths: [\"/v1/**\"]", "methods: [GET]"}, "egress.allow.0.paths: write 1 to"},
		{host(`"*"`), "egress.allow.0.hosts.0: "}, {host(`"*.test"`), "egress.allow.0.hosts.0: write at least two labels"}, {host(`"a.*.test"`), "egress.allow.0.hosts.0: "},
		{host(`"https://api.acme.test/v1"`), "egress.allow.0.hosts.0: "}, {host(`"user@api.acme.test"`), "egress.allow.0.hosts.0: "}, {host(`"api.acme.test."`), "egress.allow.0.hosts.0: "},
		{host(`"2130706433"`), "egress.allow.0.hosts.0: "}, {host(`"0x7f.1"`), "egress.allow.0.hosts.0: "}, {host(`"bücher.test"`), "egress.allow.0.hosts.0: "}, {host(`"api.acme.test:0"`), "egress.allow.0.hosts.0: "},
		{path("v1"), "egress.allow.0.paths.0: "}, {path("/a/../b"), "egress.allow.0.paths.0: "}, {path("/a//b"), "egress.allow.0.paths.0: "}, {path("/**/b"), "egress.allow.0.paths.0: "}, {path("/a?b"), "egress.allow.0.paths.0: "}, {path("/%2e%2e"), "egress.allow.0.paths.0: "}, {path("/a%00"), "egress.allow.0.paths.0: "},
		{rule("methods", "[get]"), "egress.allow.0.methods.0: write a method in upper case"}, {rule("methods", "[CONNECT]"), "egress.allow.0.methods.0: CONNECT can't be allowed"}, {rule("methods", "[TRACE]"), "egress.allow.0.methods.0: TRACE can't"}, {rule("methods", `["GET POST"]`), "egress.allow.0.methods.0: "},
		{rule("headers", "[Authorization]"), "egress.allow.0.headers.0: Authorization can't be allowed"}, {rule("headers", "[cookie]"), "egress.allow.0.headers.0: cookie can't"}, {rule("headers", "[x_forwarded_for]"), "egress.allow.0.headers.0: "}, {rule("headers", `["*"]`), "egress.allow.0.headers.0: "}, {rule("headers", "[x-http-method-override]"), "egress.allow.0.headers.0: "},
		{rule("addresses", "[0.0.0.0/0]"), "egress.allow.0.addresses.0: the network is too wide"}, {rule("addresses", `["::/0"]`), "egress.allow.0.addresses.0: the network is too wide"}, {rule("addresses", "[10.1.2.3/8]"), "egress.allow.0.addresses.0: the address has bits outside"}, {rule("addresses", `["fe80::1%eth0"]`), "egress.allow.0.addresses.0: "}, {rule("addresses", "[localhost]"), "egress.allow.0.addresses.0: "},
		{rule("websocket", "true, methods: [POST]"), "egress.allow.0.websocket: "},
		{[2]string{"allow:", "max_answer: 2000GiB, allow:"}, "egress.max_answer: must be at most 1TiB"}, {[2]string{"allow:", "max_answer: 10MB, allow:"}, "a size is a positive number of bytes"}, {[2]string{"allow:", "max_answer: 0, allow:"}, "a size is a positive number of bytes"}, {[2]string{"allow:", "max_answer: 9999999999GiB, allow:"}, "a size is a positive number of bytes"},
		{[2]string{"allow:", "timeout: 25h, allow:"}, "egress.timeout: must be at most 24h"}, {[2]string{"allow:", "redirects: true, allow:"}, "unknown key \"redirects\""},
	} {
		rules := `{inject: {as: bearer}, allow: [{hosts: [api.acme.test], paths: ["/v1/**"]}]}`
		if !strings.Contains(rules, c.edit[0]) {
			t.Fatalf("the rules have no %q", c.edit[0])
		}
		rules = strings.Replace(rules, c.edit[0], c.edit[1], 1)
		_, err := understand(sealedDir(t), withEgress("tickets-api", rules))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s\n got %v\nwant %q", rules, err, c.want)
		}
	}
}

func TestEgressNeedsACredentialThatACallCanCarry(t *testing.T) {
	for entitlement, c := range map[string][2]string{
		"reports": {goodEgress, "keys of AWS are never sent"},
	} {
		if _, err := understand(sealedDir(t), withEgress(entitlement, c[0])); err == nil || !strings.Contains(err.Error(), c[1]) {
			t.Errorf("%s: got %v, want %q", entitlement, err, c[1])
		}
	}
	bound := strings.Replace(withEgress("tickets-api", goodEgress), "    issuer: tickets\n", "    issuer: tickets\n    binding: dpop\n", 1)
	if _, err := understand(sealedDir(t), bound); err == nil || !strings.Contains(err.Error(), "bound to a key of its holder") {
		t.Errorf("a bound token: got %v", err)
	}
	for entitlement, as := range map[string]string{"reports": "aws-sigv4, service: s3, region: eu-central-1", "orders-db-ro": "basic"} {
		if _, err := understand(sealedDir(t), withEgress(entitlement, strings.Replace(goodEgress, "as: bearer", "as: "+as, 1))); err != nil {
			t.Errorf("%s: %v", entitlement, err)
		}
	}
}
