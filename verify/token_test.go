package verify

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

// The control of the attacks: the issuer's tokens are accepted, with each algorithm.
func TestValidTokens(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	public, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	i.publish(jwkOf(&i.key.PublicKey, "k1"), jwkOf(&rsaKey.PublicKey, "rsa"), jwkOf(public, "ed"))
	v := i.verifier(func(c *Config) { c.DetailTypes = []string{"tickets"} })
	for name, token := range map[string]string{
		"ES256":                i.token(nil),
		"RS256":                i.sign(object{"alg": "RS256", "kid": "rsa", "typ": "at+jwt"}, i.claims(nil), rsaKey),
		"EdDSA":                i.sign(object{"alg": "EdDSA", "kid": "ed", "typ": "at+jwt"}, i.claims(nil), edKey),
		"a long typ":           i.sign(object{"alg": "ES256", "kid": "k1", "typ": "application/AT+JWT"}, i.claims(nil), i.key),
		"a list of one aud":    i.token(object{"aud": []string{testAudience}}),
		"fractions of seconds": i.token(object{"exp": float64(i.clock().Unix()) + 60.5}),
		"nbf":                  i.token(object{"nbf": i.clock().Unix()}),
		"no scope":             i.token(object{"scope": nil}),
		"details":              i.token(object{"authorization_details": []object{{"type": "tickets", "actions": []string{"read"}}}}),
		"escapes":              i.sign(object{"alg": "ES256", "kid": "k1", "typ": "at+jwt"}, edit(string(jsonOf(t, i.claims(nil))), `"jti":"lse_1"`, `"jti":"\u006cse_1 \ud83d\ude00"`), i.key),
	} {
		if err := v.check(t, token); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What a token states reaches the service.
func TestClaims(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	v := i.verifier(func(c *Config) { c.DetailTypes = []string{"tickets"} })
	c, err := v.Token(t.Context(), i.token(object{
		"sub":                   "login/ana",
		"act":                   object{"sub": "spiffe://acme.test/b", "act": object{"sub": "spiffe://acme.test/a"}},
		"authorization_details": []object{{"type": "tickets", "identifier": "T-1"}},
		"entitlement":           "tickets-api",
	}), Presentation{}, "tickets:close")
	if err != nil {
		t.Fatal(err)
	}
	if c.Subject != "login/ana" || c.ClientID != "spiffe://acme.test/agent/triage" || c.ID != "lse_1" || c.Issuer != i.url || c.Audience != testAudience ||
		!slices.Equal(c.Actors, []Actor{{"spiffe://acme.test/b"}, {"spiffe://acme.test/a"}}) || !c.Expires.Equal(i.clock().Add(10*time.Minute)) {
		t.Errorf("got %+v", c)
	}
	if len(c.Details) != 1 || c.Details[0].Type != "tickets" || !strings.Contains(string(c.Details[0].JSON), "T-1") || string(c.Members["entitlement"]) != `"tickets-api"` {
		t.Errorf("got the details %s and the members %s", c.Details, c.Members)
	}
}

// Tokens that are not what they claim to be are refused, whatever differs.
func TestForgedTokens(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	other := newECKey(t)
	der, err := x509.MarshalPKIXPublicKey(&i.key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	i.publish(jwkOf(&i.key.PublicKey, "k1"), jwkOf(&rsaKey.PublicKey, "rsa"))
	publicPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	header := object{"alg": "ES256", "kid": "k1", "typ": "at+jwt"}
	with := func(name string, v any) object { return changed(header, object{name: v}) }
	valid := i.token(nil)
	parts := strings.Split(valid, ".")
	claims := string(jsonOf(t, i.claims(nil)))
	raw := func(header string) string { return i.sign(header, i.claims(nil), i.key) }
	rawClaims := func(from, to string) string { return i.sign(header, edit(claims, from, to), i.key) }
	tests := map[string]string{
		"empty":                        "",
		"two parts":                    parts[0] + "." + parts[1],
		"four parts":                   valid + "." + parts[2],
		"padding":                      parts[0] + "." + parts[1] + "." + parts[2] + "==",
		"a line break":                 parts[0] + "." + parts[1] + ".\n" + parts[2],
		"a signature that has no end":  parts[0] + "." + parts[1] + "." + parts[2][:len(parts[2])-2],
		"no signature":                 parts[0] + "." + parts[1] + ".",
		"too long":                     i.token(object{"long": strings.Repeat("x", maxToken)}),
		"another key":                  i.sign(header, i.claims(nil), other),
		"none":                         i.sign(with("alg", "none"), i.claims(nil), nil),
		"None":                         i.sign(with("alg", "None"), i.claims(nil), nil),
		"HS256 with the public key":    i.sign(with("alg", "HS256"), i.claims(nil), publicPEM),
		"HS256 with the DER":           i.sign(with("alg", "HS256"), i.claims(nil), der),
		"HS256 with an empty key":      i.sign(with("alg", "HS256"), i.claims(nil), []byte{}),
		"RS256 with an EC key":         i.sign(with("alg", "RS256"), i.claims(nil), i.key),
		"EdDSA with an EC key":         i.sign(with("alg", "EdDSA"), i.claims(nil), i.key),
		"PS256 with the RSA key":       i.sign(object{"alg": "PS256", "kid": "rsa", "typ": "at+jwt"}, i.claims(nil), rsaKey),
		"ES384":                        i.sign(with("alg", "ES384"), i.claims(nil), i.key),
		"no alg":                       i.sign(with("alg", nil), i.claims(nil), i.key),
		"alg as a list":                i.sign(with("alg", []string{"ES256"}), i.claims(nil), i.key),
		"no kid":                       i.sign(with("kid", nil), i.claims(nil), i.key),
		"an unknown kid":               i.sign(with("kid", "../../k1"), i.claims(nil), i.key),
		"kid as SQL":                   i.sign(with("kid", "x' UNION SELECT 'k1"), i.claims(nil), i.key),
		"kid in another case":          i.sign(with("kid", "K1"), i.claims(nil), i.key),
		"its own key in jwk":           i.sign(changed(header, object{"jwk": jwkOf(&other.PublicKey, "k1")}), i.claims(nil), other),
		"its own key at jku":           i.sign(changed(header, object{"jku": "https://evil.test/jwks"}), i.claims(nil), other),
		"crit":                         i.sign(changed(header, object{"crit": []string{"exp"}, "exp": 1}), i.claims(nil), i.key),
		"empty crit":                   i.sign(changed(header, object{"crit": []string{}}), i.claims(nil), i.key),
		"b64":                          i.sign(changed(header, object{"b64": false}), i.claims(nil), i.key),
		"b64 with crit":                i.sign(changed(header, object{"b64": false, "crit": []string{"b64"}}), i.claims(nil), i.key),
		"zip":                          i.sign(changed(header, object{"zip": "DEF"}), i.claims(nil), i.key),
		"typ JWT":                      i.sign(with("typ", "JWT"), i.claims(nil), i.key),
		"no typ":                       i.sign(with("typ", nil), i.claims(nil), i.key),
		"typ of a status list":         i.sign(with("typ", "statuslist+jwt"), i.claims(nil), i.key),
		"typ of an ID-JAG":             i.sign(with("typ", "oauth-id-jag+jwt"), i.claims(nil), i.key),
		"a repeated alg":               raw(`{"alg":"none","alg":"ES256","kid":"k1","typ":"at+jwt"}`),
		"Alg besides alg":              i.sign(`{"Alg":"ES256","alg":"none","kid":"k1","typ":"at+jwt"}`, i.claims(nil), nil),
		"an escaped repeated alg":      raw(`{"\u0061lg":"ES256","alg":"ES256","kid":"k1","typ":"at+jwt"}`),
		"data after the header":        raw(`{"alg":"ES256","kid":"k1","typ":"at+jwt"}{}`),
		"a repeated aud":               rawClaims(`"aud":`, `"aud":"https://evil.test","aud":`),
		"an escaped repeated aud":      rawClaims(`"aud":`, `"\u0061ud":"https://evil.test","aud":`),
		"a repeated name inside":       rawClaims(`"aud":`, `"x":{"a":1,"a":2},"aud":`),
		"AUD instead of aud":           rawClaims(`"aud":`, `"AUD":`),
		"half a surrogate pair":        rawClaims(`"jti":"lse_1"`, `"jti":"\ud800"`),
		"the second half of a pair":    rawClaims(`"jti":"lse_1"`, `"jti":"\udc00\ud800"`),
		"bad UTF-8":                    rawClaims(`"jti":"lse_1"`, "\"jti\":\"\xff\""),
		"a control character":          rawClaims(`"jti":"lse_1"`, "\"jti\":\"a\nb\""),
		"a comma at the end":           rawClaims(`"jti":"lse_1"`, `"jti":"lse_1",`),
		"a leading zero":               rawClaims(`"exp":`, `"exp":0`),
		"infinite exp":                 rawClaims(`"exp":`, `"exp":1e999,"x":`),
		"a huge exp":                   rawClaims(`"exp":`, `"exp":9007199254740993,"x":`),
		"exp as text":                  i.token(object{"exp": "1795950000"}),
		"claims that are a list":       i.sign(header, "[]", i.key),
		"a deep object":                i.sign(header, edit(claims, `"aud":`, `"x":`+strings.Repeat("[", 40)+strings.Repeat("]", 40)+`,"aud":`), i.key),
		"another issuer":               i.token(object{"iss": "https://evil.test"}),
		"the issuer with a slash":      i.token(object{"iss": i.url + "/"}),
		"the issuer in a list":         i.token(object{"iss": []string{i.url}}),
		"no issuer":                    i.token(object{"iss": nil}),
		"another audience":             i.token(object{"aud": "https://billing.acme.test"}),
		"an audience with a slash":     i.token(object{"aud": testAudience + "/"}),
		"an audience as prefix":        i.token(object{"aud": testAudience + ".evil.test"}),
		"several audiences":            i.token(object{"aud": []string{testAudience, "https://billing.acme.test"}}),
		"an empty list of audiences":   i.token(object{"aud": []string{}}),
		"no audience":                  i.token(object{"aud": nil}),
		"expired":                      i.token(object{"exp": i.clock().Unix() - 10}),
		"no exp":                       i.token(object{"exp": nil}),
		"no iat":                       i.token(object{"iat": nil}),
		"from the future":              i.token(object{"iat": i.clock().Unix() + 60}),
		"not valid yet":                i.token(object{"nbf": i.clock().Unix() + 60}),
		"nbf as text":                  i.token(object{"nbf": "0"}),
		"no sub":                       i.token(object{"sub": nil}),
		"no client_id":                 i.token(object{"client_id": nil}),
		"no jti":                       i.token(object{"jti": nil}),
		"scope as a list":              i.token(object{"scope": []string{"tickets:read"}}),
		"two spaces in scope":          i.token(object{"scope": "tickets:read  tickets:close"}),
		"details of another service":   i.token(object{"authorization_details": []object{{"type": "payment"}}}),
		"details that are an object":   i.token(object{"authorization_details": object{"type": "tickets"}}),
		"a detail without a type":      i.token(object{"authorization_details": []object{{}}}),
		"an actor without sub":         i.token(object{"act": object{"sub": ""}}),
		"an actor that is a text":      i.token(object{"act": "spiffe://acme.test/a"}),
		"an inner actor without sub":   i.token(object{"act": object{"sub": "a", "act": object{}}}),
		"a chain that is too long":     i.token(object{"act": chain(5)}),
		"bound in an unknown way":      i.token(object{"cnf": object{"jwk": jwkOf(&i.key.PublicKey, "")}}),
		"bound to nothing":             i.token(object{"cnf": object{}}),
		"bound to a text":              i.token(object{"cnf": "jkt"}),
		"bound to an ID only":          i.token(object{"cnf": object{"spiffe_id": "spiffe://acme.test/agent/triage"}}),
		"bound to a certificate":       i.token(object{"cnf": object{"x5t#S256": "x"}}),
		"bound to a DPoP key":          i.token(object{"cnf": object{"jkt": "x"}}),
		"another mechanism of status":  i.token(object{"status": object{"identifier_list": object{}}}),
		"status as a text":             i.token(object{"status": "valid"}),
		"a list elsewhere":             i.token(at("https://evil.test/status/1", 0)),
		"a list over plain HTTP":       i.token(at(strings.Replace(i.url, "https", "http", 1)+"/status/1", 0)),
		"a list with other user names": i.token(at(strings.Replace(i.url, "https://", "https://u:p@", 1)+"/status/1", 0)),
		"a negative index":             i.token(at(i.url+"/status/1", -1)),
	}
	v := i.verifier(func(c *Config) { c.DetailTypes = []string{"tickets"}; c.MinRefresh = time.Nanosecond })
	if err := v.check(t, valid); err != nil {
		t.Fatal(err)
	}
	for name, token := range tests {
		if err := v.check(t, token); !errors.Is(err, ErrInvalidToken) {
			t.Errorf("%s: got %v, want an invalid token", name, err)
		} else if len(token) > 200 && strings.Contains(err.Error(), token[60:80]) {
			t.Errorf("%s: the error shows the token: %v", name, err)
		}
	}
}

func chain(n int) object {
	o := object{"sub": "spiffe://acme.test/a"}
	for range n - 1 {
		o = object{"sub": "spiffe://acme.test/a", "act": o}
	}
	return o
}

// Services can refuse what is optional.
func TestStricterServices(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	for name, test := range map[string]struct {
		change func(*Config)
		token  string
	}{
		"binding":   {func(c *Config) { c.RequireBinding = true }, i.token(nil)},
		"status":    {func(c *Config) { c.RequireStatus = true }, i.token(nil)},
		"no actors": {func(c *Config) { c.MaxActors = -1 }, i.token(object{"act": chain(1)})},
		"no leeway": {func(c *Config) { c.Leeway = -1 }, i.token(object{"exp": i.clock().Unix()})},
	} {
		if err := i.verifier(test.change).check(t, test.token); !errors.Is(err, ErrInvalidToken) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if err := i.verifier(nil).check(t, i.token(object{"act": chain(4)})); err != nil {
		t.Errorf("four actors: %v", err)
	}
	if err := i.verifier(nil).check(t, i.token(object{"exp": i.clock().Unix() - 4})); err != nil {
		t.Errorf("4 s after the expiry: %v", err)
	}
}

// A configuration that could not be safe is refused.
func TestBadConfigs(t *testing.T) {
	t.Parallel()
	valid := Config{Issuer: "https://broker.acme.test", Audience: "https://tickets.acme.test"}
	if _, err := New(valid); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Config){
		"no issuer":            func(c *Config) { c.Issuer = "" },
		"plain HTTP":           func(c *Config) { c.Issuer = "http://broker.acme.test" },
		"issuer with a query":  func(c *Config) { c.Issuer += "?x=1" },
		"no audience":          func(c *Config) { c.Audience = "" },
		"plain HTTP for keys":  func(c *Config) { c.JWKS = "http://broker.acme.test/jwks" },
		"plain introspection":  func(c *Config) { c.Introspection = &Introspection{URL: "http://broker.acme.test/i"} },
		"long introspection":   func(c *Config) { c.Introspection = &Introspection{CacheFor: time.Hour} },
		"long leeway":          func(c *Config) { c.Leeway = time.Hour },
		"long proofs":          func(c *Config) { c.DPoP.Lasts = time.Hour },
		"short key of nonces":  func(c *Config) { c.DPoP.NonceKey = []byte("short") },
		"a bad service":        func(c *Config) { c.DPoP.URL = "tickets" },
		"negative MinRefresh":  func(c *Config) { c.MinRefresh = -1 },
		"negative MaxStale":    func(c *Config) { c.MaxStale = -1 },
		"an issuer with users": func(c *Config) { c.Issuer = "https://u:p@broker.acme.test" },
	} {
		cfg := valid
		change(&cfg)
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
