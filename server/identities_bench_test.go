package server

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// BenchmarkInventoryPage shows the first page of the inventory, with 100,000 identities that
// called and as many people whom a source of facts knows.
func BenchmarkInventoryPage(b *testing.B) {
	many := sized(100_000, 1000)
	w := newWorld(b, withPeople)
	w.unchecked = true
	w.withoutScanLimit()
	w.fillInventory(b, many)
	viewer := newBrowser(b, w)
	viewer.logIn(auditingPerson, "/ui/")
	for _, path := range []string{"/ui/identities", "/ui/identities?kind=workload&cursor=spiffe%3A%2F%2Facme.test%2Fw%2F000500", "/ui/identities?kind=person", "/ui/identities?q=w%2F015", "/ui/identities?problem=never_used"} {
		b.Run(path, func(b *testing.B) {
			var slowest time.Duration
			for b.Loop() {
				start := time.Now()
				if status, _, page := viewer.visit(http.MethodGet, path, ""); status != http.StatusOK || len(page) > 100_000 {
					b.Fatalf("got %d with %d bytes", status, len(page))
				}
				slowest = max(slowest, time.Since(start))
			}
			b.ReportMetric(float64(slowest.Microseconds())/1000, "slowest-ms")
		})
	}
}

// fillInventory appends records of n identities, and reports facts about n people.
func (w *world) fillInventory(b *testing.B, n int) {
	const batch = 500
	for from := 0; from < n; from += batch {
		var entries []*audit.Entry
		for i := from; i < from+batch; i++ {
			id := fmt.Sprintf("spiffe://acme.test/w/%06d", i)
			facts := &audit.RequestFacts{ID: broker.NewRequestID(time.Now()).String(), Entitlement: "tickets", Scopes: []string{"tickets:read"}, TTL: time.Minute}
			r := audit.Record{Kind: audit.LeaseIssued, Caller: &audit.Party{ID: id, Kind: "agent", Method: "jwt-svid"}, Request: facts, Decision: &audit.DecisionFacts{Permit: true, Policies: []string{"p"}}, Lease: &audit.LeaseFacts{ID: broker.NewLeaseID(time.Now()).String()}}
			entry, err := r.Entry()
			if err != nil {
				b.Fatal(err)
			}
			entries = append(entries, entry)
		}
		w.update(b, func(tx broker.Tx) error {
			for _, entry := range entries {
				tx.Append(entry)
			}
			return nil
		})
		var reports []broker.Report
		for i := from; i < from+batch; i++ {
			reports = append(reports, broker.Report{Subject: broker.StandingKey{Kind: broker.FactPerson, Name: fmt.Sprintf("login/p%06d", i)}, Fact: broker.Fact{Source: "scim:corp", State: broker.FactActive}})
		}
		if err := w.cfg.Broker.Facts.ReportAll(b.Context(), broker.Caller{At: time.Now()}, reports); err != nil {
			b.Fatal(err)
		}
	}
	w.countLog(b)
	for {
		identities, behind, err := w.store.Inventory().Surveyed(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		if behind == 0 {
			if identities < int64(n) {
				b.Fatalf("%d identities were counted", identities)
			}
			return
		}
	}
}
