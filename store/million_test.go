package store

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"accessbroker.internal/broker"
)

// BenchmarkMillionLeases measures opening, counting, listing, sweeping and issuing
// with a million active leases. It fills the database first, which takes about half
// a minute.
func BenchmarkMillionLeases(b *testing.B) {
	leases := 1_000_000
	if testing.Short() {
		leases = 10_000
	}
	path := filepath.Join(b.TempDir(), "broker.db")
	s := open(b, path)
	fill(b, s, leases)
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	heap := heapInUse()
	took := measured(b, "opened", func() error {
		s = open(b, path)
		return s.loadHoldings(b.Context())
	})
	b.ReportMetric(took.Seconds(), "open-s")
	b.Logf("the live leases take %d bytes each", (heapInUse()-heap)/int64(leases))
	// What the gauges and the sweep cost every 15 seconds.
	took = measured(b, "counted and swept", func() error {
		counts, err := s.CountActive(b.Context(), testNow)
		if err == nil {
			_, err = s.CountStuck(b.Context(), testNow)
		}
		if err == nil {
			_, err = s.Sweep(b.Context(), testNow)
		}
		b.Logf("counted %v", counts)
		return err
	})
	b.ReportMetric(took.Seconds()/15*100, "idle-%")
	for _, q := range []broker.LeaseQuery{
		{Live: true, Now: testNow, Limit: 100},
		{Live: true, Now: testNow, Holder: "spiffe://acme.test/agent/a7", Limit: 100},
		{Live: true, Now: testNow, Holder: "spiffe://acme.test/agent/a7", Limit: 1000},
		{Live: true, Now: testNow, Holder: "spiffe://acme.test/nobody", Limit: 100},
		{Live: true, Now: testNow, Under: "spiffe://acme.test/nobody", Limit: 100},
		{Live: true, Now: testNow, Issuer: "vault", Limit: 100},
		{Due: true, Now: testNow.Add(time.Hour), Limit: 100},
	} {
		n := 0
		took := measured(b, fmt.Sprintf("listed holder %q, under %q, issuer %q, due %t", q.Holder, q.Under, q.Issuer, q.Due), func() error {
			return s.View(b.Context(), func(tx broker.Tx) error {
				page, _, err := tx.Leases(q)
				n = len(page)
				return err
			})
		})
		b.Logf("%d leases", n)
		if q.Holder == "spiffe://acme.test/agent/a7" && q.Limit == 100 {
			b.ReportMetric(took.Seconds()*1e3, "holder-ms")
		}
	}
	b.Run("Issue64", func(b *testing.B) { benchmarkIssue(b, s, 64) })
}

// measured runs f and logs the time and the processor time that it took. It returns
// the processor time, because other processes may use the processors, too.
func measured(b *testing.B, what string, f func() error) time.Duration {
	b.Helper()
	start, cpu := time.Now(), processorTime(b)
	if err := f(); err != nil {
		b.Fatal(err)
	}
	took := processorTime(b) - cpu
	b.Logf("%s in %s, %s of processor time", what, time.Since(start), took)
	return took
}

func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var use syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &use); err != nil {
		b.Fatal(err)
	}
	return time.Duration(use.Utime.Nano() + use.Stime.Nano())
}

func heapInUse() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// fill stores n active leases with their requests and without records.
func fill(b *testing.B, s *Store, n int) {
	const batch = 1000
	for from := 0; from < n; from += batch {
		err := s.Update(context.Background(), nil, func(tx broker.Tx) error {
			for i := from; i < from+batch; i++ {
				all := newIssuance(b, i)
				if i%100 == 0 { // some have to be revoked upstream
					all.lease.Revocation, all.lease.Issuer, all.lease.Handle = broker.RevokedImmediate, "vault", fmt.Appendf(nil, "accessor-%d", i)
				}
				tx.Put(&all.request)
				tx.Put(&all.lease)
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkFindHolder searches a million live leases in memory for those of a holder
// that has none.
func BenchmarkFindHolder(b *testing.B) {
	h := newHoldings()
	for n := range 1_000_000 {
		h.tables[liveTable].put(newHeld(broker.NewLeaseID(testNow), forever, broker.RequestID{}, 1, false), uint64(n%1024))
	}
	q := broker.LeaseQuery{Holder: "spiffe://acme.test/nobody", Live: true, Now: testNow}
	for b.Loop() {
		if ids := h.candidates(&q, candidateBatch); len(ids) != 0 {
			b.Fatalf("got %d leases", len(ids))
		}
	}
}
