package brokertest

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"testing"
	"time"
)

// BenchmarkBoundToken compares the exchange of an SVID for a token that is bound to a DPoP
// key with that for an unbound token: in rounds that alternate, on the same connections of
// the same broker. Each bound exchange has a proof of its own, made before.
//
//	go test ./internal/brokertest -run '^$' -bench BoundToken -benchtime 20000x
func BenchmarkBoundToken(b *testing.B) {
	k := newBroker(b, slog.New(slog.NewJSONHandler(io.Discard, nil)))
	const rounds = 5
	n := max(b.N/rounds/2, benchClients)
	unbound := k.asks(b, benchTokens, false)
	clients := k.connect(b, false)
	run(b, clients, unbound, benchTokens) // the broker remembers the SVIDs from now on
	key := newProofKey(b)
	nonce := k.freshNonce(key)
	var ratios []float64
	for range rounds {
		bound := make([][]byte, n)
		for i := range bound {
			proof, err := key.Proof("POST", k.URL+"/oauth2/token", nonce, "")
			k.must(err)
			bound[i] = bytes.Replace(unbound[i%len(unbound)], []byte("\r\n\r\n"), fmt.Appendf(nil, "\r\nDPoP: %s\r\n\r\n", proof), 1)
		}
		start := time.Now()
		run(b, clients, unbound, n)
		plain := time.Since(start)
		start = time.Now()
		run(b, clients, bound, n)
		ratios = append(ratios, plain.Seconds()/time.Since(start).Seconds())
	}
	slices.Sort(ratios)
	b.ReportMetric(ratios[rounds/2], "bound/unbound")
	b.Logf("a bound exchange reaches %.2f of the rate of an unbound one (target 0.70 or more); rounds %.2f", ratios[rounds/2], ratios)
}
