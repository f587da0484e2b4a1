package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"math/big"
	"strings"
	"time"

	"accessbroker.internal/audit"
)

// JWKS gives the JWK Set (RFC 7517) of the keys whose signatures count at now,
// those included that have yet to sign.
func (k *Keys) JWKS(now time.Time) []byte {
	var list []string
	for _, key := range k.published(now) {
		list = append(list, key.jwk)
	}
	return []byte(`{"keys":[` + strings.Join(list, ",") + `]}`)
}

// Algorithms gives the signature algorithms of the published keys.
func (k *Keys) Algorithms(now time.Time) []string {
	var list []string
	seen := map[string]bool{}
	for _, key := range k.published(now) {
		if !seen[key.row.Algorithm] {
			seen[key.row.Algorithm] = true
			list = append(list, key.row.Algorithm)
		}
	}
	return list
}

// A KeyInfo is what may be told of a key.
type KeyInfo struct {
	ID, KID, Algorithm        string
	Published, Signs, Retires time.Time // Retires is zero while its successor is not made
}

// List tells of the keys that are not retired, in the order in which they sign.
func (k *Keys) List() []KeyInfo {
	var list []KeyInfo
	for _, key := range *k.ring.Load() {
		list = append(list, KeyInfo{key.row.ID.ID, key.kid, key.row.Algorithm, key.row.Published, key.row.Signs, key.row.Retires})
	}
	return list
}

// jwk gives a public key as a JWK (RFC 7517, RFC 8037) and its name, the
// thumbprint of RFC 7638: SHA-256 over the required members in canonical form.
func jwk(public crypto.PublicKey, algorithm string) (kid, text string, err error) {
	var required func() *audit.Object
	switch p := public.(type) {
	case *ecdsa.PublicKey:
		point, err := p.Bytes() // 4, x, y
		if err != nil {
			return "", "", fmt.Errorf("encoding a public key: %w", err)
		}
		size := (len(point) - 1) / 2
		required = func() *audit.Object {
			return audit.NewObject().String("kty", "EC").String("crv", "P-256").
				String("x", base64url(point[1:1+size])).String("y", base64url(point[1+size:]))
		}
	case ed25519.PublicKey:
		required = func() *audit.Object {
			return audit.NewObject().String("kty", "OKP").String("crv", "Ed25519").String("x", base64url(p))
		}
	case *rsa.PublicKey:
		required = func() *audit.Object {
			return audit.NewObject().String("kty", "RSA").
				String("n", base64url(p.N.Bytes())).String("e", base64url(big.NewInt(int64(p.E)).Bytes()))
		}
	default:
		return "", "", fmt.Errorf("encoding a public key: not a kind of key that tokens are signed with")
	}
	thumbprint := sha256.Sum256(required().Bytes())
	kid = base64url(thumbprint[:])
	return kid, string(required().String("alg", algorithm).String("kid", kid).String("use", "sig").Bytes()), nil
}

func base64url(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }
