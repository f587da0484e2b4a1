package e2e

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"accessbroker.internal/api"
)

// A lab is a broker between SPIRE, Vault and PostgreSQL.
type lab struct {
	*world
	vault      *vault
	postgres   *postgres
	agent      *api.Client // of this test, over mTLS
	src        *workloadapi.X509Source
	cliAgent   string // a binary that is the workload /agent/cli
	sshCA      string
	agentVault *between // an agent before Vault, for the issuer that logs in by one
	fileToken  string   // in the token file
	hungUp     int      // calls to Vault that were given up in the middle
}

var orders = api.Ask{Entitlement: "orders-db-ro", Justification: "e2e"}

// TestVaultLeases gives out what a real Vault makes, and ends it, whatever
// breaks on the way.
func TestVaultLeases(t *testing.T) {
	l := startLab(t)
	t.Run("database by exec and psql", func(t *testing.T) { testPsql(t, l) })
	t.Run("given back", func(t *testing.T) { testGivenBack(t, l) })
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
	t.Run("answers lost", func(t *testing.T) { testAnswersLost(t, l) })
	t.Run("broker killed at a point", func(t *testing.T) { testKilledAt(t, l) })
	t.Run("disk full at the second transaction", func(t *testing.T) { testDiskFull(t, l) })
	t.Run("clock of Vault", func(t *testing.T) { testVaultClock(t, l) })
	t.Run("many due at once", func(t *testing.T) { testManyDue(t, l) })
	t.Run("tokens and KV", func(t *testing.T) { testTokensAndKV(t, l) })
	t.Run("Vault sealed", func(t *testing.T) { testSealed(t, l) })
	t.Run("Vault killed", func(t *testing.T) { testVaultKilled(t, l) })
	t.Run("Vault hangs", func(t *testing.T) { testVaultHangs(t, l) })
	t.Run("permission removed", func(t *testing.T) { testPermissionRemoved(t, l) })
	t.Run("PostgreSQL down at revocation", func(t *testing.T) { testPostgresDown(t, l) })
	t.Run("broker killed", func(t *testing.T) { testBrokerKilled(t, l) })
	t.Run("kill switch", func(t *testing.T) { testKillSwitch(t, l) })
	t.Run("identity provider down", func(t *testing.T) { testProviderDown(t, l) })
	t.Run("started without identity provider", func(t *testing.T) { testStartedAlone(t, l) })
}

func startLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{vault: startVault(t), postgres: startPostgres(t)}
	s := startSPIRE(t, "acme.test")
	s.register(t, "/agent/triage", self(t))
	l.postgres.must(t, "CREATE TABLE orders (id int PRIMARY KEY); INSERT INTO orders VALUES (4711)")
	l.prepareVault(t, s)
	// Vault's cert method names a login after the certificate's common name,
	// which SPIRE gives only to entries with a DNS name.
	w := newBroker(t, s, "-dns", "broker.acme.test")
	l.fileToken = l.brokerToken(t)
	w.write(t, "vault.token", l.fileToken)
	l.agentVault = standBetween(t, l.vault.address(), l.vault.caFile(), false)
	l.agentVault.token = l.brokerToken(t)
	w.issuers = fmt.Sprintf(`
  vault: {vault: {address: "%[1]s", ca_file: "%[2]s", auth: {jwt: {role: broker}}, token_role: broker-leases}}
  vault-by-cert: {vault: {address: "%[1]s", ca_file: "%[2]s", auth: {cert: {role: broker}}, token_role: broker-leases}}
  vault-by-token: {vault: {address: "%[1]s", ca_file: "%[2]s", auth: {token_file: vault.token}, token_role: broker-leases}}
  vault-by-agent: {vault: {address: "%[3]s", auth: {agent: true}, token_role: broker-leases}}`, l.vault.address(), l.vault.caFile(), l.agentVault.URL)
	w.entitlements = `
  orders-db-ro: {issuer: vault, vault: {path: database/creds/orders-ro}, max_ttl: 30m}
  orders-by-cert: {issuer: vault-by-cert, vault: {path: database/creds/orders-ro, policies: [orders-db-ro]}}
  orders-by-token: {issuer: vault-by-token, vault: {path: database/creds/orders-ro, policies: [orders-db-ro]}}
  orders-by-agent: {issuer: vault-by-agent, vault: {path: database/creds/orders-ro, policies: [orders-db-ro]}}
  web-certificate:
    issuer: vault
    vault:
      path: pki/issue/web
      policies: [web]
      data: {common_name: "${name}.acme.test", ttl: "${ttl}"}
    parameters: {name: {pattern: "[a-z]{1,20}", required: true}}
  ssh-login:
    issuer: vault
    vault:
      path: ssh/sign/login
      policies: [ssh]
      data: {public_key: "${key}", valid_principals: "` + login(t) + `", ttl: "${ttl}"}
    parameters: {key: {pattern: "ssh-ed25519 [A-Za-z0-9+/=]{60,80}", required: true}}
  kv-token:
    issuer: vault
    vault: {path: auth/token/create}
    scopes: {"kv:read": {policies: [kv-read]}}
  web-by-agent:
    issuer: vault-by-agent
    vault:
      path: pki/issue/web
      policies: [web]
      data: {common_name: shop.acme.test, ttl: "${ttl}"}
  kv-by-agent: {issuer: vault-by-agent, vault: {path: auth/token/create, policies: [kv-read]}}
  kv-due: {issuer: vault, vault: {path: auth/token/create, policies: [kv-read]}}
  kv-forgotten: {issuer: vault, vault: {path: kv/data/shop, policies: [kv-read]}}
  kv-lasting: {issuer: vault, vault: {path: kv/data/shop, policies: [kv-read], ephemeral: false}}` + holderEntitlements + sessionEntitlements
	w.configure(t, []string{s.domain}, agentsPolicy)
	w.start(t)
	l.world, l.src = w, source(t, s)
	l.agent = w.overMTLS(t, l.src)
	l.cliAgent = another(t, w.bin, "agent")
	s.register(t, "/agent/cli", l.cliAgent)
	eventually(t, "the command line's identity", time.Minute, func() error {
		if _, errs, code := w.cli(l.cliAgent, "whoami"); code != 0 {
			return errors.New(errs)
		}
		return nil
	})
	return l
}

// prepareVault does what docs/vault.md tells an operator to do. The broker's
// own token lives for seconds, so that its renewal and the logins after it are
// a part of everything here.
func (l *lab) prepareVault(t *testing.T, s *spire) {
	t.Helper()
	v := l.vault
	v.database(t, l.postgres, "orders-ro", "SELECT ON orders")
	v.pki(t, "web")
	l.prepareEngines(t)
	v.mount(t, "kv", fields{"version": "2"})
	v.must(t, "POST", "kv/data/shop", fields{"data": fields{"color": "green"}})
	v.policyText(t, "orders-db-ro", docPolicy(t, "orders-db-ro.hcl"))
	v.policy(t, "web", "pki/issue/web", "update", "pki/issue/leased", "update", "pki/sign/csr", "update", "pki/sign/trusting", "update")
	l.sshCA = v.ssh(t, "login", login(t))
	v.policy(t, "ssh", "ssh/sign/login", "update")
	v.policy(t, "kv-read", "kv/data/shop", "read")
	v.policyText(t, "broker", docPolicy(t, "broker.hcl"))
	v.tokenRole(t, "broker-leases", "orders-db-ro", "web", "kv-read", "ssh", "static", "sessions")
	v.must(t, "POST", "sys/auth/cert", fields{"type": "cert"})
	v.must(t, "POST", "auth/cert/certs/broker", fields{
		"certificate": strings.Join(authorities(t, s.bundle(t)), ""), "allowed_uri_sans": "spiffe://acme.test/broker",
		"token_policies": "broker", "token_ttl": "10s", "token_max_ttl": "25s",
	})
	v.must(t, "POST", "sys/auth/jwt", fields{"type": "jwt"})
	v.must(t, "POST", "auth/jwt/config", fields{"jwt_validation_pubkeys": jwtKeys(t, s.bundle(t))})
	role := docWrite(t, "auth/jwt/role/broker")
	role["bound_audiences"], role["token_ttl"], role["token_max_ttl"] = v.address(), "10s", "25s"
	v.must(t, "POST", "auth/jwt/role/broker", role)
}

// authorities gives the authorities of X.509-SVIDs in a SPIFFE bundle, as PEM.
func authorities(t *testing.T, bundle string) (all []string) {
	t.Helper()
	var set jose.JSONWebKeySet
	if err := json.Unmarshal([]byte(bundle), &set); err != nil {
		t.Fatal(err)
	}
	for _, key := range set.Keys {
		for _, cert := range key.Certificates {
			all = append(all, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})))
		}
	}
	return all
}

// jwtKeys gives the keys of a SPIFFE bundle that sign JWT-SVIDs, as PEM.
func jwtKeys(t *testing.T, bundle string) (keys []string) {
	t.Helper()
	var set jose.JSONWebKeySet
	if err := json.Unmarshal([]byte(bundle), &set); err != nil {
		t.Fatal(err)
	}
	for _, key := range set.Keys {
		if key.Use != "jwt-svid" {
			continue
		}
		der, err := x509.MarshalPKIXPublicKey(key.Key)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})))
	}
	if len(keys) == 0 {
		t.Fatalf("no key for JWT-SVIDs in %s", bundle)
	}
	return keys
}

// users counts the database users that Vault made and has not removed.
func (l *lab) users(t *testing.T) int {
	t.Helper()
	n, err := strconv.Atoi(l.postgres.must(t, "SELECT count(*) FROM pg_roles WHERE rolname LIKE 'v-%'"))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// lost is how many users Vault may have made and forgotten: it makes one in
// several steps, and whoever hangs up between them (a broker that is killed,
// or out of patience) leaves it behind, one a call at most. Nobody is told its
// password, and its VALID UNTIL ends it.
func (l *lab) lost() int { return l.hungUp }

func (l *lab) works(c *api.Credential) error {
	out, err := l.postgres.psql(c.Secret["username"], c.Secret["password"], "SELECT id FROM orders")
	if err == nil && out != "4711" {
		err = fmt.Errorf("psql says %q", out)
	}
	return err
}

func (l *lab) ended(c *api.Credential) error {
	if err := l.works(c); err == nil || !strings.Contains(err.Error(), "password authentication failed") {
		return fmt.Errorf("the credential still works, or psql fails for another reason: %v", err)
	}
	return nil
}

// get asks for a database user.
func (l *lab) get(t *testing.T, ask api.Ask) *api.Credential {
	t.Helper()
	c, _, err := l.agent.AskAndCollect(t.Context(), ask)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// getShort returns a database user whose lease expires within seconds, and which
// works. It doubles the TTL each time that the machine was too slow to use the
// credential before its expiry.
func (l *lab) getShort(t *testing.T) *api.Credential {
	t.Helper()
	ask := orders
	for ttl := 3 * time.Second; ; ttl *= 2 {
		start := time.Now()
		ask.TTL = api.Duration(ttl)
		c, _, err := l.agent.AskAndCollect(t.Context(), ask)
		if err == nil {
			err = l.works(c)
		}
		took := time.Since(start)
		switch {
		case err == nil:
			return c
		case took < ttl/2 || ttl > 20*time.Second:
			t.Fatalf("a lease of %s, %s after the request: %v", ttl, took, err)
		}
		t.Logf("a lease of %s is too short for this machine, which took %s: %v", ttl, took, err)
	}
}

// becomes waits until a lease has a status and a truth about its end.
func (l *lab) becomes(t *testing.T, lease, status, revocation string) {
	t.Helper()
	eventually(t, "the lease's being "+status+", "+revocation, time.Minute, func() error {
		got, err := l.agent.Lease(t.Context(), lease)
		if err == nil && (got.Status != status || got.Revocation != revocation) {
			err = fmt.Errorf("it is %s, %s", got.Status, got.Revocation)
		}
		return err
	})
}

// testPsql hands a database user to psql, which knows nothing of the broker.
// When psql ends, the user is gone.
func testPsql(t *testing.T, l *lab) {
	psql := fmt.Sprintf("%s --no-psqlrc -tA -h 127.0.0.1 -p %d -d postgres", filepath.Join(l.postgres.bin, "psql"), l.postgres.port)
	out, errs, code := l.cli(l.cliAgent, "exec", "orders-db-ro", "--", "sh", "-c", psql+` -c "SELECT id FROM orders" && `+psql+` -c "DELETE FROM orders"`)
	if strings.TrimSpace(out) != "4711" || code == 0 || !strings.Contains(errs, "permission denied for table orders") {
		t.Errorf("psql reads %q, and then, as it deletes: %d %s", out, code, errs)
	}
	if n := l.users(t); n != 0 {
		t.Errorf("after exec there are %d users", n)
	}
}

func testGivenBack(t *testing.T, l *lab) {
	c := l.get(t, orders)
	if c.Type != "userpass" || c.Revocation != "immediate" {
		t.Errorf("the credential is %s, %s", c.Type, c.Revocation)
	}
	if err := l.works(c); err != nil {
		t.Fatal(err)
	}
	lease, err := l.agent.Revoke(t.Context(), c.Lease, "done")
	if err != nil || lease.Status != api.LeaseRevoked || lease.Revocation != "immediate" {
		t.Fatalf("given back: %+v, %v", lease, err)
	}
	if err := l.ended(c); err != nil { // at once: that is what immediate says
		t.Error(err)
	}
}

func testExpired(t *testing.T, l *lab) {
	c := l.getShort(t)
	l.becomes(t, c.Lease, "revoked", "immediate")
	if err := l.ended(c); err != nil {
		t.Error(err)
	}
	if got, err := l.agent.Lease(t.Context(), c.Lease); err != nil || got.EndHow != "expired" {
		t.Errorf("the lease ended by %q, %v", got.EndHow, err)
	}
}

// testRenewed gets another user under the same grant; the first one ends.
func testRenewed(t *testing.T, l *lab) {
	first := l.get(t, orders)
	second, err := l.agent.Renew(t.Context(), first.Lease)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.works(second); err != nil {
		t.Error(err)
	}
	l.becomes(t, first.Lease, "revoked", "immediate")
	if err := l.ended(first); err != nil {
		t.Error(err)
	}
}

// testCertificate shows the certificate to a TLS server that trusts Vault's
// authority.
func testCertificate(t *testing.T, l *lab) {
	c := l.get(t, api.Ask{Entitlement: "web-certificate", Parameters: map[string]string{"name": "shop"}, TTL: api.Duration(10 * time.Minute)})
	if c.Type != "certificate" || c.Revocation != "at_expiry" {
		t.Fatalf("the credential is %s, %s", c.Type, c.Revocation)
	}
	pair, err := tls.X509KeyPair([]byte(c.Secret["certificate"]), []byte(c.Secret["private_key"]))
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(pair.Leaf.NotAfter); left > 10*time.Minute || left < 9*time.Minute || pair.Leaf.NotAfter.Sub(c.ExpiresAt).Abs() > 2*time.Second {
		t.Errorf("the certificate lives for %s, its lease until %s", left, c.ExpiresAt)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(c.Secret["chain"]))
	if err := shows(pair, roots); err != nil {
		t.Errorf("a TLS server that trusts Vault's authority: %v", err)
	}
	for _, bad := range []string{"", "SHOP", "a.b", "evil.other.test"} {
		_, _, err := l.agent.AskAndCollect(t.Context(), api.Ask{Entitlement: "web-certificate", Parameters: map[string]string{"name": bad}})
		if err := refusedWith(err, api.InvalidParameter, http.StatusBadRequest); err != nil {
			t.Errorf("the name %q: %v", bad, err)
		}
	}
}

// shows shows a client certificate to a server.
func shows(pair tls.Certificate, roots *x509.CertPool) error {
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

// testTokensAndKV gets tokens of Vault, and what Vault keeps for ever: only if
// the entitlement says that it is not ephemeral.
func testTokensAndKV(t *testing.T, l *lab) {
	c := l.get(t, api.Ask{Entitlement: "kv-token", Scopes: []string{"kv:read"}})
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
	if err := refusedWith(err, api.IssuerRefused, http.StatusBadGateway); err != nil {
		t.Errorf("what doesn't end, of an entitlement that does not say so: %v", err)
	}
	if lasting := l.get(t, api.Ask{Entitlement: "kv-lasting"}); lasting.Type != "data" || lasting.Secret["color"] != "green" || lasting.Revocation != "never" {
		t.Errorf("what doesn't end: %s, %s", lasting.Type, lasting.Revocation)
	}
}

// testSealed seals Vault: nothing is issued, what is given back waits, and
// ends when Vault is unsealed.
func testSealed(t *testing.T, l *lab) {
	c := l.get(t, orders)
	l.vault.seal(t)
	_, _, err := l.agent.AskAndCollect(t.Context(), orders)
	if err := refusedWith(err, api.IssuerUnavailable, http.StatusServiceUnavailable); err != nil {
		t.Error(err)
	}
	lease, err := l.agent.Revoke(t.Context(), c.Lease, "done")
	if err != nil || lease.Status != api.LeaseRevoking || lease.Revocation != "pending" {
		t.Errorf("given back to a sealed Vault: %+v, %v", lease, err)
	}
	if err := l.works(c); err != nil {
		t.Errorf("the broker said pending, and that is the truth: %v", err)
	}
	l.vault.unseal(t)
	l.becomes(t, c.Lease, "revoked", "immediate")
	if err := l.ended(c); err != nil {
		t.Error(err)
	}
}

func testVaultKilled(t *testing.T, l *lab) {
	c := l.get(t, orders)
	l.vault.kill()
	_, _, err := l.agent.AskAndCollect(t.Context(), orders)
	if err := refusedWith(err, api.IssuerUnavailable, http.StatusServiceUnavailable); err != nil {
		t.Error(err)
	}
	l.vault.start(t)
	if err := l.works(c); err != nil {
		t.Errorf("a credential from before: %v", err)
	}
	if _, err := l.agent.Revoke(t.Context(), c.Lease, "done"); err != nil {
		t.Error(err)
	}
	l.becomes(t, c.Lease, "revoked", "immediate")
	l.clean(t)
}

// testVaultHangs stops Vault in the middle of making credentials: the callers
// get an error in time, and what Vault makes when it goes on is ended.
func testVaultHangs(t *testing.T, l *lab) {
	go func() {
		time.Sleep(200 * time.Millisecond)
		_ = l.vault.server.cmd.Process.Signal(syscall.SIGSTOP)
	}()
	defer func() { _ = l.vault.server.cmd.Process.Signal(syscall.SIGCONT) }()
	var all sync.WaitGroup
	var answered atomic.Int64
	began := time.Now()
	for range 8 {
		all.Go(func() {
			for {
				_, _, err := l.agent.AskAndCollect(t.Context(), orders)
				if err == nil {
					answered.Add(1)
					continue
				}
				if err := refusedWith(err, api.IssuerUnavailable, http.StatusServiceUnavailable); err != nil {
					t.Error(err)
				}
				return
			}
		})
	}
	all.Wait()
	if took := time.Since(began); took > time.Minute {
		t.Errorf("callers waited for %s", took)
	}
	_ = l.vault.server.cmd.Process.Signal(syscall.SIGCONT)
	l.hungUp += 8
	l.accounted(t, 40*time.Second)
	t.Logf("%d credentials were issued before Vault hung", answered.Load())
	l.clean(t)
}

// accounted waits until every database user that works has an active lease, of
// the broker's and of Vault's.
// Leases whose answer from Vault was lost are not among them: they are pending
// until their time is over, for nobody says when Vault has ended them.
func (l *lab) accounted(t *testing.T, within time.Duration) {
	t.Helper()
	eventually(t, "the end of every user without a lease", within, func() error {
		active := 0
		for _, lease := range l.live(t) {
			switch lease.Status {
			case api.LeaseActive:
				active++
			case api.LeaseRevoking:
			default:
				return fmt.Errorf("lease %s is %s", lease.ID, lease.Status)
			}
		}
		if n := len(l.vault.leases(t, "database/creds/orders-ro")); n != active {
			return fmt.Errorf("%d leases of Vault's, and %d active ones of the broker's", n, active)
		}
		if n, lost := l.users(t), l.lost(); n < active || n > active+lost {
			return fmt.Errorf("%d users, %d active leases, and Vault lost at most %d", n, active, lost)
		}
		return nil
	})
}

// ofDatabase are the entitlements that give the one kind of database user.
var ofDatabase = []string{"orders-db-ro", "orders-by-cert", "orders-by-token", "orders-by-agent"}

// live gives the live leases of the database, of everybody.
func (l *lab) live(t *testing.T, entitlements ...string) (all []api.Lease) {
	t.Helper()
	if entitlements == nil {
		entitlements = ofDatabase
	}
	for _, e := range entitlements {
		all = append(all, l.liveLeases(t, e)...)
	}
	return all
}

func (l *lab) liveLeases(t *testing.T, entitlement string) (all []api.Lease) {
	t.Helper()
	for cursor := ""; ; {
		out, errs, code := l.cli(l.bin, "leases", "--holder", "*", "--entitlement", entitlement, "--live", "--limit", "200", "--cursor", cursor, "--admin-socket", l.dir+"/admin.sock", "-o", "json")
		var page api.LeasePage
		if err := json.Unmarshal([]byte(out), &page); err != nil || code != 0 {
			t.Fatalf("leases: %d %s: %v", code, errs, err)
		}
		all = append(all, page.Leases...)
		if cursor = page.Next; cursor == "" {
			return all
		}
	}
}

// clean ends every database user that is left.
func (l *lab) clean(t *testing.T) {
	t.Helper()
	for _, lease := range l.live(t) {
		if _, errs, code := l.cli(l.bin, "return", lease.ID, "--admin-socket", l.dir+"/admin.sock"); code != 0 {
			t.Fatalf("return: %s", errs)
		}
	}
	l.empty(t)
}

// empty waits until no user is left.
func (l *lab) empty(t *testing.T) {
	t.Helper()
	eventually(t, "the end of all users", time.Minute, func() error {
		if n, lost := l.users(t), l.lost(); n > lost {
			return fmt.Errorf("%d are left, and Vault lost at most %d", n, lost)
		}
		return nil
	})
}

// testPermissionRemoved takes from the broker what it needs to revoke: it goes
// on trying, and succeeds when it has it again.
func testPermissionRemoved(t *testing.T, l *lab) {
	c := l.get(t, orders)
	l.vault.policy(t, "broker", "auth/token/create/broker-leases", "update")
	lease, err := l.agent.Revoke(t.Context(), c.Lease, "done")
	if err != nil || lease.Revocation != "pending" {
		t.Errorf("without the permission: %+v, %v", lease, err)
	}
	l.vault.policyText(t, "broker", docPolicy(t, "broker.hcl"))
	l.becomes(t, c.Lease, "revoked", "immediate")
	if err := l.ended(c); err != nil {
		t.Error(err)
	}
}

// testPostgresDown stops the database behind Vault: nothing is revoked until
// it is back, and nobody says so before.
func testPostgresDown(t *testing.T, l *lab) {
	c := l.get(t, orders)
	l.postgres.stop()
	lease, err := l.agent.Revoke(t.Context(), c.Lease, "done")
	if err != nil || lease.Revocation != "pending" {
		t.Errorf("while PostgreSQL is down: %+v, %v", lease, err)
	}
	l.postgres.start(t)
	l.becomes(t, c.Lease, "revoked", "immediate")
	if err := l.ended(c); err != nil {
		t.Error(err)
	}
}

// testBrokerKilled kills the broker in the middle of issuing much: within half a
// minute after the restart, no user is left that has no lease. testKilledAt does
// it at each point.
func testBrokerKilled(t *testing.T, l *lab) {
	l.clean(t)
	var all sync.WaitGroup
	answered := make(chan *api.Credential, 1000)
	for range 8 {
		all.Go(func() {
			for {
				c, _, err := l.agent.AskAndCollect(t.Context(), orders)
				if err != nil {
					return
				}
				answered <- c
			}
		})
	}
	first := <-answered
	for range 40 {
		<-answered
	}
	l.broker.kill()
	all.Wait()
	l.hungUp += 8
	l.start(t)
	l.accounted(t, 30*time.Second)
	if err := l.works(first); err != nil {
		t.Errorf("a credential that was answered before the kill: %v", err)
	}
	l.clean(t)
}

// testKillSwitch ends everything of an entitlement from the broker's own
// machine, and lets nobody have it again until the block is lifted.
func testKillSwitch(t *testing.T, l *lab) {
	for range 20 {
		l.get(t, orders)
	}
	live := len(l.live(t, "orders-db-ro"))
	kill := func(more ...string) (string, string, int) {
		args := append([]string{"kill", "--entitlement", "orders-db-ro", "--why", "INC-1", "--admin-socket", l.dir + "/admin.sock"}, more...)
		return l.cli(l.bin, args...)
	}
	if out, errs, code := kill("--preview"); code != 0 || !strings.Contains(out, fmt.Sprintf("%d credentials would be revoked.\n", live)) {
		t.Errorf("preview: %d %s%s", code, out, errs)
	}
	if _, errs, code := kill(); code != 2 || l.users(t) < 20 {
		t.Errorf("without --yes and without a terminal: %d %s", code, errs)
	}
	if out, errs, code := kill("--yes"); code != 0 {
		t.Errorf("kill: %d %s%s", code, out, errs)
	}
	_, _, err := l.agent.AskAndCollect(t.Context(), orders)
	if err := refusedWith(err, api.Blocked, http.StatusForbidden); err != nil {
		t.Error(err)
	}
	l.empty(t)
	if _, errs, code := l.cli(l.bin, "blocks", "lift", "--entitlement", "orders-db-ro", "--why", "over", "--admin-socket", l.dir+"/admin.sock"); code != 0 {
		t.Errorf("lift: %s", errs)
	}
	l.get(t, orders)
	l.clean(t)
}
