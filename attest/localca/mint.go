package localca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// X509SVID signs an X.509-SVID for the SPIFFE ID, which must be in the trust
// domain. The hosts, DNS names or addresses, go into the certificate too, for
// clients that know names only.
func (ca *CA) X509SVID(id string, ttl time.Duration, hosts ...string) (tls.Certificate, error) {
	if err := ca.mine(id); err != nil {
		return tls.Certificate{}, err
	}
	now := time.Now()
	template := Leaf(id, now.Add(-backdate), now.Add(ttl))
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	return ca.SignX509(template)
}

// Leaf gives the template of an X.509-SVID (X509-SVID, section 4).
func Leaf(id string, notBefore, notAfter time.Time) *x509.Certificate {
	return &x509.Certificate{
		URIs:                  uris(id),
		NotBefore:             notBefore,
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
}

// SignX509 signs whatever the template says, good or bad, with a fresh key and
// serial number.
func (ca *CA) SignX509(template *x509.Certificate) (tls.Certificate, error) {
	ca.mu.Lock()
	by := ca.x509[len(ca.x509)-1]
	ca.mu.Unlock()
	key, err := newKey()
	if err != nil {
		return tls.Certificate{}, err
	}
	serial, err := newSerial()
	if err != nil {
		return tls.Certificate{}, err
	}
	t := *template
	t.SerialNumber = serial
	der, err := x509.CreateCertificate(rand.Reader, &t, by.cert, key.Public(), by.key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("signing a certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("reading a certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, nil
}

// JWTSVID signs a JWT-SVID for the SPIFFE ID, which must be in the trust
// domain, and the audiences.
func (ca *CA) JWTSVID(id string, ttl time.Duration, audience ...string) (string, error) {
	if err := ca.mine(id); err != nil {
		return "", err
	}
	now := time.Now()
	return ca.SignJWT(map[string]any{"sub": id, "aud": audience, "iat": now.Unix(), "exp": now.Add(ttl).Unix()})
}

// SignJWT signs whatever the claims say, good or bad, with ES256.
func (ca *CA) SignJWT(claims map[string]any) (string, error) {
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", fmt.Errorf("writing claims: %w", err)
	}
	ca.mu.Lock()
	by := ca.jwt[len(ca.jwt)-1]
	ca.mu.Unlock()
	header, err := json.Marshal(map[string]string{"alg": "ES256", "kid": by.kid, "typ": "JWT"})
	if err != nil {
		return "", fmt.Errorf("writing a header: %w", err)
	}
	input := base64.RawURLEncoding.EncodeToString(header) + "." + base64.RawURLEncoding.EncodeToString(payload)
	signature, err := es256(by.key, input)
	if err != nil {
		return "", err
	}
	return input + "." + base64.RawURLEncoding.EncodeToString(signature), nil
}

// SignBytes signs input as ES256 does, for tokens of any shape.
func (ca *CA) SignBytes(input string) (kid string, signature []byte, err error) {
	ca.mu.Lock()
	by := ca.jwt[len(ca.jwt)-1]
	ca.mu.Unlock()
	signature, err = es256(by.key, input)
	return by.kid, signature, err
}

// es256 signs (RFC 7518, section 3.4): r and s, 32 bytes each.
func es256(key *ecdsa.PrivateKey, input string) ([]byte, error) {
	sum := sha256.Sum256([]byte(input))
	r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		return nil, fmt.Errorf("signing a token: %w", err)
	}
	signature := make([]byte, 64)
	r.FillBytes(signature[:32])
	s.FillBytes(signature[32:])
	return signature, nil
}

// JWTAuthority gives the key that verifies what is signed now, and its name.
func (ca *CA) JWTAuthority() (kid string, public crypto.PublicKey) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	by := ca.jwt[len(ca.jwt)-1]
	return by.kid, by.key.Public()
}

// X509Authority gives the certificate of the authority that signs now, for
// clients that want a CA file.
func (ca *CA) X509Authority() *x509.Certificate {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	return ca.x509[len(ca.x509)-1].cert
}

// mine says whether the ID is that of a workload of the trust domain.
func (ca *CA) mine(id string) error {
	parsed, err := spiffeid.FromString(id)
	if err != nil {
		return fmt.Errorf("signing for %q: %w", id, err)
	}
	if parsed.TrustDomain() != ca.domain || parsed.Path() == "" {
		return fmt.Errorf("signing for %q: it is no workload of %s", id, ca.domain)
	}
	return nil
}

// uris takes an ID that may be bad on purpose.
func uris(id string) []*url.URL {
	u, err := url.Parse(id)
	if err != nil {
		u = &url.URL{Opaque: id}
	}
	return []*url.URL{u}
}
