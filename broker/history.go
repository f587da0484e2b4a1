package broker

import (
	"bytes"
	"cmp"
	"context"
	"maps"
	"slices"
	"time"
)

// A RequestHistory is what a requester asked for, with any account, in the 30 days before
// a request.
type RequestHistory struct {
	Counts  []EntitlementCount // by entitlement
	Similar []PastRequest      // the newest ones for the same entitlement, newest first
	Partial bool               // there may be more: only the newest requests were read
}

// An EntitlementCount counts earlier requests for one entitlement.
type EntitlementCount struct {
	Entitlement                      string
	Asked, Granted, Refused, Pending int
}

// A PastRequest is an earlier request for the same entitlement.
type PastRequest struct {
	*Request
	Credentials int  // how many were collected
	More        bool // there may be more credentials
	Visible     bool // the caller may view the request itself
}

// historyPeriod is how far back RequestHistory reads.
const historyPeriod = 30 * 24 * time.Hour

// maxSimilar is how many earlier requests for the same entitlement a history has.
const maxSimilar = 3

// RequestHistory returns the requester's history before the request.
func (b *Broker) RequestHistory(ctx context.Context, caller Caller, r *Request) (h RequestHistory, err error) {
	if err := b.checkView(ctx, caller, r); err != nil {
		return h, err
	}
	by := map[string]*EntitlementCount{}
	err = b.cfg.Store.View(ctx, func(tx Tx) error {
		h = RequestHistory{}
		clear(by)
		for _, account := range b.rules.Load().People.Accounts(r.Requester.ID) {
			page, next, err := tx.Requests(RequestQuery{Requester: account, Now: caller.At, Before: r.ID, Limit: pageMax})
			if err != nil {
				return err
			}
			end := slices.IndexFunc(page, func(p *Request) bool { return p.Created.Before(r.Created.Add(-historyPeriod)) })
			h.Partial = h.Partial || end < 0 && !next.IsZero()
			if end >= 0 {
				page = page[:end]
			}
			for _, p := range page {
				of := by[p.Entitlement]
				if of == nil {
					of = &EntitlementCount{Entitlement: p.Entitlement}
					by[p.Entitlement] = of
				}
				of.add(p.State(caller.At))
			}
			h.addSimilar(page, r.Entitlement)
		}
		return h.countCredentials(tx)
	})
	if err != nil {
		return RequestHistory{}, Unavailable(err)
	}
	for _, name := range slices.Sorted(maps.Keys(by)) {
		h.Counts = append(h.Counts, *by[name])
	}
	for i := range h.Similar {
		p := &h.Similar[i]
		p.Visible = p.Requester.ID == caller.Subject.ID || b.mayView(ctx, caller, p.Request)
	}
	return h, nil
}

// addSimilar adds the newest requests of the page for the entitlement.
func (h *RequestHistory) addSimilar(page []*Request, entitlement string) {
	found := 0
	for _, p := range page {
		if p.Entitlement == entitlement && found < maxSimilar {
			h.Similar = append(h.Similar, PastRequest{Request: p})
			found++
		}
	}
	slices.SortFunc(h.Similar, func(x, y PastRequest) int {
		return cmp.Or(y.Created.Compare(x.Created), bytes.Compare(y.ID[:], x.ID[:]))
	})
	h.Similar = h.Similar[:min(len(h.Similar), maxSimilar)]
}

// countCredentials counts the leases of the similar requests.
func (h *RequestHistory) countCredentials(tx Tx) error {
	for i := range h.Similar {
		p := &h.Similar[i]
		if p.FirstExpires.IsZero() { // never collected
			continue
		}
		leases, next, err := chain(tx, p.Request)
		if err != nil {
			return err
		}
		// Earlier versions opened leases that are in no list.
		p.Credentials, p.More = max(len(leases), 1), !next.IsZero() || p.FirstLease.IsZero()
	}
	return nil
}

func (c *EntitlementCount) add(state RequestStatus) {
	c.Asked++
	switch state {
	case RequestApproved, RequestEnded:
		c.Granted++
	case RequestDenied:
		c.Refused++
	case RequestPending:
		c.Pending++
	}
}
