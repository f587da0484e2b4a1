package verify

import (
	"bytes"
	"compress/zlib"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// An issuer is another issuer than the broker: it signs whatever a test wants.
type issuer struct {
	t        testing.TB
	url      string
	client   *http.Client
	server   *httptest.Server
	key      *ecdsa.PrivateKey
	audience string

	mu       sync.Mutex
	now      time.Time
	calls    map[string]int
	handlers map[string]http.HandlerFunc
	jwks     []any
}

const testAudience = "https://tickets.acme.test"

func newIssuer(t testing.TB) *issuer {
	i := &issuer{t: t, now: time.Unix(1_795_940_000, 0), calls: map[string]int{}, handlers: map[string]http.HandlerFunc{}, audience: testAudience}
	i.key = newECKey(t)
	i.jwks = []any{jwkOf(&i.key.PublicKey, "k1")}
	i.server = httptest.NewTLSServer(i)
	t.Cleanup(i.server.Close)
	i.url, i.client = i.server.URL, i.server.Client()
	return i
}

func newECKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// ServeHTTP counts calls by path.
func (i *issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	i.calls[r.URL.Path]++
	h, keys := i.handlers[r.URL.Path], i.jwks
	i.mu.Unlock()
	switch {
	case h != nil:
		h(w, r)
	case r.URL.Path == "/.well-known/oauth-authorization-server":
		answer(w, "application/json", map[string]any{"issuer": i.url, "jwks_uri": i.url + "/jwks", "introspection_endpoint": i.url + "/introspect"})
	case r.URL.Path == "/jwks":
		w.Header().Set("Cache-Control", "public, max-age=300")
		answer(w, "application/jwk-set+json", map[string]any{"keys": keys})
	default:
		http.NotFound(w, r)
	}
}

func answer(w http.ResponseWriter, mediaType string, body any) {
	w.Header().Set("Content-Type", mediaType)
	_ = json.NewEncoder(w).Encode(body)
}

func (i *issuer) handle(path string, h http.HandlerFunc) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.handlers[path] = h
}

func (i *issuer) count(path string) int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.calls[path]
}

func (i *issuer) clock() time.Time {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.now
}

func (i *issuer) pass(d time.Duration) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.now = i.now.Add(d)
}

func (i *issuer) publish(jwks ...any) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.jwks = jwks
}

// verifier returns a verifier of the issuer's tokens, with the issuer's clock.
func (i *issuer) verifier(change func(*Config)) *Verifier {
	i.t.Helper()
	cfg := Config{Issuer: i.url, Audience: i.audience, Client: i.client, Now: i.clock}
	if change != nil {
		change(&cfg)
	}
	v, err := New(cfg)
	if err != nil {
		i.t.Fatal(err)
	}
	return v
}

type object = map[string]any

// claims returns valid claims with changes; nil removes a claim.
func (i *issuer) claims(changes object) object {
	now := i.clock()
	c := object{
		"iss": i.url, "sub": "spiffe://acme.test/agent/triage", "client_id": "spiffe://acme.test/agent/triage", "aud": i.audience,
		"jti": "lse_1", "iat": now.Unix(), "exp": now.Add(10 * time.Minute).Unix(), "scope": "tickets:read tickets:close",
	}
	return changed(c, changes)
}

func changed(c, changes object) object {
	c = maps.Clone(c)
	for name, v := range changes {
		if c[name] = v; v == nil {
			delete(c, name)
		}
	}
	return c
}

// token returns a valid token with changes of its claims.
func (i *issuer) token(changes object) string {
	return i.sign(object{"alg": "ES256", "kid": "k1", "typ": "at+jwt"}, i.claims(changes), i.key)
}

// sign signs a JWT. A header or claims that are a string are used as they are.
func (i *issuer) sign(header, claims any, key any) string {
	i.t.Helper()
	input := base64url.EncodeToString(jsonOf(i.t, header)) + "." + base64url.EncodeToString(jsonOf(i.t, claims))
	return input + "." + base64url.EncodeToString(signature(i.t, input, key))
}

func jsonOf(t testing.TB, v any) []byte {
	if text, ok := v.(string); ok {
		return []byte(text)
	}
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// signature signs with a private key, with a shared secret if the key is bytes, or not at all
// if it is nil.
func signature(t testing.TB, input string, key any) []byte {
	t.Helper()
	digest := sha256.Sum256([]byte(input))
	switch key := key.(type) {
	case *ecdsa.PrivateKey:
		r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
		if err != nil {
			t.Fatal(err)
		}
		return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	case *rsa.PrivateKey:
		b, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, digest[:])
		if err != nil {
			t.Fatal(err)
		}
		return b
	case ed25519.PrivateKey:
		return ed25519.Sign(key, []byte(input))
	case []byte:
		h := hmac.New(sha256.New, key)
		h.Write([]byte(input))
		return h.Sum(nil)
	case nil:
		return nil
	}
	t.Fatalf("can't sign with a %T", key)
	return nil
}

// jwkOf returns a public key as a JWK.
func jwkOf(key crypto.PublicKey, kid string) object {
	jwk := object{"use": "sig"}
	if kid != "" {
		jwk["kid"] = kid
	}
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		point, err := key.Bytes()
		if err != nil {
			panic(err)
		}
		jwk["kty"], jwk["crv"], jwk["alg"] = "EC", "P-256", "ES256"
		jwk["x"], jwk["y"] = base64url.EncodeToString(point[1:33]), base64url.EncodeToString(point[33:])
	case *rsa.PublicKey:
		jwk["kty"], jwk["alg"] = "RSA", "RS256"
		jwk["n"], jwk["e"] = base64url.EncodeToString(key.N.Bytes()), base64url.EncodeToString(big.NewInt(int64(key.E)).Bytes())
	case ed25519.PublicKey:
		jwk["kty"], jwk["crv"], jwk["alg"], jwk["x"] = "OKP", "Ed25519", "EdDSA", base64url.EncodeToString(key)
	}
	return jwk
}

// list serves a status list with some claims changed, and returns its URI.
func (i *issuer) list(name string, bits []byte, changes object) string {
	uri := i.url + "/status/" + name
	now := i.clock()
	claims := changed(object{
		"iss": i.url, "sub": uri, "iat": now.Unix(), "exp": now.Add(time.Minute).Unix(), "ttl": 15,
		"status_list": object{"bits": 1, "lst": deflate(i.t, bits)},
	}, changes)
	i.serveList(name, i.sign(object{"alg": "ES256", "kid": "k1", "typ": "statuslist+jwt"}, claims, i.key))
	return uri
}

func (i *issuer) serveList(name, token string) {
	i.handle("/status/"+name, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/statuslist+jwt")
		_, _ = w.Write([]byte(token))
	})
}

func deflate(t testing.TB, b []byte) string {
	var out bytes.Buffer
	z := zlib.NewWriter(&out)
	if _, err := z.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return base64url.EncodeToString(out.Bytes())
}

// at returns the status claim for a place.
func at(uri string, index int) object {
	return object{"status": object{"status_list": object{"idx": index, "uri": uri}}}
}

// check verifies a bearer token.
func (v *Verifier) check(t testing.TB, token string) error {
	_, err := v.Token(t.Context(), token, Presentation{})
	return err
}

func edit(text, from, to string) string {
	if !strings.Contains(text, from) {
		panic(fmt.Sprintf("%q has no %q", text, from))
	}
	return strings.Replace(text, from, to, 1)
}

// forgetful accepts a proof any number of times.
type forgetful struct{}

func (forgetful) Use(context.Context, [32]byte, time.Time) (bool, error) { return true, nil }
