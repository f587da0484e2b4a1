package verify

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// A dpopCall calls a service with a proof.
type dpopCall struct {
	*issuer
	key   *ecdsa.PrivateKey
	token string
}

const calledURL = testAudience + "/tickets/7"

func newDPoPCall(t *testing.T) *dpopCall {
	c := &dpopCall{issuer: newIssuer(t), key: newECKey(t)}
	jwk, err := parseObject(jsonOf(t, jwkOf(&c.key.PublicKey, "")))
	if err != nil {
		t.Fatal(err)
	}
	c.token = c.issuer.token(object{"cnf": object{"jkt": thumbprint(&jwk)}})
	return c
}

func (c *dpopCall) proof(header, claims object) string {
	jwk := jwkOf(&c.key.PublicKey, "")
	delete(jwk, "use")
	delete(jwk, "alg")
	sum := sha256.Sum256([]byte(c.token))
	return c.sign(
		changed(object{"typ": "dpop+jwt", "alg": "ES256", "jwk": jwk}, header),
		changed(object{"jti": "p1", "htm": "GET", "htu": calledURL, "iat": c.clock().Unix(), "ath": base64url.EncodeToString(sum[:])}, claims), c.key)
}

func (c *dpopCall) present(v *Verifier, proof string) error {
	_, err := v.Token(c.t.Context(), c.token, Presentation{Scheme: "DPoP", Proof: proof, Method: "GET", URL: calledURL})
	return err
}

// The control: a proof by the key is accepted, once.
func TestDPoPProofWorksOnce(t *testing.T) {
	t.Parallel()
	c := newDPoPCall(t)
	v := c.verifier(nil)
	proof := c.proof(nil, nil)
	if err := c.present(v, proof); err != nil {
		t.Fatal(err)
	}
	if err := c.present(v, proof); !errors.Is(err, ErrInvalidProof) {
		t.Errorf("a replayed proof: got %v", err)
	}
	// It is remembered until it is too old.
	for range 8 {
		c.pass(10 * time.Second)
		if err := c.present(v, proof); !errors.Is(err, ErrInvalidProof) {
			t.Errorf("a replayed proof, later: got %v", err)
		}
	}
}

// Of many calls with one proof at once, one is accepted.
func TestDPoPProofIsUsedOnceAtOnce(t *testing.T) {
	t.Parallel()
	c := newDPoPCall(t)
	v := c.verifier(nil)
	proof := c.proof(nil, nil)
	var mu sync.Mutex
	accepted := 0
	var group sync.WaitGroup
	for range 32 {
		group.Go(func() {
			if c.present(v, proof) == nil {
				mu.Lock()
				accepted++
				mu.Unlock()
			}
		})
	}
	group.Wait()
	if accepted != 1 {
		t.Errorf("%d of 32 calls were accepted, want 1", accepted)
	}
}

// A proof for something else, or by another key, is refused.
func TestBadDPoPProofs(t *testing.T) {
	t.Parallel()
	c := newDPoPCall(t)
	v := c.verifier(nil)
	other := newECKey(t)
	withKey := changed(jwkOf(&c.key.PublicKey, ""), object{"d": "AAAA"})
	for name, proof := range map[string]string{
		"none":                       "",
		"not a JWT":                  "x.y.z",
		"two proofs":                 c.proof(nil, nil) + "," + c.proof(nil, nil),
		"typ JWT":                    c.proof(object{"typ": "JWT"}, nil),
		"no typ":                     c.proof(object{"typ": nil}, nil),
		"alg none":                   c.proof(object{"alg": "none"}, nil),
		"alg HS256":                  c.proof(object{"alg": "HS256"}, nil),
		"no key":                     c.proof(object{"jwk": nil}, nil),
		"a private key":              c.proof(object{"jwk": withKey}, nil),
		"a key that did not sign it": c.proof(object{"jwk": jwkOf(&other.PublicKey, "")}, nil),
		"no jti":                     c.proof(nil, object{"jti": nil}),
		"a long jti":                 c.proof(nil, object{"jti": strings.Repeat("x", maxProofID+1)}),
		"another method":             c.proof(nil, object{"htm": "POST"}),
		"the method in lower case":   c.proof(nil, object{"htm": "get"}),
		"another path":               c.proof(nil, object{"htu": testAudience + "/tickets/8"}),
		"another host":               c.proof(nil, object{"htu": "https://evil.test/tickets/7"}),
		"plain HTTP":                 c.proof(nil, object{"htu": "http://tickets.acme.test/tickets/7"}),
		"another port":               c.proof(nil, object{"htu": "https://tickets.acme.test:8443/tickets/7"}),
		"no htu":                     c.proof(nil, object{"htu": nil}),
		"no iat":                     c.proof(nil, object{"iat": nil}),
		"too old":                    c.proof(nil, object{"iat": c.clock().Unix() - 66}),
		"from the future":            c.proof(nil, object{"iat": c.clock().Unix() + 6}),
		"no ath":                     c.proof(nil, object{"ath": nil}),
		"for another token":          c.proof(nil, object{"ath": base64.RawURLEncoding.EncodeToString(make([]byte, 32))}),
	} {
		if err := c.present(v, proof); !errors.Is(err, ErrInvalidProof) {
			t.Errorf("%s: got %v, want an invalid proof", name, err)
		}
	}
	stolen := *c
	stolen.key = other
	if err := c.present(v, stolen.proof(nil, nil)); !errors.Is(err, ErrInvalidToken) {
		t.Errorf("a proof by another key: got %v, want an invalid token", err)
	}
}

// Spellings of one URL are the same URL (RFC 9449, section 4.3, number 9).
func TestDPoPURLs(t *testing.T) {
	t.Parallel()
	for _, same := range []string{
		calledURL, "HTTPS://Tickets.Acme.Test/tickets/7", "https://tickets.acme.test:443/tickets/7", calledURL + "?a=b", calledURL + "#f",
		testAudience + "/x/../tickets/7", testAudience + "/%74ickets/7",
	} {
		if !sameURL(same, calledURL) {
			t.Errorf("%s is another URL", same)
		}
	}
	if !sameURL(testAudience, testAudience+"/") || !sameURL("https://a.test/%2f", "https://a.test/%2F") {
		t.Error("an empty path or a lower-case escape makes another URL")
	}
	for _, other := range []string{"", "tickets/7", "https://u@tickets.acme.test/tickets/7", calledURL + "/", testAudience + "/tickets%2f7", testAudience + "//tickets/7", "https:tickets.acme.test/tickets/7"} {
		if sameURL(other, calledURL) {
			t.Errorf("%s is the same URL", other)
		}
	}
}

// A DPoP token is refused as a bearer token, and a bearer token with the scheme DPoP.
func TestSchemeMustFitTheToken(t *testing.T) {
	t.Parallel()
	c := newDPoPCall(t)
	v := c.verifier(nil)
	for name, test := range map[string]struct {
		token string
		p     Presentation
	}{
		"a DPoP token as bearer":            {c.token, Presentation{}},
		"a DPoP token as bearer, and proof": {c.token, Presentation{Scheme: "Bearer", Proof: c.proof(nil, nil), Method: "GET", URL: calledURL}},
		"a bearer token as DPoP":            {c.issuer.token(nil), Presentation{Scheme: "DPoP", Proof: c.proof(nil, nil), Method: "GET", URL: calledURL}},
		"another scheme":                    {c.issuer.token(nil), Presentation{Scheme: "Basic"}},
	} {
		if _, err := v.Token(t.Context(), test.token, test.p); !errors.Is(err, ErrInvalidToken) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// A service with nonces refuses proofs without one, and offers the next one.
func TestDPoPNonces(t *testing.T) {
	t.Parallel()
	c := newDPoPCall(t)
	v := c.verifier(func(cfg *Config) { cfg.DPoP.NonceKey = make([]byte, 32) })
	h := v.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), "tickets:read")
	call := func(proof string) *httptest.ResponseRecorder {
		r := httptest.NewRequest("GET", calledURL, nil)
		r.Header.Set("Authorization", "DPoP "+c.token)
		r.Header.Set("DPoP", proof)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w
	}
	w := call(c.proof(nil, nil))
	nonce := w.Header().Get("DPoP-Nonce")
	if w.Code != 401 || nonce == "" || !strings.HasPrefix(w.Header().Get("WWW-Authenticate"), "DPoP ") || !strings.Contains(w.Header().Get("WWW-Authenticate"), `error="use_dpop_nonce"`) {
		t.Fatalf("without a nonce: got %d %v", w.Code, w.Header())
	}
	if w := call(c.proof(nil, object{"nonce": nonce})); w.Code != 200 || w.Header().Get("DPoP-Nonce") == "" {
		t.Errorf("with the nonce: got %d %v", w.Code, w.Header())
	}
	forged := nonce[:len(nonce)-2] + "AA"
	if w := call(c.proof(nil, object{"nonce": forged, "jti": "p2"})); w.Code != 401 {
		t.Errorf("with a forged nonce: got %d", w.Code)
	}
	c.pass(nonceLasts + time.Minute)
	if w := call(c.proof(nil, object{"nonce": nonce, "jti": "p3"})); w.Code != 401 {
		t.Errorf("with an old nonce: got %d", w.Code)
	}
}

// The memory of proofs is bounded, and a full one refuses calls rather than forget a proof.
func TestProofsAreBounded(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_795_940_000, 0)
	r := newReplays(func() time.Time { return now })
	id := func(n int) (id [32]byte) {
		id[0], id[1], id[2] = byte(n), byte(n>>8), byte(n>>16)
		return id
	}
	for n := range maxProofs {
		if first, err := r.Use(t.Context(), id(n), now.Add(time.Minute)); !first || err != nil {
			t.Fatalf("proof %d: got %t, %v", n, first, err)
		}
	}
	if _, err := r.Use(t.Context(), id(maxProofs), now.Add(time.Minute)); err == nil {
		t.Error("a full memory accepted a proof")
	}
	if first, err := r.Use(t.Context(), id(0), now.Add(time.Minute)); first || err != nil {
		t.Errorf("a known proof in a full memory: got %t, %v", first, err)
	}
	now = now.Add(time.Minute)
	if first, err := r.Use(t.Context(), id(maxProofs), now.Add(time.Minute)); !first || err != nil {
		t.Errorf("after a minute: got %t, %v", first, err)
	}
	if len(r.newer)+len(r.older) > 1+maxProofs {
		t.Errorf("%d proofs are in memory", len(r.newer)+len(r.older))
	}
}
