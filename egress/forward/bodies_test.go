package forward_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/egress"
	"accessbroker.internal/egress/forward"
)

// A bench is a whole proxy between a client and a host with TLS, and the way around it.
type bench struct {
	host            *httptest.Server
	direct, through *http.Client
}

// newBench starts a host that sends a body as often as the query tells.
func newBench(b *testing.B, body []byte) *bench {
	return newEdge(b, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for n, _ := strconv.Atoi(r.URL.Query().Get("n")); n > 0; n-- {
			if _, err := w.Write(body); err != nil {
				return
			}
		}
	}), false)
}

// newEdge starts a host and a proxy.
func newEdge(b testing.TB, h http.Handler, http2 bool) *bench {
	b.Helper()
	k := &bench{host: httptest.NewUnstartedServer(h)}
	k.host.EnableHTTP2 = http2
	k.host.StartTLS()
	b.Cleanup(k.host.Close)
	address := strings.TrimPrefix(k.host.URL, "https://")
	policy, err := egress.Compile([]api.Offer{{Entitlement: "bodies", Egress: &api.Egress{
		Inject:     api.Injection{As: api.InjectBearer},
		Allow:      []api.EgressRule{{Hosts: []string{address}, Methods: []string{"GET"}, Paths: []string{"/**"}, Addresses: []string{"127.0.0.0/8"}}},
		MaxRequest: 1 << 20, MaxAnswer: 1 << 40, Timeout: api.Duration(time.Hour), IdleTimeout: api.Duration(time.Minute),
	}}})
	if err != nil {
		b.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(k.host.Certificate())
	transport := &egress.Transport{Policy: func() *egress.Policy { return policy }, Credentials: benchCredentials{}, Roots: roots}
	b.Cleanup(transport.CloseIdleConnections)
	authority, err := forward.NewAuthority([]string{"127.0.0.1"}, time.Hour)
	if err != nil {
		b.Fatal(err)
	}
	server := forward.New(forward.Config{Authority: authority, Caller: transport, Token: token, Logger: slog.New(slog.DiscardHandler)})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	go func() { _ = server.Serve(l) }()
	b.Cleanup(func() { _ = server.Close() })
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM(authority.PEM())
	proxy := &url.URL{Scheme: "http", User: url.UserPassword(forward.User, token), Host: l.Addr().String()}
	k.through = &http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(proxy), TLSClientConfig: &tls.Config{RootCAs: trusted}, DisableCompression: true, ForceAttemptHTTP2: http2}}
	k.direct = k.host.Client()
	return k
}

// get reads a body of n parts, and returns how long that took.
func (k *bench) get(b *testing.B, c *http.Client, n int) (int64, time.Duration) {
	b.Helper()
	start := time.Now()
	resp, err := c.Get(fmt.Sprintf("%s/x?n=%d", k.host.URL, n))
	if err != nil {
		b.Fatal(err)
	}
	size, err := io.Copy(io.Discard, resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		b.Fatal(resp.Status, err)
	}
	_ = resp.Body.Close()
	return size, time.Since(start)
}

// BenchmarkProxyBodies reads bodies of 64 MiB through the proxy, and by TLS alone in the
// same run. All of client, proxy and host share this process, and its memory is measured.
// With -benchtime 160x, it reads 10 GB.
func BenchmarkProxyBodies(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 1))
	noise := make([]byte, 1<<20)
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	var document []byte
	for len(document) < 1<<20 {
		line, _ := json.Marshal(map[string]any{"id": r.Uint64(), "text": "a \"quoted\" word\nand a path C:\\x & <b>", "url": "https://api.acme.test/v1/items?q=%20"})
		document = append(append(document, line...), '\n')
	}
	for name, body := range map[string][]byte{"random": noise, "json": document} {
		b.Run(name, func(b *testing.B) {
			k := newBench(b, body)
			var bytes int64
			var through, direct time.Duration
			var first, second time.Duration // of the processor
			k.get(b, k.through, 64)
			before := resident(b)
			for b.Loop() {
				start := processor()
				n, took := k.get(b, k.through, 64)
				middle := processor()
				_, alone := k.get(b, k.direct, 64)
				first, second = first+middle-start, second+processor()-middle
				bytes, through, direct = bytes+n, through+took, direct+alone
			}
			perSecond := func(d time.Duration) float64 { return float64(bytes) / 1e6 / d.Seconds() }
			b.ReportMetric(perSecond(through), "proxy-MB/s")
			b.ReportMetric(perSecond(direct), "direct-MB/s")
			b.ReportMetric(perSecond(first), "proxy-MB/cpu-s")
			b.ReportMetric(perSecond(second), "direct-MB/cpu-s")
			b.ReportMetric(float64(resident(b)-before)/1e6, "grown-MB")
			b.ReportMetric(float64(resident(b))/1e6, "resident-MB")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// resident returns the bytes of memory that this process has now.
func resident(b *testing.B) int64 {
	b.Helper()
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		b.Skip("there is no /proc")
	}
	pages, err := strconv.ParseInt(strings.Fields(string(text))[1], 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}

// processor returns the time for which this process used a core.
func processor() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
