package membership

import (
	"context"
	"errors"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

const (
	compareTimeout = 10 * time.Second // of one membership
	compareFirst   = 15 * time.Second // after the start
	compareFailing = 5                // failures in a row that end a pass
	comparePage    = 100
)

// Run compares the issuer's memberships with the system, at the interval, until ctx ends.
func (i *Issuer) Run(ctx context.Context, every time.Duration) error {
	next := time.NewTimer(min(compareFirst, every))
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-next.C:
		}
		if err := i.Compare(ctx); err != nil && ctx.Err() == nil {
			i.cfg.Ledger.cfg.Log.ErrorContext(ctx, "comparing memberships", "issuer", i.cfg.Name, "err", err)
		}
		next.Reset(every)
	}
}

// Compare compares once. It records every difference, and each end of one. A comparison
// that too many failures ended is continued behind them by the next one, so that
// memberships that always fail do not keep the others from being compared.
func (i *Issuer) Compare(ctx context.Context) error {
	i.comparing.Lock()
	defer i.comparing.Unlock()
	g := i.cfg.Ledger
	var problems []error
	failing := 0
	q := broker.MembershipQuery{Issuer: i.cfg.Name, After: i.resume, Limit: comparePage}
	i.resume = broker.MembershipID{}
	for page := []*broker.Membership(nil); ; {
		var err error
		if page, err = g.cfg.List(ctx, q); err != nil {
			problems = append(problems, err)
			break
		}
		for _, m := range page {
			if err := g.compare(ctx, i, m); err == nil {
				failing = 0
			} else if problems, failing = append(problems, err), failing+1; failing == compareFailing {
				i.resume = m.ID
				break
			}
			q.After = m.ID
		}
		if len(page) < comparePage || failing == compareFailing || ctx.Err() != nil {
			break
		}
	}
	err := errors.Join(problems[:min(len(problems), compareFailing)]...)
	if ctx.Err() == nil {
		g.cfg.Compared(i.cfg.Name, err, time.Now())
	}
	return err
}

// compare compares one membership.
func (g *Ledger) compare(ctx context.Context, i *Issuer, m *broker.Membership) error {
	p, err := placeOf(m)
	if err != nil || p.At != i.cfg.At {
		return nil // of an earlier issuer of the same name, whose leases have ended
	}
	ctx, cancel := context.WithTimeout(ctx, compareTimeout)
	defer cancel()
	unlock, err := g.lock(ctx, m.ID)
	if err != nil {
		return err
	}
	defer unlock()
	s, err := g.read(ctx, m.ID)
	if err != nil {
		return err
	}
	if len(s.open) == 0 && !s.unreleased.IsZero() && s.made() {
		// The lease ended, and the end of its claim could not be recorded.
		return g.releaseNow(ctx, i, p, s, s.unreleased)
	}
	has, _, err := i.contains(ctx, p)
	if err != nil {
		return err
	}
	return g.note(ctx, &s, has)
}

// difference returns how a system that has the member, or not, differs from the
// broker's records.
func (s *state) difference(has bool) broker.Difference {
	switch {
	case len(s.open) > 0 && !has:
		return broker.RemovedEarly
	case len(s.open) == 0 && has && s.made() && len(s.row.Claims) > 0:
		return broker.LeftBehind
	case has && !s.row.Removed.IsZero():
		return broker.AddedAgain
	}
	return broker.NoDifference
}

// note records a difference that began or ended, and updates s.
func (g *Ledger) note(ctx context.Context, s *state, has bool) error {
	difference := s.difference(has)
	if difference == s.row.Difference {
		return nil
	}
	change := string(difference)
	if difference == broker.NoDifference {
		change = audit.MembershipResolved
	}
	now := time.Now()
	err := g.update(ctx, *s, broker.LeaseID{}, record(audit.MembershipDiffers, s.row, change), func(_ broker.Tx, s *state) error {
		s.row.Difference, s.row.Since = difference, now
		return nil
	})
	if err != nil {
		return err
	}
	g.cfg.Log.WarnContext(ctx, "a membership differs from the broker's records, or no longer does", "change", change,
		"issuer", s.row.Issuer, "system", s.row.System, "group", s.row.Group, "member", s.row.Member, "holder", s.row.Holder)
	s.row.Difference, s.row.Since = difference, now
	return nil
}
