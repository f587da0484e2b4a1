package membership

import (
	"context"
	"errors"
	"strings"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// errNotFound does not reveal whether a membership exists that the caller may not view.
var errNotFound = &broker.Refusal{Err: broker.ErrNotFound, Detail: "there is no such membership, or you may not view it"}

// List lists memberships: all of them for operators and for those whom policy permits to
// audit, and the caller's own for all others. next is the After of the next page, and zero
// if this is the last one.
func (g *Ledger) List(ctx context.Context, caller broker.Caller, q broker.MembershipQuery) (page []*broker.Membership, next broker.MembershipID, err error) {
	if !g.seesAll(ctx, caller) {
		if q.Holder != "" && q.Holder != caller.Subject.ID {
			return nil, next, nil
		}
		q.Holder = caller.Subject.ID
	}
	if page, err = g.cfg.List(ctx, q); err != nil {
		return nil, next, err
	}
	if q.Limit > 0 && len(page) == q.Limit {
		next = page[len(page)-1].ID
	}
	return page, next, nil
}

func (g *Ledger) seesAll(ctx context.Context, caller broker.Caller) bool {
	return g.cfg.May(ctx, caller, broker.ActionAudit) || g.cfg.May(ctx, caller, broker.ActionOperate)
}

// Accept ends a difference: the membership stays as it is, and is no longer the broker's.
// The caller is an operator, or a person whom policy permits to operate the broker.
func (g *Ledger) Accept(ctx context.Context, caller broker.Caller, id broker.MembershipID, reason string) (*broker.Membership, error) {
	if strings.TrimSpace(reason) == "" || len(reason) > broker.MaxJustification {
		return nil, &broker.Refusal{Err: broker.ErrInvalidRequest, Detail: "state a reason for accepting this membership, of at most 2000 bytes"}
	}
	if caller.Actor.Kind != broker.KindOperator {
		if err := caller.RequireSession(); err != nil {
			return nil, err
		}
	}
	if !g.seesAll(ctx, caller) {
		return nil, errNotFound
	}
	if !g.cfg.May(ctx, caller, broker.ActionOperate) {
		return nil, &broker.Refusal{Err: broker.ErrDenied, Detail: "policy does not permit you to operate the broker"}
	}
	unlock, err := g.lock(ctx, id)
	if err != nil {
		return nil, err
	}
	defer unlock()
	s, err := g.read(ctx, id)
	switch {
	case errors.Is(err, broker.ErrNotFound) || err == nil && s.row.Place == nil:
		return nil, errNotFound
	case err != nil:
		return nil, err
	case s.row.Difference != broker.AddedAgain && s.row.Difference != broker.LeftBehind:
		return nil, &broker.Refusal{Err: broker.ErrInvalidRequest, Detail: "only a member who was added again or left behind can be accepted: revoke the lease of one who was removed early"}
	}
	r := record(audit.MembershipAccepted, s.row, string(s.row.Difference))
	r.Caller = caller.Actor.Party()
	r.End = &audit.EndFacts{}
	var opening audit.Opening
	r.End.Reason, opening = audit.Commit(reason)
	r.Openings["reason"] = opening
	err = g.update(ctx, s, broker.LeaseID{}, r, func(_ broker.Tx, now *state) error {
		m := now.row
		m.Existing, m.Added, m.Removed, m.Claims, m.Touched = true, time.Time{}, time.Time{}, now.open, time.Now()
		m.Difference, m.Since = broker.NoDifference, time.Time{}
		s = *now
		return nil
	})
	return s.row, err
}
