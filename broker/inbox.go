package broker

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"time"
)

// An Inbox has the decisions that wait for one person.
type Inbox struct {
	Waiting []*Request // requests to approve or deny, by risk, then oldest first
	Reviews []*Request // break-glass uses to review, soonest due first
	Total   int        // the number of requests to decide; Waiting may have fewer
	More    bool       // more requests are pending than were read
}

// maxInbox bounds how many pending requests are read for the inboxes.
const maxInbox = 20_000

// pendingFresh is how long the cached pending requests are used, unless this
// process changed one. Changes by other processes show up to this much later.
const pendingFresh = 2 * time.Second

// pending caches the pending requests, so that a page that hundreds of people
// watch costs the database as much as one reader.
type pending struct {
	mu      sync.Mutex
	read    time.Time
	changes uint64 // the count of changes before the list was read
	list    []*Request
	more    bool
}

// Inbox returns the person's inbox with at most limit pending requests.
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
		if caller.At.Before(r.Lapses) && voter.mayDecide(r, r.Decision.Obligations.Approvals) && !hasDecided(voter.who, r.Approvals) {
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

// risk orders the inbox: first credentials that cannot be revoked at all, then
// those that only expire, then the rest.
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

// pending returns the pending requests, newest first. Callers share the rows
// and must not change them. more reports that there are more than maxInbox.
func (b *Broker) pending(ctx context.Context, now time.Time) ([]*Request, bool, error) {
	p := &b.pendingCache
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

// toReview returns the open reviews that wait for the person.
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
				if r.Reviewed.IsZero() && v.mayDecide(r, r.Decision.Obligations.Review) && !hasDecided(v.who, r.Verdicts) {
					list = append(list, r)
				}
			}
		}
		return nil
	})
	slices.SortFunc(list, func(x, y *Request) int { return x.ReviewDue.Compare(y.ReviewDue) })
	return list, Unavailable(err)
}

// A voter is a person with their groups under some rules.
type voter struct {
	rules  *Rules
	who    Identity
	groups map[string]bool
	teams  map[string]bool // the groups of all accounts of the person
}

func newVoter(rules *Rules, who Identity) *voter {
	who = rules.WithLabels(who)
	listed, claimed := rules.Policy.Groups(who)
	v := &voter{rules, who, map[string]bool{}, map[string]bool{}}
	for _, g := range append(listed, claimed...) {
		v.groups[g] = true
	}
	for _, g := range rules.groupsOfPerson(who) {
		v.teams[g] = true
	}
	return v
}

// mayDecide reports whether the person may decide on the request, judging by
// groups alone. The vote itself also checks the forbids of policy and the age
// of the claims.
func (v *voter) mayDecide(r *Request, needs []ApprovalNeed) bool {
	asked := slices.ContainsFunc(needs, func(n ApprovalNeed) bool {
		return v.groups[n.Group] || n.Group == GroupManager && v.rules.People.Contains(r.manager(), v.who.ID)
	})
	return asked && !(r.Decision.Obligations.ExcludeTeam && v.teams[r.Requester.Team]) && !r.conflictOfInterest(v.rules, v.who.ID)
}

// CanDecide reports whether the person may vote on the request, or review it,
// judging by groups alone. It is false for a person who has decided already.
func (b *Broker) CanDecide(caller Caller, r *Request) (vote, review bool) {
	rules := b.rules.Load()
	if caller.RequireSession() != nil {
		return false, false
	}
	v, o := newVoter(rules, caller.Subject), r.Decision.Obligations
	vote = r.State(caller.At) == RequestPending && v.mayDecide(r, o.Approvals) && !hasDecided(v.who, r.Approvals)
	review = !r.ReviewDue.IsZero() && r.Reviewed.IsZero() && v.mayDecide(r, o.Review) && !hasDecided(v.who, r.Verdicts)
	return vote, review
}

// Effect returns the issuer's description of what a credential of the request
// can do; empty if the issuer has none.
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
