package vault

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"accessbroker.internal/broker"
)

// When a reused connection breaks, net/http repeats some requests by itself. It
// must not repeat one that creates a credential.
func TestIssueSendsOnceOnReusedConnection(t *testing.T) {
	for name, test := range map[string]struct {
		spec Spec
		h2   bool
	}{
		"read":            {Spec{Path: "database/creds/orders-ro"}, false},
		"written":         {Spec{Path: "pki/issue/web", Data: map[string]string{"ttl": "${ttl}", "uri_sans": "${holder}"}}, false},
		"read, HTTP/2":    {Spec{Path: "database/creds/orders-ro"}, true},
		"written, HTTP/2": {Spec{Path: "pki/issue/web", Data: map[string]string{"ttl": "${ttl}", "uri_sans": "${holder}"}}, true},
	} {
		t.Run(name, func(t *testing.T) {
			f, v := startFake(t)
			if test.h2 {
				v = f.overTLS(t)
			}
			o := newOrder(t, test.spec)
			if _, _, err := issue(v, o); err != nil {
				t.Fatal(err)
			}
			f.with(func(_ http.ResponseWriter, r *http.Request) bool {
				if test.h2 != (r.ProtoMajor == 2) {
					t.Errorf("the request uses %s", r.Proto)
				}
				if strings.HasSuffix(r.URL.Path, test.spec.Path) {
					panic(http.ErrAbortHandler)
				}
				return false
			})
			if _, _, err := issue(v, o); !errors.Is(err, broker.ErrIssuerUnavailable) {
				t.Errorf("without an answer: %v", err)
			}
			n := 0
			for _, call := range f.received() {
				if strings.HasSuffix(call, test.spec.Path) {
					n++
				}
			}
			if n != 2 {
				t.Errorf("%d requests for 2 credentials: %v", n, f.received())
			}
		})
	}
}

// A token whose answer was lost has no record, so Prepare does not create another one.
func TestPrepareSendsOnce(t *testing.T) {
	for name, answer := range map[string]func(http.ResponseWriter){
		"lost":        func(http.ResponseWriter) { panic(http.ErrAbortHandler) },
		"failed":      func(w http.ResponseWriter) { refuse(w, 500, "internal error") },
		"bad gateway": func(w http.ResponseWriter) { http.Error(w, "", http.StatusBadGateway) },
		"truncated": func(w http.ResponseWriter) {
			w.Header().Set("Content-Length", "900")
			_, _ = io.WriteString(w, `{"auth": {`)
		},
	} {
		f, v := startFake(t)
		if _, _, err := issue(v, newOrder(t, Spec{Path: "database/creds/orders-ro"})); err != nil { // the connection is reused
			t.Fatal(err)
		}
		var n atomic.Int64
		f.with(func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "token/create") {
				return false
			}
			n.Add(1)
			answer(w)
			return true
		})
		if _, err := v.Prepare(t.Context(), newOrder(t, Spec{Path: TokenPath})); !errors.Is(err, broker.ErrIssuerUnavailable) || n.Load() != 1 {
			t.Errorf("%s: %v after %d requests, want one", name, err, n.Load())
		}
	}
}

// A downNode fails to connect as often as its value says.
type downNode struct {
	http.RoundTripper
	times int
}

func (d *downNode) RoundTrip(r *http.Request) (*http.Response, error) {
	if d.times--; d.times >= 0 {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")}
	}
	return d.RoundTripper.RoundTrip(r)
}

// A node that accepts no connection got no request. So the broker tries again, and
// knows that there is nothing to end if no node is up.
func TestUnsentRequestCreatesNothing(t *testing.T) {
	for _, down := range []int{briefAttempts, briefAttempts + 1} {
		_, v := startFake(t)
		o := newOrder(t, Spec{Path: "database/creds/orders-ro"})
		prepared, err := v.Prepare(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		o.Lease.Handle, o.Key = prepared.Handle, prepared.Key
		node := &downNode{newTransport(nil), down}
		if v.once, err = newClient(v.cfg, sentOnce{node}, 0); err != nil {
			t.Fatal(err)
		}
		_, text, err := v.Issue(t.Context(), o)
		var h handle
		if jsonErr := json.Unmarshal(text, &h); jsonErr != nil {
			t.Fatal(jsonErr)
		}
		switch {
		case down == briefAttempts && err != nil:
			t.Errorf("the node was down %d times: %v", down, err)
		case down > briefAttempts && (h.Made != madeNothing || !errors.Is(err, broker.ErrIssuerUnavailable) || node.times != 0):
			t.Errorf("the node is down: got handle %s after %d more attempts, %v", text, node.times, err)
		}
	}
}

// overTLS returns an issuer that uses the same Vault over HTTP/2.
func (f *fakeVault) overTLS(t *testing.T) *Issuer {
	t.Helper()
	s := httptest.NewUnstartedServer(f)
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	return newIssuer(t, Config{Address: s.URL, TLS: s.Client().Transport.(*http.Transport).TLSClientConfig.Clone()})
}

func TestEveryRequestHasNamespace(t *testing.T) {
	f := &fakeVault{t: t, tokens: map[string]*fakeToken{}, leases: map[string]string{}, listed: map[string]int{}}
	var mu sync.Mutex
	seen := map[string]string{}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		seen[strings.TrimPrefix(r.URL.Path, "/v1/")] = r.Header.Get("X-Vault-Namespace")
		mu.Unlock()
		f.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	v := newIssuer(t, Config{Address: s.URL, Namespace: "team/payments"})
	for _, spec := range []Spec{{Path: "database/creds/orders-ro"}, {Path: TokenPath}} {
		l, _, err := issue(v, newOrder(t, spec))
		if err != nil {
			t.Fatal(err)
		}
		if err := v.Revoke(t.Context(), l); err != nil {
			t.Error(err)
		}
	}
	v.session.renewal = v.session.loggedIn
	if err := v.session.renew(t.Context()); err != nil {
		t.Error(err)
	}
	if len(seen) != 6 {
		t.Errorf("requests for %v, want 6 paths", seen)
	}
	for path, namespace := range seen {
		if namespace != "team/payments" {
			t.Errorf("%s has the namespace %q", path, namespace)
		}
	}
}

// Only Vault confirms a revocation. A proxy in between may answer instead of it.
func TestProxyConfirmsNoRevocation(t *testing.T) {
	for name, answer := range map[string]struct {
		status int
		body   string
		want   error
	}{
		"page":            {http.StatusOK, "<html>log in</html>", broker.ErrIssuerUnavailable},
		"empty page":      {http.StatusOK, "", broker.ErrIssuerUnavailable},
		"missing page":    {http.StatusNotFound, "\n", broker.ErrIssuerRefused},
		"missing, HTML":   {http.StatusNotFound, "<html>", broker.ErrIssuerRefused},
		"missing, others": {http.StatusNotFound, `{"errors": ["words of a plugin"], "code": 1}`, broker.ErrIssuerRefused},
	} {
		for _, spec := range []Spec{{Path: "database/creds/orders-ro"}, {Path: TokenPath}} {
			t.Run(name+", "+spec.Path, func(t *testing.T) {
				f, v := startFake(t)
				l, _, err := issue(v, newOrder(t, spec))
				if err != nil {
					t.Fatal(err)
				}
				f.with(func(w http.ResponseWriter, r *http.Request) bool {
					revokes := strings.Contains(r.URL.Path, "revoke")
					if revokes {
						w.WriteHeader(answer.status)
						_, _ = io.WriteString(w, answer.body) // the client may have gone away
					}
					return revokes
				})
				if err := v.Revoke(t.Context(), l); !errors.Is(err, answer.want) || strings.Contains(err.Error(), "words") {
					t.Errorf("got %v, want %v", err, answer.want)
				}
				f.with(nil)
				if err := v.Revoke(t.Context(), l); err != nil {
					t.Errorf("by Vault: %v", err)
				}
			})
		}
	}
}
