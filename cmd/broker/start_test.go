package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"fmt"
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
	"accessbroker.internal/broker"
	"accessbroker.internal/internal/config"
	"accessbroker.internal/internal/service"
	"accessbroker.internal/store"
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
func (w *devWorld) start(t *testing.T, out io.Writer) (listeners []net.Listener, stop func()) {
	t.Helper()
	ready, done := make(chan []net.Listener, 1), make(chan error, 1)
	v, err := w.open(t, out, func(l []net.Listener) { ready <- l })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() { done <- v.Run(ctx) }()
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

func (w *devWorld) open(t *testing.T, out io.Writer, ready func([]net.Listener)) (*service.Service, error) {
	t.Helper()
	var err error
	if w.settings, err = config.Load(filepath.Join(w.dir, "broker.yaml"), nil); err != nil {
		t.Fatal(err)
	}
	return service.New(t.Context(), service.Options{Config: w.settings, Log: slog.New(slog.NewTextHandler(out, nil)), Ready: ready})
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
	var logged bytes.Buffer
	listeners, stop := w.start(t, &logged)
	ctx, operator := t.Context(), w.operator()

	status, missing := w.readiness(t, listeners[1])
	if status != http.StatusServiceUnavailable || !strings.Contains(missing["trust"], "the agent does not respond") {
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
	if text := logged.String(); strings.Count(text, "waiting for the Workload API") != 1 || !strings.Contains(text, w.socket("broker")) {
		t.Errorf("the log says\n%s", text)
	}
}

// What waiting does not mend is an error at the start.
func TestStartRefusesAForeignIdentity(t *testing.T) {
	w := sampleWorld(t)
	w.edit(t, "trust_domain: acme.test", "trust_domain: other.test")
	w.edit(t, "    - {under: spiffe://acme.test/agent", "    - {under: spiffe://other.test/agent")
	w.identities(t)
	if _, err := w.open(t, io.Discard, nil); err == nil || !strings.Contains(err.Error(), "but trust_domain is other.test") {
		t.Errorf("it starts: %v", err)
	}
}

// An issuer that has leases to end stays, retired if need be.
func TestStartWithoutAnIssuer(t *testing.T) {
	w := sampleWorld(t)
	lease := w.lease(t)
	w.identities(t)
	tickets := "tickets: {token: {audience: https://tickets.acme.test, resource_servers: [spiffe://acme.test/tickets]}}"
	other := "other: {token: {audience: https://other.acme.test}}"
	w.edit(t, tickets, other)
	w.edit(t, "issuer: tickets", "issuer: other")
	_, err := w.open(t, io.Discard, nil)
	if err == nil || !strings.Contains(err.Error(), `issuer "tickets" was removed, but 1 of its leases of "tickets-api" have not ended`) || !strings.Contains(err.Error(), "retired: true") {
		t.Fatalf("without the issuer: %v", err)
	}

	retired := strings.TrimSuffix(tickets, "}") + ", retired: true}"
	w.edit(t, other, retired+"\n  "+other)
	w.edit(t, "issuer: other", "issuer: tickets")
	_, err = config.Load(filepath.Join(w.dir, "broker.yaml"), nil)
	if err == nil || !strings.Contains(err.Error(), `"tickets" is retired`) {
		t.Errorf("an entitlement of the retired one: %v", err)
	}
	w.edit(t, "issuer: tickets", "issuer: other")
	_, stop := w.start(t, io.Discard)
	c, _, err := w.agent(t).AskAndCollect(t.Context(), ticketsRead)
	if err != nil {
		t.Fatal(err)
	}
	if l, err := w.operator().Lease(t.Context(), c.Lease); err != nil || l.Issuer != "other" {
		t.Errorf("asked again, it is made by %+v, %v", l, err)
	}
	if l, err := w.operator().Revoke(t.Context(), lease, "over"); err != nil || l.Status != "revoked" || l.Issuer != "tickets" {
		t.Errorf("what the retired one made: %+v, %v", l, err)
	}
	stop()

	// With nothing left to end, it can go.
	w.edit(t, retired, "")
	_, stop = w.start(t, io.Discard)
	stop()
}

// Another issuer by the same name can't end what the one before made.
func TestStartWithAnotherIssuer(t *testing.T) {
	w := sampleWorld(t)
	w.edit(t, "issuers:\n", "issuers:\n  vault: {vault: {address: https://vault.test:8200, auth: {jwt: {role: broker}}, token_role: leases}}\n")
	for name, c := range map[string]struct {
		issuer, handle string
		ends           time.Duration
		want           bool
	}{
		"another address":      {"vault", `{"accessor":"a","made":"token","at":"0123456789abcdef"}`, time.Hour, true},
		"was a Vault":          {"tickets", `{"accessor":"a","made":"token","at":"0123456789abcdef"}`, time.Hour, true},
		"its time is over":     {"vault", `{"accessor":"a","made":"token","at":"0123456789abcdef"}`, -time.Minute, false},
		"only time ends it":    {"vault", "", time.Hour, false},
		"of this Vault itself": {"vault", "own", time.Hour, false},
	} {
		t.Run(name, func(t *testing.T) {
			v, err := w.open(t, io.Discard, nil)
			if err != nil {
				t.Fatal(err)
			}
			now := time.Now()
			l := &broker.Lease{
				ID: broker.NewLeaseID(now), Status: broker.LeaseActive, Revocation: broker.RevokedImmediate, Holder: "spiffe://acme.test/a",
				Issuer: c.issuer, Entitlement: "orders", Opened: now, Expires: now.Add(c.ends), Handle: []byte(c.handle),
			}
			if c.handle == "own" {
				at := sha256.Sum256([]byte("https://vault.test:8200\n"))
				l.Handle = fmt.Appendf(nil, `{"accessor":"a","made":"token","at":"%x"}`, at[:8])
			}
			put := func(db *store.Store) {
				if err := db.Update(t.Context(), nil, func(tx broker.Tx) error { tx.Put(l); return nil }); err != nil {
					t.Fatal(err)
				}
			}
			put(v.Store())
			if err := v.Close(); err != nil {
				t.Fatal(err)
			}
			v, err = w.open(t, io.Discard, nil)
			if got := err != nil; got != c.want || got && (!strings.Contains(err.Error(), l.ID.String()) || !strings.Contains(err.Error(), "give the new one another name")) {
				t.Errorf("it starts: %v", err)
			}
			if err == nil {
				if err := v.Close(); err != nil {
					t.Fatal(err)
				}
			}
			db, err := store.Open(t.Context(), store.Config{URL: w.settings.Store})
			if err != nil {
				t.Fatal(err)
			}
			l.Status = broker.LeaseRevoked
			put(db)
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}
