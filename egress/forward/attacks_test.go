package forward_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// newPlain returns a dialer of a server without TLS that has the handler of the world.
func newPlain(t *testing.T, w *world) func(context.Context, string, string) (net.Conn, error) {
	t.Helper()
	server := httptest.NewServer(w.upstream.Config.Handler)
	t.Cleanup(server.Close)
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, server.Listener.Addr().String())
	}
}

func unreached(t *testing.T) http.HandlerFunc {
	return func(http.ResponseWriter, *http.Request) { t.Error("the call reached the upstream") }
}

// A process without the token, or with a wrong one, is refused before anything else.
func TestTokenIsRequired(t *testing.T) {
	w := newWorld(t, unreached(t))
	for name, header := range map[string]string{
		"none": "", "empty": "Proxy-Authorization: Basic \r\n", "other scheme": "Proxy-Authorization: Bearer " + token + "\r\n",
		"wrong token":  "Proxy-Authorization: Basic YnJva2VyOmEtdG9rZW4tb2YtdGhlLXByb3h4\r\n",
		"prefix":       "Proxy-Authorization: Basic YnJva2VyOmEtdG9rZW4=\r\n",
		"other header": "Authorization: Basic YnJva2VyOmEtdG9rZW4tb2YtdGhlLXByb3h5\r\n",
		"twice":        authorization + authorization,
		"two values":   authorization + "Proxy-Authorization: Basic eDp5\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			for _, line := range []string{"CONNECT " + host + ":443", "GET http://" + host + "/", "GET /ca.pem", "CONNECT 127.0.0.1:22"} {
				got := w.raw(line + " HTTP/1.1\r\nHost: " + host + ":443\r\nConnection: close\r\n" + header + "\r\n")
				if !strings.HasPrefix(got, "HTTP/1.1 407 ") || !strings.Contains(got, "Proxy-Authenticate: Basic") {
					t.Errorf("%s: got %q", line, got)
				}
			}
		})
	}
}

// CONNECT reaches the hosts of the rules and no other.
func TestConnectOffTheList(t *testing.T) {
	w := newWorld(t, unreached(t))
	for _, target := range []string{
		"evil.test:443", "127.0.0.1:443", "[::1]:443", "169.254.169.254:80", "2130706433:443", "0x7f.1:443", "[::ffff:127.0.0.1]:443",
		host + ":22", host + ":80", host + ".:443", "sub." + host + ":443", host + "@evil.test:443", "api.acme.test%2eevil.test:443", host + ":443@evil.test:443", "localhost:443",
	} {
		got := w.raw("CONNECT " + target + " HTTP/1.1\r\nHost: " + target + "\r\n" + authorization + "\r\n")
		first, _, _ := strings.Cut(got, "\r\n")
		if !strings.HasPrefix(first, "HTTP/1.1 403 No rule of your entitlements") && !strings.HasPrefix(first, "HTTP/1.1 400 ") {
			t.Errorf("CONNECT %s: got %q", target, first)
		}
		if strings.HasPrefix(first, "HTTP/1.1 403") && !strings.Contains(got, "Next: ") {
			t.Errorf("CONNECT %s explains nothing: %q", target, got)
		}
	}
	for _, text := range []string{
		"CONNECT " + host + " HTTP/1.1\r\nHost: " + host + "\r\n",
		"CONNECT https://" + host + "/ HTTP/1.1\r\nHost: " + host + "\r\n",
		"CONNECT / HTTP/1.1\r\nHost: " + host + ":443\r\n",
	} {
		if got := w.raw(text + authorization + "\r\n"); strings.HasPrefix(got, "HTTP/1.1 200") {
			t.Errorf("%q: got %q", text, got)
		}
	}
}

// The target of CONNECT, the name in TLS and the host of the call agree, or nothing is
// called.
func TestNamesMustAgree(t *testing.T) {
	w := newWorld(t, unreached(t))
	for _, name := range []string{"other.acme.test", "evil.test"} {
		c := tls.Client(w.tunnel(host+":443"), &tls.Config{InsecureSkipVerify: true, ServerName: name})
		if err := c.Handshake(); err == nil {
			t.Errorf("a handshake for %s in a tunnel to %s", name, host)
		}
	}
	for _, text := range []string{
		"GET / HTTP/1.1\r\nHost: other.acme.test\r\n",
		"GET / HTTP/1.1\r\nHost: evil.test\r\n",
		"GET / HTTP/1.1\r\nHost: " + host + ":444\r\n",
		"GET / HTTP/1.1\r\nHost: " + host + ":80\r\n",
		"GET / HTTP/1.1\r\nHost: " + host + ".\r\n",
		"GET / HTTP/1.1\r\nHost: x@" + host + "\r\n",
		"GET https://other.acme.test/ HTTP/1.1\r\nHost: " + host + "\r\n",
		"GET http://" + host + "/ HTTP/1.1\r\nHost: " + host + "\r\n",
		"GET https://" + host + "@other.acme.test/ HTTP/1.1\r\nHost: " + host + "\r\n",
		"GET / HTTP/1.1\r\nHost: " + host + "\r\nHost: other.acme.test\r\n",
		"GET / HTTP/1.0\r\n",
		"CONNECT other.acme.test:443 HTTP/1.1\r\nHost: other.acme.test:443\r\n",
		"CONNECT " + host + ":443 HTTP/1.1\r\nHost: " + host + ":443\r\n",
	} {
		c := w.tls(host+":443", host)
		fmt.Fprint(c, text+"\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Errorf("%q: %v", text, err)
		} else if resp.StatusCode < 400 || resp.StatusCode >= 500 {
			t.Errorf("%q: got %s", text, resp.Status)
		}
	}
}

// The pseudo-headers of HTTP/2 name no other host either, also on a connection that has
// carried a good call.
func TestPseudoHeadersMustAgree(t *testing.T) {
	calls := 0
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		if calls++; r.Host != host || r.URL.Path != "/good" {
			t.Errorf("the upstream got %s%s", r.Host, r.URL)
		}
	})
	good := [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", host}, {":path", "/good"}}
	for _, test := range []struct {
		name   string
		fields [][2]string
	}{
		{"another authority", [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", "other.acme.test"}, {":path", "/"}}},
		{"another port", [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", host + ":444"}, {":path", "/"}}},
		{"a user", [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", host + "@evil.test"}, {":path", "/"}}},
		{"no authority, another host", [][2]string{{":method", "GET"}, {":scheme", "https"}, {":path", "/"}, {"host", "evil.test"}}},
		{"two authorities", [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", host}, {":authority", "evil.test"}, {":path", "/"}}},
		{"a URL as the path", [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", host}, {":path", "https://evil.test/"}}},
		{"an asterisk", [][2]string{{":method", "OPTIONS"}, {":scheme", "https"}, {":authority", host}, {":path", "*"}}},
		{"a line break", [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", host}, {":path", "/ HTTP/1.1\r\nHost: evil.test\r\n\r\n"}}},
		{"a line break in a header", [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", host}, {":path", "/"}, {"x", "y\r\nauthorization: z"}}},
		{"CONNECT", [][2]string{{":method", "CONNECT"}, {":authority", "other.acme.test:443"}}},
		{"extended CONNECT", [][2]string{{":method", "CONNECT"}, {":protocol", "websocket"}, {":scheme", "https"}, {":authority", "other.acme.test"}, {":path", "/"}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newH2(t, w.tls(host+":443", host, "h2"))
			if got := h.status(1, good); got != "200" {
				t.Fatalf("the good call got %s", got)
			}
			if got := h.status(3, test.fields); got == "" || got[0] == '2' {
				t.Errorf("got %s", got)
			}
		})
	}
	if calls != 11 {
		t.Errorf("%d calls reached the upstream, want 11", calls)
	}
}

// An h2Conn sends frames as they are.
type h2Conn struct {
	t *testing.T
	f *http2.Framer
}

func newH2(t *testing.T, c *tls.Conn) *h2Conn {
	t.Helper()
	if c.ConnectionState().NegotiatedProtocol != "h2" {
		t.Fatal("no HTTP/2")
	}
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	f := http2.NewFramer(c, c)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if err := f.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return &h2Conn{t, f}
}

// status returns the status of a call, or "reset" if the server refuses the stream or the
// connection.
func (h *h2Conn) status(stream uint32, fields [][2]string) string {
	h.t.Helper()
	var block strings.Builder
	encoder := hpack.NewEncoder(&block)
	for _, f := range fields {
		_ = encoder.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	if err := h.f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: []byte(block.String()), EndHeaders: true, EndStream: true}); err != nil {
		return "reset"
	}
	for {
		frame, err := h.f.ReadFrame()
		if err != nil {
			return "reset"
		}
		switch frame := frame.(type) {
		case *http2.MetaHeadersFrame:
			if frame.StreamID == stream {
				return frame.PseudoValue("status")
			}
		case *http2.RSTStreamFrame:
			if frame.StreamID == stream {
				return "reset"
			}
		case *http2.GoAwayFrame:
			return "reset"
		}
	}
}

// A call that HTTP/1.1 servers frame in different ways arrives as one call, or not at all.
func TestSmuggling(t *testing.T) {
	for name, text := range map[string]string{
		"two lengths":         "POST /a HTTP/1.1\r\nHost: %s\r\nContent-Length: 4\r\nContent-Length: 30\r\n\r\nabcdGET /smuggled HTTP/1.1\r\n\r\n",
		"length and chunks":   "POST /a HTTP/1.1\r\nHost: %s\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
		"unknown coding":      "POST /a HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: xchunked\r\nContent-Length: 4\r\n\r\nabcdGET /smuggled HTTP/1.1\r\n\r\n",
		"space before colon":  "POST /a HTTP/1.1\r\nHost: %s\r\nContent-Length : 4\r\n\r\nabcdGET /smuggled HTTP/1.1\r\n\r\n",
		"folded header":       "POST /a HTTP/1.1\r\nHost: %s\r\nX: y\r\n Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\nabcd",
		"bare line feed":      "POST /a HTTP/1.1\r\nHost: %s\r\nX: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"bad chunk":           "POST /a HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\n\r\n5;\n\r\nabcde\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
		"connection header":   "POST /a HTTP/1.1\r\nHost: %s\r\nConnection: content-length, authorization\r\nContent-Length: 4\r\n\r\nabcd",
		"upgrade to h2c":      "GET /a HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n\r\n",
		"nul in a header":     "GET /a HTTP/1.1\r\nHost: %s\r\nX: a\x00b\r\n\r\n",
		"long header":         "GET /a HTTP/1.1\r\nHost: %s\r\nX: " + strings.Repeat("x", 1<<20) + "\r\n\r\n",
		"many headers":        "GET /a HTTP/1.1\r\nHost: %s\r\n" + strings.Repeat("X: y\r\n", 100_000) + "\r\n",
		"chunked, then alien": "POST /a HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: evil.test\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				if r.URL.Path != "/a" || r.Host != host || r.Header.Get("Authorization") != "Bearer "+secret || r.Header.Get("Upgrade") != "" {
					t.Errorf("the upstream got %s %s%s %v", r.Method, r.Host, r.URL, r.Header)
				}
			})
			c := w.tls(host+":443", host)
			_, _ = io.WriteString(c, strings.Replace(text, "%s", host, 1)) // the proxy may hang up
			_ = c.CloseWrite()
			_, _ = io.ReadAll(c)
			if n := w.reached(); n > 1 {
				t.Errorf("%d calls reached the upstream", n)
			}
		})
	}
}

func TestTunnelWithoutTLS(t *testing.T) {
	w := newWorld(t, unreached(t))
	for _, text := range []string{"GET / HTTP/1.1\r\nHost: " + host + "\r\n\r\n", "SSH-2.0-x\r\n", "\x00\x00\x00", http2.ClientPreface} {
		c := w.tunnel(host + ":443")
		_, _ = io.WriteString(c, text)
		got, _ := io.ReadAll(c)
		if !strings.HasPrefix(string(got), "HTTP/1.1 400 Not TLS\r\n") || !strings.Contains(string(got), "Call with https://.\n") {
			t.Errorf("%q: got %q", text, got)
		}
	}
	if len(w.events) != 4 || w.events[0].Refusal.Code != "not_tls" {
		t.Errorf("events: %+v", w.events)
	}
}

// The form of calls to plain proxies is not a way around the rules.
func TestAbsoluteForm(t *testing.T) {
	w := newWorld(t, unreached(t))
	for text, want := range map[string]string{
		"GET https://" + host + "/ HTTP/1.1\r\nHost: " + host:       "400",
		"GET http://x@" + host + "/ HTTP/1.1\r\nHost: " + host:      "400",
		"GET ftp://" + host + "/ HTTP/1.1\r\nHost: " + host:         "400",
		"GET file:///etc/passwd HTTP/1.1\r\nHost: " + host:          "400",
		"GET / HTTP/1.1\r\nHost: " + host:                           "400",
		"POST /ca.pem HTTP/1.1\r\nHost: " + host:                    "400",
		"GET gopher://127.0.0.1:25/ HTTP/1.1\r\nHost: 127.0.0.1:25": "400",
	} {
		if got := w.raw(text + "\r\nConnection: close\r\n" + authorization + "\r\n"); !strings.HasPrefix(got, "HTTP/1.1 "+want) {
			t.Errorf("%q: got %q, want %s", text, got, want)
		}
	}
}

// A WebSocket passes where the rules allow it, and is refused otherwise.
func TestWebSocket(t *testing.T) {
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+secret {
			t.Errorf("no credential in %v", r.Header)
		}
		rw.Header().Set("Connection", "Upgrade")
		rw.Header().Set("Upgrade", "websocket")
		rw.WriteHeader(http.StatusSwitchingProtocols)
		c, buffered, err := http.NewResponseController(rw).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = c.Close() }()
		_ = buffered.Flush()
		line, _ := buffered.ReadString('\n')
		_, _ = io.WriteString(c, strings.ToUpper(line))
	})
	w.caller.transport.ForceAttemptHTTP2 = false
	w.caller.transport.TLSClientConfig.NextProtos = []string{"http/1.1"}
	for _, allowed := range []bool{false, true} {
		w.caller.upgrades = allowed
		c := w.tls(host+":443", host)
		fmt.Fprintf(c, "GET /ws HTTP/1.1\r\nHost: %s\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n", host)
		r := bufio.NewReader(c)
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		if !allowed {
			if body := mustRead(t, resp); resp.StatusCode != http.StatusForbidden || !strings.Contains(body, "WebSocket") {
				t.Errorf("got %s %q", resp.Status, body)
			}
			continue
		}
		if resp.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("got %s", resp.Status)
		}
		fmt.Fprint(c, "hello\n")
		if line, err := r.ReadString('\n'); line != "HELLO\n" {
			t.Errorf("got %q, %v", line, err)
		}
		if _, err := r.ReadString('\n'); err == nil {
			t.Error("the client does not see the end")
		}
	}
}

// The connections of a client are bounded. One that closes makes room.
func TestConnectionsAreBounded(t *testing.T) {
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(rw, "fine") })
	var open []net.Conn
	for range 512 {
		c, err := net.Dial("tcp", w.address)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	answered := make(chan string, 1)
	client := w.client(false)
	go func() {
		resp, err := client.Get("https://" + host + "/")
		if err != nil {
			answered <- err.Error()
			return
		}
		answered <- resp.Status
		_ = resp.Body.Close()
	}()
	select {
	case got := <-answered:
		t.Errorf("the 513th connection got %s", got)
	case <-time.After(200 * time.Millisecond): // it waits
	}
	for _, c := range open {
		_ = c.Close()
	}
	if got := <-answered; got != "200 OK" {
		t.Errorf("after the others closed: %s", got)
	}
}
