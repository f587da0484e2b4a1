package attest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	_ "crypto/sha256" // registers the hashes
	_ "crypto/sha512"
	"math/big"
)

// A scheme is a kind of signature of RFC 7518, sections 3.3 to 3.5.
type scheme int

const (
	pkcs1 scheme = iota + 1
	pss
	ecdsaP1363
)

// An algorithm is a signature algorithm of RFC 7518, section 3.1.
type algorithm struct {
	scheme scheme
	hash   crypto.Hash
	curve  elliptic.Curve // of ECDSA
}

// algorithms lists the algorithms of JWT-SVID, section 2.1. It must never contain
// none or HMAC (RFC 8725, section 2.1).
var algorithms = map[string]algorithm{
	"RS256": {pkcs1, crypto.SHA256, nil}, "RS384": {pkcs1, crypto.SHA384, nil}, "RS512": {pkcs1, crypto.SHA512, nil},
	"PS256": {pss, crypto.SHA256, nil}, "PS384": {pss, crypto.SHA384, nil}, "PS512": {pss, crypto.SHA512, nil},
	"ES256": {ecdsaP1363, crypto.SHA256, elliptic.P256()},
	"ES384": {ecdsaP1363, crypto.SHA384, elliptic.P384()},
	"ES512": {ecdsaP1363, crypto.SHA512, elliptic.P521()},
}

// minRSA is the size of the smallest RSA key, in bits (RFC 7518, section 3.3).
const minRSA = 2048

// verifies reports whether signature is a signature of input by the key with this
// algorithm alone: the kind of key and its curve must be the algorithm's (RFC 8725,
// section 3.1). The zero algorithm verifies nothing.
func (a algorithm) verifies(key crypto.PublicKey, input string, signature []byte) bool {
	if !a.hash.Available() {
		return false
	}
	h := a.hash.New()
	h.Write([]byte(input))
	digest := h.Sum(nil)
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		return a.scheme == ecdsaP1363 && key.Curve == a.curve && verifiesECDSA(key, digest, signature)
	case *rsa.PublicKey:
		switch {
		case key.N.BitLen() < minRSA:
			return false
		case a.scheme == pkcs1:
			return rsa.VerifyPKCS1v15(key, a.hash, digest, signature) == nil
		case a.scheme == pss:
			// RFC 7518, section 3.5: the salt is as long as the hash.
			return rsa.VerifyPSS(key, a.hash, digest, signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) == nil
		}
	}
	return false
}

// verifiesECDSA verifies r and s in the form of RFC 7518, section 3.4: each with as
// many bytes as the curve's field.
func verifiesECDSA(key *ecdsa.PublicKey, digest, signature []byte) bool {
	size := (key.Curve.Params().BitSize + 7) / 8
	if len(signature) != 2*size {
		return false
	}
	r, s := new(big.Int).SetBytes(signature[:size]), new(big.Int).SetBytes(signature[size:])
	return ecdsa.Verify(key, digest, r, s)
}
