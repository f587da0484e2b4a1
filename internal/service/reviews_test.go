package service_test

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
	"accessbroker.internal/internal/brokertest"
	"accessbroker.internal/internal/config"
	"accessbroker.internal/internal/service"
	"accessbroker.internal/store"
)

const accessReviews = `
yearly:
  scope: {permits: [all], groups: [support]}
  reviewers: [owner]
  fallback: security
  deadline: 1h
`

// The deadline of an access review passes while the broker is down. The start applies it
// before anything is issued, the revision and policy explain show it, and the patch brings
// git to the same state.
func TestDeadlineOfAReviewThatPassedWhileDown(t *testing.T) {
	w := brokertest.NewWorld(t)
	policies := filepath.Join(filepath.Dir(w.ConfigFile()), "policies")
	if err := os.WriteFile(filepath.Join(policies, "reviews.yaml"), []byte(accessReviews), 0o600); err != nil {
		t.Fatal(err)
	}
	ask := api.Ask{Entitlement: "tickets-api", Scopes: []string{"tickets:read"}, Justification: "triage"}
	w.Lease(ask) // before the review, it is permitted

	_, stop := w.Start(io.Discard)
	reviews := api.NewReviews(w.Operator())
	c, err := reviews.StartCampaign(t.Context(), "yearly")
	if err != nil || c.Items < 5 {
		t.Fatalf("got %+v, %v", c, err)
	}
	page, err := reviews.ReviewItems(t.Context(), c.ID, api.ReviewFilter{})
	number := slices.IndexFunc(page.Items, func(i api.ReviewItem) bool { return i.Name == "agents-read-and-comment" }) + 1
	if err != nil || len(page.Items) != c.Items || number == 0 || page.Items[number-1].Reviewer != "group support" {
		t.Fatalf("got %+v, %v", page, err)
	}
	item, err := reviews.ReviewItem(t.Context(), c.ID, number)
	if err != nil || item.Use == nil || item.Use.Credentials != 1 || item.MayDecide {
		t.Errorf("got item %+v, use %+v, %v", item, item.Use, err)
	}
	stop()
	passDeadline(t, w, c.ID)

	stopIdentities := w.StartIdentities()
	defer stopIdentities()
	_, stop = w.Start(io.Discard)
	if _, _, err := w.Agent().AskAndCollect(t.Context(), ask); err == nil || !strings.Contains(err.Error(), "denied") {
		t.Errorf("an unreviewed permit: %v", err)
	}
	if c, err := reviews.Campaign(t.Context(), c.ID); err != nil || c.Status != "closed" || c.Counts["disabled"] != c.Items {
		t.Errorf("got %+v, %v", c, err)
	}
	settings, err := config.Load(w.ConfigFile(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if list, err := service.Suspensions(t.Context(), settings); err != nil || len(list) != c.Items {
		t.Errorf("policy explain knows %d suspensions, %v", len(list), err)
	}
	patch, err := reviews.ReviewPatch(t.Context(), c.ID)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(patch.Patch, "-@id(\"agents-read-and-comment\")") {
		t.Fatalf("got patch\n%s\nand notes %q", patch.Patch, patch.Notes)
	}
	apply := exec.CommandContext(t.Context(), "git", "apply", "-")
	apply.Dir, apply.Stdin = policies, strings.NewReader(patch.Patch)
	if out, err := apply.CombinedOutput(); err != nil {
		t.Fatalf("git apply: %v\n%s\n%s", err, out, patch.Patch)
	}
	stop()
}

// passDeadline sets the deadline of an access review back.
func passDeadline(t *testing.T, w *brokertest.World, id string) {
	t.Helper()
	key, err := broker.ParseCampaignID(id)
	if err != nil {
		t.Fatal(err)
	}
	db, err := store.Open(t.Context(), store.Config{URL: w.Database(), Reserve: 1 << 16, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(context.Background(), []broker.Key{key}, func(tx broker.Tx) error {
		c, err := broker.Get[*broker.Campaign](tx, key)
		if err != nil {
			return err
		}
		c.Deadline = time.Now().Add(-time.Minute)
		tx.Put(c)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}
