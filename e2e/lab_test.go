package e2e

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"accessbroker.internal/api"
)

// A lab is a broker between SPIRE, Vault and PostgreSQL.
type lab struct {
	*world
	vault          *vault
	postgres       *postgres
	agent          *api.Client // of the test binary, over mTLS
	src            *workloadapi.X509Source
	cliAgent       string // the binary of the workload /agent/cli
	sshCA          string
	vaultProxy     *interceptor // the Vault agent of the issuer vault-by-agent
	fileToken      string       // the content of the token file
	abandonedCalls int          // calls to Vault whose caller hung up before the answer
}

var orders = api.Ask{Entitlement: "orders-db-ro", Justification: "e2e"}

func startLab(t testing.TB, s *spire) *lab {
	t.Helper()
	l := &lab{vault: startVault(t), postgres: startPostgres(t)}
	l.postgres.must(t, "CREATE TABLE orders (id int PRIMARY KEY); INSERT INTO orders VALUES (4711)")
	l.prepareVault(t, s)
	// Vault's cert method names a login after the certificate's common name, which
	// SPIRE sets only for entries with a DNS name.
	w := newBroker(t, s, "-dns", "broker.acme.test")
	l.fileToken = l.brokerToken(t)
	w.write(t, "vault.token", l.fileToken)
	l.vaultProxy = intercept(t, l.vault.address(), l.vault.caFile(), false)
	l.vaultProxy.token = l.brokerToken(t)
	w.issuers = fmt.Sprintf(`
  vault: {vault: {address: "%[1]s", ca_file: "%[2]s", auth: {jwt: {role: broker}}, token_role: broker-leases}}
  vault-by-cert: {vault: {address: "%[1]s", ca_file: "%[2]s", auth: {cert: {role: broker}}, token_role: broker-leases}}
  vault-by-token: {vault: {address: "%[1]s", ca_file: "%[2]s", auth: {token_file: vault.token}, token_role: broker-leases}}
  vault-by-agent: {vault: {address: "%[3]s", auth: {agent: true}, token_role: broker-leases}}`, l.vault.address(), l.vault.caFile(), l.vaultProxy.URL)
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
	l.agent = w.mtlsClient(t, l.src)
	l.cliAgent = copyBinary(t, w.bin, "agent")
	s.register(t, "/agent/cli", l.cliAgent)
	eventually(t, "the command line's identity", time.Minute, func() error {
		if _, errs, code := w.cli(l.cliAgent, "whoami"); code != 0 {
			return errors.New(errs)
		}
		return nil
	})
	return l
}

// prepareVault does what docs/vault.md tells an operator to do. The broker's own
// token is valid for seconds only, so every test includes its renewal and new
// logins.
func (l *lab) prepareVault(t testing.TB, s *spire) {
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
	v.must(t, "POST", "sys/auth/jwt", fields{"type": "jwt"})
	v.must(t, "POST", "auth/jwt/config", fields{"jwt_validation_pubkeys": jwtKeys(t, s.bundle(t))})
	l.brokerLogins(t, s, "10s", "25s")
}

// brokerLogins configures how long the tokens are valid that Vault issues to the
// broker when it logs in.
func (l *lab) brokerLogins(t testing.TB, s *spire, ttl, max string) {
	t.Helper()
	l.vault.must(t, "POST", "auth/cert/certs/broker", fields{
		"certificate": strings.Join(authorities(t, s.bundle(t)), ""), "allowed_uri_sans": "spiffe://acme.test/broker",
		"token_policies": "broker", "token_ttl": ttl, "token_max_ttl": max,
	})
	role := docWrite(t, "auth/jwt/role/broker")
	role["bound_audiences"], role["token_ttl"], role["token_max_ttl"] = l.vault.address(), ttl, max
	l.vault.must(t, "POST", "auth/jwt/role/broker", role)
}

// authorities returns the X.509 authorities of a SPIFFE bundle, as PEM.
func authorities(t testing.TB, bundle string) (all []string) {
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
	if len(all) == 0 {
		t.Fatalf("no X.509 authority in %s", bundle)
	}
	return all
}

// jwtKeys returns the keys of a SPIFFE bundle that sign JWT-SVIDs, as PEM.
func jwtKeys(t testing.TB, bundle string) (keys []string) {
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

// vaultUsers counts the database users that Vault created and has not removed.
func (l *lab) vaultUsers(t testing.TB) int {
	t.Helper()
	n, err := strconv.Atoi(l.postgres.must(t, "SELECT count(*) FROM pg_roles WHERE rolname LIKE 'v-%'"))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// maxOrphans returns how many users Vault may have created and forgotten. Vault
// creates a user in several steps; a caller that hangs up between them (a broker
// that was killed or ran into its deadline) leaves at most one behind. No one
// learns its password, and its VALID UNTIL ends it.
func (l *lab) maxOrphans() int { return l.abandonedCalls }

// works returns nil if PostgreSQL accepts the credential.
func (l *lab) works(c *api.Credential) error {
	out, err := l.postgres.psql(c.Secret["username"], c.Secret["password"], "SELECT id FROM orders")
	if err == nil && out != "4711" {
		err = fmt.Errorf("psql reads %q", out)
	}
	return err
}

// rejected returns nil if PostgreSQL rejects the credential.
func (l *lab) rejected(c *api.Credential) error {
	if err := l.works(c); err == nil || !strings.Contains(err.Error(), "password authentication failed") {
		return fmt.Errorf("the credential still works, or psql fails for another reason: %v", err)
	}
	return nil
}

// issue requests a credential and collects it.
func (l *lab) issue(t testing.TB, ask api.Ask) *api.Credential {
	t.Helper()
	c, _, err := l.agent.AskAndCollect(t.Context(), ask)
	if err != nil {
		t.Fatal(err)
	}
	checkSecret(t, c)
	return c
}

// issueShort returns a database user whose lease ends in a few seconds, and which
// worked. On a slow machine the first lease may be over before Vault is called,
// or before psql connects; the next one is twice as long.
func (l *lab) issueShort(t testing.TB, ask api.Ask) *api.Credential {
	t.Helper()
	for ttl := 3 * time.Second; ; ttl *= 2 {
		ask.TTL = api.Duration(ttl)
		began := time.Now()
		c, _, err := l.agent.AskAndCollect(t.Context(), ask)
		if err == nil {
			err = l.works(c)
		}
		if err == nil {
			return c
		}
		if time.Since(began) < ttl/2 || ttl > time.Minute {
			t.Fatalf("a lease of %s: %v", ttl, err)
		}
	}
}

// waitStatus waits until a lease has a status and a kind of revocation.
func (l *lab) waitStatus(t testing.TB, lease, status, revocation string) {
	t.Helper()
	eventually(t, "the lease to be "+status+", "+revocation, 2*time.Minute, func() error {
		got, err := l.agent.Lease(t.Context(), lease)
		if err == nil && (got.Status != status || got.Revocation != revocation) {
			err = fmt.Errorf("it is %s, %s", got.Status, got.Revocation)
		}
		return err
	})
}

// waitReconciled waits until every database user that works has an active lease,
// both at the broker and at Vault. A lease whose answer from Vault was lost is
// pending until its time is over, because the broker can't find out when Vault
// revoked it; it does not count.
func (l *lab) waitReconciled(t testing.TB, limit time.Duration) {
	t.Helper()
	eventually(t, "the end of every user without a lease", limit, func() error {
		active := 0
		for _, lease := range l.liveDatabaseLeases(t) {
			switch lease.Status {
			case api.LeaseActive:
				active++
			case api.LeaseRevoking:
			default:
				return fmt.Errorf("lease %s is %s", lease.ID, lease.Status)
			}
		}
		if n := len(l.vault.leases(t, "database/creds/orders-ro")); n != active {
			return fmt.Errorf("%d leases at Vault, %d active leases at the broker", n, active)
		}
		if n, lost := l.vaultUsers(t), l.maxOrphans(); n < active || n > active+lost {
			return fmt.Errorf("%d users, %d active leases, at most %d orphans", n, active, lost)
		}
		return nil
	})
}

// databaseEntitlements are the entitlements to database users.
var databaseEntitlements = []string{"orders-db-ro", "orders-by-cert", "orders-by-token", "orders-by-agent"}

// liveDatabaseLeases returns the live leases of all holders for entitlements to
// database users, or for the given entitlements.
func (l *lab) liveDatabaseLeases(t testing.TB, entitlements ...string) (all []api.Lease) {
	t.Helper()
	if entitlements == nil {
		entitlements = databaseEntitlements
	}
	for _, e := range entitlements {
		all = append(all, l.liveLeases(t, e)...)
	}
	return all
}

func (l *lab) liveLeases(t testing.TB, entitlement string) (all []api.Lease) {
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

// endAll returns every lease of a database user and waits until no user is left.
func (l *lab) endAll(t testing.TB) {
	t.Helper()
	for _, lease := range l.liveDatabaseLeases(t) {
		if _, errs, code := l.cli(l.bin, "return", lease.ID, "--admin-socket", l.dir+"/admin.sock"); code != 0 {
			t.Fatalf("return: %s", errs)
		}
	}
	l.waitNoUsers(t)
}

// waitNoUsers waits until no database user is left, except orphans.
func (l *lab) waitNoUsers(t testing.TB) {
	t.Helper()
	eventually(t, "the end of all users", 2*time.Minute, func() error {
		if n, lost := l.vaultUsers(t), l.maxOrphans(); n > lost {
			return fmt.Errorf("%d users are left, at most %d are orphans", n, lost)
		}
		return nil
	})
}
