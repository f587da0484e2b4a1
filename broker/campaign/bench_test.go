package campaign_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/fstest"

	"accessbroker.internal/broker"
	"accessbroker.internal/broker/campaign"
)

// large returns a world with permits, marks and members: n items in all.
func large(tb testing.TB, n int) *world {
	tb.Helper()
	w := newWorld(tb, "all:\n  scope: {permits: [all], marks: [all], groups: [many]}\n  reviewers: [owner, manager]\n  fallback: security\n  deadline: 14d\n")
	var policies, members strings.Builder
	permits, marks := n/5, n*2/5
	for i := range permits {
		fmt.Fprintf(&policies, "@id(\"p-%d\") permit (principal in Path::\"spiffe://acme.test/agent/a-%d\", action == Action::\"request\", resource == Entitlement::\"tickets-api\");\n", i, i)
	}
	for i := range marks {
		w.labels = append(w.labels, broker.WorkloadLabels{Under: fmt.Sprintf("spiffe://acme.test/agent/a-%d", i), Kind: broker.KindAgent, Team: "support", Accountable: []string{fmt.Sprintf("login/o-%d", i%100)}})
	}
	for i := range n - permits - marks - 1 { // one mark is there
		fmt.Fprintf(&members, "%slogin/m-%d", []string{"", ", "}[min(i, 1)], i)
	}
	w.files["a.cedar"] = &fstest.MapFile{Data: []byte(policies.String())}
	w.files["groups.yaml"] = &fstest.MapFile{Data: []byte(strings.Replace(groups, "many: {}", "many: {members: ["+members.String()+"]}", 1))}
	w.reload(noon)
	return w
}

// A campaign over many items has bounded pages, and its deadline disables all of them.
func TestCampaignOverManyItems(t *testing.T) {
	const n = 3000
	w := large(t, n)
	c := w.begin("all", noon)
	if c.Counts.Items != n {
		t.Fatalf("got %d items, want %d", c.Counts.Items, n)
	}
	ctx, seen, pages := context.Background(), 0, 0
	for q := (campaign.ItemQuery{Limit: 100000}); ; pages++ {
		list, next, err := w.reviews.Items(ctx, operator(noon), c.ID, q)
		w.ok(err)
		if len(list) > campaign.PageMax {
			t.Fatalf("a page has %d items", len(list))
		}
		for _, i := range list {
			if seen++; i.Number != seen {
				t.Fatalf("got item %d, want %d", i.Number, seen)
			}
		}
		if q.After = next; next == 0 {
			break
		}
	}
	if seen != n || pages < n/campaign.PageMax-1 {
		t.Errorf("got %d items on %d pages", seen, pages+1)
	}
	w.tick(c.Deadline)
	if c := w.campaign(c.ID, noon); c.Counts.Disabled != n || len(w.broker.Rules().Suspensions) != n {
		t.Errorf("got %+v and %d suspensions", c.Counts, len(w.broker.Rules().Suspensions))
	}
}

// BenchmarkDeadline disables 100,000 items that no one reviewed.
func BenchmarkDeadline(b *testing.B) {
	n := 100_000
	if testing.Short() {
		n = 2000
	}
	for b.Loop() {
		b.StopTimer()
		w := large(b, n)
		c := w.begin("all", noon)
		b.StartTimer()
		w.tick(c.Deadline)
	}
	b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "items/s")
}

// BenchmarkCampaign builds a campaign of 100,000 items.
func BenchmarkCampaign(b *testing.B) {
	n := 100_000
	if testing.Short() {
		n = 2000
	}
	w := large(b, n)
	at := noon
	b.ResetTimer()
	for b.Loop() {
		c := w.begin("all", at)
		if c.Counts.Items != n {
			b.Fatalf("got %d items, want %d", c.Counts.Items, n)
		}
		b.StopTimer()
		// The next one may start: this one is closed without its deadline's work.
		w.ok(w.store.Update(context.Background(), []broker.Key{c.ID}, func(tx broker.Tx) error {
			c.Status = broker.CampaignDiscarded
			tx.Put(c)
			return nil
		}))
		at = at.Add(day)
		b.StartTimer()
	}
	b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "items/s")
}
