package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/audit"
)

// JWKS returns the JWK Set (RFC 7517) of the published keys, including those that
// do not sign yet.
func (k *Keys) JWKS(now time.Time) []byte {
	var list []string
	for _, key := range k.published(now) {
		list = append(list, key.jwk)
	}
	return []byte(`{"keys":[` + strings.Join(list, ",") + `]}`)
}

// Algorithms returns the signature algorithms of the published keys.
func (k *Keys) Algorithms(now time.Time) []string {
	var list []string
	for _, key := range k.published(now) {
		if !slices.Contains(list, key.row.Algorithm) {
			list = append(list, key.row.Algorithm)
		}
	}
	return list
}

// jwk returns a public key as a JWK (RFC 7517, RFC 8037), and its key ID: the
// thumbprint of RFC 7638, which is the SHA-256 of the required members in
// canonical form.
func jwk(public crypto.PublicKey, algorithm string) (kid, text string, err error) {
	required, err := requiredMembers(public)
	if err != nil {
		return "", "", fmt.Errorf("encoding a public key: %w", err)
	}
	thumbprint := sha256.Sum256(members(required).Bytes())
	kid = base64url(thumbprint[:])
	return kid, string(members(required).String("alg", algorithm).String("kid", kid).String("use", "sig").Bytes()), nil
}

// requiredMembers returns the members of a JWK that RFC 7638 hashes.
func requiredMembers(public crypto.PublicKey) (map[string]string, error) {
	switch p := public.(type) {
	case *ecdsa.PublicKey:
		point, err := p.Bytes() // 4, x, y
		if err != nil {
			return nil, err
		}
		size := (len(point) - 1) / 2
		return map[string]string{"kty": "EC", "crv": "P-256", "x": base64url(point[1 : 1+size]), "y": base64url(point[1+size:])}, nil
	case ed25519.PublicKey:
		return map[string]string{"kty": "OKP", "crv": "Ed25519", "x": base64url(p)}, nil
	case *rsa.PublicKey:
		return map[string]string{"kty": "RSA", "n": base64url(p.N.Bytes()), "e": base64url(big.NewInt(int64(p.E)).Bytes())}, nil
	}
	return nil, errors.New("no algorithm signs with this kind of key")
}

func members(fields map[string]string) *audit.Object {
	o := audit.NewObject()
	for name, value := range fields {
		o.String(name, value)
	}
	return o
}

func base64url(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }
