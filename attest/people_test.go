package attest_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"accessbroker.internal/attest"
	"accessbroker.internal/broker"
)

func TestLogin(t *testing.T) {
	t.Parallel()
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
		t.Errorf("got identity %+v, person %+v", who, who.Person)
	}
	sum := sha256.Sum256([]byte(p.sent.Get("code_verifier")))
	if base64.RawURLEncoding.EncodeToString(sum[:]) != p.challenge || p.sent.Get("code") != "s3cret-code" {
		t.Errorf("got token request %v", p.sent)
	}
	fresh, tokens, err := p.people.Refresh(t.Context(), who, in.Tokens, p.now.Add(time.Minute))
	if err != nil || !fresh.Person.Claimed.Equal(p.now.Add(time.Minute)) || !fresh.Person.Login.Equal(p.now) || len(tokens) == 0 {
		t.Errorf("Refresh: got %+v, %v", fresh.Person, err)
	}
}

// A NumericDate may have a fraction (RFC 7519, section 2), and the provider's clock may
// be ahead.
func TestPeopleReadFractionsOfSeconds(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	ahead := p.now.Add(5 * time.Second)
	fraction := func(at time.Time) json.Number { return json.Number(fmt.Sprintf("%d.75", at.Unix())) }
	p.claims["iat"], p.claims["nbf"], p.claims["auth_time"], p.claims["exp"] = fraction(ahead), fraction(ahead), fraction(ahead), fraction(p.now.Add(time.Minute))
	in, err := p.login(false, nil)
	if err != nil || in.Who.Person.Login.Unix() != ahead.Unix() || in.Who.Proof.Expires.Unix() != p.now.Add(time.Minute).Unix() {
		t.Errorf("login: got %+v, %v", in.Who, err)
	}
	word, err := p.people.LogoutToken(t.Context(), "login", p.sign(map[string]any{
		"iss": p.URL, "aud": "broker", "iat": fraction(ahead), "exp": fraction(p.now.Add(time.Minute)), "jti": "1", "sub": "ana",
		"events": map[string]any{"http://schemas.openid.net/event/backchannel-logout": map[string]any{}},
	}, "logout+jwt"), p.now)
	if err != nil || word.Issued.Unix() != ahead.Unix() {
		t.Errorf("logout token: got %+v, %v", word, err)
	}
	p.claims["auth_time"] = nil
	if in, err := p.login(false, nil); err != nil || !in.Who.Person.Login.IsZero() {
		t.Errorf("auth_time null: got %+v, %v", in.Who, err)
	}
}

// Each case breaks one rule of the protocol. No error may contain a secret.
func TestFinishRejectsLogin(t *testing.T) {
	t.Parallel()
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	claim := func(name string, value any) func(*provider, url.Values) {
		return func(p *provider, _ url.Values) { p.claims[name] = value }
	}
	cases := map[string]func(p *provider, back url.Values){
		"another state":              func(_ *provider, back url.Values) { back.Set("state", "x") },
		"no state":                   func(_ *provider, back url.Values) { back.Del("state") },
		"two states":                 func(_ *provider, back url.Values) { back.Add("state", back.Get("state")) },
		"another issuer in response": func(_ *provider, back url.Values) { back.Set("iss", "https://evil.test") }, // RFC 9207: mix-up
		"no issuer":                  func(_ *provider, back url.Values) { back.Del("iss") },
		"no code":                    func(_ *provider, back url.Values) { back.Del("code") },
		"error response":             func(_ *provider, back url.Values) { back.Set("error", "access_denied") },
		"a long code":                func(_ *provider, back url.Values) { back.Set("code", strings.Repeat("x", 5000)) },
		"a rejected code":            func(p *provider, _ url.Values) { p.refused = "invalid_grant" },
		"no nonce":                   claim("nonce", nil),
		"another nonce":              claim("nonce", "x"),
		"another audience":           claim("aud", "somebody"),
		"several audiences":          claim("aud", []string{"broker", "somebody"}),
		"another authorized party":   claim("azp", "somebody"),
		"another issuer":             claim("iss", "https://evil.test"),
		"expired":                    claim("exp", time.Now().Add(-time.Minute).Unix()),
		"issued in the future":       claim("iat", time.Now().Add(time.Hour).Unix()),
		"another access token":       claim("at_hash", base64.RawURLEncoding.EncodeToString(make([]byte, 16))),
		"no subject":                 claim("sub", nil),
		"a subject with a space":     claim("sub", "ana ben"),
		"a long subject":             claim("sub", strings.Repeat("x", 256)),
		"groups of another type":     claim("groups", 7),
		"too many groups":            claim("groups", strings.Fields(strings.Repeat("g ", 257))),
		"distributed groups": func(p *provider, _ url.Values) { // OpenID Connect Core, section 5.6.2
			p.claims["_claim_names"] = map[string]string{"groups": "src1"}
			p.claims["_claim_sources"] = map[string]any{"src1": map[string]string{"endpoint": p.URL + "/groups"}}
		},
		"a long group":          claim("groups", []string{strings.Repeat("x", 257)}),
		"a malformed auth_time": claim("auth_time", "now"),
		"a negative auth_time":  claim("auth_time", -1),
		"a huge auth_time":      claim("auth_time", 1e13),
		"an auth_time to come":  claim("auth_time", time.Now().Add(2*time.Minute).Unix()),
		"a long session":        claim("sid", strings.Repeat("x", 256)),
		"another key":           func(p *provider, _ url.Values) { p.signWith = jose.JSONWebKey{Key: other, KeyID: "1"} },
		"an unknown key":        func(p *provider, _ url.Values) { p.signWith = jose.JSONWebKey{Key: other, KeyID: "2"} },
		"signed with the client secret": func(p *provider, _ url.Values) {
			p.algorithm, p.signWith = jose.HS256, []byte(strings.Repeat("s3cret", 8))
		},
		"not signed":           func(p *provider, _ url.Values) { p.tokens["id_token"] = unsigned(p.idToken()) },
		"no ID token":          func(p *provider, _ url.Values) { p.tokens["id_token"] = nil },
		"a malformed ID token": func(p *provider, _ url.Values) { p.tokens["id_token"] = "x.y.z" },
		"a long ID token":      func(p *provider, _ url.Values) { p.tokens["id_token"] = strings.Repeat("x", 17<<10) },
		"UserInfo of another person": func(p *provider, _ url.Values) {
			p.claims["groups"], p.userInfo = nil, map[string]any{"sub": "eve", "groups": []string{"dba"}}
		},
		"UserInfo without sub": func(p *provider, _ url.Values) { p.claims["groups"], p.userInfo = nil, map[string]any{} },
		"an endless response":  func(p *provider, _ url.Values) { p.hook = endlessToken },
		"a redirect":           func(p *provider, _ url.Values) { p.hook = redirectToken },
		"a response that is not JSON": func(p *provider, _ url.Values) {
			p.hook = func(w http.ResponseWriter, r *http.Request) bool {
				fmt.Fprint(w, "<html>")
				return r.URL.Path == "/token"
			}
		},
	}
	wants := map[string]string{ // part of the error
		"a malformed auth_time": `claim "auth_time" is not a time`, "a negative auth_time": `claim "auth_time" is not a time`, "a huge auth_time": `claim "auth_time" is not a time`,
		"an auth_time to come":          `(auth_time)`,
		"another state":                 `(state)`,
		"no state":                      `(state)`,
		"two states":                    `state of the response is repeated`,
		"another issuer in response":    `(iss)`,
		"no issuer":                     `(iss)`,
		"no code":                       `has no code`,
		"error response":                `access_denied`,
		"a long code":                   `code of the response is repeated or too long`,
		"a rejected code":               `invalid_grant`,
		"no nonce":                      `(nonce)`,
		"another nonce":                 `(nonce)`,
		"another audience":              `expected audience`,
		"several audiences":             `(azp)`,
		"another authorized party":      `(azp)`,
		"another issuer":                `issued by a different provider`,
		"expired":                       `token is expired`,
		"issued in the future":          `(iat)`,
		"another access token":          `(at_hash)`,
		"no subject":                    `the subject is not`,
		"a subject with a space":        `the subject is not`,
		"a long subject":                `the subject is not`,
		"groups of another type":        `neither a string nor a list`,
		"too many groups":               `has 257 groups`,
		"distributed groups":            `is distributed (_claim_names)`,
		"a long group":                  `more than 256 bytes`,
		"a long session":                `claim "sid"`,
		"another key":                   `verify signature`,
		"an unknown key":                `verify signature`,
		"signed with the client secret": `unexpected signature algorithm`,
		"not signed":                    `unexpected signature algorithm`,
		"no ID token":                   `has no ID token`,
		"a malformed ID token":          `malformed jwt`,
		"a long ID token":               `too long`,
		"UserInfo of another person":    `belongs to another person (sub)`,
		"UserInfo without sub":          `belongs to another person (sub)`,
		"an endless response":           `exchanging the code`,
		"a redirect":                    `responded with a redirect`,
		"a response that is not JSON":   `exchanging the code`,
	}
	for name, change := range cases {
		t.Run(name, func(t *testing.T) {
			p := newProvider(t)
			state, back, err := p.begin(false)
			if err != nil {
				t.Fatal(err)
			}
			change(p, back)
			in, err := p.people.Finish(t.Context(), state, back, p.now)
			if err == nil {
				t.Fatalf("got identity %s", in.Who.ID)
			}
			if want := wants[name]; want == "" || !strings.Contains(err.Error(), want) {
				t.Errorf("got error %v, want %q", err, want)
			}
			if strings.Contains(err.Error(), "s3cret") {
				t.Errorf("the error contains a secret: %v", err)
			}
		})
	}
}

// endlessToken sends up to 64 MB.
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

// unsigned returns the token with alg none and no signature (RFC 8725, section 3.1).
func unsigned(token string) string {
	_, rest, _ := strings.Cut(token, ".")
	payload, _, _ := strings.Cut(rest, ".")
	return base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." + payload + "."
}

func TestFreshLogin(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	if _, err := p.login(true, nil); err != nil {
		t.Error(err)
	}
	p.claims["auth_time"] = p.now.Add(-time.Hour).Unix()
	if _, err := p.login(true, nil); err == nil || !strings.Contains(err.Error(), "auth_time") {
		t.Errorf("with an old auth_time: got %v", err)
	}
	p.claims["auth_time"] = nil
	if _, err := p.login(true, nil); err == nil {
		t.Error("without auth_time: got no error")
	}
	if in, err := p.login(false, nil); err != nil || !in.Who.Person.Login.IsZero() {
		t.Errorf("without fresh and auth_time: got %+v, %v", in.Who.Person, err)
	}
}

func TestFinishRejectsLateCallback(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	state, back, err := p.begin(false)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []time.Time{p.now.Add(11 * time.Minute), p.now.Add(-time.Second)} {
		if _, err := p.people.Finish(t.Context(), state, back, at); err == nil {
			t.Errorf("at %s: got no error", at)
		}
	}
	if _, err := p.people.Finish(t.Context(), []byte("{"), back, p.now); err == nil {
		t.Error("with a malformed state: got no error")
	}
}

// Finish reads the groups and the name from UserInfo if the ID token has none.
func TestGroupsFromUserInfo(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	p.claims["groups"], p.claims["name"] = nil, nil
	p.userInfo = map[string]any{"sub": "ana", "groups": "dba", "name": "Ana\u202e\x00 B"}
	in, err := p.login(false, nil)
	if err != nil || len(in.Who.Person.Groups) != 1 || in.Who.Person.Groups[0] != "dba" || in.Who.Person.Name != "Ana B" {
		t.Errorf("got person %+v, %v", in.Who.Person, err)
	}
}

func TestRefreshRejectsResponse(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	in, err := p.login(false, nil)
	if err != nil {
		t.Fatal(err)
	}
	p.claims["sub"] = "eve"
	if _, _, err := p.people.Refresh(t.Context(), in.Who, in.Tokens, p.now); err == nil {
		t.Error("claims of another person: got no error")
	}
	p.claims["sub"] = "ana"
	p.refused = "invalid_grant"
	if _, _, err := p.people.Refresh(t.Context(), in.Who, in.Tokens, p.now); err == nil || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("a rejected refresh token: got %v", err)
	}
	if _, _, err := p.people.Refresh(t.Context(), in.Who, []byte("{}"), p.now); err == nil {
		t.Error("without tokens: got no error")
	}
	if _, _, err := p.people.Refresh(t.Context(), broker.Identity{ID: "spiffe://acme.test/x"}, in.Tokens, p.now); err == nil {
		t.Error("for a workload: got no error")
	}
}

func TestBeginRejectsProvider(t *testing.T) {
	t.Parallel()
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
				t.Fatalf("got %v, want ErrUnavailable", err)
			}
			requests := 0
			p.hook = func(http.ResponseWriter, *http.Request) bool { requests++; return false }
			if _, _, err := p.begin(false); !errors.Is(err, broker.ErrUnavailable) || requests != 0 {
				t.Errorf("right after the error: got %v and %d requests, want none", err, requests)
			}
			p.metadata, p.now = map[string]any{}, p.now.Add(3*time.Second)
			if _, _, err := p.begin(false); err != nil {
				t.Errorf("after recovery: got %v", err)
			}
		})
	}
	p := newProvider(t)
	if _, _, err := p.people.Begin(t.Context(), "other", false, p.now); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("an unknown provider: got %v", err)
	}
	for _, issuer := range []string{"", "http://login.acme.test", "login.acme.test", "ftp://login.acme.test"} {
		if _, err := attest.NewPeople(attest.ProviderConfig{Name: "x", Issuer: issuer}); err == nil {
			t.Errorf("issuer %q: got no error", issuer)
		}
	}
}

// Anyone can send tokens with an unknown kid. The broker must not fetch the
// provider's keys for each of them, and must still accept genuine tokens.
func TestUnknownKeysLimitFetches(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	fetches := 0
	p.hook = func(_ http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/keys" {
			fetches++
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
			t.Fatal("a forged token verifies")
		}
	}
	if fetches == 0 || fetches > sent/4 {
		t.Errorf("%d forged tokens: got %d fetches of the keys, want 1 to %d", sent, fetches, sent/4)
	}
	p.signWith = nil
	if _, err := p.people.LogoutToken(t.Context(), "login", p.sign(claims, "logout+jwt"), p.now); err != nil {
		t.Errorf("a genuine token afterwards: got %v", err)
	}
}

// OpenID Connect Back-Channel Logout 1.0, section 2.6.
func TestLogoutToken(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	good := func() map[string]any {
		return map[string]any{
			"iss": p.URL, "aud": "broker", "iat": p.now.Unix(), "exp": p.now.Add(2 * time.Minute).Unix(), "jti": "1", "sub": "ana", "sid": "session-1",
			"events": map[string]any{"http://schemas.openid.net/event/backchannel-logout": map[string]any{}},
		}
	}
	tell := func(ctx context.Context, claims map[string]any) (broker.LogoutToken, error) {
		return p.people.LogoutToken(ctx, "login", p.sign(claims, "logout+jwt"), p.now)
	}
	if word, err := tell(t.Context(), good()); err != nil || word != (broker.LogoutToken{Provider: "login", Sub: "ana", SID: "session-1", ID: "1", Issued: p.now}) {
		t.Errorf("%+v, %v", word, err)
	}
	for name, changes := range map[string]map[string]any{
		"an ID token":      {"events": nil},
		"with a nonce":     {"nonce": "x"},
		"another audience": {"aud": "somebody"},
		"another issuer":   {"iss": "https://evil.test"},
		"no person":        {"sub": nil, "sid": nil},
		"expired":          {"exp": p.now.Add(-time.Second).Unix()},
		"old":              {"iat": p.now.Add(-6 * time.Minute).Unix()},
		"in the future":    {"iat": p.now.Add(time.Hour).Unix(), "exp": p.now.Add(2 * time.Hour).Unix()},
		"no iat":           {"iat": nil},
		"no exp":           {"exp": nil},
		"no jti":           {"jti": nil},
		"a long session":   {"sid": strings.Repeat("x", 256)},
		"a malformed sub":  {"sub": "ana ben"},
	} {
		if word, err := tell(t.Context(), changed(good(), changes)); err == nil {
			t.Errorf("%s: got no error for %q", name, word.Sub)
		}
	}
	for _, bad := range []string{"", "x", unsigned(p.sign(good(), "logout+jwt")), strings.Repeat("x", 17<<10)} {
		if _, err := p.people.LogoutToken(t.Context(), "login", bad, p.now); err == nil {
			t.Errorf("token %.20q: got no error", bad)
		}
	}
}

// Without a refresh token, Refresh reads UserInfo with the access token until that
// expires.
func TestRefreshWithAccessToken(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	p.tokens["refresh_token"] = nil
	in, err := p.login(false, nil)
	if err != nil {
		t.Fatal(err)
	}
	p.userInfo = map[string]any{"sub": "ana", "groups": []string{"oncall"}, "name": "Ana B"}
	fresh, _, err := p.people.Refresh(t.Context(), in.Who, in.Tokens, p.now.Add(time.Minute))
	if err != nil || fresh.ID != "login/ana" || len(fresh.Person.Groups) != 1 || fresh.Person.Groups[0] != "oncall" || fresh.Person.Name != "Ana B" {
		t.Errorf("got %+v, %v", fresh.Person, err)
	}
	if _, _, err := p.people.Refresh(t.Context(), in.Who, in.Tokens, p.now.Add(2*time.Hour)); err == nil || !strings.Contains(err.Error(), "the access token has expired") {
		t.Errorf("after the access token expired: got %v", err)
	}
	p.userInfo["sub"] = "eve"
	if _, _, err := p.people.Refresh(t.Context(), in.Who, in.Tokens, p.now); err == nil || !strings.Contains(err.Error(), "another person") {
		t.Errorf("claims of another person: got %v", err)
	}
}

// A provider may return no ID token for a refresh token (OpenID Connect Core, section
// 12.2). UserInfo then has the claims.
func TestRefreshWithoutIDToken(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	in, err := p.login(false, nil)
	if err != nil {
		t.Fatal(err)
	}
	p.tokens["id_token"] = nil
	p.userInfo = map[string]any{"sub": "ana", "groups": []string{"oncall"}}
	fresh, _, err := p.people.Refresh(t.Context(), in.Who, in.Tokens, p.now)
	if err != nil || len(fresh.Person.Groups) != 1 || fresh.Person.Groups[0] != "oncall" || p.sent.Get("grant_type") != "refresh_token" {
		t.Errorf("got %+v, %v by %v", fresh.Person, err, p.sent)
	}
}

// A missing name is no reason to reject a login if UserInfo fails; missing groups are.
func TestUserInfoFails(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	p.hook = func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/userinfo" {
			w.WriteHeader(http.StatusInternalServerError)
		}
		return r.URL.Path == "/userinfo"
	}
	p.claims["name"] = nil
	if in, err := p.login(false, nil); err != nil || len(in.Who.Person.Groups) != 1 || in.Who.Person.Name != "" {
		t.Errorf("without a name: got %+v, %v", in.Who.Person, err)
	}
	p.claims["groups"] = nil
	if _, err := p.login(false, nil); !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("without groups: got %v, want ErrUnavailable", err)
	}
}

func TestClaimLimits(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	p.claims["sub"] = strings.Repeat("~", 255)
	p.claims["groups"] = strings.Fields(strings.Repeat(strings.Repeat("g", 256)+" ", 8))
	p.claims["name"] = strings.Repeat("ä", 65)
	p.claims["sid"] = strings.Repeat("s", 255)
	in, err := p.login(false, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(in.Who.ID) != len("login/")+255 || len(in.Who.Person.Groups) != 8 || in.Who.Person.Name != strings.Repeat("ä", 64) || len(in.SID) != 255 {
		t.Errorf("got %d bytes of ID, %d groups, name %q, %d bytes of sid", len(in.Who.ID), len(in.Who.Person.Groups), in.Who.Person.Name, len(in.SID))
	}
}

func TestLoopbackIssuer(t *testing.T) {
	t.Parallel()
	for issuer, want := range map[string]bool{
		"http://127.0.0.1:8080": true, "http://[::1]": true, "http://localhost:1": true,
		"http://192.0.2.1": false, "http://localhost.evil.test": false, "ftp://127.0.0.1": false, "https://": false, "https://login.acme.test": true,
	} {
		if _, err := attest.NewPeople(attest.ProviderConfig{Name: "x", Issuer: issuer}); (err == nil) != want {
			t.Errorf("issuer %q: got error %v, want accepted %t", issuer, err, want)
		}
	}
}
