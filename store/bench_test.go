package store

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"
)

// BenchmarkIssue64 stores tokens from 64 callers at once.
func BenchmarkIssue64(b *testing.B) { benchmarkIssue(b, newStore(b), 64) }

// BenchmarkIssue1 stores tokens from one caller, so groups have one member.
func BenchmarkIssue1(b *testing.B) { benchmarkIssue(b, newStore(b), 1) }

// benchmarkIssue reports the rate of durable Updates, and how long they took.
func benchmarkIssue(b *testing.B, s *Store, callers int) {
	ctx, cancel := context.WithCancel(b.Context())
	stopped := make(chan error, 1)
	go func() { stopped <- s.Run(ctx) }()
	before := s.Head().Size
	times := make([][]time.Duration, callers)
	var wg sync.WaitGroup
	b.ResetTimer()
	for c := range callers {
		wg.Go(func() {
			for n := c; n < b.N; n += callers {
				i := newIssuance(b, n)
				start := time.Now()
				if err := i.store(ctx, s); err != nil {
					b.Error(err)
					return
				}
				times[c] = append(times[c], time.Since(start))
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "updates/s")
	all := slices.Concat(times...)
	slices.Sort(all)
	for _, q := range []struct {
		name string
		part float64
	}{{"p50-ms", 0.5}, {"p99-ms", 0.99}} {
		b.ReportMetric(all[int(q.part*float64(len(all)-1))].Seconds()*1e3, q.name)
	}
	if got := s.Head().Size - before; got != int64(b.N) {
		b.Errorf("%d records for %d updates", got, b.N)
	}
	cancel()
	if err := <-stopped; err != nil && !errors.Is(err, context.Canceled) {
		b.Error(err)
	}
}

// BenchmarkViewLease reads one lease, which is the database access of introspection.
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
