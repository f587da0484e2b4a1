package server

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// A call reaches an endpoint only by a host of the broker, whatever its spelling.
func TestHosts(t *testing.T) {
	t.Parallel()
	w := newQuietWorld(t, func(cfg *Config) {
		cfg.UIURL = "https://pages.acme.test:8480"
		cfg.Hosts = []string{"broker.svc", "Other.svc:9443", "[2001:db8::1]:443"}
	})
	server := httptest.NewServer(w.Handler(API, UI))
	t.Cleanup(server.Close)
	_, port, _ := net.SplitHostPort(server.Listener.Addr().String())
	tests := []struct {
		host string
		want bool
	}{
		{"broker.acme.test:443", true},
		{"BROKER.acme.TEST:443", true},
		{"broker.acme.test.:443", true},
		{"broker.acme.test:" + port, true}, // the external name on another listener
		{"pages.acme.test:8480", true},
		{"broker.svc:" + port, true},
		{"broker.svc:443", true},
		{"other.svc:9443", true},
		{"[2001:db8:0::1]:443", true},
		{"127.0.0.1:" + port, true}, // the listener's address
		{"localhost:" + port, true},
		{"LocalHost.:" + port, true},

		{"evil.test", false},
		{"evil.test:" + port, false},
		{"broker.acme.test", false}, // without TLS, port 80
		{"broker.acme.test:444", false},
		{"broker.acme.test..:443", false},
		{"broker.acme.test.evil.test:443", false},
		{"evil.test#broker.acme.test:443", false},
		{"evil.test@broker.acme.test:443", false},
		{"broker.acme.test:443:443", false},
		{"broker.acme.test:0443", false},
		{"broker.acme.test:+443", false},
		{"broker.acme.test:65979", false},
		{"pages.acme.test:9443", false},
		{"other.svc:" + port, false},
		{"127.0.0.1", false},
		{"127.0.0.2:" + port, false},
		{"127.1:" + port, false},
		{"2130706433:" + port, false},
		{"0x7f.0.0.1:" + port, false},
		{"[::1]:" + port, false},
		{"[127.0.0.1]:" + port, false},
		{"[::ffff:127.0.0.1%25lo]:" + port, false},
		{"localhost", false},
		{"", false},
	}
	for _, path := range []string{"/v1/whoami", "/ui/login", "/openapi.json", "/nope", "/healthz"} {
		for _, test := range tests {
			status := rawStatus(t, server.Listener.Addr().String(), "GET "+path+" HTTP/1.1\r\nHost: "+test.host+"\r\nX-Forwarded-Host: broker.acme.test:443\r\n\r\n")
			if want := test.want || path == "/healthz" && test.host == ""; (status != http.StatusMisdirectedRequest && status != http.StatusBadRequest) != want {
				t.Errorf("%s at %q: got status %d, want the call accepted: %t", path, test.host, status, want)
			}
		}
	}
}

// rawStatus sends a request as it is, and returns the status. A client library would
// refuse some of the hosts.
func rawStatus(t *testing.T, address, request string) int {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := io.WriteString(conn, strings.Replace(request, "\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1)); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

// The host of a request in absolute form counts (RFC 9112, section 3.2.2), and HTTP/1.0
// allows a health check without any.
func TestHostOfTheRequestTarget(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	address := strings.TrimPrefix(w.url, "http://")
	for request, want := range map[string]int{
		"GET http://evil.test/healthz HTTP/1.1\r\nHost: " + address + "\r\n\r\n":                 421,
		"GET http://" + address + "/healthz HTTP/1.1\r\nHost: evil.test\r\n\r\n":                 200,
		"GET /readyz HTTP/1.0\r\n\r\n":                                                           200,
		"GET /openapi.json HTTP/1.0\r\n\r\n":                                                     421,
		"GET /healthz HTTP/1.1\r\nHost: evil.test\r\nX-Forwarded-Host: broker.acme.test\r\n\r\n": 421,
	} {
		if got := rawStatus(t, address, request); got != want {
			t.Errorf("%q: got %d, want %d", request, got, want)
		}
	}
}

// Over HTTP/2, the host is ":authority".
func TestHostOverHTTP2(t *testing.T) {
	t.Parallel()
	w := newQuietWorld(t, nil)
	server := httptest.NewUnstartedServer(w.Handler(API))
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	for host, want := range map[string]int{"": 200, "broker.acme.test": 200, "Broker.Acme.Test.": 200, "evil.test": 421, "broker.acme.test:80": 421} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+"/healthz", nil)
		if err != nil {
			t.Fatal(err)
		}
		if host != "" {
			r.Host = host
		}
		resp, err := server.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.ProtoMajor != 2 || resp.StatusCode != want {
			t.Errorf("%q: got %s %d, want HTTP/2 %d", host, resp.Proto, resp.StatusCode, want)
		}
	}
	r := httptest.NewRequest(http.MethodGet, "https://broker.acme.test/healthz", nil)
	r.Header.Set("Host", "evil.test") // as HTTP/2 passes it on next to ":authority"
	answer := httptest.NewRecorder()
	if w.Handler(API).ServeHTTP(answer, r); answer.Code != 421 {
		t.Errorf("a Host that differs from :authority: got %d, want 421", answer.Code)
	}
}

func TestOnlyOwnHosts(t *testing.T) {
	t.Parallel()
	w := newQuietWorld(t, nil)
	served := 0
	h := w.OnlyOwnHosts(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { served++ }))
	for host, want := range map[string]int{"broker.acme.test:443": 200, "evil.test": 421} {
		r, answer := httptest.NewRequest(http.MethodGet, "/metrics", nil), httptest.NewRecorder()
		r.Host = host
		if h.ServeHTTP(answer, r); answer.Code != want {
			t.Errorf("%s: got %d, want %d", host, answer.Code, want)
		}
	}
	if served != 1 {
		t.Errorf("got %d calls served, want 1", served)
	}
}

func TestInvalidHostIsRefused(t *testing.T) {
	t.Parallel()
	w := newQuietWorld(t, nil)
	for _, host := range []string{"", "a b", "https://broker.acme.test", "broker.acme.test/", ":443", "[::1", "broker.acme.test:x"} {
		cfg := w.cfg
		cfg.Hosts = []string{host}
		if _, err := New(cfg); err == nil {
			t.Errorf("%q: got no error", host)
		}
	}
}
