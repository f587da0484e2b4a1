package brokertest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"accessbroker.internal/api"
	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// A provider is an OpenID provider that logs in one person, without a password. Like many
// providers, it does not name itself in its answers (RFC 9207).
type provider struct {
	*httptest.Server
	t         testing.TB
	key       crypto.Signer
	algorithm jose.SignatureAlgorithm
	person    string
	client    string            // the only client ID that it accepts
	places    map[string]bool   // redirect URIs that the client registered
	codes     map[string]string // the nonces of the logins, by code
	tokens    []string          // ID tokens that it made
	asked     []url.Values      // forms of the calls to the token endpoint
	evil      func(url.Values) string
}

func newProvider(t testing.TB, person, client string) *provider {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p := &provider{t: t, key: key, algorithm: jose.ES256, person: person, client: client, places: map[string]bool{}, codes: map[string]string{}}
	p.Server = httptest.NewServer(p)
	t.Cleanup(p.Close)
	return p
}

func (p *provider) config(name string) Provider {
	return Provider{Name: name, Issuer: p.URL, ClientID: p.client, Secret: "s3cret-of-the-client"}
}

func (p *provider) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_ = r.ParseForm()
	var answer any
	switch r.URL.Path {
	case "/.well-known/openid-configuration":
		answer = map[string]any{
			"issuer": p.URL, "authorization_endpoint": p.URL + "/authorize", "token_endpoint": p.URL + "/token", "jwks_uri": p.URL + "/keys",
			"userinfo_endpoint": p.URL + "/userinfo", "id_token_signing_alg_values_supported": []string{string(p.algorithm)},
		}
	case "/keys":
		answer = jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: p.key.Public(), KeyID: "1", Algorithm: string(p.algorithm), Use: "sig"}}}
	case "/authorize":
		p.authorize(w, r)
		return
	case "/token":
		p.asked = append(p.asked, r.Form)
		nonce, ok := p.codes[r.Form.Get("code")]
		if !ok {
			w.WriteHeader(http.StatusBadRequest)
			answer = map[string]string{"error": "invalid_grant"}
			break
		}
		delete(p.codes, r.Form.Get("code"))
		answer = map[string]any{"access_token": "s3cret-access-token", "token_type": "Bearer", "expires_in": 3600, "id_token": p.idToken(nonce)}
	case "/userinfo":
		answer = map[string]string{"sub": p.person}
	default:
		w.WriteHeader(http.StatusNotFound)
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer)
}

func (p *provider) authorize(w http.ResponseWriter, r *http.Request) {
	if p.evil != nil {
		http.Redirect(w, r, p.evil(r.Form), http.StatusFound)
		return
	}
	if r.Form.Get("client_id") != p.client || !p.places[r.Form.Get("redirect_uri")] {
		http.Error(w, "no such client, or not its redirect URI", http.StatusBadRequest)
		return
	}
	code := fmt.Sprintf("s3cret-code-of-%s-%d", p.person, len(p.codes))
	p.codes[code] = r.Form.Get("nonce")
	http.Redirect(w, r, r.Form.Get("redirect_uri")+"?"+url.Values{"code": {code}, "state": {r.Form.Get("state")}}.Encode(), http.StatusFound)
}

func (p *provider) idToken(nonce string) string {
	now := time.Now()
	return p.sign(map[string]any{
		"iss": p.URL, "sub": p.person, "aud": p.client, "exp": now.Add(5 * time.Minute).Unix(), "iat": now.Unix(), "auth_time": now.Unix(), "nonce": nonce, "name": p.person,
	}, "")
}

// sign returns a token of the provider.
func (p *provider) sign(claims map[string]any, typ jose.ContentType) string {
	options := &jose.SignerOptions{}
	if typ != "" {
		options = options.WithType(typ)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: p.algorithm, Key: jose.JSONWebKey{Key: p.key, KeyID: "1"}}, options)
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
	p.tokens = append(p.tokens, text)
	return text
}

// browse opens a page in a new browser and follows the redirects. It returns the last URL,
// and the session if there is one.
func (b *Broker) browse(path string) (*url.URL, string) {
	b.t.Helper()
	jar, err := cookiejar.New(nil)
	b.must(err)
	client := *b.client(nil).HTTP
	client.Jar = jar
	resp, err := client.Get(b.URL + path)
	b.must(err)
	_ = resp.Body.Close()
	for _, c := range jar.Cookies(resp.Request.URL) {
		if c.Name == "__Host-broker-session" {
			b.Secret(c.Value)
			return resp.Request.URL, c.Value
		}
	}
	return resp.Request.URL, ""
}

func (b *Broker) as(token string) *api.Client {
	c := b.client(nil)
	c.Token = func(context.Context) (string, error) { return token, nil }
	return c
}

// votes returns the records of approvals and denials.
func (b *Broker) votes() (all []audit.Record) {
	for _, r := range b.Records() {
		if r.Kind == audit.ApprovalGiven || r.Kind == audit.RequestApproved || r.Kind == audit.RequestDenied {
			all = append(all, r)
		}
	}
	return all
}

// Only a session approves or denies. The provider's tokens, SVIDs and the broker's own
// tokens do not, even if they belong to an approver.
func TestOnlySessionsVote(t *testing.T) {
	p := newProvider(t, "ben", "broker")
	b := New(t, p.config("login"))
	p.places[b.URL+"/ui/login/callback"] = true
	at, session := b.browse("/ui/login?provider=login")
	if session == "" || at.Path != "/ui/" || len(p.tokens) != 1 {
		t.Fatalf("after the login: got %s with %d ID tokens, want /ui/ with 1", at.Path, len(p.tokens))
	}
	b.Secret(p.tokens[0])
	token, err := b.Token(Agent, "tickets:read")
	if err != nil {
		t.Fatal(err)
	}
	r, err := b.Client(Agent).Ask(t.Context(), api.Ask{Entitlement: "tickets-api", Scopes: []string{"tickets:close"}, Justification: "INC-1"})
	if err != nil {
		t.Fatal(err)
	}
	before := len(b.Records())
	for name, c := range map[string]struct {
		client *api.Client
		want   api.Code
	}{
		"an ID token of the login":   {b.as(p.tokens[0]), api.Unauthenticated},
		"an ID token for the broker": {b.as(p.idToken("")), api.Unauthenticated},
		"a provider's access token":  {b.as("s3cret-access-token"), api.Unauthenticated},
		"the broker's access token":  {b.as(string(token.AccessToken)), api.Unauthenticated},
		"a JWT-SVID":                 {b.Bearer(Auditor), api.SessionRequired},
		"the requester's JWT-SVID":   {b.Bearer(Agent), api.SessionRequired},
		"an X.509-SVID":              {b.Client(Auditor), api.SessionRequired},
		"nothing":                    {b.Anonymous(), api.Unauthenticated},
	} {
		for _, decision := range []string{api.Approve, api.Deny} {
			if _, err := c.client.Vote(t.Context(), r.ID, api.Vote{Decision: decision, Digest: r.Digest}); !errors.Is(err, c.want) {
				t.Errorf("%s, to %s: got %v, want %s", name, decision, err, c.want)
			}
		}
	}
	if now := len(b.Records()); now != before || len(b.votes()) != 0 {
		t.Errorf("got %d new records and votes %+v, want none", now-before, b.votes())
	}
	both := b.Client(Auditor)
	both.Token = func(context.Context) (string, error) { return session, nil }
	for _, grant := range []string{"client_credentials", "urn:ietf:params:oauth:grant-type:token-exchange"} {
		e := endpoint{name: grant, path: "POST /oauth2/token", body: form("grant_type", grant, "audience", "tickets-api", "scope", "tickets:read")}
		if code := e.call(t, b.URL, b.Anonymous().HTTP, session, b.JWT(Agent), b.JWT(Agent)); code != string(api.TwoIdentities) {
			t.Errorf("a session with a workload's tokens, %s: got %q, want %q", grant, code, api.TwoIdentities)
		}
	}
	if _, _, err := b.as(session).AskAndCollect(t.Context(), api.Ask{Entitlement: "tickets-api", Scopes: []string{"tickets:read"}, SubjectToken: b.JWT(Agent)}); !errors.Is(err, api.TwoIdentities) {
		t.Errorf("a session with a workload's subject_token: got %v, want %v", err, api.TwoIdentities)
	}
	if _, err := both.Vote(t.Context(), r.ID, api.Vote{Decision: api.Approve, Digest: r.Digest}); err == nil {
		t.Error("a session with another identity's certificate votes")
	}
	if r, err := b.as(session).Vote(t.Context(), r.ID, api.Vote{Decision: api.Approve, Digest: r.Digest}); err != nil || r.Status != api.StatusApproved || len(b.votes()) != 1 {
		t.Errorf("a session: got %+v, %v", r, err)
	}
}

// The accounts of the operator's file are those of one person: a block of one account ends
// the session of the other.
func TestLinkedAccounts(t *testing.T) {
	login, partner := newProvider(t, "ben", "broker"), newProvider(t, "benjamin", "broker-at-partner")
	linked := partner.config("partner")
	linked.Linked = []string{"login/ben", "partner/benjamin"}
	b := New(t, login.config("login"), linked)
	partner.places[b.URL+"/ui/login/partner/callback"] = true
	_, session := b.browse("/ui/login?provider=partner")
	who, err := b.as(session).WhoAmI(t.Context())
	if err != nil || who.ID != "partner/benjamin" || !slices.Equal(who.Accounts, linked.Linked) {
		t.Fatalf("got %+v, %v, want the accounts %q", who, err, linked.Linked)
	}
	err = b.Store.Update(t.Context(), []broker.Key{broker.BlockKey{Kind: "holder", Name: "login/ben"}}, func(tx broker.Tx) error {
		tx.Put(&broker.Block{Selector: broker.BlockKey{Kind: "holder", Name: "login/ben"}, Since: time.Now()})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.as(session).WhoAmI(t.Context()); !errors.Is(err, api.Blocked) {
		t.Errorf("a session with the other account: got %v, want %v", err, api.Blocked)
	}
}

// A provider that redirects a login to another provider does not receive the other's code
// (mix-up attack, RFC 9700, section 4.4).
func TestMixUp(t *testing.T) {
	honest, evil := newProvider(t, "ben", "broker"), newProvider(t, "eve", "broker-at-evil")
	b := New(t, honest.config("login"), evil.config("partner"))
	honest.places[b.URL+"/ui/login/login/callback"] = true
	evil.places[b.URL+"/ui/login/partner/callback"] = true
	for name, person := range map[string]string{"login": "login/ben", "partner": "partner/eve"} {
		_, session := b.browse("/ui/login?provider=" + name)
		if who, err := b.as(session).WhoAmI(t.Context()); err != nil || who.ID != person {
			t.Fatalf("login with %s: got %+v, %v", name, who, err)
		}
	}
	evil.asked = nil
	for _, place := range []string{"/ui/login/login/callback", "/ui/login/callback", "/ui/login/partner/callback"} {
		evil.evil = func(asked url.Values) string {
			asked.Set("client_id", "broker")
			asked.Set("redirect_uri", b.URL+place)
			return honest.URL + "/authorize?" + asked.Encode()
		}
		at, session := b.browse("/ui/login?provider=partner")
		if session != "" || len(evil.asked) != 0 {
			t.Errorf("callback %s: got %s, session %t, %d codes at the other provider", place, at, session != "", len(evil.asked))
		}
		if registered := honest.places[b.URL+place]; registered != strings.HasSuffix(at.String(), "/ui/login?failed=provider") {
			t.Errorf("callback %s: got %s", place, at)
		}
	}
}
