package jwks

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"math/big"
)

// ParsePublic parses one public key that verifies signatures, such as that of a DPoP proof
// (RFC 9449, section 4.2), as strictly as Parse. It refuses a key with a private part.
func ParsePublic(document []byte) (Key, error) {
	key, err := parseKey(document, []string{"", "sig"})
	if err == nil && key.Cert != nil {
		return Key{}, errors.New("it has a certificate (x5c)")
	}
	return key, err
}

// Thumbprint returns the SHA-256 thumbprint of the key (RFC 7638; RFC 8037, section 2).
func (k *Key) Thumbprint() [sha256.Size]byte {
	b := make([]byte, 0, 512)
	member := func(sep, name string, value []byte) {
		b = append(append(append(b, sep...), name...), `":"`...)
		b = append(base64.RawURLEncoding.AppendEncode(b, value), '"')
	}
	switch public := k.public.(type) {
	case *rsa.PublicKey:
		member(`{"`, "e", big.NewInt(int64(public.E)).Bytes())
		b = append(b, `,"kty":"RSA"`...)
		member(`,"`, "n", public.N.Bytes())
	case *ecdsa.PublicKey:
		point, err := public.Bytes()
		if err != nil {
			panic("a parsed key is on its curve: " + err.Error())
		}
		half := len(point) / 2
		b = append(append(append(b, `{"crv":"`...), public.Params().Name...), `","kty":"EC"`...)
		member(`,"`, "x", point[1:1+half])
		member(`,"`, "y", point[1+half:])
	case ed25519.PublicKey:
		b = append(b, `{"crv":"Ed25519","kty":"OKP"`...)
		member(`,"`, "x", public)
	}
	return sha256.Sum256(append(b, '}'))
}
