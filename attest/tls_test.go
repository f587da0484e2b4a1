package attest

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"
)

// serveTLS serves h, or 204 if h is nil.
func serveTLS(t testing.TB, config *tls.Config, h http.Handler) (url string) {
	t.Helper()
	if h == nil {
		h = http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(http.StatusNoContent) })
	}
	server := &http.Server{Handler: h, TLSConfig: config, ErrorLog: log.New(io.Discard, "", 0), ReadHeaderTimeout: time.Minute}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	done := make(chan struct{})
	go func() { defer close(done); _ = server.ServeTLS(l, "", "") }() // ends when closed
	t.Cleanup(func() { _ = server.Close(); <-done })
	return "https://" + l.Addr().String()
}

func get(t testing.TB, config *tls.Config, url string) (*http.Response, error) {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	check(t, err)
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err == nil {
		resp.Body.Close()
	}
	return resp, err
}

// anyError matches every error. The client may see a failed handshake as an alert or
// as a closed connection, depending on timing.
const anyError = "any"

// Both sides use SVIDs of a Workload API.
func TestClientTLSWithSVID(t *testing.T) {
	t.Parallel()
	w, _, _ := agentWorld(t)
	url := serveTLS(t, must(w.verifier.ServerTLS(ServerTLS{SVID: true, ClientCerts: "required"})), nil)
	cert, key := w.files(triage)
	for _, test := range []struct {
		name string
		cfg  ClientTLS
		want string // part of the error; empty: none
	}{
		{"own SVID", ClientTLS{}, ""},
		{"files", ClientTLS{Cert: cert, Key: key}, ""},
		{"the exact broker", ClientTLS{BrokerID: brokerID}, ""},
		{"the trust domain", ClientTLS{TrustDomain: "acme.test"}, ""},
		{"another broker", ClientTLS{BrokerID: "spiffe://acme.test/other"}, "the server is " + brokerID + ", not the broker spiffe://acme.test/other"},
		{"another trust domain", ClientTLS{TrustDomain: "other.test"}, "unexpected trust domain"},
		{"a web server", ClientTLS{WebPKI: true, Roots: x509.NewCertPool()}, "certificate"},
		{"without certificate", ClientTLS{NoCert: true}, anyError},
	} {
		t.Run(test.name, func(t *testing.T) {
			config := must(w.source.ClientTLS(test.cfg))
			if config.MinVersion != tls.VersionTLS13 {
				t.Errorf("got minimum version %#x, want TLS 1.3", config.MinVersion)
			}
			_, err := get(t, config, url)
			if (err == nil) != (test.want == "") || err != nil && test.want != anyError && !strings.Contains(err.Error(), test.want) {
				t.Errorf("got error %v, want %q", err, test.want)
			}
		})
	}
}

// The broker has a web server's certificate, the client an SVID.
func TestClientTLSWithWebPKI(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cert, key := w.files(brokerID, "127.0.0.1")
	url := serveTLS(t, must(w.verifier.ServerTLS(ServerTLS{Cert: cert, Key: key, ClientCerts: "required"})), nil)
	roots := x509.NewCertPool()
	root := w.ca.X509Authority()
	roots.AddCert(root)
	own, ownKey := w.files(triage)
	none := new(Source)
	for _, s := range []*Source{w.source, none} {
		if _, err := get(t, must(s.ClientTLS(ClientTLS{WebPKI: true, Roots: roots, Cert: own, Key: ownKey})), url); err != nil {
			t.Error(err)
		}
	}
	if _, err := get(t, must(none.ClientTLS(ClientTLS{TrustDomain: "acme.test", Cert: own, Key: ownKey})), url); err == nil {
		t.Error("a source without bundles trusts the broker")
	}
}

func TestClientTLSRejectsConfig(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for want, cfg := range map[string]ClientTLS{
		"this process has no SVID":        {},
		"is not a SPIFFE ID":              {BrokerID: "broker"},
		"a path is missing":               {BrokerID: "spiffe://acme.test"},
		"is not a trust domain: use only": {TrustDomain: "ACME test"},
		"no such file":                    {Cert: "x", Key: "y"},
	} {
		if _, err := w.source.ClientTLS(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got error %v, want %q", err, want)
		}
	}
	if _, _, err := w.source.FetchJWTSVID(t.Context(), audienceURL); err == nil {
		t.Error("FetchJWTSVID returns no error without a Workload API")
	}
}

func TestFetchJWTSVID(t *testing.T) {
	t.Parallel()
	w, _, _ := agentWorld(t)
	token, expires, err := w.source.FetchJWTSVID(t.Context(), audienceURL)
	check(t, err)
	who, err := w.verifier.JWT(token, time.Now())
	if err != nil || who.ID != brokerID || !who.Proof.Expires.Equal(expires) {
		t.Errorf("got identity %+v, %v", who, err)
	}
}

func TestServerTLSRejectsConfig(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cert, key := w.files(brokerID)
	for want, cfg := range map[string]ServerTLS{
		"choose off": {Cert: cert, Key: key, ClientCerts: "maybe"},
		"both the SVID and certificate files are set": {SVID: true, Cert: cert, Key: key, ClientCerts: "off"},
		"this process has no SVID":                    {SVID: true, ClientCerts: "off"},
		"serving TLS needs a certificate and a key":   {Cert: cert, ClientCerts: "off"},
		"no such file":         {Cert: cert, Key: key + "x", ClientCerts: "off"},
		"reading the server's": {Cert: key, Key: key, ClientCerts: "off"},
	} {
		if _, err := w.verifier.ServerTLS(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got error %v, want %q", err, want)
		}
	}
}

// The previous certificate stays in use while a file is not valid.
func TestServerCertificateReload(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cert, key := w.files(brokerID)
	config := must(w.verifier.ServerTLS(ServerTLS{Cert: cert, Key: key, ClientCerts: "off"}))
	first := must(config.GetCertificate(nil))
	check(t, os.WriteFile(cert, []byte("-----BEGIN"), 0o600))
	w.source.poll()
	if must(config.GetCertificate(nil)) != first || w.source.Degraded() == nil {
		t.Error("the broken file is in use, or Degraded does not report it")
	}
	w.writeCert(cert, key, brokerID)
	w.source.poll()
	w.source.poll() // an unchanged file keeps its state
	if must(config.GetCertificate(nil)) == first || w.source.Degraded() != nil {
		t.Errorf("the new file is not in use: %v", w.source.Degraded())
	}
}

func TestCloseExpiringConnections(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cert, key := w.files(brokerID)
	done := http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(http.StatusNoContent) })
	server := must(w.verifier.ServerTLS(ServerTLS{Cert: cert, Key: key, ClientCerts: "optional"}))
	server.NextProtos = []string{"http/1.1"} // over HTTP/2 the client sees GOAWAY instead of the header
	url := serveTLS(t, server, CloseExpiringConnections(done))
	for _, test := range []struct {
		ttl  time.Duration
		want bool
	}{{time.Hour, false}, {2 * time.Minute, false}, {5 * time.Second, true}} {
		svid := w.svid(triage, test.ttl)
		config := must(w.source.ClientTLS(ClientTLS{NoCert: true}))
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &svid, nil }
		resp, err := get(t, config, url)
		check(t, err)
		if resp.Close != test.want || resp.StatusCode != http.StatusNoContent {
			t.Errorf("TTL %s: got close %t, want %t", test.ttl, resp.Close, test.want)
		}
	}
}

// Plain HTTP has no certificate to expire.
func TestCloseExpiringConnectionsWithoutTLS(t *testing.T) {
	t.Parallel()
	rec := httptest.NewRecorder()
	done := http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(http.StatusNoContent) })
	CloseExpiringConnections(done).ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/", nil))
	if rec.Code != http.StatusNoContent || rec.Header().Get("Connection") != "" {
		t.Errorf("got %d, headers %v", rec.Code, rec.Header())
	}
}

func TestExpiresSoon(t *testing.T) {
	t.Parallel()
	start := time.Now()
	for _, test := range []struct{ lifetime, before time.Duration }{{time.Hour, 5 * time.Minute}, {6 * time.Minute, 2 * time.Minute}} {
		leaf := &x509.Certificate{NotBefore: start, NotAfter: start.Add(test.lifetime)}
		at := leaf.NotAfter.Add(-test.before)
		if expiresSoon(leaf, at) || !expiresSoon(leaf, at.Add(time.Second)) {
			t.Errorf("lifetime %s: does not start %s before the end", test.lifetime, test.before)
		}
	}
}
