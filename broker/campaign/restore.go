package campaign

import (
	"context"
	"strings"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// restoreWithin is how long a wish to lift a suspension waits for the second person.
const restoreWithin = 7 * 24 * time.Hour

// Restore lifts the suspension of a permission. It takes two people: the first one asks, and
// the suspension is lifted when another one agrees. Both must be allowed to review the
// permission, and both are bound to its digest. It reports whether the suspension is lifted.
func (m *Manager) Restore(ctx context.Context, caller broker.Caller, key broker.PermissionKey, seen audit.Digest, reason string) (lifted bool, err error) {
	if err := caller.RequireSession(); err != nil {
		return false, err
	}
	if err := broker.CheckText(broker.ErrInvalidRequest, "reason", reason, broker.MaxComment); err != nil {
		return false, err
	}
	if strings.TrimSpace(reason) == "" {
		return false, refuse(broker.ErrCommentRequired, "state why the access is needed again")
	}
	err = retry(func() (err error) {
		lifted, err = m.restore(ctx, caller, key, seen, reason)
		return err
	})
	if err != nil || !lifted {
		return false, err
	}
	return true, m.enforce(context.WithoutCancel(ctx), caller.At)
}

func (m *Manager) restore(ctx context.Context, caller broker.Caller, key broker.PermissionKey, seen audit.Digest, reason string) (lifted bool, err error) {
	ground, err := m.cfg.Ground(ctx, &caller)
	if err != nil {
		return false, err
	}
	rules := ground.Rules
	s, c, err := m.suspensionOf(ctx, key)
	if err != nil {
		return false, err
	}
	p, ok, err := m.find(ctx, rules, key, caller.At)
	switch {
	case err != nil:
		return false, err
	case !ok:
		return false, refuse(broker.ErrNotFound, "the rules no longer have this permission: nothing can be restored")
	case p.Digest() != seen:
		return false, refuse(broker.ErrStaleDigest, "this is not what you saw: the rules changed, so read it again")
	}
	if err := m.mayRestore(ctx, caller, m.assigner(rules, &c.Plan), &p); err != nil {
		return false, err
	}
	changed := *s
	lifted = s.Restore != "" && s.RestoreDigest == seen && !rules.People.Same(s.Restore, caller.Subject.ID) && caller.At.Before(s.RestoreAt.Add(restoreWithin))
	if lifted {
		changed.Lifted = caller.At
	} else {
		changed.Restore, changed.RestoreDigest, changed.RestoreReason, changed.RestoreAt = caller.Subject.ID, seen, reason, caller.At
	}
	return lifted, m.recordRestore(ctx, caller, ground, c, s, &changed, reason)
}

// suspensionOf returns the suspension of a permission that is in force, and the campaign that
// caused it.
func (m *Manager) suspensionOf(ctx context.Context, key broker.PermissionKey) (*broker.SuspensionRow, *broker.Campaign, error) {
	s, err := get[*broker.SuspensionRow](ctx, m, broker.SuspensionKey(key))
	if err != nil {
		return nil, nil, err
	}
	if !s.Lifted.IsZero() {
		return nil, nil, refuse(broker.ErrNotFound, "it is not suspended")
	}
	c, err := get[*broker.Campaign](ctx, m, s.Item.Campaign)
	return s, c, err
}

// mayRestore refuses callers who may not lift the suspension: only reviewers of the
// permission, the fallback group and the group that runs the campaign may, and never someone
// who uses the permission.
func (m *Manager) mayRestore(_ context.Context, caller broker.Caller, a *assigner, p *broker.Permission) error {
	if a.conflict(caller.Subject, p) {
		return refuse(broker.ErrOwnAccess, "you use this permission, alone or through a group, or you are accountable for a workload that does: two other people restore it")
	}
	reviewer, _ := a.assign(p)
	for _, r := range []broker.Reviewer{reviewer, {Group: a.plan.Fallback}, {Group: a.plan.RunBy}} {
		ok, claimed := a.reviews(caller.Subject, r)
		stale := claimed && caller.Subject.Person != nil && caller.Subject.Person.Directory == "" && caller.At.Sub(caller.Subject.Person.Claimed) > broker.ClaimsFor
		if ok && !stale {
			return nil
		}
	}
	return refuse(broker.ErrNotReviewer, "only the reviewer and the groups "+a.plan.Fallback+" and "+a.plan.RunBy+" restore this access; log in again if you are in one of them")
}

// recordRestore writes a suspension that was changed, with its record.
func (m *Manager) recordRestore(ctx context.Context, caller broker.Caller, ground *broker.Ground, c *broker.Campaign, before, after *broker.SuspensionRow, reason string) error {
	key := broker.PermissionKey(before.SuspensionKey)
	commitment, opening := audit.Commit(reason)
	f := facts(c)
	f.Item, f.Permission, f.Digest, f.Reason = int64(before.Item.Number), key.String(), after.RestoreDigest, commitment
	record := audit.Record{Kind: audit.CampaignRestoring, Caller: caller.Actor.Party(), Campaign: f, Openings: map[string]audit.Opening{"reason": opening}}
	if !after.Lifted.IsZero() {
		record.Kind = audit.CampaignRestored
	}
	return m.write(ctx, append(ground.Reads(), before.SuspensionKey), []audit.Record{record}, func(tx broker.Tx) error {
		if ground.Check(tx) != nil {
			return errOvertaken
		}
		stored, err := broker.Get[*broker.SuspensionRow](tx, before.SuspensionKey)
		if err != nil {
			return err
		}
		if !stored.Lifted.IsZero() || stored.Item != before.Item || stored.Restore != before.Restore || !stored.RestoreAt.Equal(before.RestoreAt) {
			return errOvertaken
		}
		if after.Lifted.IsZero() {
			announce(tx, broker.NoticeReviewAssigned, c, key.String()+" is to be restored", caller.Subject.ID+" asks to lift the suspension. Another person must agree.", []string{c.Plan.Fallback, c.Plan.RunBy}, ground.Rules, caller.At)
		}
		tx.Put(after)
		return nil
	})
}
