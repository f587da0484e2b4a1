package attest

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/attest/localca"
	"accessbroker.internal/broker"
)

// An answer is the response of the test server.
type answer struct {
	ID, Method, Code, Detail string
	Expires                  time.Time
	Also                     int // other proofs
}

// serve serves Authenticate over TLS. The request's body is the body token.
func (w *world) serve(clientCerts string) (url string) {
	w.t.Helper()
	cert, key := w.files("spiffe://acme.test/broker", "127.0.0.1")
	config, err := w.verifier.ServerTLS(ServerTLS{Cert: cert, Key: key, ClientCerts: clientCerts})
	check(w.t, err)
	handler := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			w.t.Errorf("reading the body: %v", err)
		}
		who, err := w.verifier.Authenticate(r, string(body))
		a := answer{ID: who.ID, Method: string(who.Proof.Method), Expires: who.Proof.Expires, Also: len(who.Also)}
		if err != nil {
			a.Code = broker.Code(err)
			var refusal *broker.Refusal
			if errors.As(err, &refusal) {
				a.Detail = refusal.Detail
			}
		}
		_ = json.NewEncoder(rw).Encode(a)
	})
	server := &http.Server{
		Handler: handler, TLSConfig: config, ConnContext: w.verifier.ConnContext,
		ErrorLog: log.New(io.Discard, "", 0), ReadHeaderTimeout: time.Minute,
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(w.t, err)
	done := make(chan struct{})
	go func() { defer close(done); _ = server.ServeTLS(l, "", "") }() // ends when closed
	w.t.Cleanup(func() { _ = server.Close(); <-done })
	return "https://" + l.Addr().String()
}

// client returns a client with a certificate, if there is one.
func (w *world) client(certs ...tls.Certificate) *http.Client {
	config, err := w.source.ClientTLS(ClientTLS{NoCert: true})
	check(w.t, err)
	if len(certs) > 0 {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certs[0], nil }
	}
	transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}
	w.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func call(t testing.TB, c *http.Client, url, bearer, body string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(body))
	check(t, err)
	if bearer != "" {
		req.Header.Set("Authorization", "Bearer "+bearer)
	}
	resp, err := c.Do(req)
	check(t, err)
	defer resp.Body.Close()
	var a answer
	check(t, json.NewDecoder(resp.Body).Decode(&a))
	return a
}

func (w *world) svid(id string, ttl time.Duration) tls.Certificate {
	w.t.Helper()
	cert, err := w.ca.X509SVID(id, ttl)
	check(w.t, err)
	return cert
}

func TestX509OverTLS(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	server := w.serve("optional")
	cert := w.svid(triage, time.Hour)
	client := w.client(cert)
	for range 2 {
		a := call(t, client, server, "", "")
		if a.ID != triage || a.Method != string(broker.MethodX509SVID) || !a.Expires.Equal(cert.Leaf.NotAfter) {
			t.Errorf("got response %+v", a)
		}
	}
	who, err := w.verifier.X509([]*x509.Certificate{cert.Leaf}, time.Now())
	check(t, err)
	if who.Proof.SHA256 != sha256.Sum256(cert.Leaf.Raw) || len(who.Paths) != 2 {
		t.Errorf("got identity %+v", who)
	}
}

func TestX509Forms(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	server := w.serve("optional")
	now := time.Now()
	for _, test := range []struct {
		name   string
		change func(*x509.Certificate)
		want   Cause
	}{
		{"good", func(*x509.Certificate) {}, ""},
		{"no extended key usage", func(c *x509.Certificate) { c.ExtKeyUsage = nil }, ""},
		{"with names", func(c *x509.Certificate) { c.DNSNames = []string{"triage.acme.test"} }, ""},
		{"no URI SAN", func(c *x509.Certificate) { c.URIs = nil }, CauseSPIFFEID},
		{"a DNS name", func(c *x509.Certificate) { c.URIs, c.DNSNames = nil, []string{"acme.test"} }, CauseSPIFFEID},
		{"two URI SANs", func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) }, CauseSPIFFEID},
		{"an https URL", uri("https://acme.test/agent/triage"), CauseSPIFFEID},
		{"no path", uri("spiffe://acme.test"), CauseSPIFFEID},
		{"an empty path segment", uri("spiffe://acme.test/"), CauseSPIFFEID},
		{"a query", uri("spiffe://acme.test/agent?x"), CauseSPIFFEID},
		{"an empty query", func(c *x509.Certificate) { c.URIs[0].ForceQuery = true }, CauseSPIFFEID},
		{"an escape", func(c *x509.Certificate) { c.URIs[0].Path, c.URIs[0].RawPath = "/agent", "/%61gent" }, CauseSPIFFEID},
		{"a user", uri("spiffe://ana@acme.test/agent"), CauseSPIFFEID},
		{"other trust domain", uri("spiffe://other.test/agent/triage"), CauseTrustDomain},
		{"a CA", func(c *x509.Certificate) { c.IsCA = true; c.KeyUsage |= x509.KeyUsageCertSign }, CauseUsage},
		{"key usage keyCertSign", func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }, CauseUsage},
		{"key usage cRLSign", func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCRLSign }, CauseUsage},
		{"key usage keyEncipherment", func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }, CauseUsage},
		{"extended key usage serverAuth", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }, CauseUsage},
		{"expired", func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Second) }, CauseExpired},
		{"not yet valid", func(c *x509.Certificate) { c.NotBefore = now.Add(time.Hour) }, CauseNotYetValid},
	} {
		t.Run(test.name, func(t *testing.T) {
			template := localca.LeafTemplate(triage, now.Add(-time.Minute), now.Add(2*time.Hour))
			test.change(template)
			cert, err := w.ca.SignX509(template)
			check(t, err)
			_, err = w.verifier.X509([]*x509.Certificate{cert.Leaf}, time.Now())
			if got := causeOf(t, err); got != test.want {
				t.Errorf("got cause %q, want %q: %v", got, test.want, err)
			}
			w.failures()
			a := call(t, w.client(cert), server, "", "")
			if test.want == "" && a.ID == "" || test.want != "" && (a.ID != "" || a.Code != "unauthenticated" || a.Detail == "") {
				t.Errorf("got response %+v", a)
			}
			if n := w.failures(); test.want != "" && !slices.Equal(n, []string{"x509-svid " + string(test.want)}) {
				t.Errorf("got failures %v", n)
			}
		})
	}
}

func uri(s string) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.URIs = []*url.URL{must(url.Parse(s))} }
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestX509RejectsAnotherAuthority(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	other := newCA(t, "acme.test")
	cert := must(other.X509SVID(triage, time.Hour))
	_, err := w.verifier.X509([]*x509.Certificate{cert.Leaf}, time.Now())
	if got := causeOf(t, err); got != CauseUntrusted {
		t.Errorf("got cause %q, want %q", got, CauseUntrusted)
	}
	_, err = w.verifier.X509(nil, time.Now())
	if got := causeOf(t, err); got != CauseMalformed {
		t.Errorf("without a certificate: got cause %q, want %q", got, CauseMalformed)
	}
}

// With ClientCerts "required" the handshake rejects certificates.
func TestClientCertsRequired(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	server := w.serve("required")
	if a := call(t, w.client(w.svid(triage, time.Hour)), server, "", ""); a.ID != triage {
		t.Errorf("got response %+v", a)
	}
	stranger := must(newCA(t, "acme.test").X509SVID(triage, time.Hour))
	for name, client := range map[string]*http.Client{"none": w.client(), "a stranger's": w.client(stranger)} {
		if resp, err := client.Get(server); err == nil {
			resp.Body.Close()
			t.Errorf("%s: got a response", name)
		}
	}
	if n := w.failures(); !slices.Equal(n, []string{"x509-svid untrusted"}) {
		t.Errorf("got failures %v", n)
	}
}

func TestClientCertsOff(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	server := w.serve("off")
	a := call(t, w.client(w.svid(triage, time.Hour)), server, "", "")
	if a.Code != "unauthenticated" {
		t.Errorf("got response %+v", a)
	}
}

// The server accepts only TLS 1.3 and resumes no session.
func TestServerTLSProtocol(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	server := w.serve("optional")
	config := must(w.source.ClientTLS(ClientTLS{NoCert: true}))
	config.ClientSessionCache = tls.NewLRUClientSessionCache(8)
	config.NextProtos = []string{"h2"}
	for range 2 {
		c, err := tls.Dial("tcp", strings.TrimPrefix(server, "https://"), config)
		check(t, err)
		_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		_, _ = c.Read(make([]byte, 1)) // a ticket would arrive here
		if s := c.ConnectionState(); s.DidResume || s.Version != tls.VersionTLS13 || s.NegotiatedProtocol != "h2" {
			t.Errorf("got connection %+v", s)
		}
		check(t, c.Close())
	}
	config.MinVersion, config.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if c, err := tls.Dial("tcp", strings.TrimPrefix(server, "https://"), config); err == nil {
		c.Close()
		t.Error("got a connection with TLS 1.2")
	}
}

// The chain is verified once per generation, the times on every request.
func TestConnectionCache(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := w.verifier.ConnContext(context.Background(), net.Conn(nil))
	cert := w.svid(triage, time.Hour)
	chain := []*x509.Certificate{cert.Leaf}
	now := time.Now()
	for _, test := range []struct {
		at   time.Time
		want Cause
	}{{now, ""}, {now, ""}, {cert.Leaf.NotAfter.Add(-time.Nanosecond), ""}, {cert.Leaf.NotAfter, CauseExpired}, {cert.Leaf.NotBefore.Add(-1), CauseNotYetValid}} {
		_, err := w.verifier.verifyConn(ctx, chain, test.at)
		if got := causeOf(t, err); got != test.want {
			t.Errorf("at %s: got %q, want %q", test.at, got, test.want)
		}
	}
	held := ctx.Value(connKey{}).(*connCache).cert.Load()
	if held == nil || held.generation != w.source.Generation() {
		t.Errorf("got cached certificate %+v", held)
	}
}

// files writes a new certificate and its key to files.
func (w *world) files(id string, hosts ...string) (cert, key string) {
	w.t.Helper()
	dir := w.t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	w.writeCert(cert, key, id, hosts...)
	return cert, key
}

func (w *world) writeCert(cert, key, id string, hosts ...string) {
	w.t.Helper()
	svid, err := w.ca.X509SVID(id, time.Hour, hosts...)
	check(w.t, err)
	der, err := x509.MarshalPKCS8PrivateKey(svid.PrivateKey)
	check(w.t, err)
	check(w.t, os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: svid.Certificate[0]}), 0o600))
	check(w.t, os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
}

// issueBelow returns a chain of a leaf and an intermediate CA that ends at
// intermediateEnd.
func (w *world) issueBelow(t *testing.T, leafEnd, intermediateEnd time.Time) []*x509.Certificate {
	t.Helper()
	start := time.Now().Add(-time.Hour)
	ca := localca.LeafTemplate("spiffe://acme.test", start, intermediateEnd)
	ca.IsCA, ca.KeyUsage, ca.ExtKeyUsage = true, x509.KeyUsageCertSign, nil
	intermediate, err := w.ca.SignX509(ca)
	check(t, err)
	template := localca.LeafTemplate(triage, start, leafEnd)
	template.SerialNumber = big.NewInt(1)
	key := w.svid(triage, time.Hour).PrivateKey.(*ecdsa.PrivateKey)
	der, err := x509.CreateCertificate(rand.Reader, template, intermediate.Leaf, key.Public(), intermediate.PrivateKey)
	check(t, err)
	leaf, err := x509.ParseCertificate(der)
	check(t, err)
	return []*x509.Certificate{leaf, intermediate.Leaf}
}

// A proof expires with the first certificate of its chain.
func TestX509ChainExpiry(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	now := time.Now().Truncate(time.Second)
	for _, test := range []struct {
		name               string
		leaf, intermediate time.Duration
		expires            time.Duration
		want               Cause
	}{
		{"leaf first", time.Hour, 2 * time.Hour, time.Hour, ""},
		{"intermediate first", 2 * time.Hour, time.Hour, time.Hour, ""},
		{"intermediate expired", time.Hour, -time.Minute, 0, CauseExpired},
	} {
		chain := w.issueBelow(t, now.Add(test.leaf), now.Add(test.intermediate))
		who, err := w.verifier.X509(chain, now)
		if got := causeOf(t, err); got != test.want || test.want == "" && !who.Proof.Expires.Equal(now.Add(test.expires)) {
			t.Errorf("%s: got cause %q, expiry %s; want %q, %s", test.name, got, who.Proof.Expires, test.want, now.Add(test.expires))
		}
		if err != nil && !strings.Contains(err.Error(), "a certificate above the X.509-SVID") {
			t.Errorf("%s: got error %v", test.name, err)
		}
		if _, err := w.verifier.X509(chain[:1], now); causeOf(t, err) != CauseUntrusted {
			t.Errorf("%s: without the intermediate: got %v", test.name, err)
		}
	}
}

func TestX509NamesTheURI(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	template := localca.LeafTemplate("https://acme.test/x", time.Now().Add(-time.Minute), time.Now().Add(time.Hour))
	cert, err := w.ca.SignX509(template)
	check(t, err)
	if _, err := w.verifier.X509([]*x509.Certificate{cert.Leaf}, time.Now()); err == nil || !strings.Contains(err.Error(), "has a URI SAN that is not a SPIFFE ID") {
		t.Errorf("got %v", err)
	}
}

// DER has no constructed strings, and crypto/x509 does not take them for URIs.
func TestConstructedURIIsRefused(t *testing.T) {
	t.Parallel()
	for name, value := range map[string]asn1.RawValue{
		"constructed": {Class: asn1.ClassContextSpecific, Tag: 6, IsCompound: true, Bytes: []byte(triage)},
		"not ASCII":   {Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(triage + "/\xc3\xa4")},
		"application": {Class: asn1.ClassApplication, Tag: 6, Bytes: []byte(triage)},
	} {
		names := must(asn1.Marshal([]asn1.RawValue{value}))
		leaf := &x509.Certificate{Extensions: []pkix.Extension{{Id: oidSubjectAltName, Value: names}}}
		if id, err := leafID(leaf); err == nil {
			t.Errorf("%s: got %s", name, id)
		}
	}
}
