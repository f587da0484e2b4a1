package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"errors"
)

// sizeES256 is the size of an ES256 signature: r and s with 32 bytes each (RFC 7518,
// section 3.4).
const sizeES256 = 64

// sign returns the JWS signature of input.
//
// ECDSA is deterministic, as RFC 8725, section 3.2, recommends: a signature depends on
// no random number, so a bad one can't reveal the key (RFC 6979). It is also a quarter
// faster. golang-jwt signs with a random number.
func (k *signingKey) sign(input []byte) ([]byte, error) {
	key, ok := k.signer.(*ecdsa.PrivateKey)
	if !ok {
		return k.method.Sign(string(input), k.signer)
	}
	digest := sha256.Sum256(input)
	der, err := key.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		return nil, err
	}
	return fromDER(der)
}

var errDER = errors.New("the signature is not an ASN.1 sequence of two integers")

// fromDER converts an ES256 signature from ASN.1 DER to the form of JWS.
func fromDER(der []byte) ([]byte, error) {
	if len(der) < 2 || der[0] != 0x30 || int(der[1]) != len(der)-2 {
		return nil, errDER
	}
	signature := make([]byte, sizeES256)
	rest := der[2:]
	for _, out := range [][]byte{signature[:sizeES256/2], signature[sizeES256/2:]} {
		if len(rest) < 2 || rest[0] != 0x02 || int(rest[1]) > len(rest)-2 {
			return nil, errDER
		}
		n := rest[2 : 2+rest[1]]
		rest = rest[2+rest[1]:]
		if len(n) > 1 && n[0] == 0 && n[1] >= 0x80 { // the byte of the sign
			n = n[1:]
		} else if len(n) == 0 || n[0] == 0 || n[0] >= 0x80 {
			return nil, errDER
		}
		if len(n) > len(out) {
			return nil, errDER
		}
		copy(out[len(out)-len(n):], n)
	}
	if len(rest) > 0 {
		return nil, errDER
	}
	return signature, nil
}
