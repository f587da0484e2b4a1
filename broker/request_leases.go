package broker

import (
	"bytes"
	"context"
	"slices"
	"time"
)

// The leases of a request form a list: the request has its first lease, its Collected
// row the newest, and each lease the previous one. An index by request would slow
// issuing. A lease's ID does not help to find it: after the clock is set back, the time
// in the ID is later than the request's.

// follow adds the lease to the leases of its request, which has been collected before.
func (l *Lease) follow(tx Tx, r *Request) error {
	last, err := Get[*Collected](tx, CollectedKey(r.ID))
	switch {
	case isNotFound(err):
		last = &Collected{CollectedKey: CollectedKey(r.ID), Last: r.FirstLease}
	case err != nil:
		return err
	}
	l.Previous, last.Last = last.Last, l.ID
	tx.Put(last)
	return nil
}

// LeasesOf returns the leases of a request, newest first.
func (b *Broker) LeasesOf(ctx context.Context, caller Caller, r *Request) (list []*Lease, err error) {
	if err := b.checkView(ctx, caller, r); err != nil {
		return nil, err
	}
	list, _, err = b.requestLeases(ctx, r, caller.At)
	return list, err
}

// requestLeases is LeasesOf for callers who have read the request. more reports
// whether there may be older leases.
func (b *Broker) requestLeases(ctx context.Context, r *Request, now time.Time) (list []*Lease, more bool, err error) {
	if r.FirstExpires.IsZero() { // never collected
		return nil, false, nil
	}
	err = b.cfg.Store.View(ctx, func(tx Tx) (err error) {
		var next LeaseID
		if list, next, err = chain(tx, r); err != nil {
			return err
		}
		if more = !next.IsZero(); more || !r.FirstLease.IsZero() {
			return nil
		}
		// An earlier version opened the first leases.
		earlier, more2, err := scanLeases(tx, r, now)
		list, more = merge(list, earlier), more2
		return err
	})
	return list, more, Unavailable(err)
}

// chain follows the list of a request's leases, newest first. next is the first one
// after a page, or that is no longer kept (see Retention).
func chain(tx Tx, r *Request) (list []*Lease, next LeaseID, err error) {
	next = r.FirstLease
	last, err := Get[*Collected](tx, CollectedKey(r.ID))
	if err == nil {
		next = last.Last
	} else if !isNotFound(err) {
		return nil, LeaseID{}, err
	}
	for !next.IsZero() && len(list) < pageDefault {
		l, err := Get[*Lease](tx, next)
		if isNotFound(err) {
			break // it is no longer kept, and neither are those before it
		}
		if err != nil {
			return nil, LeaseID{}, err
		}
		list = append(list, l)
		next = l.Previous
	}
	return list, next, nil
}

// scanLeases finds the leases that an earlier version opened: by the times in their
// IDs, and the live ones however the clock was set.
func scanLeases(tx Tx, r *Request, now time.Time) (list []*Lease, more bool, err error) {
	// No lease of the request was opened after its grant ended, so skip later leases.
	for _, q := range []LeaseQuery{
		{Before: leaseIDAt(r.CollectUntil.Add(time.Minute))}, {Live: true}, {Outliving: true},
	} {
		q.Request, q.Now, q.Limit = r.ID, now, pageDefault
		page, next, err := tx.Leases(q)
		if err != nil {
			return nil, false, err
		}
		list, more = merge(list, page), more || !next.IsZero()
	}
	return list, more, nil
}

// merge merges lists of leases, newest first, without duplicates.
func merge(a, b []*Lease) []*Lease {
	list := slices.Concat(a, b)
	slices.SortFunc(list, func(a, b *Lease) int { return bytes.Compare(b.ID[:], a.ID[:]) })
	return slices.CompactFunc(list, func(a, b *Lease) bool { return a.ID == b.ID })
}
