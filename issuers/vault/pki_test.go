package vault

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/broker"
)

// certificate answers as the PKI engine does. The role "leased" generates leases,
// and sign copies names from the CSR, which is the default of roles.
func (f *fakeVault) certificate(path, token string, body object) (int, any) {
	ttl, _ := time.ParseDuration(body["ttl"].(string))
	until := time.Now().Add(f.ahead + ttl)
	template := &x509.Certificate{SerialNumber: big.NewInt(0x0a1bff), NotBefore: until.Add(-time.Hour), NotAfter: until}
	if uri, ok := body["uri_sans"].(string); ok {
		u, err := url.Parse(uri)
		if err != nil {
			return 400, err.Error()
		}
		template.URIs = []*url.URL{u}
	}
	if csr, ok := body["csr"].(string); ok {
		block, _ := pem.Decode([]byte(csr))
		r, err := x509.ParseCertificateRequest(block.Bytes)
		if err != nil {
			return 400, err.Error()
		}
		template.Subject = pkix.Name{CommonName: r.Subject.CommonName, SerialNumber: r.Subject.SerialNumber}
		template.ExtraExtensions = r.Extensions
	}
	role := path[strings.LastIndex(path, "/")+1:]
	if more := f.roles[role]; more != nil {
		more(template)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.t.Error(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		f.t.Error(err)
	}
	answer := object{"data": object{
		"certificate": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), "private_key": "PRIVATE KEY",
		"serial_number": "0a:1b:ff", "issuing_ca": "CA", "ca_chain": []string{"CA 1", "CA 2"},
	}}
	if role == "leased" {
		lease := fmt.Sprintf("%s/%d", path, f.n)
		f.leases[lease] = token
		answer["lease_id"], answer["lease_duration"] = lease, int(ttl/time.Second)
	}
	return 200, answer
}

var webCertificate = Spec{Path: "pki/issue/web", Data: map[string]string{"ttl": "${ttl}", "uri_sans": "${holder}"}}

// Vault signs the expiry of a certificate by its own clock. A certificate does not
// outlive its lease because that clock is ahead.
func TestCertificateAllowsForVaultsClock(t *testing.T) {
	for _, ahead := range []time.Duration{time.Minute, -time.Minute} {
		f, v := startFake(t)
		f.ahead = ahead
		o := newOrder(t, webCertificate)
		_, c, err := issue(v, o)
		if err != nil || c.Expires.After(o.Lease.Expires) {
			t.Errorf("clock %s ahead: expires at %s, want %s at most; %v", ahead, c.Expires, o.Lease.Expires, err)
		}
	}
	f, v := startFake(t)
	f.ahead = time.Hour
	_, _, err := issue(v, newOrder(t, webCertificate))
	if !errors.Is(err, broker.ErrIssuerRefused) || !strings.Contains(err.Error(), "clock is ahead by more than the 9m") {
		t.Errorf("clock 1h ahead: %v", err)
	}
	_, v = startFake(t)
	_, _, err = issue(v, newOrder(t, Spec{Path: "pki/issue/web", Data: map[string]string{"ttl": "24h", "uri_sans": "${holder}"}}))
	if !errors.Is(err, broker.ErrIssuerRefused) || !strings.Contains(err.Error(), "${ttl}") {
		t.Errorf("a certificate that outlives its lease: %v", err)
	}
}

// A lease that is almost over is not blamed on Vault's clock.
func TestLeaseAlmostOver(t *testing.T) {
	_, v := startFake(t)
	o := newOrder(t, webCertificate)
	prepared, err := v.Prepare(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	o.Lease.Handle, o.Key = prepared.Handle, prepared.Key
	o.Lease.Expires = time.Now()
	_, _, err = v.Issue(t.Context(), o)
	if !errors.Is(err, broker.ErrIssuerRefused) || !strings.Contains(err.Error(), "the lease ends within a second") {
		t.Errorf("got %v", err)
	}
}

// A certificate without a lease that ends early is put on the revocation list, if
// Vault allows that. It still works for verifiers that don't read the list.
func TestRevokeListsCertificate(t *testing.T) {
	for name, test := range map[string]struct {
		path   string
		status int   // that Vault answers to the first attempt
		over   bool  // the certificate has expired
		first  error // that the first Revoke returns
		listed int
		warned int
	}{
		"listed":             {"pki/issue/web", 0, false, broker.ErrNotRevocable, 2, 0},
		"named issuer":       {"pki/issuer/2026/issue/web", 0, false, broker.ErrNotRevocable, 2, 0},
		"sealed":             {"pki/issue/web", 503, false, broker.ErrIssuerUnavailable, 1, 0},
		"too many calls":     {"pki/issue/web", 429, false, broker.ErrIssuerUnavailable, 1, 0},
		"not allowed":        {"pki/issue/web", 403, false, broker.ErrNotRevocable, 1, 1},
		"no_store":           {"pki/issue/web", 400, false, broker.ErrNotRevocable, 1, 1},
		"no such path":       {"pki/issue/web", 404, false, broker.ErrNotRevocable, 1, 1},
		"expired":            {"pki/issue/web", 0, true, broker.ErrNotRevocable, 0, 0},
		"expired, sealed":    {"pki/issue/web", 503, true, broker.ErrNotRevocable, 0, 0},
		"with a lease":       {"pki/issue/leased", 0, false, nil, 0, 0},
		"not a signing path": {"pki/odd/web", 0, false, broker.ErrIssuerRefused, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			f, v := startFake(t)
			var log bytes.Buffer
			v.cfg.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}))
			spec := webCertificate
			spec.Path = test.path
			l, c, err := issue(v, newOrder(t, spec))
			if errors.Is(test.first, broker.ErrIssuerRefused) {
				// Approvers were shown that it ends at once, and it does not.
				if !errors.Is(err, test.first) {
					t.Errorf("it is given out: %v, %v", c.Revocation, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if test.over {
				l.Expires = time.Now().Add(-time.Second)
			}
			once := test.status != 0
			f.with(func(w http.ResponseWriter, r *http.Request) bool {
				if !once || r.URL.Path != "/v1/pki/revoke" {
					return false
				}
				if test.status < 500 && test.status != 429 {
					once = false // the others are sent again by the client itself
				}
				refuse(w, test.status, "permission denied for hvs.SECRET")
				return true
			})
			if err := v.Revoke(t.Context(), l); !errors.Is(err, test.first) {
				t.Errorf("Revoke: got %v, want %v", err, test.first)
			}
			f.with(nil)
			second := test.first
			if errors.Is(second, broker.ErrIssuerUnavailable) {
				second = broker.ErrNotRevocable
			}
			if err := v.Revoke(t.Context(), l); !errors.Is(err, second) {
				t.Errorf("second Revoke: got %v, want %v", err, second)
			}
			if got := f.listed["0a:1b:ff"]; got != test.listed || len(f.leases) != 0 || len(f.tokens) != 1 {
				t.Errorf("listed %d times, want %d; %d leases and %d tokens are left", got, test.listed, len(f.leases), len(f.tokens))
			}
			if warned := strings.Count(log.String(), "not listed as revoked"); warned != test.warned || strings.Contains(log.String(), "SECRET") {
				t.Errorf("%d warnings, want %d: %s", warned, test.warned, &log)
			}
		})
	}
}

func TestRefusedListingIsLoggedOncePerMount(t *testing.T) {
	f, v := startFake(t)
	var log bytes.Buffer
	v.cfg.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}))
	for range 3 {
		l, _, err := issue(v, newOrder(t, webCertificate))
		if err != nil {
			t.Fatal(err)
		}
		f.with(func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path == "/v1/pki/revoke" {
				refuse(w, 403, "permission denied")
				return true
			}
			return false
		})
		if err := v.Revoke(t.Context(), l); !errors.Is(err, broker.ErrNotRevocable) {
			t.Error(err)
		}
	}
	if n := strings.Count(log.String(), "\n"); n != 1 {
		t.Errorf("%d log lines, want 1: %s", n, &log)
	}
}

// A role with generate_lease issues certificates that Vault itself revokes.
func TestRevokeCertificateWithLease(t *testing.T) {
	f, v := startFake(t)
	spec := webCertificate
	spec.Path = "pki/issue/leased"
	l, c, err := issue(v, newOrder(t, spec))
	if err != nil || c.Type != "certificate" || c.Revocation != broker.RevokedImmediate || len(f.leases) != 1 {
		t.Fatalf("type %s, revocation %s, %d leases: %v", c.Type, c.Revocation, len(f.leases), err)
	}
	if err := v.Revoke(t.Context(), l); err != nil || len(f.leases) != 0 {
		t.Errorf("%d leases are left: %v", len(f.leases), err)
	}
}

// A certificate with a name that was not requested is refused: by default, Vault
// copies names from the CSR, which the requester writes.
func TestCertificateNames(t *testing.T) {
	name := func(tag int, content []byte) asn1.RawValue {
		return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tag, IsCompound: tag == 0 || tag == 4, Bytes: content}
	}
	upn := mustDER(t, asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 20, 2, 3})
	upn = append(upn, mustDER(t, asn1.RawValue{Class: asn1.ClassContextSpecific, IsCompound: true, Bytes: mustDER(t, asn1.RawValue{Tag: asn1.TagUTF8String, Bytes: []byte("root@acme.test")})})...)
	const asUPN = "1.3.6.1.4.1.311.20.2.3;UTF8:root@acme.test"
	for title, test := range map[string]struct {
		csr  x509.CertificateRequest
		role func(*x509.Certificate)
		sent map[string]string
		want string // in the error; empty: the certificate is issued
	}{
		"nothing else":               {},
		"requested names":            {csr: x509.CertificateRequest{DNSNames: []string{"a.acme.test", "b.acme.test"}, EmailAddresses: []string{"a@acme.test"}, IPAddresses: []net.IP{net.IPv4(10, 0, 0, 1)}}, sent: map[string]string{"common_name": "a.acme.test", "alt_names": "b.acme.test, a@acme.test", "ip_sans": "10.0.0.1"}},
		"a common name":              {csr: x509.CertificateRequest{Subject: pkix.Name{CommonName: "admin.acme.test"}}, want: "admin.acme.test"},
		"a DNS name":                 {csr: x509.CertificateRequest{DNSNames: []string{"admin.acme.test"}}, want: "admin.acme.test"},
		"an empty DNS name":          {csr: x509.CertificateRequest{ExtraExtensions: san(t, name(2, nil))}, want: "not requested"},
		"an address":                 {csr: x509.CertificateRequest{IPAddresses: []net.IP{net.IPv4(10, 0, 0, 1)}}, want: "10.0.0.1"},
		"an e-mail address":          {csr: x509.CertificateRequest{EmailAddresses: []string{"root@acme.test"}}, want: "root@acme.test"},
		"another URI":                {csr: x509.CertificateRequest{URIs: []*url.URL{{Scheme: "spiffe", Host: "acme.test", Path: "/admin"}}}, want: "spiffe://acme.test/admin"},
		"a serial number":            {csr: x509.CertificateRequest{Subject: pkix.Name{SerialNumber: "device-1"}}, want: "serial_number_source"},
		"a serial number, requested": {csr: x509.CertificateRequest{Subject: pkix.Name{SerialNumber: "device-1"}}, sent: map[string]string{"serial_number": "device-1"}},
		"a name of another field":    {csr: x509.CertificateRequest{Subject: pkix.Name{CommonName: "root"}}, sent: map[string]string{"serial_number": "root"}, want: `"root"`},
		"a UPN":                      {csr: x509.CertificateRequest{ExtraExtensions: san(t, name(0, upn))}, want: asUPN},
		"a UPN, requested":           {csr: x509.CertificateRequest{ExtraExtensions: san(t, name(0, upn))}, sent: map[string]string{"other_sans": asUPN}},
		"another UPN":                {csr: x509.CertificateRequest{ExtraExtensions: san(t, name(0, upn))}, sent: map[string]string{"other_sans": "1.3.6.1.4.1.311.20.2.3;UTF8:ana@acme.test"}, want: asUPN},
		"another name, not a text":   {csr: x509.CertificateRequest{ExtraExtensions: san(t, name(0, mustDER(t, asn1.ObjectIdentifier{1, 2})))}, want: "otherName 1.2"},
		"a directory name":           {csr: x509.CertificateRequest{ExtraExtensions: san(t, name(4, mustDER(t, pkix.RDNSequence{})))}, want: "subjectAltName [4]"},
		"a registered ID":            {csr: x509.CertificateRequest{ExtraExtensions: san(t, name(8, []byte{42}))}, want: "subjectAltName [8]"},
		"an organization, by role":   {role: func(c *x509.Certificate) { c.Subject.Organization = []string{"Acme"} }},
		"a user ID, by role": {role: func(c *x509.Certificate) {
			c.Subject.ExtraNames = []pkix.AttributeTypeAndValue{{Type: oidUserID, Value: "root"}}
		}, want: `"root"`},
		"an authority": {role: func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }, want: "could issue certificates"},
	} {
		t.Run(title, func(t *testing.T) {
			f, v := startFake(t)
			f.roles = map[string]func(*x509.Certificate){"web": test.role}
			key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			der, err := x509.CreateCertificateRequest(rand.Reader, &test.csr, key)
			if err != nil {
				t.Fatal(err)
			}
			spec := Spec{Path: "pki/sign/web", Data: map[string]string{"ttl": "${ttl}", "csr": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))}}
			for field, value := range test.sent {
				spec.Data[field] = value
			}
			l, _, err := issue(v, newOrder(t, spec))
			if test.want == "" && err != nil || test.want != "" && (!errors.Is(err, broker.ErrIssuerRefused) || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("got %v, want %q", err, test.want)
			}
			// A refused certificate is revoked, too.
			if err := v.Revoke(t.Context(), l); !errors.Is(err, broker.ErrNotRevocable) || f.listed["0a:1b:ff"] != 1 {
				t.Errorf("Revoke: %v, listed %v", err, f.listed)
			}
		})
	}
}

func mustDER(t *testing.T, value any) []byte {
	t.Helper()
	der, err := asn1.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func san(t *testing.T, names ...asn1.RawValue) []pkix.Extension {
	t.Helper()
	return []pkix.Extension{{Id: oidSubjectAltName, Value: mustDER(t, names)}}
}
