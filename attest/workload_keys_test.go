package attest

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"accessbroker.internal/broker"
)

// A webIssuer is an issuer with a discovery document. Handlers may be replaced.
type webIssuer struct {
	*httptest.Server
	metadata, keys atomic.Pointer[http.HandlerFunc]
}

func newWebIssuer(t testing.TB, key tokenKey) *webIssuer {
	t.Helper()
	i := &webIssuer{}
	mux := http.NewServeMux()
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, r *http.Request) { (*i.metadata.Load())(w, r) })
	mux.HandleFunc("/jwks", func(w http.ResponseWriter, r *http.Request) { (*i.keys.Load())(w, r) })
	i.Server = httptest.NewTLSServer(mux)
	t.Cleanup(i.Close)
	i.answer(&i.metadata, fmt.Sprintf(`{"issuer": %q, "jwks_uri": %q}`, i.URL, i.URL+"/jwks"))
	i.answer(&i.keys, keySetOf(t, key))
	return i
}

func (i *webIssuer) answer(at *atomic.Pointer[http.HandlerFunc], text string) {
	i.handle(at, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(text)) })
}

func (i *webIssuer) handle(at *atomic.Pointer[http.HandlerFunc], h http.HandlerFunc) { at.Store(&h) }

func (i *webIssuer) config(t testing.TB) WorkloadIssuerConfig {
	c := ciConfig(t, "")
	c.Issuer, c.Roots = i.URL, x509.NewCertPool()
	c.Roots.AddCert(i.Certificate())
	return c
}

func issuerOf(t testing.TB, c WorkloadIssuerConfig) *workloadIssuer {
	t.Helper()
	i, err := newWorkloadIssuer(c)
	check(t, err)
	return i
}

func TestIssuerDiscovery(t *testing.T) {
	t.Parallel()
	key := newTokenKey(t, "first")
	web := newWebIssuer(t, key)
	set, err := issuerOf(t, web.config(t)).fetchKeys(t.Context())
	if err != nil || len(set.Keys) != 1 || set.Keys[0].ID != "first" {
		t.Fatalf("got %+v, %v", set, err)
	}
	elsewhere := newWebIssuer(t, key)
	metadata := func(issuer, keys string) string { return fmt.Sprintf(`{"issuer": %q, "jwks_uri": %q}`, issuer, keys) }
	for name, c := range map[string]struct{ metadata, want string }{
		"another issuer":              {metadata("https://evil.test", web.URL+"/jwks"), "is of another issuer"},
		"a slash at the end":          {metadata(web.URL+"/", web.URL+"/jwks"), "is of another issuer"},
		"an issuer in another case":   {metadata(strings.ToUpper(web.URL), web.URL+"/jwks"), "is of another issuer"},
		"no issuer":                   {`{"jwks_uri": "` + web.URL + `/jwks"}`, "is of another issuer"},
		"an issuer twice":             {`{"issuer": "https://evil.test", "issuer": "` + web.URL + `", "jwks_uri": "` + web.URL + `/jwks"}`, "has a member twice"},
		"keys at another port":        {metadata(web.URL, elsewhere.URL+"/jwks"), "at another host"},
		"keys at another host":        {metadata(web.URL, "https://evil.test/jwks"), "at another host"},
		"keys on this machine":        {metadata(web.URL, "http://localhost:1/jwks"), "at another host"},
		"keys at a metadata service":  {metadata(web.URL, "http://169.254.169.254/latest"), "at another host"},
		"keys by plain HTTP":          {metadata(web.URL, strings.Replace(web.URL, "https", "http", 1)+"/jwks"), "at another host"},
		"keys in a file":              {metadata(web.URL, "file:///etc/passwd"), "no valid jwks_uri"},
		"keys with a user":            {metadata(web.URL, strings.Replace(web.URL, "https://", "https://a:b@", 1)+"/jwks"), "no valid jwks_uri"},
		"a host in the user part":     {metadata(web.URL, web.URL+"@evil.test/jwks"), "no valid jwks_uri"},
		"no keys":                     {metadata(web.URL, ""), "no valid jwks_uri"},
		"a list of keys":              {`{"issuer": "` + web.URL + `", "jwks_uri": ["` + web.URL + `/jwks"]}`, "no valid jwks_uri"},
		"garbage":                     {"<html>not here</html>", "is not a JSON object"},
		"nothing":                     {"", "is not a JSON object"},
		"an answer that is too large": {`{"x": "` + strings.Repeat("x", maxResponse) + `"}`, "larger than 1 MiB"},
	} {
		web.answer(&web.metadata, c.metadata)
		if set, err := issuerOf(t, web.config(t)).fetchKeys(t.Context()); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, %v, want %s", name, set, err, c.want)
		}
	}
	web.handle(&web.metadata, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, elsewhere.URL+r.URL.Path, http.StatusFound)
	})
	if _, err := issuerOf(t, web.config(t)).fetchKeys(t.Context()); err == nil || !strings.Contains(err.Error(), "responded with 302") {
		t.Errorf("a redirect: got %v", err)
	}
	named := web.config(t)
	named.JWKSURI = web.URL + "/jwks"
	if set, err := issuerOf(t, named).fetchKeys(t.Context()); err != nil || len(set.Keys) != 1 {
		t.Errorf("keys that the operator names: got %v, %v", set, err)
	}
	for name, text := range map[string]string{"garbage": "<html>", "no list": `{"keys": {}}`, "nothing": ""} {
		web.answer(&web.keys, text)
		if set, err := issuerOf(t, named).fetchKeys(t.Context()); err == nil {
			t.Errorf("%s: got %v", name, set)
		}
	}
	web.answer(&web.keys, `{"keys": []}`)
	if set, err := issuerOf(t, named).fetchKeys(t.Context()); err != nil || len(set.Keys) != 0 {
		t.Errorf("an empty set trusts nothing, and is valid: got %v, %v", set, err)
	}
}

// An issuer moves its keys, and the broker does not wait until the metadata is old.
func TestIssuerMovesItsKeys(t *testing.T) {
	t.Parallel()
	for name, gone := range map[string]http.HandlerFunc{
		"not found":  http.NotFound,
		"a redirect": http.RedirectHandler("/moved", http.StatusFound).ServeHTTP,
		"no key set": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>moved</html>")) },
	} {
		web := newWebIssuer(t, newTokenKey(t, "first"))
		i := issuerOf(t, web.config(t))
		if _, err := i.fetchKeys(t.Context()); err != nil {
			t.Fatal(err)
		}
		keys := keySetOf(t, newTokenKey(t, "second"))
		web.handle(&web.keys, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Get("at") != "second" {
				gone(w, r)
				return
			}
			_, _ = w.Write([]byte(keys))
		})
		web.answer(&web.metadata, fmt.Sprintf(`{"issuer": %q, "jwks_uri": %q}`, web.URL, web.URL+"/jwks?at=second"))
		if _, err := i.fetchKeys(t.Context()); err == nil {
			t.Errorf("%s: the earlier address still has keys", name)
		}
		if set, err := i.fetchKeys(t.Context()); err != nil || len(set.Keys) != 1 || set.Keys[0].ID != "second" {
			t.Errorf("%s: got %+v, %v", name, set, err)
		}
		// Without metadata, the last address stays in use.
		web.handle(&web.metadata, http.NotFound)
		i.found = time.Time{}
		if set, err := i.fetchKeys(t.Context()); err != nil || len(set.Keys) != 1 {
			t.Errorf("%s: without metadata: got %+v, %v", name, set, err)
		}
	}
}

func TestIssuerAuthenticatesBroker(t *testing.T) {
	t.Parallel()
	key := newTokenKey(t, "first")
	web := newWebIssuer(t, key)
	for _, at := range []*atomic.Pointer[http.HandlerFunc]{&web.metadata, &web.keys} {
		next := *at.Load()
		web.handle(at, func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != "Bearer s3cret" {
				http.Error(w, "unauthorized", http.StatusUnauthorized)
				return
			}
			next(w, r)
		})
	}
	c := web.config(t)
	if _, err := issuerOf(t, c).fetchKeys(t.Context()); err == nil {
		t.Error("the keys are read without the token")
	}
	c.Bearer = func() (string, error) { return "s3cret", nil }
	if _, err := issuerOf(t, c).fetchKeys(t.Context()); err != nil {
		t.Error(err)
	}
	c.Bearer = func() (string, error) { return "", errors.New("no such file") }
	if _, err := issuerOf(t, c).fetchKeys(t.Context()); err == nil || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("got %v", err)
	}
}

// An issuer that is down at the start makes its own callers wait, and no others; a token of
// it is accepted once it responds.
func TestIssuerIsDown(t *testing.T) {
	t.Parallel()
	key := newTokenKey(t, "first")
	web := newWebIssuer(t, key)
	good := *web.metadata.Load()
	hangs, release := make(chan struct{}, 8), make(chan struct{})
	web.handle(&web.metadata, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "down", http.StatusBadGateway) })
	issuers, err := NewWorkloadIssuers(web.config(t))
	check(t, err)
	if err := issuers.Refresh(t.Context()); err == nil || !strings.Contains(err.Error(), "issuer github") {
		t.Errorf("got %v", err)
	}
	if err := issuers.Degraded(); err == nil || !strings.Contains(err.Error(), "github") {
		t.Errorf("got %v", err)
	}
	w := newWorkloadWorld(t)
	w.key = key
	w.verifier = NewVerifier(VerifierConfig{Source: w.source, Audiences: []string{audienceURL}, Workloads: issuers})
	token := func() string { return w.job(map[string]any{"iss": web.URL}) }
	if _, err := w.identify(token()); !errors.Is(err, broker.ErrUnavailable) || strings.Contains(err.Error(), "Bearer") {
		t.Errorf("got %v, want unavailable", err)
	}
	web.handle(&web.metadata, func(w http.ResponseWriter, r *http.Request) {
		hangs <- struct{}{}
		<-release
		good(w, r)
	})
	issuers.byURL[web.URL].keys.Reset()
	first := make(chan error, 1)
	go func() { _, err := w.identify(token()); first <- err }()
	<-hangs
	if _, err := w.identify(token()); !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("a second caller of an issuer that hangs: got %v", err)
	}
	if who, err := w.identify(w.token(triage, time.Minute)); err != nil || who.ID != triage {
		t.Errorf("a caller with an SVID: got %v", err)
	}
	close(release)
	if err := <-first; err != nil {
		t.Errorf("the caller that waited: %v", err)
	}
	if _, err := w.identify(token()); err != nil {
		t.Errorf("after the issuer came back: %v", err)
	}
	if err := issuers.Degraded(); err != nil {
		t.Errorf("got %v", err)
	}
}

func TestWorkloadIssuersAreDistinct(t *testing.T) {
	t.Parallel()
	c := ciConfig(t, "keys.json")
	if _, err := NewWorkloadIssuers(c, c); err == nil {
		t.Error("two issuers have one URL")
	}
	for name, change := range map[string]func(*WorkloadIssuerConfig){
		"no rules":           func(c *WorkloadIssuerConfig) { c.Rules = nil },
		"no audience":        func(c *WorkloadIssuerConfig) { c.Audience = "" },
		"no algorithms":      func(c *WorkloadIssuerConfig) { c.Algorithms = nil },
		"a MAC":              func(c *WorkloadIssuerConfig) { c.Algorithms = []string{"HS256"} },
		"no longest time":    func(c *WorkloadIssuerConfig) { c.MaxLifetime = 0 },
		"a plain http URL":   func(c *WorkloadIssuerConfig) { c.Issuer = "http://issuer.test" },
		"a URL with a query": func(c *WorkloadIssuerConfig) { c.Issuer = "https://issuer.test?a" },
	} {
		c := ciConfig(t, "keys.json")
		change(&c)
		if _, err := NewWorkloadIssuers(c); err == nil {
			t.Errorf("%s: got no error", name)
		}
	}
}
