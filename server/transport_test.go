package server

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
)

func TestTransportErrors(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	me := []string{"Authorization", "Bearer " + agent}
	big := `{"justification":"` + strings.Repeat("x", 100_000) + `"}`
	tests := []struct {
		name, method, path, contentType, body string
		header                                []string
		status                                int
		code                                  api.Code
	}{
		{"no such resource", "GET", "/v2", "", "", me, 404, api.NotFound},
		{"method", "PUT", "/v1/requests", "", "", me, 405, api.MethodNotAllowed},
		{"method without a proof", "DELETE", "/v1/whoami", "", "", nil, 405, api.MethodNotAllowed},
		{"method of an open route", "POST", "/healthz", "", "", nil, 405, api.MethodNotAllowed},
		{"media type", "POST", "/v1/requests", "text/plain", "{}", me, 415, api.UnsupportedMediaType},
		{"no media type", "POST", "/v1/requests", "", "{}", me, 415, api.UnsupportedMediaType},
		{"two media types", "POST", "/v1/requests", "application/json, application/json", "{}", me, 415, api.UnsupportedMediaType},
		{"two Content-Types", "POST", "/v1/requests", "application/json", "{}", append([]string{"Content-Type", "application/json"}, me...), 415, api.UnsupportedMediaType},
		{"malformed charset", "POST", "/v1/requests", "application/json; charset", "{}", me, 415, api.UnsupportedMediaType},
		{"two charsets", "POST", "/v1/requests", "application/json; charset=utf-8; charset=utf-16", "{}", me, 415, api.UnsupportedMediaType},
		{"gzip", "POST", "/v1/requests", "application/json", "{}", append([]string{"Content-Encoding", "gzip"}, me...), 415, api.UnsupportedMediaType},
		{"two encodings", "POST", "/v1/requests", "application/json", "{}", append([]string{"Content-Encoding", "identity, br"}, me...), 415, api.UnsupportedMediaType},
		{"an encoding without a body", "POST", "/v1/requests", "application/json", "", append([]string{"Content-Encoding", "gzip"}, me...), 415, api.UnsupportedMediaType},
		{"half a character", "POST", "/v1/requests", "application/json", `{"entitlement":"a","justification":"\ud800"}`, me, 400, api.InvalidRequest},
		{"half a character in a name", "POST", "/v1/requests", "application/json", `{"entitlement":"a","\udc00":"x"}`, me, 400, api.InvalidRequest},
		{"problem", "POST", "/v1/requests", "application/problem+json", "{}", me, 415, api.UnsupportedMediaType},
		{"JSON that is not UTF-8", "POST", "/v1/requests", "application/json; charset=ISO-8859-1", "{\"entitlement\":\"tickets\",\"justification\":\"caf\xe9\"}", me, 400, api.InvalidRequest},
		{"JSON in UTF-16", "POST", "/v1/requests", "application/json; charset=utf-16", "\x00{\x00}", me, 400, api.InvalidRequest},
		{"form that is not UTF-8", "POST", "/oauth2/token", "application/x-www-form-urlencoded; charset=ISO-8859-1", "grant_type=client_credentials&justification=caf%E9", nil, 400, api.InvalidRequest},
		{"form with a name that is not UTF-8", "POST", "/oauth2/token", "application/x-www-form-urlencoded; charset=ISO-8859-1", "caf%E9=1", nil, 400, api.InvalidRequest},
		{"form on /v1", "POST", "/v1/requests", "application/x-www-form-urlencoded", "a=b", me, 415, api.UnsupportedMediaType},
		{"JSON on /oauth2", "POST", "/oauth2/token", "application/json", "{}", nil, 415, api.UnsupportedMediaType},
		{"too large", "POST", "/v1/requests", "application/json", big, me, 413, api.TooLarge},
		{"form too large", "POST", "/oauth2/token", "application/x-www-form-urlencoded", "a=" + strings.Repeat("x", 70_000), nil, 413, api.TooLarge},
		{"too large without a proof", "POST", "/v1/requests", "application/json", big, nil, 401, api.Unauthenticated},
		{"justification too long", "POST", "/v1/requests", "application/json", `{"entitlement":"tickets","scopes":["tickets:read"],"justification":"` + strings.Repeat("x", 50_000) + `"}`, me, 400, api.InvalidRequest},
		{"unknown query", "GET", "/v1/requests?stauts=pending", "", "", me, 400, api.InvalidRequest},
		{"repeated query", "GET", "/v1/requests?limit=1&limit=2", "", "", me, 400, api.InvalidRequest},
		{"limit", "GET", "/v1/requests?limit=100000", "", "", me, 400, api.InvalidRequest},
		{"cursor", "GET", "/v1/requests?cursor=lse_1", "", "", me, 400, api.InvalidRequest},
		{"status", "GET", "/v1/requests?status=maybe", "", "", me, 400, api.InvalidRequest},
		{"live", "GET", "/v1/leases?live=yes", "", "", me, 400, api.InvalidRequest},
		{"wait without after", "GET", "/v1/requests/" + broker.NewRequestID(time.Now()).String() + "?wait=1s", "", "", me, 400, api.InvalidRequest},
		{"wait too long", "GET", "/v1/requests/" + broker.NewRequestID(time.Now()).String() + "?wait=2h&after=1", "", "", me, 400, api.InvalidRequest},
		{"audit index", "GET", "/v1/audit/-1", "", "", me, 404, api.NotFound},
		{"body of a call without one", "POST", "/v1/requests/" + broker.NewRequestID(time.Now()).String() + "/withdraw", "application/json", `{"a":1}`, me, 400, api.InvalidRequest},
		{"panic", "GET", "/v1/whoami", "", "", []string{"Authorization", "Bearer panic"}, 500, api.Internal},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			resp := w.do(test.method, test.path, test.contentType, test.body, test.header...)
			text := w.body(resp)
			var e struct{ Code api.Code }
			if err := json.Unmarshal(text, &e); err != nil || resp.StatusCode != test.status || e.Code != test.code {
				t.Errorf("got %s %s", resp.Status, text)
			}
			if test.status == 405 && resp.Header.Get("Allow") == "" {
				t.Error("got no Allow header")
			}
			if strings.Contains(string(text)+w.log.String(), "s3cret") {
				t.Errorf("the value of the panic is in the answer or in the log: %s", text)
			}
		})
	}
	if !strings.Contains(w.log.String(), "msg=panic") || !strings.Contains(w.log.String(), "code=internal") {
		t.Error("the panic is not logged")
	}
}

// The charset parameter has no effect: bodies are UTF-8.
func TestCharsetIsIgnored(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	const form = "grant_type=client_credentials&audience=tickets&scope=tickets:read&justification=caf%C3%A9"
	const ask = `{"entitlement":"tickets","scopes":["tickets:read"],"justification":"café"}`
	for _, parameters := range []string{
		"", ";charset=ISO-8859-1", "; charset=utf-8", "; charset=UTF-8", `; charset="utf-8"`, ";CHARSET=us-ascii", "; charset=windows-1252", ";", "; q=1",
	} {
		for path, body := range map[string][2]string{"/oauth2/token": {"application/x-www-form-urlencoded", form}, "/v1/credentials": {"Application/JSON", ask}} {
			if resp := w.do("POST", path, body[0]+parameters, body[1], "Authorization", "Bearer "+agent); resp.StatusCode >= 300 {
				t.Errorf("%s with %s%s: got %s %s", path, body[0], parameters, resp.Status, w.body(resp))
			}
		}
	}
}

// The message of an unsupported media type names the type that was sent and the type to
// send, which differ.
func TestMediaTypeMessage(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	for sent, want := range map[string]string{
		"":                         "the Content-Type is missing: send application/json",
		"text/plain":               `the Content-Type is "text/plain": send application/json`,
		"application/problem+json": `the Content-Type is "application/problem+json": send application/json`,
		"application/json; =":      "the Content-Type is malformed: send application/json without parameters",
		"json":                     `the Content-Type is "json": send application/json`,
	} {
		resp := w.do("POST", "/v1/requests", sent, "{}", "Authorization", "Bearer "+agent)
		var problem api.Problem
		if err := json.Unmarshal(w.body(resp), &problem); err != nil || problem.Detail != want {
			t.Errorf("%q: got %q, %v", sent, problem.Detail, err)
		}
	}
}

func TestHeaders(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	seen := map[string]bool{}
	for _, path := range []string{"/v1/whoami", "/healthz", "/oauth2/jwks", "/nope"} {
		resp := w.do("GET", path, "", "", "Authorization", "Bearer "+agent)
		id := resp.Header.Get("X-Request-Id")
		if resp.Header.Get("X-Content-Type-Options") != "nosniff" || len(id) != 36 || seen[id] {
			t.Errorf("%s: %v", path, resp.Header)
		}
		seen[id] = true
		want := "no-store"
		if path == "/oauth2/jwks" {
			want = "public, max-age=300"
		}
		if got := resp.Header.Get("Cache-Control"); got != want {
			t.Errorf("%s: Cache-Control: %s", path, got)
		}
	}
	if resp := w.do("HEAD", "/healthz", "", ""); resp.StatusCode != 200 {
		t.Errorf("HEAD: got %s", resp.Status)
	}
	if resp := w.do("GET", "/v1/whoami", "", ""); resp.StatusCode != 401 || !strings.HasPrefix(resp.Header.Get("WWW-Authenticate"), "Bearer") {
		t.Errorf("no proof: %s, %v", resp.Status, resp.Header)
	}
}

func TestAudiences(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	paths := map[Audience]string{API: "/v1/whoami", OAuth: "/oauth2/jwks", Log: "/log/checkpoint"}
	for served := range paths {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		server := w.HTTPServer(w.Handler(served), nil)
		go func() { _ = server.Serve(l) }()
		t.Cleanup(func() { _ = server.Close() })
		for audience, path := range paths {
			req, _ := http.NewRequestWithContext(t.Context(), "GET", "http://"+l.Addr().String()+path, nil)
			req.Header.Set("Authorization", "Bearer "+agent)
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			if (resp.StatusCode == 200) != (audience == served) || resp.StatusCode != 200 && resp.StatusCode != 404 {
				t.Errorf("a listener for %s: %s answers %s", served, path, resp.Status)
			}
		}
	}
}

// Each request has one log event. It names the call and the caller, and has no values
// of the path, the query, the headers or the body.
func TestRequestLogsOneEvent(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.do("GET", "/v1/requests?entitlement=s3cret", "", "", "Authorization", "Bearer "+agent, "X-Request-Id", "theirs-1")
	w.do("GET", "/v1/requests/req_s3cret", "", "", "Authorization", "Bearer "+agent, "X-Request-Id", "new\tline")
	w.do("POST", "/v1/requests", "application/json", `{"entitlement":"tickets","s3cret":"s3cret"}`, "Authorization", "Bearer "+agent)
	w.do("POST", "/oauth2/token", "application/x-www-form-urlencoded", "grant_type=client_credentials&client_assertion=s3cret&client_assertion_type="+api.AssertionTypeJWT)
	w.do("GET", "/v1/whoami?s3cret=1", "", "", "Authorization", "Bearer s3cret")
	lines := slices.Collect(strings.Lines(w.log.String()))
	if len(lines) != 5 {
		t.Fatalf("got %d events, want 5:\n%s", len(lines), w.log)
	}
	for i, want := range []string{
		"level=INFO msg=request", "level=WARN msg=request", "code=invalid_request", "code=unauthenticated", "route=/v1/whoami",
	} {
		if !strings.Contains(lines[i], want) || strings.Contains(lines[i], "s3cret") || !strings.Contains(lines[i], "call_id=") {
			t.Errorf("event %d: %s", i, lines[i])
		}
	}
	if !strings.Contains(lines[0], "client_call_id=theirs-1") || !strings.Contains(lines[0], "identity="+agent) || strings.Contains(lines[1], "client_call_id") {
		t.Errorf("events:\n%s%s", lines[0], lines[1])
	}
}

func TestAdmissionLimitsIdentity(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(cfg *Config) { cfg.CallsPerSecond = 2 })
	w.holdClocks()
	var last *api.Error
	for range 3 {
		resp := w.do("GET", "/v1/whoami", "", "", "Authorization", "Bearer "+agent)
		if resp.StatusCode == 429 {
			last = &api.Error{Code: api.SlowDown, Status: 429}
			if resp.Header.Get("Retry-After") != "1" {
				t.Errorf("Retry-After: %q", resp.Header.Get("Retry-After"))
			}
		}
	}
	if last == nil {
		t.Error("the third call in a second is admitted")
	}
	if resp := w.do("GET", "/v1/whoami", "", "", "Authorization", "Bearer "+other); resp.StatusCode != 200 {
		t.Errorf("another identity: %s", resp.Status)
	}
}

// Introspections of a resource server have a limit of their own, and those of others count
// as their calls.
func TestResourceServersHaveTheirOwnLimit(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(cfg *Config) { cfg.CallsPerSecond, cfg.IntrospectionsPerSecond = 3, 10 })
	w.holdClocks()
	introspect := func(who string) int {
		return w.do("POST", "/oauth2/introspect", "application/x-www-form-urlencoded", "token=x", "Authorization", "Bearer "+who).StatusCode
	}
	for who, want := range map[string]int{tickets: 10, agent: 3} {
		admitted := 0
		for range 15 {
			switch status := introspect(who); status {
			case 200:
				admitted++
			case 429:
			default:
				t.Fatalf("%s: got %d", who, status)
			}
		}
		if admitted != want {
			t.Errorf("%d introspections of %s are admitted, want %d", admitted, who, want)
		}
	}
	// Other calls of the resource server are not affected, and do not get its limit.
	admitted := 0
	for range 15 {
		if w.do("GET", "/v1/whoami", "", "", "Authorization", "Bearer "+tickets).StatusCode == 200 {
			admitted++
		}
	}
	if admitted != 3 {
		t.Errorf("%d other calls of the resource server are admitted, want 3", admitted)
	}
}

// Lists read many rows, so they have a limit of their own. It does not affect other
// calls of the same identity, and operators have none.
func TestListsHaveTheirOwnLimit(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.holdClocks()
	for path, pages := range map[string]string{"/v1/requests": "", "/v1/leases": "?holder=*"} {
		refused := 0
		for range scansPerSecond + 1 {
			if resp := w.do("GET", path+pages, "", "", "Authorization", "Bearer "+agent); resp.StatusCode == 429 {
				refused++
			}
		}
		if refused == 0 {
			t.Errorf("%s: %d concurrent calls are admitted", path, scansPerSecond+1)
		}
	}
	for range scansPerSecond + 1 {
		if resp := w.do("GET", "/v1/leases?holder=*", "", "", "Authorization", "Bearer "+operator); resp.StatusCode != 200 {
			t.Errorf("an operator: %s", resp.Status)
		}
	}
	if resp := w.do("GET", "/v1/whoami", "", "", "Authorization", "Bearer "+agent); resp.StatusCode != 200 {
		t.Errorf("other calls of the same identity: %s", resp.Status)
	}
	if resp := w.do("GET", "/v1/requests", "", "", "Authorization", "Bearer "+other); resp.StatusCode != 200 {
		t.Errorf("another identity: %s", resp.Status)
	}
}

// Four senders of forged proofs and 40 callers with fresh ones share an address. Every
// fresh proof is verified, and the forged ones cost a bounded number of verifications.
func TestForgedProofsShutOutNoOne(t *testing.T) {
	t.Parallel()
	const forgers, callers, least = 4, 40, 2 * 100 // forged calls: twice the burst
	var forged atomic.Int64
	fresh := func(token string) bool { return strings.HasPrefix(token, agent+"/") }
	w := newWorld(t, func(cfg *Config) {
		cfg.CallsPerSecond = 1e9
		cfg.Authenticate = func(r *http.Request, tokens ...string) (broker.Identity, error) {
			if who, err := authenticate(r, tokens...); fresh(who.ID) || err != nil {
				return who, err
			}
			forged.Add(1)
			return broker.Identity{}, broker.ErrUnauthenticated
		}
	})
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	begun := make(chan struct{})
	var flood sync.WaitGroup
	start := time.Now()
	for range forgers {
		flood.Go(func() {
			client := &http.Client{Transport: &http.Transport{}}
			defer client.CloseIdleConnections()
			for i := 0; ctx.Err() == nil; i++ {
				r, err := http.NewRequestWithContext(ctx, http.MethodGet, w.url+"/v1/whoami", nil)
				if err != nil {
					t.Error(err)
					return
				}
				r.Header.Set("Authorization", "Bearer "+other)
				if resp, err := client.Do(r); err == nil {
					_ = resp.Body.Close()
				}
				if i == least/forgers {
					begun <- struct{}{}
				}
			}
		})
	}
	for range forgers {
		<-begun
	}
	for i := range callers {
		if resp := w.do("GET", "/v1/whoami", "", "", "Authorization", fmt.Sprintf("Bearer %s/%d", agent, i), "Connection", "close"); resp.StatusCode != http.StatusOK {
			t.Errorf("fresh proof %d: got %s, want 200", i, resp.Status)
		}
	}
	stop()
	flood.Wait()
	l := verifyLimits()
	most := int64(l.burst) + int64(time.Since(start).Seconds()*float64(l.network)) + int64(l.atOnce) + 1
	if n := forged.Load(); n < least || n > most {
		t.Errorf("got %d forged proofs verified, want from %d to %d", n, least, most)
	}
}

// The proof must still be valid when a slow body has arrived.
func TestProofExpiresDuringBody(t *testing.T) {
	t.Parallel()
	expires := make(chan time.Time, 1)
	w := newWorld(t, func(cfg *Config) {
		cfg.Authenticate = func(r *http.Request, tokens ...string) (broker.Identity, error) {
			who, err := authenticate(r, tokens...)
			who.Proof.Expires = time.Now().Add(100 * time.Millisecond)
			expires <- who.Proof.Expires
			return who, err
		}
	})
	body, send := io.Pipe()
	go func() {
		time.Sleep(time.Until(<-expires)) // until the proof has expired
		_, _ = io.WriteString(send, `{"entitlement":"tickets","scopes":["tickets:read"]}`)
		_ = send.Close()
	}()
	r, err := http.NewRequest("POST", w.url+"/v1/credentials", body)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+agent)
	r.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != 401 {
		t.Errorf("got %s", resp.Status)
	}
}

// The server checks the expiry even if Authenticate does not.
func TestExpiredProofIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(cfg *Config) {
		cfg.Authenticate = func(r *http.Request, tokens ...string) (broker.Identity, error) {
			who, err := authenticate(r, tokens...)
			who.Proof.Expires = time.Now().Add(-time.Second)
			return who, err
		}
	})
	if _, err := w.as(agent).WhoAmI(t.Context()); !errors.Is(err, api.ProofExpired) {
		t.Errorf("got %v", err)
	}
}

func TestReadiness(t *testing.T) {
	t.Parallel()
	broken := errors.New("the disk is full")
	w := newWorld(t, func(cfg *Config) {
		cfg.Checks = []Check{{"store", func(context.Context) error { return broken }}, {"policy", func(context.Context) error { return nil }}}
	})
	ready, err := w.as(agent).Ready(t.Context())
	if err != nil || ready.Ready || len(ready.NotReady) != 1 || ready.NotReady["store"] != "the disk is full" {
		t.Errorf("got %+v, %v", ready, err)
	}
}

// Callers that waited for slow checks do not run them again: anyone may call /readyz.
func TestSlowChecksRunOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		runs := 0
		s := &Server{cfg: Config{Checks: []Check{{"disk", func(context.Context) error {
			runs++
			time.Sleep(checkTime)
			return nil
		}}}}}
		for range 3 {
			s.notReady(t.Context())
		}
		if runs != 1 {
			t.Errorf("the checks ran %d times, want once", runs)
		}
	})
}

// A warning is shown and does not make the broker unready.
func TestDegradedIsReady(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(cfg *Config) {
		cfg.Warnings = []Check{{"trust", func(context.Context) error { return errors.New("the bundle is old") }}, {"x", func(context.Context) error { return nil }}}
	})
	ready, err := w.as(agent).Ready(t.Context())
	if err != nil || !ready.Ready || len(ready.NotReady) != 0 || len(ready.Degraded) != 1 || ready.Degraded["trust"] != "the bundle is old" {
		t.Errorf("got %+v, %v", ready, err)
	}
}

// A long poll extends the connection's deadlines.
func TestLongPollOutlivesTimeouts(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	r, err := w.as(agent).Ask(t.Context(), api.Ask{Entitlement: "guarded", Scopes: []string{"read"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("HTTP/2 %t", http2), func(t *testing.T) {
			server := httptest.NewUnstartedServer(w.Handler(API))
			server.Config.ReadTimeout, server.Config.WriteTimeout = 100*time.Millisecond, 100*time.Millisecond
			server.EnableHTTP2 = http2
			server.StartTLS()
			defer server.Close()
			client := w.as(agent)
			client.BaseURL, client.HTTP = server.URL, server.Client()
			start := time.Now()
			if _, err := client.Await(t.Context(), r.ID, r.Version, 500*time.Millisecond); err != nil || time.Since(start) < 500*time.Millisecond {
				t.Errorf("after %v: %v", time.Since(start), err)
			}
		})
	}
}

func TestTLS(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	keys := httptest.NewTLSServer(nil)
	defer keys.Close()
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() {
		served <- w.Serve(ctx, l, w.Handler(API), &tls.Config{Certificates: keys.TLS.Certificates, MinVersion: tls.VersionTLS13})
	}()
	req, _ := http.NewRequestWithContext(ctx, "GET", "https://"+l.Addr().String()+"/healthz", nil)
	client := keys.Client()
	client.Transport.(*http.Transport).ForceAttemptHTTP2 = true
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.ProtoMajor != 2 || resp.Header.Get("Strict-Transport-Security") == "" {
		t.Errorf("%s, %v", resp.Proto, resp.Header)
	}
	stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// A shutdown makes /readyz fail first, then ends long polls with their current result.
func TestDrain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(cfg *Config) { cfg.DrainDelay = 200 * time.Millisecond })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- w.Serve(ctx, l, w.Handler(API), nil) }()
	w.url = "http://" + l.Addr().String()
	me := w.as(agent)
	r, err := me.Ask(t.Context(), api.Ask{Entitlement: "guarded", Scopes: []string{"read"}})
	if err != nil {
		t.Fatal(err)
	}
	sent, waited := make(chan struct{}), make(chan error, 1)
	start := time.Now()
	go func() {
		traced := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{WroteRequest: func(httptrace.WroteRequestInfo) { close(sent) }})
		got, err := me.Await(traced, r.ID, r.Version, api.MaxWait)
		if err == nil && got.Status != api.StatusPending {
			err = errors.New("got the status " + got.Status)
		}
		waited <- err
	}()
	<-sent
	stop()
	<-w.draining.Done()
	if ready, err := me.Ready(t.Context()); err != nil || ready.Ready || ready.NotReady["draining"] == "" {
		t.Errorf("while draining: got %+v, %v", ready, err)
	}
	if err := errors.Join(<-waited, <-served); err != nil {
		t.Error(err)
	}
	if took := time.Since(start); took >= api.MaxWait {
		t.Errorf("the shutdown took %v and waited for the long poll", took)
	}
}
