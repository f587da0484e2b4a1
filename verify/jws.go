package verify

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"math/big"
	"slices"
	"strings"
)

// maxToken is the length of the longest JWT that is read.
const maxToken = 16 << 10

var (
	errJWS       = errors.New("it is not a signed JWT")
	errAlgorithm = errors.New("its algorithm is not accepted")
	errSignature = errors.New("its signature is wrong")
)

// A jws is a JWT in the compact serialization (RFC 7515, section 7.1), not verified.
type jws struct {
	header    value
	claims    []byte
	signature []byte
	signed    string // what the signature is over
	alg, typ  string
}

// base64url refuses padding and bits beyond the last byte, so that a text has one spelling.
var base64url = base64.RawURLEncoding.Strict()

// parseJWS reads a JWT. It refuses headers that change how a JWT is read: critical extensions
// (crit, b64) and compression.
func parseJWS(token string, most int, algorithms []string) (*jws, error) {
	if len(token) > most {
		return nil, errJWS
	}
	header, rest, ok := strings.Cut(token, ".")
	claims, signature, too := strings.Cut(rest, ".")
	if !ok || !too || strings.ContainsAny(token, "\r\n") { // which base64 would skip
		return nil, errJWS
	}
	j := &jws{signed: token[:len(header)+1+len(claims)]}
	text, err := base64url.DecodeString(header)
	if err != nil {
		return nil, errJWS
	}
	if j.claims, err = base64url.DecodeString(claims); err != nil {
		return nil, errJWS
	}
	if j.signature, err = base64url.DecodeString(signature); err != nil { // a third dot is no base64
		return nil, errJWS
	}
	if j.header, err = parseObject(text); err != nil {
		return nil, errJWS
	}
	for _, name := range []string{"crit", "b64", "zip", "enc"} {
		if _, ok := j.header.get(name); ok {
			return nil, errJWS
		}
	}
	j.alg, j.typ = j.header.textOf("alg"), strings.ToLower(j.header.textOf("typ"))
	j.typ = strings.TrimPrefix(j.typ, "application/") // RFC 7515, section 4.1.9
	if !slices.Contains(algorithms, j.alg) {
		return nil, errAlgorithm
	}
	return j, nil
}

// The algorithms of the issuer's keys, and those of callers' DPoP proofs, which are the ones
// that the broker accepts in proofs. "none" and algorithms with shared secrets are in neither.
// Ed25519 is the newer name of EdDSA with that curve (RFC 9864).
var (
	issuerAlgorithms = []string{"ES256", "RS256", "EdDSA"}
	proofAlgorithms  = []string{"ES256", "Ed25519", "EdDSA", "PS256", "RS256"}
)

// verify checks the signature. The key decides what a signature looks like: its type must be
// that of the algorithm (RFC 8725, section 3.1).
func (j *jws) verify(key crypto.PublicKey) error {
	digest := sha256.Sum256([]byte(j.signed))
	valid := false
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		if j.alg != "ES256" || len(j.signature) != 64 {
			break
		}
		r, s := new(big.Int).SetBytes(j.signature[:32]), new(big.Int).SetBytes(j.signature[32:])
		valid = ecdsa.Verify(key, digest[:], r, s)
	case *rsa.PublicKey:
		switch j.alg {
		case "RS256":
			valid = rsa.VerifyPKCS1v15(key, crypto.SHA256, digest[:], j.signature) == nil
		case "PS256": // RFC 7518, section 3.5
			valid = rsa.VerifyPSS(key, crypto.SHA256, digest[:], j.signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) == nil
		}
	case ed25519.PublicKey:
		valid = (j.alg == "EdDSA" || j.alg == "Ed25519") && ed25519.Verify(key, []byte(j.signed), j.signature)
	}
	if !valid {
		return errSignature
	}
	return nil
}

var errKey = errors.New("not a public key that is accepted")

const (
	minRSA = 2048 // bits
	maxRSA = 8192
)

// publicKey returns the key of a JWK (RFC 7517, RFC 7518, section 6, RFC 8037, section 2). A
// private or symmetric key is an error.
func publicKey(jwk *value) (crypto.PublicKey, error) {
	for _, secret := range []string{"d", "p", "q", "dp", "dq", "qi", "oth", "k"} {
		if _, ok := jwk.get(secret); ok {
			return nil, errKey
		}
	}
	switch kty, crv := jwk.textOf("kty"), jwk.textOf("crv"); {
	case kty == "EC" && crv == "P-256":
		x, errX := base64url.DecodeString(jwk.textOf("x"))
		y, errY := base64url.DecodeString(jwk.textOf("y"))
		if errX != nil || errY != nil || len(x) != 32 || len(y) != 32 {
			return nil, errKey
		}
		point := append(append([]byte{4}, x...), y...)
		key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
		if err != nil { // not on the curve
			return nil, errKey
		}
		return key, nil
	case kty == "OKP" && crv == "Ed25519":
		x, err := base64url.DecodeString(jwk.textOf("x"))
		if err != nil || len(x) != ed25519.PublicKeySize {
			return nil, errKey
		}
		return ed25519.PublicKey(x), nil
	case kty == "RSA":
		return rsaKey(jwk)
	}
	return nil, errKey
}

func rsaKey(jwk *value) (crypto.PublicKey, error) {
	n, errN := base64url.DecodeString(jwk.textOf("n"))
	e, errE := base64url.DecodeString(jwk.textOf("e"))
	if errN != nil || errE != nil || len(e) == 0 || len(e) > 4 || len(n)*8 > maxRSA || len(n) == 0 || n[0] == 0 || e[0] == 0 {
		return nil, errKey
	}
	key := &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: int(new(big.Int).SetBytes(e).Int64())}
	if key.N.BitLen() < minRSA || key.E < 3 || key.E%2 == 0 || key.N.Bit(0) == 0 {
		return nil, errKey
	}
	return key, nil
}

// thumbprint returns the thumbprint of a JWK with SHA-256 (RFC 7638).
func thumbprint(jwk *value) string {
	var names []string
	switch jwk.textOf("kty") {
	case "EC":
		names = []string{"crv", "kty", "x", "y"}
	case "OKP":
		names = []string{"crv", "kty", "x"}
	case "RSA":
		names = []string{"e", "kty", "n"}
	}
	var b strings.Builder
	for i, name := range names { // the values are base64url or names, which need no escapes
		b.WriteString([]string{`{"`, `,"`}[min(i, 1)] + name + `":"` + jwk.textOf(name) + `"`)
	}
	b.WriteByte('}')
	sum := sha256.Sum256([]byte(b.String()))
	return base64url.EncodeToString(sum[:])
}

// algorithmOf returns the algorithm of signatures with a key.
func algorithmOf(key crypto.PublicKey) string {
	switch key.(type) {
	case *ecdsa.PublicKey:
		return "ES256"
	case *rsa.PublicKey:
		return "RS256"
	case ed25519.PublicKey:
		return "EdDSA"
	}
	return ""
}
