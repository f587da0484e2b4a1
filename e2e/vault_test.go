package e2e

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// A vault is a real Vault with its storage and its audit log in files, so that
// tests can kill it and start it again. It has the engines aws, database
// (PostgreSQL), pki, ssh and kv and the auth methods approle, cert and jwt, but
// nothing is mounted except token.
type vault struct {
	owner  testing.TB // the server ends with it
	bin    string
	dir    string
	port   int
	root   string // the root token
	key    string // the unseal key
	client *http.Client
	clock  clock
	server *process
}

// fields is a JSON object.
type fields = map[string]any

// startVault starts an empty Vault, unsealed and with its audit log enabled.
func startVault(t testing.TB) *vault {
	t.Helper()
	v := &vault{owner: t, bin: filepath.Join(built(t, "vault"), "vault"), dir: t.TempDir(), port: freePort(t)}
	ca := loopbackTLS(t, v.caFile(), v.path("cert.pem"), v.path("key.pem"))
	v.client = &http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca}, ForceAttemptHTTP2: true}}
	v.start(t)
	text, err := os.ReadFile(v.path("keys.json"))
	if err != nil {
		t.Fatal(err)
	}
	var keys struct{ Unseal, Root string }
	if err := json.Unmarshal(text, &keys); err != nil {
		t.Fatal(err)
	}
	v.key, v.root = keys.Unseal, keys.Root
	v.must(t, "POST", "sys/audit/file", fields{"type": "file", "options": fields{"file_path": v.auditFile()}})
	return v
}

func (v *vault) path(name string) string { return filepath.Join(v.dir, name) }
func (v *vault) address() string         { return fmt.Sprintf("https://127.0.0.1:%d", v.port) }
func (v *vault) caFile() string          { return v.path("ca.pem") }
func (v *vault) auditFile() string       { return v.path("audit.log") }

// start starts the server, or starts it again with the same data and port. The
// server unseals itself.
func (v *vault) start(t testing.TB) {
	t.Helper()
	var err error
	if v.server, err = startIn(v.clock.environment(), v.owner, "vault", v.bin, "-dir", v.dir, "-listen", fmt.Sprintf("127.0.0.1:%d", v.port)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the start of Vault", time.Minute, func() error {
		if v.server.ended() {
			t.Fatalf("Vault did not start:\n%s", v.server.out)
		}
		_, err := v.call("", "GET", "sys/health", nil)
		return err
	})
}

// stop shuts the server down; kill ends it as a crash would.
func (v *vault) stop() { v.server.stop() }
func (v *vault) kill() { v.server.kill() }

// seal makes the running Vault refuse every call until unseal.
func (v *vault) seal(t testing.TB) {
	t.Helper()
	v.must(t, "POST", "sys/seal", nil)
}

func (v *vault) unseal(t testing.TB) {
	t.Helper()
	v.must(t, "POST", "sys/unseal", fields{"key": v.key})
	eventually(t, "the unsealing of Vault", time.Minute, func() error {
		_, err := v.call("", "GET", "sys/health", nil)
		return err
	})
}

// A vaultAnswer is the body of a successful response.
type vaultAnswer struct {
	LeaseID       string `json:"lease_id"`
	LeaseDuration int    `json:"lease_duration"` // seconds
	Data          fields `json:"data"`
	Auth          struct {
		ClientToken   string   `json:"client_token"`
		Accessor      string   `json:"accessor"`
		Policies      []string `json:"policies"`
		LeaseDuration int      `json:"lease_duration"` // seconds
		Orphan        bool     `json:"orphan"`
	} `json:"auth"`
}

// A vaultRefusal is a response with an error status.
type vaultRefusal struct {
	status int
	errors []string
}

func (r *vaultRefusal) Error() string {
	return fmt.Sprintf("%d %s", r.status, strings.Join(r.errors, "; "))
}

// call makes a call with a token, or without one if token is empty.
func (v *vault) call(token, method, path string, body fields) (*vaultAnswer, error) {
	var text []byte
	if body != nil {
		var err error
		if text, err = json.Marshal(body); err != nil {
			return nil, err
		}
	}
	r, err := http.NewRequest(method, v.address()+"/v1/"+path, bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	if token != "" {
		r.Header.Set("X-Vault-Token", token)
	}
	resp, err := v.client.Do(r)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if text, err = io.ReadAll(resp.Body); err != nil {
		return nil, err
	}
	if resp.StatusCode >= 400 {
		var answer struct{ Errors []string }
		if err := json.Unmarshal(text, &answer); err != nil && path != "sys/health" { // whose errors are no JSON
			return nil, fmt.Errorf("%s %s: %d: %w\n%s", method, path, resp.StatusCode, err, text)
		}
		return nil, fmt.Errorf("%s %s: %w", method, path, &vaultRefusal{resp.StatusCode, answer.Errors})
	}
	answer := &vaultAnswer{}
	if len(bytes.TrimSpace(text)) == 0 {
		return answer, nil
	}
	if err := json.Unmarshal(text, answer); err != nil {
		return nil, fmt.Errorf("reading the answer to %s %s: %w\n%s", method, path, err, text)
	}
	return answer, nil
}

// must makes a call with the root token.
func (v *vault) must(t testing.TB, method, path string, body fields) *vaultAnswer {
	t.Helper()
	answer, err := v.call(v.root, method, path, body)
	if err != nil {
		t.Fatalf("vault: %v", err)
	}
	return answer
}

// as makes a call with another token.
func (v *vault) as(t testing.TB, token, method, path string, body fields) *vaultAnswer {
	t.Helper()
	answer, err := v.call(token, method, path, body)
	if err != nil {
		t.Fatalf("vault: %v", err)
	}
	return answer
}

// refuses fails the test unless Vault refuses the call with that status.
func (v *vault) refuses(t testing.TB, token, method, path string, body fields, status int) {
	t.Helper()
	answer, err := v.call(token, method, path, body)
	var refusal *vaultRefusal
	if !errors.As(err, &refusal) || refusal.status != status {
		t.Errorf("vault: %s %s: %+v, %v; want %d", method, path, answer, err, status)
	}
}

// leases returns the IDs of Vault's leases below a path.
func (v *vault) leases(t testing.TB, path string) (ids []string) {
	t.Helper()
	answer, err := v.call(v.root, "LIST", "sys/leases/lookup/"+path, nil)
	var refusal *vaultRefusal
	if errors.As(err, &refusal) && refusal.status == http.StatusNotFound {
		return nil
	}
	if err != nil {
		t.Fatalf("vault: %v", err)
	}
	keys, ok := answer.Data["keys"].([]any)
	if !ok {
		t.Fatalf("vault: no keys in %v", answer.Data)
	}
	for _, key := range keys {
		ids = append(ids, path+"/"+key.(string))
	}
	return ids
}

// mount mounts an engine at the path of its name.
func (v *vault) mount(t testing.TB, engine string, options fields) {
	t.Helper()
	v.must(t, "POST", "sys/mounts/"+engine, fields{"type": engine, "options": options})
}

// policy writes a policy. The rules are pairs of a path and its capabilities,
// separated by commas.
func (v *vault) policy(t testing.TB, name string, rules ...string) {
	t.Helper()
	var text strings.Builder
	for rule := range slices.Chunk(rules, 2) {
		capabilities, err := json.Marshal(strings.Split(rule[1], ","))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&text, "path %q { capabilities = %s }\n", rule[0], capabilities)
	}
	v.policyText(t, name, text.String())
}

func (v *vault) policyText(t testing.TB, name, text string) {
	t.Helper()
	v.must(t, "POST", "sys/policies/acl/"+name, fields{"policy": text})
}

// database creates a role of the database engine, whose users have the grant,
// such as "SELECT ON orders". The first call mounts and configures the engine.
func (v *vault) database(t testing.TB, p *postgres, role, grant string) {
	t.Helper()
	if _, err := v.call(v.root, "GET", "database/config/postgres", nil); err != nil {
		v.mount(t, "database", nil)
		v.must(t, "POST", "database/config/postgres", fields{
			"plugin_name": "postgresql-database-plugin", "allowed_roles": "*",
			"connection_url": p.url("{{username}}", "{{password}}"), "username": postgresAdmin, "password": postgresPassword,
		})
	}
	v.must(t, "POST", "database/roles/"+role, fields{
		"db_name": "postgres", "default_ttl": "1h", "max_ttl": "24h",
		"creation_statements": []string{`CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'; GRANT ` + grant + ` TO "{{name}}"`},
		"revocation_statements": []string{`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{{name}}'`,
			`DROP OWNED BY "{{name}}"`, `DROP ROLE IF EXISTS "{{name}}"`},
	})
}

// pki mounts the PKI engine with a root authority and a role for names below
// acme.test. Certificates are backdated, so that peers whose clock is behind
// accept them.
func (v *vault) pki(t testing.TB, role string) {
	t.Helper()
	v.mount(t, "pki", nil)
	v.must(t, "POST", "sys/mounts/pki/tune", fields{"max_lease_ttl": "87600h"})
	v.must(t, "POST", "pki/root/generate/internal", fields{"common_name": "acme.test", "ttl": "87600h", "key_type": "ec", "not_before_duration": "1h"})
	v.must(t, "POST", "pki/roles/"+role, fields{"allowed_domains": "acme.test", "allow_subdomains": true, "key_type": "ec", "max_ttl": "24h", "not_before_duration": "2m"})
}

// ssh mounts the SSH engine as an authority, with a role that signs keys for
// users, separated by commas. It returns the authority's public key.
func (v *vault) ssh(t testing.TB, role, users string) string {
	t.Helper()
	v.mount(t, "ssh", nil)
	made := v.must(t, "POST", "ssh/config/ca", fields{"generate_signing_key": true, "key_type": "ed25519"})
	v.must(t, "POST", "ssh/roles/"+role, fields{
		"key_type": "ca", "allow_user_certificates": true, "allowed_users": users, "default_extensions": fields{"permit-pty": ""}, "ttl": "5m", "max_ttl": "1h", "not_before_duration": "2m",
	})
	return made.Data["public_key"].(string)
}

// tokenRole creates a role as docs/vault.md does, for other policies. Its tokens
// have no parent, so they outlive the token that created them and are revoked by
// their accessors.
func (v *vault) tokenRole(t testing.TB, role string, policies ...string) {
	t.Helper()
	written := docWrite(t, "auth/token/roles/broker-leases")
	written["allowed_policies"] = policies
	v.must(t, "POST", "auth/token/roles/"+role, written)
}

// loopbackTLS creates an authority and a certificate for servers on loopback,
// writes both and the key, and returns the authority as a pool. names are further names of
// the servers.
func loopbackTLS(t testing.TB, caFile, certFile, keyFile string, names ...string) *x509.CertPool {
	t.Helper()
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "the tests' authority"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(24 * time.Hour),
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: append([]string{"localhost"}, names...),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	for _, f := range []struct {
		path, kind string
		der        []byte
	}{{caFile, "CERTIFICATE", caDER}, {certFile, "CERTIFICATE", leafDER}, {keyFile, "PRIVATE KEY", keyDER}} {
		text := pem.EncodeToMemory(&pem.Block{Type: f.kind, Bytes: f.der})
		if err := os.WriteFile(f.path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if f.path == caFile {
			pool.AppendCertsFromPEM(text)
		}
	}
	return pool
}

// TestVault checks the assumptions of the other tests, without a broker.
func TestVault(t *testing.T) {
	t.Parallel() // it mostly waits
	v, p := startVault(t), startPostgres(t)
	t.Run("Database", func(t *testing.T) { testVaultDatabase(t, v, p) })
	t.Run("PKI", func(t *testing.T) { testVaultPKI(t, v) })
	t.Run("SSH", func(t *testing.T) { testVaultSSH(t, v) })
	t.Run("Logins", func(t *testing.T) { testVaultLogins(t, v) })
	t.Run("TokenRole", func(t *testing.T) { testVaultTokenRole(t, v, p) })
	t.Run("Restart", func(t *testing.T) { testVaultRestart(t, v, p) })
}

func testVaultDatabase(t *testing.T, v *vault, p *postgres) {
	p.must(t, "CREATE TABLE orders (id int PRIMARY KEY); INSERT INTO orders VALUES (4711)")
	v.database(t, p, "reader", "SELECT ON orders")
	made := v.must(t, "GET", "database/creds/reader", nil)
	user, password := made.Data["username"].(string), made.Data["password"].(string)
	if out, err := p.psql(user, password, "SELECT id FROM orders"); err != nil || out != "4711" {
		t.Errorf("with the credential: %q, %v", out, err)
	}
	if out, err := p.psql(user, password, "DELETE FROM orders"); err == nil || !strings.Contains(err.Error(), "permission denied for table orders") {
		t.Errorf("what the role does not grant: %q, %v", out, err)
	}
	v.must(t, "POST", "sys/leases/revoke", fields{"lease_id": made.LeaseID, "sync": true})
	if out, err := p.psql(user, password, "SELECT id FROM orders"); err == nil || !strings.Contains(err.Error(), "password authentication failed") {
		t.Errorf("after the revocation: %q, %v", out, err)
	}
	if n := p.must(t, "SELECT count(*) FROM pg_roles WHERE rolname = '"+user+"'"); n != "0" {
		t.Errorf("after the revocation there are %s roles %s", n, user)
	}
}

func testVaultPKI(t *testing.T, v *vault) {
	v.pki(t, "web")
	made := v.must(t, "POST", "pki/issue/web", fields{"common_name": "shop.acme.test", "ttl": "1h"})
	pair, err := tls.X509KeyPair([]byte(made.Data["certificate"].(string)), []byte(made.Data["private_key"].(string)))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(made.Data["issuing_ca"].(string)))
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "shop.acme.test"}); err != nil {
		t.Error(err)
	}
	if left := time.Until(pair.Leaf.NotAfter); left > time.Hour || left < 50*time.Minute {
		t.Errorf("the certificate is valid for %s", left)
	}
	v.refuses(t, v.root, "POST", "pki/issue/web", fields{"common_name": "shop.other.test"}, http.StatusBadRequest)
}

func testVaultSSH(t *testing.T, v *vault) {
	ca := v.ssh(t, "admins", "deploy")
	key := filepath.Join(t.TempDir(), "id")
	keygen := func(args ...string) string {
		t.Helper()
		out, err := exec.Command("ssh-keygen", args...).CombinedOutput()
		if err != nil {
			t.Fatalf("ssh-keygen: %v\n%s", err, out)
		}
		return string(out)
	}
	keygen("-q", "-t", "ed25519", "-N", "", "-f", key)
	public, err := os.ReadFile(key + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	made := v.must(t, "POST", "ssh/sign/admins", fields{"public_key": string(public), "valid_principals": "deploy"})
	for path, text := range map[string]string{key + "-cert.pub": made.Data["signed_key"].(string), key + "-ca.pub": ca} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	shown := keygen("-L", "-f", key+"-cert.pub")
	authority := strings.Fields(keygen("-l", "-f", key+"-ca.pub"))[1]
	for _, want := range []string{"user certificate", "Signing CA: ED25519 " + authority, "deploy", "permit-pty"} {
		if !strings.Contains(shown, want) {
			t.Errorf("the certificate lacks %q:\n%s", want, shown)
		}
	}
	v.refuses(t, v.root, "POST", "ssh/sign/admins", fields{"public_key": string(public), "valid_principals": "root"}, http.StatusBadRequest)
}

// testVaultLogins logs in by each auth method and reads the kv secrets that the
// policy allows.
func testVaultLogins(t *testing.T, v *vault) {
	v.mount(t, "kv", fields{"version": "2"})
	v.must(t, "POST", "kv/data/shop", fields{"data": fields{"color": "green"}})
	v.policy(t, "shop", "kv/data/shop", "read")
	for _, login := range []string{"approle", "cert", "jwt"} {
		v.must(t, "POST", "sys/auth/"+login, fields{"type": login})
	}
	for name, token := range map[string]string{"approle": approleLogin(t, v), "cert": certLogin(t, v), "jwt": jwtLogin(t, v)} {
		if data, _ := v.as(t, token, "GET", "kv/data/shop", nil).Data["data"].(fields); data["color"] != "green" {
			t.Errorf("by %s, the shop reads %v", name, data)
		}
		v.refuses(t, token, "GET", "kv/data/bank", nil, http.StatusForbidden)
	}
}

func approleLogin(t testing.TB, v *vault) (token string) {
	t.Helper()
	v.must(t, "POST", "auth/approle/role/shop", fields{"token_policies": "shop", "token_ttl": "1h"})
	id := v.must(t, "GET", "auth/approle/role/shop/role-id", nil).Data["role_id"]
	secret := v.must(t, "POST", "auth/approle/role/shop/secret-id", nil).Data["secret_id"]
	v.refuses(t, "", "POST", "auth/approle/login", fields{"role_id": id, "secret_id": "guessed"}, http.StatusBadRequest)
	return v.as(t, "", "POST", "auth/approle/login", fields{"role_id": id, "secret_id": secret}).Auth.ClientToken
}

func certLogin(t testing.TB, v *vault) (token string) {
	t.Helper()
	made := v.must(t, "POST", "pki/issue/web", fields{"common_name": "shop.acme.test"}).Data
	pair, err := tls.X509KeyPair([]byte(made["certificate"].(string)), []byte(made["private_key"].(string)))
	if err != nil {
		t.Fatal(err)
	}
	v.must(t, "POST", "auth/cert/certs/shop", fields{"certificate": made["issuing_ca"], "allowed_dns_sans": "shop.acme.test", "token_policies": "shop"})
	v.refuses(t, "", "POST", "auth/cert/login", nil, http.StatusBadRequest)
	config := v.client.Transport.(*http.Transport).TLSClientConfig.Clone()
	config.Certificates = []tls.Certificate{pair}
	shop := *v
	shop.client = client(t, config, true)
	return shop.as(t, "", "POST", "auth/cert/login", nil).Auth.ClientToken
}

func jwtLogin(t testing.TB, v *vault) (token string) {
	t.Helper()
	provider, sign := startTestProvider(t)
	ca, err := os.ReadFile(provider.caFile)
	if err != nil {
		t.Fatal(err)
	}
	url := strings.TrimSuffix(provider.configURL, "/.well-known/openid-configuration")
	v.must(t, "POST", "auth/jwt/config", fields{"oidc_discovery_url": url, "oidc_discovery_ca_pem": string(ca)})
	v.must(t, "POST", "auth/jwt/role/shop", fields{"role_type": "jwt", "bound_audiences": "vault", "user_claim": "sub",
		"bound_subject": "spiffe://acme.test/triage", "token_policies": "shop"})
	v.refuses(t, "", "POST", "auth/jwt/login", fields{"role": "shop", "jwt": sign("somebody else")}, http.StatusBadRequest)
	return v.as(t, "", "POST", "auth/jwt/login", fields{"role": "shop", "jwt": sign("vault")}).Auth.ClientToken
}

// testVaultTokenRole acts like a broker: with a token of few permissions it creates
// tokens of a role and revokes them by their accessors.
func testVaultTokenRole(t *testing.T, v *vault, p *postgres) {
	v.policy(t, "orders", "database/creds/reader", "read")
	v.tokenRole(t, "leases", "orders")
	v.policy(t, "broker", "auth/token/create/leases", "create,update", "auth/token/revoke-accessor", "create,update")
	broker := v.must(t, "POST", "auth/token/create", fields{"policies": []string{"broker"}, "no_parent": true}).Auth.ClientToken

	lease := v.as(t, broker, "POST", "auth/token/create/leases", fields{"policies": []string{"orders"}, "ttl": "10m", "explicit_max_ttl": "10m"})
	if !lease.Auth.Orphan || !slices.Equal(lease.Auth.Policies, []string{"orders"}) || lease.Auth.LeaseDuration != 600 {
		t.Errorf("the token of the lease: %+v", lease.Auth)
	}
	made := v.as(t, lease.Auth.ClientToken, "GET", "database/creds/reader", nil)
	user, password := made.Data["username"].(string), made.Data["password"].(string)
	if out, err := p.psql(user, password, "SELECT id FROM orders"); err != nil || out != "4711" {
		t.Errorf("with the credential: %q, %v", out, err)
	}
	v.refuses(t, broker, "GET", "database/creds/reader", nil, http.StatusForbidden)
	v.refuses(t, broker, "POST", "auth/token/create/leases", fields{"policies": []string{"root"}}, http.StatusBadRequest)

	v.as(t, broker, "POST", "auth/token/revoke-accessor", fields{"accessor": lease.Auth.Accessor})
	v.refuses(t, lease.Auth.ClientToken, "GET", "auth/token/lookup-self", nil, http.StatusForbidden)
	eventually(t, "the end of what the token made", time.Minute, func() error {
		if out, err := p.psql(user, password, "SELECT 1"); err == nil {
			return fmt.Errorf("the credential still works: %q", out)
		}
		return nil
	})
}

func testVaultRestart(t *testing.T, v *vault, p *postgres) {
	made := v.must(t, "GET", "database/creds/reader", nil)
	token := v.must(t, "POST", "auth/token/create", fields{"policies": []string{"shop"}}).Auth.ClientToken
	keys, err := os.Stat(v.path("keys.json"))
	if err != nil || keys.Mode().Perm() != 0o600 {
		t.Errorf("the keys: %v, %v", keys, err)
	}
	for _, c := range []struct {
		name    string
		restart func()
	}{
		{"stop", func() { v.stop(); v.start(t) }},
		{"kill", func() { v.kill(); v.start(t) }},
		{"seal", func() {
			v.seal(t)
			v.refuses(t, token, "GET", "kv/data/shop", nil, http.StatusServiceUnavailable)
			v.unseal(t)
		}},
	} {
		c.restart()
		if data, _ := v.as(t, token, "GET", "kv/data/shop", nil).Data["data"].(fields); data["color"] != "green" {
			t.Errorf("after a %s, the shop reads %v", c.name, data)
		}
	}
	user, password := made.Data["username"].(string), made.Data["password"].(string)
	if out, err := p.psql(user, password, "SELECT id FROM orders"); err != nil || out != "4711" {
		t.Errorf("a credential from before the restarts: %q, %v", out, err)
	}
	v.must(t, "POST", "sys/leases/revoke", fields{"lease_id": made.LeaseID, "sync": true})
	if out, err := p.psql(user, password, "SELECT 1"); err == nil {
		t.Errorf("a lease from before the restarts was revoked, and its credential reads %q", out)
	}
	text, err := os.ReadFile(v.auditFile())
	if err != nil || !bytes.Contains(text, []byte(`"path":"database/creds/reader"`)) {
		t.Errorf("the audit log does not mention the credentials: %v", err)
	}
	if bytes.Contains(text, []byte(token)) {
		t.Error("a token is in the audit log")
	}
}
