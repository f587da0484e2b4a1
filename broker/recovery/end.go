package recovery

import (
	"context"
	"errors"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// parallel is the number of concurrent calls to issuers.
const parallel = 8

// endDue ends the credentials that were found. The issuer comes first and the record
// afterwards, as for any lease.
func (m *Manager) endDue(ctx context.Context, key broker.RecoveryKey, now time.Time) error {
	for {
		due, err := m.cfg.Rows.Due(ctx, now, batch)
		if err != nil || len(due) == 0 {
			return err
		}
		var group errgroup.Group
		group.SetLimit(parallel)
		for _, o := range due {
			group.Go(func() error { return m.end(ctx, key, o, now) })
		}
		if err := group.Wait(); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// end calls the issuer of a credential and stores the outcome.
func (m *Manager) end(ctx context.Context, key broker.RecoveryKey, o *broker.Orphan, now time.Time) error {
	err := m.revoke(ctx, o)
	return broker.Unavailable(m.cfg.Store.Update(ctx, []broker.Key{key, o.OrphanKey}, func(tx broker.Tx) error {
		stored, getErr := broker.Get[*broker.Orphan](tx, o.OrphanKey)
		if getErr != nil {
			return getErr
		}
		r, getErr := broker.Get[*broker.Recovery](tx, key)
		if getErr != nil {
			return getErr
		}
		if stored.Due.IsZero() {
			return nil // another process was faster
		}
		before := stored.Outcome
		apply(stored, err, now)
		tx.Put(stored)
		if before != broker.OrphanPending || stored.Outcome == broker.OrphanPending {
			return nil
		}
		if stored.Outcome != broker.OrphanExpires {
			r.Ended++
			tx.Put(r)
		}
		return appendRecord(tx, foundRecord(stored))
	}))
}

// apply changes a credential by the outcome of a call to its issuer.
func apply(o *broker.Orphan, err error, now time.Time) {
	o.Attempts++
	o.Code, o.Due = "", time.Time{}
	switch first := o.Outcome == broker.OrphanPending; {
	case err == nil && first:
		o.Outcome, o.Ended = broker.OrphanRevoked, now
	case errors.Is(err, broker.ErrQueued):
		o.Outcome, o.Ended = broker.OrphanAccepted, now
		if o.Lease == "" && o.Expires.After(now) {
			o.Due = o.Expires // the issuer cleans up
		}
	case errors.Is(err, broker.ErrNotRevocable), err == nil:
		if first {
			o.Outcome = broker.OrphanExpires
		}
	case now.After(o.Expires.Add(time.Minute)):
		if first {
			o.Outcome = broker.OrphanExpires // while its issuer could not be reached
		}
	default:
		o.Code, o.Due = broker.Code(err), now.Add(broker.Backoff(min(o.Attempts, 8)))
	}
}

func (m *Manager) revoke(ctx context.Context, o *broker.Orphan) error {
	issuer := m.cfg.Issuers[o.Issuer]
	if issuer == nil {
		return broker.ErrIssuerUnavailable
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	l := broker.Lease{Issuer: o.Issuer, Holder: o.Holder, Entitlement: o.Entitlement, Handle: o.Handle, Opened: o.Found, Expires: o.Expires, EndHow: broker.EndRevoked, EndAsked: o.Found}
	if id, err := broker.ParseLeaseID(o.Lease); err == nil {
		l.ID = id
	}
	return issuer.Revoke(ctx, l)
}

// endTokens ends the broker's own tokens that the restored database takes for valid: the record
// of their end may be lost, and no issuer knows better.
func (m *Manager) endTokens(ctx context.Context, r *broker.Recovery, now time.Time) error {
	for name, issuer := range m.cfg.Issuers {
		if _, own := issuer.(broker.Inspector); !own {
			continue
		}
		for q := (broker.LeaseQuery{Issuer: name, Live: true, Now: now, Limit: batch}); ; {
			var page []*broker.Lease
			err := m.cfg.Store.View(ctx, func(tx broker.Tx) (err error) {
				page, q.Before, err = tx.Leases(q)
				return err
			})
			if err != nil {
				return broker.Unavailable(err)
			}
			if err := m.endPage(ctx, r, page, now); err != nil {
				return err
			}
			if q.Before.IsZero() {
				break
			}
		}
	}
	return nil
}

func (m *Manager) endPage(ctx context.Context, r *broker.Recovery, page []*broker.Lease, now time.Time) error {
	var group errgroup.Group
	group.SetLimit(parallel)
	for _, l := range page {
		if l.Opened.After(r.Opened) {
			continue
		}
		group.Go(func() error { return broker.EndRestored(ctx, m.cfg.Broker, l, now) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}

// finish records the end of a recovery once every issuer was searched and nothing is pending.
// It reports whether nothing is left to do.
func (m *Manager) finish(ctx context.Context, key broker.RecoveryKey, now time.Time) (bool, error) {
	r, err := m.cfg.Rows.Last(ctx)
	if err != nil || r == nil || r.RecoveryKey != key {
		return false, err
	}
	for name := range m.cfg.Issuers { // the operator may have removed others that were searched
		if !slices.Contains(r.Searched, name) {
			return false, nil
		}
	}
	pending, later, err := m.open(ctx)
	if err != nil || pending {
		return false, err
	}
	if r.Finished.IsZero() {
		err = m.change(ctx, key, func(stored *broker.Recovery) *audit.Record {
			if !stored.Finished.IsZero() {
				return nil
			}
			stored.Finished = now
			return &audit.Record{Kind: audit.RecoveryFinished, Recovery: &audit.RecoveryFacts{
				Since: stored.Since, Until: stored.Opened, Found: int64(stored.Found), Ended: int64(stored.Ended),
			}}
		})
	}
	return !later, err
}

// open reports whether a credential's outcome is not final, and whether its issuer is called
// again later.
func (m *Manager) open(ctx context.Context) (pending, later bool, err error) {
	list, err := m.cfg.Rows.Due(ctx, distant, batch)
	for _, o := range list {
		pending, later = pending || o.Outcome == broker.OrphanPending, true
	}
	return pending, later, err
}
