package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	postgresAdmin    = "postgres" // the superuser
	postgresPassword = "only-in-tests"
)

// A postgres is a real PostgreSQL, which takes nobody without a password.
type postgres struct {
	owner  *testing.T // it ends with it
	bin    string
	dir    string
	port   int
	server *process
}

// startPostgres starts an empty PostgreSQL on loopback. It refuses to run as
// root, so for root it runs as the user that its package made.
func startPostgres(t *testing.T) *postgres {
	t.Helper()
	p := &postgres{owner: t, bin: filepath.Dir(installed(t, "initdb")), port: freePort(t)}
	var err error
	if p.dir, err = os.MkdirTemp("", "postgres-"); err != nil { // short: its socket is in it
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(p.dir) })
	if os.Getuid() == 0 {
		uid, gid := postgresUser(t)
		if err := os.Chown(p.dir, uid, gid); err != nil {
			t.Fatal(err)
		}
	}
	password := filepath.Join(p.dir, "password")
	if err := os.WriteFile(password, []byte(postgresPassword+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	path, args := p.command("initdb", "--pgdata", p.data(), "--username", postgresAdmin, "--pwfile", password,
		"--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--no-sync")
	cmd := exec.Command(path, args...)
	cmd.Dir = p.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	p.start(t)
	return p
}

// command gives what runs one of PostgreSQL's commands as a user that it
// accepts. A change of user forgets what start asked for, that the server dies
// with the tests, so that is asked for again: SIGQUIT is its quickest end.
func (p *postgres) command(name string, args ...string) (string, []string) {
	path := filepath.Join(p.bin, name)
	if os.Getuid() != 0 {
		return path, args
	}
	return "setpriv", append([]string{"--reuid", "postgres", "--regid", "postgres", "--init-groups", "--pdeathsig", "QUIT", path}, args...)
}

func postgresUser(t *testing.T) (uid, gid int) {
	t.Helper()
	u, err := user.Lookup("postgres")
	if err != nil {
		t.Fatalf("PostgreSQL refuses to run as root, and its package made no user: %v", err)
	}
	if _, err := fmt.Sscan(u.Uid+" "+u.Gid, &uid, &gid); err != nil {
		t.Fatal(err)
	}
	return uid, gid
}

func (p *postgres) data() string { return filepath.Join(p.dir, "data") }

// url is for a user of the server, such as Vault's, or pgx in a test.
func (p *postgres) url(user, password string) string {
	return fmt.Sprintf("postgresql://%s:%s@%s/postgres?sslmode=disable", user, password, p.address())
}

func (p *postgres) address() string { return fmt.Sprintf("127.0.0.1:%d", p.port) }

// start starts the server on its folder and its port, the first time or again.
func (p *postgres) start(t *testing.T) {
	t.Helper()
	path, args := p.command("postgres", "-D", p.data(), "-p", fmt.Sprint(p.port), "-c", "listen_addresses=127.0.0.1",
		"-c", "unix_socket_directories="+p.dir, "-c", "log_connections=on", "-c", "log_statement=ddl")
	var err error
	if p.server, err = start(p.owner, "postgres", path, args...); err != nil {
		t.Fatal(err)
	}
	server := p.server
	p.owner.Cleanup(func() { stopPostgres(server) }) // before what start registered
	eventually(t, "the start of PostgreSQL", time.Minute, func() error {
		if p.server.ended() {
			t.Fatalf("PostgreSQL did not start:\n%s", p.server.out)
		}
		_, err := p.psql(postgresAdmin, postgresPassword, "SELECT 1")
		return err
	})
}

// stop ends the server in order; whoever is connected is thrown out.
func (p *postgres) stop() { stopPostgres(p.server) }

// stopPostgres is not process.stop: at SIGTERM, PostgreSQL waits for everybody
// to leave.
func stopPostgres(server *process) {
	if server.ended() {
		return
	}
	_ = server.cmd.Process.Signal(syscall.SIGINT)
	select {
	case <-server.done:
	case <-time.After(30 * time.Second):
		server.kill()
	}
}

// psql has psql run statements as a user, and gives what they say: a row in a
// line, its columns apart by "|". A session is one of its own.
func (p *postgres) psql(user, password, sql string) (string, error) {
	cmd := exec.Command(filepath.Join(p.bin, "psql"), "--no-psqlrc", "--no-password", "--quiet", "--tuples-only", "--no-align",
		"--set", "ON_ERROR_STOP=1", "--host", "127.0.0.1", "--port", fmt.Sprint(p.port), "--username", user, "--dbname", "postgres", "--command", sql)
	cmd.Env = append(os.Environ(), "PGPASSWORD="+password, "PGSSLMODE=disable", "PGCONNECT_TIMEOUT=10")
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return "", fmt.Errorf("psql: %w: %s", err, exit.Stderr)
		}
		return "", fmt.Errorf("psql: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

// must runs statements as the superuser.
func (p *postgres) must(t *testing.T, sql string) string {
	t.Helper()
	out, err := p.psql(postgresAdmin, postgresPassword, sql)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestPostgres(t *testing.T) {
	p := startPostgres(t)
	p.must(t, "CREATE TABLE orders (id int PRIMARY KEY); INSERT INTO orders VALUES (4711)")
	p.must(t, "CREATE ROLE reader LOGIN PASSWORD 'let-me-in'; GRANT SELECT ON orders TO reader")
	if out, err := p.psql("reader", "let-me-in", "SELECT id FROM orders"); err != nil || out != "4711" {
		t.Errorf("a reader reads %q, %v", out, err)
	}
	for _, c := range []struct{ user, password, sql, refusal string }{
		{"reader", "let-me-in", "DELETE FROM orders", "permission denied for table orders"},
		{"reader", "guessed", "SELECT 1", `password authentication failed for user "reader"`},
		{postgresAdmin, "", "SELECT 1", "no password supplied"},
	} {
		if out, err := p.psql(c.user, c.password, c.sql); err == nil || !strings.Contains(err.Error(), c.refusal) {
			t.Errorf("%s by %s, password %q: %q, %v; want %q", c.sql, c.user, c.password, out, err, c.refusal)
		}
	}

	p.stop()
	if out, err := p.psql(postgresAdmin, postgresPassword, "SELECT 1"); err == nil {
		t.Errorf("PostgreSQL is stopped, and answers %q", out)
	}
	p.start(t)
	if out := p.must(t, "SELECT id FROM orders"); out != "4711" {
		t.Errorf("after the restart: %q", out)
	}
}
