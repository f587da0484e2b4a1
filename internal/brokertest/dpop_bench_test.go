package brokertest

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"testing"
)

// BenchmarkBoundToken compares the exchange of an SVID for a token that is bound to a DPoP
// key with that for an unbound token: of SVIDs that the broker has not seen, as most
// workloads send them, and of SVIDs that it remembers. Each bound exchange has a proof of
// its own, made before, with the kind of key that the broker's client makes.
//
//	go test ./internal/brokertest -run '^$' -bench BoundToken -benchtime 20000x
func BenchmarkBoundToken(b *testing.B) {
	for _, svids := range []string{"fresh", "remembered"} {
		b.Run(svids, func(b *testing.B) {
			k := newBroker(b, slog.New(slog.NewJSONHandler(io.Discard, nil)))
			n := max(b.N/benchRounds/2, benchClients)
			clients := k.connect(b, false)
			key := newProofKey(b)
			nonce := k.freshNonce(key)
			known := k.asks(b, benchTokens, false)
			run(b, clients, known, benchTokens) // the broker remembers the SVIDs from now on
			asks := func() [][]byte {
				if svids == "remembered" {
					return known
				}
				return k.asks(b, n, false)
			}
			compareRounds(b, "bound", func() func() {
				unbound, bound := asks(), make([][]byte, n)
				for i := range bound {
					proof, err := key.Proof("POST", k.URL+"/oauth2/token", nonce, "")
					k.must(err)
					bound[i] = bytes.Replace(unbound[i%len(unbound)], []byte("\r\n\r\n"), fmt.Appendf(nil, "\r\nDPoP: %s\r\n\r\n", proof), 1)
				}
				return func() { run(b, clients, bound, n) }
			}, baseline{name: "unbound", each: func() func() {
				unbound := asks()
				return func() { run(b, clients, unbound, n) }
			}})
		})
	}
}
