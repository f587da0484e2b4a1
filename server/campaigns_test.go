package server

import (
	"context"
	"errors"
	"iter"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
	"accessbroker.internal/broker/campaign"
	"accessbroker.internal/store"
)

// marksPlan reviews the marks of the test's workloads.
func marksPlan() map[string]*broker.CampaignPlan {
	return map[string]*broker.CampaignPlan{"marks": {
		Name: "marks", Scope: broker.CampaignScope{Marks: []string{broker.ScopeAll}}, Reviewers: []string{"dba"}, Fallback: "dba", RunBy: "dba", Deadline: 24 * time.Hour,
	}}
}

// testPermissions are two marks.
type testPermissions struct{}

func (testPermissions) All(_ broker.CampaignScope, kind broker.PermissionKind) iter.Seq[broker.Permission] {
	return func(yield func(broker.Permission) bool) {
		for _, under := range []string{partner, agent} {
			if p, ok := (testPermissions{}).Find(broker.PermissionKey{Kind: kind, Name: under}); ok && !yield(p) {
				return
			}
		}
	}
}

func (testPermissions) Find(key broker.PermissionKey) (broker.Permission, bool) {
	known := key.Kind == broker.PermissionMark && (key.Name == partner || key.Name == agent)
	return broker.Permission{PermissionKey: key, Content: "under: " + key.Name + "\nkind: agent\n", Subjects: broker.Subjects{Paths: []string{key.Name}}}, known
}

// newCampaigns returns the access reviews of a broker whose rules follow no decision.
func newCampaigns(t testing.TB, s *store.Store, b *broker.Broker) *campaign.Manager {
	t.Helper()
	m, err := campaign.New(campaign.Config{
		Store: s, Rows: store.NewCampaignRows(s), Uses: s.Inventory(), Rules: b.Rules, Ground: b.Facts.Ground, May: b.May,
		Enforce:  func(context.Context, time.Time) error { return nil },
		EndGrant: func(context.Context, broker.Caller, broker.RequestID, string) error { return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// driveCampaigns runs an access review: one item ends and is restored, the other is kept.
func (w *world) driveCampaigns(t *testing.T) {
	t.Helper()
	ctx, op := t.Context(), api.NewReviews(w.as(operator))
	ben, cleo := api.NewReviews(w.as("login/ben")), api.NewReviews(w.as("login/cleo"))
	c := must[*api.Campaign](t)(op.StartCampaign(ctx, "marks"))
	if c.Items != 2 || c.Status != "open" {
		t.Fatalf("started: %+v", c)
	}
	if _, err := op.StartCampaign(ctx, "marks"); err == nil {
		t.Error("a second campaign of the same name starts")
	}
	if list := must[*api.CampaignPage](t)(op.Campaigns(ctx, "", 0)); len(list.Campaigns) != 1 || list.Campaigns[0].ID != c.ID {
		t.Errorf("listed: %+v", list)
	}
	page := must[*api.ReviewItemPage](t)(ben.ReviewItems(ctx, c.ID, api.ReviewFilter{}))
	if len(page.Items) != 2 {
		t.Fatalf("items: %+v", page.Items)
	}
	first := must[*api.ReviewItem](t)(ben.ReviewItem(ctx, c.ID, page.Items[0].Item))
	vote := api.ReviewVote{Decision: "end", Digest: first.Digest, Reason: "no one uses it"}
	stale := vote
	stale.Digest = c.Digest
	if _, err := ben.DecideItem(ctx, c.ID, first.Item, stale); !errors.Is(err, api.StaleDigest) {
		t.Errorf("another digest: %v", err)
	}
	if _, err := api.NewReviews(w.as(agent)).DecideItem(ctx, c.ID, first.Item, vote); err == nil {
		t.Error("a workload decides about itself")
	}
	if item := must[*api.ReviewItem](t)(ben.DecideItem(ctx, c.ID, first.Item, vote)); item.Status != "ended" || item.Decision == nil || item.Decision.By != "login/ben" {
		t.Errorf("ended: %+v", item)
	}
	second := page.Items[1]
	kept := must[*api.ReviewBulkResult](t)(ben.KeepItems(ctx, c.ID, api.ReviewBulk{Items: []api.SeenItem{{Item: second.Item, Digest: second.Digest}}, Reason: "all in use"}))
	if kept.Kept+len(kept.Second) != 1 {
		t.Errorf("kept: %+v", kept)
	}
	for _, number := range kept.Second { // another person looks again
		must[*api.ReviewItem](t)(cleo.DecideItem(ctx, c.ID, number, api.ReviewVote{Decision: "keep", Digest: second.Digest, Reason: "in use"}))
	}
	// Two people restore what ended.
	if r := must[*api.RestorationResult](t)(ben.RestoreItem(ctx, c.ID, first.Item, api.Restoration{Digest: first.Digest, Reason: "it is needed"})); r.Restored {
		t.Errorf("restored by one person: %+v", r)
	}
	if r := must[*api.RestorationResult](t)(cleo.RestoreItem(ctx, c.ID, first.Item, api.Restoration{Digest: first.Digest, Reason: "it is needed"})); !r.Restored {
		t.Errorf("restored by two people: %+v", r)
	}
	if after := must[*api.Campaign](t)(op.Campaign(ctx, c.ID)); after.Counts["open"]+after.Counts["second_look"] != 0 {
		t.Errorf("after all decisions: %+v", after)
	}
	must[*api.ReviewPatch](t)(op.ReviewPatch(ctx, c.ID))
}
