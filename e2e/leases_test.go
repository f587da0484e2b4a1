package e2e

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
)

// TestVaultLeases issues what a real Vault makes and ends it.
func TestVaultLeases(t *testing.T) {
	t.Parallel() // it mostly waits
	l := labOf(t)
	t.Run("database by exec and psql", func(t *testing.T) { testPsql(t, l) })
	t.Run("returned", func(t *testing.T) { testReturned(t, l) })
	t.Run("expired", func(t *testing.T) { testExpired(t, l) })
	t.Run("renewed", func(t *testing.T) { testRenewed(t, l) })
	t.Run("psql by its password file", func(t *testing.T) { testPgpass(t, l) })
	t.Run("curl by VAULT_TOKEN", func(t *testing.T) { testVaultToken(t, l) })
	t.Run("token of a lease", func(t *testing.T) { testTokenOfLease(t, l) })
	t.Run("wrapped", func(t *testing.T) { testWrapped(t, l) })
	t.Run("static role", func(t *testing.T) { testStaticRole(t, l) })
	t.Run("signed", func(t *testing.T) { testSigned(t, l) })
	t.Run("listed certificate", func(t *testing.T) { testListedCertificate(t, l) })
	t.Run("leased certificate", func(t *testing.T) { testLeasedCertificate(t, l) })
	t.Run("certificate", func(t *testing.T) { testCertificate(t, l) })
	t.Run("sessions of an STS", func(t *testing.T) { testSessions(t, l) })
	t.Run("SSH", func(t *testing.T) { testSSH(t, l) })
	t.Run("logins", func(t *testing.T) { testLogins(t, l) })
	t.Run("tokens and KV", func(t *testing.T) { testTokensAndKV(t, l) })
	t.Run("capped tokens", func(t *testing.T) { testCappedTokens(t, l) })
	t.Run("own token gone", func(t *testing.T) { testOwnTokenGone(t, l) })
	t.Run("kill switch", func(t *testing.T) { testKillSwitch(t, l) })
}

// testPsql passes a database user to psql, which does not know the broker. When
// psql exits, the user is gone.
func testPsql(t *testing.T, l *lab) {
	psql := fmt.Sprintf("%s --no-psqlrc -tA -h 127.0.0.1 -p %d -d postgres", filepath.Join(l.postgres.Bin(), "psql"), l.postgres.Port)
	out, errs, code := l.cli(l.cliAgent, "exec", "orders-db-ro", "--", "sh", "-c", psql+` -c "SELECT id FROM orders" && `+psql+` -c "DELETE FROM orders"`)
	if strings.TrimSpace(out) != "4711" || code == 0 || !strings.Contains(errs, "permission denied for table orders") {
		t.Errorf("psql reads %q; deleting: %d %s", out, code, errs)
	}
	if n := l.vaultUsers(t); n != 0 {
		t.Errorf("after exec there are %d users", n)
	}
}

// testReturned returns a lease. The credential stops working at once.
func testReturned(t *testing.T, l *lab) {
	c := l.issue(t, orders)
	if c.Type != "userpass" || c.Revocation != "immediate" {
		t.Errorf("the credential is %s, %s", c.Type, c.Revocation)
	}
	if err := l.works(c); err != nil {
		t.Fatal(err)
	}
	lease, err := l.agent.Revoke(t.Context(), c.Lease, "done")
	if err != nil || lease.Status != api.LeaseRevoked || lease.Revocation != "immediate" {
		t.Fatalf("returned: %+v, %v", lease, err)
	}
	if err := l.rejected(c); err != nil { // without waiting: the revocation is immediate
		t.Error(err)
	}
}

// testExpired waits until the broker ends an expired lease.
func testExpired(t *testing.T, l *lab) {
	c := l.issueShort(t, orders)
	l.waitStatus(t, c.Lease, "revoked", "immediate")
	if err := l.rejected(c); err != nil {
		t.Error(err)
	}
	if got, err := l.agent.Lease(t.Context(), c.Lease); err != nil || got.EndHow != "expired" {
		t.Errorf("the lease ended by %q, %v", got.EndHow, err)
	}
}

// testRenewed renews a lease: the grant yields another user, and the first one is
// revoked.
func testRenewed(t *testing.T, l *lab) {
	first := l.issue(t, orders)
	second, err := l.agent.Renew(t.Context(), first.Lease)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.works(second); err != nil {
		t.Error(err)
	}
	l.waitStatus(t, first.Lease, "revoked", "immediate")
	if err := l.rejected(first); err != nil {
		t.Error(err)
	}
}

// testCertificate connects with a certificate to a TLS server that trusts Vault's
// authority.
func testCertificate(t *testing.T, l *lab) {
	c := l.issue(t, api.Ask{Entitlement: "web-certificate", Parameters: map[string]string{"name": "shop"}, TTL: api.Duration(10 * time.Minute)})
	if c.Type != "certificate" || c.Revocation != "at_expiry" {
		t.Fatalf("the credential is %s, %s", c.Type, c.Revocation)
	}
	pair, err := tls.X509KeyPair([]byte(c.Secret["certificate"]), []byte(c.Secret["private_key"]))
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(pair.Leaf.NotAfter); left > 10*time.Minute || left < 9*time.Minute || pair.Leaf.NotAfter.Sub(c.ExpiresAt).Abs() > 2*time.Second {
		t.Errorf("the certificate is valid for %s, its lease until %s", left, c.ExpiresAt)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(c.Secret["chain"]))
	if err := mutualTLS(pair, roots); err != nil {
		t.Errorf("a TLS server that trusts Vault's authority: %v", err)
	}
	for _, bad := range []string{"", "SHOP", "a.b", "evil.other.test"} {
		_, _, err := l.agent.AskAndCollect(t.Context(), api.Ask{Entitlement: "web-certificate", Parameters: map[string]string{"name": bad}})
		if err := wantRefusal(err, api.InvalidParameter, http.StatusBadRequest); err != nil {
			t.Errorf("the name %q: %v", bad, err)
		}
	}
}

// mutualTLS returns nil if a server that trusts the roots accepts the client
// certificate.
func mutualTLS(pair tls.Certificate, roots *x509.CertPool) error {
	own, err := selfSigned()
	if err != nil {
		return err
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{own}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots})
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	accepted := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			err = c.(*tls.Conn).Handshake()
			_ = c.Close()
		}
		accepted <- err
	}()
	c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{pair}})
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	return <-accepted
}

func selfSigned() (tls.Certificate, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// testTokensAndKV issues Vault tokens and a stored secret. A stored secret never
// ends, so it is issued only if its entitlement declares that.
func testTokensAndKV(t *testing.T, l *lab) {
	c := l.issue(t, api.Ask{Entitlement: "kv-token", Scopes: []string{"kv:read"}})
	token := c.Secret["token"]
	if data, _ := l.vault.as(t, token, "GET", "kv/data/shop", nil).Data["data"].(fields); c.Type != "vault" || data["color"] != "green" {
		t.Errorf("a token of type %s reads %v", c.Type, data)
	}
	l.vault.refuses(t, token, "GET", "database/creds/orders-ro", nil, http.StatusForbidden)
	if _, err := l.agent.Revoke(t.Context(), c.Lease, "done"); err != nil {
		t.Fatal(err)
	}
	l.vault.refuses(t, token, "GET", "kv/data/shop", nil, http.StatusForbidden)

	_, _, err := l.agent.AskAndCollect(t.Context(), api.Ask{Entitlement: "kv-forgotten"})
	if err := wantRefusal(err, api.IssuerRefused, http.StatusBadGateway); err != nil {
		t.Errorf("a lasting secret of an entitlement that is ephemeral: %v", err)
	}
	if lasting := l.issue(t, api.Ask{Entitlement: "kv-lasting"}); lasting.Type != "data" || lasting.Secret["color"] != "green" || lasting.Revocation != "never" {
		t.Errorf("a lasting secret: %s, %s", lasting.Type, lasting.Revocation)
	}
}

// testKillSwitch revokes all leases of an entitlement from the broker's machine
// and blocks it until the block is lifted.
func testKillSwitch(t *testing.T, l *lab) {
	for range 20 {
		l.issue(t, orders)
	}
	live := len(l.liveDatabaseLeases(t, "orders-db-ro"))
	kill := func(more ...string) (string, string, int) {
		args := append([]string{"kill", "--entitlement", "orders-db-ro", "--why", "INC-1", "--admin-socket", l.dir + "/admin.sock"}, more...)
		return l.cli(l.bin, args...)
	}
	if out, errs, code := kill("--preview"); code != 0 || !strings.Contains(out, fmt.Sprintf("%d credentials would be revoked.\n", live)) {
		t.Errorf("preview: %d %s%s", code, out, errs)
	}
	if _, errs, code := kill(); code != 2 || l.vaultUsers(t) < 20 {
		t.Errorf("without --yes and without a terminal: %d %s", code, errs)
	}
	if out, errs, code := kill("--yes"); code != 0 {
		t.Errorf("kill: %d %s%s", code, out, errs)
	}
	_, _, err := l.agent.AskAndCollect(t.Context(), orders)
	if err := wantRefusal(err, api.Blocked, http.StatusForbidden); err != nil {
		t.Error(err)
	}
	l.waitNoUsers(t)
	if _, errs, code := l.cli(l.bin, "blocks", "lift", "--entitlement", "orders-db-ro", "--why", "over", "--admin-socket", l.dir+"/admin.sock"); code != 0 {
		t.Errorf("lift: %s", errs)
	}
	l.issue(t, orders)
	l.endAll(t)
}
