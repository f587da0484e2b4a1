package store

import (
	"runtime"
	"sync/atomic"
	"testing"
)

// BenchmarkIssue64 is the storing of tokens by 64 callers at once. Its
// op/s is what one waits for: durable Updates.
func BenchmarkIssue64(b *testing.B) { benchmarkIssue(b, newStore(b), 64) }

// BenchmarkIssue1 is a single caller: no group, no lingering.
func BenchmarkIssue1(b *testing.B) { benchmarkIssue(b, newStore(b), 1) }

func benchmarkIssue(b *testing.B, s *Store, callers int) {
	var n atomic.Int64
	b.SetParallelism(max(1, callers/runtime.GOMAXPROCS(0)))
	if callers == 1 {
		runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
		b.ResetTimer()
		for range b.N {
			i := newIssuance(b, int(n.Add(1)))
			if err := i.store(b.Context(), s); err != nil {
				b.Fatal(err)
			}
		}
	} else {
		b.ResetTimer()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				i := newIssuance(b, int(n.Add(1)))
				if err := i.store(b.Context(), s); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "updates/s")
	if got, want := s.Head().Size, int64(b.N); got < want {
		b.Errorf("%d records for %d updates", got, want)
	}
}

// BenchmarkViewLease is the reading of one lease, as introspection does.
func BenchmarkViewLease(b *testing.B) {
	s := newStore(b)
	i := newIssuance(b, 1)
	if err := i.store(b.Context(), s); err != nil {
		b.Fatal(err)
	}
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := get(b, s, i.lease.ID); err != nil {
				b.Error(err)
				return
			}
		}
	})
}
