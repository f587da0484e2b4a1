package server

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/server/inbound"
)

// What the header decides is answered before any of the body has arrived.
func TestHeaderIsJudgedBeforeTheBody(t *testing.T) {
	t.Parallel()
	w := newQuietWorld(t, nil)
	server := httptest.NewServer(w.Handler(API, OAuth, UI))
	t.Cleanup(server.Close)
	const form, json = "Content-Type: application/x-www-form-urlencoded\r\n", "Content-Type: application/json\r\n"
	for _, test := range []struct {
		path, header string
		want         int
	}{
		{"/v1/requests", json + "Content-Length: 100\r\n", 401},
		{"/v1/requests", json + "Content-Length: 100\r\nAuthorization: Bearer garbage\r\n", 401},
		{"/v1/requests", form + "Content-Length: 100\r\nAuthorization: Bearer " + agent + "\r\n", 415},
		{"/v1/requests", json + "Content-Length: 100000\r\nAuthorization: Bearer " + agent + "\r\n", 413},
		{"/v1/requests", json + "Transfer-Encoding: chunked\r\nAuthorization: Bearer garbage\r\n", 401},
		{"/oauth2/token", form + "Content-Length: 100\r\nAuthorization: Bearer garbage\r\n", 401},
		{"/oauth2/introspect", form + "Content-Length: 100\r\nAuthorization: Bearer garbage\r\n", 401},
		{"/oauth2/revoke", form + "Transfer-Encoding: chunked\r\nAuthorization: Bearer garbage\r\n", 401},
		{"/oauth2/token", json + "Content-Length: 100\r\n", 415},
		{"/oauth2/token", form + "Content-Length: 100000\r\n", 413},
		{"/v1/sessions", form + "Content-Length: 100\r\n", 415},
		{"/v1/sessions", json + "Content-Length: 100000\r\n", 413},
		{"/ui/kill", form + "Content-Length: 100\r\n", 401},
		{"/ui/requests/req_1/sign", form + "Content-Length: 100\r\n", 401},
	} {
		address := server.Listener.Addr().String()
		if got := rawStatus(t, address, "POST "+test.path+" HTTP/1.1\r\nHost: "+address+"\r\n"+test.header+"\r\n"); got != test.want {
			t.Errorf("%s %q: got %d, want %d", test.path, test.header, got, test.want)
		}
	}
}

// An answer on a connection that stays open does not wait for the rest of the body, and
// closes the connection.
func TestAnswerBeforeTheBodyIsSent(t *testing.T) {
	t.Parallel()
	w := newQuietWorld(t, nil)
	server := httptest.NewServer(w.Handler(API, OAuth, UI))
	t.Cleanup(server.Close)
	address := server.Listener.Addr().String()
	for _, test := range []struct {
		path, header string
		want         int
	}{
		{"/v1/requests", "Content-Type: application/json\r\nContent-Length: 60000\r\n", 401},
		{"/v1/requests", "Content-Type: text/plain\r\nContent-Length: 60000\r\nAuthorization: Bearer " + agent + "\r\n", 415},
		{"/oauth2/token", "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 70000\r\n", 413},
		{"/none", "Transfer-Encoding: chunked\r\n", 404},
	} {
		t.Run(test.path+" "+strconv.Itoa(test.want), func(t *testing.T) {
			t.Parallel()
			conn, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(conn, "POST "+test.path+" HTTP/1.1\r\nHost: "+address+"\r\n"+test.header+"\r\n1"); err != nil {
				t.Fatal(err)
			}
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			if resp.StatusCode != test.want || !resp.Close {
				t.Errorf("got status %d, closing %v, want %d, closing true", resp.StatusCode, resp.Close, test.want)
			}
		})
	}
}

// However many bodies are half sent, the calls that wait for them stay within the budget,
// and a caller that sends its body is served.
func TestHalfSentBodiesAreBounded(t *testing.T) {
	t.Parallel()
	const most, conns, streams = 1 << 20, 8, 100 // 800 bodies, of which 64 fit
	w := newQuietWorld(t, func(cfg *Config) { cfg.UnprovedBytes = most })
	server := httptest.NewUnstartedServer(nil)
	server.Config = w.HTTPServer(w.Handler(API, OAuth), nil)
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	defer all.Wait()
	defer stop()
	answered := make(chan int, conns*streams)
	for i := range conns {
		client := &http.Client{Transport: server.Client().Transport.(*http.Transport).Clone()}
		defer client.CloseIdleConnections()
		path := []string{"/oauth2/token", "/v1/sessions"}[i%2]
		mediaType := []string{"application/x-www-form-urlencoded", "application/json"}[i%2]
		for range streams {
			all.Go(func() {
				half, body := io.Pipe()
				defer func() { _ = body.Close() }()
				go func() { _, _ = io.WriteString(body, "grant_type=") }()
				r, err := http.NewRequestWithContext(ctx, http.MethodPost, server.URL+path, half)
				if err != nil {
					t.Error(err)
					return
				}
				r.Header.Set("Content-Type", mediaType)
				resp, err := client.Do(r)
				if err != nil {
					return // the test has ended
				}
				_ = resp.Body.Close()
				answered <- resp.StatusCode
			})
		}
	}
	for range conns*streams - most/callCost {
		if status := <-answered; status != http.StatusTooManyRequests {
			t.Fatalf("got %d, want 429", status)
		}
	}
	w.bodies.mu.Lock()
	used, networks := w.bodies.used, len(w.bodies.networks)
	w.bodies.mu.Unlock()
	if used > most || used == 0 || networks != 1 {
		t.Errorf("got %d bytes in use for %d networks, want at most %d for one", used, networks, most)
	}
	honest := &api.Client{BaseURL: server.URL, HTTP: server.Client(), Token: func(context.Context) (string, error) { return agent, nil }}
	if _, err := honest.WhoAmI(t.Context()); err != nil {
		t.Error(err)
	}
	form := url.Values{"grant_type": {api.GrantClientCredentials}, "client_assertion_type": {api.AssertionTypeJWT}, "client_assertion": {agent}, "audience": {"tickets"}, "scope": {"tickets:read"}, "justification": {"x"}}
	for range 100 {
		resp, err := server.Client().PostForm(server.URL+"/oauth2/token", form)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("a whole body: got %s, want 200", resp.Status)
		}
	}
}

// The budget takes from the network that uses the most, and there from the oldest call.
func TestBudgetTakesFromTheLargest(t *testing.T) {
	t.Parallel()
	b := newBudget(100)
	var expelled []string
	begin := func(name, address string) *hold {
		return b.begin(inbound.Network(netip.MustParseAddr(address)), func() { expelled = append(expelled, name) })
	}
	a1, a2, other := begin("a1", "192.0.2.1"), begin("a2", "192.0.2.1"), begin("b", "192.0.2.2")
	if !a1.grow(40) || !a2.grow(30) || !other.grow(30) || len(expelled) > 0 {
		t.Fatalf("within the budget: %v expelled", expelled)
	}
	if !other.grow(10) || fmt.Sprint(expelled) != "[a1]" || !a1.wasExpelled() || a1.grow(1) || b.used != 70 {
		t.Errorf("got %v expelled and %d in use, want [a1] and 70", expelled, b.used)
	}
	if other.grow(50) || fmt.Sprint(expelled) != "[a1 b]" || b.used != 30 {
		t.Errorf("got %v expelled and %d in use, want the largest network itself and 30", expelled, b.used)
	}
	for _, h := range []*hold{a1, a2, other, a2} {
		h.end()
	}
	if b.used != 0 || len(b.networks) != 0 {
		t.Errorf("at the end: %d in use, %d networks", b.used, len(b.networks))
	}
}

// A call can't return from its handler while it is expelled: over HTTP/2, net/http panics
// if its response is used afterwards.
func TestExpelledCallIsStillRunning(t *testing.T) {
	t.Parallel()
	b, expelled := newBudget(100), 0
	h := b.begin(inbound.Network(netip.MustParseAddr("192.0.2.1")), func() {
		expelled++
		if b.mu.TryLock() { // end, which a call waits for, locks it
			b.mu.Unlock()
			t.Error("the call can end while it is expelled")
		}
	})
	if h.grow(101) || expelled != 1 {
		t.Errorf("got the call expelled %d times, want once", expelled)
	}
	known := b.begin(inbound.Network(netip.MustParseAddr("192.0.2.2")), func() { t.Error("a call of a known caller was expelled") })
	known.end()
	if !known.grow(101) || b.used != 0 {
		t.Errorf("after its caller is known, a call may not go on, or uses %d bytes", b.used)
	}
}

// A body within the bounds arrives whole, however it is cut.
func TestReadAll(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	address := strings.TrimPrefix(w.url, "http://")
	for _, size := range []int{0, 1, firstRead - 1, firstRead, firstRead + 1, maxBody} {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		body := strings.Repeat("x", size)
		_, _ = fmt.Fprintf(conn, "POST /oauth2/token HTTP/1.1\r\nHost: %s\r\nContent-Type: application/x-www-form-urlencoded\r\nTransfer-Encoding: chunked\r\n\r\n", address)
		for chunk := body; ; {
			n := min(len(chunk), 1000)
			_, _ = fmt.Fprintf(conn, "%x\r\n%s\r\n", n, chunk[:n])
			if chunk = chunk[n:]; n == 0 {
				break
			}
		}
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		text, _ := io.ReadAll(resp.Body)
		_ = conn.Close()
		if resp.StatusCode != http.StatusBadRequest || !strings.Contains(string(text), "grant_type is missing") {
			t.Errorf("%d bytes: got %s %s", size, resp.Status, text)
		}
	}
	w.bodies.mu.Lock()
	defer w.bodies.mu.Unlock()
	if w.bodies.used != 0 {
		t.Errorf("afterwards, %d bytes are in use", w.bodies.used)
	}
}
