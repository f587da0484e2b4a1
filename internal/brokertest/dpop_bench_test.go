package brokertest

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"testing"
)

// BenchmarkBoundToken compares the exchange of an SVID for a token that is bound to a DPoP
// key with that for an unbound token: in rounds that alternate, on the same connections of
// the same broker. Each bound exchange has a proof of its own, made before.
//
//	go test ./internal/brokertest -run '^$' -bench BoundToken -benchtime 20000x
func BenchmarkBoundToken(b *testing.B) {
	k := newBroker(b, slog.New(slog.NewJSONHandler(io.Discard, nil)))
	n := max(b.N/benchRounds/2, benchClients)
	unbound := k.asks(b, benchTokens, false)
	clients := k.connect(b, false)
	run(b, clients, unbound, benchTokens) // the broker remembers the SVIDs from now on
	key := newProofKey(b)
	nonce := k.freshNonce(key)
	compareRounds(b, "bound/unbound", func() { run(b, clients, unbound, n) }, func() func() {
		bound := make([][]byte, n)
		for i := range bound {
			proof, err := key.Proof("POST", k.URL+"/oauth2/token", nonce, "")
			k.must(err)
			bound[i] = bytes.Replace(unbound[i%len(unbound)], []byte("\r\n\r\n"), fmt.Appendf(nil, "\r\nDPoP: %s\r\n\r\n", proof), 1)
		}
		return func() { run(b, clients, bound, n) }
	})
}
