package vault

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"accessbroker.internal/broker"
)

// TestVaultLostAnswerOnAnOldConnection: an HTTP client repeats some calls by
// itself if a connection that it had kept breaks. It may not repeat those that
// make something, read or written, over whichever HTTP.
func TestVaultLostAnswerOnAnOldConnection(t *testing.T) {
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
			f, v := startFakeVault(t)
			if test.h2 {
				v = f.overTLS(t)
			}
			o := vaultOrder(t, test.spec)
			if _, _, err := issue(v, o); err != nil {
				t.Fatal(err)
			}
			f.with(func(_ http.ResponseWriter, r *http.Request) bool {
				if test.h2 != (r.ProtoMajor == 2) {
					t.Errorf("it speaks %s", r.Proto)
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
			for _, call := range f.made() {
				if strings.HasSuffix(call, test.spec.Path) {
					n++
				}
			}
			if n != 2 {
				t.Errorf("it was asked %d times for two credentials: %v", n, f.made())
			}
		})
	}
}

// overTLS gives an issuer that speaks HTTP/2 to the same Vault.
func (f *fakeVault) overTLS(t *testing.T) *Issuer {
	t.Helper()
	s := httptest.NewUnstartedServer(f)
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	return newTestVault(t, Config{Address: s.URL, TLS: s.Client().Transport.(*http.Transport).TLSClientConfig.Clone()})
}

// Every call says its namespace: the login, its renewal, what makes and what
// ends.
func TestVaultNamespace(t *testing.T) {
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
	v := newTestVault(t, Config{Address: s.URL, Namespace: "team/payments"})
	for _, spec := range []Spec{{Path: "database/creds/orders-ro"}, {Path: TokenPath}} {
		l, _, err := issue(v, vaultOrder(t, spec))
		if err != nil {
			t.Fatal(err)
		}
		if err := v.Revoke(t.Context(), l); err != nil {
			t.Error(err)
		}
	}
	v.session.renewal = v.session.made
	if err := v.session.renew(t.Context()); err != nil {
		t.Error(err)
	}
	if len(seen) != 6 {
		t.Errorf("these were called: %v", seen)
	}
	for path, namespace := range seen {
		if namespace != "team/payments" {
			t.Errorf("%s was called in the namespace %q", path, namespace)
		}
	}
}
