package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/e2e/cluster"
)

// A deployment is a copy of deploy/cluster, with the addresses of this machine.
type deployment struct {
	dir, secrets string
}

func newDeployment(t *testing.T) *deployment {
	t.Helper()
	dir, err := os.MkdirTemp("", "deploy-") // short, and open to the user of PostgreSQL
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	d := &deployment{dir: dir, secrets: filepath.Join(dir, "secrets")}
	if err := os.CopyFS(filepath.Join(dir, "cluster"), os.DirFS("../deploy/cluster")); err != nil {
		t.Fatal(err)
	}
	d.run(t, nil, "sh", "cluster/secrets.sh", d.secrets)
	if os.Getuid() == 0 { // the users of the containers are others
		d.run(t, nil, "chmod", "755", dir)
		d.run(t, nil, "chown", "-R", "root", d.secrets+"/broker")
		d.run(t, nil, "chown", "-R", "postgres", d.secrets+"/postgres")
	}
	return d
}

func (d *deployment) run(t *testing.T, env []string, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Env = d.dir, append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// edit replaces texts of a file, each of which must be there, and returns its path.
func (d *deployment) edit(t *testing.T, name string, pairs ...string) string {
	t.Helper()
	path := filepath.Join(d.dir, "cluster", name)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(fill(t, string(text), pairs...)), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestDeployCluster starts what the files of deploy/cluster describe, with the addresses of
// this machine: PostgreSQL with TLS, its roles and a copy for a standby, PgBouncer, HAProxy,
// and a broker whose role owns nothing.
func TestDeployCluster(t *testing.T) {
	t.Parallel()
	d := newDeployment(t)
	ctx := t.Context()
	conf := d.edit(t, "postgresql.conf", "/run/secrets", d.secrets+"/postgres")
	hba := d.edit(t, "pg_hba.conf", "10.99.0.0/24", "127.0.0.1/32", "local   all ", "host all postgres 127.0.0.1/32 scram-sha-256\nlocal   all ")
	p, err := cluster.NewPostgres(ctx, d.dir, cluster.PostgresOptions{Settings: []string{"include '" + conf + "'", "hba_file = '" + hba + "'"}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop()
	if err := p.Start(ctx); err != nil {
		t.Fatal(err)
	}
	admin := []string{"PGHOST=127.0.0.1", fmt.Sprint("PGPORT=", p.Port), "PGUSER=" + cluster.Admin, "PGPASSWORD=" + cluster.Password, "SECRETS=" + d.secrets + "/postgres", "PATH=" + p.Bin() + ":" + os.Getenv("PATH")}
	d.run(t, admin, "sh", "cluster/roles.sh")
	d.copyStandby(t, p)

	bouncer := freePort(t)
	ini := d.edit(t, "pgbouncer.ini", "host=primary.acme.test port=5432", fmt.Sprintf("host=localhost port=%d", p.Port), "0.0.0.0", "127.0.0.1",
		"6432", fmt.Sprint(bouncer), "/run/secrets", d.secrets+"/postgres")
	pooler, args := installed(t, "pgbouncer"), []string{ini}
	if os.Getuid() == 0 { // it refuses to run as root
		pooler, args = "setpriv", []string{"--reuid", "postgres", "--regid", "postgres", "--init-groups", "--pdeathsig", "TERM", pooler, ini}
	}
	if _, err := start(t, "pgbouncer", pooler, args...); err != nil {
		t.Fatal(err)
	}
	options := "sslmode=verify-full&sslrootcert=" + d.secrets + "/broker/ca.pem&password_file=" + d.secrets + "/broker/"
	bin := brokerBinary(t)
	d.run(t, []string{fmt.Sprintf("OWNER_URL=postgres://broker_owner@localhost:%d/broker?%sowner.password", p.Port, options)}, bin, "store", "migrate", "--store", "env:OWNER_URL", "--grant", "broker")
	d.serve(t, bin, fmt.Sprintf("BROKER_STORE=postgres://broker@localhost:%d/broker?%sbroker.password", bouncer, options))
}

// copyStandby makes the copy from which a standby starts.
func (d *deployment) copyStandby(t *testing.T, p *cluster.Postgres) {
	t.Helper()
	password, err := os.ReadFile(d.secrets + "/postgres/standby.password")
	if err != nil {
		t.Fatal(err)
	}
	env := []string{"PGHOST=localhost", fmt.Sprint("PGPORT=", p.Port), "PGPASSWORD=" + strings.TrimSpace(string(password)), "PGSSLMODE=verify-full",
		"PGSSLROOTCERT=" + d.secrets + "/broker/ca.pem", "PATH=" + p.Bin() + ":" + os.Getenv("PATH")}
	copied := filepath.Join(d.dir, "standby")
	d.run(t, env, "sh", "cluster/standby.sh", copied)
	if text, err := os.ReadFile(filepath.Join(copied, "postgresql.auto.conf")); err != nil || !strings.Contains(string(text), "primary_slot_name") || !strings.Contains(string(text), "verify-full") {
		t.Errorf("the standby's settings: %s, %v", text, err)
	}
	d.run(t, env, "sh", "cluster/standby.sh", copied) // it does nothing if there is a copy
}

// serve runs a broker and HAProxy, and gets a token through both.
func (d *deployment) serve(t *testing.T, bin, storeURL string) {
	t.Helper()
	w, err := cluster.New(t.Context(), cluster.Options{Binary: bin}) // for its trust domain
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	b := w.Replicas[0]
	file := d.edit(t, "broker.yaml", "https://broker.acme.test:8443", w.URL(), "0.0.0.0:8444", b.Proxied, "10.99.0.0/24", "127.0.0.1", "0.0.0.0:9464", b.Metrics,
		"/run/broker/admin.sock", d.dir+"/admin.sock", "/var/lib/broker/checkpoint", d.dir+"/checkpoint", "/run/secrets/seal.key", d.secrets+"/broker/seal.key",
		"unix:///run/spire/agent.sock", "unix://"+w.Dev.Socket("broker"))
	d.run(t, nil, "mkdir", "cluster/policies")
	d.run(t, nil, "cp", "cluster/policies.cedar", "cluster/policies/all.cedar")
	if out := d.run(t, []string{storeURL}, bin, "check", file); strings.Contains(out, "more rights") {
		t.Errorf("broker check: %s", out)
	}
	if _, err := startIn(append(os.Environ(), storeURL), t, "broker", bin, "serve", "--config", file); err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(w.Dev.Broker)
	if err != nil {
		t.Fatal(err)
	}
	cfg := d.edit(t, "haproxy.cfg", "bind :8443", "bind 127.0.0.1:"+port, "10.99.0.21:8444", b.Proxied)
	d.run(t, nil, installed(t, "haproxy"), "-c", "-f", cfg)
	if _, err := start(t, "haproxy", installed(t, "haproxy"), "-db", "-f", cfg); err != nil {
		t.Fatal(err)
	}
	c := w.Client(nil, "spiffe://acme.test/agent/triage")
	eventually(t, "a token", time.Minute, func() error {
		_, err := askOnce(t, c, api.Ask{Entitlement: "tickets-api", Scopes: []string{"tickets:read"}, Justification: "test"}, t.Name())
		return err
	})
}

// TestDeployUnits lets systemd read the unit of several replicas, and compares compose.yaml
// with the files next to it.
func TestDeployUnits(t *testing.T) {
	t.Parallel()
	unit, err := os.ReadFile("../deploy/cluster/broker@.service")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "broker@1.service")
	if err := os.WriteFile(path, []byte(fill(t, string(unit), "/usr/local/bin/broker", brokerBinary(t))), 0o644); err != nil {
		t.Fatal(err)
	}
	if analyze, err := exec.LookPath("systemd-analyze"); err == nil {
		if out, err := exec.Command(analyze, "verify", path).CombinedOutput(); err != nil || strings.Contains(string(out), "broker@") {
			t.Errorf("systemd-analyze: %v\n%s", err, out)
		}
	}
	compose, err := os.ReadFile("../deploy/cluster/compose.yaml")
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile(`(?:\./|/cluster/)([\w@-]+\.(?:yaml|cedar|cfg|conf|ini|sh))`).FindAllSubmatch(compose, -1)
	if len(named) < 8 {
		t.Errorf("compose.yaml names %d files", len(named))
	}
	for _, m := range named {
		if _, err := os.Stat(filepath.Join("../deploy/cluster", string(m[1]))); err != nil {
			t.Errorf("compose.yaml: %v", err)
		}
	}
	haproxy, err := os.ReadFile("../deploy/cluster/haproxy.cfg")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`server \w+ ([\d.]+):`).FindAllSubmatch(haproxy, -1) {
		if !strings.Contains(string(compose), "ipv4_address: "+string(m[1])+"}") {
			t.Errorf("compose.yaml has no %s", m[1])
		}
	}
}
