package verify

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Tokens with unknown keys cause one fetch per MinRefresh, however many come at once.
func TestUnknownKeysAreFetchedOncePerInterval(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	v := i.verifier(nil)
	if err := v.check(t, i.token(nil)); err != nil {
		t.Fatal(err)
	}
	flood := func() {
		var group sync.WaitGroup
		for n := range 64 {
			token := i.sign(object{"alg": "ES256", "kid": fmt.Sprint("unknown", n), "typ": "at+jwt"}, i.claims(nil), i.key)
			group.Go(func() {
				if err := v.check(t, token); !errors.Is(err, ErrInvalidToken) {
					t.Errorf("got %v", err)
				}
			})
		}
		group.Wait()
	}
	flood()
	if n := i.count("/jwks"); n != 1 {
		t.Errorf("within 30 s of the first fetch: %d fetches, want 1", n)
	}
	i.pass(30 * time.Second)
	flood()
	if n := i.count("/jwks"); n != 2 {
		t.Errorf("after 30 s: %d fetches, want 2", n)
	}
}

// A key that the issuer begins to use is found with the first token that it signed.
func TestNewKeyIsFound(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	v := i.verifier(nil)
	if err := v.check(t, i.token(nil)); err != nil {
		t.Fatal(err)
	}
	next := newECKey(t)
	i.publish(jwkOf(&i.key.PublicKey, "k1"), jwkOf(&next.PublicKey, "k2"))
	i.pass(31 * time.Second)
	if err := v.check(t, i.sign(object{"alg": "ES256", "kid": "k2", "typ": "at+jwt"}, i.claims(nil), next)); err != nil {
		t.Errorf("the new key: %v", err)
	}
}

// A key that the issuer withdrew is refused after the max-age of the keys.
func TestWithdrawnKeyIsRefused(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	v := i.verifier(nil)
	if err := v.check(t, i.token(nil)); err != nil {
		t.Fatal(err)
	}
	next := newECKey(t)
	i.publish(jwkOf(&next.PublicKey, "k2"))
	i.pass(301 * time.Second)
	_ = v.check(t, i.token(nil)) // causes the fetch, and may not wait for it
	eventually(t, "the withdrawn key is refused", func() bool { return errors.Is(v.check(t, i.token(nil)), ErrInvalidToken) })
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 20 s", what)
		}
	}
}

// While the issuer is down, its keys stay in use, but not forever.
func TestKeysOutliveOutages(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	v := i.verifier(nil)
	if err := v.check(t, i.token(nil)); err != nil {
		t.Fatal(err)
	}
	down := func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "down", http.StatusBadGateway) }
	i.handle("/jwks", down)
	i.handle("/.well-known/oauth-authorization-server", down)
	i.pass(6 * time.Hour)
	if err := v.check(t, i.token(nil)); err != nil {
		t.Errorf("after 6 h: %v", err)
	}
	i.pass(5 * time.Minute)
	if err := v.check(t, i.token(nil)); !errors.Is(err, ErrUnavailable) {
		t.Errorf("after MaxStale: got %v, want unavailable", err)
	}
	i.handle("/jwks", nil)
	i.handle("/.well-known/oauth-authorization-server", nil)
	i.pass(time.Minute)
	if err := v.check(t, i.token(nil)); err != nil {
		t.Errorf("after the outage: %v", err)
	}
}

// An issuer that answers with anything but its keys leaves the service without keys.
func TestBadKeyEndpoints(t *testing.T) {
	t.Parallel()
	const metadata, jwks = "/.well-known/oauth-authorization-server", "/jwks"
	i := newIssuer(t)
	json := func(text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write([]byte(text))
		}
	}
	good := string(jsonOf(t, jwkOf(&i.key.PublicKey, "k1")))
	about := func(change object) http.HandlerFunc {
		return json(string(jsonOf(t, changed(object{"issuer": i.url, "jwks_uri": i.url + jwks}, change))))
	}
	private := strings.Replace(good, `"kid"`, `"d":"x","kid"`, 1)
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		path string
		h    http.HandlerFunc
	}{
		"a redirect": {jwks, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/other", http.StatusFound) }},
		"a redirect of the metadata": {metadata, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://evil.test/", http.StatusFound)
		}},
		"a huge set": {jwks, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write([]byte(`{"keys":[` + good + `],"x":"` + strings.Repeat("x", maxDocument) + `"}`))
		}},
		"a page":                  {jwks, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"keys":[` + good + `]}`)) }},
		"no keys":                 {jwks, json(`{"keys":[]}`)},
		"not a set":               {jwks, json(good)},
		"a repeated member":       {jwks, json(`{"keys":[` + good + `],"keys":[` + good + `]}`)},
		"a repeated kid":          {jwks, json(`{"keys":[` + good + `,` + good + `]}`)},
		"a private key":           {jwks, json(`{"keys":[` + private + `]}`)},
		"a shared secret":         {jwks, json(`{"keys":[{"kty":"oct","kid":"k1","k":"AAAA"}]}`)},
		"a key for encryption":    {jwks, json(`{"keys":[` + strings.Replace(good, `"use":"sig"`, `"use":"enc"`, 1) + `]}`)},
		"a key for signing":       {jwks, json(`{"keys":[` + strings.Replace(good, `"use":"sig"`, `"key_ops":["sign"]`, 1) + `]}`)},
		"another algorithm":       {jwks, json(`{"keys":[` + strings.Replace(good, "ES256", "ES384", 1) + `]}`)},
		"a point off the curve":   {jwks, json(`{"keys":[` + strings.Replace(good, `"x":"`, `"x":"AAAA`, 1) + `]}`)},
		"a weak key":              {jwks, json(`{"keys":[` + string(jsonOf(t, jwkOf(&weak.PublicKey, "k1"))) + `]}`)},
		"too many keys":           {jwks, json(`{"keys":[` + strings.Repeat(good+",", maxKeys) + good + `]}`)},
		"metadata of another":     {metadata, about(object{"issuer": "https://evil.test"})},
		"metadata with a slash":   {metadata, about(object{"issuer": i.url + "/"})},
		"keys over plain HTTP":    {metadata, about(object{"jwks_uri": "http://evil.test/jwks"})},
		"no keys in the metadata": {metadata, about(object{"jwks_uri": nil})},
		"a file":                  {metadata, about(object{"jwks_uri": "file:///etc/passwd"})},
	} {
		i.handle(jwks, nil)
		i.handle(metadata, nil)
		i.handle(test.path, test.h)
		if err := i.verifier(nil).check(t, i.token(nil)); !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: got %v, want unavailable", name, err)
		}
	}
	if n := i.count("/other"); n != 0 {
		t.Errorf("a redirect was followed %d times", n)
	}
}

// A caller that leaves does not wait for a slow issuer, and tokens with known keys do not wait
// at all.
func TestSlowIssuer(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	v := i.verifier(nil)
	if err := v.check(t, i.token(nil)); err != nil {
		t.Fatal(err)
	}
	release := make(chan struct{})
	var entered atomic.Int64
	i.handle("/jwks", func(w http.ResponseWriter, _ *http.Request) {
		entered.Add(1)
		<-release
		answer(w, "application/json", object{"keys": []any{jwkOf(&i.key.PublicKey, "k1")}})
	})
	defer close(release)
	i.pass(10 * time.Minute)
	for range 3 {
		if err := v.check(t, i.token(nil)); err != nil {
			t.Errorf("a token with a known key: %v", err)
		}
	}
	eventually(t, "one fetch", func() bool { return entered.Load() == 1 })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := v.Token(ctx, i.sign(object{"alg": "ES256", "kid": "k2", "typ": "at+jwt"}, i.claims(nil), i.key), Presentation{})
	if !errors.Is(err, ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that left: got %v", err)
	}
	if entered.Load() != 1 {
		t.Errorf("%d fetches, want 1", entered.Load())
	}
}
