package mcp_test

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"accessbroker.internal/api"
	"accessbroker.internal/attest/localca"
	"accessbroker.internal/internal/devworld"
	"accessbroker.internal/internal/devworld/browser"
	"accessbroker.internal/mcp"
)

const (
	triage = "spiffe://" + devworld.TrustDomain + "/agent/triage"
	other  = "spiffe://" + devworld.TrustDomain + "/agent/other"
)

// A world is a broker that the tools reach, with its people.
type world struct {
	*devworld.World
	t    testing.TB
	http *http.Client
}

func newWorld(t testing.TB) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "mw") // short: sockets have short paths
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	at, err := devworld.FreeAddresses()
	must(t, err)
	w, err := devworld.New(dir, at)
	must(t, err)
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
		must(t, <-ended)
	})
	select {
	case <-ready:
	case err := <-ended:
		ended <- nil
		t.Fatalf("starting the world: %v", err)
	}
	bundle, err := os.ReadFile(w.Bundle())
	must(t, err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(bundle)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, MaxIdleConnsPerHost: 100}
	t.Cleanup(transport.CloseIdleConnections)
	return &world{World: w, t: t, http: &http.Client{Transport: transport, Timeout: time.Minute}}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// client returns a client of the broker's API for a workload.
func (w *world) client(id string) *api.Client {
	ca, err := localca.Open(filepath.Join(w.Dir, "ca"), devworld.TrustDomain)
	must(w.t, err)
	token, err := ca.JWTSVID(id, 10*time.Minute, w.URL())
	must(w.t, err)
	return w.with(token)
}

func (w *world) with(token string) *api.Client {
	return &api.Client{BaseURL: w.URL(), HTTP: w.http, Token: func(context.Context) (string, error) { return token, nil }}
}

// person returns a client of the broker's API for a person's session.
func (w *world) person(name string) *api.Client {
	w.t.Helper()
	ctx, verifier := w.t.Context(), rand.Text()+rand.Text()
	challenge := sha256.Sum256([]byte(verifier))
	b, err := browser.LogIn(ctx, w.PagesURL(), name)
	must(w.t, err)
	terminal, err := b.Follow(ctx, http.MethodPost, b.Pages()+"/ui/terminal", url.Values{
		"decision": {"allow"}, "port": {"65000"}, "state": {"test"}, "challenge": {base64.RawURLEncoding.EncodeToString(challenge[:])},
	})
	must(w.t, err)
	at, err := url.Parse(terminal)
	must(w.t, err)
	session, err := (&api.Client{BaseURL: w.URL(), HTTP: w.http}).OpenSession(ctx, api.Login{Code: at.Query().Get("code"), Verifier: verifier})
	must(w.t, err)
	return w.with(session.Token)
}

// decide lets a person decide on a request.
func (w *world) decide(person *api.Client, id, decision, comment string) {
	w.t.Helper()
	r, err := person.Request(w.t.Context(), id)
	must(w.t, err)
	_, err = person.Vote(w.t.Context(), id, api.Vote{Decision: decision, Digest: r.Digest, Comment: comment})
	must(w.t, err)
}

// connect returns a client of the SDK for the tools of a caller.
func connect(t testing.TB, b mcp.Broker, opts *sdk.ClientOptions, cfg mcp.Config) *sdk.ClientSession {
	t.Helper()
	return connectAs(t, b, opts, cfg, "")
}

// connectAs is connect for a client of one revision of the protocol; empty: the newest.
func connectAs(t testing.TB, b mcp.Broker, opts *sdk.ClientOptions, cfg mcp.Config, version string) *sdk.ClientSession {
	t.Helper()
	session, err := sdk.NewClient(&sdk.Implementation{Name: "test", Version: "1"}, opts).Connect(t.Context(), connected{serve(t, b, cfg)}, &sdk.ClientSessionOptions{ProtocolVersion: version})
	must(t, err)
	t.Cleanup(func() { _ = session.Close() })
	if got := session.InitializeResult().ProtocolVersion; version != "" && got != version {
		t.Fatalf("got revision %s, want %s", got, version)
	}
	return session
}

// serve runs a server and returns the client's side of the connection.
func serve(t testing.TB, b mcp.Broker, cfg mcp.Config) sdk.Connection {
	t.Helper()
	in, out := serveStreams(t, b, cfg)
	conn, err := (&sdk.IOTransport{Reader: out, Writer: in}).Connect(t.Context())
	must(t, err)
	return conn
}

func serveLines(t testing.TB, b mcp.Broker) (in io.WriteCloser, out io.ReadCloser) {
	t.Helper()
	return serveStreams(t, b, mcp.Config{})
}

// serveStreams runs a server until the test ends, and returns the ends of its streams.
func serveStreams(t testing.TB, b mcp.Broker, cfg mcp.Config) (in io.WriteCloser, out io.ReadCloser) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	toServer, in := io.Pipe()
	out, fromServer := io.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- mcp.New(cfg).Run(ctx, b, toServer, fromServer) }()
	t.Cleanup(func() {
		_, _ = in.Close(), out.Close()
		stop()
		must(t, <-ended)
	})
	return in, out
}

// connected is a transport that is connected already.
type connected struct{ sdk.Connection }

func (c connected) Connect(context.Context) (sdk.Connection, error) { return c.Connection, nil }

// call calls a tool and returns its result.
func call(t testing.TB, s *sdk.ClientSession, name string, arguments any) *sdk.CallToolResult {
	t.Helper()
	res, err := s.CallTool(t.Context(), &sdk.CallToolParams{Name: name, Arguments: arguments})
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return res
}

// structured returns the structured content of a result that is no error.
func structured[T any](t testing.TB, res *sdk.CallToolResult) (out T) {
	t.Helper()
	if res.IsError {
		t.Fatalf("got an error: %s", textOf(res))
	}
	raw, err := json.Marshal(res.StructuredContent)
	must(t, err)
	must(t, json.Unmarshal(raw, &out))
	return out
}

func textOf(res *sdk.CallToolResult) string {
	text := ""
	for _, c := range res.Content {
		if t, ok := c.(*sdk.TextContent); ok {
			text += t.Text
		}
	}
	return text
}
