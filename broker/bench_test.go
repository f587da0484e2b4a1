package broker_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"accessbroker.internal/broker"
)

// BenchmarkIssue issues credentials to 64 concurrent callers: policy, limits, records
// and a durable commit, without HTTP and cryptography.
func BenchmarkIssue(b *testing.B) {
	w := newWorld(b, worldConfig{issuers: map[string]broker.Issuer{"tickets": signer{}}})
	b.ReportAllocs()
	b.SetParallelism(32) // times two processors
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, _, err := w.broker.AskAndCollect(context.Background(), broker.Self(agent(noon), noon), read("tickets:read"), broker.IdempotencyKey{}); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// BenchmarkUpstreamShare issues credentials of an upstream that takes five
// milliseconds a call to 16 concurrent callers. It reports the time that the broker
// adds to the two calls: policy, limits, two durable records.
func BenchmarkUpstreamShare(b *testing.B) {
	sys := &measured{system: system{live: map[string]time.Time{}}}
	w := newWorld(b, worldConfig{issuers: map[string]broker.Issuer{"tickets": signer{}, "db": sys}})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { _ = w.store.Run(ctx) }() // as in production; it checkpoints, which keeps commits short
	var mu sync.Mutex
	var shares []time.Duration
	leases := 4000
	if testing.Short() {
		leases = 100
	}
	for b.Loop() {
		runParallel(16, leases, func() error {
			start := time.Now()
			issued, _, err := w.broker.AskAndCollect(context.Background(), broker.Self(agent(noon), noon), broker.Ask{Entitlement: "db"}, broker.IdempotencyKey{})
			if err != nil {
				return err
			}
			share := time.Since(start) - sys.spent(issued.Lease.ID)
			mu.Lock()
			defer mu.Unlock()
			shares = append(shares, share)
			return nil
		}, b)
	}
	slices.Sort(shares)
	b.ReportMetric(float64(shares[len(shares)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(shares[len(shares)*99/100].Microseconds())/1000, "p99-ms")
}

// measured is a system that takes five milliseconds a call and measures each one.
type measured struct {
	system
	took sync.Map // lease: time.Duration
}

func (m *measured) spent(id broker.LeaseID) time.Duration {
	took, _ := m.took.LoadAndDelete(id)
	return took.(time.Duration)
}

func (m *measured) work(id broker.LeaseID) {
	start := time.Now()
	time.Sleep(5 * time.Millisecond)
	before, _ := m.took.LoadOrStore(id, time.Duration(0))
	m.took.Store(id, before.(time.Duration)+time.Since(start))
}

func (m *measured) Prepare(ctx context.Context, o broker.Order) (broker.Prepared, error) {
	m.work(o.Lease.ID)
	return m.system.Prepare(ctx, o)
}

func (m *measured) Issue(ctx context.Context, o broker.Order) (broker.Credential, []byte, error) {
	m.work(o.Lease.ID)
	return m.system.Issue(ctx, o)
}

// BenchmarkReapWhileIssuing ends 10,000 leases that fall due at once while 32 callers
// request credentials. It reports the rate of issuing before and during the pass.
func BenchmarkReapWhileIssuing(b *testing.B) {
	due, warm := 10_000, 2*time.Second
	if testing.Short() {
		due, warm = 300, 50*time.Millisecond
	}
	for b.Loop() {
		sys := &system{live: map[string]time.Time{}}
		w := newWorld(b, worldConfig{issuers: map[string]broker.Issuer{"tickets": signer{}, "db": sys}})
		runParallel(64, due, func() error {
			_, _, err := w.broker.AskAndCollect(context.Background(), broker.Self(agent(noon), noon), broker.Ask{Entitlement: "db"}, broker.IdempotencyKey{})
			return err
		}, b)
		later := noon.Add(11 * time.Minute)
		before := w.issueRate(b, later, func() { time.Sleep(warm) })
		start := time.Now()
		during := w.issueRate(b, later, func() {
			for n := due; n > 0; {
				reaped, err := w.broker.Reap(context.Background(), later)
				if err != nil {
					b.Error(err)
					return
				}
				n -= reaped
			}
		})
		if len(sys.live) > 0 {
			b.Errorf("got %d working credentials, want 0", len(sys.live))
		}
		b.ReportMetric(float64(due)/time.Since(start).Seconds(), "ended/s")
		b.ReportMetric(during/before, "issuing/before")
	}
}

// issueRate issues credentials while f runs and returns the rate.
func (w *world) issueRate(b *testing.B, now time.Time, f func()) float64 {
	b.Helper()
	var issued atomic.Int64
	var over atomic.Bool
	var all sync.WaitGroup
	for range 32 {
		all.Go(func() {
			for !over.Load() {
				if _, _, err := w.broker.AskAndCollect(context.Background(), broker.Self(agent(now), now), read("tickets:read"), broker.IdempotencyKey{}); err != nil {
					b.Error(err)
					return
				}
				issued.Add(1)
			}
		})
	}
	start := time.Now()
	f()
	over.Store(true)
	all.Wait()
	return float64(issued.Load()) / time.Since(start).Seconds()
}

// runParallel runs f n times, distributed over concurrent callers.
func runParallel(callers, n int, f func() error, b *testing.B) {
	b.Helper()
	var left atomic.Int64
	left.Store(int64(n))
	var all sync.WaitGroup
	for range callers {
		all.Go(func() {
			for left.Add(-1) >= 0 {
				if err := f(); err != nil {
					b.Error(fmt.Errorf("seeding: %w", err))
					return
				}
			}
		})
	}
	all.Wait()
}
