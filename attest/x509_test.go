package attest

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log"
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

// An answer is what the test server says of a caller.
type answer struct {
	ID, Method, Code, Detail string
	Expires                  time.Time
}

// serve serves Authenticate over TLS. The body of a call is its token.
func (w *world) serve(clientCerts string) (url string) {
	w.t.Helper()
	cert, key := w.files("spiffe://acme.test/broker", "127.0.0.1")
	config, err := w.verifier.ServerTLS(ServerTLS{Cert: cert, Key: key, ClientCerts: clientCerts})
	check(w.t, err)
	handler := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		who, err := w.verifier.Authenticate(r, string(body))
		a := answer{ID: who.ID, Method: string(who.Proof.Method), Expires: who.Proof.Expires}
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

// client connects with the certificate, if there is one.
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
	w := newWorld(t)
	server := w.serve("optional")
	cert := w.svid(triage, time.Hour)
	client := w.client(cert)
	for range 2 {
		a := call(t, client, server, "", "")
		if a.ID != triage || a.Method != string(broker.MethodX509SVID) || !a.Expires.Equal(cert.Leaf.NotAfter) {
			t.Errorf("answered %+v", a)
		}
	}
	who, err := w.verifier.X509([]*x509.Certificate{cert.Leaf}, time.Now())
	check(t, err)
	if who.Proof.SHA256 != sha256.Sum256(cert.Leaf.Raw) || len(who.Paths) != 2 {
		t.Errorf("proved %+v", who)
	}
}

func TestX509Forms(t *testing.T) {
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
		{"a name for a URI", func(c *x509.Certificate) { c.URIs, c.DNSNames = nil, []string{"acme.test"} }, CauseSPIFFEID},
		{"two URI SANs", func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) }, CauseSPIFFEID},
		{"a web address", uri("https://acme.test/agent/triage"), CauseSPIFFEID},
		{"no path", uri("spiffe://acme.test"), CauseSPIFFEID},
		{"a slash for a path", uri("spiffe://acme.test/"), CauseSPIFFEID},
		{"a query", uri("spiffe://acme.test/agent?x"), CauseSPIFFEID},
		{"an empty query", func(c *x509.Certificate) { c.URIs[0].ForceQuery = true }, CauseSPIFFEID},
		{"an escape", func(c *x509.Certificate) { c.URIs[0].Path, c.URIs[0].RawPath = "/agent", "/%61gent" }, CauseSPIFFEID},
		{"a user", uri("spiffe://ana@acme.test/agent"), CauseSPIFFEID},
		{"other trust domain", uri("spiffe://other.test/agent/triage"), CauseTrustDomain},
		{"a CA", func(c *x509.Certificate) { c.IsCA = true; c.KeyUsage |= x509.KeyUsageCertSign }, CauseUsage},
		{"signs certificates", func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }, CauseUsage},
		{"signs revocation lists", func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCRLSign }, CauseUsage},
		{"for encryption", func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }, CauseUsage},
		{"for servers", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }, CauseUsage},
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
				t.Errorf("refused for %q, not %q: %v", got, test.want, err)
			}
			w.failures()
			a := call(t, w.client(cert), server, "", "")
			if test.want == "" && a.ID == "" || test.want != "" && (a.ID != "" || a.Code != "unauthenticated" || a.Detail == "") {
				t.Errorf("answered %+v", a)
			}
			if n := w.failures(); test.want != "" && !slices.Equal(n, []string{"x509-svid " + string(test.want)}) {
				t.Errorf("counted %v", n)
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

// Somebody else's authority of the same name is nobody's authority here, and
// neither does a chain help that leads there.
func TestX509OfAnotherAuthority(t *testing.T) {
	w := newWorld(t)
	other := newCA(t, "acme.test")
	cert := must(other.X509SVID(triage, time.Hour))
	_, err := w.verifier.X509([]*x509.Certificate{cert.Leaf}, time.Now())
	if got := causeOf(t, err); got != CauseUntrusted {
		t.Errorf("refused for %q", got)
	}
	_, err = w.verifier.X509(nil, time.Now())
	if got := causeOf(t, err); got != CauseMalformed {
		t.Errorf("without certificate: %q", got)
	}
}

// A required certificate is refused in the handshake, before anything is
// served.
func TestRequired(t *testing.T) {
	w := newWorld(t)
	server := w.serve("required")
	if a := call(t, w.client(w.svid(triage, time.Hour)), server, "", ""); a.ID != triage {
		t.Errorf("answered %+v", a)
	}
	stranger := must(newCA(t, "acme.test").X509SVID(triage, time.Hour))
	for name, client := range map[string]*http.Client{"none": w.client(), "a stranger's": w.client(stranger)} {
		if resp, err := client.Get(server); err == nil {
			resp.Body.Close()
			t.Errorf("%s: answered", name)
		}
	}
	if n := w.failures(); !slices.Equal(n, []string{"x509-svid untrusted"}) {
		t.Errorf("counted %v", n)
	}
}

func TestOff(t *testing.T) {
	w := newWorld(t)
	server := w.serve("off")
	a := call(t, w.client(w.svid(triage, time.Hour)), server, "", "")
	if a.Code != "unauthenticated" {
		t.Errorf("answered %+v", a)
	}
}

// Neither an old protocol nor a session from before gets in.
func TestTLSBounds(t *testing.T) {
	w := newWorld(t)
	server := w.serve("optional")
	config := must(w.source.ClientTLS(ClientTLS{NoCert: true}))
	config.ClientSessionCache = tls.NewLRUClientSessionCache(8)
	config.NextProtos = []string{"h2"}
	for range 2 {
		c, err := tls.Dial("tcp", strings.TrimPrefix(server, "https://"), config)
		check(t, err)
		_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		_, _ = c.Read(make([]byte, 1)) // a ticket would come here
		if s := c.ConnectionState(); s.DidResume || s.Version != tls.VersionTLS13 || s.NegotiatedProtocol != "h2" {
			t.Errorf("connected by %+v", s)
		}
		check(t, c.Close())
	}
	config.MinVersion, config.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if c, err := tls.Dial("tcp", strings.TrimPrefix(server, "https://"), config); err == nil {
		c.Close()
		t.Error("connected by TLS 1.2")
	}
}

// The times are looked at for every request of a connection, and the chain
// once a generation.
func TestConn(t *testing.T) {
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
			t.Errorf("at %s: %q, not %q", test.at, got, test.want)
		}
	}
	held := ctx.Value(connKey{}).(*connCache).cert.Load()
	if held == nil || held.generation != w.source.Generation() {
		t.Errorf("held %+v", held)
	}
}

// files writes a certificate and its key.
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
