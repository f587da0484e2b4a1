package jwks

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	_ "crypto/sha256" // registers the hashes
	_ "crypto/sha512"
	"errors"
	"math/big"
)

// hashes are the hashes of the algorithms. The list has neither none nor HMAC (RFC
// 8725, sections 2.1 and 3.2).
var hashes = map[string]crypto.Hash{
	"RS256": crypto.SHA256, "RS384": crypto.SHA384, "RS512": crypto.SHA512,
	"PS256": crypto.SHA256, "PS384": crypto.SHA384, "PS512": crypto.SHA512,
	"ES256": crypto.SHA256, "ES384": crypto.SHA384, "ES512": crypto.SHA512,
	"EdDSA": 0, "Ed25519": 0,
}

var errSignature = errors.New("the signature is not valid")

// Verify returns an error unless signature is a signature of message by the algorithm
// and the key. The algorithm comes from a token, so Verify accepts only those that
// Allows permits.
func (k *Key) Verify(algorithm string, message, signature []byte) error {
	if !k.Allows(algorithm) {
		return errors.New("the algorithm does not fit the key")
	}
	hash := hashes[algorithm]
	digest := message
	if hash != 0 {
		h := hash.New()
		h.Write(message)
		digest = h.Sum(nil)
	}
	valid := false
	switch public := k.public.(type) {
	case *rsa.PublicKey:
		valid = verifyRSA(public, algorithm[0] == 'P', hash, digest, signature)
	case *ecdsa.PublicKey:
		valid = verifyECDSA(public, digest, signature)
	case ed25519.PublicKey:
		valid = ed25519.Verify(public, message, signature)
	}
	if !valid {
		return errSignature
	}
	return nil
}

// verifyRSA verifies RSASSA-PKCS1-v1_5 or RSASSA-PSS, whose salt is as long as the hash
// (RFC 7518, section 3.5).
func verifyRSA(public *rsa.PublicKey, pss bool, hash crypto.Hash, digest, signature []byte) bool {
	if pss {
		return rsa.VerifyPSS(public, hash, digest, signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) == nil
	}
	return rsa.VerifyPKCS1v15(public, hash, digest, signature) == nil
}

// verifyECDSA verifies the concatenation of r and s, each of full length (RFC 7518,
// section 3.4).
func verifyECDSA(public *ecdsa.PublicKey, digest, signature []byte) bool {
	size := (public.Params().BitSize + 7) / 8
	if len(signature) != 2*size {
		return false
	}
	r, s := new(big.Int).SetBytes(signature[:size]), new(big.Int).SetBytes(signature[size:])
	return ecdsa.Verify(public, digest, r, s)
}
