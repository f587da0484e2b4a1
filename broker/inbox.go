package broker

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"time"
)

// An Inbox is what waits for one person.
type Inbox struct {
	Waiting []*Request // for the person's yes or no, riskiest first and then oldest
	Reviews []*Request // uses of the broken glass that the person is to review, soonest due first
	Total   int        // of all that waits, where Waiting is only the first of it
	More    bool       // there may be more than were looked at
}

// maxInbox is how many pending requests are looked at for the inboxes.
const maxInbox = 20_000

// pendingFresh is how long what is pending is looked at without asking the
// database again, unless this replica changed something. What another one
// changed shows as late as that.
const pendingFresh = 2 * time.Second

// pending keeps what is pending, for all who look: a page that hundreds watch
// costs the database as much as one that one does.
type pending struct {
	mu      sync.Mutex
	read    time.Time
	changes uint64 // of the waiters, before it was read
	list    []*Request
	more    bool
}

// Inbox gives what waits for a person, at most limit requests of it.
func (b *Broker) Inbox(ctx context.Context, caller Caller, limit int) (*Inbox, error) {
	if err := caller.RequireSession(); err != nil {
		return nil, err
	}
	rules := b.rules.Load()
	list, more, err := b.pending(ctx, caller.At)
	if err != nil {
		return nil, err
	}
	voter := newVoter(rules, caller.Subject)
	in := &Inbox{More: more}
	for _, r := range list {
		if caller.At.Before(r.Lapses) && voter.isAsked(r, r.Decision.Obligations.Approvals) && !hasDecided(caller.Subject, r.Approvals) {
			in.Waiting = append(in.Waiting, r)
		}
	}
	slices.SortStableFunc(in.Waiting, func(x, y *Request) int {
		return cmp.Or(cmp.Compare(rules.risk(y), rules.risk(x)), x.Created.Compare(y.Created))
	})
	in.Total = len(in.Waiting)
	in.Waiting = in.Waiting[:min(in.Total, pageSize(limit))]
	in.Reviews, err = b.toReview(ctx, voter)
	return in, err
}

// risk orders what waits: first what can't be taken back, then what only time
// ends, then the rest.
func (r *Rules) risk(request *Request) int {
	e := r.Catalogue[request.Entitlement]
	if e == nil {
		return 0
	}
	switch e.Revocation {
	case RevokedNever, RevokedAtRotation:
		return 2
	case RevokedAtExpiry:
		return 1
	}
	return 0
}

// pending gives what is pending, newest first. The rows are shared: nobody
// changes them.
func (b *Broker) pending(ctx context.Context, now time.Time) ([]*Request, bool, error) {
	p := &b.pendings
	p.mu.Lock()
	defer p.mu.Unlock()
	changes := b.waiters.count()
	if age := now.Sub(p.read); changes == p.changes && age >= 0 && age < pendingFresh {
		return p.list, p.more, nil
	}
	var list []*Request
	more := false
	err := b.cfg.Store.View(ctx, func(tx Tx) error {
		q := RequestQuery{Status: RequestPending, Now: now, Limit: maxInbox}
		for len(list) < maxInbox {
			page, next, err := tx.Requests(q)
			if err != nil {
				return err
			}
			list = append(list, page...)
			q.Before, q.Limit = next, maxInbox-len(list)
			if more = !next.IsZero(); !more {
				return nil
			}
		}
		return nil
	})
	if err != nil {
		return nil, false, Unavailable(err)
	}
	p.read, p.changes, p.list, p.more = now, changes, list, more
	return list, more, nil
}

// toReview gives the open reviews that the voter is asked for.
func (b *Broker) toReview(ctx context.Context, v *voter) (list []*Request, err error) {
	err = b.cfg.Store.View(ctx, func(tx Tx) error {
		open, err := tx.Reviews()
		if err != nil {
			return err
		}
		for _, of := range open {
			for _, text := range slices.Sorted(maps.Keys(of.Open)) {
				id, err := ParseRequestID(text)
				if err != nil {
					continue
				}
				r, err := Get[*Request](tx, id)
				if isNotFound(err) {
					continue
				}
				if err != nil {
					return err
				}
				if r.Reviewed.IsZero() && v.isAsked(r, r.Decision.Obligations.Review) && !hasDecided(v.who, r.Verdicts) {
					list = append(list, r)
				}
			}
		}
		return nil
	})
	slices.SortFunc(list, func(x, y *Request) int { return x.ReviewDue.Compare(y.ReviewDue) })
	return list, Unavailable(err)
}

// A voter is a person, with the groups that it speaks for under some rules.
type voter struct {
	rules  *Rules
	who    Identity
	groups map[string]bool
}

func newVoter(rules *Rules, who Identity) *voter {
	listed, claimed := rules.Policy.Groups(who)
	v := &voter{rules, who, map[string]bool{}}
	for _, g := range append(listed, claimed...) {
		v.groups[g] = true
	}
	return v
}

// isAsked says whether the person is asked about a request, as far as groups
// say. What only policy's forbids or the age of claims say, the vote does.
func (v *voter) isAsked(r *Request, needs []ApprovalNeed) bool {
	asked := slices.ContainsFunc(needs, func(n ApprovalNeed) bool {
		return v.groups[n.Group] || n.Group == GroupManager && slices.Contains(r.manager(), v.who.ID)
	})
	return asked && !(r.Decision.Obligations.ExcludeTeam && v.groups[r.Requester.Team]) && !r.conflictOfInterest(v.rules, v.who.ID)
}

// Asked says whether the person may say yes or no to the request, or review it,
// as far as groups say; false as well when it has spoken.
func (b *Broker) CanDecide(caller Caller, r *Request) (vote, review bool) {
	rules := b.rules.Load()
	if caller.RequireSession() != nil {
		return false, false
	}
	v, o := newVoter(rules, caller.Subject), r.Decision.Obligations
	vote = r.State(caller.At) == RequestPending && v.isAsked(r, o.Approvals) && !hasDecided(caller.Subject, r.Approvals)
	review = !r.ReviewDue.IsZero() && r.Reviewed.IsZero() && v.isAsked(r, o.Review) && !hasDecided(caller.Subject, r.Verdicts)
	return vote, review
}

func hasDecided(who Identity, said []Approval) bool {
	return slices.ContainsFunc(said, func(a Approval) bool { return a.Person == who.ID })
}

// A Past is what the maker of a request asked for before, of one entitlement.
type RequestHistory struct {
	Entitlement                      string
	Asked, Granted, Refused, Pending int
}

// pastFor is how far back the past goes.
const pastFor = 30 * 24 * time.Hour

// Past gives, to those who may see the request, what its maker asked for in the
// 30 days before it. partial says that there may be more.
func (b *Broker) RequestHistory(ctx context.Context, caller Caller, r *Request) (past []RequestHistory, partial bool, err error) {
	if err := b.checkView(ctx, caller, r); err != nil {
		return nil, false, err
	}
	by := map[string]*RequestHistory{}
	err = b.cfg.Store.View(ctx, func(tx Tx) error {
		page, next, err := tx.Requests(RequestQuery{Requester: r.Requester.ID, Now: caller.At, Before: r.ID, Limit: pageMax})
		partial = !next.IsZero()
		for _, p := range page {
			if p.Created.Before(r.Created.Add(-pastFor)) {
				partial = false
				break
			}
			of := by[p.Entitlement]
			if of == nil {
				of = &RequestHistory{Entitlement: p.Entitlement}
				by[p.Entitlement] = of
			}
			of.add(p.State(caller.At))
		}
		return err
	})
	for _, name := range slices.Sorted(maps.Keys(by)) {
		past = append(past, *by[name])
	}
	return past, partial, Unavailable(err)
}

func (p *RequestHistory) add(state RequestStatus) {
	p.Asked++
	switch state {
	case RequestApproved, RequestEnded:
		p.Granted++
	case RequestDenied:
		p.Refused++
	case RequestPending:
		p.Pending++
	}
}

// LeasesOf gives the leases of a request, newest first, to those who may see it.
func (b *Broker) LeasesOf(ctx context.Context, caller Caller, r *Request) (list []*Lease, err error) {
	if err := b.checkView(ctx, caller, r); err != nil {
		return nil, err
	}
	list, _, err = b.leasesOf(ctx, r, caller.At)
	return list, err
}

// leasesOf is LeasesOf for callers who have read the request. more reports
// whether there may be older leases.
func (b *Broker) leasesOf(ctx context.Context, r *Request, now time.Time) (list []*Lease, more bool, err error) {
	if r.Approved.IsZero() {
		return nil, false, nil
	}
	// No lease of it was opened after the grant: those need not be looked at.
	q := LeaseQuery{Request: r.ID, Now: now, Before: leaseIDAt(r.CollectUntil.Add(time.Minute)), Limit: pageDefault}
	err = b.cfg.Store.View(ctx, func(tx Tx) (err error) {
		var next LeaseID
		list, next, err = tx.Leases(q)
		more = !next.IsZero()
		return err
	})
	return list, more, Unavailable(err)
}

// Effect says, in the words of the issuer, what a credential of the request
// could do; empty if its issuer does not say.
func (b *Broker) Effect(ctx context.Context, caller Caller, r *Request) (string, error) {
	if err := b.checkView(ctx, caller, r); err != nil {
		return "", err
	}
	e := b.rules.Load().Catalogue[r.Entitlement]
	if e == nil {
		return "", nil
	}
	d, ok := b.cfg.Issuers[e.Issuer].(Describer)
	if !ok {
		return "", nil
	}
	return d.Describe(e, r.Scopes, r.Parameters), nil
}
