package localca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// backdate is for verifiers whose clock is a little behind.
const backdate = 10 * time.Second

// X509SVID makes an X.509-SVID for the path, good for the ttl from now. The
// names (DNS names or IP addresses) let clients that know nothing of SPIFFE
// connect, too.
func (ca *CA) X509SVID(path string, ttl time.Duration, names ...string) (*x509svid.SVID, error) {
	id, err := ca.ID(path)
	if err != nil {
		return nil, fmt.Errorf("making an X.509-SVID: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	now := time.Now()
	template := &x509.Certificate{
		NotBefore: now.Add(-backdate), NotAfter: now.Add(ttl), URIs: []*url.URL{id.URL()}, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	root, signer := ca.X509Authority()
	cert, err := sign(template, root, key.Public(), signer)
	if err != nil {
		return nil, err
	}
	return &x509svid.SVID{ID: id, Certificates: []*x509.Certificate{cert}, PrivateKey: key}, nil
}

// X509SVIDPEM is X509SVID as PEM: the chain, and the key (PKCS #8).
func (ca *CA) X509SVIDPEM(path string, ttl time.Duration, names ...string) (cert, key []byte, err error) {
	svid, err := ca.X509SVID(path, ttl, names...)
	if err != nil {
		return nil, nil, err
	}
	return svid.Marshal()
}

// JWTSVID makes a JWT-SVID for the path and audience, good for the ttl from
// now.
func (ca *CA) JWTSVID(path string, audience []string, ttl time.Duration) (string, error) {
	id, err := ca.ID(path)
	if err != nil {
		return "", fmt.Errorf("making a JWT-SVID: %w", err)
	}
	if len(audience) == 0 {
		return "", errors.New("a JWT-SVID needs an audience (JWT-SVID, section 3.2)")
	}
	now := time.Now()
	jti := make([]byte, 8)
	_, _ = rand.Read(jti) // never fails
	kid, key := ca.JWTAuthority()
	return Sign(key, map[string]any{"alg": "ES256", "typ": "JWT", "kid": kid}, map[string]any{
		"sub": id.String(), "aud": audience, "iat": now.Unix(), "exp": now.Add(ttl).Unix(),
		"jti": base64.RawURLEncoding.EncodeToString(jti),
	})
}

// Sign makes a compact JWS (RFC 7515, section 7.1) by ES256 of any header and
// claims, good or bad.
func Sign(key *ecdsa.PrivateKey, header, claims any) (string, error) {
	h, err := json.Marshal(header)
	if err != nil {
		return "", fmt.Errorf("encoding the header: %w", err)
	}
	c, err := json.Marshal(claims)
	if err != nil {
		return "", fmt.Errorf("encoding the claims: %w", err)
	}
	input := base64.RawURLEncoding.EncodeToString(h) + "." + base64.RawURLEncoding.EncodeToString(c)
	sum := sha256.Sum256([]byte(input))
	r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		return "", fmt.Errorf("signing: %w", err)
	}
	var signature [64]byte // RFC 7518, section 3.4
	r.FillBytes(signature[:32])
	s.FillBytes(signature[32:])
	return input + "." + base64.RawURLEncoding.EncodeToString(signature[:]), nil
}
