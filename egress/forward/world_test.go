package forward_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"accessbroker.internal/egress"
	"accessbroker.internal/egress/forward"
)

const (
	token  = "a-token-of-the-proxy"
	secret = "s3cret-of-the-upstream"
	host   = "api.acme.test"
)

// A caller makes calls to one server, whatever their host. It adds a credential.
type caller struct {
	transport *http.Transport
	hosts     []string // "https api.acme.test:443"
	upgrades  bool
}

func (c *caller) MatchHost(scheme, hostport string) bool {
	return slices.Contains(c.hosts, scheme+" "+hostport)
}

func (c *caller) RoundTrip(r *http.Request) (*http.Response, error) {
	switch {
	case r.URL.Path == "/panic":
		panic("a fault of the caller")
	case r.URL.Path == "/refused":
		return nil, &egress.Refusal{Code: egress.CodePath, What: "No rule allows this path with GET", Next: "use a path that the rules of the entitlement list"}
	case r.URL.Path == "/pending":
		return nil, &egress.Refusal{Code: egress.CodePending, What: "The call needs an approval", Next: "wait", Request: "req_1"}
	}
	r.Header.Set("Authorization", "Bearer "+secret)
	for _, name := range []string{"Connection", "Upgrade", "Te", "Expect"} {
		r.Header.Del(name)
	}
	return c.transport.RoundTrip(r)
}

func (c *caller) Upgrade(r *http.Request) (*http.Response, error) {
	if !c.upgrades {
		return nil, &egress.Refusal{Code: egress.CodeWebSocket, What: "No rule allows a WebSocket for this path", Next: "call without an upgrade"}
	}
	r.Header.Set("Authorization", "Bearer "+secret)
	return c.transport.RoundTrip(r)
}

// A world is an upstream server, and a proxy to it.
type world struct {
	t         *testing.T
	upstream  *httptest.Server
	caller    *caller
	authority *forward.Authority
	address   string // of the proxy
	server    *forward.Server

	mu     sync.Mutex
	events []forward.Event
	seen   []*http.Request // by the upstream
}

func newWorld(t *testing.T, h http.HandlerFunc, hosts ...string) *world {
	t.Helper()
	w := &world{t: t}
	w.upstream = httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		w.seen = append(w.seen, r)
		w.mu.Unlock()
		h(rw, r)
	}))
	w.upstream.EnableHTTP2 = true
	w.upstream.StartTLS()
	t.Cleanup(w.upstream.Close)
	transport := w.upstream.Client().Transport.(*http.Transport).Clone()
	transport.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, w.upstream.Listener.Addr().String())
	}
	transport.TLSClientConfig.ServerName = "example.com" // of httptest's certificate
	t.Cleanup(transport.CloseIdleConnections)
	if len(hosts) == 0 {
		hosts = []string{"https " + host + ":443", "https other.acme.test:443", "https 192.0.2.1:443"}
	}
	w.caller = &caller{transport: transport, hosts: hosts}
	var err error
	if w.authority, err = forward.NewAuthority([]string{host, "other.acme.test", "192.0.2.1"}, time.Hour); err != nil {
		t.Fatal(err)
	}
	w.server = forward.New(forward.Config{Authority: w.authority, Caller: w.caller, Token: token, Logger: slog.New(slog.DiscardHandler), Report: func(e forward.Event) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.events = append(w.events, e)
	}})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.address = l.Addr().String()
	ended := make(chan error, 1)
	go func() { ended <- w.server.Serve(l) }()
	t.Cleanup(func() {
		if err := w.server.Close(); err != nil {
			t.Error(err)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return w
}

func (w *world) roots() *x509.CertPool {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(w.authority.PEM()) {
		w.t.Fatal("no certificate")
	}
	return pool
}

// client returns a client that calls through the proxy.
func (w *world) client(h2 bool) *http.Client {
	proxy := &url.URL{Scheme: "http", User: url.UserPassword(forward.User, token), Host: w.address}
	transport := &http.Transport{Proxy: http.ProxyURL(proxy), TLSClientConfig: &tls.Config{RootCAs: w.roots()}, ForceAttemptHTTP2: h2}
	if !h2 {
		transport.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	}
	w.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func eachProtocol(t *testing.T, f func(t *testing.T, h2 bool)) {
	t.Run("HTTP/1.1", func(t *testing.T) { f(t, false) })
	t.Run("HTTP/2", func(t *testing.T) { f(t, true) })
}

func mustGet(t *testing.T, c *http.Client, target string) (*http.Response, string) {
	t.Helper()
	resp, err := c.Get(target)
	if err != nil {
		t.Fatal(err)
	}
	return resp, mustRead(t, resp)
}

func mustRead(t *testing.T, resp *http.Response) string {
	t.Helper()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	return string(body)
}

// reached returns the number of calls that the upstream received.
func (w *world) reached() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.seen)
}

// raw sends bytes to the proxy and returns all that comes back.
func (w *world) raw(text string) string {
	w.t.Helper()
	c, err := net.Dial("tcp", w.address)
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(c, text); err != nil {
		w.t.Fatal(err)
	}
	_ = c.(*net.TCPConn).CloseWrite()
	out, _ := io.ReadAll(c) // a reset is an answer, too
	return string(out)
}

// tunnel opens a tunnel and returns its connection before TLS.
func (w *world) tunnel(target string) net.Conn {
	w.t.Helper()
	c, err := net.Dial("tcp", w.address)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(c, "CONNECT "+target+" HTTP/1.1\r\nHost: "+target+"\r\n"+authorization+"\r\n"); err != nil {
		w.t.Fatal(err)
	}
	head := make([]byte, len("HTTP/1.1 200 Connection established\r\n\r\n"))
	if _, err := io.ReadFull(c, head); err != nil || !strings.HasPrefix(string(head), "HTTP/1.1 200") {
		w.t.Fatalf("CONNECT %s: got %q, %v", target, head, err)
	}
	return c
}

// authorization is the header with the token: broker:a-token-of-the-proxy.
const authorization = "Proxy-Authorization: Basic YnJva2VyOmEtdG9rZW4tb2YtdGhlLXByb3h5\r\n"

// tls opens TLS in a tunnel.
func (w *world) tls(target, name string, protocols ...string) *tls.Conn {
	w.t.Helper()
	c := tls.Client(w.tunnel(target), &tls.Config{RootCAs: w.roots(), ServerName: name, NextProtos: protocols})
	if err := c.Handshake(); err != nil {
		w.t.Fatal(err)
	}
	return c
}
