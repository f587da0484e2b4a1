package attest

import (
	"crypto/x509"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// The benchmarks have 64 callers that present 1,024 tokens in turn.
const (
	callers = 64
	tokens  = 1024
)

func (w *world) tokens(n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = w.token(fmt.Sprintf("spiffe://acme.test/agent/%d", i), time.Hour-time.Second)
	}
	return all
}

// BenchmarkJWT measures a token: verified, cached, and cached with many callers.
func BenchmarkJWT(b *testing.B) {
	w := newWorld(b)
	all := w.tokens(tokens)
	now := time.Now()
	b.Run("verified", func(b *testing.B) {
		trust := w.source.trust.Load()
		for i := 0; b.Loop(); i++ {
			t, err := parseToken(all[i%tokens])
			check(b, err)
			check(b, w.verifier.check(t, trust, now))
		}
	})
	b.Run("cached", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			_, err := w.verifier.JWT(all[i%tokens], now)
			check(b, err)
		}
	})
	b.Run("cached by 64", func(b *testing.B) {
		var turn atomic.Int64
		b.SetParallelism(callers)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if _, err := w.verifier.JWT(all[turn.Add(1)%tokens], now); err != nil {
					b.Error(err)
				}
			}
		})
	})
}

// BenchmarkX509 measures a certificate: verified, and cached with its connection.
func BenchmarkX509(b *testing.B) {
	w := newWorld(b)
	chain := []*x509.Certificate{w.svid(triage, time.Hour).Leaf}
	now := time.Now()
	b.Run("verified", func(b *testing.B) {
		for b.Loop() {
			_, err := w.verifier.X509(chain, now)
			check(b, err)
		}
	})
	b.Run("connection", func(b *testing.B) {
		ctx := w.verifier.ConnContext(b.Context(), net.Conn(nil))
		for b.Loop() {
			_, err := w.verifier.verifyConn(ctx, chain, now)
			check(b, err)
		}
	})
}
