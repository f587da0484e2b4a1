package verify

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// Challenges are those of RFC 6750, section 3, and RFC 9449, section 7.1.
func TestChallenges(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	v := i.verifier(func(c *Config) {
		c.Realm, c.ResourceMetadata = `tick"ets`, "https://tickets.acme.test/.well-known/oauth-protected-resource"
	})
	reached := 0
	h := v.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached++ }), "tickets:read", "tickets:admin")
	const tail = `scope="tickets:read tickets:admin", resource_metadata="https://tickets.acme.test/.well-known/oauth-protected-resource"`
	for name, test := range map[string]struct {
		headers []string
		status  int
		want    []string // in the first challenge
	}{
		"no token":              {nil, 401, []string{`Bearer realm="tick'ets", ` + tail}},
		"another scheme":        {[]string{"Authorization", "Basic eDp5"}, 401, []string{`Bearer realm="tick'ets", ` + tail}},
		"a bad token":           {[]string{"Authorization", "Bearer x"}, 401, []string{`error="invalid_token"`, tail}},
		"no token after it":     {[]string{"Authorization", "Bearer"}, 400, []string{`error="invalid_request"`}},
		"two tokens":            {[]string{"Authorization", "Bearer x", "Authorization", "Bearer y"}, 400, []string{`error="invalid_request"`}},
		"two tokens in one":     {[]string{"Authorization", "Bearer x y"}, 400, []string{`error="invalid_request"`}},
		"two proofs":            {[]string{"Authorization", "DPoP x", "DPoP", "a", "DPoP", "b"}, 400, []string{`error="invalid_request"`}},
		"too little scope":      {[]string{"Authorization", "Bearer " + i.token(nil)}, 403, []string{`error="insufficient_scope"`, tail}},
		"the scheme's spelling": {[]string{"Authorization", "bEARER " + i.token(object{"scope": "tickets:read tickets:admin"})}, 200, nil},
	} {
		r := httptest.NewRequest("GET", "https://tickets.acme.test/", nil)
		for n := 0; n < len(test.headers); n += 2 {
			r.Header.Add(test.headers[n], test.headers[n+1])
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != test.status {
			t.Errorf("%s: got %d, want %d", name, w.Code, test.status)
		}
		challenges := w.Header().Values("WWW-Authenticate")
		if test.want == nil {
			continue
		}
		if len(challenges) != 2 || !strings.HasPrefix(challenges[1], "DPoP ") || !strings.Contains(challenges[1], `algs="ES256 Ed25519 EdDSA PS256 RS256"`) {
			t.Errorf("%s: got the challenges %q", name, challenges)
			continue
		}
		for _, part := range test.want {
			if !strings.Contains(challenges[0], part) {
				t.Errorf("%s: got %s, want it to have %s", name, challenges[0], part)
			}
		}
	}
	if reached != 1 {
		t.Errorf("the service was reached %d times, want once", reached)
	}
}

// A token in a form or a query is no token.
func TestTokensElsewhereAreIgnored(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	v := i.verifier(nil)
	r := httptest.NewRequest("POST", "https://tickets.acme.test/?access_token="+i.token(nil), strings.NewReader("access_token="+i.token(nil)))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if _, err := v.Request(r); !errors.Is(err, ErrNoToken) {
		t.Errorf("got %v", err)
	}
}

// While tokens can't be checked, calls are refused with 503 and without a challenge, and the
// service learns why.
func TestUnavailableIssuer(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	token := i.token(nil)
	var seen error
	v := i.verifier(func(c *Config) { c.Failed = func(_ *http.Request, err error) { seen = err } })
	i.server.Close()
	r := httptest.NewRequest("GET", "https://tickets.acme.test/", nil)
	r.Header.Set("Authorization", "Bearer "+token)
	w := httptest.NewRecorder()
	v.Handler(http.NotFoundHandler()).ServeHTTP(w, r)
	if w.Code != 503 || w.Header().Get("Retry-After") == "" || w.Header().Get("WWW-Authenticate") != "" || strings.Contains(w.Body.String(), i.url) {
		t.Errorf("got %d %v %s", w.Code, w.Header(), w.Body)
	}
	if !errors.Is(seen, ErrUnavailable) || strings.Contains(seen.Error(), token) {
		t.Errorf("the service saw %v", seen)
	}
}

// Introspection fails closed, is about this token, and may be kept for a while.
func TestIntrospection(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	token := i.token(nil)
	reply := func(body object) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.Method != "POST" || r.PostFormValue("token") != token {
				http.Error(w, "bad", http.StatusBadRequest)
				return
			}
			answer(w, "application/json", body)
		}
	}
	for name, test := range map[string]struct {
		h    http.HandlerFunc
		want error
	}{
		"active":            {reply(object{"active": true}), nil},
		"active, in full":   {reply(object{"active": true, "iss": i.url, "jti": "lse_1", "sub": "spiffe://acme.test/agent/triage"}), nil},
		"inactive":          {reply(object{"active": false}), ErrInvalidToken},
		"active as a text":  {reply(object{"active": "true"}), ErrInvalidToken},
		"no answer":         {reply(object{}), ErrInvalidToken},
		"of another token":  {reply(object{"active": true, "jti": "lse_2"}), ErrInvalidToken},
		"of another issuer": {reply(object{"active": true, "iss": "https://evil.test"}), ErrInvalidToken},
		"an error":          {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "", http.StatusUnauthorized) }, ErrUnavailable},
		"a page":            {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"active":true}`)) }, ErrUnavailable},
		"active twice": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write([]byte(`{"active":false,"active":true}`))
		}, ErrUnavailable},
		"a redirect":          {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/x", http.StatusTemporaryRedirect) }, ErrUnavailable},
		"more than is wanted": {reply(object{"active": true, "x": strings.Repeat("x", maxIntrospection)}), ErrUnavailable},
	} {
		i.handle("/introspect", test.h)
		err := i.verifier(func(c *Config) { c.Introspection = &Introspection{} }).check(t, token)
		if !errors.Is(err, test.want) || (err == nil) != (test.want == nil) {
			t.Errorf("%s: got %v, want %v", name, err, test.want)
		}
	}
	i.handle("/introspect", reply(object{"active": true}))
	kept := i.verifier(func(c *Config) { c.Introspection = &Introspection{CacheFor: 10 * time.Second} })
	before := i.count("/introspect")
	for range 5 {
		if err := kept.check(t, token); err != nil {
			t.Error(err)
		}
	}
	if n := i.count("/introspect") - before; n != 1 {
		t.Errorf("%d introspections, want 1", n)
	}
	i.handle("/introspect", reply(object{"active": false}))
	i.pass(10 * time.Second)
	if err := kept.check(t, token); !errors.Is(err, ErrInvalidToken) {
		t.Errorf("after 10 s: got %v", err)
	}
}
