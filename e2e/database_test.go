package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/e2e/cluster"
)

// TestBrokersRoleOnPostgres runs a broker as its own role, with a password in the URL, and
// tries to change the log as that role.
func TestBrokersRoleOnPostgres(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	w, err := cluster.Start(ctx, cluster.Options{Binary: brokerBinary(t), Postgres: &cluster.PostgresOptions{}, Standby: true, PgBouncer: true, StoreURL: func(w *cluster.World, _ int) string {
		return w.Postgres.DSN(cluster.Role, cluster.Database)
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	}()
	b := w.Replicas[0]
	c := w.Client(b, "spiffe://acme.test/service/report")
	if got, _, err := c.AskAndCollect(ctx, api.Ask{Entitlement: "tickets-api", Scopes: []string{"tickets:read"}}); err != nil || got.Secret["token"] == "" {
		t.Fatal(err)
	}
	for _, statement := range []string{
		"UPDATE records SET leaf = ''", "UPDATE records SET openings = NULL", "DELETE FROM records", "TRUNCATE records", "DROP TRIGGER records_final ON records", "ALTER TABLE records DISABLE TRIGGER ALL",
		"ALTER TABLE records OWNER TO broker", "SET ROLE " + cluster.Owner, "SET ROLE " + cluster.Admin, "SET session_replication_role = replica", "CREATE TABLE shadow (id int)",
	} {
		out, err := w.Postgres.Query(ctx, cluster.Role, cluster.Password, cluster.Database, statement)
		if err == nil || !strings.Contains(err.Error(), "permission denied") && !strings.Contains(err.Error(), "must be owner") {
			t.Errorf("%s: got %q, %v, want a refusal", statement, out, err)
		}
	}
	for _, statement := range []string{"UPDATE records SET leaf = ''", "DELETE FROM records", "TRUNCATE records", "SET session_replication_role = replica; DELETE FROM records"} {
		if out, err := w.Postgres.Exec(ctx, cluster.Database, statement); err == nil || !strings.Contains(err.Error(), "are never changed or deleted") {
			t.Errorf("%s as a superuser: got %q, %v, want a refusal", statement, out, err)
		}
	}
	checkDatabaseCommands(t, w)
	passwordIsNowhere(t, w)
}

// checkDatabaseCommands looks at the database through its server, its pooler and its standby.
func checkDatabaseCommands(t *testing.T, w *cluster.World) {
	t.Helper()
	b := w.Replicas[0]
	for name, address := range map[string]string{"the server": w.Postgres.Address(), "the pooler": w.Bouncer.Address()} {
		out, err := commandWith(t, b.Binary, cluster.DSN(cluster.Role, cluster.Database, address), "store", "migrate", "--store", "env:STORE_URL")
		if err == nil || !strings.Contains(out, "does not own the tables") {
			t.Errorf("migrating through %s as the broker's role: %s", name, out)
		}
		out, err = commandWith(t, b.Binary, cluster.DSN(cluster.Owner, cluster.Database, address), "store", "migrate", "--store", "env:STORE_URL")
		if err != nil || !strings.Contains(out, "already") {
			t.Errorf("migrating through %s as the owner: %s", name, out)
		}
		out, err = commandWith(t, b.Binary, cluster.DSN(cluster.Role, cluster.Database, address), "audit", "verify", "env:STORE_URL")
		if err != nil || !strings.Contains(out, "all checks passed") {
			t.Errorf("verifying the log through %s: %s", name, out)
		}
		if strings.Contains(out, cluster.Password) {
			t.Errorf("the password is in %s", out)
		}
	}
	file, err := os.ReadFile(b.ConfigFile())
	if err != nil {
		t.Fatal(err)
	}
	for url, says := range map[string]string{
		w.Postgres.DSN(cluster.Role, cluster.Database):                                             "role broker, schema ",
		w.Postgres.DSN(cluster.Owner, cluster.Database):                                            "it owns the tables",
		w.Postgres.DSN(cluster.Admin, cluster.Database):                                            "it is a superuser",
		w.Postgres.DSN(cluster.Role, "postgres"):                                                   "the database is empty, and the role",
		w.Postgres.DSN(cluster.Role, "none"):                                                       "the database does not exist",
		w.Standby.DSN(cluster.Role, cluster.Database):                                              "is a standby, which is read-only",
		cluster.DSN(cluster.Role, cluster.Database, w.Standby.Address(), w.Postgres.Address()):     "role broker, schema ",
		cluster.DSN(cluster.Role, cluster.Database, w.Bouncer.Address()):                           "through a connection pooler",
		strings.Replace(w.Postgres.DSN(cluster.Role, cluster.Database), cluster.Password, "no", 1): "refuses the broker's role, password or certificate",
	} {
		text := strings.Replace(string(file), "store: "+w.Postgres.DSN(cluster.Role, cluster.Database), "store: "+url, 1)
		path := filepath.Join(w.Dir, "checked.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		out, _ := commandWith(t, b.Binary, "", "check", path)
		if !strings.Contains(out, says) || strings.Contains(out, cluster.Password) {
			t.Errorf("checking %s: got %s, want %s", strings.ReplaceAll(url, cluster.Password, "…"), out, says)
		}
	}
}

// passwordIsNowhere looks for the password of the operator's file where a broker shows things.
func passwordIsNowhere(t *testing.T, w *cluster.World) {
	t.Helper()
	b := w.Replicas[0]
	shown := map[string]string{"the log": b.Output()}
	commandLine, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", b.Process().Cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	shown["the command line"] = string(commandLine)
	for _, path := range []string{"/readyz", "/metrics"} {
		_, text, err := b.Probe(t.Context(), path)
		if err != nil || len(text) == 0 {
			t.Fatal(path, err)
		}
		shown[path] = string(text)
	}
	for where, text := range shown {
		if strings.Contains(text, cluster.Password) {
			t.Errorf("the password is in %s", where)
		}
	}
	if !strings.Contains(shown["the log"], "postgres://broker:xxxxx@127.0.0.1") {
		t.Errorf("the log does not name the store: %s", shown["the log"])
	}
}

// commandWith runs a command with a database's URL in the environment, and returns all of
// its output.
func commandWith(t *testing.T, binary, url string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Env = append(os.Environ(), "STORE_URL="+url)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestPostgresAuthenticates connects with verified TLS, a client certificate and peer
// authentication.
func TestPostgresAuthenticates(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	dir := t.TempDir()
	p, err := cluster.NewPostgres(ctx, dir, cluster.PostgresOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop()
	ca, other := newAuthority(t), newAuthority(t)
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"ca.pem": ca.pem, "other.pem": other.pem} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ca.issue(t, filepath.Join(p.Data(), "server"), "localhost", p.Data())
	ca.issue(t, filepath.Join(dir, "client"), cluster.Owner, "")
	ca.issue(t, filepath.Join(dir, "stranger"), "stranger", "")
	if err := os.WriteFile(filepath.Join(p.Data(), "root.crt"), ca.pem, 0o644); err != nil {
		t.Fatal(err)
	}
	hba := "local all all peer\nhostssl all " + cluster.Owner + " 127.0.0.1/32 cert\nhostssl all " + cluster.Owner + " ::1/128 cert\nhost all all 127.0.0.1/32 scram-sha-256\nhost replication all 127.0.0.1/32 scram-sha-256\n"
	if err := os.WriteFile(filepath.Join(p.Data(), "pg_hba.conf"), []byte(hba), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := p.Configure("ssl = on", "ssl_cert_file = 'server.pem'", "ssl_key_file = 'server.key'", "ssl_ca_file = 'root.crt'", "listen_addresses = 'localhost'"); err != nil {
		t.Fatal(err)
	}
	if err := p.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := p.CreateDatabase(ctx, cluster.Database); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Exec(ctx, cluster.Database, fmt.Sprintf("CREATE ROLE %q LOGIN; GRANT ALL ON SCHEMA public TO %q", me.Username, me.Username)); err != nil && !strings.Contains(err.Error(), "already exists") {
		t.Fatal(err)
	}
	tls := fmt.Sprintf("postgres://%s@localhost:%d/%s?sslmode=verify-full&sslrootcert=%s/ca.pem", cluster.Owner, p.Port, cluster.Database, dir)
	socket := fmt.Sprintf("postgres:///%s?host=%s&port=%d", cluster.Database, filepath.Dir(p.Data()), p.Port)
	for _, test := range []struct{ name, url, says string }{
		{"a client certificate", tls + fmt.Sprintf("&sslcert=%[1]s/client.pem&sslkey=%[1]s/client.key", dir), "created, version"},
		{"no client certificate", tls, "refuses the broker's role, password or certificate"},
		{"another's certificate", tls + fmt.Sprintf("&sslcert=%[1]s/stranger.pem&sslkey=%[1]s/stranger.key", dir), "refuses the broker's role, password or certificate"},
		{"another authority", strings.Replace(tls, "/ca.pem", "/other.pem", 1) + fmt.Sprintf("&sslcert=%[1]s/client.pem&sslkey=%[1]s/client.key", dir), "certificate is not trusted"},
		{"another name", strings.Replace(tls, "localhost", "127.0.0.1", 1) + fmt.Sprintf("&sslcert=%[1]s/client.pem&sslkey=%[1]s/client.key", dir), "certificate is not trusted"},
		{"the system's authorities", fmt.Sprintf("postgres://%s@localhost:%d/%s?sslmode=verify-full", cluster.Owner, p.Port, cluster.Database), "certificate is not trusted"},
		{"the user of the operating system", socket, "lacks SELECT on schema_version"},
		{"another user of the operating system", socket + "&user=" + cluster.Owner, "refuses the broker's role, password or certificate"},
		{"no database there", fmt.Sprintf("postgres:///%s?host=%s&port=%d", cluster.Database, dir, p.Port), "no database listens at its address"},
	} {
		if out, _ := commandWith(t, brokerBinary(t), test.url, "store", "migrate", "--store", "env:STORE_URL"); !strings.Contains(out, test.says) {
			t.Errorf("%s: got %s, want %s", test.name, out, test.says)
		}
	}
}

// An authority signs certificates.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pem  []byte
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{key, cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

// issue writes a certificate and its key for a name. The owner of the files is that of a
// folder, unless it is empty.
func (a *authority) issue(t *testing.T, path, name, like string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err1 := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	pkcs8, err2 := x509.MarshalPKCS8PrivateKey(key)
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	for suffix, block := range map[string]*pem.Block{".pem": {Type: "CERTIFICATE", Bytes: der}, ".key": {Type: "PRIVATE KEY", Bytes: pkcs8}} {
		if err := os.WriteFile(path+suffix, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
		if like == "" || os.Getuid() != 0 {
			continue
		}
		if out, err := exec.CommandContext(t.Context(), "chown", "--reference="+like, path+suffix).CombinedOutput(); err != nil {
			t.Fatal(string(out), err)
		}
	}
}
