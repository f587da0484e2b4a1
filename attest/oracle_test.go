package attest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
)

// authorities returns a key of each kind that the algorithms need, by kid.
func authorities(t testing.TB) map[string]crypto.Signer {
	t.Helper()
	keys := map[string]crypto.Signer{}
	for kid, curve := range map[string]elliptic.Curve{"P-256": elliptic.P256(), "P-384": elliptic.P384(), "P-521": elliptic.P521()} {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		check(t, err)
		keys[kid] = key
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	check(t, err)
	keys["RSA"] = key
	return keys
}

// kidOf names the key of authorities for an algorithm.
var kidOf = map[string]string{
	"RS256": "RSA", "RS384": "RSA", "RS512": "RSA", "PS256": "RSA", "PS384": "RSA", "PS512": "RSA",
	"ES256": "P-256", "ES384": "P-384", "ES512": "P-521",
}

// signature signs with golang-jwt, an implementation other than the one under test.
func signature(t testing.TB, alg, input string, key crypto.Signer) []byte {
	t.Helper()
	sig, err := jwt.GetSigningMethod(alg).Sign(input, key)
	check(t, err)
	return sig
}

// FuzzOracle compares the verifier with go-spiffe and go-jose, on tokens with a valid
// signature over arbitrary text, by keys of every kind. The verifier may be stricter.
// It must accept nothing that they refuse, and read the same from what it accepts.
func FuzzOracle(f *testing.F) {
	keys := authorities(f)
	public := map[string]crypto.PublicKey{}
	for kid, key := range keys {
		public[kid] = key.Public()
	}
	td := spiffeid.RequireTrustDomainFromString("acme.test")
	bundle := jwtbundle.FromJWTAuthorities(td, public)
	document, err := bundle.Marshal()
	check(f, err)
	own, err := parseJWTBundle(td, document)
	check(f, err)
	source := &Source{}
	source.trust.Store(newTrust(map[spiffeid.TrustDomain]bool{td: true}, own))
	v := NewVerifier(VerifierConfig{Source: source, Audiences: []string{audienceURL}})
	algs := slices.Sorted(maps.Keys(kidOf))
	signed := func(t testing.TB, header, claims, alg string) string {
		input := encode(header) + "." + encode(claims)
		return input + "." + encode(string(signature(t, alg, input, keys[kidOf[alg]])))
	}
	for i, form := range forms {
		claims := fillForm(strings.ReplaceAll(form.claims, "%n+60", "%n+3000"), "", time.Now())
		f.Add(fillForm(form.header, "P-256", time.Now()), claims, byte(0))
		alg := algs[i%len(algs)]
		header := `{"alg":"` + alg + `","kid":"` + kidOf[alg] + `"}`
		f.Add(header, claims, byte(i))
		if form.want == "" {
			_, err := v.jwt(signed(f, header, claims, alg), time.Now())
			check(f, err)
		}
	}
	f.Fuzz(func(t *testing.T, header, claims string, n byte) {
		alg, now := algs[int(n)%len(algs)], time.Now()
		token := signed(t, header, claims, alg)
		who, err := v.jwt(token, now)
		if err != nil {
			return
		}
		svid, err := jwtsvid.ParseAndValidate(token, bundle, []string{audienceURL})
		if err != nil {
			t.Fatalf("%s %s: accepted, but go-spiffe refuses it: %v", header, claims, err)
		}
		if svid.ID.String() != who.ID || !svid.Expiry.Equal(who.Proof.Expires) || !slices.Equal(svid.Audience, []string{audienceURL}) {
			t.Errorf("%s %s: got %s until %s, want %s until %s", header, claims, who.ID, who.Proof.Expires, svid.ID, svid.Expiry)
		}
	})
}
