package service_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"

	"accessbroker.internal/api"
	"accessbroker.internal/audit"
	"accessbroker.internal/internal/brokertest"
	"accessbroker.internal/internal/config"
	"accessbroker.internal/internal/service"
	"accessbroker.internal/internal/storetest"
)

// A replica is one of several services on one database.
type replica struct {
	*service.Service
	t          *testing.T
	address    string
	checkpoint string // its file
	stop       func() // as SIGTERM does
	kill       func() // as kill -9 does: its claims stay
}

// replicas returns a function that starts replicas of one world, each with an address, an
// admin socket and a checkpoint file of its own.
func replicas(t *testing.T) (*brokertest.World, func(name string) *replica) {
	t.Helper()
	storetest.OnlyPostgres(t)
	w := brokertest.NewWorld(t)
	w.StartIdentities()
	return w, func(name string) *replica {
		t.Helper()
		text, err := os.ReadFile(w.ConfigFile())
		if err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		r := &replica{t: t, address: l.Addr().String(), checkpoint: w.Path("checkpoint-" + name)}
		file := w.Path("broker-" + name + ".yaml")
		own := strings.NewReplacer("\n  listen: "+strings.TrimPrefix(w.URL(), "https://"), "\n  listen: "+r.address, "admin_socket: admin.sock", "admin_socket: "+name+".sock", "checkpoint_file: broker.db.checkpoint", "checkpoint_file: checkpoint-"+name)
		if err := os.WriteFile(file, []byte(own.Replace(string(text))), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := config.Load(file, nil)
		if err != nil {
			t.Fatal(err)
		}
		_ = l.Close()
		r.start(c)
		return r
	}
}

func (r *replica) start(c *config.Config) {
	r.t.Helper()
	ready, done := make(chan []net.Listener, 1), make(chan error, 1)
	var err error
	r.Service, err = service.New(r.t.Context(), service.Options{Config: c, Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Ready: func(l []net.Listener) { ready <- l }})
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() { done <- r.Run(ctx); close(done) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("the replica ended with %v", err)
		}
	})
	r.kill = sync.OnceFunc(func() {
		_ = r.Close() // so that it can't hand its work over
		cancel()
		<-done
	})
	r.t.Cleanup(func() { r.kill() })
	select {
	case <-ready:
	case err := <-done:
		r.t.Fatalf("the replica did not start: %v", err)
	}
}

// agent returns a client of this replica.
func (r *replica) agent(w *brokertest.World) *api.Client {
	c := w.Agent()
	c.BaseURL = "https://" + r.address
	return c
}

// jwks returns the replica's keys.
func (r *replica) jwks(agent *api.Client) string {
	r.t.Helper()
	resp, err := agent.HTTP.Get(agent.BaseURL + "/oauth2/jwks")
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		r.t.Fatalf("got %d, %v", resp.StatusCode, err)
	}
	return string(body)
}

// covers reports whether the replica's checkpoint file covers that many records.
func (r *replica) covers(size int64) bool {
	note, err := audit.ReadCheckpointFile(r.checkpoint)
	if err != nil || note == nil {
		return false
	}
	c, err := audit.OpenCheckpoint(note, r.LogKey())
	return err == nil && c.Size >= size
}

// Each replica's checkpoint file follows the log, whichever replica appends to it and
// whichever signs. A replica that stops or dies leaves its work to the others.
func TestReplicasPublishOneLog(t *testing.T) {
	w, start := replicas(t)
	a, b := start("a"), start("b")
	ask := api.Ask{Entitlement: "tickets-api", Scopes: []string{"tickets:read"}, Justification: "a customer waits"}
	issue := func(r *replica) int64 {
		t.Helper()
		if _, _, err := r.agent(w).AskAndCollect(t.Context(), ask); err != nil {
			t.Fatal(err)
		}
		return r.Store().Head().Size
	}
	if x, y := a.jwks(a.agent(w)), b.jwks(b.agent(w)); x != y || strings.Count(x, `"kid"`) != 1 {
		t.Errorf("got the keys %s and %s, want one for both", x, y)
	}
	for _, r := range []*replica{a, b, a, b} {
		size := issue(r)
		brokertest.Eventually(t, "both files cover the log", func() bool { return a.covers(size) && b.covers(size) })
	}
	a.stop()
	size := issue(b)
	brokertest.Eventually(t, "the replica that stays publishes", func() bool { return b.covers(size) })
	c := start("c")
	size = issue(c)
	brokertest.Eventually(t, "a new replica has a checkpoint file", func() bool { return b.covers(size) && c.covers(size) })
	b.kill()
	size = issue(c)
	brokertest.Eventually(t, "a replica takes over from one that died", func() bool { return c.covers(size) })
	// All files are of one log: the last continues the others.
	saved, err := c.Store().Checkpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []*replica{a, b, c} {
		note, err := os.ReadFile(r.checkpoint)
		if err != nil {
			t.Fatal(err)
		}
		if err := audit.CheckContinuation(note, c.LogKey(), c.Store().Head().Size, c.Store().Hashes(t.Context())); err != nil {
			t.Errorf("%s: %v", r.checkpoint, err)
		}
	}
	if note, err := os.ReadFile(c.checkpoint); err != nil || !bytes.Equal(note, saved) && !c.covers(size) {
		t.Errorf("got another checkpoint in the file than in the database (%v)", err)
	}
}
