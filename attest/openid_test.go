package attest_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"accessbroker.internal/attest"
	"accessbroker.internal/broker"
)

// A provider is an OpenID provider that misbehaves as configured. The e2e suite tests
// with a certified one.
type provider struct {
	*httptest.Server
	t         *testing.T
	key       *ecdsa.PrivateKey
	now       time.Time
	metadata  map[string]any // changes; nil removes a value
	claims    map[string]any // changes of the ID token, likewise
	userInfo  map[string]any
	algorithm jose.SignatureAlgorithm
	signWith  any // nil: key
	tokens    map[string]any
	refused   string                                        // error code of the token endpoint
	hook      func(http.ResponseWriter, *http.Request) bool // returns true if it has responded
	nonce     string
	challenge string
	sent      url.Values // parameters of the last token request
	people    *attest.People
	log       strings.Builder
}

func newProvider(t *testing.T) *provider {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p := &provider{t: t, key: key, now: time.Now().Truncate(time.Second), algorithm: jose.ES256, metadata: map[string]any{}, claims: map[string]any{}, tokens: map[string]any{}}
	p.Server = httptest.NewTLSServer(http.HandlerFunc(p.serve))
	t.Cleanup(p.Close)
	p.people = p.connect()
	return p
}

// connect returns a new broker's side.
func (p *provider) connect() *attest.People {
	people, err := attest.NewPeople(p.config("login", attest.DelegationConfig{
		IDJAGs: true, Audience: "https://broker.acme.test", Audiences: []string{"broker-agents"},
		Clients: map[string][]string{"mcp-client": {"spiffe://acme.test/agent"}, "other-client": {"spiffe://acme.test/agents"}},
	}))
	if err != nil {
		p.t.Fatal(err)
	}
	return people
}

func (p *provider) config(name string, delegation attest.DelegationConfig) attest.ProviderConfig {
	roots := x509.NewCertPool()
	roots.AddCert(p.Certificate())
	return attest.ProviderConfig{
		Name: name, Issuer: p.URL, ClientID: "broker", Secret: func() (string, error) { return "s3cret", nil },
		RedirectURL: "https://broker.acme.test/ui/login/callback", GroupsClaim: "groups", ManagerClaim: "manager", EndsClaim: "ends", SponsorClaim: "sponsor", Roots: roots,
		Delegation: delegation,
		Log:        slog.New(slog.NewTextHandler(&p.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
}

func changed(m, changes map[string]any) map[string]any {
	maps.Copy(m, changes)
	maps.DeleteFunc(m, func(_ string, v any) bool { return v == nil })
	return m
}

func (p *provider) serve(w http.ResponseWriter, r *http.Request) {
	if p.hook != nil && p.hook(w, r) {
		return
	}
	w.Header().Set("Content-Type", "application/json")
	var answer any
	switch r.URL.Path {
	case "/.well-known/openid-configuration":
		answer = changed(map[string]any{
			"issuer": p.URL, "authorization_endpoint": p.URL + "/authorize", "token_endpoint": p.URL + "/token", "jwks_uri": p.URL + "/keys",
			"userinfo_endpoint": p.URL + "/userinfo", "id_token_signing_alg_values_supported": []string{"ES256"},
			"authorization_response_iss_parameter_supported": true, "code_challenge_methods_supported": []string{"S256"},
		}, p.metadata)
	case "/keys":
		answer = jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: &p.key.PublicKey, KeyID: "1", Algorithm: "ES256", Use: "sig"}}}
	case "/token":
		_ = r.ParseForm()
		p.sent = r.Form
		if p.refused != "" {
			w.WriteHeader(http.StatusBadRequest)
			answer = map[string]string{"error": p.refused, "error_description": "you sent " + r.Form.Encode()}
			break
		}
		answer = changed(map[string]any{"access_token": "s3cret-access", "token_type": "Bearer", "expires_in": 3600, "refresh_token": "s3cret-refresh", "id_token": p.idToken()}, p.tokens)
	case "/userinfo":
		answer = p.userInfo
	default:
		w.WriteHeader(http.StatusNotFound)
	}
	_ = json.NewEncoder(w).Encode(answer)
}

func (p *provider) idToken() string {
	return p.sign(changed(map[string]any{
		"iss": p.URL, "sub": "ana", "aud": "broker", "exp": p.now.Add(5 * time.Minute).Unix(), "iat": p.now.Unix(), "auth_time": p.now.Unix(),
		"nonce": p.nonce, "name": "Ana", "groups": []string{"dba"}, "sid": "session-1",
	}, p.claims), "")
}

func (p *provider) sign(claims any, kind jose.ContentType) string {
	p.t.Helper()
	key := any(jose.JSONWebKey{Key: p.key, KeyID: "1"})
	if p.signWith != nil {
		key = p.signWith
	}
	options := &jose.SignerOptions{}
	if kind != "" {
		options = options.WithType(kind)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: p.algorithm, Key: key}, options)
	if err != nil {
		p.t.Fatal(err)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		p.t.Fatal(err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		p.t.Fatal(err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		p.t.Fatal(err)
	}
	return text
}

// begin starts a login and returns the parameters of a successful callback.
func (p *provider) begin(fresh bool) (state []byte, back url.Values, err error) {
	state, where, err := p.people.Begin(p.t.Context(), "login", fresh, p.now)
	if err != nil {
		return nil, nil, err
	}
	u, err := url.Parse(where)
	if err != nil {
		p.t.Fatal(err)
	}
	q := u.Query()
	p.nonce, p.challenge = q.Get("nonce"), q.Get("code_challenge")
	if q.Get("scope") != "openid profile email" || (q.Get("prompt") == "login" && q.Get("max_age") == "0") != fresh {
		p.t.Errorf("fresh %t: got authorization URL %s", fresh, where)
	}
	if q.Get("code_challenge_method") != "S256" || q.Get("redirect_uri") != "https://broker.acme.test/ui/login/callback" || len(q.Get("state")) < 20 || len(p.nonce) < 20 {
		p.t.Errorf("got authorization URL %s", where)
	}
	return state, url.Values{"state": {q.Get("state")}, "code": {"s3cret-code"}, "iss": {p.URL}}, nil
}

func (p *provider) login(fresh bool, change func(url.Values)) (broker.NewSession, error) {
	state, back, err := p.begin(fresh)
	if err != nil {
		return broker.NewSession{}, err
	}
	if change != nil {
		change(back)
	}
	return p.people.Finish(p.t.Context(), state, back, p.now)
}
