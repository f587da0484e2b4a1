package devworld_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/attest/localca"
	"accessbroker.internal/internal/devworld"
)

// run runs a world until the test ends.
func run(t *testing.T) *devworld.World {
	t.Helper()
	dir, err := os.MkdirTemp("", "dw") // short: sockets have short paths
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	at, err := devworld.FreeAddresses()
	if err != nil {
		t.Fatal(err)
	}
	w, err := devworld.New(dir, at)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- w.Run(ctx, slog.New(slog.DiscardHandler), func(ctx context.Context) error {
			close(ready)
			<-ctx.Done()
			return nil
		})
	}()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("running the world: %v", err)
		}
	})
	select {
	case <-ready:
	case err := <-ended:
		ended <- nil
		t.Fatalf("starting the world: %v", err)
	}
	return w
}

// ordinary returns a client that does not know SPIFFE: it trusts the authorities of
// bundle.pem only, and verifies the broker's host name.
func ordinary(t *testing.T, w *devworld.World) *http.Client {
	t.Helper()
	text, err := os.ReadFile(w.Bundle())
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) {
		t.Fatalf("no certificate in %q", text)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 30 * time.Second}
}

const agent = "spiffe://" + devworld.TrustDomain + "/agent/triage"

// jwtSVID returns a JWT-SVID of a workload of the world.
func jwtSVID(t *testing.T, w *devworld.World, id, audience string) string {
	t.Helper()
	ca, err := localca.Open(filepath.Join(w.Dir, "ca"), devworld.TrustDomain)
	if err != nil {
		t.Fatal(err)
	}
	token, err := ca.JWTSVID(id, time.Minute, audience)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// An ordinary HTTPS client reaches the API by each name of this machine.
func TestOrdinaryClientsVerifyTheBroker(t *testing.T) {
	t.Parallel()
	w := run(t)
	client := ordinary(t, w)
	_, port, err := net.SplitHostPort(w.Broker)
	if err != nil {
		t.Fatal(err)
	}
	for _, url := range []string{"https://127.0.0.1:" + port, "https://localhost:" + port} {
		r, err := http.NewRequest(http.MethodGet, url+"/v1/whoami", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+jwtSVID(t, w, agent, url))
		resp, err := client.Do(r)
		if err != nil {
			t.Errorf("%s: %v", url, err)
			continue
		}
		_ = resp.Body.Close()
		leaf := resp.TLS.PeerCertificates[0]
		if resp.StatusCode != http.StatusOK || len(leaf.URIs) != 1 || leaf.URIs[0].String() != devworld.BrokerID {
			t.Errorf("%s: got %s from %v", url, resp.Status, leaf.URIs)
		}
		if err := leaf.VerifyHostname("[::1]"); err != nil {
			t.Error(err)
		}
	}
}

// The bundle is that of the world, also at a later start.
func TestBundleFollowsTheWorld(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	at, err := devworld.FreeAddresses()
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		w, err := devworld.New(dir, at)
		if err != nil {
			t.Fatal(err)
		}
		ca, err := localca.Open(filepath.Join(dir, "ca"), devworld.TrustDomain)
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(w.Bundle())
		if err != nil || string(got) != string(ca.X509Bundle()) {
			t.Errorf("got %q, %v; want %q", got, err, ca.X509Bundle())
		}
		if err := ca.RotateX509(); err != nil {
			t.Fatal(err)
		}
		if err := ca.Save(filepath.Join(dir, "ca")); err != nil {
			t.Fatal(err)
		}
	}
}

// A folder keeps its addresses. A start with others names the file, and changes nothing.
func TestFolderKeepsItsAddresses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first := devworld.Addresses{Broker: "127.0.0.1:8443", Pages: "127.0.0.1:8480", Login: "127.0.0.1:8481", Tickets: "127.0.0.1:8482"}
	if _, err := devworld.New(dir, first); err != nil {
		t.Fatal(err)
	}
	for _, at := range []devworld.Addresses{
		{Broker: "127.0.0.1:9443", Pages: first.Pages, Login: first.Login, Tickets: first.Tickets},
		{Broker: first.Broker, Pages: first.Pages, Login: "127.0.0.1:9481", Tickets: first.Tickets},
		{Broker: first.Broker, Pages: first.Pages, Login: first.Login, Tickets: "127.0.0.1:9482"},
	} {
		if _, err := devworld.New(dir, at); err == nil || !strings.Contains(err.Error(), filepath.Join(dir, "broker.yaml")+" has other addresses") {
			t.Errorf("%v: got %v", at, err)
		}
	}
	if _, err := devworld.New(dir, devworld.Addresses{Broker: first.Broker, Pages: "127.0.0.1:9480", Login: first.Login, Tickets: first.Tickets}); err != nil {
		t.Errorf("other pages: %v", err)
	}
}
