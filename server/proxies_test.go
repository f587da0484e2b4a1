package server

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
	"accessbroker.internal/server/inbound"
)

// Behind a trusted proxy, the client's address counts for logs, records and limits. A
// header of anyone else changes nothing.
func TestTrustedProxies(t *testing.T) {
	t.Parallel()
	proxies := inbound.Proxies{Networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}, Header: inbound.Forwarded}
	for _, test := range []struct {
		name    string
		proxies inbound.Proxies
		header  []string
		want    string // in the log; "": unknown
		status  int
	}{
		{"off", inbound.Proxies{}, []string{"Forwarded", "for=192.0.2.1", "X-Forwarded-For", "192.0.2.1"}, "127.0.0.1", 200},
		{"other header", proxies, []string{"X-Forwarded-For", "192.0.2.1", "X-Real-Ip", "192.0.2.1"}, "127.0.0.1", 200},
		{"trusted", proxies, []string{"Forwarded", "for=203.0.113.6, for=192.0.2.1"}, "192.0.2.1", 200},
		{"unknown", proxies, []string{"Forwarded", "for=unknown"}, "", 200},
		{"invalid", proxies, []string{"Forwarded", `for="`}, "", 400},
		{"untrusted", inbound.Proxies{Networks: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, Header: inbound.Forwarded}, []string{"Forwarded", "for=192.0.2.1"}, "127.0.0.1", 200},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t, func(cfg *Config) { cfg.Proxies = test.proxies })
			resp := w.do("GET", "/v1/whoami", "", "", append(test.header, "Authorization", "Bearer "+agent)...)
			log := w.log.String()
			if resp.StatusCode != test.status || strings.Contains(log, "from=") != (test.want != "") || test.want != "" && !strings.Contains(log, "from="+test.want+" ") {
				t.Errorf("got %s and the log %s, want %d and from=%s", resp.Status, log, test.status, test.want)
			}
		})
	}
}

// The client's address is in the request that approvers see.
func TestForwardedAddressIsRecorded(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(cfg *Config) {
		cfg.Proxies = inbound.Proxies{Networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, Header: inbound.XForwardedFor}
	})
	resp := w.do("POST", "/v1/requests", "application/json", `{"entitlement":"guarded","scopes":["read"]}`, "Authorization", "Bearer "+agent, "X-Forwarded-For", "192.0.2.1")
	if resp.StatusCode != http.StatusCreated {
		t.Fatalf("got %s", resp.Status)
	}
	list, err := w.as(agent).Requests(t.Context(), api.RequestFilter{Requester: agent})
	if err != nil || len(list.Requests) != 1 {
		t.Fatalf("got %+v, %v", list, err)
	}
	id, err := broker.ParseRequestID(list.Requests[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	err = w.store.View(t.Context(), func(tx broker.Tx) error {
		r, err := broker.Get[*broker.Request](tx, id)
		if err == nil && r.SourceIP.String() != "192.0.2.1" {
			t.Errorf("got the address %v, want 192.0.2.1", r.SourceIP)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// No header stands for a client certificate, and the certificate of the proxy itself does
// not stand for its clients.
func TestProxiesProveNoIdentity(t *testing.T) {
	t.Parallel()
	w := newQuietWorld(t, func(cfg *Config) {
		cfg.Proxies = inbound.Proxies{Networks: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")}, Header: inbound.Forwarded}
		cfg.Authenticate = func(r *http.Request, _ ...string) (broker.Identity, error) {
			if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
				return broker.Identity{}, broker.ErrUnauthenticated
			}
			r.Header.Set("Authorization", "Bearer "+agent)
			return authenticate(r)
		}
	})
	for _, test := range []struct {
		name, peer string
		cert       bool
		header     []string
		want       int
	}{
		{"certificate of a caller", "192.0.2.2:1", true, nil, 200},
		{"certificate of a caller with a header", "192.0.2.2:1", true, []string{"Forwarded", "for=192.0.2.9"}, 200},
		{"certificate of the proxy", "192.0.2.1:1", true, []string{"Forwarded", "for=192.0.2.9"}, 401},
		{"certificate of the proxy without a header", "192.0.2.1:1", true, nil, 401},
		{"RFC 9440", "192.0.2.1:1", false, []string{"Client-Cert", ":AAAA:", "Client-Cert-Chain", ":AAAA:"}, 401},
		{"Envoy", "192.0.2.1:1", false, []string{"X-Forwarded-Client-Cert", "URI=" + agent}, 401},
		{"nginx", "192.0.2.1:1", false, []string{"X-SSL-Client-Verify", "SUCCESS", "X-SSL-Client-Cert", "AAAA"}, 401},
	} {
		r, answer := httptest.NewRequest(http.MethodGet, "https://broker.acme.test/v1/whoami", nil), httptest.NewRecorder()
		r.RemoteAddr = test.peer
		r.TLS = &tls.ConnectionState{}
		if test.cert {
			r.TLS.PeerCertificates = []*x509.Certificate{{}}
		}
		for i := 0; i < len(test.header); i += 2 {
			r.Header.Set(test.header[i], test.header[i+1])
		}
		if w.Handler(API).ServeHTTP(answer, r); answer.Code != test.want {
			t.Errorf("%s: got %d %s, want %d", test.name, answer.Code, answer.Body, test.want)
		}
	}
}

// A proxy that says by the PROXY protocol that it ends its clients' TLS does not become
// the caller with a certificate of its own.
func TestProxyThatEndsTLSIsNotTheCaller(t *testing.T) {
	t.Parallel()
	w := newQuietWorld(t, func(cfg *Config) {
		cfg.DrainDelay = 0
		cfg.Authenticate = func(r *http.Request, _ ...string) (broker.Identity, error) {
			if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
				return broker.Identity{}, broker.ErrUnauthenticated
			}
			r.Header.Set("Authorization", "Bearer "+agent)
			return authenticate(r)
		}
	})
	certs := httptest.NewUnstartedServer(nil)
	certs.StartTLS()
	defer certs.Close()
	plain, err := inbound.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := inbound.New(plain, inbound.Config{ProxyProtocol: true, Proxies: inbound.Proxies{Networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}}})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- w.Serve(ctx, l, w.Handler(API), &tls.Config{Certificates: certs.TLS.Certificates, ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS13})
	}()
	const header, client = "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00", "\xc0\x00\x02\x01\xc0\x00\x02\x02\x12\x67\x01\xbb"
	for _, test := range []struct {
		name, header string
		want         int
	}{
		{"passes TLS through", header + "\x0c" + client, http.StatusOK},
		{"says that its client has no TLS", header + "\x14" + client + "\x20\x00\x05\x00\x00\x00\x00\x01", http.StatusOK},
		{"ends TLS", header + "\x14" + client + "\x20\x00\x05\x01\x00\x00\x00\x01", http.StatusUnauthorized},
	} {
		conn, err := net.Dial("tcp", plain.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, test.header)
		secure := tls.Client(conn, &tls.Config{Certificates: certs.TLS.Certificates, InsecureSkipVerify: true})
		_, _ = fmt.Fprintf(secure, "GET /v1/whoami HTTP/1.1\r\nHost: broker.acme.test\r\nConnection: close\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(secure), nil)
		if err != nil {
			t.Fatalf("%s: %v", test.name, err)
		}
		body, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != test.want || test.want != http.StatusOK && !strings.Contains(string(body), "that of a reverse proxy") {
			t.Errorf("%s: got %s %s, want %d", test.name, resp.Status, body, test.want)
		}
		_ = secure.Close()
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
