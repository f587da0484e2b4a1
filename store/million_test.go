package store

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"accessbroker.internal/broker"
)

// BenchmarkMillionLeases measures opening, counting, listing and issuing with a
// million active leases. It fills the database first, which takes about half a
// minute.
func BenchmarkMillionLeases(b *testing.B) {
	path := filepath.Join(b.TempDir(), "broker.db")
	s := open(b, path)
	fill(b, s, 1_000_000)
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	runtime.GC()
	start := time.Now()
	s = open(b, path)
	b.Logf("opened in %s", time.Since(start))

	start = time.Now()
	counts, err := s.CountActive(b.Context(), testNow)
	b.Logf("counted %v in %s: %v", counts, time.Since(start), err)
	for _, q := range []broker.LeaseQuery{
		{Live: true, Now: testNow, Limit: 100}, {Live: true, Now: testNow, Holder: "spiffe://acme.test/nobody"}, {Due: true, Now: testNow.Add(time.Hour), Limit: 100},
	} {
		start = time.Now()
		var page []*broker.Lease
		if err := s.View(b.Context(), func(tx broker.Tx) (err error) {
			page, _, err = tx.Leases(q)
			return err
		}); err != nil {
			b.Fatal(err)
		}
		b.Logf("listed %d leases of %+v in %s", len(page), q, time.Since(start))
	}
	b.Run("Issue64", func(b *testing.B) { benchmarkIssue(b, s, 64) })
}

// fill stores n active leases without records.
func fill(b *testing.B, s *Store, n int) {
	const batch = 1000
	for from := 0; from < n; from += batch {
		err := s.Update(context.Background(), nil, func(tx broker.Tx) error {
			for i := from; i < from+batch; i++ {
				l := newIssuance(b, i).lease
				if i%100 == 0 { // some have to be revoked upstream
					l.Revocation, l.Issuer, l.Handle = broker.RevokedImmediate, "vault", fmt.Appendf(nil, "accessor-%d", i)
				}
				tx.Put(&l)
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
}
