package broker

import (
	"context"
	"time"

	"accessbroker.internal/audit"
)

// Calls accounts for the calls in which edges use credentials on behalf of their holders.
type Calls struct{ b *Broker }

// A Call is one that an edge is about to make. The edge has checked it against the rules
// of the entitlement.
type Call struct {
	Method string
	Target string // the URL without its query
}

// MaxCallTarget bounds the part of a target that is recorded, in bytes.
const MaxCallTarget = 2048

// CallTotals are the calls with the credential of a lease, as its holder states them.
type CallTotals struct {
	Made     int64 // the host answered
	Refused  int64 // not made, or the answer was withheld
	Failed   int64 // the host did not answer, or not completely
	Sent     int64 // bytes of bodies
	Received int64
	Last     time.Time // of the last report
}

// maxCount bounds each total of a report. The sums stay far below 2^63.
const maxCount = 1 << 40

// Announce records a call before it is made, if the entitlement demands that. Without an
// error the call may be made. The caller must hold the lease, which must be active.
func (c *Calls) Announce(ctx context.Context, caller Caller, id LeaseID, call Call) (receipt Receipt, recorded bool, err error) {
	l, err := c.held(ctx, caller, id)
	if err != nil {
		return Receipt{}, false, err
	}
	e := c.b.rules.Load().Catalogue[l.Entitlement]
	if e == nil || e.Egress == nil || l.State(caller.At) != LeaseActive {
		return Receipt{}, false, errNoCall
	}
	if !e.Egress.Record {
		return Receipt{}, false, nil
	}
	record := audit.Record{
		Kind: audit.LeaseCalled, Caller: caller.Actor.Party(), Lease: &audit.LeaseFacts{ID: l.ID.String(), Issuer: l.Issuer},
		Request: &audit.RequestFacts{ID: l.Request.String(), Entitlement: l.Entitlement}, Call: &audit.CallFacts{Method: call.Method},
	}
	if len(call.Target) > MaxCallTarget {
		call.Target = call.Target[:MaxCallTarget] + "…"
	}
	var opening audit.Opening
	record.Call.Target, opening = audit.Commit(call.Target)
	record.Openings = map[string]audit.Opening{"target": opening}
	receipt, err = c.b.write(ctx, []Key{id}, record, func(tx Tx) error {
		l, err := Get[*Lease](tx, id)
		if err != nil {
			return err
		}
		if l.State(caller.At) != LeaseActive { // it ended in the meantime
			return errNoCall
		}
		if len(l.Records) < MaxListed { // the list of a lease with many calls does not grow
			tx.Put(l)
		}
		return nil
	})
	return receipt, err == nil, err
}

var errNoCall = refuse(ErrCallNotAllowed, "the lease has ended, or its entitlement allows no calls: collect again, or read GET /v1/entitlements")

// Count adds a report of the holder to the totals of a lease, whatever its state.
func (c *Calls) Count(ctx context.Context, caller Caller, id LeaseID, report CallTotals) (entitlement string, err error) {
	for _, n := range []int64{report.Made, report.Refused, report.Failed, report.Sent, report.Received} {
		if n < 0 || n > maxCount {
			return "", refuse(ErrInvalidRequest, "a count must be between 0 and 2^40")
		}
	}
	l, err := c.held(ctx, caller, id)
	if err != nil {
		return "", err
	}
	err = c.b.cfg.Store.Update(ctx, []Key{id}, func(tx Tx) error {
		l, err := Get[*Lease](tx, id)
		if err != nil {
			return err
		}
		l.Calls.add(report, caller.At)
		tx.Put(l)
		return nil
	})
	return l.Entitlement, Unavailable(err)
}

// add adds a report. A sum that would no longer be a number of JSON stays as it is.
func (t *CallTotals) add(r CallTotals, now time.Time) {
	for _, sum := range []struct{ to, from *int64 }{
		{&t.Made, &r.Made}, {&t.Refused, &r.Refused}, {&t.Failed, &r.Failed}, {&t.Sent, &r.Sent}, {&t.Received, &r.Received},
	} {
		*sum.to = min(*sum.to+*sum.from, 1<<53-1)
	}
	t.Last = now
}

// held returns a lease that the caller holds.
func (c *Calls) held(ctx context.Context, caller Caller, id LeaseID) (*Lease, error) {
	l, err := c.b.Lease(ctx, caller, id)
	if err == nil && l.Holder != caller.Subject.ID {
		err = refuse(ErrNotFound, "there is no such lease, or you do not hold it")
	}
	return l, err
}
