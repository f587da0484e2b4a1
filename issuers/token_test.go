package issuers

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/store"
)

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

const (
	testIssuer   = "https://broker.acme.test"
	testAudience = "https://tickets.acme.test"
)

func testStore(t testing.TB) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{URL: "sqlite:" + filepath.Join(t.TempDir(), "broker.db"), Reserve: 1 << 16})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	origin := audit.NewOrigin("broker.acme.test")
	_, public, err := audit.NewLogKey(origin)
	if err != nil {
		t.Fatal(err)
	}
	first, err := audit.Record{Kind: audit.LogOpened, Log: &audit.LogFacts{Origin: origin}}.Entry()
	if err != nil {
		t.Fatal(err)
	}
	key := &broker.SigningKey{ID: broker.SigningKeyID{Purpose: "log", ID: "1"}, Algorithm: "EdDSA"}
	if err := s.OpenLog(t.Context(), origin, public, key, first); err != nil {
		t.Fatal(err)
	}
	return s
}

func testSealer(t testing.TB, seeds ...byte) *broker.Sealer {
	t.Helper()
	var list [][]byte
	for _, seed := range seeds {
		list = append(list, bytes.Repeat([]byte{seed}, broker.SealKeySize))
	}
	s, err := broker.NewSealer(list...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func testConfig(t testing.TB, s *store.Store, algorithm string) KeysConfig {
	return KeysConfig{
		Store: s, Sealer: testSealer(t, 1), Purpose: "token", Algorithm: algorithm,
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

func testLease(now time.Time) broker.Lease {
	return broker.Lease{
		ID: broker.NewLeaseID(now), Request: broker.NewRequestID(now), Holder: "spiffe://acme.test/agent/triage",
		Entitlement: "tickets-api", Issuer: "tickets", Scopes: []string{"tickets:comment", "tickets:read"},
		Opened: now, Expires: now.Add(10 * time.Minute).Truncate(time.Second),
	}
}

func mint(t testing.TB, token *Token, l broker.Lease) string {
	t.Helper()
	c, err := token.Mint(context.Background(), l)
	if err != nil {
		t.Fatal(err)
	}
	return c.Secret.Reveal()["token"]
}

// verify checks a token as a resource server would, by a library that has
// nothing to do with the one that made it.
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
		t.Errorf("typ is %v", header.ExtraHeaders["typ"])
	}
	keys := set.Key(header.KeyID)
	if len(keys) != 1 || keys[0].Algorithm != header.Algorithm {
		t.Fatalf("%d keys of the JWKS fit the token: %s", len(keys), jwks)
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

func TestTokenProfile(t *testing.T) {
	for _, algorithm := range []string{"ES256", "RS256", "EdDSA"} {
		t.Run(algorithm, func(t *testing.T) {
			keys := openKeys(t, testConfig(t, testStore(t), algorithm), noon)
			issuer := NewToken(testIssuer, testAudience, keys)
			l := testLease(noon.Add(123 * time.Millisecond))
			got := verify(t, keys.JWKS(noon), mint(t, issuer, l))
			want := map[string]any{
				"iss": testIssuer, "aud": testAudience, "sub": l.Holder, "client_id": l.Holder,
				"jti": l.ID.String(), "request": l.Request.String(), "entitlement": "tickets-api",
				"scope": "tickets:comment tickets:read",
				"iat":   float64(noon.Unix()), "exp": float64(noon.Add(10 * time.Minute).Unix()),
			}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("claims are %v, want %v", got, want)
			}
		})
	}
}

// The parameters that were decided on stand in the token: it is good for no
// others.
func TestTokenParameters(t *testing.T) {
	keys := openKeys(t, testConfig(t, testStore(t), "ES256"), noon)
	l := testLease(noon)
	l.Parameters = map[string]string{"account": `12"3456`, "branch": "north"}
	claims := verify(t, keys.JWKS(noon), mint(t, NewToken(testIssuer, testAudience, keys), l))
	want := []any{map[string]any{"type": "tickets-api", "parameters": map[string]any{"account": `12"3456`, "branch": "north"}}}
	if fmt.Sprint(claims["authorization_details"]) != fmt.Sprint(want) {
		t.Errorf("authorization_details are %v, want %v", claims["authorization_details"], want)
	}
}

func TestBoundToken(t *testing.T) {
	keys := openKeys(t, testConfig(t, testStore(t), "ES256"), noon)
	l := testLease(noon)
	l.Confirm = audit.Digest{1, 2, 3}
	claims := verify(t, keys.JWKS(noon), mint(t, NewToken(testIssuer, testAudience, keys), l))
	want := map[string]any{"x5t#S256": base64.RawURLEncoding.EncodeToString(l.Confirm[:])}
	if fmt.Sprint(claims["cnf"]) != fmt.Sprint(want) {
		t.Errorf("cnf is %v, want %v", claims["cnf"], want)
	}
}

func TestInspect(t *testing.T) {
	now := time.Now()
	keys := openKeys(t, testConfig(t, testStore(t), "ES256"), now)
	issuer := NewToken(testIssuer, testAudience, keys)
	l := testLease(now)
	token := mint(t, issuer, l)
	if id, err := issuer.Inspect(t.Context(), token); err != nil || id != l.ID {
		t.Fatalf("Inspect = %s, %v", id, err)
	}
	parts := strings.Split(token, ".")
	header := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	kid := keys.List()[0].KID
	for name, bad := range map[string]string{
		"nothing":           "",
		"not a token":       "a.b.c",
		"too long":          token + strings.Repeat("a", maxInspected),
		"another signature": parts[0] + "." + parts[1] + "." + base64.RawURLEncoding.EncodeToString(make([]byte, 64)),
		"alg none":          header(`{"alg":"none","kid":"`+kid+`","typ":"at+jwt"}`) + "." + parts[1] + ".",
		"HMAC":              header(`{"alg":"HS256","kid":"`+kid+`","typ":"at+jwt"}`) + "." + parts[1] + "." + parts[2],
		"another typ":       header(`{"alg":"ES256","kid":"`+kid+`","typ":"JWT"}`) + "." + parts[1] + "." + parts[2],
		"of another aud":    mint(t, NewToken(testIssuer, "https://other.test", keys), l),
		"of another iss":    mint(t, NewToken("https://other.test", testAudience, keys), l),
		"of other keys":     mint(t, NewToken(testIssuer, testAudience, openKeys(t, testConfig(t, testStore(t), "ES256"), now)), l),
	} {
		if _, err := issuer.Inspect(t.Context(), bad); !errors.Is(err, broker.ErrNotFound) || bad != "" && strings.Contains(err.Error(), bad) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzInspect(f *testing.F) {
	now := time.Now()
	issuer := NewToken(testIssuer, testAudience, openKeys(f, testConfig(f, testStore(f), "ES256"), now))
	token := mint(f, issuer, testLease(now))
	f.Add(token)
	f.Add("a.b.c")
	f.Fuzz(func(t *testing.T, text string) {
		if _, err := issuer.Inspect(context.Background(), text); err == nil && strings.Split(text, ".")[1] != strings.Split(token, ".")[1] {
			t.Errorf("a token that was never issued is accepted: %q", text)
		}
	})
}

func BenchmarkMint(b *testing.B) {
	for _, algorithm := range []string{"ES256", "EdDSA"} {
		b.Run(algorithm, func(b *testing.B) {
			keys := openKeys(b, testConfig(b, testStore(b), algorithm), noon)
			issuer, l := NewToken(testIssuer, testAudience, keys), testLease(noon)
			b.ReportAllocs()
			for b.Loop() {
				mint(b, issuer, l)
			}
		})
	}
}
