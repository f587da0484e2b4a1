package e2e

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"accessbroker.internal/e2e/cluster"
)

const (
	postgresAdmin    = cluster.Admin
	postgresPassword = cluster.Password
)

// A postgres is a real PostgreSQL that ends with the test that owns it.
type postgres struct{ *cluster.Postgres }

// startPostgres starts an empty PostgreSQL on loopback.
func startPostgres(t testing.TB) *postgres {
	t.Helper()
	dir, err := os.MkdirTemp("", "postgres-") // short: its socket is in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	server, err := cluster.NewPostgres(t.Context(), dir, cluster.PostgresOptions{})
	if err != nil {
		t.Fatal(err)
	}
	p := &postgres{server}
	t.Cleanup(func() {
		p.stop()
		if t.Failed() {
			t.Logf("the output of PostgreSQL:\n%s", p.Output())
		}
	})
	p.start(t)
	return p
}

// url returns the connection URL for a user. Vault connects with it.
func (p *postgres) url(user, password string) string {
	return fmt.Sprintf("postgresql://%s:%s@%s/postgres?sslmode=disable", user, password, p.address())
}

func (p *postgres) address() string { return p.Address() }

// start starts the server, or starts it again with the same data and port.
func (p *postgres) start(t testing.TB) {
	t.Helper()
	if err := p.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// stop shuts the server down and disconnects its clients.
func (p *postgres) stop() { p.Stop() }

// psql runs statements as a user, in a session of their own, and returns their
// rows: one per line, with columns separated by "|".
func (p *postgres) psql(user, password, sql string) (string, error) {
	return p.Query(context.Background(), user, password, "postgres", sql)
}

// must runs statements as the superuser.
func (p *postgres) must(t testing.TB, sql string) string {
	t.Helper()
	out, err := p.Exec(t.Context(), "postgres", sql)
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
