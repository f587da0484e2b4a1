package campaign

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// checkEvery is how often a campaign looks for reviewers who can no longer decide. A change
// of the rules is seen at once.
const checkEvery = time.Minute

// refresh assigns the items that wait anew after a change of the rules, or if a reviewer has
// left. Items whose permission is gone are dropped.
func (m *Manager) refresh(ctx context.Context, c *broker.Campaign, now time.Time) error {
	rules := m.cfg.Rules()
	a := m.assigner(rules, &c.Plan)
	if c.Revision == rules.Base {
		if now.Sub(m.checked[c.ID]) < checkEvery {
			return nil
		}
		m.checked[c.ID] = now
		waiting, err := m.cfg.Rows.ReviewersWaiting(ctx, c.ID)
		if err != nil {
			return err
		}
		able := a.ableReviewers(waiting)
		if m.able[c.ID] == able {
			return nil
		}
		m.able[c.ID] = able
	}
	moved := map[string]int{}
	q := broker.ReviewItemQuery{Campaign: c.ID, Statuses: waitingStatuses, Limit: batch}
	for {
		page, err := m.cfg.Rows.ReviewItems(ctx, q)
		if err != nil {
			return err
		}
		if len(page) == 0 {
			break
		}
		q.After = page[len(page)-1].Number
		var changed []*broker.ReviewItem
		for _, i := range page {
			differs, err := m.reassign(ctx, a, i, moved, now)
			if err != nil {
				return err
			}
			if differs {
				changed = append(changed, i)
			}
		}
		if err := m.settle(ctx, c, changed); err != nil {
			if errors.Is(err, errOvertaken) {
				return nil // the next tick begins again
			}
			return err
		}
	}
	return m.refreshed(ctx, c, rules, moved, now)
}

// ableReviewers returns a digest of the people who can decide for the reviewers that items
// wait for. The members by claims of a group are not known.
func (a *assigner) ableReviewers(waiting map[string]int) audit.Digest {
	all := sha256.New()
	for _, reviewer := range slices.Sorted(maps.Keys(waiting)) {
		_, _ = fmt.Fprintf(all, "%q\n", reviewer)
		kind, name, _ := strings.Cut(reviewer, " ")
		if kind == "group" {
			_, _ = fmt.Fprintf(all, "%q\n", a.reviewers(name))
		} else if a.m.cfg.Ended(name) {
			_, _ = io.WriteString(all, "left\n")
		}
	}
	return audit.Digest(all.Sum(nil))
}

// reassign sets the reviewer and the digest of an item as they are now, and reports whether
// the item differs from what is stored.
func (m *Manager) reassign(ctx context.Context, a *assigner, i *broker.ReviewItem, moved map[string]int, now time.Time) (bool, error) {
	p, exists, err := m.find(ctx, a.rules, i.Permission, now)
	if err != nil {
		return false, err
	}
	if !exists {
		i.Status, i.Closed = broker.ReviewGone, now
		return true, nil
	}
	before := *i
	i.Digest, i.Signed = p.Digest(), a.plan.Signed || p.Signed
	if i.Reviewer, i.Fallback = a.assign(&p); i.Reviewer != before.Reviewer {
		moved[i.Reviewer.String()]++
	}
	return i.Digest != before.Digest || i.Reviewer != before.Reviewer || i.Fallback != before.Fallback || i.Signed != before.Signed, nil
}

// refreshed notes the rules by which the items are assigned, and notifies their new
// reviewers.
func (m *Manager) refreshed(ctx context.Context, c *broker.Campaign, rules *broker.Rules, moved map[string]int, now time.Time) error {
	err := m.cfg.Store.Update(ctx, []broker.Key{c.ID}, func(tx broker.Tx) error {
		stored, err := broker.Get[*broker.Campaign](tx, c.ID)
		if err != nil {
			return err
		}
		stored.Revision = rules.Base
		m.notifyReviewers(tx, broker.NoticeReviewAssigned, stored, moved, rules, now)
		tx.Put(stored)
		*c = *stored
		return nil
	})
	return broker.Unavailable(err)
}
