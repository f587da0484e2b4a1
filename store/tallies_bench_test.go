package store

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/broker/evidence"
)

// A report over a log of two million records reads a bounded number of them.
func BenchmarkEvidence(b *testing.B) {
	records := 2_000_000
	if testing.Short() {
		records = 20_000
	}
	s := open(b, filepath.Join(b.TempDir(), "broker.db"))
	now := afterNow
	s.w.now = func() time.Time { return now }
	for range records / 20_000 {
		fillLogWith(b, s, 20_000)
		now = now.Add(20 * time.Hour)
		if err := s.catchUp(b.Context(), s.tallying); err != nil {
			b.Fatal(err)
		}
	}
	signHead(b, s)
	for _, f := range frameworksOf(b) {
		b.Run(f.ID, func(b *testing.B) {
			var r *evidence.Report
			for i := 0; b.Loop(); i++ {
				from := afterNow.Add(time.Duration(i%100) * time.Hour)
				var err error
				if r, err = evidence.Build(b.Context(), f, s, evidence.Query{From: from, To: now}); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(r.Log.Count), "records")
			b.ReportMetric(float64(len(r.Markdown())), "bytes")
		})
	}
}

// fillLogWith appends n records with the traits of many kinds of work.
func fillLogWith(b *testing.B, s *Store, n int) {
	b.Helper()
	kinds := []audit.Kind{audit.RequestCreated, audit.RequestApproved, audit.LeaseOpened, audit.LeaseIssued, audit.LeaseIssued, audit.LeaseRevoked, audit.CollectRefused, audit.FactChanged, audit.FactEnded}
	err := s.Update(b.Context(), nil, func(tx broker.Tx) error {
		for i := range n {
			r := audit.Record{Kind: kinds[i%len(kinds)], Caller: &audit.Party{ID: fmt.Sprint("spiffe://acme.test/agent/", i%997), Kind: []string{"agent", "workload", "person"}[i%3], Method: []string{"x509-svid", "jwt-svid"}[i%2]}}
			r.Lease = &audit.LeaseFacts{ID: "lse_0658sg2b7puh5u0qv0s9k8g6nk", Type: []string{"bearer", "userpass", "aws"}[i%3], Revocation: []string{"immediate", "at_expiry"}[i%2], Expires: afterNow.Add(time.Duration(i%5000) * time.Hour)}
			if r.Kind == audit.LeaseRevoked {
				r.End = &audit.EndFacts{How: []string{"expired", "revoked", "fact_ended"}[i%3]}
			}
			entry, err := r.Entry()
			if err != nil {
				return err
			}
			tx.Append(entry)
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
}
