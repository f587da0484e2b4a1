package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"accessbroker.internal/api"
)

// sampleWorld makes the sample world in a folder with a short path, and gives
// what its operator's file says. Nobody serves identities yet.
func sampleWorld(t *testing.T) *devWorld {
	t.Helper()
	dir, err := os.MkdirTemp("", "bs")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	var at [3]string
	for i := range at {
		if at[i], err = freeAddress(); err != nil {
			t.Fatal(err)
		}
	}
	w, err := newDevWorld(dir, devAddresses{at[0], at[1], at[2]})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// start runs a broker by the world's file, as serve does, until the test ends
// or stop is called.
func (w *devWorld) start(t *testing.T, log io.Writer) (listeners []net.Listener, stop func()) {
	t.Helper()
	v, err := w.assemble(t, log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan []net.Listener, 1), make(chan error, 1)
	go func() { done <- v.Run(ctx, func(l []net.Listener) { ready <- l }) }()
	stopped := false
	stop = func() {
		if cancel(); !stopped {
			stopped = true
			if err := <-done; err != nil {
				t.Errorf("the broker ended with %v", err)
			}
		}
	}
	t.Cleanup(stop)
	select {
	case listeners = <-ready:
	case err := <-done:
		t.Fatalf("the broker did not start: %v", err)
	}
	return listeners, stop
}

func (w *devWorld) assemble(t *testing.T, log io.Writer) (*service, error) {
	t.Helper()
	d, err := readConfig(filepath.Join(w.dir, "broker.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	noEnv := func(string) string { return "" }
	if w.settings, err = d.understand(noEnv); err != nil {
		t.Fatal(err)
	}
	return assemble(t.Context(), w.settings, noEnv, slog.New(slog.NewTextHandler(log, nil)))
}

// edit replaces a text in the operator's file.
func (w *devWorld) edit(t *testing.T, from, to string) {
	t.Helper()
	path := filepath.Join(w.dir, "broker.yaml")
	text, err := os.ReadFile(path)
	if err != nil || !strings.Contains(string(text), from) {
		t.Fatalf("the file does not hold %q (%v)", from, err)
	}
	if err := os.WriteFile(path, []byte(strings.Replace(string(text), from, to, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
}

// identities serves the Workload API until the test ends or stop is called.
func (w *devWorld) identities(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	group, ctx := errgroup.WithContext(ctx)
	stop = func() {
		cancel()
		if err := group.Wait(); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	if err := w.serveIdentities(ctx, group); err != nil {
		t.Fatal(err)
	}
	return stop
}

// agent gives a client that proves to be the agent, and that knows the broker.
func (w *devWorld) agent(t *testing.T) *api.Client {
	t.Helper()
	a := &app{terminal: terminal{getenv: func(string) string { return "" }}}
	client, done, err := a.connect(t.Context(), clientConfig{
		server: "https://" + w.listen, socket: "unix://" + w.socket("agent"), brokerID: "spiffe://" + devDomain + "/broker",
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(done)
	return client
}

func (w *devWorld) operator() *api.Client {
	return adminClient(filepath.Join(w.dir, "admin.sock"), adminWait)
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not after 30 s", what)
		}
	}
}

func (w *devWorld) readiness(t *testing.T, metrics net.Listener) (int, map[string]string) {
	t.Helper()
	resp, err := http.Get("http://" + metrics.Addr().String() + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var r api.Readiness
	if err := json.NewDecoder(resp.Body).Decode(&r); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, r.NotReady
}

var ticketsRead = api.Ask{Entitlement: "tickets-api", Scopes: []string{"tickets:read"}, Justification: "to see"}

// lease gives a lease of the agent's, of a broker that runs only for it.
func (w *devWorld) lease(t *testing.T) string {
	t.Helper()
	stopIdentities := w.identities(t)
	_, stop := w.start(t, io.Discard)
	defer stopIdentities()
	defer stop()
	c, _, err := w.agent(t).AskAndCollect(t.Context(), ticketsRead)
	if err != nil {
		t.Fatal(err)
	}
	return c.Lease
}

// While the Workload API is away, the broker starts, and what there is can be
// ended; nobody is let in. When it comes, all goes on by itself.
func TestStartWithoutAWorkloadAPI(t *testing.T) {
	w := sampleWorld(t)
	lease := w.lease(t)
	var log bytes.Buffer
	listeners, stop := w.start(t, &log)
	ctx, operator := t.Context(), w.operator()

	status, missing := w.readiness(t, listeners[1])
	if status != http.StatusServiceUnavailable || !strings.Contains(missing["trust"], "nobody answers") {
		t.Errorf("readyz: %d, %v", status, missing)
	}
	insecure := &tls.Config{InsecureSkipVerify: true} //nolint:gosec // whatever it presents
	if c, err := tls.Dial("tcp", w.listen, insecure); err == nil {
		_ = c.Close()
		t.Error("it has a certificate")
	}
	if l, err := operator.Revoke(ctx, lease, "INC-1"); err != nil || l.Status != "revoked" {
		t.Errorf("returning a lease: %+v, %v", l, err)
	}
	everybody := api.Selector{TrustDomain: devDomain}
	if _, err := operator.Kill(ctx, api.Kill{Selector: everybody, Reason: "INC-1", Force: true}); err != nil {
		t.Errorf("the kill switch: %v", err)
	}
	if blocks, err := operator.Blocks(ctx); err != nil || len(blocks) != 1 {
		t.Errorf("blocks: %v, %v", blocks, err)
	}
	if err := operator.Lift(ctx, api.BlockChange{Selector: everybody, Reason: "over"}); err != nil {
		t.Errorf("lifting it: %v", err)
	}

	w.identities(t)
	eventually(t, "ready", func() bool { status, missing = w.readiness(t, listeners[1]); return status == http.StatusOK })
	c, _, err := w.agent(t).AskAndCollect(ctx, ticketsRead)
	if err != nil || c.Lease == "" {
		t.Errorf("an agent is not served: %v", err)
	}
	stop()
	if text := log.String(); strings.Count(text, "waiting for the Workload API") != 1 || !strings.Contains(text, w.socket("broker")) {
		t.Errorf("the log says\n%s", text)
	}
}

// What waiting does not mend is an error at the start.
func TestStartRefusesAForeignIdentity(t *testing.T) {
	w := sampleWorld(t)
	w.edit(t, "trust_domain: acme.test", "trust_domain: other.test")
	w.edit(t, "    - {under: spiffe://acme.test/agent", "    - {under: spiffe://other.test/agent")
	w.identities(t)
	if _, err := w.assemble(t, io.Discard); err == nil || !strings.Contains(err.Error(), "its trust_domain is other.test") {
		t.Errorf("it starts: %v", err)
	}
}
