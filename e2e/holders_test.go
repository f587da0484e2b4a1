package e2e

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
)

// holderEntitlements are what those tests ask for that are of one engine each.
const holderEntitlements = `
  orders-wrapped: {issuer: vault, vault: {path: database/creds/orders-ro, policies: [orders-db-ro], wrap: true}}
  orders-static: {issuer: vault, vault: {path: database/static-creds/report, policies: [static]}}
  csr-certificate:
    issuer: vault
    vault:
      path: pki/sign/csr
      policies: [web]
      data: {csr: "${csr}", common_name: "${name}.acme.test", uri_sans: "${holder}", ttl: "${ttl}"}
    parameters: &csr
      name: {pattern: "[a-z]{1,20}", required: true}
      csr: {pattern: "-----BEGIN CERTIFICATE REQUEST-----\n[A-Za-z0-9+/=\n]+-----END CERTIFICATE REQUEST-----\n?", lines: true, max_length: 4096, required: true}
  csr-trusted:
    issuer: vault
    vault:
      path: pki/sign/trusting
      policies: [web]
      data: {csr: "${csr}", common_name: "${name}.acme.test", ttl: "${ttl}"}
    parameters: *csr
  leased-certificate:
    issuer: vault
    vault:
      path: pki/issue/leased
      policies: [web]
      data: {common_name: "shop.acme.test", ttl: "${ttl}"}`

// prepareEngines makes the roles that holderEntitlements need.
func (l *lab) prepareEngines(t *testing.T) {
	t.Helper()
	v := l.vault
	l.postgres.must(t, "CREATE ROLE report LOGIN; GRANT SELECT ON orders TO report")
	v.must(t, "POST", "database/static-roles/report", fields{"db_name": "postgres", "username": "report", "rotation_period": 86400})
	v.policy(t, "static", "database/static-creds/report", "read")
	v.policy(t, "sessions", "aws/sts/reports", "read,update")
	names := fields{"allowed_domains": "acme.test", "allow_subdomains": true, "key_type": "any", "max_ttl": "24h"}
	role := func(name string, more fields) {
		all := fields{}
		for _, f := range []fields{names, more} {
			for k, v := range f {
				all[k] = v
			}
		}
		v.must(t, "POST", "pki/roles/"+name, all)
	}
	role("csr", fields{"use_csr_common_name": false, "use_csr_sans": false, "allowed_uri_sans": "spiffe://acme.test/*"})
	role("trusting", fields{"allow_any_name": true})
	role("leased", fields{"key_type": "ec", "generate_lease": true})
}

// testPgpass has psql look for the password in its own file.
func testPgpass(t *testing.T, l *lab) {
	line, errs, code := l.cli(l.cliAgent, "request", "orders-db-ro", "-o", "pgpass")
	f := strings.Split(strings.TrimSpace(line), ":")
	if code != 0 || len(f) != 5 || !strings.HasPrefix(f[3], "v-") {
		t.Fatalf("-o pgpass: %d %s, %d fields", code, errs, len(f))
	}
	file := filepath.Join(t.TempDir(), "pgpass")
	if err := os.WriteFile(file, []byte(line), 0o600); err != nil { // psql takes no file that others may read
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(l.postgres.bin, "psql"), "--no-psqlrc", "--no-password", "-tA", "-h", "127.0.0.1", "-p", fmt.Sprint(l.postgres.port),
		"-U", f[3], "-d", "postgres", "-c", "SELECT id FROM orders")
	cmd.Env = append(os.Environ(), "PGPASSFILE="+file, "PGSSLMODE=disable")
	if out, err := cmd.CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != "4711" {
		t.Errorf("psql by its password file: %v %s", err, out)
	}
	l.clean(t)
}

// testVaultToken hands a token of Vault's to curl, by the variable that Vault's
// own tools read. When curl ends, the token does.
func testVaultToken(t *testing.T, l *lab) {
	file := filepath.Join(t.TempDir(), "token")
	script := fmt.Sprintf(`printf %%s "$VAULT_TOKEN" > %s && curl -sS --fail --cacert %s -H "X-Vault-Token: $VAULT_TOKEN" %s/v1/kv/data/shop`, file, l.vault.caFile(), l.vault.address())
	out, errs, code := l.cli(l.cliAgent, "exec", "kv-token", "--scope", "kv:read", "--", "sh", "-c", script)
	if code != 0 || !strings.Contains(out, `"color":"green"`) {
		t.Errorf("curl says %d %q %s", code, out, errs)
	}
	token, err := os.ReadFile(file)
	if err != nil || len(token) == 0 {
		t.Fatalf("the token: %v", err)
	}
	l.vault.refuses(t, string(token), "GET", "kv/data/shop", nil, http.StatusForbidden)
}

// testTokenOfLease looks the lease's own token up, as an operator of Vault would
// who wonders whose it is.
func testTokenOfLease(t *testing.T, l *lab) {
	c := l.get(t, orders)
	lease, err := l.agent.Lease(t.Context(), c.Lease)
	if err != nil {
		t.Fatal(err)
	}
	token := l.tokenOf(t, c.Lease)
	if token == nil {
		t.Fatal("no token of Vault's names the lease")
	}
	want := fields{"lease": c.Lease, "request": lease.Request, "entitlement": "orders-db-ro", "holder": lease.Holder}
	meta, _ := token["meta"].(fields)
	for name, value := range want {
		if meta[name] != value {
			t.Errorf("its %s is %v, want %v", name, meta[name], value)
		}
	}
	policies, _ := json.Marshal(token["policies"])
	if string(policies) != `["orders-db-ro"]` || token["orphan"] != true || token["renewable"] == true {
		t.Errorf("its policies are %s; orphan: %v, renewable: %v", policies, token["orphan"], token["renewable"])
	}
	made, _ := token["creation_time"].(float64)
	most, _ := token["explicit_max_ttl"].(float64)
	ends := time.Unix(int64(made+most), 0)
	if early := lease.ExpiresAt.Sub(ends); most == 0 || early < 0 || early > 3*time.Second {
		t.Errorf("it lives until %s at most, its lease until %s", ends, lease.ExpiresAt)
	}
	l.clean(t)
	if l.tokenOf(t, c.Lease) != nil {
		t.Error("the lease is over, and its token is not")
	}
}

// tokenOf gives what Vault knows of the token of a lease, found by nothing but
// its metadata.
func (l *lab) tokenOf(t *testing.T, lease string) fields {
	t.Helper()
	keys, _ := l.vault.must(t, "LIST", "auth/token/accessors", nil).Data["keys"].([]any)
	for _, accessor := range keys {
		answer, err := l.vault.call(l.vault.root, "POST", "auth/token/lookup-accessor", fields{"accessor": accessor})
		if err != nil {
			continue // it has ended meanwhile
		}
		if meta, _ := answer.Data["meta"].(fields); meta["lease"] == lease {
			return answer.Data
		}
	}
	return nil
}

// testWrapped has only the holder see the credential: it unwraps that at Vault,
// once.
func testWrapped(t *testing.T, l *lab) {
	l.clean(t)
	c := l.get(t, api.Ask{Entitlement: "orders-wrapped", TTL: brief})
	if c.Type != "data" || len(c.Secret) != 1 || c.Revocation != "at_expiry" {
		t.Fatalf("the credential is %s of %d fields, %s", c.Type, len(c.Secret), c.Revocation)
	}
	wrapping := c.Secret["wrapping_token"]
	got := l.vault.as(t, wrapping, "POST", "sys/wrapping/unwrap", nil)
	inner := &api.Credential{Secret: api.Secret{}}
	for _, name := range []string{"username", "password"} {
		inner.Secret[name], _ = got.Data[name].(string)
	}
	if err := l.works(inner); err != nil {
		t.Error(err)
	}
	l.vault.refuses(t, wrapping, "POST", "sys/wrapping/unwrap", nil, http.StatusBadRequest)
	lease, err := l.agent.Revoke(t.Context(), c.Lease, "done")
	if err != nil || lease.Status != api.LeaseRevoking || lease.Revocation != "pending" {
		t.Errorf("given back, and nobody says when Vault has done it: %+v, %v", lease, err)
	}
	eventually(t, "the end of what was wrapped", 30*time.Second, func() error { return l.ended(inner) })
	l.becomes(t, c.Lease, "revoked", "at_expiry")
}

// testStaticRole gives the password of a user that stays: the next rotation ends
// it, and nothing else.
func testStaticRole(t *testing.T, l *lab) {
	c := l.get(t, api.Ask{Entitlement: "orders-static"})
	if c.Type != "userpass" || c.Secret["username"] != "report" || c.Revocation != "at_rotation" {
		t.Fatalf("the credential is %s of %s, %s", c.Type, c.Secret["username"], c.Revocation)
	}
	lease, err := l.agent.Revoke(t.Context(), c.Lease, "done")
	if err != nil || lease.Status != api.LeaseRevoked || lease.Revocation != "at_rotation" {
		t.Errorf("given back: %+v, %v", lease, err)
	}
	if err := l.works(c); err != nil {
		t.Errorf("the broker said at_rotation, and that is the truth: %v", err)
	}
	l.vault.must(t, "POST", "database/rotate-role/report", nil)
	if err := l.ended(c); err != nil {
		t.Error(err)
	}
}

// request makes a CSR that names somebody.
func request(t *testing.T, key crypto.Signer, names ...string) string {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: names[0]}, DNSNames: names[1:]}, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

// testSigned has Vault sign for a key that never left its holder. The names are
// the entitlement's, whatever the request says.
func testSigned(t *testing.T, l *lab) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	l.signs(t, key)
	large, err := rsa.GenerateKey(rand.Reader, 4096)
	if err != nil {
		t.Fatal(err)
	}
	l.signs(t, large)
	// A role that trusts requests makes a certificate with names of its holder's
	// choice, which is not given out.
	foreign := request(t, key, "svc.acme.test", "svc.acme.test", "bank.other.test")
	_, _, err = l.agent.AskAndCollect(t.Context(), api.Ask{Entitlement: "csr-trusted", Parameters: map[string]string{"name": "svc", "csr": foreign}, TTL: brief})
	if err := refusedWith(err, api.IssuerRefused, http.StatusBadGateway); err != nil {
		t.Errorf("a request with a foreign name: %v", err)
	}
	own := request(t, key, "svc.acme.test", "svc.acme.test")
	if _, _, err = l.agent.AskAndCollect(t.Context(), api.Ask{Entitlement: "csr-trusted", Parameters: map[string]string{"name": "svc", "csr": own}, TTL: brief}); err != nil {
		t.Errorf("a request with the names that were asked for: %v", err)
	}
	_, _, err = l.agent.AskAndCollect(t.Context(), api.Ask{Entitlement: "csr-trusted", Parameters: map[string]string{"name": "svc", "csr": "no request"}})
	if err := refusedWith(err, api.InvalidParameter, http.StatusBadRequest); err != nil {
		t.Error(err)
	}
}

// signs gets a certificate for a key, and shows it to a TLS server.
func (l *lab) signs(t *testing.T, key crypto.Signer) {
	t.Helper()
	csr := request(t, key, "bank.other.test", "bank.other.test")
	c := l.get(t, api.Ask{Entitlement: "csr-certificate", Parameters: map[string]string{"name": "svc", "csr": csr}})
	if c.Type != "certificate" || c.Secret["private_key"] != "" || c.Revocation != "at_expiry" {
		t.Fatalf("the credential is %s, %s, with a key of %d bytes", c.Type, c.Revocation, len(c.Secret["private_key"]))
	}
	block, _ := pem.Decode([]byte(c.Secret["certificate"]))
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	holder, err := l.agent.WhoAmI(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if uri, _ := url.Parse(holder.ID); leaf.Subject.CommonName != "svc.acme.test" || !slices.Equal(leaf.DNSNames, []string{"svc.acme.test"}) ||
		len(leaf.URIs) != 1 || *leaf.URIs[0] != *uri {
		t.Errorf("it names %s, %v and %v", leaf.Subject.CommonName, leaf.DNSNames, leaf.URIs)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(c.Secret["chain"]))
	if err := shows(tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key}, roots); err != nil {
		t.Errorf("a TLS server that trusts Vault's authority: %v", err)
	}
}

// testLeasedCertificate gives a certificate back that Vault has a lease for: it
// is on Vault's revocation list when the broker says that it has ended.
func testLeasedCertificate(t *testing.T, l *lab) {
	c := l.get(t, api.Ask{Entitlement: "leased-certificate", TTL: api.Duration(10 * time.Minute)})
	if c.Type != "certificate" || c.Revocation != "immediate" {
		t.Fatalf("the credential is %s, %s", c.Type, c.Revocation)
	}
	l.listedOnceGivenBack(t, c, "immediate")
}

// testListedCertificate gives a certificate back that Vault has no lease for: it
// is on Vault's revocation list, and works all the same where nobody looks there,
// so the broker says no more than that it ends in time.
func testListedCertificate(t *testing.T, l *lab) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := l.get(t, api.Ask{Entitlement: "csr-certificate", Parameters: map[string]string{"name": "svc", "csr": request(t, key, "svc.acme.test")}})
	l.listedOnceGivenBack(t, c, "at_expiry")
}

// listedOnceGivenBack gives a certificate back, which the broker says so much
// of, and wants it on Vault's revocation list then and not before.
func (l *lab) listedOnceGivenBack(t *testing.T, c *api.Credential, revocation string) {
	t.Helper()
	block, _ := pem.Decode([]byte(c.Secret["certificate"]))
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if l.vault.revoked(t, leaf) {
		t.Fatal("it is on the revocation list, and was just issued")
	}
	lease, err := l.agent.Revoke(t.Context(), c.Lease, "done")
	if err != nil || lease.Status != api.LeaseRevoked || lease.Revocation != revocation {
		t.Errorf("given back: %+v, %v", lease, err)
	}
	if !l.vault.revoked(t, leaf) {
		t.Error("it was given back, and is not on the revocation list")
	}
}

// revoked says whether a certificate is on the PKI engine's revocation list.
func (v *vault) revoked(t *testing.T, leaf *x509.Certificate) bool {
	t.Helper()
	resp, err := v.client.Get(v.address() + "/v1/pki/crl")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	der, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		t.Fatalf("the revocation list: %v", err)
	}
	return slices.ContainsFunc(list.RevokedCertificateEntries, func(e x509.RevocationListEntry) bool {
		return e.SerialNumber.Cmp(leaf.SerialNumber) == 0
	})
}
