// Package localca is a SPIFFE trust domain in one process. It signs X.509-SVIDs and
// JWT-SVIDs, rotates its authorities, federates with other trust domains, and
// serves the SPIFFE Workload API on a socket.
//
// It is for development and tests. It does not attest workloads: every process that
// can open a socket gets the identities of that socket. Its keys are unencrypted,
// in memory or in a file that only the owner may read.
package localca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"accessbroker.internal/broker"
)

// Lifetimes.
const (
	AuthorityTTL = 10 * 365 * 24 * time.Hour // of X.509 authorities
	SVIDTTL      = time.Hour                 // of X.509-SVIDs from the Workload API
	JWTTTL       = 5 * time.Minute           // of JWT-SVIDs from the Workload API
	backdate     = 30 * time.Second          // of NotBefore, for clocks that are behind
)

// A CA is a trust domain. It is safe for concurrent use.
type CA struct {
	domain spiffeid.TrustDomain

	mu        sync.Mutex
	x509      []x509Authority // all are in the bundle, the last one signs; never empty
	jwt       []jwtAuthority  // likewise
	federated map[spiffeid.TrustDomain]*spiffebundle.Bundle
	hosts     map[string][]string // by SPIFFE ID: see SetHosts
	changed   chan struct{}       // closed by the next change
}

type x509Authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

type jwtAuthority struct {
	kid string
	key *ecdsa.PrivateKey
}

// New returns a trust domain with new authorities.
func New(trustDomain string) (*CA, error) {
	ca, err := newCA(trustDomain)
	if err != nil {
		return nil, err
	}
	if err := ca.RotateX509(); err != nil {
		return nil, err
	}
	return ca, ca.RotateJWT()
}

// newCA returns a trust domain without authorities.
func newCA(trustDomain string) (*CA, error) {
	td, err := parseTrustDomain(trustDomain)
	if err != nil {
		return nil, fmt.Errorf("creating a trust domain: %w", err)
	}
	return &CA{domain: td, federated: map[spiffeid.TrustDomain]*spiffebundle.Bundle{}, hosts: map[string][]string{}, changed: make(chan struct{})}, nil
}

// parseTrustDomain refuses a SPIFFE ID, unlike go-spiffe.
func parseTrustDomain(name string) (spiffeid.TrustDomain, error) {
	if err := broker.CheckTrustDomain(name); err != nil {
		return spiffeid.TrustDomain{}, err
	}
	return spiffeid.TrustDomainFromString(name)
}

// TrustDomain returns the name, such as "acme.test".
func (ca *CA) TrustDomain() string { return ca.domain.Name() }

// RotateX509 adds an X.509 authority, which signs from now on. The older ones stay
// in the bundle until RetireX509.
func (ca *CA) RotateX509() error {
	now := time.Now()
	a, err := newX509Authority(ca.domain, now.Add(-backdate), now.Add(AuthorityTTL))
	if err != nil {
		return err
	}
	ca.change(func() { ca.x509 = append(ca.x509, a) })
	return nil
}

// RetireX509 removes every X.509 authority except the newest from the bundle.
func (ca *CA) RetireX509() { ca.change(func() { ca.x509 = ca.x509[len(ca.x509)-1:] }) }

// RotateJWT adds a JWT authority, which signs from now on. The older ones stay in
// the bundle until RetireJWT.
func (ca *CA) RotateJWT() error {
	key, err := newKey()
	if err != nil {
		return err
	}
	kid, err := keyID(key.Public())
	if err != nil {
		return err
	}
	ca.change(func() { ca.jwt = append(ca.jwt, jwtAuthority{kid, key}) })
	return nil
}

// RetireJWT removes every JWT authority except the newest from the bundle.
func (ca *CA) RetireJWT() { ca.change(func() { ca.jwt = ca.jwt[len(ca.jwt)-1:] }) }

// Federate delivers the bundle of another trust domain, in the SPIFFE bundle format,
// to this domain's workloads. A nil bundle ends the federation.
func (ca *CA) Federate(trustDomain string, bundle []byte) error {
	td, err := parseTrustDomain(trustDomain)
	if err != nil {
		return fmt.Errorf("federating: %w", err)
	}
	if bundle == nil {
		ca.change(func() { delete(ca.federated, td) })
		return nil
	}
	b, err := spiffebundle.Parse(td, bundle)
	if err != nil {
		return fmt.Errorf("federating with %s: %w", trustDomain, err)
	}
	ca.change(func() { ca.federated[td] = b })
	return nil
}

// Bundle returns the bundle of the trust domain in the SPIFFE bundle format.
func (ca *CA) Bundle() ([]byte, error) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	b, err := ca.bundle().Marshal()
	if err != nil {
		return nil, fmt.Errorf("encoding the bundle of %s: %w", ca.domain, err)
	}
	return b, nil
}

// X509Bundle returns the X.509 authorities of the trust domain in PEM, for clients that
// do not know SPIFFE.
func (ca *CA) X509Bundle() []byte {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	var out []byte
	for _, a := range ca.x509 {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})...)
	}
	return out
}

// SetHosts adds host names and IP addresses to the X.509-SVIDs of id that the Workload
// API serves, for clients that verify host names instead of SPIFFE IDs. A SPIRE server
// does the same for a registration entry with DNS names.
func (ca *CA) SetHosts(id string, hosts ...string) {
	ca.change(func() { ca.hosts[id] = hosts })
}

// bundle returns the current bundle. The caller holds mu.
func (ca *CA) bundle() *spiffebundle.Bundle {
	b := spiffebundle.New(ca.domain)
	for _, a := range ca.x509 {
		b.AddX509Authority(a.cert)
	}
	for _, a := range ca.jwt {
		_ = b.AddJWTAuthority(a.kid, a.key.Public()) // fails only for an empty kid
	}
	return b
}

// change calls f with mu held and wakes all streams.
func (ca *CA) change(f func()) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	f()
	close(ca.changed)
	ca.changed = make(chan struct{})
}

// next returns a channel that the next change closes.
func (ca *CA) next() <-chan struct{} {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	return ca.changed
}

func newX509Authority(td spiffeid.TrustDomain, notBefore, notAfter time.Time) (x509Authority, error) {
	key, err := newKey()
	if err != nil {
		return x509Authority{}, err
	}
	serial, err := newSerial()
	if err != nil {
		return x509Authority{}, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{"SPIFFE"}, CommonName: td.Name()},
		URIs:                  uris(td.ID().String()),
		NotBefore:             notBefore,
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return x509Authority{}, fmt.Errorf("signing the authority of %s: %w", td, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return x509Authority{}, fmt.Errorf("parsing the authority of %s: %w", td, err)
	}
	return x509Authority{cert, key}, nil
}

func newKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generating a key: %w", err)
	}
	return key, nil
}

func newSerial() (*big.Int, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("generating a serial number: %w", err)
	}
	return serial, nil
}

// keyID returns a kid for a public key: the start of its hash.
func keyID(public crypto.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return "", fmt.Errorf("encoding a public key: %w", err)
	}
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:8]), nil
}
