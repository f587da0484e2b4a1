package cluster

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
)

// TestWorldIssues starts one broker on SQLite behind a balancer, and gets a token
// through it.
func TestWorldIssues(t *testing.T) {
	t.Parallel()
	w, err := Start(t.Context(), Options{Balancer: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	}()
	for _, b := range []*Broker{nil, w.Replicas[0]} {
		c := w.Client(b, "spiffe://acme.test/service/report")
		got, _, err := c.AskAndCollect(t.Context(), api.Ask{Entitlement: "tickets-api", Scopes: []string{"tickets:read"}})
		if err != nil || got.Secret["token"] == "" {
			t.Errorf("asking %s: %v", c.BaseURL, err)
		}
	}
	if out, err := run(t.Context(), w.o.Binary, w.Environment("service"), "request", "tickets-api", "--scope", "tickets:read"); err != nil || out == "" {
		t.Errorf("got %q, %v", out, err)
	}
}

// TestPostgres stops, suspends, crashes and fails over a PostgreSQL with a standby, behind
// PgBouncer.
func TestPostgres(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	dir := t.TempDir()
	p, err := NewPostgres(ctx, dir, PostgresOptions{Settings: []string{"max_connections = 30"}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop()
	if err := p.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := p.CreateDatabase(ctx, Database); err != nil {
		t.Fatal(err)
	}
	if got, err := p.Exec(ctx, "postgres", "SHOW max_connections"); err != nil || got != "30" {
		t.Errorf("max_connections: got %q, %v", got, err)
	}
	s, err := p.NewStandby(ctx, dir, "standby")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Stop()
	b, err := NewPgBouncer(ctx, dir, p.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer b.Stop()
	pooled := *p
	pooled.Port = b.Port
	if _, err := pooled.Query(ctx, Owner, Password, Database, "CREATE TABLE orders (id int); INSERT INTO orders VALUES (4711)"); err != nil {
		t.Fatal(err)
	}
	if err := p.AwaitStandby(ctx, s); err != nil {
		t.Fatal(err)
	}

	p.Pause()
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	if got, err := p.Exec(short, Database, "SELECT 1"); err == nil {
		t.Errorf("a suspended server answers %q", got)
	}
	p.Resume()
	if err := p.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	p.Crash()
	if _, err := s.Exec(ctx, Database, "INSERT INTO orders VALUES (1)"); err == nil || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("a standby accepts writes: %v", err)
	}
	if err := s.Promote(ctx); err != nil {
		t.Fatal(err)
	}
	if err := b.SetTarget(s.Address()); err != nil {
		t.Fatal(err)
	}
	err = Await(ctx, "the pool to follow", time.Minute, func() error {
		_, err := pooled.Query(ctx, Owner, Password, Database, "INSERT INTO orders VALUES (1)")
		return err
	})
	if got, other := s.Exec(ctx, Database, "SELECT count(*) FROM orders"); err != nil || other != nil || got != "2" {
		t.Errorf("after the failover: got %s, %v, %v", got, err, other)
	}
}

// startEcho starts a server that repeats what it receives, in upper case.
func startEcho(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = conn.Close() }()
				b := make([]byte, 100)
				for {
					n, err := conn.Read(b)
					if err != nil {
						return
					}
					_, _ = conn.Write([]byte(strings.ToUpper(string(b[:n]))))
				}
			}()
		}
	}()
	return l.Addr().String()
}

// A caller sends lines through a relay.
type caller struct{ net.Conn }

func dial(t *testing.T, r *Relay) caller {
	t.Helper()
	conn, err := net.Dial("tcp", r.Address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return caller{conn}
}

func (c caller) say(text string, limit time.Duration) (string, error) {
	if err := c.SetDeadline(time.Now().Add(limit)); err != nil {
		return "", err
	}
	if _, err := c.Write([]byte(text)); err != nil {
		return "", err
	}
	b := make([]byte, 100)
	n, err := c.Read(b)
	return string(b[:n]), err
}

func TestRelay(t *testing.T) {
	t.Parallel()
	r, err := NewRelay(startEcho(t))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	want := func(c caller, text string, ok bool) {
		t.Helper()
		limit := time.Minute
		if !ok {
			limit = 200 * time.Millisecond
		}
		got, err := c.say(text, limit)
		if (err == nil) != ok || ok && got != strings.ToUpper(text) {
			t.Errorf("%s: got %q, %v, want an answer: %t", text, got, err, ok)
		}
	}
	c := dial(t, r)
	want(c, "hello", true)
	r.Blackhole(Down)
	want(c, "held", false)
	r.Heal()
	if got, err := c.say("", time.Minute); err != nil || got != "HELD" {
		t.Errorf("after the heal: %q, %v", got, err)
	}
	r.Cut()
	want(c, "cut", false)
	if conn, err := net.Dial("tcp", r.Address()); err == nil {
		want(caller{conn}, "refused", false)
		_ = conn.Close()
	}
	r.Heal()
	want(dial(t, r), "healed", true)
	for _, answer := range []string{"", "COMMIT"} {
		c, other := dial(t, r), dial(t, r)
		want(c, "commit", true) // before the trap
		trap := r.SetTrap("commit", answer)
		want(c, "begin", true)
		want(c, "now commit", false)
		<-trap.Sprung()
		want(other, "commit", true)
	}
}
