package attest_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"accessbroker.internal/attest"
	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

var actor = broker.Identity{ID: "spiffe://acme.test/agent/triage", TrustDomain: "acme.test", Kind: broker.KindWorkload}

const (
	jag    = jose.ContentType("oauth-id-jag+jwt")
	access = jose.ContentType("at+jwt")
)

func (p *provider) idJAG(changes map[string]any) string { return p.sign(p.idJAGClaims(changes), jag) }

func (p *provider) idJAGClaims(changes map[string]any) map[string]any {
	return changed(map[string]any{
		"iss": p.URL, "sub": "ana", "aud": "https://broker.acme.test", "client_id": "mcp-client", "jti": "1",
		"exp": p.now.Add(5 * time.Minute).Unix(), "iat": p.now.Unix(), "groups": []string{"dba"}, "name": "Ana", "email": "ana@acme.test",
	}, changes)
}

func (p *provider) accessToken(changes map[string]any) string {
	return p.sign(p.accessClaims(changes), access)
}

func (p *provider) accessClaims(changes map[string]any) map[string]any {
	return changed(map[string]any{
		"iss": p.URL, "sub": "ana", "aud": "broker-agents", "client_id": "mcp-client", "jti": "1", "scope": "openid profile",
		"exp": p.now.Add(time.Hour).Unix(), "iat": p.now.Unix(), "groups": []string{"dba"},
	}, changes)
}

func (p *provider) prove(token string, method broker.Method) (*broker.Delegation, error) {
	return p.people.SubjectToken(p.t.Context(), broker.SubjectToken{Token: token, Method: method, Actor: actor, At: p.now})
}

// refused checks that the token is refused for a cause, and that the error contains no part
// of it.
func refused(t *testing.T, name, token string, err error, want attest.Cause) {
	t.Helper()
	var failure *attest.Failure
	sentinel := error(broker.ErrForeignSubject)
	if want == attest.CauseActor {
		sentinel = broker.ErrActorNotAllowed
	}
	switch {
	case !errors.As(err, &failure) || !errors.Is(err, sentinel) || errors.Is(err, broker.ErrUnauthenticated):
		t.Errorf("%s: got error %v, want a Failure of %v", name, err, sentinel)
	case failure.Cause != want:
		t.Errorf("%s: got cause %s, want %s (%v)", name, failure.Cause, want, err)
	}
	for part := range strings.SplitSeq(token, ".") {
		if len(part) > 16 && err != nil && strings.Contains(err.Error(), part) {
			t.Errorf("%s: the error %v contains a part of the token", name, err)
		}
	}
}

func TestIDJAG(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	token := p.idJAG(map[string]any{"scope": "tickets:read tickets:write", "resource": "https://tickets.acme.test", "manager": "ben", "ends": "2030-01-01", "auth_time": p.now.Unix()})
	d, err := p.prove(token, broker.MethodIDJAG)
	if err != nil {
		t.Fatal(err)
	}
	who := d.Subject
	if who.ID != "login/ana" || who.Kind != broker.KindPerson || who.Person.Manager != "login/ben" || !slices.Equal(who.Person.Groups, []string{"dba"}) ||
		!who.Person.StatesEnd || who.Person.Ends.Year() != 2030 || who.Person.Name != "Ana" {
		t.Errorf("got subject %+v, person %+v", who, who.Person)
	}
	if who.Proof != (broker.Proof{Method: broker.MethodIDJAG, SHA256: sha256.Sum256([]byte(token)), Expires: p.now.Add(5 * time.Minute).UTC()}) {
		t.Errorf("got proof %+v", who.Proof)
	}
	if !slices.Equal(d.Scopes, []string{"tickets:read", "tickets:write"}) || d.Resource != "https://tickets.acme.test" || d.ID != p.URL+" 1" ||
		!d.IDUntil.After(who.Proof.Expires) || !slices.Equal(d.MayAct, []string{actor.ID}) || !d.Parent.IsZero() {
		t.Errorf("got delegation %+v", d)
	}
	if err := (broker.Caller{Actor: who, Subject: who, At: p.now}).RequireSession(); err == nil {
		t.Error("a person who is proven by an ID-JAG has a session")
	}
}

func TestDelegationAccessToken(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	d, err := p.prove(p.accessToken(nil), broker.MethodAccessToken)
	if err != nil {
		t.Fatal(err)
	}
	if d.Subject.ID != "login/ana" || d.Subject.Proof.Method != broker.MethodAccessToken || d.Scopes != nil || d.ID != "" || d.Subject.Person.StatesEnd {
		t.Errorf("got %+v", d)
	}
	for name, changes := range map[string]map[string]any{
		"azp instead of client_id": {"client_id": nil, "azp": "mcp-client"},
		"both":                     {"azp": "mcp-client"},
		"a list of one audience":   {"aud": []string{"broker-agents"}},
		"the SPIFFE ID as client":  {"client_id": actor.ID},
		"no jti":                   {"jti": nil},
		"may_act":                  {"may_act": map[string]string{"sub": actor.ID}},
		"may_act with an issuer":   {"may_act": map[string]string{"sub": actor.ID, "iss": "spiffe://acme.test"}},
		"may_act of a client":      {"may_act": map[string]string{"sub": "mcp-client", "iss": p.URL, "client_id": "mcp-client"}},
		"act":                      {"act": map[string]string{"sub": actor.ID}},
	} {
		if _, err := p.prove(p.accessToken(changes), broker.MethodAccessToken); err != nil {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if d, err := p.prove(p.accessToken(map[string]any{"scope": "openid tickets:read"}), broker.MethodAccessToken); err != nil || !slices.Equal(d.Scopes, []string{"tickets:read"}) {
		t.Errorf("scopes: got %+v, %v", d, err)
	}
}

// Each case breaks one rule. They hold for both kinds of token.
func TestSubjectTokenIsRefused(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	now := p.now
	both := map[string]struct {
		changes map[string]any
		want    attest.Cause
	}{
		"another issuer":                {map[string]any{"iss": "https://evil.test"}, attest.CauseIssuer},
		"the issuer with a slash":       {map[string]any{"iss": p.URL + "/"}, attest.CauseIssuer},
		"no issuer":                     {map[string]any{"iss": nil}, attest.CauseIssuer},
		"another audience":              {map[string]any{"aud": "https://other.acme.test"}, attest.CauseAudience},
		"the audience in another case":  {map[string]any{"aud": "https://BROKER.acme.test"}, attest.CauseAudience},
		"the audience with a slash":     {map[string]any{"aud": "https://broker.acme.test/"}, attest.CauseAudience},
		"two audiences":                 {map[string]any{"aud": []string{"https://broker.acme.test", "broker-agents"}}, attest.CauseAudience},
		"one audience twice":            {map[string]any{"aud": []string{"https://broker.acme.test", "https://broker.acme.test"}}, attest.CauseAudience},
		"no audience":                   {map[string]any{"aud": nil}, attest.CauseAudience},
		"an empty list of audiences":    {map[string]any{"aud": []string{}}, attest.CauseAudience},
		"the login client":              {map[string]any{"aud": "broker"}, attest.CauseAudience},
		"expired":                       {map[string]any{"exp": now.Unix()}, attest.CauseExpired},
		"no exp":                        {map[string]any{"exp": nil}, attest.CauseMalformed},
		"no iat":                        {map[string]any{"iat": nil}, attest.CauseMalformed},
		"issued in the future":          {map[string]any{"iat": now.Add(2 * time.Minute).Unix()}, attest.CauseNotYetValid},
		"not before":                    {map[string]any{"nbf": now.Add(2 * time.Minute).Unix()}, attest.CauseNotYetValid},
		"valid for two days":            {map[string]any{"exp": now.Add(48 * time.Hour).Unix()}, attest.CauseLifetime},
		"exp as text":                   {map[string]any{"exp": "never"}, attest.CauseMalformed},
		"no sub":                        {map[string]any{"sub": nil}, attest.CauseMalformed},
		"a sub with a space":            {map[string]any{"sub": "ana ben"}, attest.CauseClaims},
		"a long sub":                    {map[string]any{"sub": strings.Repeat("x", 256)}, attest.CauseClaims},
		"an e-mail address only":        {map[string]any{"sub": nil, "email": "ana@acme.test", "email_verified": true}, attest.CauseMalformed},
		"the client itself":             {map[string]any{"sub": "mcp-client"}, attest.CauseClaims},
		"no client":                     {map[string]any{"client_id": nil}, attest.CauseActor},
		"an unknown client":             {map[string]any{"client_id": "evil"}, attest.CauseActor},
		"the client of another agent":   {map[string]any{"client_id": "other-client"}, attest.CauseActor},
		"the SPIFFE ID of another":      {map[string]any{"client_id": "spiffe://acme.test/agent"}, attest.CauseActor},
		"two clients":                   {map[string]any{"azp": "other-client"}, attest.CauseActor},
		"may_act of another":            {map[string]any{"may_act": map[string]any{"sub": "spiffe://acme.test/agent/other"}}, attest.CauseActor},
		"may_act of a parent path":      {map[string]any{"may_act": map[string]any{"sub": "spiffe://acme.test/agent"}}, attest.CauseActor},
		"may_act without a name":        {map[string]any{"may_act": map[string]any{}}, attest.CauseActor},
		"may_act as text":               {map[string]any{"may_act": actor.ID}, attest.CauseActor},
		"may_act of another issuer":     {map[string]any{"may_act": map[string]any{"sub": actor.ID, "iss": "https://evil.test"}}, attest.CauseActor},
		"may_act of an e-mail address":  {map[string]any{"may_act": map[string]any{"sub": actor.ID, "email": "eve@acme.test"}}, attest.CauseActor},
		"act of another":                {map[string]any{"act": map[string]any{"sub": "spiffe://acme.test/agent/other"}}, attest.CauseActor},
		"a chain of actors":             {map[string]any{"act": map[string]any{"sub": actor.ID, "act": map[string]any{"sub": "mcp-client"}}}, attest.CauseActor},
		"bound to a DPoP key":           {map[string]any{"cnf": map[string]any{"jkt": strings.Repeat("A", 43)}}, attest.CausePossession},
		"bound to a certificate":        {map[string]any{"cnf": map[string]any{"x5t#S256": strings.Repeat("A", 43)}}, attest.CausePossession},
		"bound in an unknown way":       {map[string]any{"cnf": map[string]any{"jku": p.URL}}, attest.CausePossession},
		"an empty cnf":                  {map[string]any{"cnf": map[string]any{}}, attest.CauseMalformed},
		"no groups":                     {map[string]any{"groups": nil}, attest.CauseClaims},
		"distributed groups":            {map[string]any{"_claim_names": map[string]any{"groups": "s"}}, attest.CauseClaims},
		"malformed groups":              {map[string]any{"groups": 7}, attest.CauseClaims},
		"a malformed end":               {map[string]any{"ends": "soon"}, attest.CauseClaims},
		"another tenant":                {map[string]any{"tenant": "evil"}, attest.CauseTenant},
		"a tenant of the broker":        {map[string]any{"aud_tenant": "acme"}, attest.CauseTenant},
		"an ID token's nonce":           {map[string]any{"nonce": "x"}, attest.CauseType},
		"a logout token's events":       {map[string]any{"events": map[string]any{}}, attest.CauseType},
		"authorization details":         {map[string]any{"authorization_details": []any{}}, attest.CauseMalformed},
		"an empty scope":                {map[string]any{"scope": ""}, attest.CauseMalformed},
		"a scope with two spaces":       {map[string]any{"scope": "a  b"}, attest.CauseMalformed},
		"a scope as list":               {map[string]any{"scope": []string{"a"}}, attest.CauseMalformed},
		"an empty list of resources":    {map[string]any{"resource": []string{}}, attest.CauseMalformed},
		"a resource as number":          {map[string]any{"resource": 1}, attest.CauseMalformed},
		"too many resources":            {map[string]any{"resource": strings.Fields(strings.Repeat("r ", 17))}, attest.CauseMalformed},
		"several resources, none named": {map[string]any{"resource": []string{"https://a.test", "https://b.test"}}, attest.CauseResource},
	}
	for name, test := range both {
		changes := test.changes
		token := p.idJAG(changes)
		_, err := p.prove(token, broker.MethodIDJAG)
		refused(t, "ID-JAG, "+name, token, err, test.want)
		token = p.accessToken(changes)
		_, err = p.prove(token, broker.MethodAccessToken)
		refused(t, "access token, "+name, token, err, test.want)
	}
	token := p.idJAG(map[string]any{"jti": nil})
	_, err := p.prove(token, broker.MethodIDJAG)
	refused(t, "no jti", token, err, attest.CauseMalformed)
	token = p.idJAG(map[string]any{"exp": now.Add(2 * time.Hour).Unix()})
	_, err = p.prove(token, broker.MethodIDJAG)
	refused(t, "an ID-JAG for two hours", token, err, attest.CauseLifetime)
}

// A token is accepted as one kind only, whatever the caller calls it.
func TestSubjectTokenTypes(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	for _, kind := range []jose.ContentType{"", "JWT", "at+jwt", "OAUTH-ID-JAG+JWT", "oauth-id-jag", "logout+jwt", "secevent+jwt", "application/application/oauth-id-jag+jwt"} {
		token := p.sign(p.idJAGClaims(nil), kind)
		_, err := p.prove(token, broker.MethodIDJAG)
		refused(t, fmt.Sprintf("ID-JAG of typ %q", kind), token, err, attest.CauseType)
	}
	for _, kind := range []jose.ContentType{"", "JWT", "oauth-id-jag+jwt", "jwt"} {
		token := p.sign(p.accessClaims(nil), kind)
		_, err := p.prove(token, broker.MethodAccessToken)
		refused(t, fmt.Sprintf("access token of typ %q", kind), token, err, attest.CauseType)
	}
	for _, method := range []broker.Method{"", broker.MethodSession, broker.MethodJWTSVID} {
		if _, err := p.prove(p.idJAG(nil), method); !errors.Is(err, broker.ErrForeignSubject) {
			t.Errorf("method %q: got %v", method, err)
		}
	}
	// An ID token for the login client, as the provider issues it at a login.
	p.nonce = "n"
	token := p.idToken()
	for _, method := range []broker.Method{broker.MethodIDJAG, broker.MethodAccessToken} {
		_, err := p.prove(token, method)
		refused(t, "an ID token", token, err, attest.CauseType)
	}
	if _, err := p.prove(p.sign(p.idJAGClaims(nil), "application/oauth-id-jag+jwt"), broker.MethodIDJAG); err != nil {
		t.Errorf("with the prefix of RFC 7515, section 4.1.9: got %v", err)
	}
}

// TestSubjectTokenSignatures has tokens that no published key of their issuer signed.
func TestSubjectTokenSignatures(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	good := p.idJAG(nil)
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p.signWith = jose.JSONWebKey{Key: other, KeyID: "1"}
	foreign := p.idJAG(nil)
	p.algorithm, p.signWith = jose.HS256, []byte(strings.Repeat("s3cret", 8))
	symmetric := p.idJAG(nil)
	p.algorithm, p.signWith = jose.ES256, nil
	for name, token := range map[string]string{"another key": foreign, "HS256": symmetric, "alg none": unsigned(good), "a changed signature": good[:len(good)-8] + "AAAAAAAA"} {
		_, err := p.prove(token, broker.MethodIDJAG)
		want := attest.CauseSignature
		if name == "alg none" {
			want = attest.CauseType // its header is {"alg":"none"}
		}
		refused(t, name, token, err, want)
	}
	encode := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	header := encode(`{"alg":"none","typ":"oauth-id-jag+jwt"}`)
	none := header + "." + strings.Split(good, ".")[1] + "."
	_, err = p.prove(none, broker.MethodIDJAG)
	refused(t, "alg none with the typ", none, err, attest.CauseSignature)
	for name, token := range map[string]string{
		"no token": "", "two parts": "a.b", "text": "ana@acme.test", "a SPIFFE ID": actor.ID, "four parts": good + ".x", "a line end": good + "\n",
		"a critical header": encode(`{"alg":"ES256","typ":"oauth-id-jag+jwt","crit":["b64"],"b64":false}`) + ".e30.AA",
		"duplicate claims":  encode(`{"alg":"ES256","typ":"oauth-id-jag+jwt"}`) + "." + encode(`{"iss":"a","iss":"b"}`) + ".AA",
		"duplicate header":  encode(`{"alg":"ES256","typ":"oauth-id-jag+jwt","typ":"oauth-id-jag+jwt"}`) + ".e30.AA",
	} {
		_, err := p.prove(token, broker.MethodIDJAG)
		refused(t, name, token, err, attest.CauseMalformed)
	}
	long := strings.Repeat("x", 100<<10)
	_, err = p.prove(long, broker.MethodIDJAG)
	refused(t, "100 KB", "", err, attest.CauseOversized)
	if _, err := p.prove(good, broker.MethodIDJAG); err != nil {
		t.Errorf("the genuine token: got %v", err)
	}
}

// A provider speaks for its own people only (mix-up): a token that another configured
// provider signed is refused, and so is one of a provider that may not issue the kind.
func TestIssuersAreNotMixedUp(t *testing.T) {
	t.Parallel()
	p, evil := newProvider(t), newProvider(t)
	p.people = p.connect2(evil)
	for name, claims := range map[string]map[string]any{
		"its own": evil.idJAGClaims(nil), "of the victim": p.idJAGClaims(nil),
	} {
		token := evil.sign(claims, jag)
		d, err := p.prove(token, broker.MethodIDJAG)
		if name == "its own" {
			if err != nil || d.Subject.ID != "evil/ana" || d.ID != evil.URL+" 1" {
				t.Errorf("%s: got %+v, %v", name, d, err)
			}
			continue
		}
		refused(t, name, token, err, attest.CauseSignature)
	}
	token := evil.accessToken(nil)
	_, err := p.prove(token, broker.MethodAccessToken)
	refused(t, "a kind that the provider may not issue", token, err, attest.CauseIssuer)
}

// connect2 returns a broker with this provider and another one, which issues ID-JAGs only.
func (p *provider) connect2(other *provider) *attest.People {
	p.t.Helper()
	clients := map[string][]string{"mcp-client": {"spiffe://acme.test/agent"}}
	people, err := attest.NewPeople(
		p.config("login", attest.DelegationConfig{IDJAGs: true, Audience: "https://broker.acme.test", Audiences: []string{"broker-agents"}, Clients: clients}),
		other.config("evil", attest.DelegationConfig{IDJAGs: true, Audience: "https://broker.acme.test", Clients: clients}),
	)
	if err != nil {
		p.t.Fatal(err)
	}
	return people
}

// Providers whose tokens are not configured for delegation let no one act.
func TestDelegationIsOptIn(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	people, err := attest.NewPeople(p.config("login", attest.DelegationConfig{Audience: "https://broker.acme.test"}))
	if err != nil {
		t.Fatal(err)
	}
	p.people = people
	for method, token := range map[broker.Method]string{broker.MethodIDJAG: p.idJAG(nil), broker.MethodAccessToken: p.accessToken(nil)} {
		_, err := p.prove(token, method)
		refused(t, string(method), token, err, attest.CauseIssuer)
	}
}

// A bound token needs proof of the key in the same call (RFC 9449, RFC 8705).
func TestBoundSubjectToken(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	key, certificate := audit.Digest{1}, audit.Digest{2}
	encode := func(d audit.Digest) string { return base64.RawURLEncoding.EncodeToString(d[:]) }
	token := p.idJAG(map[string]any{"cnf": map[string]any{"jkt": encode(key), "x5t#S256": encode(certificate)}})
	prove := func(key, certificate audit.Digest) error {
		_, err := p.people.SubjectToken(t.Context(), broker.SubjectToken{Token: token, Method: broker.MethodIDJAG, Actor: actor, Key: key, Certificate: certificate, At: p.now})
		return err
	}
	if err := prove(key, certificate); err != nil {
		t.Errorf("with both keys: got %v", err)
	}
	refused(t, "without the certificate", token, prove(key, audit.Digest{}), attest.CausePossession)
	refused(t, "with another key", token, prove(audit.Digest{3}, certificate), attest.CausePossession)
}

func TestSubjectTokenResources(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	list := []string{"https://a.test", "https://b.test"}
	for _, test := range []struct {
		claim           any
		requested, want string
		cause           attest.Cause
	}{
		{nil, "", "", ""},
		{nil, "https://a.test", "", ""},
		{"https://a.test", "", "https://a.test", ""},
		{"https://a.test", "https://b.test", "https://a.test", ""}, // the domain refuses
		{list, "https://b.test", "https://b.test", ""},
		{list, "", "", attest.CauseResource},
		{list, "https://c.test", "", attest.CauseResource},
		{"https://broker.acme.test", "https://b.test", "", ""},
		{"https://broker.acme.test/", "", "", ""},
	} {
		token := p.idJAG(map[string]any{"resource": test.claim})
		d, err := p.people.SubjectToken(t.Context(), broker.SubjectToken{Token: token, Method: broker.MethodIDJAG, Actor: actor, Resource: test.requested, At: p.now})
		switch {
		case test.cause != "":
			refused(t, fmt.Sprint(test), token, err, test.cause)
		case err != nil || d.Resource != test.want:
			t.Errorf("%v: got %+v, %v", test, d, err)
		}
	}
	// client_id in the call names the actor, or the client of the token.
	for id, want := range map[string]bool{"": true, actor.ID: true, "mcp-client": true, "other-client": false, "spiffe://acme.test/agent": false} {
		_, err := p.people.SubjectToken(t.Context(), broker.SubjectToken{Token: p.idJAG(nil), Method: broker.MethodIDJAG, Actor: actor, ClientID: id, At: p.now})
		if (err == nil) != want {
			t.Errorf("client_id %q: got %v", id, err)
		}
	}
}

// While the provider cannot be reached, the fault is not the caller's.
func TestSubjectTokenNeedsProvider(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	p.hook = func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	}
	if _, err := p.prove(p.idJAG(nil), broker.MethodIDJAG); !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("got %v, want ErrUnavailable", err)
	}
}
