package bench

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
	"accessbroker.internal/store"
)

// BenchmarkIdleMillion starts a broker with a million live leases, and measures the
// start, the processor time while no one calls, and how long the answer to "what does
// this agent hold?" takes. It writes the leases itself, without issuing them.
func BenchmarkIdleMillion(b *testing.B) {
	k := newKit(b)
	k.stop(k.startBroker("idle")) // creates the database
	k.fill(filepath.Join(k.dir, "idle", "broker.db"), million)
	start := time.Now()
	t := k.startBroker("idle")
	took := time.Since(start)
	b.Logf("started with %d live leases in %s (target 1.5 s or less), %s of processor time; resident memory %d MB",
		million, took.Round(time.Millisecond), cpuTime(b, t.cmd.Process.Pid), k.memory(t)>>20)
	b.ReportMetric(took.Seconds(), "start-s")

	time.Sleep(5 * time.Second) // the first sweep
	const idle = 45 * time.Second
	cpu := cpuTime(b, t.cmd.Process.Pid)
	time.Sleep(idle)
	share := (cpuTime(b, t.cmd.Process.Pid) - cpu).Seconds() / idle.Seconds() * 100
	b.Logf("idle: %.2f %% of a processor (10.7 %% before live leases were kept in memory)", share)
	b.ReportMetric(share, "idle-%")

	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: k.pool}}}
	c := &api.Client{BaseURL: "https://" + t.address, HTTP: client, Token: func(context.Context) (string, error) { return k.tokens[7], nil }}
	var answers []time.Duration
	for range 40 {
		time.Sleep(250 * time.Millisecond) // a caller may list five times a second
		start := time.Now()
		page, err := c.Leases(b.Context(), api.LeaseFilter{Holder: holder(7), Live: true})
		if err != nil {
			b.Fatal(err)
		}
		answers = append(answers, time.Since(start))
		if len(page.Leases) != 3 || page.Leases[0].Holder != holder(7) {
			b.Fatalf("got %d leases", len(page.Leases))
		}
	}
	slices.Sort(answers)
	b.Logf("what one agent holds: p50 %s, p99 %s (target 20 ms or less)", answers[len(answers)/2], answers[len(answers)-1])
	b.ReportMetric(answers[len(answers)/2].Seconds()*1e3, "holder-ms")
}

func holder(n int) string { return fmt.Sprintf("spiffe://acme.test/agent/a%d", n%identities) }

// fill stores n live leases without records. Agent 7 holds the three oldest: finding
// the few leases of an agent among many others is the hard case.
func (k *kit) fill(path string, n int) {
	k.b.Helper()
	db, err := store.Open(k.b.Context(), store.Config{URL: store.URL(path), Existing: true, NoSync: true})
	if err != nil {
		k.b.Fatal(err)
	}
	now := time.Now()
	holderOf := func(n int) string {
		if n < 3 {
			return holder(7)
		}
		return holder(8 + n%(identities-8))
	}
	for from := 0; from < n && err == nil; from += 1000 {
		err = db.Update(k.b.Context(), nil, func(tx broker.Tx) error {
			for i := range 1000 {
				tx.Put(&broker.Lease{
					ID: broker.NewLeaseID(now), Request: broker.NewRequestID(now), Status: broker.LeaseActive, Holder: holderOf(from + i),
					Entitlement: "tickets-api", Issuer: "tickets", Scopes: []string{"tickets:read"}, Opened: now, Expires: now.Add(2 * time.Hour),
					Type: "bearer", Revocation: broker.RevokedAtExpiry,
				})
			}
			return nil
		})
	}
	if err != nil {
		k.b.Fatal(err)
	}
	if err := db.Close(); err != nil {
		k.b.Fatal(err)
	}
}
