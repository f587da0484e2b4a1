package brokertest

import (
	"io"
	"log/slog"
	"testing"
	"time"
)

// BenchmarkListedToken compares the rate of tokens with a place in a status list to that of
// tokens without one. Both take turns, so that the load of the machine affects both.
//
//	go test ./internal/brokertest -run '^$' -bench ListedToken -benchtime 20000x
func BenchmarkListedToken(b *testing.B) {
	k := newBroker(b, slog.New(slog.NewJSONHandler(io.Discard, nil)))
	n := min(benchTokens, b.N+benchClients)
	kinds := [][][]byte{k.asksFor(b, n, false, "tickets-api", "tickets:read"), k.asksFor(b, n, false, "listed-api", "listed:read")}
	clients := k.connect(b, false)
	for _, asks := range kinds { // allocates what connections keep, and opens the list
		run(b, clients, asks[:benchClients], benchClients)
	}
	const rounds = 10
	var took [2]time.Duration
	b.ResetTimer()
	for range rounds {
		for kind, asks := range kinds {
			start := time.Now()
			run(b, clients, asks, max(1, b.N/rounds/2))
			took[kind] += time.Since(start)
		}
	}
	b.StopTimer()
	b.ReportMetric(took[0].Seconds()/took[1].Seconds(), "ratio")
}
