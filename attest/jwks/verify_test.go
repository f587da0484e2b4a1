package jwks

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"math/big"
	"slices"
	"testing"

	"github.com/golang-jwt/jwt/v5"
)

// kidOf names the key that an algorithm needs.
var kidOf = map[string]string{
	"RS256": "RSA", "RS384": "RSA", "RS512": "RSA", "PS256": "RSA", "PS384": "RSA", "PS512": "RSA",
	"ES256": "P-256", "ES384": "P-384", "ES512": "P-521", "EdDSA": "Ed25519",
}

// The signatures come from golang-jwt, an implementation other than the one under test.
func TestVerifyBindsAlgorithmAndKey(t *testing.T) {
	t.Parallel()
	private, keys := signers(t)
	if len(hashes) != len(kidOf)+1 { // Ed25519 is another name of EdDSA
		t.Fatalf("got %d algorithms, want %d", len(hashes), len(kidOf))
	}
	message := []byte("input")
	for alg, kid := range kidOf {
		sig, err := jwt.GetSigningMethod(alg).Sign("input", private[kid])
		if err != nil {
			t.Fatal(err)
		}
		for other := range hashes {
			for _, key := range keys {
				want := (other == alg || other == "Ed25519" && alg == "EdDSA") && key.ID == kid
				if err := key.Verify(other, message, sig); (err == nil) != want {
					t.Errorf("signed with %s by %s: %s by %s: got %v, want accepted %t", alg, kid, other, key.ID, err, want)
				}
			}
		}
		key := keys[slices.IndexFunc(keys, func(k Key) bool { return k.ID == kid })]
		if key.Verify(alg, []byte("Input"), sig) == nil || key.Verify(alg, message, nil) == nil || key.Verify(alg, message, append(sig, 0)) == nil {
			t.Errorf("%s: another input or another signature verifies", alg)
		}
		if (&Key{public: key.public}).Verify(alg, message, sig) == nil {
			t.Errorf("%s: a key without algorithms verifies", alg)
		}
	}
}

// signers returns a key of each kind that the algorithms need.
func signers(t *testing.T) (private map[string]crypto.PrivateKey, public []Key) {
	t.Helper()
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	edPublic, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	private = map[string]crypto.PrivateKey{"RSA": rsaKey, "Ed25519": ed}
	jwk := []any{
		rsaJWK(rsaKey.N, int64(rsaKey.E)).with(members{"kid": "RSA"}),
		members{"kty": "OKP", "crv": "Ed25519", "kid": "Ed25519", "x": b64(edPublic)},
	}
	for _, c := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		key := newEC(t, c)
		private[c.Params().Name] = key
		jwk = append(jwk, ecJWK(t, &key.PublicKey).with(members{"kid": c.Params().Name}))
	}
	return private, parse(t, jwk...).Keys
}

func TestVerifyRefusesOtherFormsOfECDSA(t *testing.T) {
	t.Parallel()
	key := newEC(t, elliptic.P256())
	own := parse(t, ecJWK(t, &key.PublicKey)).Keys[0]
	digest := sha256.Sum256([]byte("input"))
	der, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	order := append(elliptic.P256().Params().N.FillBytes(make([]byte, 32)), big.NewInt(1).FillBytes(make([]byte, 32))...)
	for name, sig := range map[string][]byte{"DER": der, "zeros": make([]byte, 64), "the order": order} {
		if own.Verify("ES256", []byte("input"), sig) == nil {
			t.Errorf("%s verifies", name)
		}
	}
}
