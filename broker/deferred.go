package broker

import (
	"context"
	"time"

	"accessbroker.internal/audit"
)

// Deferred are the operations on a request whose requester holds a code for it: an OAuth
// deferral code or a CIBA auth_req_id. A code yields one credential.
type Deferred struct{ Broker *Broker }

// Collect collects the first credential of the caller's own request. If there was one, it
// returns ErrInvalidCode. Other errors are those of Broker.Collect.
func (d Deferred) Collect(ctx context.Context, caller Caller, id RequestID) (issued *Issued, err error) {
	b := d.Broker
	err = b.retry(func() error {
		r, err := b.ownRequest(ctx, caller, id)
		if err != nil {
			return err
		}
		if !r.FirstExpires.IsZero() {
			return errRedeemed()
		}
		issued, err = b.collectNow(ctx, &collection{caller: &caller, request: r, once: true})
		return err
	})
	return issued, err
}

func errRedeemed() error { return refuse(ErrInvalidCode, "the code was redeemed before") }

// Cancel withdraws the caller's own request, also if it is approved, unless a credential
// was collected. It returns nil if there is nothing to cancel.
func (d Deferred) Cancel(ctx context.Context, caller Caller, id RequestID) error {
	return d.Broker.retry(func() error { return d.cancelOnce(ctx, caller, id) })
}

// cancelOnce is Cancel. It returns errOvertaken if another call changed the request first.
func (d Deferred) cancelOnce(ctx context.Context, caller Caller, id RequestID) error {
	b := d.Broker
	r, err := b.ownRequest(ctx, caller, id)
	if err != nil {
		return err
	}
	stored := *r
	if !r.cancel(caller.At) {
		return nil
	}
	rules := b.rules.Load()
	record := audit.Record{Kind: audit.RequestWithdrawn, Caller: caller.Actor.Party(), Request: &audit.RequestFacts{ID: id.String(), Digest: r.Digest, Entitlement: r.Entitlement}}
	_, err = b.write(ctx, r.waiting(), record, func(tx Tx) error {
		now, err := Get[*Request](tx, id)
		if err != nil {
			return err
		}
		if now.Version != stored.Version || !now.FirstExpires.IsZero() {
			return errOvertaken
		}
		if err := leavePending(tx, r, caller.At); err != nil {
			return err
		}
		if stored.Status == RequestPending {
			b.notify(tx, NoticeWithdrawn, r, r.approverGroups(), rules, caller.At)
		}
		tx.Put(r)
		return nil
	})
	b.waiters.changed(id)
	return err
}

// cancel withdraws a request that waits for approval or for its first collection. It
// returns false if the request does neither.
func (r *Request) cancel(now time.Time) bool {
	switch state := r.State(now); {
	case state == RequestPending:
	case state == RequestApproved && r.FirstExpires.IsZero():
	default:
		return false
	}
	r.Status, r.Lapses = RequestWithdrawn, time.Time{}
	r.Version++
	return true
}
