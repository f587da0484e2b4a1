package broker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"accessbroker.internal/audit"
)

// endDeadline is how long one attempt to end a credential upstream may take.
const endDeadline = 10 * time.Second

// Revoke ends a lease: its holder gives it back, or somebody whom policy lets
// revoke. It answers once the ending is recorded; how far the upstream got is
// in the lease. Ending what has ended is no error.
func (b *Broker) Revoke(ctx context.Context, who Identity, id LeaseID, reason string, now time.Time) (*Lease, error) {
	if err := checkText(ErrInvalidRequest, "reason", reason, MaxJustification); err != nil {
		return nil, err
	}
	l, err := b.Lease(ctx, who, id, now)
	if err != nil {
		return nil, err
	}
	how := EndReturned
	if l.Holder != who.ID {
		if !b.mayRevoke(ctx, who, l, now) {
			return nil, refuse(ErrDenied, "policy does not permit you to revoke this lease")
		}
		how = EndRevoked
	}
	if !l.Live(now) && (how != EndRevoked || !l.deniable(now)) {
		return l, nil
	}
	if err := b.finish(ctx, l, how, who, reason, now); err != nil {
		return nil, err
	}
	return b.Lease(ctx, who, id, now)
}

// Abandon closes a lease whose upstream is gone for good, so that nobody tries
// any longer. It takes a person and a reason, and never counts as revoked: what
// the credential can still do is not known.
func (b *Broker) Abandon(ctx context.Context, who Identity, id LeaseID, reason string, now time.Time) (*Lease, error) {
	if err := checkText(ErrInvalidRequest, "reason", reason, MaxJustification); err != nil {
		return nil, err
	}
	if strings.TrimSpace(reason) == "" {
		return nil, refuse(ErrInvalidRequest, "say why this lease is given up")
	}
	l, err := b.Lease(ctx, who, id, now)
	if err != nil {
		return nil, err
	}
	if !b.mayRevoke(ctx, who, l, now) {
		return nil, refuse(ErrDenied, "only somebody who may revoke this lease, and no workload, can give it up")
	}
	after := *l
	if err := after.abandon(now); err != nil {
		return nil, err
	}
	entry, err := endRecord(&after, who, reason)
	if err != nil {
		return nil, err
	}
	err = b.cfg.Store.Update(ctx, append(keys(l.Limits), l.ID), func(tx Tx) error {
		stored, err := get[*Lease](tx, l.ID)
		if err != nil {
			return err
		}
		if err := stored.abandon(now); err != nil {
			return err
		}
		tx.Append(entry)
		tx.Put(stored)
		after = *stored
		return releaseLimits(tx, stored)
	})
	if err != nil {
		return nil, unavailable(err)
	}
	return &after, nil
}

// mayRevoke says whether somebody may end a lease that others hold. A proof of
// a workload is not enough, whatever policy says: it takes a person.
func (b *Broker) mayRevoke(ctx context.Context, who Identity, l *Lease, now time.Time) bool {
	switch who.Kind {
	case KindOperator:
		return true
	case KindPerson:
		return b.mayDo(ctx, who, ActionRevoke, l.Request, now)
	}
	return false
}

// finish ends a lease: see pay.
func (b *Broker) finish(ctx context.Context, l *Lease, how string, by Identity, reason string, now time.Time) error {
	_, err := b.pay(ctx, newDebt(l, how, by, reason), now, nil)
	return err
}

func (b *Broker) revokeUpstream(ctx context.Context, l *Lease) error {
	issuer := b.cfg.Issuers[l.Issuer]
	if issuer == nil {
		return fmt.Errorf("%w: there is no issuer %q", ErrIssuerUnavailable, l.Issuer)
	}
	err := issuer.Revoke(ctx, *l)
	if err != nil && !errors.Is(err, ErrNotRevocable) && !errors.Is(err, ErrQueued) {
		b.cfg.Observe(Event{Kind: EventUpstream, Entitlement: l.Entitlement, Issuer: l.Issuer, Code: Code(err)})
	}
	return err
}

// errEnded says that a lease has ended already: there is nothing to write.
var errEnded = errors.New("the lease has ended")

// recordEnd writes down an attempt to end a lease: one record when it ended,
// one when its ending began to take longer, none for each further try.
func (b *Broker) recordEnd(ctx context.Context, l *Lease, e ending, by Identity, reason string, now time.Time) error {
	after := *l
	if !after.end(e, now) {
		return nil
	}
	entry, err := endRecord(&after, by, reason)
	if err != nil {
		return err
	}
	err = b.cfg.Store.Update(ctx, append(keys(l.Limits), l.ID), func(tx Tx) error {
		stored, err := get[*Lease](tx, l.ID)
		if err != nil {
			return err
		}
		was := stored.Status
		if was == LeaseIssuing && l.Status == LeaseIssuing {
			stored.Handle = l.Handle // what was made may take more to end than what was prepared
		}
		if !stored.end(e, now) {
			return errEnded
		}
		if was != LeaseRevoking || stored.Status != LeaseRevoking {
			tx.Append(entry)
		}
		tx.Put(stored)
		after = *stored
		return releaseLimits(tx, stored)
	})
	if errors.Is(err, errEnded) || isNotFound(err) {
		return nil
	}
	if err == nil {
		ended := Event{Kind: EventRevocation, Entitlement: l.Entitlement, Issuer: l.Issuer, Code: string(after.Revocation)}
		if after.Revocation == RevokedImmediate {
			ended.Lag = max(0, now.Sub(after.EndAsked))
		}
		b.cfg.Observe(ended)
	}
	return unavailable(err)
}

func endRecord(l *Lease, by Identity, reason string) (*audit.Entry, error) {
	kind := audit.LeaseRevoked
	switch l.Status {
	case LeaseRevoking:
		kind = audit.LeaseRevoking
	case LeaseFailed:
		kind = audit.LeaseFailed
	case LeaseAbandoned:
		kind = audit.LeaseAbandoned
	}
	record := audit.Record{Kind: kind, Caller: party(by), Lease: l.facts(), End: &audit.EndFacts{How: l.EndHow}}
	record.End.ValidUntil = l.WorksUntil()
	if reason != "" {
		var opening audit.Opening
		record.End.Reason, opening = audit.Commit(reason)
		record.Openings = map[string]audit.Opening{"reason": opening}
	}
	return record.Entry()
}

// discard undoes what Prepare made for a lease that was never stored.
func (b *Broker) discard(ctx context.Context, issuer Issuer, l *Lease) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endDeadline)
	defer cancel()
	if err := issuer.Revoke(ctx, *l); err != nil && !errors.Is(err, ErrNotRevocable) && !errors.Is(err, ErrQueued) {
		b.cfg.Log.ErrorContext(ctx, "what was prepared for a lease could not be undone", "issuer", l.Issuer, "err", err)
	}
}

// endReplaced tells the upstream at once that a replaced lease is over. If it
// can't, the reaper does it.
func (b *Broker) endReplaced(ctx context.Context, c *collection) {
	if c.replaces != nil && c.replaces.endable() && c.replaces.Status == LeaseActive {
		_ = b.finish(ctx, c.replaces, c.how, Identity{}, "", c.now) // finish has logged it
	}
}
