package forward_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/egress/forward"
)

func mustAuthority(t *testing.T, hosts ...string) *forward.Authority {
	t.Helper()
	a, err := forward.NewAuthority(hosts, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func parsed(t *testing.T, a *forward.Authority) *x509.Certificate {
	t.Helper()
	block, rest := pem.Decode(a.PEM())
	if block == nil || block.Type != "CERTIFICATE" || len(rest) > 0 {
		t.Fatalf("got %q, want one certificate", a.PEM())
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// verify verifies a certificate as a client that trusts the authority.
func verify(t *testing.T, a *forward.Authority, c *tls.Certificate, name string, intermediates ...*x509.Certificate) error {
	t.Helper()
	options := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), DNSName: name}
	options.Roots.AddCert(parsed(t, a))
	for _, c := range intermediates {
		options.Intermediates.AddCert(c)
	}
	_, err := c.Leaf.Verify(options)
	return err
}

// Whoever takes the authority's file out of the child trusts it for the hosts of the
// rules, for a short time, and has no key.
func TestAuthorityIsConstrained(t *testing.T) {
	a := mustAuthority(t, "api.acme.test", "*.wild.test:8443", "10.1.2.3:8080", "[fd00::1]:443")
	cert := parsed(t, a)
	if !cert.IsCA || !cert.MaxPathLenZero || cert.MaxPathLen != 0 || !cert.PermittedDNSDomainsCritical || cert.KeyUsage != x509.KeyUsageCertSign {
		t.Errorf("got CA %t, path length %d, critical %t", cert.IsCA, cert.MaxPathLen, cert.PermittedDNSDomainsCritical)
	}
	if left := time.Until(cert.NotAfter); left > time.Hour {
		t.Errorf("the certificate is valid for %s", left)
	}
	if got := fmt.Sprint(cert.PermittedDNSDomains, cert.PermittedIPRanges); got != "[api.acme.test wild.test] [10.1.2.3/32 fd00::1/128]" {
		t.Errorf("trusted for %s", got)
	}
	for _, name := range []string{"api.acme.test", "x.wild.test", "10.1.2.3", "fd00::1"} {
		c, err := a.Certificate(name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if strings.Contains(name, ":") || name[0] == '1' {
			name = "[" + name + "]"
		}
		if err := verify(t, a, c, name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"acme.test", "x.api.acme.test", "wild.test", "evil.test", "10.1.2.4", "127.0.0.1", "", "*", "api.acme.test.evil.test"} {
		if _, err := a.Certificate(name); err == nil {
			t.Errorf("the authority signs for %q", name)
		}
	}
}

// Constraints hold for a client that verifies, not only for the code that signs: a
// certificate outside of them, signed with the authority's own key, is refused.
func TestConstraintsHoldForClients(t *testing.T) {
	for _, hosts := range [][]string{{"api.acme.test"}, {"10.1.2.3"}, {"api.acme.test", "10.1.2.3"}} {
		a := mustAuthority(t, hosts...)
		for _, name := range []string{"evil.test", "acme.test", "127.0.0.1", "::1", "8.8.8.8"} {
			leaf := a.SignAnything(t, name)
			if net.ParseIP(name) != nil {
				name = "[" + name + "]"
			}
			if err := verify(t, a, leaf, name); err == nil {
				t.Errorf("with %v: a client trusts %s", hosts, name)
			}
		}
		leaf, below := a.SignAuthority(t, "api.acme.test")
		if err := verify(t, a, leaf, "api.acme.test", below); err == nil || !strings.Contains(err.Error(), "too many intermediates") {
			t.Errorf("with %v: got %v for an authority below the authority", hosts, err)
		}
	}
}

// A server with another key can't use the authority's certificate.
func TestAuthorityFileHasNoKey(t *testing.T) {
	a, other := mustAuthority(t, "api.acme.test"), mustAuthority(t, "api.acme.test")
	stolen, err := other.Certificate("api.acme.test") // of the same name, by another key
	if err != nil {
		t.Fatal(err)
	}
	if err := verify(t, a, stolen, "api.acme.test"); err == nil {
		t.Error("a client trusts a certificate of another authority of the same name")
	}
	if strings.Contains(string(a.PEM()), "KEY") {
		t.Errorf("the file has a key: %s", a.PEM())
	}
}

func TestReissue(t *testing.T) {
	a := mustAuthority(t, "api.acme.test")
	first := parsed(t, a)
	if err := a.Reissue(2 * time.Hour); err != nil {
		t.Fatal(err)
	}
	if second := parsed(t, a); !second.NotAfter.After(first.NotAfter) || second.SerialNumber.Cmp(first.SerialNumber) == 0 {
		t.Error("the certificate is the same")
	}
	c, err := a.Certificate("api.acme.test")
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(first) // a client that has read the file before
	if _, err := c.Leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: "api.acme.test"}); err != nil {
		t.Error(err)
	}
	if _, err := forward.NewAuthority([]string{"a.test"}, 30*24*time.Hour); err == nil {
		t.Error("an authority for a month")
	}
	if _, err := forward.NewAuthority(nil, time.Hour); err == nil {
		t.Error("an authority that is trusted for everything")
	}
}

func TestLeavesAreBounded(t *testing.T) {
	a := mustAuthority(t, "*.wild.test")
	first, err := a.Certificate("h0.wild.test")
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := a.Certificate("h0.wild.test"); again != first {
		t.Error("the certificate is not kept")
	}
	for i := range 1000 {
		if _, err := a.Certificate(fmt.Sprintf("h%d.wild.test", i)); err != nil {
			t.Fatal(err)
		}
	}
	if n := a.Leaves(); n != 512 {
		t.Errorf("%d certificates are kept, want 512", n)
	}
}
