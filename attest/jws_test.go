package attest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"maps"
	"math/big"
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
	key, err := rsa.GenerateKey(rand.Reader, minRSA)
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

func TestSignatureBindsAlgorithmAndKey(t *testing.T) {
	t.Parallel()
	keys := authorities(t)
	if len(algorithms) != len(kidOf) {
		t.Fatalf("got %d algorithms, want %d", len(algorithms), len(kidOf))
	}
	for alg, kid := range kidOf {
		sig := signature(t, alg, "input", keys[kid])
		for other := range algorithms {
			for name, key := range keys {
				want := other == alg && name == kid
				if got := algorithms[other].verifies(key.Public(), "input", sig); got != want {
					t.Errorf("signed with %s by %s: %s by %s verifies: got %t, want %t", alg, kid, other, name, got, want)
				}
			}
		}
		if algorithms[alg].verifies(keys[kid].Public(), "Input", sig) || algorithms[alg].verifies(keys[kid].Public(), "input", nil) ||
			algorithms[alg].verifies(keys[kid].Public(), "input", append(sig, 0)) || algorithms[alg].verifies(nil, "input", sig) {
			t.Errorf("%s: another input, no key, or another signature verifies", alg)
		}
		if (algorithm{}).verifies(keys[kid].Public(), "input", sig) {
			t.Errorf("%s: the zero algorithm verifies", alg)
		}
	}
}

func TestSignatureRefusesWeakForms(t *testing.T) {
	t.Parallel()
	keys := authorities(t)
	digest := sha256.Sum256([]byte("input"))
	large := keys["RSA"].(*rsa.PrivateKey)
	for _, salt := range []int{0, 20, 64, rsa.PSSSaltLengthAuto} {
		sig, err := rsa.SignPSS(rand.Reader, large, crypto.SHA256, digest[:], &rsa.PSSOptions{SaltLength: salt})
		check(t, err)
		if algorithms["PS256"].verifies(large.Public(), "input", sig) {
			t.Errorf("PS256 with a salt of %d bytes verifies, want only one of 32", salt)
		}
	}
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err == nil && algorithms["RS256"].verifies(small.Public(), "input", signature(t, "RS256", "input", small)) {
		t.Error("RS256 with a key of 1,024 bits verifies")
	}
	der, err := ecdsa.SignASN1(rand.Reader, keys["P-256"].(*ecdsa.PrivateKey), digest[:])
	check(t, err)
	zero := make([]byte, 64)
	order := append(elliptic.P256().Params().N.FillBytes(make([]byte, 32)), big.NewInt(1).FillBytes(make([]byte, 32))...)
	for name, sig := range map[string][]byte{"DER": der, "zeros": zero, "the order": order} {
		if algorithms["ES256"].verifies(keys["P-256"].Public(), "input", sig) {
			t.Errorf("ES256 with %s as its signature verifies", name)
		}
	}
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
	source := &Source{}
	source.trust.Store(bundles{jwt: []*jwtbundle.Bundle{bundle}}.restrictTo(map[spiffeid.TrustDomain]bool{td: true}))
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
