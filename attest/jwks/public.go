package jwks

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"math/big"
	"slices"
)

// Bounds of RSA keys. RFC 7518, sections 3.3 and 3.5, requires 2,048 bits. Verifying
// with a longer modulus or exponent takes longer, which the sender of a token could
// exploit; crypto/rsa and crypto/tls have the same upper bounds.
const (
	minModulus  = 2048
	maxModulus  = 8192
	maxExponent = 1<<31 - 1
)

var (
	rsaAlgorithms = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}
	edAlgorithms  = []string{"EdDSA", "Ed25519"} // RFC 8037, section 3.1; RFC 9864, section 2.2
)

// A curve is one of RFC 7518, section 6.2.1.1.
type curve struct {
	elliptic.Curve
	algorithms []string
}

var curves = map[string]curve{
	"P-256": {elliptic.P256(), []string{"ES256"}},
	"P-384": {elliptic.P384(), []string{"ES384"}},
	"P-521": {elliptic.P521(), []string{"ES512"}},
}

// public returns the public key and the algorithms that fit it.
func (m jwk) public() (crypto.PublicKey, []string, error) {
	kty, err := m.text("kty")
	if err != nil {
		return nil, nil, err
	}
	switch kty {
	case "RSA":
		return m.rsa()
	case "EC":
		return m.ec()
	case "OKP":
		return m.okp()
	}
	return nil, nil, leftOut(UnknownType, "its kty is %s", orMissing(kty))
}

func (m jwk) rsa() (crypto.PublicKey, []string, error) {
	n, err := m.uint("n")
	if err != nil {
		return nil, nil, err
	}
	e, err := m.uint("e")
	if err != nil {
		return nil, nil, err
	}
	if !e.IsInt64() || e.Int64() > maxExponent {
		return nil, nil, leftOut(WeakKey, "its RSA exponent is longer than 31 bits")
	}
	key := &rsa.PublicKey{N: n, E: int(e.Int64())}
	if err := checkRSA(key); err != nil {
		return nil, nil, err
	}
	return key, rsaAlgorithms, nil
}

// uint returns a Base64urlUInt, which has no leading zero octets (RFC 7518, section 2).
func (m jwk) uint(name string) (*big.Int, error) {
	b, err := m.bytes(name)
	if err != nil {
		return nil, err
	}
	if b[0] == 0 {
		return nil, leftOut(Malformed, "%s begins with a zero octet (RFC 7518, section 2)", name)
	}
	return new(big.Int).SetBytes(b), nil
}

func (m jwk) ec() (crypto.PublicKey, []string, error) {
	name, err := m.text("crv")
	if err != nil {
		return nil, nil, err
	}
	c, ok := curves[name]
	if !ok {
		return nil, nil, leftOut(UnknownType, "its crv is %s", orMissing(name))
	}
	size := (c.Params().BitSize + 7) / 8
	point := []byte{4} // uncompressed
	for _, coordinate := range []string{"x", "y"} {
		b, err := m.bytes(coordinate)
		if err != nil {
			return nil, nil, err
		}
		if len(b) != size { // RFC 7518, section 6.2.1.2
			return nil, nil, leftOut(Malformed, "%s has %d octets, and %s needs %d", coordinate, len(b), name, size)
		}
		point = append(point, b...)
	}
	key, err := ecdsa.ParseUncompressedPublicKey(c.Curve, point)
	if err != nil {
		return nil, nil, leftOut(WeakKey, "its point is not on the curve %s", name)
	}
	return key, c.algorithms, nil
}

func (m jwk) okp() (crypto.PublicKey, []string, error) {
	name, err := m.text("crv")
	if err != nil {
		return nil, nil, err
	}
	if name != "Ed25519" {
		return nil, nil, leftOut(UnknownType, "its crv is %s", orMissing(name))
	}
	x, err := m.bytes("x")
	if err != nil {
		return nil, nil, err
	}
	if len(x) != ed25519.PublicKeySize {
		return nil, nil, leftOut(Malformed, "x has %d octets, and Ed25519 needs %d", len(x), ed25519.PublicKeySize)
	}
	return ed25519.PublicKey(x), edAlgorithms, nil
}

// CheckPublic returns an error if a key of a certificate is one that Parse would leave
// out of a set.
func CheckPublic(public crypto.PublicKey) (Reason, error) {
	var err error
	switch key := public.(type) {
	case *rsa.PublicKey:
		err = checkRSA(key)
	case *ecdsa.PublicKey:
		if !slices.Contains([]elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()}, key.Curve) {
			err = leftOut(UnknownType, "its curve is %s", key.Params().Name)
		}
	case ed25519.PublicKey:
	default:
		err = leftOut(UnknownType, "the type of its key is unknown")
	}
	if err != nil {
		return err.(*leave).reason, err
	}
	return "", nil
}

func checkRSA(key *rsa.PublicKey) error {
	switch bits := key.N.BitLen(); {
	case bits < minModulus || bits > maxModulus:
		return leftOut(WeakKey, "its RSA modulus has %d bits, not %d to %d", bits, minModulus, maxModulus)
	case key.N.Bit(0) == 0 || key.E < 3 || key.E%2 == 0 || key.E > maxExponent:
		return leftOut(WeakKey, "its RSA modulus is even, or its exponent is 1, even or longer than 31 bits")
	case isROCA(key.N):
		return leftOut(WeakKey, "its RSA modulus comes from a broken generator (ROCA, CVE-2017-15361)")
	}
	return nil
}

// rocaPrimes are the primes of the published ROCA fingerprint. A modulus of the broken
// generator is a power of 65537 modulo each of them; another modulus is with a
// probability below 2^-27.
var rocaPrimes = []int64{11, 13, 17, 19, 37, 53, 61, 71, 73, 79, 97, 103, 107, 109, 127, 151, 157}

func isROCA(n *big.Int) bool {
	for _, p := range rocaPrimes {
		rest := new(big.Int).Mod(n, big.NewInt(p)).Int64()
		power := int64(1)
		for power != rest {
			if power = power * 65537 % p; power == 1 {
				return false // the powers repeat without reaching rest
			}
		}
	}
	return true
}
