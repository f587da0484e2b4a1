package broker

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"
)

// ownRequest returns a request that the caller filed.
func (b *Broker) ownRequest(ctx context.Context, caller Caller, id RequestID) (*Request, error) {
	r, err := b.load(ctx, id)
	if err != nil {
		return nil, err
	}
	if r.Requester.ID != caller.Subject.ID {
		return nil, refuse(ErrNotFound, "no such request of yours")
	}
	return r, nil
}

func (b *Broker) load(ctx context.Context, id RequestID) (r *Request, err error) {
	err = b.cfg.Store.View(ctx, func(tx Tx) (err error) {
		r, err = Get[*Request](tx, id)
		return err
	})
	if isNotFound(err) {
		return nil, refuse(ErrNotFound, "no such request of yours")
	}
	return r, Unavailable(err)
}

// Request returns a request that the caller filed or may view; ErrNotFound for
// all others.
func (b *Broker) Request(ctx context.Context, caller Caller, id RequestID) (*Request, error) {
	r, err := b.load(ctx, id)
	if err != nil {
		return nil, err
	}
	if err := b.checkView(ctx, caller, r); err != nil {
		return nil, err
	}
	return r, nil
}

// Lease returns a lease that the caller holds or may view; ErrNotFound for all
// others.
func (b *Broker) Lease(ctx context.Context, caller Caller, id LeaseID) (*Lease, error) {
	l, err := b.leaseRow(ctx, id)
	if err != nil && !isNotFound(err) {
		return nil, err
	}
	if err != nil || l.Holder != caller.Subject.ID && !b.mayOnRequest(ctx, caller, ActionView, l.Request) {
		return nil, refuse(ErrNotFound, "no such lease of yours")
	}
	return l, nil
}

func (b *Broker) leaseRow(ctx context.Context, id LeaseID) (l *Lease, err error) {
	err = b.cfg.Store.View(ctx, func(tx Tx) (err error) {
		l, err = Get[*Lease](tx, id)
		return err
	})
	return l, Unavailable(err)
}

// mayOnRequest reads a request and reports whether the caller may do the action
// on it.
func (b *Broker) mayOnRequest(ctx context.Context, caller Caller, action Action, id RequestID) bool {
	r, err := b.load(ctx, id)
	return err == nil && (action == ActionView && b.isParticipant(caller, r) || b.mayOn(ctx, caller, action, r))
}

// mayView reports whether the caller may see a request of another: as a
// participant, or because policy permits it.
func (b *Broker) mayView(ctx context.Context, caller Caller, r *Request) bool {
	return b.isParticipant(caller, r) || b.mayOn(ctx, caller, ActionView, r)
}

// isParticipant reports whether the caller is a person who approves, reviews or
// was notified of the request, or who is accountable for its requester.
func (b *Broker) isParticipant(caller Caller, r *Request) bool {
	rules := b.rules.Load()
	if caller.Subject.Kind != KindPerson || !caller.Actor.Proof.Valid(caller.At) {
		return false
	}
	o := r.Decision.Obligations
	groups, _ := r.groupsOf(rules, caller.Subject, slices.Concat(o.Approvals, o.Review, r.escalatedTo(caller.At)))
	return len(groups) > 0 || slices.Contains(r.Requester.Accountable, caller.Subject.ID)
}

// checkView returns ErrNotFound unless the caller filed the request or may view
// it.
func (b *Broker) checkView(ctx context.Context, caller Caller, r *Request) error {
	if r.Requester.ID != caller.Subject.ID && !b.mayView(ctx, caller, r) {
		return refuse(ErrNotFound, "no such request of yours")
	}
	return nil
}

// SeesPolicies reports whether the caller sees which policies decided on a
// request: its approvers and reviewers, and everyone whom policy permits to
// view it. The requester, the accountable people, and groups that were only
// notified do not.
func (b *Broker) SeesPolicies(ctx context.Context, caller Caller, r *Request) bool {
	if caller.RequireSession() == nil {
		o := r.Decision.Obligations
		if newVoter(b.rules.Load(), caller.Subject).mayDecide(r, slices.Concat(o.Approvals, o.Review)) {
			return true
		}
	}
	return b.mayOn(ctx, caller, ActionView, r)
}

// escalatedTo returns the groups that were notified by escalation while the
// request was pending. They see the request and have no vote.
func (r *Request) escalatedTo(now time.Time) (needs []ApprovalNeed) {
	waited := now
	switch {
	case r.Status == RequestPending && r.Lapses.Before(now):
		waited = r.Lapses
	case r.Status == RequestApproved:
		waited = r.Approved
	case r.Status == RequestDenied && len(r.Approvals) > 0 && !r.Approvals[len(r.Approvals)-1].Approve:
		waited = r.Approvals[len(r.Approvals)-1].At
	}
	for _, step := range r.Decision.Obligations.Escalations {
		if !waited.Before(r.Created.Add(step.After)) {
			needs = append(needs, ApprovalNeed{Group: step.Group, Count: 1})
		}
	}
	return needs
}

// mayOn asks policy whether the caller may do the action on the request.
func (b *Broker) mayOn(ctx context.Context, caller Caller, action Action, r *Request) bool {
	if caller.Actor.Kind == KindOperator {
		return true
	}
	rules := b.rules.Load()
	if !caller.Actor.Proof.Valid(caller.At) {
		return false
	}
	q := Query{Principal: rules.WithLabels(caller.Subject), Action: action, Request: r, Entitlement: rules.Catalogue[r.Entitlement]}
	d, err := b.ask(ctx, rules, q, caller.At)
	return err == nil && d.Permit
}

// May asks policy whether the caller may do an action on the broker itself:
// audit, usage, operate or block.
func (b *Broker) May(ctx context.Context, caller Caller, action Action) bool {
	if caller.Actor.Kind == KindOperator {
		return true
	}
	rules := b.rules.Load()
	if !caller.Actor.Proof.Valid(caller.At) {
		return false
	}
	d, err := b.ask(ctx, rules, Query{Principal: rules.WithLabels(caller.Subject), Action: action}, caller.At)
	return err == nil && d.Permit
}

const (
	pageDefault = 50
	pageMax     = 200
	pageScans   = 4 // pages of rows that are read, at most, to fill one page of visible rows
	listsAtOnce = 2 // lists that run at a time, because each reads many rows
)

func pageSize(asked int) int {
	if asked <= 0 {
		return pageDefault
	}
	return min(asked, pageMax)
}

// Everyone, as the Requester or Holder of a query, selects all rows that the
// caller may view.
const Everyone = "*"

// Requests lists the caller's own requests, or those of q.Requester, or of
// Everyone, that the caller may view. next is zero on the last page.
func (b *Broker) Requests(ctx context.Context, caller Caller, q RequestQuery) (page []*Request, next RequestID, err error) {
	if q.Requester, err = selector(q.Requester, caller.Subject); err != nil {
		return nil, RequestID{}, err
	}
	q.Now, q.Limit = caller.At, pageSize(q.Limit)
	leave, err := b.lists.enter(ctx)
	if err != nil {
		return nil, RequestID{}, err
	}
	defer leave()
	for range pageScans {
		var rows []*Request
		err := b.cfg.Store.View(ctx, func(tx Tx) (err error) {
			rows, next, err = tx.Requests(q)
			return err
		})
		if err != nil {
			return nil, RequestID{}, Unavailable(err)
		}
		for _, r := range rows {
			if r.Requester.ID == caller.Subject.ID || b.mayView(ctx, caller, r) {
				page = append(page, r)
			}
			if len(page) == q.Limit {
				return page, r.ID, nil
			}
		}
		if next.IsZero() {
			break
		}
		q.Before = next
	}
	return page, next, nil
}

// Leases lists the caller's own leases, or those of q.Holder, or of Everyone,
// that the caller may view. next is zero on the last page.
func (b *Broker) Leases(ctx context.Context, caller Caller, q LeaseQuery) (page []*Lease, next LeaseID, err error) {
	if q.Holder, err = selector(q.Holder, caller.Subject); err != nil {
		return nil, LeaseID{}, err
	}
	q.Now, q.Limit = caller.At, pageSize(q.Limit)
	leave, err := b.lists.enter(ctx)
	if err != nil {
		return nil, LeaseID{}, err
	}
	defer leave()
	views := map[RequestID]bool{} // decisions so far, because a request may have many leases
	may := func(l *Lease) bool {
		if _, decided := views[l.Request]; !decided {
			views[l.Request] = b.mayOnRequest(ctx, caller, ActionView, l.Request)
		}
		return views[l.Request]
	}
	for range pageScans {
		var rows []*Lease
		err := b.cfg.Store.View(ctx, func(tx Tx) (err error) {
			rows, next, err = tx.Leases(q)
			return err
		})
		if err != nil {
			return nil, LeaseID{}, Unavailable(err)
		}
		for _, l := range rows {
			if l.Holder == caller.Subject.ID || may(l) {
				page = append(page, l)
			}
			if len(page) == q.Limit {
				return page, l.ID, nil
			}
		}
		if next.IsZero() {
			break
		}
		q.Before = next
	}
	return page, next, nil
}

// selector returns the requester or holder to query; "" means all of them.
// Without a name, operators list everything, because they have nothing of their
// own.
func selector(asked string, who Identity) (string, error) {
	switch {
	case asked == Everyone, asked == "" && who.Kind == KindOperator:
		return "", nil
	case asked == "":
		return who.ID, nil
	}
	if !personForm.MatchString(asked) && !isSPIFFEPath(asked) {
		return "", refuse(ErrInvalidRequest, "name a SPIFFE ID, a person such as login/ana, or * for all")
	}
	return asked, nil
}

// Entitlements lists the entitlements that the caller may request.
func (b *Broker) Entitlements(ctx context.Context, caller Caller) ([]Offer, error) {
	rules := b.rules.Load()
	if !caller.Actor.Proof.Valid(caller.At) {
		return nil, refuse(ErrProofExpired, "your identity's proof has expired: fetch a new SVID")
	}
	caller = caller.labelled(rules)
	blocks, err := b.blocksInForce(ctx)
	if err != nil {
		return nil, err
	}
	var list []Offer
	for _, name := range slices.Sorted(maps.Keys(rules.Catalogue)) {
		offer := b.offers(ctx, caller, rules, rules.Catalogue[name])
		if offer.permitted() {
			offer.Blocked = blocks.hit(caller.Subject, offer.Entitlement)
			list = append(list, offer)
		}
	}
	return list, ctx.Err()
}

// MayAsk reports whether the caller may request any part of the entitlement. It
// is false for an unknown one.
func (b *Broker) MayAsk(ctx context.Context, caller Caller, entitlement string) bool {
	rules := b.rules.Load()
	if !caller.Actor.Proof.Valid(caller.At) {
		return false
	}
	e := rules.Catalogue[entitlement]
	return e != nil && b.visible(ctx, caller.labelled(rules), rules, e)
}

// offers asks policy about each scope of an entitlement alone, or about the
// whole entitlement if it has no scopes.
func (b *Broker) offers(ctx context.Context, caller Caller, rules *Rules, e *Entitlement) Offer {
	offer := Offer{Entitlement: e}
	q := Query{Principal: caller.Subject, Action: ActionRequest, Entitlement: e, TTL: e.DefaultTTL, Duration: e.CollectWithin}
	decide := func(scopes ...string) (d Decision, glass bool) {
		q.Scopes, q.BreakGlass = scopes, false
		d, _ = b.ask(ctx, rules, q, caller.At) // an error denies
		if d.Permit {
			return d, false
		}
		q.BreakGlass = true
		broken, _ := b.ask(ctx, rules, q, caller.At)
		return d, broken.Permit
	}
	if len(e.Scopes) == 0 {
		offer.Decision, offer.BreakGlassOnly = decide()
		return offer
	}
	for _, scope := range e.Scopes {
		d, glass := decide(scope)
		offer.Scopes = append(offer.Scopes, ScopeOffer{scope, d, glass})
	}
	return offer
}

// permitted reports whether policy permits any part of the entitlement.
func (o *Offer) permitted() bool {
	return o.Decision.Permit || o.BreakGlassOnly || slices.ContainsFunc(o.Scopes, func(s ScopeOffer) bool { return s.Decision.Permit || s.BreakGlassOnly })
}

// Introspect returns what a token is (RFC 7662). It is nil for a token that is
// not active or not ours, and for a caller that may not know.
func (b *Broker) Introspect(ctx context.Context, caller Caller, token string) (*Introspection, error) {
	rules := b.rules.Load()
	l, err := b.inspect(ctx, token)
	if err != nil || l == nil {
		return nil, err
	}
	e := rules.Catalogue[l.Entitlement]
	if e == nil || l.Holder != caller.Subject.ID && !slices.Contains(e.Introspectors, caller.Subject.ID) {
		return nil, nil
	}
	if l.State(caller.At) != LeaseActive || b.blocked(ctx, l, e) {
		return nil, nil
	}
	return &Introspection{Lease: *l, Audience: e.Audience}, nil
}

// inspect returns the lease of a token; nil if no issuer of ours signed it.
func (b *Broker) inspect(ctx context.Context, token string) (*Lease, error) {
	for _, issuer := range b.cfg.Issuers {
		inspector, ok := issuer.(Inspector)
		if !ok {
			continue
		}
		id, err := inspector.Inspect(ctx, token)
		if err != nil {
			continue
		}
		var l *Lease
		err = b.cfg.Store.View(ctx, func(tx Tx) (err error) {
			l, err = Get[*Lease](tx, id)
			return ignoreNotFound(err)
		})
		return l, Unavailable(err)
	}
	return nil, nil
}

// blocked reports whether the holder or the entitlement of a lease is blocked.
// An error counts as blocked.
func (b *Broker) blocked(ctx context.Context, l *Lease, e *Entitlement) bool {
	domain, _, _ := strings.Cut(strings.TrimPrefix(l.Holder, "spiffe://"), "/")
	who := Identity{ID: l.Holder, TrustDomain: domain, Paths: SPIFFEPaths(l.Holder)}
	return nil != b.cfg.Store.View(ctx, func(tx Tx) error { return CheckBlocks(tx, blockKeys(who, e)) })
}

// RevokeToken returns the lease of a token (RFC 7009). A token that is not ours
// or not of the caller is ignored.
func (b *Broker) RevokeToken(ctx context.Context, caller Caller, token string) error {
	l, err := b.inspect(ctx, token)
	if err != nil || l == nil || l.Holder != caller.Subject.ID {
		return err
	}
	_, err = b.Revoke(ctx, caller, l.ID, "")
	return err
}
