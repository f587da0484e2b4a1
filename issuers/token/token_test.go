package token

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/issuers/issuertest"
	"accessbroker.internal/store"
)

const (
	testIssuer   = "https://broker.acme.test"
	testAudience = "https://tickets.acme.test"
)

func testConfig(t testing.TB, s *store.Store, algorithm string) KeysConfig {
	return KeysConfig{
		Store: s, Sealer: issuertest.Sealer(t, 1), Purpose: "token", Algorithm: algorithm,
		RotateEvery: 24 * time.Hour, PublishAhead: time.Hour, LongestTTL: time.Hour,
	}
}

func openKeys(t testing.TB, cfg KeysConfig, now time.Time) *Keys {
	t.Helper()
	k, err := OpenKeys(t.Context(), cfg, now)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func mint(t testing.TB, token *Issuer, l broker.Lease) string {
	t.Helper()
	c, err := token.Mint(context.Background(), l)
	if err != nil {
		t.Fatal(err)
	}
	return c.Secret.Reveal()["token"]
}

// verify verifies an access token like a resource server, with a different library
// than the issuer, and returns its claims.
func verify(t testing.TB, jwks []byte, token string) map[string]any {
	t.Helper()
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(jwks, &set); err != nil {
		t.Fatalf("%s: %v", jwks, err)
	}
	signed, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.ES256, jose.RS256, jose.EdDSA})
	if err != nil {
		t.Fatal(err)
	}
	header := signed.Signatures[0].Header
	if header.ExtraHeaders["typ"] != "at+jwt" {
		t.Errorf("typ is %v, want at+jwt", header.ExtraHeaders["typ"])
	}
	keys := set.Key(header.KeyID)
	if len(keys) != 1 || keys[0].Algorithm != header.Algorithm {
		t.Fatalf("%d keys in the JWKS match the token, want 1: %s", len(keys), jwks)
	}
	payload, err := signed.Verify(keys[0])
	if err != nil {
		t.Fatal(err)
	}
	var claims map[string]any
	if err := json.Unmarshal(payload, &claims); err != nil {
		t.Fatal(err)
	}
	return claims
}

func TestTokenHasRFC9068Claims(t *testing.T) {
	for _, algorithm := range []string{"ES256", "RS256", "EdDSA"} {
		t.Run(algorithm, func(t *testing.T) {
			keys := openKeys(t, testConfig(t, issuertest.Store(t), algorithm), issuertest.Noon)
			issuer := New(testIssuer, testAudience, keys)
			l := issuertest.Lease(issuertest.Noon.Add(123 * time.Millisecond))
			got := verify(t, keys.JWKS(issuertest.Noon), mint(t, issuer, l))
			want := map[string]any{
				"iss": testIssuer, "aud": testAudience, "sub": l.Holder, "client_id": l.Holder,
				"jti": l.ID.String(), "request": l.Request.String(), "entitlement": "tickets-api",
				"scope": "tickets:comment tickets:read",
				"iat":   float64(issuertest.Noon.Unix()), "exp": float64(issuertest.Noon.Add(10 * time.Minute).Unix()),
			}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("claims are %v, want %v", got, want)
			}
		})
	}
}

func TestTokenIsBoundToParameters(t *testing.T) {
	keys := openKeys(t, testConfig(t, issuertest.Store(t), "ES256"), issuertest.Noon)
	l := issuertest.Lease(issuertest.Noon)
	l.Parameters = map[string]string{"account": `12"3456`, "branch": "north"}
	claims := verify(t, keys.JWKS(issuertest.Noon), mint(t, New(testIssuer, testAudience, keys), l))
	want := []any{map[string]any{"type": "tickets-api", "parameters": map[string]any{"account": `12"3456`, "branch": "north"}}}
	if fmt.Sprint(claims["authorization_details"]) != fmt.Sprint(want) {
		t.Errorf("authorization_details are %v, want %v", claims["authorization_details"], want)
	}
}

func TestTokenIsBoundToCertificate(t *testing.T) {
	keys := openKeys(t, testConfig(t, issuertest.Store(t), "ES256"), issuertest.Noon)
	l := issuertest.Lease(issuertest.Noon)
	l.Confirm = audit.Digest{1, 2, 3}
	claims := verify(t, keys.JWKS(issuertest.Noon), mint(t, New(testIssuer, testAudience, keys), l))
	want := map[string]any{"spiffe_id": l.Holder, "x5t#S256": base64.RawURLEncoding.EncodeToString(l.Confirm[:])}
	if fmt.Sprint(claims["cnf"]) != fmt.Sprint(want) {
		t.Errorf("cnf is %v, want %v", claims["cnf"], want)
	}
}

func TestInspectAcceptsOnlyOwnTokens(t *testing.T) {
	now := time.Now()
	keys := openKeys(t, testConfig(t, issuertest.Store(t), "ES256"), now)
	issuer := New(testIssuer, testAudience, keys)
	l := issuertest.Lease(now)
	token := mint(t, issuer, l)
	for range 2 {
		if id, err := issuer.Inspect(t.Context(), token); err != nil || id != l.ID {
			t.Fatalf("Inspect = %s, %v, want %s", id, err, l.ID)
		}
		keys.verified = verifiedTokens{}
	}
	parts := strings.Split(token, ".")
	header := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	kid := keys.List()[0].KID
	for name, bad := range map[string]string{
		"empty":             "",
		"not a token":       "a.b.c",
		"too long":          token + strings.Repeat("a", maxInspected),
		"another signature": parts[0] + "." + parts[1] + "." + base64.RawURLEncoding.EncodeToString(make([]byte, 64)),
		"alg none":          header(`{"alg":"none","kid":"`+kid+`","typ":"at+jwt"}`) + "." + parts[1] + ".",
		"HMAC":              header(`{"alg":"HS256","kid":"`+kid+`","typ":"at+jwt"}`) + "." + parts[1] + "." + parts[2],
		"another typ":       header(`{"alg":"ES256","kid":"`+kid+`","typ":"JWT"}`) + "." + parts[1] + "." + parts[2],
		"another audience":  mint(t, New(testIssuer, "https://other.test", keys), l),
		"another issuer":    mint(t, New("https://other.test", testAudience, keys), l),
		"other keys":        mint(t, New(testIssuer, testAudience, openKeys(t, testConfig(t, issuertest.Store(t), "ES256"), now)), l),
	} {
		for range 2 { // as minted here, then as after a restart
			if _, err := issuer.Inspect(t.Context(), bad); !errors.Is(err, broker.ErrNotFound) || bad != "" && strings.Contains(err.Error(), bad) {
				t.Errorf("%s: %v", name, err)
			}
			keys.verified = verifiedTokens{}
		}
	}
}

func FuzzInspect(f *testing.F) {
	now := time.Now()
	issuer := New(testIssuer, testAudience, openKeys(f, testConfig(f, issuertest.Store(f), "ES256"), now))
	token := mint(f, issuer, issuertest.Lease(now))
	f.Add(token)
	f.Add("a.b.c")
	issuer.keys.verified = verifiedTokens{} // the fuzzer looks for faults of the verification
	f.Fuzz(func(t *testing.T, text string) {
		if _, err := issuer.Inspect(context.Background(), text); err == nil && strings.Split(text, ".")[1] != strings.Split(token, ".")[1] {
			t.Errorf("accepted a token that was not issued: %q", text)
		}
	})
}

func BenchmarkMint(b *testing.B) {
	for _, algorithm := range []string{"ES256", "EdDSA"} {
		b.Run(algorithm, func(b *testing.B) {
			keys := openKeys(b, testConfig(b, issuertest.Store(b), algorithm), issuertest.Noon)
			issuer, l := New(testIssuer, testAudience, keys), issuertest.Lease(issuertest.Noon)
			b.ReportAllocs()
			for b.Loop() {
				mint(b, issuer, l)
			}
		})
	}
}

// vaultHandle is a handle as issuers of package vault store it.
const vaultHandle = `{"accessor":"a","made":"token","at":"0123456789abcdef"}`

func TestOwnsOnlyLeasesWithoutHandle(t *testing.T) {
	for handle, want := range map[string]bool{
		"": true, vaultHandle: false, "nothing was made": false,
		`{"role":"x","deny":"session"}`: false, `{"role":"x","account":"210987654321","deny":"session"}`: false,
	} {
		if got := (&Issuer{}).Owns(broker.Lease{Handle: []byte(handle)}); got != want {
			t.Errorf("Owns(%q) = %v, want %v", handle, got, want)
		}
	}
}

func TestRevokeRejectsForeignLease(t *testing.T) {
	l := broker.Lease{Handle: []byte(vaultHandle), Expires: time.Now().Add(time.Minute)}
	if err := (&Issuer{}).Revoke(t.Context(), l); !errors.Is(err, broker.ErrIssuerUnavailable) {
		t.Errorf("got %v, want %v", err, broker.ErrIssuerUnavailable)
	}
}

// A token carries exactly the fine grants of its lease, after the parameters.
func TestTokenIsBoundToDetails(t *testing.T) {
	keys := openKeys(t, testConfig(t, issuertest.Store(t), "ES256"), issuertest.Noon)
	details := []broker.Detail{
		{Type: "ticket", Actions: []string{"close", "read"}, Identifier: `TCK-1"`, Locations: []string{"https://a"}, DataTypes: []string{"mail"}, Privileges: []string{"clerk"}, Tool: "close", Arguments: []broker.ArgumentBound{
			{Name: "amount", Number: true, Min: -1, Max: 5}, {Name: "labels", MaxItems: 2, Values: []string{"a", "b"}}, {Name: "note", MaxLength: 9}, {Name: "why", Values: []string{"<b>"}},
		}},
		{Type: "urn:acme:export"},
	}
	fine := []any{
		map[string]any{
			"type": "ticket", "actions": []any{"close", "read"}, "identifier": `TCK-1"`, "locations": []any{"https://a"}, "datatypes": []any{"mail"}, "privileges": []any{"clerk"}, "tool": "close",
			"arguments": map[string]any{
				"amount": map[string]any{"minimum": float64(-1), "maximum": float64(5)}, "labels": map[string]any{"maxItems": float64(2), "items": map[string]any{"enum": []any{"a", "b"}}},
				"note": map[string]any{"maxLength": float64(9)}, "why": map[string]any{"enum": []any{"<b>"}},
			},
		},
		map[string]any{"type": "urn:acme:export"},
	}
	for _, parameters := range []map[string]string{nil, {"account": "1"}} {
		l := issuertest.Lease(issuertest.Noon)
		l.Parameters, l.Details = parameters, details
		want := fine
		if parameters != nil {
			want = append([]any{map[string]any{"type": "tickets-api", "parameters": map[string]any{"account": "1"}}}, fine...)
		}
		claims := verify(t, keys.JWKS(issuertest.Noon), mint(t, New(testIssuer, testAudience, keys), l))
		if !reflect.DeepEqual(claims["authorization_details"], want) {
			t.Errorf("authorization_details are %v, want %v", claims["authorization_details"], want)
		}
	}
}
