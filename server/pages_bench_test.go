package server

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// fillPast stores n requests of the last 28 hours for each million, each with a lease that
// has ended and two records.
func (w *world) fillPast(b *testing.B, n int, until time.Time) {
	b.Helper()
	const batch = 5000
	for from := 0; from < n; from += batch {
		// The rows of an Update list all of its records, so records have Updates of their own.
		var records []*audit.Entry
		w.update(b, func(tx broker.Tx) error {
			records = records[:0]
			for i := from; i < min(from+batch, n); i++ {
				r, l := pastRequest(until.Add(-time.Duration(n-i)*time.Second/10), i)
				tx.Put(r)
				tx.Put(l)
				both, err := pastRecords(r, l)
				if err != nil {
					return err
				}
				records = append(records, both...)
			}
			return nil
		})
		w.update(b, func(tx broker.Tx) error {
			for _, entry := range records {
				tx.Append(entry)
			}
			return nil
		})
	}
}

func (w *world) update(b *testing.B, f func(broker.Tx) error) {
	b.Helper()
	if err := w.store.Update(b.Context(), nil, f); err != nil {
		b.Fatal(err)
	}
}

// pastRequest returns a request that was granted and collected.
func pastRequest(created time.Time, i int) (*broker.Request, *broker.Lease) {
	names := []string{"guarded", "tickets", "repository", "guarded-repository"}
	r := oneRequest(created, i)
	r.Entitlement = names[i%len(names)]
	r.Status, r.Approved, r.CollectUntil = broker.RequestApproved, r.Created, r.Created.Add(time.Minute)
	return r, &broker.Lease{
		ID: broker.NewLeaseID(r.Created), Request: r.ID, Status: broker.LeaseActive, Holder: r.Requester.ID, Entitlement: r.Entitlement, Issuer: "token", Scopes: r.Scopes,
		Type: "bearer", Revocation: broker.RevokedAtExpiry, Opened: r.Created, Expires: r.Created.Add(r.TTL),
	}
}

func pastRecords(r *broker.Request, l *broker.Lease) (entries []*audit.Entry, err error) {
	party := &audit.Party{ID: r.Requester.ID, Kind: "agent", Method: "jwt-svid", Proof: r.Digest, Expires: l.Expires}
	facts := audit.RequestFacts{ID: r.ID.String(), Digest: r.Digest, Entitlement: r.Entitlement, Scopes: r.Scopes}
	for _, record := range []audit.Record{
		{Kind: audit.RequestCreated, Caller: party, Request: &facts},
		{Kind: audit.LeaseIssued, Caller: party, Request: &facts, Lease: &audit.LeaseFacts{ID: l.ID.String(), Issuer: l.Issuer, Type: l.Type, Expires: l.Expires}},
	} {
		entry, err := record.Entry()
		if err != nil {
			return nil, err
		}
		entries = append(entries, entry)
	}
	return entries, nil
}

// measuredPages are the pages whose length or work grows with the data, by who opens them.
var measuredPages = map[string][]string{
	"login/cleo": {
		"/ui/", "/ui/?order=newest", "/ui/?q=duplicates&team=support&risk=medium", "/ui/?requester=acme.test/agent/triage/499", "/ui/inbox/changes?seen=1",
		"/ui/access", "/ui/leases", "/ui/leases?all=1", "/ui/leases?all=1&entitlement=tickets", "/ui/leases?holder=" + agent + "/7", "/ui/leases?all=1&holder=" + agent + "/7",
		"/ui/audit", "/ui/kill", "/ui/entitlements", "/ui/passkeys",
	},
	"login/una": {"/ui/overview", "/ui/overview?period=7d", "/ui/overview?period=30d"},
	"login/ada": {
		"/ui/audit", "/ui/audit?kind=request", "/ui/audit?kind=lease&entitlement=tickets", "/ui/audit?who=" + agent + "/7", "/ui/audit?q=triage/499", "/ui/audit?q=nowhere", "/ui/audit?kind=block",
	},
}

// countLog runs the store's loop, and waits until it has counted the log.
func (w *world) countLog(b *testing.B) {
	b.Helper()
	ctx, cancel := context.WithCancel(b.Context())
	stopped := make(chan struct{})
	go func() { defer close(stopped); _ = w.store.Run(ctx) }()
	b.Cleanup(func() { cancel(); <-stopped })
	start := time.Now()
	for {
		r, err := w.store.Activity(ctx, start, start)
		if err != nil {
			b.Fatal(err)
		}
		if r.Uncounted == 0 {
			b.Logf("counted in %s", time.Since(start).Round(time.Second))
			return
		}
	}
}

// BenchmarkPages opens each page with 10,000 waiting and 1,000,000 past requests, as many
// leases, of which some thousands are live, and twice as many records. The targets are
// 100 ms, also for the inbox after a change, and 100 KB.
func BenchmarkPages(b *testing.B) {
	waiting, past := sized(10_000, 500), sized(1_000_000, 2000)
	w := newWorld(b, withPeople)
	w.unchecked = true // the log of the fixture does not follow the flows
	start := time.Now()
	w.fillPast(b, past, start)
	w.fill(b, waiting, func(i int) *broker.Request {
		r := oneRequest(start.Add(time.Duration(i)*time.Millisecond), i)
		r.Status, r.Lapses = broker.RequestPending, start.Add(24*time.Hour)
		return r
	})
	b.Logf("filled in %s", time.Since(start).Round(time.Second))
	w.countLog(b)
	var browser *browser
	look := func(path string) (took time.Duration, size int) {
		w.limits.scan = newAdmission(1e6, 100) // the limit of lists is not measured
		began := time.Now()
		status, _, page := browser.visit(http.MethodGet, path, "")
		if took = time.Since(began); status != http.StatusOK {
			b.Fatalf("%s: %d\n%s", path, status, page)
		}
		return took, len(page)
	}
	as := func(person string) {
		browser = newBrowser(b, w)
		browser.logIn(person, "/ui/")
	}
	as("login/cleo")
	first, _ := look("/ui/")
	b.Logf("the first inbox after the start: %s", first.Round(time.Millisecond))
	times := sized(15, 3)
	slowest, largest := time.Duration(0), 0
	report := func(path string, after func()) {
		var all []time.Duration
		size := 0
		for range times {
			after()
			took, bytes := look(path)
			all, size = append(all, took), max(size, bytes)
		}
		slices.Sort(all)
		p50, most := all[len(all)/2], all[len(all)-1]
		b.Logf("%-55s p50 %4d ms, most %4d ms, %3d KB", path, p50.Milliseconds(), most.Milliseconds(), (size+1023)>>10)
		slowest, largest = max(slowest, p50), max(largest, size)
	}
	measured := 0
	for _, person := range slices.Sorted(maps.Keys(measuredPages)) {
		as(person)
		for _, path := range measuredPages[person] {
			report(path, func() {})
			measured++
		}
	}
	as("login/cleo")
	n := 0
	var filed *api.Request
	report("/ui/", func() { // after a change
		n++
		filed = must[*api.Request](b)(w.as(agent+"/new").Ask(b.Context(), api.Ask{Entitlement: "guarded", Scopes: []string{"read"}, Justification: fmt.Sprint(n)}))
	})
	report("/ui/requests/"+filed.ID, func() {}) // with the requester's history
	report("/ui/requests/"+filed.ID+"/log", func() {})
	b.ReportMetric(float64(slowest.Microseconds())/1000, "slowest-p50-ms")
	b.ReportMetric(float64(largest)/1024, "largest-KB")
	b.ReportMetric(float64(measured), "pages")
	for b.Loop() {
		look("/ui/")
	}
}
