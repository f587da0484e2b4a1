package campaign_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// grantOf writes a grant of a duration to an identity.
func (w *world) grantOf(id string, kind broker.Kind, duration time.Duration) *broker.Request {
	w.t.Helper()
	rules := w.broker.Rules()
	who := rules.WithLabels(broker.Identity{ID: id, Kind: kind, TrustDomain: broker.TrustDomainOf(id)})
	r := &broker.Request{
		ID: broker.NewRequestID(noon), Status: broker.RequestApproved, Requester: who, Entitlement: "tickets-api", Scopes: []string{"read"}, TTL: time.Minute,
		Duration: duration, Created: noon, Approved: noon, CollectUntil: noon.Add(duration), Approvals: []broker.Approval{{Person: "login/ben", Approve: true, At: noon}},
	}
	w.ok(w.store.Update(context.Background(), []broker.Key{r.ID}, func(tx broker.Tx) error { tx.Put(r); return nil }))
	return r
}

func (w *world) request(id broker.RequestID) (r *broker.Request) {
	w.t.Helper()
	w.ok(w.store.View(context.Background(), func(tx broker.Tx) (err error) {
		r, err = broker.Get[*broker.Request](tx, id)
		return err
	}))
	return r
}

func TestLongGrantsAreReviewed(t *testing.T) {
	w := newWorld(t, "grants:\n  scope: {grants_longer_than: 24h}\n  reviewers: [owner]\n  fallback: security\n  deadline: 7d\n")
	agent := w.grantOf("spiffe://acme.test/agent/triage", broker.KindAgent, 20*day)
	person20 := w.grantOf("login/ben", broker.KindPerson, 20*day)
	kept := w.grantOf("spiffe://acme.test/batch", broker.KindWorkload, 20*day)
	w.grantOf("spiffe://acme.test/batch", broker.KindWorkload, time.Hour) // short
	c := w.begin("grants", noon)
	if c.Counts.Items != 3 {
		t.Fatalf("got %d items, want the 3 grants that are longer than a day", c.Counts.Items)
	}
	at := noon.Add(time.Hour)
	// ben approved the grant of the agent, for which ana is accountable.
	i := w.item(c, "grant "+agent.ID.String(), at)
	w.refused(w.decide(person("login/ana", at), i, broker.VerdictKeep), broker.ErrOwnAccess)
	if d, err := w.reviews.Item(context.Background(), operator(at), i.ReviewItemKey); err != nil || len(d.Approved) != 1 || d.Approved[0].Person != "login/ben" {
		t.Errorf("who approved the grant: %+v, %v", d, err)
	}
	w.ok(w.decide(person("login/ben", at), i, broker.VerdictEnd))
	if state := w.request(agent.ID).State(at.Add(time.Second)); state != broker.RequestEnded {
		t.Errorf("the ended grant has state %d", state)
	}
	w.refused(w.decide(person("login/ben", at), w.item(c, "grant "+person20.ID.String(), at), broker.VerdictKeep), broker.ErrOwnAccess)
	w.ok(w.decide(person("login/ana", at), w.item(c, "grant "+kept.ID.String(), at), broker.VerdictKeep))
	w.tick(c.Deadline)
	if state := w.request(person20.ID).State(c.Deadline.Add(time.Second)); state != broker.RequestEnded {
		t.Errorf("the unreviewed grant has state %d", state)
	}
	if state := w.request(kept.ID).State(c.Deadline.Add(time.Second)); state != broker.RequestApproved {
		t.Errorf("the kept grant has state %d", state)
	}
	if n := len(w.records(audit.RequestRevoked)); n != 2 {
		t.Errorf("got %d records of ended grants, want 2", n)
	}
	if len(w.broker.Rules().Suspensions) != 0 {
		t.Error("a grant is suspended in the rules")
	}
}

// One of many decisions on an item counts.
func TestConcurrentDecisions(t *testing.T) {
	w := newWorld(t, reviews)
	c := w.begin("quarterly", noon)
	i := w.item(c, "permit dba-own", noon)
	var group sync.WaitGroup
	errs := make([]error, 8)
	for n := range errs {
		group.Go(func() {
			who, verdict := person([]string{"login/sam", "login/sue"}[n%2], noon), broker.VerdictKeep
			if n%3 == 0 {
				verdict = broker.VerdictEnd
			}
			errs[n] = w.decide(who, i, verdict)
		})
	}
	group.Wait()
	made := 0
	for _, err := range errs {
		if err == nil {
			made++
		} else if !errors.Is(err, broker.ErrAlreadyVoted) {
			t.Errorf("got %v, want already_voted", err)
		}
	}
	if got := w.campaign(c.ID, noon); made != 1 || len(w.records(audit.CampaignDecided)) != 1 || got.Counts.Waiting() != 2 {
		t.Errorf("%d decisions were made: %+v", made, got.Counts)
	}
}
