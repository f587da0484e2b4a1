package campaign

import (
	"context"
	"errors"
	"slices"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// PageMax is the number of rows of a page.
const PageMax = 100

// An Item is a review item as people see it.
type Item struct {
	*broker.ReviewItem
	Permission broker.Permission // as the rules have it now; zero: they do not
	Exists     bool
	Digest     audit.Digest // of the permission now: decisions are bound to it
	MayDecide  bool         // the caller
	Why        string       // the caller may not decide; may be empty
	Suspension *broker.SuspensionRow
}

// Details are what helps to decide on an item.
type Details struct {
	Item
	Campaign *broker.Campaign
	Use      Use
	Earlier  []*broker.ReviewItem // decisions on this permission in other campaigns, newest first
	Approved []broker.Approval    // of a grant: who approved it
	Supplier string               // the state of the supplier that uses it; empty: there is none
}

// reviewersOf returns the reviewers that a caller can be.
func (m *Manager) reviewersOf(rules *broker.Rules, who broker.Identity) (list []string) {
	if who.Kind != broker.KindPerson {
		return nil
	}
	listed, claimed := rules.Policy.Groups(who)
	for _, g := range slices.Concat(listed, claimed) {
		list = append(list, broker.Reviewer{Group: g}.String())
	}
	for _, account := range append([]string{who.ID}, who.Accounts...) {
		list = append(list, broker.Reviewer{Person: account}.String())
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// runsOrAudits reports whether the caller sees all of a campaign.
func (m *Manager) runsOrAudits(ctx context.Context, caller broker.Caller, c *broker.Campaign) bool {
	return m.runs(ctx, caller, &c.Plan) || m.cfg.May(ctx, caller, broker.ActionAudit)
}

// mayView reports whether the caller may see a campaign: those who run it, auditors and its
// reviewers.
func (m *Manager) mayView(ctx context.Context, caller broker.Caller, c *broker.Campaign) (bool, error) {
	if c.Status == broker.CampaignBuilding || c.Status == broker.CampaignDiscarded {
		return false, nil
	}
	if m.runsOrAudits(ctx, caller, c) {
		return true, nil
	}
	mine := m.reviewersOf(m.cfg.Rules(), caller.Subject)
	if len(mine) == 0 {
		return false, nil
	}
	for _, g := range append(slices.Clone(c.Plan.Reviewers), c.Plan.Fallback) {
		if slices.Contains(mine, broker.Reviewer{Group: g}.String()) {
			return true, nil
		}
	}
	items, err := m.cfg.Rows.ReviewItems(ctx, broker.ReviewItemQuery{Campaign: c.ID, Reviewers: mine, Limit: 1})
	return len(items) > 0, err
}

// Campaigns returns the campaigns that the caller may see, newest first. next is the Before of
// the next page; zero: this is the last one.
func (m *Manager) Campaigns(ctx context.Context, caller broker.Caller, q broker.CampaignQuery) (list []*broker.Campaign, next broker.CampaignID, err error) {
	caller = m.labelled(caller)
	limit := q.Limit
	if limit < 1 || limit > PageMax {
		limit = PageMax
	}
	q.Limit = PageMax
	rows, err := m.cfg.Rows.Campaigns(ctx, q)
	if err != nil {
		return nil, next, err
	}
	for _, c := range rows {
		ok, err := m.mayView(ctx, caller, c)
		if err != nil {
			return nil, next, err
		}
		if !ok {
			continue
		}
		if list = append(list, c); len(list) == limit {
			return list, c.ID, nil
		}
	}
	if len(rows) == PageMax {
		next = rows[len(rows)-1].ID
	}
	return list, next, nil
}

func (m *Manager) labelled(caller broker.Caller) broker.Caller {
	rules := m.cfg.Rules()
	caller.Actor, caller.Subject = rules.WithLabels(caller.Actor), rules.WithLabels(caller.Subject)
	return caller
}

// Campaign returns a campaign, and whether the caller runs it. Those who may not see it get
// ErrNotFound.
func (m *Manager) Campaign(ctx context.Context, caller broker.Caller, id broker.CampaignID) (c *broker.Campaign, runs bool, err error) {
	caller = m.labelled(caller)
	if c, err = get[*broker.Campaign](ctx, m, id); err != nil {
		return nil, false, err
	}
	ok, err := m.mayView(ctx, caller, c)
	switch {
	case err != nil:
		return nil, false, err
	case !ok:
		return nil, false, broker.ErrNotFound
	}
	return c, m.runsOrAudits(ctx, caller, c), nil
}

// Waiting returns how many items of a campaign wait for each reviewer.
func (m *Manager) Waiting(ctx context.Context, caller broker.Caller, id broker.CampaignID) (map[string]int, error) {
	if _, runs, err := m.Campaign(ctx, caller, id); err != nil || !runs {
		return nil, err
	}
	return m.cfg.Rows.ReviewersWaiting(ctx, id)
}

// An ItemQuery selects items of a campaign; zero fields select all.
type ItemQuery struct {
	Status broker.ReviewStatus
	Mine   bool // that wait for the caller, who may decide on them
	After  int
	Limit  int
}

// Items returns items of a campaign. Those who do not run it see the items of which they are
// the reviewer. next is the After of the next page; zero: this is the last one. A page may be
// short before the end.
func (m *Manager) Items(ctx context.Context, caller broker.Caller, id broker.CampaignID, q ItemQuery) (list []Item, next int, err error) {
	c, runs, err := m.Campaign(ctx, caller, id)
	if err != nil {
		return nil, 0, err
	}
	caller = m.labelled(caller)
	limit := q.Limit
	if limit < 1 || limit > PageMax {
		limit = PageMax
	}
	rules := m.cfg.Rules()
	rows := broker.ReviewItemQuery{Campaign: id, After: q.After, Limit: batch}
	if q.Mine {
		rows.Reviewers = m.reviewersOf(rules, caller.Subject)
		if len(rows.Reviewers) == 0 {
			return nil, 0, nil
		}
	}
	if q.Status != 0 {
		rows.Statuses = []int64{int64(q.Status)}
	}
	page, err := m.cfg.Rows.ReviewItems(ctx, rows)
	if err != nil {
		return nil, 0, err
	}
	a := m.assigner(rules, &c.Plan)
	for _, i := range page {
		if i.Number > c.Counts.Items {
			return list, 0, nil
		}
		item, err := m.item(ctx, caller, a, c, i)
		if err != nil {
			return nil, 0, err
		}
		if q.Mine && !item.MayDecide || !runs && !item.MayDecide && !m.decided(rules, caller.Subject, i) {
			continue
		}
		if list = append(list, item); len(list) == limit {
			return list, i.Number, nil
		}
	}
	if len(page) == batch {
		next = page[len(page)-1].Number
	}
	return list, next, nil
}

// decided reports whether the person decided on the item, or is its reviewer.
func (m *Manager) decided(rules *broker.Rules, who broker.Identity, i *broker.ReviewItem) bool {
	return who.Is(i.Decision.Person) || slices.Contains(m.reviewersOf(rules, who), i.Reviewer.String())
}

// item returns an item with its permission as it is now.
func (m *Manager) item(ctx context.Context, caller broker.Caller, a *assigner, c *broker.Campaign, i *broker.ReviewItem) (Item, error) {
	p, exists, err := m.find(ctx, a.rules, i.Permission, caller.At)
	if err != nil {
		return Item{}, err
	}
	item := Item{ReviewItem: i, Permission: p, Exists: exists}
	if p.Name != "" {
		item.Digest = p.Digest()
	}
	refused := waits(c, i, caller.At)
	if refused == nil && exists {
		refused = caller.RequireSession()
		if refused == nil {
			refused = a.authorize(caller, &p)
		}
	}
	item.MayDecide = refused == nil && exists
	if refused != nil && exists && i.Status.Waits() && !a.hasReviewer(&p) {
		item.Why = "no one may review this: everyone in the fallback group " + a.plan.Fallback + " uses it or is accountable for it. Add a member to the group, or it is disabled at the deadline"
		return item, nil
	}
	if refusal := (*broker.Refusal)(nil); errors.As(refused, &refusal) {
		item.Why = refusal.Detail
	}
	return item, nil
}

// Item returns one item with what helps to decide on it.
func (m *Manager) Item(ctx context.Context, caller broker.Caller, key broker.ReviewItemKey) (*Details, error) {
	c, runs, err := m.Campaign(ctx, caller, key.Campaign)
	if err != nil {
		return nil, err
	}
	caller = m.labelled(caller)
	if key.Number < 1 || key.Number > c.Counts.Items {
		return nil, broker.ErrNotFound
	}
	i, err := get[*broker.ReviewItem](ctx, m, key)
	if err != nil {
		return nil, err
	}
	rules := m.cfg.Rules()
	a := m.assigner(rules, &c.Plan)
	item, err := m.item(ctx, caller, a, c, i)
	if err != nil {
		return nil, err
	}
	if !runs && !item.MayDecide && !m.decided(rules, caller.Subject, i) && !a.isFallback(caller.Subject) {
		return nil, broker.ErrNotFound
	}
	d := &Details{Item: item, Campaign: c}
	return d, m.fill(ctx, d, caller.At)
}

// isFallback reports whether the person is in the fallback group.
func (a *assigner) isFallback(who broker.Identity) bool {
	ok, _ := a.reviews(who, broker.Reviewer{Group: a.plan.Fallback})
	return ok
}

// fill adds the use of the permission, the earlier decisions on it and its suspension.
func (m *Manager) fill(ctx context.Context, d *Details, now time.Time) (err error) {
	key := d.ReviewItem.Permission
	if d.Exists {
		if d.Use, err = m.use(ctx, &d.Item.Permission); err != nil {
			m.cfg.Log.WarnContext(ctx, "reading the use of a permission for its review", "permission", key.String(), "err", err)
		}
	}
	earlier, err := m.cfg.Rows.ReviewItems(ctx, broker.ReviewItemQuery{Permission: key.String(), Newest: true, Limit: 20})
	if err != nil {
		return err
	}
	for _, e := range earlier {
		if e.Campaign != d.ReviewItem.Campaign && !e.Status.Waits() && len(d.Earlier) < 5 {
			d.Earlier = append(d.Earlier, e)
		}
	}
	s, err := get[*broker.SuspensionRow](ctx, m, broker.SuspensionKey(key))
	if ignoreNotFound(err) != nil {
		return err
	}
	if err == nil && s.Lifted.IsZero() {
		d.Suspension = s
	}
	d.Supplier = m.supplierState(&d.Item.Permission, now)
	if key.Kind != broker.PermissionGrant {
		return nil
	}
	id, err := broker.ParseRequestID(key.Name)
	if err != nil {
		return nil
	}
	r, err := get[*broker.Request](ctx, m, id)
	if err == nil {
		d.Approved = r.Approvals
	}
	return ignoreNotFound(err)
}

// Suspensions returns the suspensions in force. The caller of this function has checked that
// they may be seen.
func (m *Manager) Suspensions(ctx context.Context) ([]*broker.SuspensionRow, error) {
	return m.cfg.Rows.Suspensions(ctx)
}

// supplierState returns the state of the supplier whose identities use a permission.
func (m *Manager) supplierState(p *broker.Permission, now time.Time) string {
	rules := m.cfg.Rules()
	name := p.Supplier
	for _, path := range p.Subjects.Paths {
		if name == "" {
			if names := rules.Suppliers.Of(broker.Identity{ID: path, Kind: broker.KindWorkload}); len(names) > 0 {
				name = names[0]
			}
		}
	}
	s := rules.Suppliers.Named(name)
	switch {
	case name == "" || s == nil:
		return ""
	case s.Live(now):
		return s.DisplayName() + ": the contract ends " + day(s.Ends)
	case now.Before(s.Starts):
		return s.DisplayName() + ": the contract starts " + day(s.Starts)
	}
	return s.DisplayName() + ": the contract ended " + day(s.Ends)
}

// Startable returns the names of the plans that the caller may start.
func (m *Manager) Startable(ctx context.Context, caller broker.Caller) (names []string) {
	caller = m.labelled(caller)
	for name, plan := range m.cfg.Rules().Campaigns {
		if m.runs(ctx, caller, plan) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}
