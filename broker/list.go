package broker

import (
	"context"
	"slices"
	"time"
)

// ownRequest returns a request that the caller filed.
func (b *Broker) ownRequest(ctx context.Context, caller Caller, id RequestID) (*Request, error) {
	r, err := b.load(ctx, id)
	if isNotFound(err) || err == nil && r.Requester.ID != caller.Subject.ID {
		return nil, b.missingRequest(id, caller.At)
	}
	if err != nil {
		return nil, err
	}
	return r, nil
}

func (b *Broker) load(ctx context.Context, id RequestID) (r *Request, err error) {
	err = b.cfg.Store.View(ctx, func(tx Tx) (err error) {
		r, err = Get[*Request](tx, id)
		return err
	})
	if isNotFound(err) {
		return nil, refuse(ErrNotFound, "there is no such request, or you may not view it")
	}
	if err != nil {
		return nil, Unavailable(err)
	}
	r.link(b.rules.Load().People)
	return r, nil
}

// Request returns a request that the caller filed or may view; ErrNotFound for
// all others.
func (b *Broker) Request(ctx context.Context, caller Caller, id RequestID) (*Request, error) {
	r, err := b.load(ctx, id)
	if isNotFound(err) {
		return nil, b.missingRequest(id, caller.At)
	}
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
	if err != nil || l.Holder != caller.Subject.ID && !b.isSubject(caller, l.Subject) && !b.mayOnRequest(ctx, caller, ActionView, l.Request) {
		return nil, b.missingLease(id, caller.At)
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
// was notified of the request, or who is accountable for its requester or another workload in
// a chain of delegation.
func (b *Broker) isParticipant(caller Caller, r *Request) bool {
	rules := b.rules.Load()
	if caller.Subject.Kind != KindPerson || !caller.Actor.Proof.Valid(caller.At) {
		return false
	}
	o := r.Decision.Obligations
	groups, _ := r.groupsOf(rules, caller.Subject, slices.Concat(o.Approvals, o.Review, r.escalatedTo(caller.At)))
	if r.Delegation != nil && rules.People.Contains(r.excluded(), caller.Subject.ID) {
		return true
	}
	return len(groups) > 0 || rules.People.Contains(r.Requester.Accountable, caller.Subject.ID)
}

// isSubject reports whether the caller is the one on whose behalf something is done, with any
// account.
func (b *Broker) isSubject(caller Caller, subject string) bool {
	return subject != "" && caller.Actor.Proof.Valid(caller.At) && (subject == caller.Subject.ID || b.rules.Load().People.Same(subject, caller.Subject.ID))
}

// subject returns on whose behalf the request is made; empty: the requester's own.
func (r *Request) subject() string {
	if r.Delegation == nil {
		return ""
	}
	return r.Delegation.Subject.ID
}

// checkView returns ErrNotFound unless the caller filed the request or may view
// it.
func (b *Broker) checkView(ctx context.Context, caller Caller, r *Request) error {
	if r.Requester.ID != caller.Subject.ID && !b.isSubject(caller, r.subject()) && !b.mayView(ctx, caller, r) {
		return b.missingRequest(r.ID, caller.At)
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
	d, err := b.decideQuery(ctx, rules, q, caller.At)
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
	d, err := b.decideQuery(ctx, rules, Query{Principal: rules.WithLabels(caller.Subject), Action: action}, caller.At)
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
			if r.Requester.ID == caller.Subject.ID || b.isSubject(caller, r.subject()) || b.mayView(ctx, caller, r) {
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
			if l.Holder == caller.Subject.ID || b.isSubject(caller, l.Subject) || may(l) {
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
	if err := checkHolder(asked); err != nil {
		return "", refuse(ErrInvalidRequest, err.Error()+"; * selects all")
	}
	return asked, nil
}
