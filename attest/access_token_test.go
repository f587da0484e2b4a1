package attest_test

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/attest"
	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

const endpoint = "https://broker.acme.test/mcp"

func (p *provider) personal(token string, keys broker.SubjectToken) (broker.Identity, []string, error) {
	keys.Token, keys.At = token, p.now
	return p.people.AccessToken(p.t.Context(), attest.PersonalToken{SubjectToken: keys, Audience: endpoint})
}

// A person calls with an access token whose only audience is the endpoint.
func TestPersonalAccessToken(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	mine := func(changes map[string]any) string {
		return p.sign(changed(p.accessClaims(map[string]any{"aud": endpoint, "scope": "openid access:list"}), changes), access)
	}
	who, scopes, err := p.personal(mine(nil), broker.SubjectToken{})
	if err != nil || who.ID != "login/ana" || who.Kind != broker.KindPerson || !slices.Equal(who.Person.Groups, []string{"dba"}) ||
		who.Proof.Method != broker.MethodAccessToken || !slices.Equal(scopes, []string{"access:list"}) {
		t.Fatalf("got %+v, %v, %v", who, scopes, err)
	}
	if err := broker.Self(who, p.now).RequireSession(); !errors.Is(err, broker.ErrSessionRequired) {
		t.Errorf("a person with an access token: got %v, want ErrSessionRequired", err)
	}
	if _, scopes, err := p.personal(mine(map[string]any{"aud": []string{endpoint}, "scope": nil}), broker.SubjectToken{}); err != nil || scopes != nil {
		t.Errorf("a list, and no scope: got %v, %v", scopes, err)
	}
	key := audit.Digest(sha256.Sum256([]byte("key")))
	cnf := map[string]string{"jkt": base64.RawURLEncoding.EncodeToString(key[:])}
	if _, _, err := p.personal(mine(map[string]any{"cnf": cnf}), broker.SubjectToken{Key: key}); err != nil {
		t.Errorf("bound, with the key: got %v", err)
	}
	for name, token := range map[string]string{
		"another resource":        mine(map[string]any{"aud": "https://tickets.acme.test"}),
		"a longer resource":       mine(map[string]any{"aud": endpoint + "/"}),
		"the broker":              mine(map[string]any{"aud": "https://broker.acme.test"}),
		"two audiences":           mine(map[string]any{"aud": []string{endpoint, "https://tickets.acme.test"}}),
		"reserved for delegation": mine(map[string]any{"aud": "broker-agents"}),
		"no audience":             mine(map[string]any{"aud": nil}),
		"ID token":                p.sign(p.accessClaims(map[string]any{"aud": endpoint}), "JWT"),
		"ID-JAG":                  p.sign(p.accessClaims(map[string]any{"aud": endpoint}), jag),
		"nonce of an ID token":    mine(map[string]any{"nonce": "1"}),
		"expired":                 mine(map[string]any{"exp": p.now.Unix()}),
		"not yet valid":           mine(map[string]any{"nbf": p.now.Add(time.Hour).Unix()}),
		"another issuer":          mine(map[string]any{"iss": "https://evil.test"}),
		"an actor":                mine(map[string]any{"act": map[string]string{"sub": actor.ID}}),
		"no groups":               mine(map[string]any{"groups": nil}),
		"no person":               mine(map[string]any{"sub": "mcp-client"}),
		"no client":               mine(map[string]any{"client_id": nil}),
		"bound":                   mine(map[string]any{"cnf": cnf}),
		"tampered":                mine(nil) + "A",
		"no token":                "x.y.z",
		"oversized":               strings.Repeat("a", 20<<10),
	} {
		who, _, err := p.personal(token, broker.SubjectToken{})
		if !errors.Is(err, broker.ErrUnauthenticated) || errors.Is(err, broker.ErrForeignSubject) || who.ID != "" {
			t.Errorf("%s: got %v, %v", name, who.ID, err)
		}
	}
}
