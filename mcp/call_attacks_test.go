package mcp_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"accessbroker.internal/egress/egresstest"
	"accessbroker.internal/mcp"
)

// Arguments that a prompt injection writes reach no host but the one of the rules, and no
// path or method but theirs.
func TestCallAPIArgumentsOfAnAttacker(t *testing.T) {
	u := newUpstream(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.RequestURI) })
	host := strings.TrimPrefix(u.host.URL, "https://")
	_, port, _ := strings.Cut(host, ":")
	urls := []string{
		"https://evil.test/v1/a", "https://evil.test:" + port + "/v1/a", "http://" + host + "/v1/a", "//" + host + "/v1/a", "HTTPS:" + host + "/v1/a", "file:///etc/passwd", "gopher://" + host + "/v1/a", "",
		// A user, and what some parsers take for the end of the host.
		"https://" + host + "@evil.test/v1/a", "https://user:pass@" + host + "/v1/a", "https://evil.test\\@" + host + "/v1/a", "https://" + host + "\\.evil.test/v1/a", "https://" + host + "#@evil.test/v1/a",
		"https://evil.test#@" + host + "/v1/a", "https://evil.test?@" + host + "/v1/a", "https://evil.test;@" + host + "/v1/a", "https://" + host + "%2f@evil.test/v1/a", "https://" + host + "%00.evil.test/v1/a",
		"https://evil.test%23@" + host + "/v1/a", "https://evil.test/https://" + host + "/v1/a", "https://" + host + ":443@evil.test/v1/a", "https://" + host + ".evil.test/v1/a",
		// The same address in other forms, and others of this machine.
		"https://2130706433:" + port + "/v1/a", "https://0x7f000001:" + port + "/v1/a", "https://0177.0.0.1:" + port + "/v1/a", "https://127.1:" + port + "/v1/a", "https://127.0.0.01:" + port + "/v1/a",
		"https://[::1]:" + port + "/v1/a", "https://[::ffff:7f00:2]:" + port + "/v1/a", "https://[0:0:0:0:0:ffff:127.0.0.2]:" + port + "/v1/a", "https://127.0.0.2:" + port + "/v1/a", "https://0.0.0.0:" + port + "/v1/a",
		"https://localhost:" + port + "/v1/a", "https://127.0.0.1.:" + port + "/v1/a", "https://%31%32%37.0.0.1:" + port + "/v1/a", "https://①②⑦.0.0.1:" + port + "/v1/a", "https://[::1%25lo]:" + port + "/v1/a",
		"https://169.254.169.254/latest/meta-data/", "https://[fd00:ec2::254]/latest/", "https://metadata.google.internal/v1/a", "https://127.0.0.1:0" + port + "/v1/a", "https://127.0.0.1:/v1/a", "https://127.0.0.1:99999/v1/a",
		// Paths that leave the rule's, by dots and by encodings of them.
		u.host.URL + "/v1/../admin", u.host.URL + "/v1/%2e%2e/admin", u.host.URL + "/v1/%2E./admin", u.host.URL + "/v1/..%2fadmin", u.host.URL + "/v1/%252e%252e/admin", u.host.URL + "/v1/..;/admin", u.host.URL + "/v1/..\\admin",
		u.host.URL + "/v1/%5c..%5cadmin", u.host.URL + "/v1%2f..%2fadmin", u.host.URL + "/./v1/../admin", u.host.URL + "//admin", u.host.URL + "/V1/a", u.host.URL + "/v1", u.host.URL + "/%76%32/a", u.host.URL + "/v1/a%00b", u.host.URL + "/v1/%zz", u.host.URL + "/v1/%c0%ae%c0%ae/admin",
		// Line breaks and spaces.
		u.host.URL + "/v1/a HTTP/1.1\r\nX-Evil: 1", u.host.URL + "/v1/a\r\nHost: evil.test", u.host.URL + "/v1/a\n", " " + u.host.URL + "/v1/a", u.host.URL + "/v1/a\t", u.host.URL + "/v1/ä", u.host.URL + "/v1/%0d%0aX:1",
		// A credential of the attacker's, in the query.
		u.host.URL + "/v1/a?access_token=attacker",
	}
	for _, url := range urls {
		res := u.call(map[string]any{"url": url})
		if text := textOf(res); !res.IsError || strings.Contains(text, "eyJ") {
			t.Errorf("%q: got %s", url, text)
		}
	}
	for _, method := range []string{"DELETE", "PUT", "PATCH", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "GET POST", "GET\r\n", "G\u00c9T", "GET/1", strings.Repeat("A", 10_000)} {
		if res := u.call(map[string]any{"method": method, "url": u.host.URL + "/v1/a"}); !res.IsError {
			t.Errorf("%.20q: got %s", method, textOf(res))
		}
	}
	if n := len(u.requests()); n != 0 {
		t.Errorf("the host got %d calls, such as %s %s", n, u.requests()[0].Method, u.requests()[0].RequestURI)
	}
}

// Headers of an attacker are refused, or not sent.
func TestCallAPIHeadersOfAnAttacker(t *testing.T) {
	u := newUpstream(t, func(http.ResponseWriter, *http.Request) {})
	for name, value := range map[string]string{
		"X-A\r\nX-Evil": "1", "X-A": "1\r\nX-Evil: 1", "X-B": "1\nX-Evil: 1", "X-C": "1\x00", "X A": "1", "X-Ä": "1", "": "1", ":authority": "evil.test", "X-D": "\r\n\r\nGET /admin HTTP/1.1",
		"Authorization": "Bearer attacker", "authorization": "x", "Proxy-Authorization": "x", "COOKIE": "a=b", "X-E": strings.Repeat("a", 100_000),
	} {
		res := u.call(map[string]any{"url": u.host.URL + "/v1/a", "headers": map[string]string{name: value}})
		if !res.IsError {
			t.Errorf("%.30q: got %s", name, textOf(res))
		}
	}
	if n := len(u.requests()); n != 0 {
		t.Fatalf("the host got %d calls", n)
	}
	dropped := map[string]string{
		"Host": "evil.test", "Connection": "close, X-Keep", "X-Keep": "1", "Transfer-Encoding": "chunked", "Content-Length": "7", "Upgrade": "h2c", "TE": "trailers", "Trailer": "X", "Expect": "100-continue",
		"X-Forwarded-Host": "evil.test", "X-Http-Method-Override": "DELETE", "X-Original-URL": "/admin", "Forwarded": "host=evil.test", "X-Anything": "1",
	}
	body := "GET /admin HTTP/1.1\r\nHost: evil.test\r\n\r\n0\r\n\r\nGET /admin HTTP/1.1\r\n\r\n"
	structured[mcp.Answer](t, u.call(map[string]any{"method": "POST", "url": u.host.URL + "/v1/a", "headers": dropped, "body": body}))
	seen := u.requests()
	if len(seen) != 1 || seen[0].Host != strings.TrimPrefix(u.host.URL, "https://") || seen[0].ContentLength != int64(len(body)) || len(seen[0].TransferEncoding) > 0 {
		t.Fatalf("the host got %d calls, the first to %s with %d bytes", len(seen), seen[0].Host, seen[0].ContentLength)
	}
	for name := range dropped {
		if value := seen[0].Header.Get(name); value != "" && name != "Content-Length" {
			t.Errorf("the host got %s: %s", name, value)
		}
	}
}

// A redirect is a result. It is not followed, and the next call is judged by itself.
func TestCallAPIFollowsNoRedirect(t *testing.T) {
	elsewhere := 0
	u := newUpstream(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/admin" || r.Host == "evil.test" {
			elsewhere++
		}
		w.Header().Set("Location", r.Header.Get("Accept"))
		w.WriteHeader(http.StatusTemporaryRedirect)
	})
	for _, to := range []string{"https://evil.test/", "/admin", u.host.URL + "/admin", "//evil.test/v1/a", "https://169.254.169.254/latest/meta-data/", "javascript:alert(1)"} {
		got := structured[mcp.Answer](t, u.call(map[string]any{"url": u.host.URL + "/v1/a", "headers": map[string]string{"Accept": to}}))
		if got.Status != 307 || got.Headers["location"] != to || !strings.Contains(got.Next, "was not followed") {
			t.Errorf("%s: got %+v", to, got)
		}
	}
	if n := len(u.requests()); n != 6 || elsewhere != 0 {
		t.Errorf("the host got %d calls, %d of them elsewhere", n, elsewhere)
	}
}

// Whatever a hostile host does with the credential, the model reads nothing of it: not in
// the words, not in the structure, not in an error.
func TestCallAPIHidesCredentialFromModel(t *testing.T) {
	hostile := new(egresstest.Upstream)
	u := newUpstream(t, hostile.ServeHTTP)
	made := 0
	for seed := range 300 {
		res := u.call(map[string]any{"url": fmt.Sprintf("%s/v1/a?seed=%d", u.host.URL, seed)})
		all, err := json.Marshal(res)
		must(t, err)
		if !res.IsError {
			made++
		}
		// The body in base64 is no form that the host chose, so it is searched decoded, too.
		if found := egresstest.NewFinder(hostile.Secrets()...).Find(all); found != "" {
			t.Fatalf("seed %d: the model reads the credential: %s", seed, all)
		}
	}
	if made < 100 || hostile.Answers() < 100 {
		t.Errorf("made %d calls, the host answered %d", made, hostile.Answers())
	}
}

// A host that sends its answer byte by byte, and one that stops, end with the time of the
// call: what has arrived is the answer.
func TestCallAPIOfASilentHost(t *testing.T) {
	t.Parallel() // it mostly waits
	release := make(chan struct{})
	u := newUpstream(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "first")
		w.(http.Flusher).Flush()
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	defer close(release)
	got := structured[mcp.Answer](t, u.call(map[string]any{"url": u.host.URL + "/v1/a"}))
	if got.Body != "first" || !got.Truncated || !strings.Contains(got.Summary, "still sending, or stopped") {
		t.Errorf("got %+v", got)
	}
}
