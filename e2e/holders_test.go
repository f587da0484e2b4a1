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
	"errors"
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

// holderEntitlements are the entitlements of the tests of single engines.
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

// prepareEngines creates the roles that holderEntitlements need.
func (l *lab) prepareEngines(t testing.TB) {
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

// testPgpass lets psql read the password from a password file, and the user too from a
// service file.
func testPgpass(t *testing.T, l *lab) {
	line, errs, code := l.cli(l.cliAgent, "request", "orders-db-ro", "-o", "pgpass")
	f := strings.Split(strings.TrimSpace(line), ":")
	if code != 0 || len(f) != 5 || !strings.HasPrefix(f[3], "v-") {
		t.Fatalf("-o pgpass: %d %s, %d fields", code, errs, len(f))
	}
	file := filepath.Join(t.TempDir(), "pgpass")
	if err := os.WriteFile(file, []byte(line), 0o600); err != nil { // psql ignores a file that others may read
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(l.postgres.Bin(), "psql"), "--no-psqlrc", "--no-password", "-tA", "-h", "127.0.0.1", "-p", fmt.Sprint(l.postgres.Port),
		"-U", f[3], "-d", "postgres", "-c", "SELECT id FROM orders")
	cmd.Env = append(os.Environ(), "PGPASSFILE="+file, "PGSSLMODE=disable")
	if out, err := cmd.CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != "4711" {
		t.Errorf("psql with its password file: %v %s", err, out)
	}
	section, errs, code := l.cli(l.cliAgent, "request", "orders-db-ro", "-o", "pgservice")
	file = filepath.Join(t.TempDir(), "service.conf")
	if err := os.WriteFile(file, []byte(section), 0o600); err != nil || code != 0 {
		t.Fatalf("-o pgservice: %d %s %v", code, errs, err)
	}
	cmd = exec.Command(filepath.Join(l.postgres.Bin(), "psql"), "--no-psqlrc", "--no-password", "-tA", "-h", "127.0.0.1", "-p", fmt.Sprint(l.postgres.Port),
		"-d", "postgres", "-c", "SELECT id FROM orders")
	cmd.Env = append(os.Environ(), "PGSERVICEFILE="+file, "PGSERVICE=orders-db-ro", "PGSSLMODE=disable")
	if out, err := cmd.CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != "4711" {
		t.Errorf("psql with its service file: %v %s", err, out)
	}
	l.endAll(t)
}

// testVaultToken passes a Vault token to curl in a file of a header, and to Vault's own
// tools by a token helper, which they start as here. When curl exits, the token is revoked.
func testVaultToken(t *testing.T, l *lab) {
	file := filepath.Join(t.TempDir(), "token")
	script := fmt.Sprintf(`helper=$(sed -n 's/^token_helper = "\(.*\)"$/\1/p' "$VAULT_CONFIG_PATH") && sh -c "$helper get" > %s && test -z "$VAULT_TOKEN" &&
		curl -sS --fail --cacert %s -H @"$BROKER_HEADER_FILE" %s/v1/kv/data/shop`, file, l.vault.caFile(), l.vault.address())
	out, errs, code := l.cli(l.cliAgent, "exec", "kv-token", "--scope", "kv:read", "--", "sh", "-c", script)
	if code != 0 || !strings.Contains(out, `"color":"green"`) {
		t.Errorf("curl: %d %q %s", code, out, errs)
	}
	token, err := os.ReadFile(file)
	if err != nil || len(token) == 0 {
		t.Fatalf("the token: %v", err)
	}
	l.vault.refuses(t, string(token), "GET", "kv/data/shop", nil, http.StatusForbidden)
}

// testTokenOfLease looks up the Vault token of a lease, as an operator of Vault
// would to find out whose it is.
func testTokenOfLease(t *testing.T, l *lab) {
	c := l.issue(t, orders)
	lease, err := l.agent.Lease(t.Context(), c.Lease)
	if err != nil {
		t.Fatal(err)
	}
	token := l.tokenOf(t, c.Lease)
	if token == nil {
		t.Fatal("no token of Vault names the lease")
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
		t.Errorf("the token is valid until %s at most, its lease until %s", ends, lease.ExpiresAt)
	}
	l.endAll(t)
	// Vault drops the users of a token before it deletes the token.
	eventually(t, "the end of the lease's token", 30*time.Second, func() error {
		if l.tokenOf(t, c.Lease) != nil {
			return errors.New("Vault still finds it")
		}
		return nil
	})
}

// tokenOf returns Vault's data about the token of a lease, which it finds by the
// token's metadata, or nil.
func (l *lab) tokenOf(t testing.TB, lease string) fields {
	t.Helper()
	keys, ok := l.vault.must(t, "LIST", "auth/token/accessors", nil).Data["keys"].([]any)
	if !ok || len(keys) == 0 {
		t.Fatal("Vault lists no tokens, not even the root token")
	}
	for _, accessor := range keys {
		answer, err := l.vault.call(l.vault.root, "POST", "auth/token/lookup-accessor", fields{"accessor": accessor})
		var refusal *vaultRefusal
		if errors.As(err, &refusal) {
			continue // the token has ended in the meantime
		}
		if err != nil {
			t.Fatal(err)
		}
		if meta, _ := answer.Data["meta"].(fields); meta["lease"] == lease {
			return answer.Data
		}
	}
	return nil
}

// testWrapped issues a wrapped credential: only the holder sees it, who unwraps it
// at Vault, once.
func testWrapped(t *testing.T, l *lab) {
	l.endAll(t)
	c := l.issue(t, api.Ask{Entitlement: "orders-wrapped", TTL: 2 * brief})
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
		t.Errorf("returned; Vault does not report the end: %+v, %v", lease, err)
	}
	eventually(t, "the end of the wrapped credential", time.Minute, func() error { return l.rejected(inner) })
	l.waitStatus(t, c.Lease, "revoked", "at_expiry")
}

// testStaticRole issues the password of a permanent user. Only the next rotation
// ends it.
func testStaticRole(t *testing.T, l *lab) {
	c := l.issue(t, api.Ask{Entitlement: "orders-static"})
	if c.Type != "userpass" || c.Secret["username"] != "report" || c.Revocation != "at_rotation" {
		t.Fatalf("the credential is %s of %s, %s", c.Type, c.Secret["username"], c.Revocation)
	}
	lease, err := l.agent.Revoke(t.Context(), c.Lease, "done")
	if err != nil || lease.Status != api.LeaseRevoked || lease.Revocation != "at_rotation" {
		t.Errorf("returned: %+v, %v", lease, err)
	}
	if err := l.works(c); err != nil {
		t.Errorf("the credential ends at_rotation, so it has to work: %v", err)
	}
	l.vault.must(t, "POST", "database/rotate-role/report", nil)
	if err := l.rejected(c); err != nil {
		t.Error(err)
	}
}

// newCSR returns a certificate request for the first name as common name and the
// others as DNS names.
func newCSR(t testing.TB, key crypto.Signer, names ...string) string {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: names[0]}, DNSNames: names[1:]}, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

// testSigned has Vault sign a key that never leaves its holder. The entitlement
// determines the names, regardless of the certificate request.
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
	// A role that trusts the request signs names of the holder's choice. The broker
	// does not issue that certificate.
	foreign := newCSR(t, key, "svc.acme.test", "svc.acme.test", "bank.other.test")
	_, _, err = l.agent.AskAndCollect(t.Context(), api.Ask{Entitlement: "csr-trusted", Parameters: map[string]string{"name": "svc", "csr": foreign}, TTL: api.Duration(time.Minute)})
	if err := wantRefusal(err, api.IssuerRefused, http.StatusBadGateway); err != nil {
		t.Errorf("a request with a foreign name: %v", err)
	}
	own := newCSR(t, key, "svc.acme.test", "svc.acme.test")
	if _, _, err = l.agent.AskAndCollect(t.Context(), api.Ask{Entitlement: "csr-trusted", Parameters: map[string]string{"name": "svc", "csr": own}, TTL: api.Duration(time.Minute)}); err != nil {
		t.Errorf("a request with the requested name: %v", err)
	}
	_, _, err = l.agent.AskAndCollect(t.Context(), api.Ask{Entitlement: "csr-trusted", Parameters: map[string]string{"name": "svc", "csr": "no request"}})
	if err := wantRefusal(err, api.InvalidParameter, http.StatusBadRequest); err != nil {
		t.Error(err)
	}
}

// signs requests a certificate for a key and connects to a TLS server with it.
func (l *lab) signs(t testing.TB, key crypto.Signer) {
	t.Helper()
	csr := newCSR(t, key, "bank.other.test", "bank.other.test")
	c := l.issue(t, api.Ask{Entitlement: "csr-certificate", Parameters: map[string]string{"name": "svc", "csr": csr}})
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
		t.Errorf("the certificate names %s, %v and %v", leaf.Subject.CommonName, leaf.DNSNames, leaf.URIs)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(c.Secret["chain"]))
	if err := mutualTLS(tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key}, roots); err != nil {
		t.Errorf("a TLS server that trusts Vault's authority: %v", err)
	}
}

// testLeasedCertificate returns a certificate that Vault has a lease for. It is on
// Vault's revocation list when the broker reports that the lease ended.
func testLeasedCertificate(t *testing.T, l *lab) {
	c := l.issue(t, api.Ask{Entitlement: "leased-certificate", TTL: api.Duration(10 * time.Minute)})
	if c.Type != "certificate" || c.Revocation != "immediate" {
		t.Fatalf("the credential is %s, %s", c.Type, c.Revocation)
	}
	l.returnPutsOnCRL(t, c, "immediate")
}

// testListedCertificate returns a certificate that Vault has no lease for. It is
// on Vault's revocation list, but servers that ignore the list accept it, so the
// broker reports that it ends by expiring.
func testListedCertificate(t *testing.T, l *lab) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := l.issue(t, api.Ask{Entitlement: "csr-certificate", Parameters: map[string]string{"name": "svc", "csr": newCSR(t, key, "svc.acme.test")}})
	l.returnPutsOnCRL(t, c, "at_expiry")
}

// returnPutsOnCRL returns a certificate and checks that it is on Vault's
// revocation list afterwards and not before.
func (l *lab) returnPutsOnCRL(t testing.TB, c *api.Credential, revocation string) {
	t.Helper()
	block, _ := pem.Decode([]byte(c.Secret["certificate"]))
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if l.vault.onCRL(t, leaf) {
		t.Fatal("the new certificate is on the revocation list")
	}
	lease, err := l.agent.Revoke(t.Context(), c.Lease, "done")
	if err != nil || lease.Status != api.LeaseRevoked || lease.Revocation != revocation {
		t.Errorf("returned: %+v, %v", lease, err)
	}
	if !l.vault.onCRL(t, leaf) {
		t.Error("the returned certificate is not on the revocation list")
	}
}

// onCRL reports whether a certificate is on the PKI engine's revocation list.
func (v *vault) onCRL(t testing.TB, leaf *x509.Certificate) bool {
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
