package campaign

import (
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"iter"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// MaxItems bounds the items of one campaign.
const MaxItems = 1_000_000

// batch is the number of items that one transaction writes.
const batch = 500

// Start starts a campaign of the plan with this name. Members of the group that runs it may
// start it, and operators.
func (m *Manager) Start(ctx context.Context, caller broker.Caller, name string) (*broker.Campaign, error) {
	rules := m.cfg.Rules()
	caller.Actor, caller.Subject = rules.WithLabels(caller.Actor), rules.WithLabels(caller.Subject)
	plan := rules.Campaigns[name]
	if caller.Actor.Kind != broker.KindOperator {
		if err := caller.RequireSession(); err != nil {
			return nil, err
		}
	}
	if plan == nil {
		return nil, refuse(broker.ErrNotFound, fmt.Sprintf("reviews.yaml has no campaign %q", name))
	}
	if !m.runs(ctx, caller, plan) {
		return nil, refuse(broker.ErrDenied, "only members of the group "+plan.RunBy+" and operators start this access review")
	}
	if err := m.take(ctx); err != nil {
		return nil, err
	}
	defer m.giveBack()
	return m.start(ctx, caller, plan, time.Time{})
}

// runs reports whether the caller runs the plan's campaigns.
func (m *Manager) runs(ctx context.Context, caller broker.Caller, plan *broker.CampaignPlan) bool {
	switch caller.Actor.Kind {
	case broker.KindOperator:
		return true
	case broker.KindPerson:
		listed, claimed := m.cfg.Rules().Policy.Groups(caller.Subject)
		return slices.Contains(listed, plan.RunBy) || slices.Contains(claimed, plan.RunBy) || m.cfg.May(ctx, caller, broker.ActionOperate)
	}
	return false
}

// start builds a campaign and opens it. The manager has its turn.
func (m *Manager) start(ctx context.Context, caller broker.Caller, plan *broker.CampaignPlan, scheduled time.Time) (*broker.Campaign, error) {
	running, err := m.cfg.Rows.Campaigns(ctx, broker.CampaignQuery{Name: plan.Name, Live: true, Limit: batch})
	if err != nil {
		return nil, err
	}
	for _, other := range running {
		if other.Status == broker.CampaignOpen {
			return nil, refuse(broker.ErrCampaignRunning, "the access review "+other.ID.String()+" of this name is open until "+other.Deadline.UTC().Format(time.RFC3339))
		}
	}
	c := &broker.Campaign{
		Name: plan.Name, Status: broker.CampaignBuilding, By: caller.Subject.ID, Scheduled: scheduled,
		Started: caller.At, Deadline: caller.At.Add(plan.Deadline), Plan: *plan,
	}
	err = retry(func() error {
		c.ID = broker.NewCampaignID(caller.At)
		return m.build(ctx, caller, c)
	})
	if err != nil {
		return nil, err
	}
	return c, m.discard(ctx, running)
}

// discard closes campaigns whose building was interrupted. No one saw them.
func (m *Manager) discard(ctx context.Context, unfinished []*broker.Campaign) error {
	if len(unfinished) == 0 {
		return nil
	}
	err := m.cfg.Store.Update(ctx, nil, func(tx broker.Tx) error {
		for _, c := range unfinished {
			c.Status = broker.CampaignDiscarded
			tx.Put(c)
		}
		return nil
	})
	return broker.Unavailable(err)
}

// build writes the items of a campaign in batches, and then opens it in one transaction with
// its record. Until then, no one sees it. The rules may change meanwhile; then all of it is
// built again, with another ID.
func (m *Manager) build(ctx context.Context, caller broker.Caller, c *broker.Campaign) error {
	rules := m.cfg.Rules()
	b := &builder{m: m, c: c, assigner: m.assigner(rules, &c.Plan), digest: sha256.New()}
	c.Revision, c.Status, c.Counts = rules.Base, broker.CampaignBuilding, broker.CampaignCounts{}
	if err := b.items(ctx, rules, caller.At); err != nil {
		return err
	}
	if err := b.flush(ctx); err != nil {
		return err
	}
	if b.orphans > 0 {
		m.cfg.Log.WarnContext(ctx, "no one may review some items of an access review, because everyone in the fallback group uses them: add a member, or they are disabled at the deadline",
			"name", c.Name, "items", b.orphans, "fallback", c.Plan.Fallback)
	}
	c.Status, c.Digest = broker.CampaignOpen, audit.Digest(b.digest.Sum(nil))
	waiting, err := m.cfg.Rows.ReviewersWaiting(ctx, c.ID)
	if err != nil {
		return err
	}
	m.able[c.ID] = b.ableReviewers(waiting)
	f := facts(c)
	f.Items, f.Digest, f.Deadline, f.Signed, f.Waiting = int64(c.Counts.Items), c.Digest, c.Deadline, c.Plan.Signed, int64(c.Counts.Waiting())
	record := audit.Record{Kind: audit.CampaignStarted, Caller: caller.Actor.Party(), Campaign: f}
	return m.write(ctx, []broker.Key{broker.RevisionKey{}, c.ID}, []audit.Record{record}, func(tx broker.Tx) error {
		if err := checkRevision(tx, rules.Revision); err != nil {
			return err
		}
		tx.Put(c)
		m.notifyReviewers(tx, broker.NoticeReviewStarted, c, waiting, rules, caller.At)
		return nil
	})
}

// checkRevision returns errOvertaken unless the rules of that revision are in force.
func checkRevision(tx broker.Tx, revision audit.Digest) error {
	inForce, err := broker.Get[*broker.Revision](tx, broker.RevisionKey{})
	if err != nil {
		return fmt.Errorf("reading the revision in force: %w", err)
	}
	if inForce.Digest != revision {
		return errOvertaken
	}
	return nil
}

// A builder writes the items of a campaign.
type builder struct {
	*assigner
	m       *Manager
	c       *broker.Campaign
	digest  hash.Hash
	pending []*broker.ReviewItem
	orphans int // items that no one may review, not even in the fallback group
}

// items adds an item for each permission in the scope.
func (b *builder) items(ctx context.Context, rules *broker.Rules, now time.Time) error {
	suspended := map[broker.PermissionKey]bool{}
	for _, s := range rules.Suspensions {
		suspended[s.PermissionKey] = len(s.Left) == 0
	}
	for _, kind := range kinds {
		for p := range permissions(rules, b.c.Plan.Scope, kind) {
			if suspended[p.PermissionKey] {
				continue // it permits nothing, and lifting the suspension is a decision itself
			}
			if err := b.add(ctx, &p); err != nil {
				return err
			}
		}
	}
	return b.m.eachGrant(ctx, rules, b.c.Plan.Scope, now, func(p *broker.Permission) error { return b.add(ctx, p) })
}

// kinds are the kinds of permissions that are rules.
var kinds = []broker.PermissionKind{broker.PermissionPermit, broker.PermissionMark, broker.PermissionMember, broker.PermissionSupplier}

func permissions(rules *broker.Rules, scope broker.CampaignScope, kind broker.PermissionKind) iter.Seq[broker.Permission] {
	if rules.Permissions == nil {
		return func(func(broker.Permission) bool) {}
	}
	return rules.Permissions.All(scope, kind)
}

func (b *builder) add(ctx context.Context, p *broker.Permission) error {
	if b.c.Counts.Items == MaxItems {
		return refuse(broker.ErrInvalidRequest, fmt.Sprintf("the access review would have more than %d items: split its scope", MaxItems))
	}
	b.c.Counts.Add(broker.ReviewOpen)
	i := &broker.ReviewItem{
		ReviewItemKey: broker.ReviewItemKey{Campaign: b.c.ID, Number: b.c.Counts.Items}, Permission: p.PermissionKey, Digest: p.Digest(),
		Signed: b.c.Plan.Signed || p.Signed, Status: broker.ReviewOpen,
	}
	if i.Reviewer, i.Fallback = b.assign(p); i.Fallback && !b.isEligible(i.Reviewer, p) {
		b.orphans++
	}
	_, _ = fmt.Fprintf(b.digest, "%d %s %q\n", i.Number, i.Digest, i.Permission.String())
	if b.pending = append(b.pending, i); len(b.pending) < batch {
		return nil
	}
	return b.flush(ctx)
}

// flush writes the pending items, with the campaign that has them. The store commits a
// transaction without records too: the campaign is not open, and its record follows.
func (b *builder) flush(ctx context.Context) error {
	err := b.m.cfg.Store.Update(ctx, nil, func(tx broker.Tx) error {
		for _, i := range b.pending {
			tx.Put(i)
		}
		tx.Put(b.c)
		return nil
	})
	b.pending = b.pending[:0]
	return broker.Unavailable(err)
}

// maxGrantLasts is the longest time from a request to the end of its grant, which may wait for
// approval and start later: older requests have no grant.
const maxGrantLasts = 3 * broker.MaxDuration

// eachGrant calls f for each grant in force that is longer than the scope's bound.
func (m *Manager) eachGrant(ctx context.Context, rules *broker.Rules, scope broker.CampaignScope, now time.Time, f func(*broker.Permission) error) error {
	if scope.GrantsLongerThan == 0 {
		return nil
	}
	q := broker.RequestQuery{Status: broker.RequestApproved, Now: now, Limit: batch}
	q.Match = func(r *broker.Request) bool { return r.Grant().Duration > scope.GrantsLongerThan }
	for {
		var page []*broker.Request
		var next broker.RequestID
		err := m.cfg.Store.View(ctx, func(tx broker.Tx) (err error) {
			page, next, err = tx.Requests(q)
			return err
		})
		if err != nil {
			return broker.Unavailable(err)
		}
		for _, r := range page {
			p := grant(rules, r)
			if err := f(&p); err != nil {
				return err
			}
		}
		if q.Before = next; next.IsZero() || next.Time().Before(now.Add(-maxGrantLasts)) {
			return nil
		}
	}
}

// grant returns the permission of a grant.
func grant(rules *broker.Rules, r *broker.Request) broker.Permission {
	g := r.Grant()
	p := broker.Permission{
		PermissionKey: broker.PermissionKey{Kind: broker.PermissionGrant, Name: r.ID.String()}, Covers: []string{r.Entitlement}, Team: r.Requester.Team,
		Content: fmt.Sprintf("request: %s\nrequester: %s\nentitlement: %s\nscopes: %s\nduration: %s\nends: %s\n", r.ID, r.Requester.ID, r.Entitlement,
			strings.Join(g.Scopes, ", "), broker.FormatDuration(g.Duration), r.CollectUntil.UTC().Format(time.RFC3339)),
		Signed: r.Decision.Obligations.Signed,
	}
	if e := rules.Catalogue[r.Entitlement]; e != nil && e.Owner != "" {
		p.Owners = []string{e.Owner}
	}
	if r.Requester.Kind == broker.KindPerson {
		p.Subjects.People = []string{r.Requester.ID}
	} else {
		p.Subjects.Paths = []string{r.Requester.ID}
		p.Subjects.People = r.Requester.Accountable
	}
	return p
}

// find returns a permission as it is now, and whether it still exists.
func (m *Manager) find(ctx context.Context, rules *broker.Rules, key broker.PermissionKey, now time.Time) (p broker.Permission, ok bool, err error) {
	if key.Kind != broker.PermissionGrant {
		if rules.Permissions != nil {
			p, ok = rules.Permissions.Find(key)
		}
		return p, ok, nil
	}
	id, err := broker.ParseRequestID(key.Name)
	if err != nil {
		return p, false, nil
	}
	r, err := get[*broker.Request](ctx, m, id)
	if err != nil {
		return p, false, ignoreNotFound(err)
	}
	return grant(rules, r), r.State(now) == broker.RequestApproved, nil
}
