package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// An interceptor is a proxy between the broker and a server. A test can use it to
// delay or lose answers, to lose calls, or to answer itself.
type interceptor struct {
	*httptest.Server
	token string // added to calls without one, as a Vault agent does; empty: none
	proxy http.Handler

	mu      sync.Mutex
	answer  func(w http.ResponseWriter, r *http.Request) bool // reports whether it answered
	holding func(r *http.Request)                             // called before an answer is passed on
}

// intercept starts an interceptor before a server, whose certificate the
// authority in caFile issued.
func intercept(t testing.TB, server, caFile string, withTLS bool) *interceptor {
	t.Helper()
	target, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	roots, err := os.ReadFile(caFile)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(roots)
	b := &interceptor{}
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, MaxIdleConnsPerHost: 64}
	proxy.ErrorLog = nil
	proxy.ModifyResponse = func(resp *http.Response) error {
		b.mu.Lock()
		hold := b.holding
		b.mu.Unlock()
		if hold != nil {
			hold(resp.Request)
		}
		return nil
	}
	b.proxy = proxy
	b.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.mu.Lock()
		answer := b.answer
		b.mu.Unlock()
		if answer == nil || !answer(w, r) {
			b.pass(w, r)
		}
	}))
	if withTLS {
		b.StartTLS()
	} else {
		b.Start()
	}
	t.Cleanup(b.Close)
	return b
}

// pass passes a call on to the server.
func (b *interceptor) pass(w http.ResponseWriter, r *http.Request) {
	if b.token != "" && r.Header.Get("X-Vault-Token") == "" {
		r.Header.Set("X-Vault-Token", b.token)
	}
	b.proxy.ServeHTTP(w, r)
}

// complete passes a call on to the server, even if its caller hangs up, and
// returns the server's answer without passing that on.
func (b *interceptor) complete(r *http.Request) *httptest.ResponseRecorder {
	kept := httptest.NewRecorder()
	b.pass(kept, r.WithContext(context.WithoutCancel(r.Context())))
	return kept
}

// cut closes the connection without an answer.
func cut() { panic(http.ErrAbortHandler) }

// A fault is a way in which a call fails.
type fault string

const (
	refused fault = "refused" // the server does not get the call; the answer is a refusal
	failed  fault = "failed"  // the server does not get the call; the connection is cut
	lost    fault = "lost"    // the server handles the call; the connection is cut before the answer
)

// fail makes the next calls whose path has the suffix fail. stop ends that and
// returns the number of calls, including those that were passed on.
func (b *interceptor) fail(path string, f fault, times int) (stop func() int) {
	var calls atomic.Int64
	b.handle(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, path) {
			return false
		}
		if calls.Add(1) > int64(times) {
			return false
		}
		switch f {
		case refused:
			w.WriteHeader(http.StatusForbidden)
			_, _ = io.WriteString(w, `{"errors":["1 error occurred:\n\t* permission denied\n\n"]}`) // the caller may be gone
			return true
		case lost:
			b.complete(r)
		}
		cut()
		return true
	})
	return func() int { b.handle(nil); return int(calls.Load()) }
}

// handle sets the function that sees every call first; nil passes all calls on.
func (b *interceptor) handle(f func(w http.ResponseWriter, r *http.Request) bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.answer = f
}

// beforeAnswer sets a function that runs before each answer is passed on.
func (b *interceptor) beforeAnswer(f func(r *http.Request)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.holding = f
}

// writeCA writes the interceptor's own certificate, which is self-signed.
func (b *interceptor) writeCA(t testing.TB, path string) {
	t.Helper()
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: b.Certificate().Raw})
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}
