package verify_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/internal/brokertest"
	"accessbroker.internal/verify"
)

// A service verifies the tokens of a real broker.
type service struct {
	t      *testing.T
	broker *brokertest.Broker
	now    func() time.Time
}

func newService(t *testing.T) *service {
	return &service{t: t, broker: brokertest.New(t), now: time.Now}
}

// verifier returns a verifier of the service, which shows its SVID to the broker.
func (s *service) verifier(change func(*verify.Config)) *verify.Verifier {
	s.t.Helper()
	cfg := verify.Config{
		Issuer: s.broker.URL, Audience: brokertest.Audience, Client: s.broker.Client(brokertest.Tickets).HTTP, Now: s.now,
	}
	if change != nil {
		change(&cfg)
	}
	v, err := verify.New(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	return v
}

// token issues a token.
func (s *service) token(entitlement string, scopes ...string) string {
	s.t.Helper()
	issued, err := s.broker.Client(brokertest.Agent).Exchange(s.t.Context(), api.TokenRequest{Audience: entitlement, Scopes: scopes})
	if err != nil {
		s.t.Fatal(err)
	}
	s.broker.Secret(string(issued.AccessToken))
	return string(issued.AccessToken)
}

func (s *service) revoke(token string) {
	s.t.Helper()
	if err := s.broker.Client(brokertest.Agent).RevokeToken(s.t.Context(), api.Token(token)); err != nil {
		s.t.Fatal(err)
	}
}

// A service accepts a token of the broker for its scopes, and the handler sees the claims.
func TestBrokerTokenIsAccepted(t *testing.T) {
	t.Parallel()
	s := newService(t)
	v := s.verifier(nil)
	token := s.token("tickets-api", "tickets:read", "tickets:comment")
	var seen *verify.Claims
	h := v.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { seen, _ = verify.FromContext(r.Context()) }), "tickets:read")
	if w := call(h, token); w.Code != http.StatusOK {
		t.Fatalf("got %d %v", w.Code, w.Header())
	}
	if seen == nil || seen.Subject != brokertest.Agent || seen.ClientID != brokertest.Agent || !seen.Has("tickets:read", "tickets:comment") || seen.Has("tickets:close") || !seen.Bound.IsZero() || len(seen.Actors) != 0 {
		t.Errorf("got the claims %+v", seen)
	}
	if string(seen.Members["entitlement"]) != `"tickets-api"` {
		t.Errorf("got the entitlement %s", seen.Members["entitlement"])
	}
	w := call(v.Handler(http.NotFoundHandler(), "tickets:close"), token)
	if challenge := w.Header().Get("WWW-Authenticate"); w.Code != http.StatusForbidden || !strings.Contains(challenge, `error="insufficient_scope"`) || !strings.Contains(challenge, `scope="tickets:close"`) {
		t.Errorf("without the scope: got %d %s", w.Code, challenge)
	}
}

// call calls a handler with a bearer token.
func call(h http.Handler, token string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodGet, "https://tickets.acme.test/tickets", nil)
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// A revoked token is refused at once with introspection, and within the ttl of its status list
// without.
func TestRevokedTokenIsRefused(t *testing.T) {
	t.Parallel()
	s := newService(t)
	at := time.Now()
	byList := s.verifier(func(c *verify.Config) { c.Now = func() time.Time { return at } })
	asking := s.verifier(func(c *verify.Config) { c.Introspection = &verify.Introspection{} })
	token := s.token("listed-api", "listed:read")
	for name, v := range map[string]*verify.Verifier{"list": byList, "introspection": asking} {
		if _, err := v.Token(t.Context(), token, verify.Presentation{}, "listed:read"); err != nil {
			t.Fatalf("%s: a valid token: %v", name, err)
		}
	}
	s.revoke(token)
	if _, err := asking.Token(t.Context(), token, verify.Presentation{}); !errors.Is(err, verify.ErrInvalidToken) {
		t.Errorf("with introspection, a revoked token: got %v", err)
	}
	at = at.Add(15 * time.Second) // the ttl of the list
	if _, err := byList.Token(t.Context(), token, verify.Presentation{}); !errors.Is(err, verify.ErrInvalidToken) || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("with the list, a revoked token: got %v", err)
	}
}

// A token that is bound to a certificate is accepted over a connection with that certificate
// only, or with a rotated one of the same workload if the service says so.
func TestCertificateBoundToken(t *testing.T) {
	t.Parallel()
	s := newService(t)
	svid, err := s.broker.CA.X509SVID(brokertest.Agent, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	issued, err := s.broker.ClientWith(svid).Exchange(t.Context(), api.TokenRequest{Audience: "bound-api", Scopes: []string{"bound:read"}})
	if err != nil {
		t.Fatal(err)
	}
	rotated, err := s.broker.CA.X509SVID(brokertest.Agent, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	other, err := s.broker.CA.X509SVID(brokertest.Stranger, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	strict := s.verifier(nil)
	lenient := s.verifier(func(c *verify.Config) { c.RotatedSVIDs = true })
	claims, err := strict.Token(t.Context(), string(issued.AccessToken), verify.Presentation{Certificate: leaf(t, svid)})
	if err != nil {
		t.Fatalf("with its certificate: %v", err)
	}
	survives := claims.Bound.SPIFFEID != ""
	for name, test := range map[string]struct {
		v    *verify.Verifier
		cert *x509.Certificate
		want bool
	}{
		"no certificate":             {strict, nil, false},
		"another workload":           {strict, leaf(t, other), false},
		"another workload, lenient":  {lenient, leaf(t, other), false},
		"rotated certificate":        {strict, leaf(t, rotated), false},
		"rotated, lenient":           {lenient, leaf(t, rotated), survives},
		"its own certificate, still": {lenient, leaf(t, svid), true},
	} {
		_, err := test.v.Token(t.Context(), string(issued.AccessToken), verify.Presentation{Certificate: test.cert})
		if (err == nil) != test.want || err != nil && !errors.Is(err, verify.ErrInvalidToken) {
			t.Errorf("%s: got %v, want accepted %t", name, err, test.want)
		}
	}
}

func leaf(t *testing.T, cert tls.Certificate) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// The broker's own client and package verify agree on proofs of possession, with every kind of
// key.
func TestDPoPBoundToken(t *testing.T) {
	t.Parallel()
	s := newService(t)
	for name, key := range proofKeys(t) {
		c := s.broker.Bearer(brokertest.Agent)
		c.ProofKey = key
		issued, err := c.Exchange(t.Context(), api.TokenRequest{Audience: "tickets-api", Scopes: []string{"tickets:read"}})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		token := string(issued.AccessToken)
		s.broker.Secret(token)
		v := s.verifier(func(c *verify.Config) { c.RequireBinding = true })
		h := v.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), "tickets:read")
		call := func(scheme, proof string) int {
			r := httptest.NewRequest(http.MethodGet, brokertest.Audience+"/tickets?page=2", nil)
			r.Header.Set("Authorization", scheme+" "+token)
			if proof != "" {
				r.Header.Set("DPoP", proof)
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			return w.Code
		}
		proof, err := key.Proof(http.MethodGet, brokertest.Audience+"/tickets?page=2", "", token)
		if err != nil {
			t.Fatal(err)
		}
		if got := call("DPoP", proof); got != http.StatusOK {
			t.Errorf("%s: with a proof: got %d", name, got)
		}
		for what, got := range map[string]int{"the same proof": call("DPoP", proof), "as bearer": call("Bearer", proof), "without a proof": call("DPoP", "")} {
			if got != http.StatusUnauthorized {
				t.Errorf("%s: %s: got %d, want 401", name, what, got)
			}
		}
	}
}

func proofKeys(t *testing.T) map[string]*api.ProofKey {
	t.Helper()
	keys := map[string]*api.ProofKey{}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, private := range map[string]any{"RSA": rsaKey, "Ed25519": edKey} {
		der, err := x509.MarshalPKCS8PrivateKey(private)
		if err != nil {
			t.Fatal(err)
		}
		if keys[name], err = api.ParseProofKey(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})); err != nil {
			t.Fatal(err)
		}
	}
	if keys["P-256"], err = api.NewProofKey(); err != nil {
		t.Fatal(err)
	}
	return keys
}
