package forward

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"net"
	"testing"
	"time"
)

// SignAnything signs a certificate without looking at the constraints.
func (a *Authority) SignAnything(t *testing.T, name string) *tls.Certificate {
	t.Helper()
	c, err := a.sign(name, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// SignAuthority signs a certificate through an authority below, and returns both.
func (a *Authority) SignAuthority(t *testing.T, name string) (leaf *tls.Certificate, intermediate *x509.Certificate) {
	t.Helper()
	below := &Authority{key: a.leaf, leaf: a.leaf, names: constraints{domains: []string{name}, ips: []*net.IPNet{}}, leaves: map[string]*tls.Certificate{}}
	template := *a.cert
	template.SerialNumber, template.Subject.CommonName, template.MaxPathLenZero, template.MaxPathLen = serial(), "below", false, -1
	der, err := x509.CreateCertificate(rand.Reader, &template, a.cert, a.leaf.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	if below.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return below.SignAnything(t, name), below.cert
}

// Leaves returns the number of certificates that are kept.
func (a *Authority) Leaves() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.leaves) != len(a.order) {
		return -1
	}
	return len(a.leaves)
}
