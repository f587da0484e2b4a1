package brokertest

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"accessbroker.internal/api"
	"accessbroker.internal/attest"
	"accessbroker.internal/broker"
	"accessbroker.internal/internal/brokertest/check"
	"accessbroker.internal/internal/config"
	"accessbroker.internal/internal/devworld"
	"accessbroker.internal/internal/service"
	"accessbroker.internal/internal/storetest"
	"accessbroker.internal/internal/storetest/tables"
	"accessbroker.internal/store"
)

// A World is a development world whose parts a test starts, stops and edits by
// itself.
type World struct {
	*devworld.World

	t      testing.TB
	log    lines
	forged []broker.LeaseID
}

// NewWorld creates a world. Nothing runs yet. The store is checked when the test
// ends.
func NewWorld(t testing.TB) *World {
	t.Helper()
	dir, err := os.MkdirTemp("", "bs") // the paths of sockets must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	at, err := devworld.FreeAddresses()
	if err != nil {
		t.Fatal(err)
	}
	w := &World{t: t}
	if w.World, err = devworld.New(dir, at); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(w.ConfigFile())
	if err == nil {
		err = os.WriteFile(w.ConfigFile(), []byte(onDatabase(t, string(text), w.Path("broker.db"))), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if w.started() {
			check.Database(t, w.Database(), check.Options{Except: w.forged})
		}
		check.Tokens(t, w.log.String())
	})
	return w
}

// started reports whether a broker of the world has opened its log.
func (w *World) started() bool {
	file := "broker.db"
	if storetest.Postgres() { // the database exists before
		file = "broker.db.checkpoint"
	}
	_, err := os.Stat(w.Path(file))
	return err == nil
}

// onDatabase returns an operator's file whose store is the database that stands for a file.
func onDatabase(t testing.TB, operatorFile, file string) string {
	t.Helper()
	if !storetest.Postgres() {
		return operatorFile
	}
	text := strings.Replace(operatorFile, "store: sqlite:broker.db", "store: "+tables.URL(t, file), 1)
	return strings.Replace(text, "  admin_socket:", "  checkpoint_file: broker.db.checkpoint\n  admin_socket:", 1)
}

// Database returns the URL of the broker's store.
func (w *World) Database() string { return tables.URL(w.t, w.Path("broker.db")) }

// Open opens a broker by the world's operator file, as "broker serve" does. ready may
// be nil.
func (w *World) Open(out io.Writer, ready func([]net.Listener)) (*service.Service, error) {
	w.t.Helper()
	c, err := config.Load(w.ConfigFile(), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(io.MultiWriter(out, &w.log), nil))
	return service.New(w.t.Context(), service.Options{Config: c, Log: log, Ready: ready, DiskReserve: 1 << 16, NoSync: true})
}

// Start runs a broker until the test ends or stop is called.
func (w *World) Start(out io.Writer) (listeners []net.Listener, stop func()) {
	w.t.Helper()
	ready, done := make(chan []net.Listener, 1), make(chan error, 1)
	s, err := w.Open(out, func(l []net.Listener) { ready <- l })
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() { done <- s.Run(ctx) }()
	stopped := false
	stop = func() {
		if cancel(); !stopped {
			stopped = true
			if err := <-done; err != nil {
				w.t.Errorf("the broker ended with %v", err)
			}
		}
	}
	w.t.Cleanup(stop)
	select {
	case listeners = <-ready:
	case err := <-done:
		stopped = true
		w.t.Fatalf("the broker did not start: %v", err)
	}
	return listeners, stop
}

// Edit replaces the first occurrence of a text in the operator's file.
func (w *World) Edit(from, to string) { w.edit(from, to, 1) }

// EditAll replaces all occurrences of a text of the operator's file, which must exist.
func (w *World) EditAll(from, to string) { w.edit(from, to, -1) }

// MoveTrustDomain replaces the trust domain in the operator's file, with all names in it.
func (w *World) MoveTrustDomain(to string) {
	w.edit("trust_domain: "+devworld.TrustDomain, "trust_domain: "+to, 1)
	w.EditAll("spiffe://"+devworld.TrustDomain+"/", "spiffe://"+to+"/")
}

func (w *World) edit(from, to string, times int) {
	w.t.Helper()
	text, err := os.ReadFile(w.ConfigFile())
	if err != nil || !strings.Contains(string(text), from) {
		w.t.Fatalf("the operator's file does not have %q (%v)", from, err)
	}
	if err := os.WriteFile(w.ConfigFile(), []byte(strings.Replace(string(text), from, to, times)), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// Forge writes rows of leases that have no records. The check at the end ignores
// them.
func (w *World) Forge(db *store.Store, leases ...*broker.Lease) {
	w.t.Helper()
	for _, l := range leases {
		w.forged = append(w.forged, l.ID)
	}
	err := db.Update(w.t.Context(), nil, func(tx broker.Tx) error {
		for _, l := range leases {
			tx.Put(l)
		}
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// StartIdentities serves the Workload API until the test ends or stop is called.
func (w *World) StartIdentities() (stop func()) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	group, ctx := errgroup.WithContext(ctx)
	stop = func() {
		cancel()
		if err := group.Wait(); err != nil {
			w.t.Error(err)
		}
	}
	w.t.Cleanup(stop)
	if err := w.ServeIdentities(ctx, group); err != nil {
		w.t.Fatal(err)
	}
	return stop
}

// Agent returns a client with the agent's SVID, which accepts only the broker's.
func (w *World) Agent() *api.Client {
	w.t.Helper()
	source, err := attest.Open(w.t.Context(), attest.Config{
		WorkloadAPI: "unix://" + w.Socket("agent"), StartTimeout: 10 * time.Second, TrustDomains: []string{devworld.TrustDomain},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- source.Run(ctx) }()
	tls, err := source.ClientTLS(attest.ClientTLS{BrokerID: devworld.BrokerID})
	if err != nil {
		w.t.Fatal(err)
	}
	transport := &http.Transport{TLSClientConfig: tls, ForceAttemptHTTP2: true}
	w.t.Cleanup(func() {
		cancel()
		<-done // the Workload API may have ended before
		transport.CloseIdleConnections()
	})
	return &api.Client{BaseURL: w.URL(), HTTP: &http.Client{Transport: transport, Timeout: 30 * time.Second}}
}

// Operator returns a client that calls over the admin socket.
func (w *World) Operator() *api.Client { return operatorOver(w.t, w.AdminSocket()) }

func operatorOver(t testing.TB, socket string) *api.Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}
	transport := &http.Transport{DialContext: dial}
	t.Cleanup(transport.CloseIdleConnections)
	return &api.Client{BaseURL: "http://localhost", HTTP: &http.Client{Transport: transport, Timeout: time.Minute}}
}

// Lease starts a broker, has the agent collect a credential, and stops the broker. It
// returns the ID of the lease.
func (w *World) Lease(ask api.Ask) broker.LeaseID {
	w.t.Helper()
	stopIdentities := w.StartIdentities()
	_, stop := w.Start(io.Discard)
	defer stopIdentities()
	defer stop()
	c, pending, err := w.Agent().AskAndCollect(w.t.Context(), ask)
	if err == nil && c == nil {
		err = fmt.Errorf("request %s is pending", pending.ID)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	id, err := broker.ParseLeaseID(c.Lease)
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

// Eventually waits until holds returns true, for 30 seconds at most.
func Eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 30 s", what)
		}
	}
}
