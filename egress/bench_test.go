package egress_test

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"testing"
	"time"

	"accessbroker.internal/api"
)

// BenchmarkMatch matches a call among 200 entitlements of four hosts each.
func BenchmarkMatch(b *testing.B) {
	var offers []api.Offer
	for i := range 200 {
		offers = append(offers, offer(fmt.Sprintf("e%03d", i), nil, fmt.Sprintf("api-%d.acme.test", i), fmt.Sprintf("*.api-%d.acme.test", i), "shared.acme.test:8443", fmt.Sprintf("h%d.acme.test", i)))
	}
	p := compile(b, offers...)
	h := http.Header{"Accept": {"application/json"}, "Content-Type": {"application/json"}, "X-Request-Id": {"1"}}
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := p.Match("GET", "https://api-100.acme.test/v1/repos/acme/broker/issues?page=2&per_page=100", h); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkTransport compares the median of calls through a Transport with that of the
// same calls without one, to a host on loopback, alternately.
func BenchmarkTransport(b *testing.B) {
	w := newBenchWorld(b)
	direct := w.host.Client()
	var without, with []time.Duration
	for b.Loop() {
		without = append(without, w.timed(b, direct.Transport))
		with = append(with, w.timed(b, w.transport))
	}
	slices.Sort(without)
	slices.Sort(with)
	added := with[len(with)/2] - without[len(without)/2]
	b.ReportMetric(float64(added.Microseconds()), "added-µs/call")
	b.ReportMetric(float64(without[len(without)/2].Microseconds()), "direct-µs/call")
}

func (w *world) timed(b *testing.B, transport http.RoundTripper) time.Duration {
	r, err := http.NewRequestWithContext(b.Context(), http.MethodGet, w.host.URL+"/v1/x", nil)
	if err != nil {
		b.Fatal(err)
	}
	start := time.Now()
	resp, err := transport.RoundTrip(r)
	if err != nil {
		b.Fatal(err)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	took := time.Since(start)
	if err != nil || resp.StatusCode != http.StatusOK {
		b.Fatal(resp.Status, err)
	}
	_ = resp.Body.Close()
	return took
}
