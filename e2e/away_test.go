package e2e

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/audit"
	"accessbroker.internal/e2e/cluster"
	"accessbroker.internal/internal/brokertest/check"
	"accessbroker.internal/store"
)

// recovers bounds how long the broker takes to be ready after the database is back.
const recovers = 30 * time.Second

// unanswered is how long a caller waits that gets no answer, because the database does not
// answer the broker.
const unanswered = 3 * time.Second

// An awayWorld is a world whose database goes away.
type awayWorld struct {
	*cluster.World
	t *testing.T

	mu       sync.Mutex
	answered map[string]bool // leases whose token a caller has
}

func startAway(t *testing.T, o cluster.Options) *awayWorld {
	t.Helper()
	o.Binary = brokerBinary(t)
	world, err := cluster.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	w := &awayWorld{World: world, t: t, answered: map[string]bool{}}
	t.Cleanup(func() {
		if t.Failed() {
			for _, b := range w.Replicas {
				out := b.Output()
				t.Logf("the end of the log of %s:\n%s", b.Name, out[max(0, len(out)-6000):])
			}
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

var report = api.Ask{Entitlement: "tickets-api", Scopes: []string{"tickets:read"}}

// ask requests a token with one call, and notes what a caller was told.
func (w *awayWorld) ask(c *api.Client) (*api.Credential, error) {
	w.t.Helper()
	got, err := askOnce(w.t, c, report, rand.Text())
	if err == nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.answered[got.Lease] = true
	}
	return got, err
}

func (w *awayWorld) client(b *cluster.Broker) *api.Client {
	return w.Client(b, "spiffe://acme.test/service/report")
}

// wantToken waits until a replica issues again.
func (w *awayWorld) wantToken(b *cluster.Broker, why string) *api.Credential {
	w.t.Helper()
	var got *api.Credential
	eventually(w.t, "a token of "+b.Name+" "+why, recovers, func() (err error) {
		if r, err := b.Ready(w.t.Context()); err != nil || !r.Ready {
			return fmt.Errorf("%v, %w", r.NotReady, err)
		}
		got, err = w.ask(w.client(b))
		return err
	})
	return got
}

// wantAway checks a replica without its database: what wantCause checks, and that nothing is
// issued.
func (w *awayWorld) wantAway(b *cluster.Broker, causes ...string) {
	w.t.Helper()
	w.wantCause(b, causes...)
	c := w.client(b)
	c.HTTP.Timeout = unanswered
	if got, err := w.ask(c); err == nil {
		w.t.Errorf("without its database, the broker issued %s", got.Lease)
	} else if refusal := (*api.Error)(nil); errors.As(err, &refusal) && refusal.Status != http.StatusServiceUnavailable {
		w.t.Errorf("without its database, the broker answered %v, want 503", err)
	}
}

// wantCause checks that /readyz names the cause, and that what needs no database answers.
func (w *awayWorld) wantCause(b *cluster.Broker, causes ...string) {
	w.t.Helper()
	ctx := w.t.Context()
	eventually(w.t, fmt.Sprintf("%s to say %q", b.Name, causes), recovers, func() error {
		r, err := b.Ready(ctx)
		if err != nil {
			return err
		}
		for _, cause := range causes {
			if !r.Ready && strings.Contains(fmt.Sprint(r.NotReady), cause) {
				return nil
			}
		}
		return fmt.Errorf("ready: %t, %v", r.Ready, r.NotReady)
	})
	r, err := b.Ready(ctx)
	if err != nil || strings.Contains(fmt.Sprint(r.NotReady), cluster.Password) || strings.Contains(fmt.Sprint(r.NotReady), "127.0.0.1") {
		w.t.Errorf("/readyz names the password or the address: %v, %v", r.NotReady, err)
	}
	for _, path := range []string{"/healthz", "/metrics"} {
		if status, text, err := b.Probe(ctx, path); err != nil || status != http.StatusOK {
			w.t.Errorf("%s without the database: %d %.200s, %v", path, status, text, err)
		}
	}
	c := w.client(b)
	var keys struct{ Keys []any }
	getJSON(w.t, c.HTTP, c.BaseURL+"/oauth2/jwks", &keys)
	if len(keys.Keys) == 0 {
		w.t.Error("the JWKS is empty without the database")
	}
}

// verify ends the replicas and checks the database: the log verifies, and every token that
// a caller has is in it.
func (w *awayWorld) verify(url string) {
	w.t.Helper()
	for _, b := range w.Replicas {
		if err := b.Stop(); err != nil {
			w.t.Error(err)
		}
		check.Tokens(w.t, b.Output())
		check.Secrets(w.t, b.Output(), []string{cluster.Password})
	}
	db, err := store.Open(context.Background(), store.Config{URL: url, Existing: true})
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	check.Store(w.t, db, check.Options{})
	issued := map[string]bool{}
	for _, r := range check.Records(w.t, db) {
		if r.Kind == audit.LeaseIssued {
			issued[r.Lease.ID] = true
		}
	}
	if len(w.answered) == 0 {
		w.t.Error("no token was issued")
	}
	for lease := range w.answered {
		if !issued[lease] {
			w.t.Errorf("a caller has the token of lease %s, which has no record", lease)
		}
	}
}

// TestDatabaseAway disturbs PostgreSQL, and the connection to it, in each way that the
// broker has to survive without help.
func TestDatabaseAway(t *testing.T) {
	t.Parallel()
	small := smallDisk(t)
	w := startAway(t, cluster.Options{Replicas: 2, Relays: true, Standby: true, Postgres: &cluster.PostgresOptions{Tables: small, Settings: []string{"max_connections = 60", "fsync = off"}}})
	b, relay, ctx := w.Replicas[0], w.Relays[0], t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	exec := func(sql string) {
		t.Helper()
		_, err := w.Postgres.Exec(ctx, "postgres", sql)
		must(err)
	}
	for _, f := range []struct {
		name   string
		strike func(t *testing.T)
	}{
		{"stopped and started", func(t *testing.T) {
			w.Postgres.Stop()
			w.wantAway(b, "no database listens at its address", "the connection to the database was cut", "the database is shutting down")
			must(w.Postgres.Start(ctx))
		}},
		{"crashed", func(t *testing.T) {
			w.Postgres.Crash()
			w.wantAway(b, "no database listens", "was cut")
			must(w.Postgres.Start(ctx))
		}},
		{"paused", func(t *testing.T) {
			w.Postgres.Pause()
			w.wantAway(b, "did not answer in time")
			w.Postgres.Resume()
		}},
		{"made read-only", func(t *testing.T) {
			exec("ALTER SYSTEM SET default_transaction_read_only = on")
			exec("SELECT pg_reload_conf()")
			w.wantAway(b, "the database is read-only")
			must(w.Postgres.Configure("default_transaction_read_only = off")) // the next line can't be written by SQL
			must(os.Remove(filepath.Join(w.Postgres.Data(), "postgresql.auto.conf")))
			exec("SELECT pg_reload_conf()")
		}},
		{"a standby", func(t *testing.T) {
			relay.SetTarget(w.Standby.Address())
			relay.Reset()
			w.wantAway(b, "the database is read-only", "a standby")
			relay.SetTarget(w.Postgres.Address())
			relay.Reset()
		}},
		{"too many connections", func(t *testing.T) {
			exec("ALTER ROLE " + cluster.Role + " CONNECTION LIMIT 0")
			exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '" + cluster.Role + "'")
			w.wantAway(b, "the database has too many connections")
			exec("ALTER ROLE " + cluster.Role + " CONNECTION LIMIT -1")
		}},
		{"full disk", func(t *testing.T) {
			if small == "" {
				t.Skip("no disk is small")
			}
			w.fillDisk(small)
			w.wantCause(b, "the database's disk is full") // rows that fit into a page are still written
			w.emptyDisk(small)
		}},
		{"connections cut", func(t *testing.T) {
			relay.Cut()
			w.wantAway(b, "was cut", "no database listens")
			relay.Heal()
		}},
		{"answers lost on the way", func(t *testing.T) {
			relay.Blackhole(cluster.Down)
			w.wantAway(b, "did not answer in time")
			relay.Heal()
		}},
		{"everything lost on the way", func(t *testing.T) {
			relay.Blackhole()
			w.wantAway(b, "did not answer in time")
			relay.Heal()
		}},
	} {
		ok := t.Run(f.name, func(t *testing.T) {
			w.t = t
			before := w.wantToken(b, "before")
			f.strike(t)
			w.wantToken(b, "afterwards")
			if lease, err := w.client(b).Lease(ctx, before.Lease); err != nil || lease.Status != api.LeaseActive {
				t.Errorf("the lease from before: %+v, %v", lease, err)
			}
			if len(w.Replicas) > 1 && !strings.HasPrefix(f.name, "conn") && !strings.Contains(f.name, "on the way") {
				w.wantToken(w.Replicas[1], "of the other replica")
			}
		})
		if w.t = t; !ok {
			return // the database is not as the next fault needs it
		}
	}
	w.t = t
	t.Run("cut at COMMIT", func(t *testing.T) { w.t = t; testCutAtCommit(t, w) })
	w.t = t
	w.verify(w.Postgres.DSN(cluster.Owner, cluster.Database))
}

// testCutAtCommit cuts the connection when COMMIT is on its way, before and after
// PostgreSQL has received it. The call is answered by what PostgreSQL did.
func testCutAtCommit(t *testing.T, w *awayWorld) {
	b, relay := w.Replicas[0], w.Relays[0]
	for _, c := range []struct{ name, answer string }{{"not received", ""}, {"the answer lost", "COMMIT\x00"}} {
		t.Run(c.name, func(t *testing.T) {
			var key string
			sprung := false
			for range 20 { // the trap may catch another transaction, such as a checkpoint
				trap := relay.SetTrap("COMMIT\x00", c.answer)
				key = rand.Text()
				got, err := askOnce(t, w.client(b), report, key)
				select {
				case <-trap.Sprung():
					sprung = true
				default:
				}
				if err == nil {
					w.answered[got.Lease] = true
					again, err := askOnce(t, w.client(b), report, key)
					if err == nil && again.Request != got.Request {
						t.Errorf("the repeated call: got request %s, want %s", again.Request, got.Request)
					}
				}
			}
			relay.Heal()
			if !sprung {
				t.Error("no connection was cut at COMMIT")
			}
			w.wantToken(b, "after the cuts")
		})
	}
}

// smallDisk mounts a file system of a few megabytes, if the tests run as root.
func smallDisk(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "disk-")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", dir).CombinedOutput(); err != nil {
		_ = os.Remove(dir)
		t.Logf("mounting a small disk needs root, so no disk is full: %v %s", err, out)
		return ""
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", "-l", dir).CombinedOutput(); err != nil {
			t.Errorf("unmounting: %v %s", err, out)
		}
		_ = os.Remove(dir)
	})
	if err := cluster.GiveToPostgres(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

// fillDisk fills the disk of the broker's tables, until the tables can't grow.
func (w *awayWorld) fillDisk(dir string) {
	w.t.Helper()
	filler, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = filler.Close() }()
	for block := make([]byte, 64<<10); ; {
		if _, err := filler.Write(block); err != nil {
			break // it is full
		}
	}
	// The rest of the tables' last pages takes some tokens.
	c := w.client(w.Replicas[0])
	for range 2000 {
		if _, err := w.ask(c); err != nil {
			return
		}
	}
	w.t.Fatal("the disk is full, and tokens are issued")
}

func (w *awayWorld) emptyDisk(dir string) {
	w.t.Helper()
	if err := os.Remove(filepath.Join(dir, "filler")); err != nil {
		w.t.Fatal(err)
	}
}
