package campaign

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// tickEvery is how often Run looks for what is due.
const tickEvery = time.Second

// Run starts campaigns on their schedule, reminds people, and closes campaigns at their
// deadline, until ctx ends.
func (m *Manager) Run(ctx context.Context) error {
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	failing := false
	for {
		err := m.Tick(ctx, time.Now())
		if err != nil && !failing && ctx.Err() == nil {
			m.cfg.Log.ErrorContext(ctx, "running the access reviews", "err", err)
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Tick does what is due at now.
func (m *Manager) Tick(ctx context.Context, now time.Time) error {
	if err := m.take(ctx); err != nil {
		return err
	}
	defer m.giveBack()
	return errors.Join(m.settleDue(ctx, now), m.startDue(ctx, now))
}

// Settle is Tick without the start of new campaigns. A start of the broker calls it before
// anything is issued, so that deadlines that passed meanwhile have taken effect.
func (m *Manager) Settle(ctx context.Context, now time.Time) error {
	if err := m.take(ctx); err != nil {
		return err
	}
	defer m.giveBack()
	return m.settleDue(ctx, now)
}

func (m *Manager) settleDue(ctx context.Context, now time.Time) error {
	live, err := m.cfg.Rows.Campaigns(ctx, broker.CampaignQuery{Live: true, Limit: batch})
	if err != nil {
		return err
	}
	var errs []error
	for _, c := range live {
		if c.Status == broker.CampaignOpen {
			errs = append(errs, m.advance(ctx, c, now))
		}
	}
	return errors.Join(append(errs, m.catchUp(ctx, live, now))...)
}

// advance does what is due for one open campaign.
func (m *Manager) advance(ctx context.Context, c *broker.Campaign, now time.Time) error {
	if !now.Before(c.Deadline) || c.Counts.Waiting() == 0 {
		return m.close(ctx, c, now)
	}
	if err := m.refresh(ctx, c, now); err != nil {
		return err
	}
	return m.remind(ctx, c, now)
}

// startDue starts the campaigns whose date has come. A date that passed while the broker was
// down is made up for once.
func (m *Manager) startDue(ctx context.Context, now time.Time) error {
	var errs []error
	for name, plan := range m.cfg.Rules().Campaigns {
		if plan.Every == 0 || now.Before(plan.First) {
			continue
		}
		due := plan.First.Add(now.Sub(plan.First) / plan.Every * plan.Every)
		if m.scheduled[name].Equal(due) {
			continue
		}
		earlier, err := m.cfg.Rows.Campaigns(ctx, broker.CampaignQuery{Name: name, Limit: batch})
		if err != nil {
			return err
		}
		ran := slices.ContainsFunc(earlier, func(c *broker.Campaign) bool {
			return c.Status != broker.CampaignBuilding && c.Status != broker.CampaignDiscarded && !c.Scheduled.Before(due)
		})
		if !ran {
			if _, err = m.start(ctx, broker.Caller{At: now}, plan, due); errors.Is(err, broker.ErrCampaignRunning) {
				continue // it starts once that one is closed
			}
		}
		if err == nil {
			m.scheduled[name] = due
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// remind sends the reminders and takes the steps of escalation that are due.
func (m *Manager) remind(ctx context.Context, c *broker.Campaign, now time.Time) error {
	reminded, escalated := c.Reminded, c.Escalated
	for reminded < len(c.Plan.Remind) && !now.Before(c.Deadline.Add(-c.Plan.Remind[reminded])) {
		reminded++
	}
	for escalated < len(c.Plan.Escalate) && !now.Before(c.Deadline.Add(-c.Plan.Escalate[escalated].After)) {
		escalated++
	}
	if reminded == c.Reminded && escalated == c.Escalated {
		return nil
	}
	waiting, err := m.cfg.Rows.ReviewersWaiting(ctx, c.ID)
	if err != nil {
		return err
	}
	rules, f := m.cfg.Rules(), facts(c)
	f.Waiting, f.Deadline = int64(c.Counts.Waiting()), c.Deadline
	var records []audit.Record
	if reminded > c.Reminded {
		records = append(records, audit.Record{Kind: audit.CampaignReminded, Campaign: f})
	}
	for _, step := range c.Plan.Escalate[c.Escalated:escalated] {
		to := *f
		to.Reviewer = broker.Reviewer{Group: step.Group}.String()
		records = append(records, audit.Record{Kind: audit.CampaignEscalated, Campaign: &to})
	}
	return m.write(ctx, []broker.Key{c.ID}, records, func(tx broker.Tx) error {
		stored, err := broker.Get[*broker.Campaign](tx, c.ID)
		if err != nil {
			return err
		}
		if stored.Reminded != c.Reminded || stored.Escalated != c.Escalated || stored.Status != broker.CampaignOpen {
			return errOvertaken
		}
		if reminded > c.Reminded {
			m.notifyReviewers(tx, broker.NoticeReviewReminder, c, waiting, rules, now)
		}
		for _, step := range c.Plan.Escalate[c.Escalated:escalated] {
			announce(tx, broker.NoticeReviewEscalated, c, items(c.Counts.Waiting())+" still wait", "The deadline is "+day(c.Deadline)+". What no one reviewed by then is disabled.", []string{step.Group}, rules, now)
		}
		stored.Reminded, stored.Escalated = reminded, escalated
		tx.Put(stored)
		return nil
	})
}

// close disables what no one reviewed, and closes the campaign.
//
// The rules come first: from then on, what is unreviewed permits nothing, and the rows only
// follow. If the process dies in between, the next start finds the same items overdue.
func (m *Manager) close(ctx context.Context, c *broker.Campaign, now time.Time) error {
	if c.Counts.Waiting() > 0 {
		if err := m.cfg.Enforce(ctx, now); err != nil {
			return err
		}
		if err := m.disable(ctx, c, now); err != nil {
			return err
		}
	}
	if err := m.endGrants(ctx, c, now); err != nil {
		return err // the grants of a closed campaign are not looked at again
	}
	rules := m.cfg.Rules()
	var closed *broker.Campaign
	f := facts(c)
	f.Items = int64(c.Counts.Items)
	err := m.write(ctx, []broker.Key{c.ID}, []audit.Record{{Kind: audit.CampaignClosed, Campaign: f}}, func(tx broker.Tx) error {
		stored, err := broker.Get[*broker.Campaign](tx, c.ID)
		if err != nil {
			return err
		}
		if stored.Status != broker.CampaignOpen || stored.Counts.Waiting() > 0 {
			return errOvertaken // the next tick tries again
		}
		stored.Status, stored.Closed = broker.CampaignClosed, now
		n := &stored.Counts
		announce(tx, broker.NoticeReviewClosed, stored, "closed", fmt.Sprintf("%d kept, %d narrowed, %d ended, %d disabled because no one reviewed them, %d gone.\n\"broker review patch %s\" proposes the change for git.",
			n.Kept, n.Narrowed, n.Ended, n.Disabled, n.Gone, stored.ID), []string{stored.Plan.RunBy}, rules, now)
		tx.Put(stored)
		closed = stored
		return nil
	})
	if err != nil {
		return err
	}
	m.cfg.Log.InfoContext(ctx, "an access review is closed", "campaign", c.ID.String(), "name", c.Name, "disabled", closed.Counts.Disabled)
	return m.enforce(ctx, now)
}

// disable disables the items that wait, in batches. Grants are ended before their rows say
// so. A grant that cannot be ended waits for the next tick, and keeps no other item waiting.
func (m *Manager) disable(ctx context.Context, c *broker.Campaign, now time.Time) error {
	q := broker.ReviewItemQuery{Campaign: c.ID, Statuses: waitingStatuses, Limit: batch}
	var failed []error
	for {
		page, err := m.cfg.Rows.ReviewItems(ctx, q)
		if err != nil || len(page) == 0 {
			return errors.Join(append(failed, err)...)
		}
		rules := m.cfg.Rules()
		var disabled []*broker.ReviewItem
		for _, i := range page {
			if err := m.disableItem(ctx, rules, c, i, now); err != nil {
				failed = append(failed, err)
				continue
			}
			disabled = append(disabled, i)
		}
		switch err := m.settle(ctx, c, disabled); {
		case errors.Is(err, errOvertaken):
			continue // the page is read again
		case err != nil:
			return errors.Join(append(failed, err)...)
		}
		q.After = page[len(page)-1].Number
	}
}

// disableItem sets the status of an item at the deadline. It ends a grant.
func (m *Manager) disableItem(ctx context.Context, rules *broker.Rules, c *broker.Campaign, i *broker.ReviewItem, now time.Time) error {
	_, exists, err := m.find(ctx, rules, i.Permission, now)
	if err != nil {
		return err
	}
	i.Status, i.Closed = broker.ReviewDisabled, c.Deadline
	if !exists {
		i.Status, i.Closed = broker.ReviewGone, now
	}
	id, err := broker.ParseRequestID(i.Permission.Name)
	if !exists || i.Permission.Kind != broker.PermissionGrant || err != nil {
		return nil
	}
	return m.cfg.EndGrant(ctx, broker.Caller{At: now}, id, "no one reviewed this grant in the access review "+c.Name)
}

var waitingStatuses = []int64{int64(broker.ReviewOpen), int64(broker.ReviewSecond)}

// settle writes items whose status or reviewer changed without a decision, each with its
// record. Items that someone decided on meanwhile stay as they are.
func (m *Manager) settle(ctx context.Context, c *broker.Campaign, list []*broker.ReviewItem) error {
	if len(list) == 0 {
		return nil
	}
	reads := []broker.Key{c.ID}
	var records []audit.Record
	for _, i := range list {
		reads = append(reads, i.ReviewItemKey, broker.SuspensionKey(i.Permission))
		kind := audit.CampaignAssigned
		switch i.Status {
		case broker.ReviewDisabled:
			kind = audit.CampaignDisabled
		case broker.ReviewGone:
			kind = audit.CampaignDropped
		}
		records = append(records, audit.Record{Kind: kind, Campaign: itemFacts(c, i)})
	}
	return m.write(ctx, reads, records, func(tx broker.Tx) error {
		stored, err := broker.Get[*broker.Campaign](tx, c.ID)
		if err != nil {
			return err
		}
		for _, i := range list {
			before, err := broker.Get[*broker.ReviewItem](tx, i.ReviewItemKey)
			if err != nil {
				return err
			}
			if !before.Status.Waits() || stored.Status != broker.CampaignOpen {
				return errOvertaken // the caller reads the rest again
			}
			stored.Counts.Move(before.Status, i.Status)
			if err := suspend(tx, suspension(i, c.Deadline)); err != nil {
				return err
			}
			tx.Put(i)
		}
		tx.Put(stored)
		return nil
	})
}

// catchUp makes up for what a failure or a crash interrupted: it enforces decisions, and ends
// the grants that decisions ended.
func (m *Manager) catchUp(ctx context.Context, live []*broker.Campaign, now time.Time) error {
	if m.behind.Load() {
		if err := m.enforce(ctx, now); err != nil {
			return err
		}
	}
	if !m.unended.Swap(false) {
		return nil
	}
	for _, c := range live {
		if err := m.endGrants(ctx, c, now); err != nil {
			m.unended.Store(true)
			return err
		}
	}
	return nil
}

// endGrants ends the grants that the decisions of a campaign ended.
func (m *Manager) endGrants(ctx context.Context, c *broker.Campaign, now time.Time) error {
	if c.Plan.Scope.GrantsLongerThan == 0 {
		return nil
	}
	q := broker.ReviewItemQuery{Campaign: c.ID, Statuses: []int64{int64(broker.ReviewEnded), int64(broker.ReviewDisabled)}, Limit: batch}
	for {
		page, err := m.cfg.Rows.ReviewItems(ctx, q)
		if err != nil || len(page) == 0 {
			return err
		}
		for _, i := range page {
			q.After = i.Number
			id, err := broker.ParseRequestID(i.Permission.Name)
			if err != nil || i.Permission.Kind != broker.PermissionGrant {
				continue
			}
			if err := m.cfg.EndGrant(ctx, broker.Caller{At: now}, id, "an access review ended this grant"); err != nil {
				return err
			}
		}
	}
}

// Suspended returns the suspensions at now: those of decisions and closed campaigns, and what
// is overdue in campaigns that are not closed yet. exists reports whether the rules have a
// permission.
func Suspended(ctx context.Context, rows Rows, exists func(broker.PermissionKey) bool, now time.Time) ([]broker.Suspension, error) {
	stored, err := rows.Suspensions(ctx)
	if err != nil {
		return nil, err
	}
	all := make(map[broker.PermissionKey]broker.Suspension, len(stored))
	for _, s := range stored {
		all[broker.PermissionKey(s.SuspensionKey)] = s.Suspension()
	}
	live, err := rows.Campaigns(ctx, broker.CampaignQuery{Live: true, Limit: batch})
	if err != nil {
		return nil, err
	}
	for _, c := range live {
		if c.Status != broker.CampaignOpen || now.Before(c.Deadline) {
			continue
		}
		q := broker.ReviewItemQuery{Campaign: c.ID, Statuses: waitingStatuses, Limit: batch}
		for page, err := rows.ReviewItems(ctx, q); ; page, err = rows.ReviewItems(ctx, q) {
			if err != nil {
				return nil, err
			}
			if len(page) == 0 {
				break
			}
			for _, i := range page {
				q.After, i.Status = i.Number, broker.ReviewDisabled
				before, known := all[i.Permission]
				if s := suspension(i, c.Deadline); s != nil && exists(i.Permission) && (!known || len(before.Left) > 0) {
					all[i.Permission] = s.Suspension()
				}
			}
		}
	}
	list := make([]broker.Suspension, 0, len(all))
	for _, s := range all {
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b broker.Suspension) int { return cmp.Compare(a.Key, b.Key) })
	return list, nil
}
