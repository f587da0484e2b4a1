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

	"accessbroker.internal/broker"
)

// X509SVID returns an X.509-SVID for a SPIFFE ID of the trust domain. hosts are DNS
// names or IP addresses to add to the certificate, for clients that verify host
// names instead of SPIFFE IDs.
func (ca *CA) X509SVID(id string, ttl time.Duration, hosts ...string) (tls.Certificate, error) {
	if err := ca.checkID(id); err != nil {
		return tls.Certificate{}, err
	}
	now := time.Now()
	template := LeafTemplate(id, now.Add(-backdate), now.Add(ttl))
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	return ca.SignX509(template)
}

// LeafTemplate returns the template of an X.509-SVID (X509-SVID, section 4).
func LeafTemplate(id string, notBefore, notAfter time.Time) *x509.Certificate {
	return &x509.Certificate{
		URIs:                  uris(id),
		NotBefore:             notBefore,
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
}

// SignX509 signs a template with a new key and serial number. It does not check the
// template, so that tests can create certificates that are not valid.
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
		return tls.Certificate{}, fmt.Errorf("parsing a certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, nil
}

// JWTSVID returns a JWT-SVID for a SPIFFE ID of the trust domain and the audiences.
func (ca *CA) JWTSVID(id string, ttl time.Duration, audience ...string) (string, error) {
	if err := ca.checkID(id); err != nil {
		return "", err
	}
	now := time.Now()
	return ca.SignJWT(map[string]any{"sub": id, "aud": audience, "iat": now.Unix(), "exp": now.Add(ttl).Unix()})
}

// SignJWT signs claims with ES256. It does not check them, so that tests can create
// tokens that are not valid.
func (ca *CA) SignJWT(claims map[string]any) (string, error) {
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", fmt.Errorf("encoding claims: %w", err)
	}
	ca.mu.Lock()
	by := ca.jwt[len(ca.jwt)-1]
	ca.mu.Unlock()
	header, err := json.Marshal(map[string]string{"alg": "ES256", "kid": by.kid, "typ": "JWT"})
	if err != nil {
		return "", fmt.Errorf("encoding a header: %w", err)
	}
	input := base64.RawURLEncoding.EncodeToString(header) + "." + base64.RawURLEncoding.EncodeToString(payload)
	signature, err := es256(by.key, input)
	if err != nil {
		return "", err
	}
	return input + "." + base64.RawURLEncoding.EncodeToString(signature), nil
}

// SignBytes returns an ES256 signature of input, for tokens of any form, and the kid
// of its key.
func (ca *CA) SignBytes(input string) (kid string, signature []byte, err error) {
	ca.mu.Lock()
	by := ca.jwt[len(ca.jwt)-1]
	ca.mu.Unlock()
	signature, err = es256(by.key, input)
	return by.kid, signature, err
}

// es256 returns an ES256 signature (RFC 7518, section 3.4): r and s with 32 bytes
// each.
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

// JWTAuthority returns the kid and the public key of the signing JWT authority.
func (ca *CA) JWTAuthority() (kid string, public crypto.PublicKey) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	by := ca.jwt[len(ca.jwt)-1]
	return by.kid, by.key.Public()
}

// X509Authority returns the certificate of the signing X.509 authority, for clients
// that need a CA file.
func (ca *CA) X509Authority() *x509.Certificate {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	return ca.x509[len(ca.x509)-1].cert
}

// checkID returns an error unless id is the SPIFFE ID of a workload of the trust
// domain.
func (ca *CA) checkID(id string) error {
	domain, _, err := broker.ParseWorkloadID(id)
	if err != nil {
		return fmt.Errorf("signing an SVID: %w", err)
	}
	if domain != ca.domain.Name() {
		return fmt.Errorf("signing for %q: the ID is not a workload of %s", id, ca.domain)
	}
	return nil
}

// uris returns id as the URIs of a certificate. Tests pass IDs that are not valid.
func uris(id string) []*url.URL {
	u, err := url.Parse(id)
	if err != nil {
		u = &url.URL{Opaque: id}
	}
	return []*url.URL{u}
}
