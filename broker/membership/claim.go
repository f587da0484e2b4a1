package membership

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// claim makes a lease rely on a membership, which it makes if the group does not have
// the member.
func (g *Ledger) claim(ctx context.Context, i *Issuer, p Place, c claim) error {
	unlock, err := g.lock(ctx, p.ID())
	if err != nil {
		return err
	}
	defer unlock()
	has, gone, err := i.contains(ctx, p)
	switch {
	case err != nil:
		return err
	case gone:
		return refuse("the group no longer exists")
	}
	before, err := g.read(ctx, p.ID())
	if err == nil {
		err = g.note(ctx, &before, has)
	}
	if err != nil {
		return err
	}
	if err := g.recordClaim(ctx, before, p, c, has); err != nil || has {
		return err
	}
	// Point of no return: the claim is durable. If this process dies now, the broker
	// revokes the lease after the restart, which removes the member.
	added, err := i.cfg.Directory.Add(ctx, p)
	switch {
	case errors.Is(err, ErrGone):
		return refuse("the group or the member no longer exists")
	case err != nil:
		return err
	case !added && before.row.Added.IsZero():
		// Someone else was faster. A broker that had added the member before could be that
		// someone, because the answer to its call may have been lost.
		return g.recordFound(ctx, p.ID())
	}
	return g.confirm(ctx, i, p)
}

// confirm reads that the member was added.
func (g *Ledger) confirm(ctx context.Context, i *Issuer, p Place) error {
	has, _, err := g.settled(ctx, i, p, true)
	if err == nil && !has {
		err = fmt.Errorf("%w: the system accepted the member, and does not list the member", broker.ErrIssuerUnavailable)
	}
	return err
}

// settled reads whether the group has the member, until it is as wanted: some systems
// answer from a replica that lags behind.
func (g *Ledger) settled(ctx context.Context, i *Issuer, p Place, want bool) (has, gone bool, err error) {
	for n := 0; ; n++ {
		has, gone, err = i.contains(ctx, p)
		if err != nil || gone || has == want || n == len(g.cfg.Pauses) {
			return has, gone, err
		}
		select {
		case <-ctx.Done():
			return has, gone, nil
		case <-time.After(g.cfg.Pauses[n]):
		}
	}
}

// made reports whether the broker made the membership and has not removed it.
func (s *state) made() bool {
	return !s.row.Existing && !s.row.Added.IsZero() && s.row.Removed.IsZero()
}

// recordClaim records the claim. It refuses a lease that is no longer being issued: its
// revocation may have found no claim, and does not come back.
func (g *Ledger) recordClaim(ctx context.Context, before state, p Place, c claim, has bool) error {
	if len(before.open) >= maxClaims {
		return refuse("too many leases rely on this membership at a time: return some of them")
	}
	change := audit.MembershipExisting
	switch {
	case !has:
		change = audit.MembershipAdded
	case before.made():
		change = audit.MembershipShared
	}
	shown := *before.row
	c.apply(&shown, p)
	r := record(audit.MembershipClaimed, &shown, change)
	r.Lease = &audit.LeaseFacts{ID: c.lease.ID.String(), Issuer: c.lease.Issuer}
	return g.update(ctx, before, c.lease.ID, r, func(tx broker.Tx, s *state) error {
		now := time.Now()
		l, err := broker.Get[*broker.Lease](tx, c.lease.ID)
		if err != nil {
			return err
		}
		if l.Status != broker.LeaseIssuing || !now.Before(l.Deadline) {
			return &broker.Refusal{Err: broker.ErrIssuerUnavailable, Detail: "the lease ended while its credential was being made: try again"}
		}
		m := s.row
		c.apply(m, p)
		m.Claims, m.Touched = append(s.open, c.lease.ID), now
		switch change {
		case audit.MembershipAdded:
			m.Existing, m.Added, m.Removed = false, now, time.Time{}
		case audit.MembershipExisting:
			m.Existing = true
		}
		tx.Put(l) // which lists the record
		return nil
	})
}

// recordFound records that a membership existed, although it did not when the claim was
// recorded.
func (g *Ledger) recordFound(ctx context.Context, id broker.MembershipID) error {
	s, err := g.read(ctx, id)
	if err != nil {
		return err
	}
	r := record(audit.MembershipAccepted, s.row, audit.MembershipExisting)
	return g.update(ctx, s, broker.LeaseID{}, r, func(_ broker.Tx, s *state) error {
		s.row.Existing, s.row.Added = true, time.Time{}
		return nil
	})
}

// release ends a lease's claim, and removes the member if it was the last claim of a
// membership that the broker made.
func (g *Ledger) release(ctx context.Context, i *Issuer, p Place, l broker.Lease) error {
	unlock, err := g.lock(ctx, p.ID())
	if err != nil {
		return err
	}
	defer unlock()
	s, err := g.read(ctx, p.ID())
	if err != nil {
		return err
	}
	return g.releaseNow(ctx, i, p, s, l.ID)
}

func (g *Ledger) releaseNow(ctx context.Context, i *Issuer, p Place, s state, lease broker.LeaseID) error {
	if !slices.Contains(s.row.Claims, lease) {
		return nil // it never got as far, or an earlier call recorded the release
	}
	var change string
	var err error
	switch {
	case s.row.Existing:
		change = audit.MembershipExisting
	case len(s.others(lease)) > 0:
		change = audit.MembershipShared
	default:
		if change, err = g.remove(ctx, i, p); err != nil {
			return err
		}
	}
	r := record(audit.MembershipReleased, s.row, change)
	r.Lease = &audit.LeaseFacts{ID: lease.String(), Issuer: i.cfg.Name}
	return g.update(ctx, s, lease, r, func(tx broker.Tx, s *state) error {
		l, err := broker.Get[*broker.Lease](tx, lease)
		if err != nil {
			return err
		}
		m, now := s.row, time.Now()
		m.Touched = now
		switch change {
		case audit.MembershipExisting, audit.MembershipShared:
			m.Claims = slices.DeleteFunc(m.Claims, func(id broker.LeaseID) bool { return id == lease })
		default:
			m.Claims, m.Removed = nil, now
		}
		tx.Put(l) // which lists the record
		return nil
	})
}

// remove removes a member and reads that it is gone. It returns what it found.
func (g *Ledger) remove(ctx context.Context, i *Issuer, p Place) (change string, err error) {
	has, gone, err := i.contains(ctx, p)
	switch {
	case err != nil:
		return "", err
	case gone:
		return audit.MembershipGone, nil
	case !has:
		return audit.MembershipAbsent, nil
	}
	if err := i.cfg.Directory.Remove(ctx, p); err != nil && !errors.Is(err, ErrGone) {
		return "", err
	}
	has, gone, err = g.settled(ctx, i, p, false)
	switch {
	case err != nil:
		return "", err
	case gone:
		return audit.MembershipGone, nil
	case has:
		return "", fmt.Errorf("%w: the system accepted the removal of the member, and still lists the member", broker.ErrIssuerUnavailable)
	}
	return audit.MembershipRemoved, nil
}
