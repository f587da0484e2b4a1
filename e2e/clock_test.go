package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/e2e/servers"
)

// A clock is how far a server's clock is ahead of the machine's, to the second.
type clock time.Duration

func (c clock) environment() []string {
	return append(os.Environ(), fmt.Sprintf("%s=%d", servers.ClockEnv, time.Duration(c)/time.Second))
}

// testVaultClock has Vault's clock a minute behind, and ahead: the broker logs
// in all the same, and nothing that it gives out outlives its lease.
func testVaultClock(t *testing.T, l *lab) {
	l.clean(t)
	for _, ahead := range []time.Duration{-time.Minute, time.Minute, 0} {
		l.vault.stop()
		l.vault.clock = clock(ahead)
		l.vault.start(t)
		if off := time.Until(l.vault.now(t)) - ahead; off.Abs() > 5*time.Second {
			t.Fatalf("Vault's clock is off by %s more than %s", off, ahead)
		}
		if ahead == 0 {
			break // what comes after has the machine's clock again
		}
		t.Run(ahead.String(), func(t *testing.T) {
			l.broker.stop() // so that it has to log in by its JWT-SVID
			l.start(t)
			testExpired(t, l)
			testGivenBack(t, l)
			c := l.get(t, api.Ask{Entitlement: "web-certificate", Parameters: map[string]string{"name": "shop"}, TTL: api.Duration(10 * time.Minute)})
			pair, err := tls.X509KeyPair([]byte(c.Secret["certificate"]), []byte(c.Secret["private_key"]))
			if err != nil {
				t.Fatal(err)
			}
			l.within(t, c, "the certificate", pair.Leaf.NotAfter)
			roots := x509.NewCertPool()
			roots.AppendCertsFromPEM([]byte(c.Secret["chain"]))
			if err := shows(pair, roots); err != nil {
				t.Errorf("a TLS server, by the machine's clock: %v", err)
			}
			testSSHClock(t, l)
		})
	}
	l.clean(t)
}

// within wants a credential's own end to be that of its lease, and not after
// what was asked for.
func (l *lab) within(t *testing.T, c *api.Credential, what string, ends time.Time) {
	t.Helper()
	lease, err := l.agent.Lease(t.Context(), c.Lease)
	if err != nil {
		t.Fatal(err)
	}
	if ends.After(lease.ExpiresAt.Add(2*time.Second)) || lease.ExpiresAt.Sub(lease.OpenedAt) > 10*time.Minute {
		t.Errorf("%s lives until %s, its lease from %s until %s", what, ends, lease.OpenedAt, lease.ExpiresAt)
	}
	if left := time.Until(ends); left < 8*time.Minute {
		t.Errorf("%s lives for %s only", what, left)
	}
}

// testSSHClock reads what Vault wrote into an SSH certificate.
func testSSHClock(t *testing.T, l *lab) {
	t.Helper()
	dir := t.TempDir()
	keygen(t, dir, "id")
	public, err := os.ReadFile(filepath.Join(dir, "id.pub"))
	if err != nil {
		t.Fatal(err)
	}
	key := strings.Join(strings.Fields(string(public))[:2], " ")
	c := l.get(t, api.Ask{Entitlement: "ssh-login", Parameters: map[string]string{"key": key}, TTL: api.Duration(10 * time.Minute)})
	file := filepath.Join(dir, "id-cert.pub")
	if err := os.WriteFile(file, []byte(c.Secret["signed_key"]), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("ssh-keygen", "-L", "-f", file)
	cmd.Env = append(os.Environ(), "TZ=UTC")
	out, err := cmd.CombinedOutput()
	valid := regexp.MustCompile(`Valid: from (\S+) to (\S+)`).FindStringSubmatch(string(out))
	if err != nil || valid == nil {
		t.Fatalf("ssh-keygen: %v %s", err, out)
	}
	ends, err := time.Parse("2006-01-02T15:04:05", valid[2])
	if err != nil {
		t.Fatal(err)
	}
	l.within(t, c, "the SSH certificate", ends)
}

// now is the Vault's clock, to the second.
func (v *vault) now(t *testing.T) time.Time {
	t.Helper()
	resp, err := v.client.Get(v.address() + "/v1/sys/health")
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	date, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		t.Fatal(err)
	}
	return date
}

// testSTSClock does the same with an STS: no session outlives its lease, and it
// reads what it may.
func testSTSClock(t *testing.T, c *cloud) {
	for _, ahead := range []time.Duration{-time.Minute, time.Minute, 0} {
		c.minio.stop()
		c.minio.clock = clock(ahead)
		c.minio.start(t)
		if ahead == 0 {
			break
		}
		for _, entitlement := range []string{"reports", "reports-own"} {
			t.Run(entitlement+" "+ahead.String(), func(t *testing.T) {
				asked := time.Now()
				out, errs, code := c.run("request", entitlement, "--scope", "read", "--param", "prefix=acme", "--ttl", "20m", "-o", "json")
				var got api.Credential
				if err := json.Unmarshal([]byte(out), &got); err != nil || code != 0 {
					t.Fatalf("request: %d %s: %v", code, errs, err)
				}
				if lives := got.ExpiresAt.Sub(asked); lives > 20*time.Minute+3*time.Second || lives < 18*time.Minute {
					t.Errorf("it is said to live for %s", lives)
				}
				session := awsCredential{AccessKeyID: got.Secret["access_key_id"], SecretAccessKey: got.Secret["secret_access_key"], SessionToken: got.Secret["session_token"]}
				if text, err := c.minio.get(t, session, "reports", "acme/q1"); err != nil || text != "secret of acme/q1" {
					t.Errorf("what the scope allows: %q, %v", text, err)
				}
			})
		}
	}
}
