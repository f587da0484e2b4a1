// Package localca is a SPIFFE trust domain in one process: X.509 and JWT
// authorities, the SVIDs they sign, and a real Workload API on a socket. It
// serves `broker dev` and tests. Its keys are plain files or memory: it is not
// for production, where SPIRE does this.
package localca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"maps"
	"math/big"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// A CA holds the authorities of one trust domain. The newest of each kind
// signs; the older ones stay in the bundle until Retire. It is safe for
// concurrent use.
type CA struct {
	domain spiffeid.TrustDomain

	mu        sync.Mutex
	x509      []x509Authority // oldest first; never empty
	jwt       []jwtAuthority
	federated map[spiffeid.TrustDomain]*spiffebundle.Bundle
	sequence  uint64
	changed   chan struct{} // closed at the next change
}

type x509Authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

type jwtAuthority struct {
	id  string
	key *ecdsa.PrivateKey
}

// authorityLife is long: a developer's folder is opened again after months.
const authorityLife = 5 * 365 * 24 * time.Hour

// New makes a trust domain ("acme.test") with fresh authorities.
func New(trustDomain string) (*CA, error) {
	ca, err := empty(trustDomain)
	if err != nil {
		return nil, err
	}
	return ca, ca.Rotate()
}

func empty(trustDomain string) (*CA, error) {
	domain, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil {
		return nil, fmt.Errorf("reading the trust domain: %w", err)
	}
	return &CA{domain: domain, federated: map[spiffeid.TrustDomain]*spiffebundle.Bundle{}, changed: make(chan struct{})}, nil
}

// TrustDomain gives the name of the trust domain.
func (ca *CA) TrustDomain() string { return ca.domain.Name() }

// ID gives the SPIFFE ID of a path ("/agent/triage"). A SPIFFE ID of this
// trust domain stays as it is.
func (ca *CA) ID(path string) (spiffeid.ID, error) {
	if !strings.HasPrefix(path, "spiffe://") {
		return spiffeid.FromPath(ca.domain, path)
	}
	id, err := spiffeid.FromString(path)
	if err == nil && !id.MemberOf(ca.domain) {
		err = fmt.Errorf("%s is not in the trust domain %s", id, ca.domain)
	}
	return id, err
}

// Rotate makes new authorities, which sign from now on. What the older ones
// signed stays good until Retire. Workloads on the socket get new SVIDs.
func (ca *CA) Rotate() error {
	root, err := newX509Authority(ca.domain, time.Now())
	if err != nil {
		return err
	}
	signer, err := newJWTAuthority()
	if err != nil {
		return err
	}
	ca.change(func() {
		ca.x509 = append(ca.x509, root)
		ca.jwt = append(ca.jwt, signer)
	})
	return nil
}

// Retire drops all authorities but the newest, and with them everything that
// they signed.
func (ca *CA) Retire() {
	ca.change(func() {
		ca.x509 = ca.x509[len(ca.x509)-1:]
		ca.jwt = ca.jwt[len(ca.jwt)-1:]
	})
}

// Federate hands the bundle of another trust domain (SPIFFE bundle JSON) to
// the workloads of this one; an empty bundle ends that.
func (ca *CA) Federate(trustDomain string, bundle []byte) error {
	domain, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil {
		return fmt.Errorf("reading the trust domain: %w", err)
	}
	if len(bundle) == 0 {
		ca.change(func() { delete(ca.federated, domain) })
		return nil
	}
	parsed, err := spiffebundle.Parse(domain, bundle)
	if err != nil {
		return fmt.Errorf("reading the bundle of %s: %w", domain, err)
	}
	ca.change(func() { ca.federated[domain] = parsed })
	return nil
}

// change changes the trust domain and tells the streams.
func (ca *CA) change(f func()) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	f()
	ca.sequence++
	close(ca.changed)
	ca.changed = make(chan struct{})
}

// Bundle gives the trust domain's bundle in the JSON of SPIFFE Trust Domain
// and Bundle, section 4.
func (ca *CA) Bundle() []byte {
	own, _, _ := ca.bundles()
	out, err := own.Marshal()
	if err != nil {
		panic(fmt.Sprintf("marshalling public keys that we made: %v", err)) // no input leads here
	}
	return out
}

// bundles gives the bundle, those of federated domains, and what tells of the
// next change.
func (ca *CA) bundles() (own *spiffebundle.Bundle, federated map[spiffeid.TrustDomain]*spiffebundle.Bundle, changed <-chan struct{}) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	own = spiffebundle.New(ca.domain)
	own.SetSequenceNumber(ca.sequence)
	own.SetRefreshHint(time.Minute)
	for _, a := range ca.x509 {
		own.AddX509Authority(a.cert)
	}
	for _, a := range ca.jwt {
		_ = own.AddJWTAuthority(a.id, a.key.Public()) // fails only without an id
	}
	return own, maps.Clone(ca.federated), ca.changed
}

// X509Authority gives the authority that signs X.509-SVIDs now, for those who
// want a certificate that X509SVID would not make.
func (ca *CA) X509Authority() (*x509.Certificate, crypto.Signer) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	newest := ca.x509[len(ca.x509)-1]
	return newest.cert, newest.key
}

// JWTAuthority gives the key that signs JWT-SVIDs now, and its id, for those
// who want a token that JWTSVID would not make.
func (ca *CA) JWTAuthority() (id string, key *ecdsa.PrivateKey) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	newest := ca.jwt[len(ca.jwt)-1]
	return newest.id, newest.key
}

func newX509Authority(domain spiffeid.TrustDomain, now time.Time) (x509Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return x509Authority{}, fmt.Errorf("making an authority's key: %w", err)
	}
	template := &x509.Certificate{
		NotBefore: now.Add(-backdate), NotAfter: now.Add(authorityLife),
		URIs: []*url.URL{domain.ID().URL()}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	cert, err := sign(template, template, key.Public(), key)
	return x509Authority{cert, key}, err
}

func newJWTAuthority() (jwtAuthority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return jwtAuthority{}, fmt.Errorf("making an authority's key: %w", err)
	}
	return jwtAuthorityOf(key)
}

// jwtAuthorityOf names a key by its hash, so that a loaded one has the name
// that it was saved with.
func jwtAuthorityOf(key *ecdsa.PrivateKey) (jwtAuthority, error) {
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return jwtAuthority{}, fmt.Errorf("naming an authority: %w", err)
	}
	sum := sha256.Sum256(der)
	return jwtAuthority{base64.RawURLEncoding.EncodeToString(sum[:16]), key}, nil
}

func sign(template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	var serial [16]byte
	_, _ = rand.Read(serial[:])       // never fails
	serial[0] = serial[0]&0x7f | 0x40 // positive (RFC 5280, section 4.1.2.2)
	template.SerialNumber = new(big.Int).SetBytes(serial[:])
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, fmt.Errorf("signing a certificate: %w", err)
	}
	return x509.ParseCertificate(der)
}
