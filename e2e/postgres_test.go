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

// A postgres is a real PostgreSQL that requires a password from every user.
type postgres struct {
	owner  testing.TB // the server ends with it
	bin    string
	dir    string
	port   int
	server *process
}

// startPostgres starts an empty PostgreSQL on loopback. PostgreSQL refuses to
// run as root; if the tests do, it runs as the user of its Debian package.
func startPostgres(t testing.TB) *postgres {
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

// command returns the command line that runs one of PostgreSQL's commands as a
// user that PostgreSQL accepts. A change of user resets the parent death signal
// that start sets, so setpriv sets it again; SIGQUIT is the fastest shutdown.
func (p *postgres) command(name string, args ...string) (string, []string) {
	path := filepath.Join(p.bin, name)
	if os.Getuid() != 0 {
		return path, args
	}
	return "setpriv", append([]string{"--reuid", "postgres", "--regid", "postgres", "--init-groups", "--pdeathsig", "QUIT", path}, args...)
}

func postgresUser(t testing.TB) (uid, gid int) {
	t.Helper()
	u, err := user.Lookup("postgres")
	if err != nil {
		t.Fatalf("PostgreSQL refuses to run as root, and its package created no user: %v", err)
	}
	if _, err := fmt.Sscan(u.Uid+" "+u.Gid, &uid, &gid); err != nil {
		t.Fatal(err)
	}
	return uid, gid
}

func (p *postgres) data() string { return filepath.Join(p.dir, "data") }

// url returns the connection URL for a user. Vault connects with it.
func (p *postgres) url(user, password string) string {
	return fmt.Sprintf("postgresql://%s:%s@%s/postgres?sslmode=disable", user, password, p.address())
}

func (p *postgres) address() string { return fmt.Sprintf("127.0.0.1:%d", p.port) }

// start starts the server, or starts it again with the same data and port.
func (p *postgres) start(t testing.TB) {
	t.Helper()
	path, args := p.command("postgres", "-D", p.data(), "-p", fmt.Sprint(p.port), "-c", "listen_addresses=127.0.0.1",
		"-c", "unix_socket_directories="+p.dir, "-c", "log_connections=on", "-c", "log_statement=ddl")
	var err error
	if p.server, err = start(p.owner, "postgres", path, args...); err != nil {
		t.Fatal(err)
	}
	server := p.server
	p.owner.Cleanup(func() { stopPostgres(server) }) // runs before the cleanup of startIn
	eventually(t, "the start of PostgreSQL", time.Minute, func() error {
		if p.server.ended() {
			t.Fatalf("PostgreSQL did not start:\n%s", p.server.out)
		}
		_, err := p.psql(postgresAdmin, postgresPassword, "SELECT 1")
		return err
	})
}

// stop shuts the server down and disconnects its clients.
func (p *postgres) stop() { stopPostgres(p.server) }

// stopPostgres sends SIGINT, the fast shutdown. At SIGTERM, which process.stop
// sends, PostgreSQL waits for its clients to disconnect.
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

// psql runs statements as a user, in a session of their own, and returns their
// rows: one per line, with columns separated by "|".
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
func (p *postgres) must(t testing.TB, sql string) string {
	t.Helper()
	out, err := p.psql(postgresAdmin, postgresPassword, sql)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestPostgres(t *testing.T) {
	t.Parallel() // it mostly waits
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
		t.Errorf("PostgreSQL is stopped and answers %q", out)
	}
	p.start(t)
	if out := p.must(t, "SELECT id FROM orders"); out != "4711" {
		t.Errorf("after the restart: %q", out)
	}
}
