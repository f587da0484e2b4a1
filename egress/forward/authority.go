package forward

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"slices"
	"strings"
	"sync"
	"time"
)

// An Authority signs certificates for the hosts of a proxy's rules. Its key exists in
// memory only. Its own certificate names these hosts in critical name constraints and
// permits no further authorities (RFC 5280, sections 4.2.1.9 and 4.2.1.10), so that
// whoever trusts it trusts it for nothing else.
type Authority struct {
	key   *ecdsa.PrivateKey // signs
	leaf  *ecdsa.PrivateKey // of all certificates that it signs
	names constraints

	mu     sync.Mutex
	cert   *x509.Certificate // guarded by mu, as all below
	leaves map[string]*tls.Certificate
	order  []string // of leaves, oldest first
}

const (
	// MaxAuthorityLifetime bounds the lifetime of an authority's certificate.
	MaxAuthorityLifetime = 7 * 24 * time.Hour

	leafLifetime = 6 * time.Hour
	leafReserve  = time.Hour // a certificate that ends sooner is replaced
	maxLeaves    = 512
	backdated    = 5 * time.Minute // for clients whose clock is behind, such as virtual machines
)

// constraints are the names for which an authority is trusted.
type constraints struct {
	domains []string // with a leading dot: only names below it
	ips     []*net.IPNet
}

// NewAuthority returns an authority for hosts: names, names that start with "*.", and IP
// addresses, each with or without a port. It needs one host at least.
func NewAuthority(hosts []string, lifetime time.Duration) (*Authority, error) {
	names, err := constrain(hosts)
	if err != nil {
		return nil, err
	}
	if lifetime <= 0 || lifetime > MaxAuthorityLifetime {
		return nil, fmt.Errorf("the authority's lifetime must be at most %s", MaxAuthorityLifetime)
	}
	a := &Authority{names: names, leaves: map[string]*tls.Certificate{}}
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	if a.leaf, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	return a, a.Reissue(lifetime)
}

func constrain(hosts []string) (c constraints, err error) {
	for _, host := range hosts {
		name := withoutPort(host)
		if ip := net.ParseIP(strings.Trim(name, "[]")); ip != nil {
			if four := ip.To4(); four != nil {
				ip = four
			}
			c.ips = append(c.ips, &net.IPNet{IP: ip, Mask: net.CIDRMask(8*len(ip), 8*len(ip))})
			continue
		}
		name = strings.TrimPrefix(name, "*") // "*.acme.test": names below it
		if name == "" || name == "." {
			return c, fmt.Errorf("%q is not a host", host)
		}
		c.domains = append(c.domains, name)
	}
	slices.Sort(c.domains)
	c.domains = slices.Compact(c.domains)
	if len(c.domains)+len(c.ips) == 0 {
		return c, errors.New("an authority needs a host for which it is trusted")
	}
	return c, nil
}

// permitted returns the domains of the certificate. A DNS constraint covers the name
// itself and all below it, and has no leading dot.
func (c constraints) permitted() (domains []string) {
	for _, d := range c.domains {
		domains = append(domains, strings.TrimPrefix(d, "."))
	}
	slices.Sort(domains)
	return slices.Compact(domains)
}

func withoutPort(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		return name
	}
	return host
}

// Reissue replaces the authority's certificate by one of the same name and key that is
// valid from now on. Certificates that the former one verifies are also verified by it.
func (a *Authority) Reissue(lifetime time.Duration) error {
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial(),
		// The name is in the subject of the certificates, where a person looks for the
		// reason of a surprising one.
		Subject:               pkix.Name{CommonName: "Access Broker proxy", Organization: []string{"local to one process"}},
		NotBefore:             now.Add(-backdated),
		NotAfter:              now.Add(min(lifetime, MaxAuthorityLifetime)),
		KeyUsage:              x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
		PermittedDNSDomainsCritical: true,
		PermittedDNSDomains:         a.names.permitted(),
		PermittedIPRanges:           a.names.ips,
	}
	// A kind of name without any constraint is unconstrained.
	if len(a.names.domains) == 0 {
		template.ExcludedDNSDomains = []string{""}
	}
	if len(a.names.ips) == 0 {
		template.ExcludedIPRanges = []*net.IPNet{
			{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}, {IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)},
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err != nil {
		return fmt.Errorf("making the authority's certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.cert = cert
	clear(a.leaves)
	a.order = nil
	return nil
}

// PEM returns the authority's certificate. It has no key.
func (a *Authority) PEM() []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// Expires returns when the authority's certificate expires.
func (a *Authority) Expires() time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.cert.NotAfter
}

// Covers reports whether the authority is trusted for a host.
func (a *Authority) Covers(host string) bool {
	if ip := net.ParseIP(host); ip != nil {
		return slices.ContainsFunc(a.names.ips, func(n *net.IPNet) bool { return n.Contains(ip) })
	}
	return slices.ContainsFunc(a.names.domains, func(domain string) bool {
		if strings.HasPrefix(domain, ".") {
			return strings.HasSuffix(host, domain) && host != domain
		}
		return host == domain
	})
}

// Certificate returns a certificate for a host.
func (a *Authority) Certificate(host string) (*tls.Certificate, error) {
	if !a.Covers(host) {
		return nil, fmt.Errorf("the authority is not for %s", host)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	if known := a.leaves[host]; known != nil && (known.Leaf.NotAfter.Sub(now) > leafReserve || !known.Leaf.NotAfter.Before(a.cert.NotAfter)) {
		return known, nil
	}
	made, err := a.sign(host, now)
	if err != nil {
		return nil, fmt.Errorf("making a certificate for %s: %w", host, err)
	}
	if a.leaves[host] == nil {
		if len(a.order) >= maxLeaves {
			delete(a.leaves, a.order[0])
			a.order = a.order[1:]
		}
		a.order = append(a.order, host)
	}
	a.leaves[host] = made
	return made, nil
}

// sign makes a certificate. The lock is held.
func (a *Authority) sign(host string, now time.Time) (*tls.Certificate, error) {
	end := now.Add(leafLifetime)
	if a.cert.NotAfter.Before(end) {
		end = a.cert.NotAfter
	}
	template := &x509.Certificate{
		SerialNumber: serial(),
		NotBefore:    now.Add(-backdated), NotAfter: end,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	if ip := net.ParseIP(host); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{host}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, a.leaf.Public(), a.key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der, bytes.Clone(a.cert.Raw)}, PrivateKey: a.leaf, Leaf: leaf}, nil
}

// serial returns a random serial number of 127 bits, which is positive and has at most
// 20 octets (RFC 5280, section 4.1.2.2).
func serial() *big.Int {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		panic(err) // crypto/rand never fails
	}
	return n
}
