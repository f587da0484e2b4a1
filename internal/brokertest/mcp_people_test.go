package brokertest

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"accessbroker.internal/api"
)

// accessToken returns an access token for a resource.
func (p *provider) accessToken(typ jose.ContentType, audience, scope string) string {
	p.t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: p.key, KeyID: "1"}}, (&jose.SignerOptions{}).WithType(typ))
	if err != nil {
		p.t.Fatal(err)
	}
	now := time.Now()
	token, err := jwt.Signed(signer).Claims(map[string]any{
		"iss": p.URL, "sub": p.person, "aud": audience, "client_id": "an-mcp-client", "jti": "1", "scope": scope,
		"iat": now.Unix(), "exp": now.Add(5 * time.Minute).Unix(),
	}).Serialize()
	if err != nil {
		p.t.Fatal(err)
	}
	return token
}

// A person calls with an access token of their provider, and may list and request. The
// scopes of the token bound the call, and nothing over MCP approves.
func TestMCPPeople(t *testing.T) {
	t.Parallel()
	login := newProvider(t, "ana", "broker")
	own := login.config("login")
	b := startBroker(t, nil, files{policies: `
@id("people")
permit (principal in Group::"support", action == Action::"request", resource == Entitlement::"tickets-api");
`}, own)
	c := b.Anonymous().HTTP
	call := func(m message, token string) mcpAnswer {
		b.Secret(token)
		return b.post(c, m.with("Authorization", "Bearer "+token))
	}
	token := login.accessToken("at+jwt", b.URL+"/mcp", "openid access:list access:request")
	if got := call(listAccess, token); got.status != http.StatusOK || !strings.Contains(got.text, "tickets-api") {
		t.Errorf("list_access: got %d %s", got.status, got.text)
	}
	filed := call(toolCall("request_access", `{"entitlement": "tickets-api", "scopes": ["tickets:read"], "justification": "triage"}`), token)
	if filed.status != http.StatusOK || !strings.Contains(filed.text, "req_") {
		t.Errorf("request_access: got %d %s", filed.status, filed.text)
	}
	if got := call(toolCall("release_access", `{"handle": "lse_x"}`), token); got.status != http.StatusForbidden || got.code != api.InsufficientScope {
		t.Errorf("release_access: got %d %s", got.status, got.text)
	}
	by := ""
	for _, r := range b.Records() {
		if r.Request != nil && r.Caller != nil && r.Caller.ID == "login/ana" {
			by = r.Caller.Method
		}
	}
	if by != "access-token" {
		t.Errorf("the record of the request has the proof %q", by)
	}
	for name, token := range map[string]string{
		"ID token":            login.accessToken("JWT", b.URL+"/mcp", "access:list"),
		"another resource":    login.accessToken("at+jwt", "https://tickets.acme.test", "access:list"),
		"the login client":    login.accessToken("at+jwt", "broker", "access:list"),
		"the broker's issuer": login.accessToken("at+jwt", b.URL, "access:list"),
	} {
		if got := call(listAccess, token); got.status != http.StatusUnauthorized || !strings.Contains(got.header.Get("WWW-Authenticate"), `error="invalid_token"`) {
			t.Errorf("%s: got %d %s", name, got.status, got.text)
		}
	}
	if got := call(listAccess, login.accessToken("at+jwt", b.URL+"/mcp", "")); got.status != http.StatusUnauthorized && got.status != http.StatusForbidden {
		t.Errorf("no scope: got %d %s", got.status, got.text)
	}
	if got := b.post(b.Client(Agent).HTTP, listAccess.with("Authorization", "Bearer "+token)); got.code != api.TwoIdentities {
		t.Errorf("a person's token over a workload's connection: got %d %s", got.status, got.text)
	}
	alien := b.as(token)
	if _, err := alien.WhoAmI(t.Context()); api.CodeOf(err) != api.Unauthenticated {
		t.Errorf("/v1: got %v", err)
	}
}
