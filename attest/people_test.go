package attest_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
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

// A provider is an OpenID provider that misbehaves as it is told. That the
// broker works with one that is certified, the e2e suite shows.
type provider struct {
	*httptest.Server
	t         *testing.T
	key       *ecdsa.PrivateKey
	now       time.Time
	metadata  map[string]any // changes; nil values take away
	claims    map[string]any // of the ID token, the same
	userInfo  map[string]any
	algorithm jose.SignatureAlgorithm
	signWith  any // nil: key
	tokens    map[string]any
	refused   string                                        // what the token endpoint refuses with
	hook      func(http.ResponseWriter, *http.Request) bool // true: it has answered
	nonce     string
	challenge string
	asked     url.Values // by the last call of the token endpoint
	people    *attest.People
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

// connect makes a broker's side, which knows nothing yet.
func (p *provider) connect() *attest.People {
	roots := x509.NewCertPool()
	roots.AddCert(p.Certificate())
	people, err := attest.NewPeople(attest.ProviderConfig{
		Name: "login", Issuer: p.URL, ClientID: "broker", Secret: func() (string, error) { return "s3cret", nil },
		RedirectURL: "https://broker.acme.test/ui/login/callback", GroupsClaim: "groups", ManagerClaim: "manager", Roots: roots,
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return people
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
		p.asked = r.Form
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

// begin begins a login, and gives what the browser brings back if all is well.
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
	if q.Get("code_challenge_method") != "S256" || q.Get("redirect_uri") != "https://broker.acme.test/ui/login/callback" || len(q.Get("state")) < 20 || len(p.nonce) < 20 {
		p.t.Errorf("the browser is sent to %s", where)
	}
	return state, url.Values{"state": {q.Get("state")}, "code": {"s3cret-code"}, "iss": {p.URL}}, nil
}

func (p *provider) login(fresh bool, change func(url.Values)) (broker.LoggedIn, error) {
	state, back, err := p.begin(fresh)
	if err != nil {
		return broker.LoggedIn{}, err
	}
	if change != nil {
		change(back)
	}
	return p.people.Finish(p.t.Context(), state, back, p.now)
}

func TestPersonLogsIn(t *testing.T) {
	p := newProvider(t)
	p.claims["manager"] = "ben"
	state, back, err := p.begin(false)
	if err != nil {
		t.Fatal(err)
	}
	in, err := p.people.Finish(t.Context(), state, back, p.now)
	if err != nil {
		t.Fatal(err)
	}
	who := in.Who
	if who.ID != "login/ana" || who.Kind != broker.KindPerson || who.Person.Manager != "login/ben" || who.Person.Name != "Ana" || in.SID != "session-1" ||
		len(who.Person.Groups) != 1 || who.Person.Groups[0] != "dba" || !who.Person.Login.Equal(p.now) || !who.Person.Claimed.Equal(p.now) || who.Proof.Method != broker.MethodSession {
		t.Errorf("%+v, %+v", who, who.Person)
	}
	sum := sha256.Sum256([]byte(p.asked.Get("code_verifier")))
	if base64.RawURLEncoding.EncodeToString(sum[:]) != p.challenge || p.asked.Get("code") != "s3cret-code" {
		t.Errorf("the token endpoint was sent %v", p.asked)
	}
	fresh, tokens, err := p.people.Refresh(t.Context(), who, in.Tokens, p.now.Add(time.Minute))
	if err != nil || !fresh.Person.Claimed.Equal(p.now.Add(time.Minute)) || !fresh.Person.Login.Equal(p.now) || len(tokens) == 0 {
		t.Errorf("asked again: %+v, %v", fresh.Person, err)
	}
}

// A provider, or whoever sits between, that does not keep to the protocol lets
// nobody in; and no error repeats a secret.
func TestLoginsThatDoNotHold(t *testing.T) {
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	claim := func(name string, value any) func(*provider, url.Values) {
		return func(p *provider, _ url.Values) { p.claims[name] = value }
	}
	for name, change := range map[string]func(p *provider, back url.Values){
		"another state":             func(_ *provider, back url.Values) { back.Set("state", "x") },
		"no state":                  func(_ *provider, back url.Values) { back.Del("state") },
		"two states":                func(_ *provider, back url.Values) { back.Add("state", back.Get("state")) },
		"another provider's answer": func(_ *provider, back url.Values) { back.Set("iss", "https://evil.test") }, // RFC 9207: mix-up
		"nobody's answer":           func(_ *provider, back url.Values) { back.Del("iss") },
		"no code":                   func(_ *provider, back url.Values) { back.Del("code") },
		"refused":                   func(_ *provider, back url.Values) { back.Set("error", "access_denied") },
		"a long code":               func(_ *provider, back url.Values) { back.Set("code", strings.Repeat("x", 5000)) },
		"a code that is refused":    func(p *provider, _ url.Values) { p.refused = "invalid_grant" },
		"no nonce":                  claim("nonce", nil),
		"another nonce":             claim("nonce", "x"),
		"another audience":          claim("aud", "somebody"),
		"several audiences":         claim("aud", []string{"broker", "somebody"}),
		"another party":             claim("azp", "somebody"),
		"another issuer":            claim("iss", "https://evil.test"),
		"expired":                   claim("exp", time.Now().Add(-time.Minute).Unix()),
		"of the future":             claim("iat", time.Now().Add(time.Hour).Unix()),
		"another access token":      claim("at_hash", base64.RawURLEncoding.EncodeToString(make([]byte, 16))),
		"nobody":                    claim("sub", nil),
		"a subject with a space":    claim("sub", "ana ben"),
		"a long subject":            claim("sub", strings.Repeat("x", 256)),
		"groups that are none":      claim("groups", 7),
		"too many groups":           claim("groups", strings.Fields(strings.Repeat("g ", 257))),
		"groups elsewhere":          claim("_claim_names", map[string]string{"groups": "src1"}),
		"a manager that is none":    claim("manager", []string{"ben"}),
		"a name that is none":       claim("name", map[string]string{"a": "b"}),
		"a session that is none":    claim("sid", strings.Repeat("x", 256)),
		"a key that is not its":     func(p *provider, _ url.Values) { p.signWith = jose.JSONWebKey{Key: other, KeyID: "1"} },
		"a key that it has not":     func(p *provider, _ url.Values) { p.signWith = jose.JSONWebKey{Key: other, KeyID: "2"} },
		"signed by the secret": func(p *provider, _ url.Values) {
			p.algorithm, p.signWith = jose.HS256, []byte(strings.Repeat("s3cret", 8))
		},
		"not signed":               func(p *provider, _ url.Values) { p.tokens["id_token"] = unsigned(p.idToken()) },
		"no ID token":              func(p *provider, _ url.Values) { p.tokens["id_token"] = nil },
		"an ID token that is none": func(p *provider, _ url.Values) { p.tokens["id_token"] = "x.y.z" },
		"a long ID token":          func(p *provider, _ url.Values) { p.tokens["id_token"] = strings.Repeat("x", 17<<10) },
		"UserInfo of somebody else": func(p *provider, _ url.Values) {
			p.claims["groups"], p.userInfo = nil, map[string]any{"sub": "eve", "groups": []string{"dba"}}
		},
		"no groups anywhere":    func(p *provider, _ url.Values) { p.claims["groups"], p.userInfo = nil, nil },
		"an answer without end": func(p *provider, _ url.Values) { p.hook = endlessToken },
		"a redirect":            func(p *provider, _ url.Values) { p.hook = redirectToken },
		"an answer that is no JSON": func(p *provider, _ url.Values) {
			p.hook = func(w http.ResponseWriter, r *http.Request) bool {
				fmt.Fprint(w, "<html>")
				return r.URL.Path == "/token"
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newProvider(t)
			state, back, err := p.begin(false)
			if err != nil {
				t.Fatal(err)
			}
			change(p, back)
			in, err := p.people.Finish(t.Context(), state, back, p.now)
			if err == nil {
				t.Fatalf("%s is let in", in.Who.ID)
			}
			if strings.Contains(err.Error(), "s3cret") {
				t.Errorf("the error repeats a secret: %v", err)
			}
		})
	}
}

func endlessToken(w http.ResponseWriter, r *http.Request) bool {
	if r.URL.Path != "/token" {
		return false
	}
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprint(w, `{"access_token":"`)
	for range 1000 {
		if _, err := fmt.Fprint(w, strings.Repeat("x", 64<<10)); err != nil {
			break
		}
	}
	return true
}

func redirectToken(w http.ResponseWriter, r *http.Request) bool {
	if r.URL.Path == "/token" {
		http.Redirect(w, r, "https://evil.test/", http.StatusTemporaryRedirect)
	}
	return r.URL.Path == "/token"
}

// unsigned takes the signature off (RFC 8725, section 3.1).
func unsigned(token string) string {
	_, rest, _ := strings.Cut(token, ".")
	payload, _, _ := strings.Cut(rest, ".")
	return base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." + payload + "."
}

func TestFreshLogin(t *testing.T) {
	p := newProvider(t)
	if _, err := p.login(true, nil); err != nil {
		t.Error(err)
	}
	p.claims["auth_time"] = p.now.Add(-time.Hour).Unix()
	if _, err := p.login(true, nil); err == nil || !strings.Contains(err.Error(), "auth_time") {
		t.Errorf("an old proof is taken for a fresh one: %v", err)
	}
	p.claims["auth_time"] = nil
	if _, err := p.login(true, nil); err == nil {
		t.Error("a provider that does not say when is believed")
	}
	if in, err := p.login(false, nil); err != nil || !in.Who.Person.Login.IsZero() {
		t.Errorf("a provider that does not say when it asked is taken to have asked: %+v, %v", in.Who.Person, err)
	}
}

func TestLoginTakesTooLong(t *testing.T) {
	p := newProvider(t)
	state, back, err := p.begin(false)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []time.Time{p.now.Add(11 * time.Minute), p.now.Add(-time.Second)} {
		if _, err := p.people.Finish(t.Context(), state, back, at); err == nil {
			t.Errorf("it holds at %s", at)
		}
	}
	if _, err := p.people.Finish(t.Context(), []byte("{"), back, p.now); err == nil {
		t.Error("a state that is none")
	}
}

// Groups come from UserInfo where the ID token has none, and only from the
// provider that the person is of.
func TestGroupsFromUserInfo(t *testing.T) {
	p := newProvider(t)
	p.claims["groups"], p.claims["name"] = nil, nil
	p.userInfo = map[string]any{"sub": "ana", "groups": "dba", "name": "Ana\u202e\x00 B"}
	in, err := p.login(false, nil)
	if err != nil || len(in.Who.Person.Groups) != 1 || in.Who.Person.Groups[0] != "dba" || in.Who.Person.Name != "Ana B" {
		t.Errorf("%+v, %v", in.Who.Person, err)
	}
}

func TestAskingAgainRefuses(t *testing.T) {
	p := newProvider(t)
	in, err := p.login(false, nil)
	if err != nil {
		t.Fatal(err)
	}
	p.claims["sub"] = "eve"
	if _, _, err := p.people.Refresh(t.Context(), in.Who, in.Tokens, p.now); err == nil {
		t.Error("somebody else's claims are taken")
	}
	p.claims["sub"] = "ana"
	p.refused = "invalid_grant"
	if _, _, err := p.people.Refresh(t.Context(), in.Who, in.Tokens, p.now); err == nil || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("a refresh that was refused: %v", err)
	}
	if _, _, err := p.people.Refresh(t.Context(), in.Who, []byte("{}"), p.now); err == nil {
		t.Error("nothing to ask by")
	}
	if _, _, err := p.people.Refresh(t.Context(), broker.Identity{ID: "spiffe://acme.test/x"}, in.Tokens, p.now); err == nil {
		t.Error("a workload has no provider")
	}
}

func TestProvidersThatCannotBeUsed(t *testing.T) {
	for name, change := range map[string]func(*provider){
		"another issuer": func(p *provider) { p.metadata["issuer"] = "https://evil.test" },
		"no PKCE":        func(p *provider) { p.metadata["code_challenge_methods_supported"] = []string{"plain"} },
		"down": func(p *provider) {
			p.hook = func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(503); return true }
		},
		"no JSON": func(p *provider) {
			p.hook = func(w http.ResponseWriter, _ *http.Request) bool { fmt.Fprint(w, "<html>"); return true }
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newProvider(t)
			change(p)
			if _, _, err := p.begin(false); !errors.Is(err, broker.ErrUnavailable) {
				t.Fatalf("it is used: %v", err)
			}
			asked := 0
			p.hook = func(http.ResponseWriter, *http.Request) bool { asked++; return false }
			_, _, _ = p.begin(false)
			if asked != 0 {
				t.Error("a provider that is down is asked again at once")
			}
			p.metadata, p.now = map[string]any{}, p.now.Add(3*time.Second)
			if _, _, err := p.begin(false); err != nil {
				t.Errorf("when it works again: %v", err)
			}
		})
	}
	p := newProvider(t)
	if _, _, err := p.people.Begin(t.Context(), "other", false, p.now); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("a provider that is none: %v", err)
	}
	for _, issuer := range []string{"", "http://login.acme.test", "login.acme.test", "ftp://login.acme.test"} {
		if _, err := attest.NewPeople(attest.ProviderConfig{Name: "x", Issuer: issuer}); err == nil {
			t.Errorf("%q is taken for an issuer", issuer)
		}
	}
}

// Anybody can send a token by a key that nobody knows. The provider is not asked
// for its keys each time, and what it signs is known all the same.
func TestUnknownKeys(t *testing.T) {
	p := newProvider(t)
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	p.hook = func(_ http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/keys" {
			asked++
		}
		return false
	}
	claims := map[string]any{
		"iss": p.URL, "aud": "broker", "iat": p.now.Unix(), "exp": p.now.Add(2 * time.Minute).Unix(), "jti": "1", "sub": "ana",
		"events": map[string]any{"http://schemas.openid.net/event/backchannel-logout": map[string]any{}},
	}
	const sent = 200
	for i := range sent {
		p.signWith = jose.JSONWebKey{Key: other, KeyID: fmt.Sprint("forged-", i)}
		if _, err := p.people.LogoutToken(t.Context(), "login", p.sign(claims, "logout+jwt"), p.now); err == nil {
			t.Fatal("a forged token holds")
		}
	}
	if asked == 0 || asked > sent/4 {
		t.Errorf("for %d forged tokens it was asked %d times", sent, asked)
	}
	p.signWith = nil
	if _, err := p.people.LogoutToken(t.Context(), "login", p.sign(claims, "logout+jwt"), p.now); err != nil {
		t.Errorf("a genuine one, after them: %v", err)
	}
}

// Back-Channel Logout 1.0, section 2.6.
func TestLogoutTokens(t *testing.T) {
	p := newProvider(t)
	good := func() map[string]any {
		return map[string]any{
			"iss": p.URL, "aud": "broker", "iat": p.now.Unix(), "exp": p.now.Add(2 * time.Minute).Unix(), "jti": "1", "sub": "ana", "sid": "session-1",
			"events": map[string]any{"http://schemas.openid.net/event/backchannel-logout": map[string]any{}},
		}
	}
	tell := func(ctx context.Context, claims map[string]any) (broker.LogoutWord, error) {
		return p.people.LogoutToken(ctx, "login", p.sign(claims, "logout+jwt"), p.now)
	}
	if word, err := tell(t.Context(), good()); err != nil || word != (broker.LogoutWord{Provider: "login", Sub: "ana", SID: "session-1", ID: "1", Issued: p.now}) {
		t.Errorf("%+v, %v", word, err)
	}
	for name, changes := range map[string]map[string]any{
		"an ID token":       {"events": nil},
		"with a nonce":      {"nonce": "x"},
		"for somebody else": {"aud": "somebody"},
		"by somebody else":  {"iss": "https://evil.test"},
		"of nobody":         {"sub": nil, "sid": nil},
		"expired":           {"exp": p.now.Add(-time.Second).Unix()},
		"old":               {"iat": p.now.Add(-6 * time.Minute).Unix()},
		"of the future":     {"iat": p.now.Add(time.Hour).Unix(), "exp": p.now.Add(2 * time.Hour).Unix()},
		"without a time":    {"iat": nil},
		"without an end":    {"exp": nil},
		"without an id":     {"jti": nil},
		"a long session":    {"sid": strings.Repeat("x", 256)},
		"a subject of two":  {"sub": "ana ben"},
	} {
		if word, err := tell(t.Context(), changed(good(), changes)); err == nil {
			t.Errorf("%s: it logs %q out", name, word.Sub)
		}
	}
	for _, bad := range []string{"", "x", unsigned(p.sign(good(), "logout+jwt")), strings.Repeat("x", 17<<10)} {
		if _, err := p.people.LogoutToken(t.Context(), "login", bad, p.now); err == nil {
			t.Errorf("%.20q logs somebody out", bad)
		}
	}
}
