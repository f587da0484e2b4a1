package broker

import (
	"context"
	"strings"
	"time"
)

// Revoke ends a lease: its holder returns it, or a person or operator whom
// policy permits revokes it. It returns once the attempt is recorded; the lease
// states how far the issuer got. Revoking an ended lease is no error.
func (b *Broker) Revoke(ctx context.Context, caller Caller, id LeaseID, reason string) (*Lease, error) {
	if err := CheckText(ErrInvalidRequest, "reason", reason, MaxJustification); err != nil {
		return nil, err
	}
	l, err := b.Lease(ctx, caller, id)
	if err != nil {
		return nil, err
	}
	how := EndReturned
	if l.Holder != caller.Subject.ID {
		if !b.mayRevoke(ctx, caller, l) {
			return nil, refuse(ErrDenied, "policy does not permit you to revoke this lease")
		}
		how = EndRevoked
	}
	if !l.Live(caller.At) && (how != EndRevoked || !l.deniable(caller.At)) {
		return l, nil
	}
	if err := b.reaper.endLease(ctx, l, how, caller.Actor, reason, caller.At); err != nil {
		return nil, err
	}
	return b.Lease(ctx, caller, id)
}

// EndRestored ends a token of the broker that was issued before the database was restored to an
// earlier time.
func EndRestored(ctx context.Context, b *Broker, l *Lease, now time.Time) error {
	if !l.Live(now) || l.Status == LeaseRevoking {
		return nil
	}
	return b.reaper.endLease(ctx, l, EndRevoked, Identity{}, "the database was restored to an earlier time: the record of this token's end may be lost", now)
}

// Abandon closes a lease whose issuer is gone for good, so that its revocation is
// no longer retried. The caller must be a person and state a reason. An abandoned
// lease never counts as revoked: its credential may still work.
func (b *Broker) Abandon(ctx context.Context, caller Caller, id LeaseID, reason string) (*Lease, error) {
	if err := CheckText(ErrInvalidRequest, "reason", reason, MaxJustification); err != nil {
		return nil, err
	}
	if strings.TrimSpace(reason) == "" {
		return nil, refuse(ErrInvalidRequest, "give a reason for abandoning this lease")
	}
	l, err := b.Lease(ctx, caller, id)
	if err != nil {
		return nil, err
	}
	if !b.mayRevoke(ctx, caller, l) {
		return nil, refuse(ErrDenied, "only a person who may revoke this lease can abandon it")
	}
	after := *l
	if err := after.abandon(caller.At); err != nil {
		return nil, err
	}
	entry, err := endRecord(ctx, &after, caller.Actor, reason)
	if err != nil {
		return nil, err
	}
	err = b.cfg.Store.Update(ctx, []Key{l.ID}, func(tx Tx) error {
		stored, err := Get[*Lease](tx, l.ID)
		if err != nil {
			return err
		}
		if err := stored.abandon(caller.At); err != nil {
			return err
		}
		tx.Append(entry)
		tx.Put(stored)
		after = *stored
		return nil // its places stay taken until it expires, because its credential may work
	})
	if err != nil {
		return nil, Unavailable(err)
	}
	return &after, nil
}

// mayRevoke reports whether the caller may end a lease that another identity holds.
// Only people and operators may: no policy lets a workload do it.
func (b *Broker) mayRevoke(ctx context.Context, caller Caller, l *Lease) bool {
	switch caller.Actor.Kind {
	case KindOperator:
		return true
	case KindPerson:
		if b.isSubject(caller, l.Subject) {
			return true
		}
		return b.mayOnRequest(ctx, caller, ActionRevoke, l.Request)
	}
	return false
}

// endLost ends the credential of a lost answer before its replacement is opened: the
// replacement is free only if the issuer confirms the end.
func (b *Broker) endLost(ctx context.Context, c *collection) (err error) {
	if c.how != EndAnswerLost || !c.replaces.endable() || c.replaces.State(c.caller.At) != LeaseActive {
		return nil
	}
	if err := b.reaper.endLease(ctx, c.replaces, c.how, Identity{}, "", c.caller.At); err != nil {
		return err
	}
	c.replaces, err = b.leaseRow(ctx, c.replaces.ID)
	return Unavailable(err)
}

// endReplaced revokes a replaced lease at once. If that fails, the reaper
// retries.
func (b *Broker) endReplaced(ctx context.Context, c *collection) {
	if c.replaces != nil && c.replaces.Exchanged {
		b.Facts.hurryOwn()
	}
	if c.replaces != nil && c.replaces.endable() && c.replaces.Status == LeaseActive {
		_ = b.reaper.endLease(ctx, c.replaces, c.how, Identity{}, "", c.caller.At) // logged and queued there
	}
}
