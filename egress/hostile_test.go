package egress_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/agent"
	"accessbroker.internal/api"
	"accessbroker.internal/egress"
)

// rawHost answers each connection with a function, and returns its address. It speaks TLS
// with the certificate of the world's host.
func (w *world) rawHost(answer func(net.Conn)) string {
	w.t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: w.host.TLS.Certificates})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = conn.Close() }()
				answer(conn)
			}()
		}
	}()
	return l.Addr().String()
}

// onRaw replaces the world's host by one that sends bytes.
func (w *world) onRaw(edit func(*api.Egress), answer func(net.Conn)) (url string) {
	address := w.rawHost(answer)
	rules := rulesFor(address)
	if edit != nil {
		edit(rules)
	}
	w.transport = newTransport(w.t, w, api.Offer{Entitlement: "widgets", Egress: rules})
	return "https://" + address + "/v1/x"
}

// readRequest reads the header of a request as it was sent.
func readRequest(conn net.Conn) string {
	var text strings.Builder
	for lines := bufio.NewReader(conn); ; {
		line, err := lines.ReadString('\n')
		text.WriteString(line)
		if err != nil || line == "\r\n" {
			return text.String()
		}
	}
}

// net/http accepts a final answer whose status its own server can't pass on.
func TestStatusesThatAreNotHTTP(t *testing.T) {
	for _, status := range []string{"000", "007", "099"} {
		w := newWorld(t, nil, nil)
		url := w.onRaw(nil, func(conn net.Conn) {
			_ = readRequest(conn)
			fmt.Fprintf(conn, "HTTP/1.1 %s x\r\nContent-Length: 2\r\n\r\nhi", status)
		})
		if resp, _, err := w.call("GET", url, "", nil); codeOf(err) != egress.CodeUnreachable {
			t.Errorf("%s: got %v, %v", status, resp, err)
		}
	}
}

// A trailer hands out no more than a header does.
func TestTrailersHandOutNoCookie(t *testing.T) {
	w := newWorld(t, nil, nil)
	url := w.onRaw(nil, func(conn net.Conn) {
		_ = readRequest(conn)
		fmt.Fprint(conn, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: Set-Cookie, X-Sum\r\n\r\n2\r\nhi\r\n0\r\nSet-Cookie: session=other\r\nAlt-Svc: h3=evil\r\nX-Sum: 1\r\n\r\n")
	})
	resp, text, err := w.call("GET", url, "", nil)
	if err != nil || text != "hi" {
		t.Fatalf("got %q, %v", text, err)
	}
	if len(resp.Trailer) != 1 || resp.Trailer.Get("X-Sum") != "1" {
		t.Errorf("got the trailer %v", resp.Trailer)
	}
}

func TestRedirectsAreReturned(t *testing.T) {
	reached := make(chan string, 10)
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { reached <- r.Header.Get("Authorization") }))
	defer elsewhere.Close()
	w := newWorld(t, http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/from" {
			reached <- r.URL.Path
		}
		out.Header().Set("Location", r.URL.Query().Get("to"))
		out.WriteHeader(http.StatusFound)
	}), nil)
	for _, to := range []string{elsewhere.URL, "/v1/other", "http://127.0.0.1/", "file:///etc/passwd", "//evil.test/", "https://169.254.169.254/latest"} {
		resp, _, err := w.call("GET", w.host.URL+"/v1/from?to="+to, "", nil)
		if err != nil || resp.StatusCode != http.StatusFound || resp.Header.Get("Location") != to {
			t.Errorf("%s: got %v, %v", to, resp, err)
		}
	}
	if len(reached) > 0 {
		t.Errorf("a redirect was followed: %q", <-reached)
	}
}

// Nothing of the caller's identifies it to the host, and nothing frames the message.
func TestCallersHeadersAreDropped(t *testing.T) {
	var got http.Header
	w := newWorld(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r.Header.Clone() }), func(e *api.Egress) {
		e.Inject = api.Injection{As: api.InjectHeader, Name: "X-Key"}
		e.Allow[0].Headers = []string{"x-request-id", "x-meta-*"}
	})
	sent := http.Header{
		"Accept": {"text/plain"}, "Content-Type": {"text/plain"}, "X-Request-Id": {"1"}, "X-Meta-A": {"2"}, "User-Agent": {"probe"}, "X-Other": {"3"}, "X-Hop": {"4"},
		"Connection": {"keep-alive, X-Hop, X-Key, Authorization"}, "Keep-Alive": {"x"}, "Te": {"trailers"}, "Trailer": {"X-T"}, "Upgrade": {"h2c"}, "Http2-Settings": {"x"}, "Expect": {"100-continue"}, "Transfer-Encoding": {"chunked"}, "Content-Length": {"5"},
		"X-Key": {"mine"}, "x-key": {"mine"}, "Authorization": {"Bearer mine"}, "Cookie": {"a=b"}, "Proxy-Authorization": {"Basic x"}, "X_key": {"mine"},
		"X-Http-Method-Override": {"DELETE"}, "X-Forwarded-For": {"127.0.0.1"}, "Forwarded": {"for=x"}, "X-Original-Url": {"/admin"}, "X-Rewrite-Url": {"/admin"}, "Host": {"evil.test"}, "Sec-Fetch-Site": {"x"}, "X-Forwarded-Host": {"evil.test"},
	}
	if _, _, err := w.call("GET", w.host.URL+"/v1/x", "", sent); err != nil {
		t.Fatal(err)
	}
	want := http.Header{"Accept": {"text/plain"}, "Accept-Encoding": {"identity"}, "Content-Type": {"text/plain"}, "X-Request-Id": {"1"}, "X-Meta-A": {"2"}, "User-Agent": {"probe"}, "X-Key": {token}}
	for name := range got {
		if !slices.Equal(got[name], want[name]) {
			t.Errorf("the host received %s: %q, want %q", name, got[name], want[name])
		}
	}
	for name := range want {
		if got[name] == nil {
			t.Errorf("the host did not receive %s", name)
		}
	}
}

// A second credential that the host issues in an answer does not reach the caller.
func TestAnswersHandOutNoSession(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(func(out http.ResponseWriter, _ *http.Request) {
		for _, name := range []string{"Set-Cookie", "Set-Cookie2", "Alt-Svc", "Proxy-Authenticate"} {
			out.Header().Set(name, "session=1")
		}
		out.Header().Set("X-Kept", "yes")
	}), nil)
	resp, _, err := w.call("GET", w.host.URL+"/v1/x", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"Set-Cookie", "Set-Cookie2", "Alt-Svc", "Proxy-Authenticate"} {
		if resp.Header.Get(name) != "" {
			t.Errorf("the caller received %s", name)
		}
	}
	if resp.Header.Get("X-Kept") != "yes" {
		t.Error("another header is missing")
	}
}

// What is on the wire is one request with the path that was matched.
func TestRequestOnTheWire(t *testing.T) {
	seen := make(chan string, 1)
	w := newWorld(t, http.NotFoundHandler(), nil)
	url := w.onRaw(nil, func(conn net.Conn) {
		seen <- readRequest(conn)
		fmt.Fprint(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
	})
	if _, _, err := w.call("GET", strings.Replace(url, "/v1/x", "/%76%31/%e4%bd%a0/a%3ab?q=1%0d%0aX:%20y", 1), "", http.Header{"Transfer-Encoding": {"chunked"}, "Content-Length": {"100"}}); err != nil {
		t.Fatal(err)
	}
	text := <-seen
	if !strings.HasPrefix(text, "GET /v1/%E4%BD%A0/a%3Ab?q=1%0d%0aX:%20y HTTP/1.1\r\n") {
		t.Errorf("sent %q", text)
	}
	for _, bad := range []string{"Transfer-Encoding", "Content-Length", "\nX:", "chunked"} {
		if strings.Contains(text, bad) {
			t.Errorf("sent %q, which has %q", text, bad)
		}
	}
}

func TestRequestsWithAnotherTargetAreRefused(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the host was called") }), nil)
	for name, edit := range map[string]func(*http.Request){
		"another Host":  func(r *http.Request) { r.Host = "evil.test" },
		"opaque":        func(r *http.Request) { r.URL.Opaque = "//evil.test/v1/x" },
		"a user":        func(r *http.Request) { r.URL.User = nil; r.URL.Host = "a@" + r.URL.Host },
		"a raw path":    func(r *http.Request) { r.URL.Path, r.URL.RawPath = "/v1/../admin", "" },
		"a host header": func(r *http.Request) { r.Host = r.URL.Host + "\r\nX: y" },
		"no URL":        func(r *http.Request) { r.URL = nil },
	} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.host.URL+"/v1/x", nil)
		if err != nil {
			t.Fatal(err)
		}
		edit(r)
		if resp, err := w.transport.RoundTrip(r); codeOf(err) != egress.CodeInvalidURL {
			t.Errorf("%s: got %v, %v", name, resp, err)
		}
	}
}

// An error of net/http can have text of the host, which can be the credential.
func TestErrorsContainNothingOfTheHost(t *testing.T) {
	w := newWorld(t, http.NotFoundHandler(), nil)
	for _, answer := range []string{
		token, "HTTP/1.1 " + token + "\r\n\r\n", "HTTP/1.1 200 OK\r\n" + token + "\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: " + token + "\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: " + token + "\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + token + "\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort", "", "HTTP/1.1 200 OK\r\nX: " + strings.Repeat(token, 1<<14) + "\r\n\r\n",
		strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: "+token+"\r\n\r\n", 1<<12), "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n" + token, "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + token, "HTTP/1.1 200 OK\r\nContent-Encoding: " + token + "\r\n\r\nx",
	} {
		url := w.onRaw(nil, func(conn net.Conn) {
			readRequest(conn)
			_, _ = io.WriteString(conn, answer)
		})
		_, body, err := w.call("GET", url, "", nil)
		var r *egress.Refusal
		if !errors.As(err, &r) {
			t.Errorf("%.80q: got %v", answer, err)
			continue
		}
		if text := fmt.Sprintf("%s %s %s %+v %s", r, r.What, r.Next, r.Err, body); strings.Contains(text, token[:12]) {
			t.Errorf("%.80q: got %q", answer, text)
		}
	}
}

func TestSilentHosts(t *testing.T) {
	quick := func(e *api.Egress) { e.IdleTimeout = api.Duration(100 * time.Millisecond) }
	w := newWorld(t, http.NotFoundHandler(), nil)
	forever := make(chan struct{})
	defer close(forever)
	for name, answer := range map[string]string{"before the header": "", "within the header": "HTTP/1.1 200 OK\r\n", "within the body": "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab"} {
		url := w.onRaw(quick, func(conn net.Conn) {
			readRequest(conn)
			_, _ = io.WriteString(conn, answer)
			<-forever
		})
		if _, _, err := w.call("GET", url, "", nil); codeOf(err) != egress.CodeTimeout {
			t.Errorf("%s: got %v, want %s", name, err, egress.CodeTimeout)
		}
	}
	if n := len(w.outcomes); n != 3 || w.outcomes[2].Outcome != egress.OutcomeFailed {
		t.Errorf("got the outcomes %+v", w.outcomes)
	}
}

// A host that never stops answering is stopped by the size, or by the time.
func TestEndlessAnswers(t *testing.T) {
	endless := http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			if _, err := out.Write(bytes.Repeat([]byte("x"), 1<<10)); err != nil {
				return
			}
			_ = http.NewResponseController(out).Flush()
		}
	})
	w := newWorld(t, endless, func(e *api.Egress) { e.MaxAnswer = 100_000 })
	if _, body, err := w.call("GET", w.host.URL+"/v1/x", "", nil); codeOf(err) != egress.CodeAnswerTooLarge || len(body) != 100_000 {
		t.Errorf("got %d bytes, %v", len(body), err)
	}
	w = newWorld(t, endless, func(e *api.Egress) { e.MaxAnswer, e.Timeout = 1<<40, api.Duration(200*time.Millisecond) })
	if _, _, err := w.call("GET", w.host.URL+"/v1/x", "", nil); codeOf(err) != egress.CodeTimeout {
		t.Errorf("got %v, want %s", err, egress.CodeTimeout)
	}
}

func TestStatedSizeIsRefusedAtOnce(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(func(out http.ResponseWriter, _ *http.Request) { out.Header().Set("Content-Length", "2000000") }), nil)
	if _, _, err := w.call("GET", w.host.URL+"/v1/x", "", nil); codeOf(err) != egress.CodeAnswerTooLarge {
		t.Errorf("got %v", err)
	}
}

// The bound holds after decoding.
func TestCompressedBomb(t *testing.T) {
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	if _, err := io.CopyN(z, zeros{}, 64<<20); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, http.HandlerFunc(func(out http.ResponseWriter, _ *http.Request) {
		out.Header().Set("Content-Encoding", "gzip")
		_, _ = out.Write(bomb.Bytes())
	}), nil)
	if _, body, err := w.call("GET", w.host.URL+"/v1/x", "", http.Header{"Accept-Encoding": {"gzip"}}); codeOf(err) != egress.CodeAnswerTooLarge || len(body) != 1<<20 {
		t.Errorf("got %d bytes, %v", len(body), err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestRequestBodiesAreBounded(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }), func(e *api.Egress) { e.MaxRequest = 1000 })
	for name, body := range map[string]io.Reader{"a stated length": strings.NewReader(strings.Repeat("x", 1001)), "a stream": io.LimitReader(zeros{}, 1<<20), "an endless stream": zeros{}} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.host.URL+"/v1/x", body)
		if err != nil {
			t.Fatal(err)
		}
		if resp, err := w.transport.RoundTrip(r); codeOf(err) != egress.CodeRequestTooLarge {
			t.Errorf("%s: got %v, %v", name, resp, err)
		}
	}
	if resp, _, err := w.call("POST", w.host.URL+"/v1/x", strings.Repeat("x", 1000), nil); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("at the bound: got %v, %v", resp, err)
	}
}

// A stream is returned while it flows.
func TestStreamsFlow(t *testing.T) {
	next := make(chan struct{})
	w := newWorld(t, http.HandlerFunc(func(out http.ResponseWriter, _ *http.Request) {
		out.Header().Set("Content-Type", "text/event-stream")
		for i := range 3 {
			fmt.Fprintf(out, "data: event %d\n\n", i)
			_ = http.NewResponseController(out).Flush()
			<-next
		}
	}), nil)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.host.URL+"/v1/x", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := w.transport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(resp.Body)
	for i := range 3 {
		line, err := lines.ReadString('\n')
		if err != nil || line != fmt.Sprintf("data: event %d\n", i) {
			t.Fatalf("got %q, %v", line, err)
		}
		if _, err := lines.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		next <- struct{}{}
	}
	if err := resp.Body.Close(); err != nil {
		t.Error(err)
	}
}

func TestUntrustedCertificates(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the host received the call") }), nil)
	w.transport.Roots = nil
	if _, _, err := w.call("GET", w.host.URL+"/v1/x", "", nil); codeOf(err) != egress.CodeUnreachable || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("got %v", err)
	}
}

// Without a record there is no call.
func TestCallsAreRecordedBeforeTheyAreMade(t *testing.T) {
	calls := 0
	w := newWorld(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { calls++ }), func(e *api.Egress) { e.Record = true })
	w.recorded = func(lease string, c egress.Call) error {
		if calls > 0 || lease != "lse_widgets" || c.URL() != w.host.URL+"/v1/x" || c.Method != "GET" {
			t.Errorf("recorded %s, %+v after %d calls", lease, c, calls)
		}
		return nil
	}
	if _, _, err := w.call("GET", w.host.URL+"/v1/x?secret=1", "", nil); err != nil || calls != 1 || len(w.records) != 1 {
		t.Errorf("got %v, %d calls, %d records", err, calls, len(w.records))
	}
	w.recorded = func(string, egress.Call) error { return errors.New("the broker does not answer") }
	if _, _, err := w.call("GET", w.host.URL+"/v1/x", "", nil); codeOf(err) != egress.CodeUnrecorded || calls != 1 {
		t.Errorf("got %v, %d calls", err, calls)
	}
	w.transport.Meter = nil
	if _, _, err := w.call("GET", w.host.URL+"/v1/x", "", nil); codeOf(err) != egress.CodeUnrecorded || calls != 1 {
		t.Errorf("without a meter: got %v, %d calls", err, calls)
	}
}

// stubbed returns an answer for each entitlement.
type stubbed func(entitlement string) (*api.Credential, error)

func (s stubbed) Credential(_ context.Context, entitlement string) (*api.Credential, error) {
	return s(entitlement)
}
func (stubbed) Held() []*api.Credential                        { return nil }
func (stubbed) Rejected(context.Context, *api.Credential) bool { return false }

func TestCredentialsThatCanNotBeUsed(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the host was called") }), nil)
	secret := func(s api.Secret) stubbed {
		return func(string) (*api.Credential, error) { return &api.Credential{Lease: "lse_1", Secret: s}, nil }
	}
	for name, c := range map[string]struct {
		credentials stubbed
		code, want  string
	}{
		"pending": {func(string) (*api.Credential, error) {
			return nil, &agent.PendingError{Request: &api.Request{ID: "req_1"}}
		}, egress.CodePending, "req_1"},
		"refused": {func(string) (*api.Credential, error) {
			return nil, &api.Error{Code: api.Denied, Detail: "not at night"}
		}, egress.CodeNoCredential, "not at night"},
		"no reason": {func(string) (*api.Credential, error) {
			return nil, &api.Error{Status: 403, Code: api.JustificationRequired, Detail: "policy requires a justification"}
		}, egress.CodeNoCredential, "--why"},
		"no ticket": {func(string) (*api.Credential, error) {
			return nil, &api.Error{Status: 403, Code: api.TicketRequired, Detail: "policy requires a ticket"}
		}, egress.CodeNoCredential, "--ticket"},
		"unreachable":  {func(string) (*api.Credential, error) { return nil, errors.New("dial " + token) }, egress.CodeNoCredential, ""},
		"another type": {secret(api.Secret{"password": token}), egress.CodeNoCredential, "no field"},
		"a line break": {secret(api.Secret{"token": token + "\r\nX: y"}), egress.CodeNoCredential, ""},
		"too short":    {secret(api.Secret{"token": "abc"}), egress.CodeNoCredential, "too short"},
		"bound to a key": {func(string) (*api.Credential, error) {
			return &api.Credential{Confirm: &api.Confirmation{}, Secret: api.Secret{"token": token}}, nil
		}, egress.CodeNoCredential, "bound"},
		"no credential": {func(string) (*api.Credential, error) { return nil, nil }, egress.CodeNoCredential, ""},
	} {
		w.transport.Credentials = c.credentials
		_, _, err := w.call("GET", w.host.URL+"/v1/x", "", nil)
		if codeOf(err) != c.code || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), token) {
			t.Errorf("%s: got %v, want %s with %q", name, err, c.code, c.want)
		}
	}
}

// A host can return the credential of an earlier call, even of another entitlement.
func TestEarlierCredentialsAreRemoved(t *testing.T) {
	var earlier string
	w := newWorld(t, http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		fmt.Fprint(out, earlier)
		earlier += r.Header.Get("Authorization") + r.Header.Get("X-Key") + "\n"
	}), nil)
	other := *w.offer.Egress
	other.Inject = api.Injection{As: api.InjectHeader, Name: "X-Key"}
	other.Allow = []api.EgressRule{{Hosts: other.Allow[0].Hosts, Methods: []string{"GET"}, Paths: []string{"/v2/**"}, Addresses: other.Allow[0].Addresses}}
	w.transport = newTransport(t, w, w.offer, api.Offer{Entitlement: "other", Egress: &other})
	n := 0
	w.transport.Credentials = stubbed(func(entitlement string) (*api.Credential, error) {
		n++
		return &api.Credential{Lease: "lse_1", Secret: api.Secret{"token": fmt.Sprintf("%s-%d-%s", entitlement, n, token)}, ExpiresAt: time.Now().Add(time.Hour)}, nil
	})
	for i := range 6 {
		_, body, err := w.call("GET", fmt.Sprintf("%s/v%d/x", w.host.URL, i%2+1), "", nil)
		if err != nil || strings.Contains(body, token) || i > 0 && !strings.Contains(body, "****") {
			t.Errorf("call %d: got %q, %v", i, body, err)
		}
	}
}
