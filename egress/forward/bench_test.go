package forward_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/egress"
	"accessbroker.internal/egress/forward"
)

// benchToken has the length of the broker's tokens.
var benchToken = strings.Repeat("0123456789abcdef", 50)

type benchCredentials struct{}

func (benchCredentials) Credential(_ context.Context, entitlement string) (*api.Credential, error) {
	return &api.Credential{Lease: "lse_1", Entitlement: entitlement, Type: "bearer", Secret: api.Secret{"token": benchToken}, ExpiresAt: time.Now().Add(time.Hour)}, nil
}

func (benchCredentials) Held() []*api.Credential { return nil }

func (benchCredentials) Rejected(context.Context, *api.Credential) bool { return false }

// BenchmarkAddedLatency alternates calls over the proxy, with rules, credential and
// scrubbing, with calls to the same server, and reports the medians of both.
func BenchmarkAddedLatency(b *testing.B) {
	for _, size := range []int{1 << 10, 64 << 10} {
		b.Run(fmt.Sprintf("%d KiB", size>>10), func(b *testing.B) { benchLatency(b, size) })
	}
}

func benchLatency(b *testing.B, size int) {
	body := []byte(strings.Repeat("x", size))
	upstream := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write(body) }))
	defer upstream.Close()
	authority := strings.TrimPrefix(upstream.URL, "https://")
	policy, err := egress.Compile([]api.Offer{{Entitlement: "e", Egress: &api.Egress{
		Inject:     api.Injection{As: api.InjectBearer},
		Allow:      []api.EgressRule{{Hosts: []string{authority}, Methods: []string{"GET"}, Paths: []string{"/**"}, Addresses: []string{"127.0.0.0/8"}}},
		MaxRequest: 1 << 20, MaxAnswer: 1 << 30, Timeout: api.Duration(time.Minute), IdleTimeout: api.Duration(time.Minute),
	}}})
	if err != nil {
		b.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(upstream.Certificate())
	calls := &egress.Transport{Policy: func() *egress.Policy { return policy }, Credentials: benchCredentials{}, Roots: roots}
	defer calls.CloseIdleConnections()
	ca, err := forward.NewAuthority(policy.Hosts(), time.Hour)
	if err != nil {
		b.Fatal(err)
	}
	server := forward.New(forward.Config{Authority: ca, Caller: calls, Token: token, Logger: slog.New(slog.DiscardHandler)})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	go func() { _ = server.Serve(l) }()
	defer func() { _ = server.Close() }()
	trust := x509.NewCertPool()
	trust.AppendCertsFromPEM(ca.PEM())
	through := &http.Client{Transport: &http.Transport{
		Proxy:           http.ProxyURL(&url.URL{Scheme: "http", User: url.UserPassword(forward.User, token), Host: l.Addr().String()}),
		TLSClientConfig: &tls.Config{RootCAs: trust},
	}}
	direct := upstream.Client()
	took := map[*http.Client][]time.Duration{}
	for range 20 + b.N { // the first ones open connections
		for _, c := range []*http.Client{direct, through} {
			began := time.Now()
			resp, err := c.Get(upstream.URL + "/x")
			if err != nil {
				b.Fatal(err)
			}
			n, err := io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			if err != nil || n != int64(size) || resp.StatusCode != http.StatusOK {
				b.Fatalf("got %s and %d bytes, %v", resp.Status, n, err)
			}
			took[c] = append(took[c], time.Since(began))
		}
	}
	median := func(c *http.Client) float64 {
		list := took[c][20:]
		slices.Sort(list)
		return float64(list[len(list)/2]) / float64(time.Millisecond)
	}
	b.ReportMetric(median(direct), "ms-direct")
	b.ReportMetric(median(through), "ms-proxy")
	b.ReportMetric(median(through)-median(direct), "ms-added")
	b.ReportMetric(0, "ns/op") // of both, which means nothing
}
