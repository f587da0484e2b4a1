package brokertest

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	benchClients = 64
	benchTokens  = 1024
)

// BenchmarkToken measures what a token allocates on its whole way through the broker:
// TLS, HTTP, attestation, policy, signature, transaction, log. 64 clients with raw
// connections, which allocate next to nothing, repeat requests for tokens. make bench
// compares the speed with that of the least that a server can do.
//
//	go test ./internal/brokertest -run '^$' -bench Token -benchtime 20000x -memprofile mem.out
func BenchmarkToken(b *testing.B) {
	for _, proof := range []string{"remembered", "fresh", "certificate"} {
		b.Run(proof, func(b *testing.B) {
			k := newBroker(b, slog.New(slog.NewJSONHandler(io.Discard, nil)))
			n := benchTokens
			if proof == "fresh" {
				n = b.N + benchClients
			}
			asks := k.asks(b, n, proof == "certificate")
			var before, after runtime.MemStats
			clients := k.connect(b, proof == "certificate")
			run(b, clients, asks[:benchClients], benchClients) // allocates what connections keep
			runtime.ReadMemStats(&before)
			b.ResetTimer()
			run(b, clients, asks[n-min(n, b.N):], b.N)
			b.StopTimer()
			runtime.ReadMemStats(&after)
			b.ReportMetric(float64(after.TotalAlloc-before.TotalAlloc)/float64(b.N), "B/token")
			b.ReportMetric(float64(after.Mallocs-before.Mallocs)/float64(b.N), "allocs/token")
		})
	}
}

// asks returns n requests for a token, each by another workload.
func (b *Broker) asks(t testing.TB, n int, certificate bool) (list [][]byte) {
	t.Helper()
	return b.asksFor(t, n, certificate, "tickets-api", "tickets:read")
}

// asksFor is asks for an entitlement.
func (b *Broker) asksFor(t testing.TB, n int, certificate bool, entitlement, scope string) (list [][]byte) {
	t.Helper()
	for i := range n {
		form := url.Values{"audience": {entitlement}, "scope": {scope}}
		if certificate {
			form.Set("grant_type", "client_credentials")
		} else {
			form.Set("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange")
			form.Set("subject_token_type", "urn:ietf:params:oauth:token-type:jwt")
			token, err := b.CA.JWTSVID(fmt.Sprintf("%s/%d", Agent, i), 5*time.Minute, b.URL)
			b.must(err)
			form.Set("subject_token", token)
		}
		body := form.Encode()
		list = append(list, fmt.Appendf(nil, "POST /oauth2/token HTTP/1.1\r\nHost: %s\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n%s",
			strings.TrimPrefix(b.URL, "https://"), len(body), body))
	}
	return list
}

// connect opens a connection for each client.
func (b *Broker) connect(t testing.TB, certificate bool) (clients []net.Conn) {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AddCert(b.CA.X509Authority())
	for i := range benchClients {
		config := &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}
		if certificate {
			svid, err := b.CA.X509SVID(fmt.Sprintf("%s/%d", Agent, i), time.Hour)
			b.must(err)
			config.Certificates = []tls.Certificate{svid}
		}
		conn, err := tls.Dial("tcp", strings.TrimPrefix(b.URL, "https://"), config)
		b.must(err)
		t.Cleanup(func() { _ = conn.Close() })
		clients = append(clients, conn)
	}
	return clients
}

// run sends n requests, which the clients share.
func run(b *testing.B, clients []net.Conn, asks [][]byte, n int) {
	b.Helper()
	var all sync.WaitGroup
	for i, conn := range clients {
		all.Go(func() {
			buf := make([]byte, 4096)
			for at := i; at < n; at += len(clients) {
				if _, err := conn.Write(asks[at%len(asks)]); err != nil {
					b.Error(err)
					return
				}
				if answer, err := readOne(conn, buf); err != nil || !bytes.HasPrefix(answer, []byte("HTTP/1.1 200")) {
					b.Errorf("got %q, %v", answer, err)
					return
				}
			}
		})
	}
	all.Wait()
}

// readOne reads one response with a body, which ends with a brace and a line end.
func readOne(conn net.Conn, buf []byte) ([]byte, error) {
	n := 0
	for !bytes.HasSuffix(buf[:n], []byte("}\n")) {
		m, err := conn.Read(buf[n:])
		if n += m; err != nil {
			return buf[:n], err
		}
	}
	return buf[:n], nil
}
