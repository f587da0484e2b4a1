package config

import (
	"strings"
	"testing"
	"time"
)

func TestRevisionGrace(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"":                                  time.Minute,
		"replicas: {revision_grace: 0s}\n":  0,
		"replicas: {revision_grace: 10m}\n": 10 * time.Minute,
	} {
		c, err := understand(sealedDir(t), goodConfig+text)
		if err != nil || c.Replicas.RevisionGrace != want {
			t.Errorf("%q: got %+v, %v; want %s", text, c, err, want)
		}
	}
	for _, text := range []string{"replicas: {revision_grace: 2h}\n", "replicas: {revision_grace: -1s}\n", "replicas: {grace: 1m}\n"} {
		if _, err := understand(sealedDir(t), goodConfig+text); err == nil {
			t.Errorf("%q is accepted", text)
		}
	}
}

func TestDigestOfReplicas(t *testing.T) {
	digest := func(text string) string {
		t.Helper()
		c, err := understand(sealedDir(t), text)
		if err != nil {
			t.Fatal(err)
		}
		d := c.Digest()
		if len(d) != 64 {
			t.Fatalf("got the digest %q", d)
		}
		return d
	}
	first := digest(goodConfig)
	for name, change := range map[string][2]string{
		"the metrics listener": {"metrics: 127.0.0.1:9464", "metrics: 127.0.0.1:9191"},
		"a socket":             {"  metrics:", "  admin_socket: /run/b.sock\n  metrics:"},
		"the order":            {"  trust_domain: acme.test\n  trust_domains: [acme.test, supplier.test]\n", "  trust_domains: [acme.test, supplier.test]\n  trust_domain: acme.test\n"},
		"the database":         {"sqlite:broker.db", "sqlite:other.db"},
		"the way of writing":   {"default_ttl: 10m", "\"default_ttl\": '10m'"},
		"a drain":              {"  metrics:", "  drain: {delay: 1m}\n  metrics:"},
		"a comment":            {"  metrics:", "  # a comment\n  metrics:"},
		"the log":              {"  metrics:", "  log: {level: debug}\n  metrics:"},
	} {
		text := strings.Replace(goodConfig, change[0], change[1], 1)
		if text == goodConfig {
			t.Errorf("%s: the configuration of the test has no %q", name, change[0])
		}
		if digest(text) != first {
			t.Errorf("%s changes the digest", name)
		}
	}
	for name, change := range map[string][2]string{
		"an admission":   {"  metrics:", "  admission: {per_second: 5}\n  metrics:"},
		"an entitlement": {"scopes: [", "scopes: [\"tickets:open\", "},
		"a grace":        {"server:", "replicas: {revision_grace: 10m}\nserver:"},
	} {
		text := strings.Replace(goodConfig, change[0], change[1], 1)
		if text == goodConfig || digest(text) == first {
			t.Errorf("%s does not change the digest", name)
		}
	}
}
