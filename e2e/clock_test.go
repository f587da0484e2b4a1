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

// A clock is the time, in whole seconds, by which a server's clock is ahead of
// the machine's.
type clock time.Duration

func (c clock) environment() []string {
	return append(os.Environ(), fmt.Sprintf("%s=%d", servers.ClockEnv, time.Duration(c)/time.Second))
}

// testVaultClock sets Vault's clock a minute behind and a minute ahead. The
// broker still logs in, and no credential outlives its lease.
func testVaultClock(t *testing.T, l *lab) {
	l.endAll(t)
	for _, ahead := range []time.Duration{-time.Minute, time.Minute, 0} {
		l.vault.stop()
		l.vault.clock = clock(ahead)
		l.vault.start(t)
		before := time.Now().Add(ahead - 2*time.Second)
		if now := l.vault.now(t); now.Before(before) || now.After(time.Now().Add(ahead+2*time.Second)) {
			t.Fatalf("Vault's clock is at %s, want the machine's and %s", now, ahead)
		}
		if ahead == 0 {
			break // the following tests need the right clock
		}
		t.Run(ahead.String(), func(t *testing.T) {
			l.broker.stop() // a broker that starts has to log in with its JWT-SVID
			l.start(t)
			testExpired(t, l)
			testReturned(t, l)
			c := l.issue(t, api.Ask{Entitlement: "web-certificate", Parameters: map[string]string{"name": "shop"}, TTL: api.Duration(10 * time.Minute)})
			pair, err := tls.X509KeyPair([]byte(c.Secret["certificate"]), []byte(c.Secret["private_key"]))
			if err != nil {
				t.Fatal(err)
			}
			l.wantEndWithLease(t, c, "the certificate", pair.Leaf.NotAfter)
			roots := x509.NewCertPool()
			roots.AppendCertsFromPEM([]byte(c.Secret["chain"]))
			if err := mutualTLS(pair, roots); err != nil {
				t.Errorf("a TLS server, by the machine's clock: %v", err)
			}
			testSSHClock(t, l)
		})
	}
	l.endAll(t)
}

// wantEndWithLease checks that a credential expires with its lease, which is not
// longer than requested.
func (l *lab) wantEndWithLease(t testing.TB, c *api.Credential, what string, ends time.Time) {
	t.Helper()
	lease, err := l.agent.Lease(t.Context(), c.Lease)
	if err != nil {
		t.Fatal(err)
	}
	if ends.After(lease.ExpiresAt.Add(2*time.Second)) || lease.ExpiresAt.Sub(lease.OpenedAt) > 10*time.Minute {
		t.Errorf("%s is valid until %s, its lease from %s until %s", what, ends, lease.OpenedAt, lease.ExpiresAt)
	}
	if left := time.Until(ends); left < 8*time.Minute {
		t.Errorf("%s is valid for %s only", what, left)
	}
}

// testSSHClock checks the validity that Vault wrote into an SSH certificate.
func testSSHClock(t *testing.T, l *lab) {
	t.Helper()
	dir := t.TempDir()
	keygen(t, dir, "id")
	public, err := os.ReadFile(filepath.Join(dir, "id.pub"))
	if err != nil {
		t.Fatal(err)
	}
	key := strings.Join(strings.Fields(string(public))[:2], " ")
	c := l.issue(t, api.Ask{Entitlement: "ssh-login", Parameters: map[string]string{"key": key}, TTL: api.Duration(10 * time.Minute)})
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
	l.wantEndWithLease(t, c, "the SSH certificate", ends)
}

// now returns the time of Vault's clock, in whole seconds.
func (v *vault) now(t testing.TB) time.Time {
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

// testSTSClock sets the clock of an STS a minute behind and a minute ahead. No
// session outlives its lease, and each can read the objects of its scope.
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
					t.Errorf("the credential is valid for %s", lives)
				}
				session := awsCredential{AccessKeyID: got.Secret["access_key_id"], SecretAccessKey: got.Secret["secret_access_key"], SessionToken: got.Secret["session_token"]}
				if text, err := c.minio.get(t, session, "reports", "acme/q1"); err != nil || text != "secret of acme/q1" {
					t.Errorf("what the scope allows: %q, %v", text, err)
				}
			})
		}
	}
}
