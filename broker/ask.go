package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"accessbroker.internal/audit"
)

// Ask files a request (POST /v1/requests). It returns the request, pending or
// approved, or a *Refusal. The caller's identical request that is pending or
// granted is returned instead of a new one. With ask.DryRun nothing is stored,
// and the request has no id.
func (b *Broker) Ask(ctx context.Context, caller Caller, ask Ask, key IdempotencyKey) (r *Request, err error) {
	err = b.retry(func() (err error) {
		r, err = b.askOnce(ctx, caller, ask, key)
		return err
	})
	return r, err
}

func (b *Broker) askOnce(ctx context.Context, caller Caller, ask Ask, key IdempotencyKey) (*Request, error) {
	if !ask.DryRun {
		if prior, err := b.prior(ctx, key); err != nil || prior != nil {
			if err != nil {
				return nil, err
			}
			return b.Request(ctx, caller, prior.Request)
		}
	}
	f := &filing{caller: caller, key: key}
	if err := b.decide(ctx, f, ask); err != nil || ask.DryRun {
		return f.request, err
	}
	return b.file(ctx, f)
}

// decide turns an ask into a request that policy permits, and fills in the filing, or
// returns a *Refusal. A denial is recorded before it is returned.
func (b *Broker) decide(ctx context.Context, f *filing, ask Ask) error {
	err := b.evaluate(ctx, f, ask)
	code := "permit"
	switch {
	case err != nil:
		code = Code(err)
	case f.request.needsPeople():
		code = Code(ErrPending)
	}
	b.cfg.Observe(Event{Kind: EventRequest, Entitlement: entitlementLabel(f.e), Code: code})
	var refusal *Refusal
	if errors.As(err, &refusal) && (errors.Is(err, ErrDenied) || errors.Is(err, ErrDelegation) || errors.Is(err, ErrActorNotAllowed) || errors.Is(err, ErrNotAssessed) || isFact(err)) && !ask.DryRun {
		err = b.denied(ctx, f, ask, refusal)
		f.request = nil
	}
	return err
}

// evaluate checks the ask against the catalogue and policy, and fills in the
// filing.
func (b *Broker) evaluate(ctx context.Context, f *filing, ask Ask) error {
	caller := f.caller
	rules := b.rules.Load()
	if !caller.Actor.Proof.Valid(caller.At) {
		return refuse(ErrProofExpired, "your identity's proof has expired: fetch a new SVID")
	}
	if err := ask.checkForm(); err != nil {
		return err
	}
	caller = caller.labelled(rules)
	f.caller = caller
	d, err := b.delegate(ctx, rules, caller, &ask)
	if err != nil {
		f.request = stubRequest(caller, ask, rules)
		return err
	}
	e := rules.Catalogue[ask.Entitlement]
	if _, within := caller.Subject.Ceiling.Part(ask.Entitlement); !within || e == nil {
		f.request, f.e = stubRequest(caller, ask, rules), e
		f.request.Delegation = d
		if within {
			return denyFor(d, nil, nil)
		}
		return denyAbove(caller.Subject.Ceiling.exceeds(caller.Subject.ID, ask.Entitlement, nil), nil)
	}
	r, err := f.newRequest(ask, e, d)
	if err == nil {
		err = b.extends(ctx, caller, r)
	}
	if err == nil {
		err = b.authorize(ctx, caller, rules, r, ask, e)
	}
	if err != nil && !errors.Is(err, ErrDenied) && !isFact(err) && !b.visible(ctx, caller, rules, e, d) {
		// Callers who may not request the entitlement at all get the same answer
		// as for an unknown one. A denial keeps its @reason, which the author of
		// the policy wrote for them.
		r, err = stubRequest(caller, ask, rules), denyFor(d, nil, nil)
		r.Delegation = d
	}
	f.request, f.e, f.waitAtMost, f.once = r, e, ask.WaitAtMost, ask.Once
	if err == nil {
		f.footing, err = b.rest(ctx, rules, r, ask.DryRun, caller.At)
	}
	if err == nil && !ask.DryRun {
		err = b.markExchanged(ctx, d)
	}
	return err
}

// newRequest returns the undecided request of an ask, bounded by the proof of a delegation.
func (f *filing) newRequest(ask Ask, e *Entitlement, d *Delegation) (*Request, error) {
	if err := d.bound(&ask, e); err != nil {
		return nil, err
	}
	r, err := e.newRequest(&f.caller, &ask)
	if err != nil {
		return nil, err
	}
	f.memory = r
	f.memory.Delegation = d
	return &f.memory, nil
}

// extends checks the request that this one extends: it must be the caller's
// own, for the same entitlement.
func (b *Broker) extends(ctx context.Context, caller Caller, r *Request) error {
	if r.Extends.IsZero() {
		return nil
	}
	earlier, err := b.ownRequest(ctx, caller, r.Extends)
	switch {
	case isNotFound(err) || err == nil && earlier.Entitlement != r.Entitlement:
		return refuse(ErrInvalidRequest, "extends must name an earlier request of yours for this entitlement")
	case err != nil:
		return err
	}
	return nil
}

// stubRequest returns the request to record for an ask that the catalogue or policy
// refused before a request could be made.
func stubRequest(caller Caller, ask Ask, rules *Rules) *Request {
	return &Request{Requester: caller.Subject, Entitlement: ask.Entitlement, Created: caller.At, Decision: Decision{Revision: rules.Revision}}
}

// authorize asks policy, applies its obligations, and checks that enough people
// can approve.
func (b *Broker) authorize(ctx context.Context, caller Caller, rules *Rules, r *Request, ask Ask, e *Entitlement) error {
	d, err := b.decideRequest(ctx, rules, r.query(caller.Subject, e), r.Delegation, caller.At)
	if err != nil {
		return err
	}
	r.Decision = d
	if d.Above != "" {
		return denyAbove(d.Above, b.alternatives(ctx, caller, rules, r, e))
	}
	if !d.Permit {
		return denyFor(r.Delegation, d.Reasons, b.alternatives(ctx, caller, rules, r, e))
	}
	if err := caller.checkBinding(r.demand(e, &d.Obligations)); err != nil {
		return err
	}
	if err := r.applyObligations(d.Obligations, ask, e); err != nil {
		return err
	}
	return b.checkApprovable(ctx, rules, r, caller.At)
}

// decideQuery evaluates a query against policy. An error denies.
func (b *Broker) decideQuery(ctx context.Context, rules *Rules, q Query, now time.Time) (Decision, error) {
	start := time.Now()
	q.Extended = b.extended(ctx, rules, rules.Suppliers.Of(q.Principal))
	if above := q.Exceeds(); above != "" {
		return Decision{Revision: rules.Revision, Above: above, Lasting: true}, ctx.Err()
	}
	d, err := rules.Policy.Decide(ctx, q, now)
	code := "permit"
	switch {
	case err != nil:
		code = "error"
	case !d.Permit:
		code = "deny"
	}
	b.cfg.Observe(Event{Kind: EventDecision, Code: code, Took: time.Since(start)})
	if err != nil {
		b.cfg.Log.ErrorContext(ctx, "policy could not be evaluated: denied", "err", err)
		d.Permit, d.Obligations = false, Obligations{}
	}
	d.Revision = rules.Revision
	return d, ctx.Err()
}

// deny returns the refusal by policy. The text is the same whether or not the
// entitlement exists.
func deny(reasons []string, allowed *Allowed) error {
	return &Refusal{
		Err:      ErrDenied,
		Detail:   "policy does not permit this",
		Reasons:  reasons,
		DeniedBy: "policy",
		Allowed:  allowed,
	}
}

// denyAbove returns the refusal of what is above the ceiling of a mark.
func denyAbove(above string, allowed *Allowed) error {
	return &Refusal{Err: ErrDenied, Detail: above, DeniedBy: DeniedByCeiling, Allowed: allowed}
}

// alternatives returns the scopes of the entitlement that policy would permit,
// each alone, on the terms of this request; nil if there are none.
func (b *Broker) alternatives(ctx context.Context, caller Caller, rules *Rules, r *Request, e *Entitlement) *Allowed {
	var allowed []string
	q := r.query(caller.Subject, e)
	for _, scope := range e.Scopes {
		q.Scopes = []string{scope}
		if d, err := b.decideRequest(ctx, rules, q, r.Delegation.decided(), caller.At); err == nil && d.Permit {
			allowed = append(allowed, scope)
		}
	}
	if len(allowed) == 0 {
		return nil
	}
	return &Allowed{Scopes: allowed}
}

// visible reports whether the caller may request any part of the entitlement, perhaps on
// behalf of another.
func (b *Broker) visible(ctx context.Context, caller Caller, rules *Rules, e *Entitlement, of *Delegation) bool {
	offer := b.offers(ctx, caller, rules, e, of)
	return offer.permitted()
}

// A filing is a request that policy permits and that is not stored yet.
type filing struct {
	caller  Caller // with labels
	request *Request
	memory  Request // of the request
	e       *Entitlement
	key     IdempotencyKey
	footing footing

	waitAtMost time.Duration // Ask.WaitAtMost
	once       bool          // Ask.Once
}

func (f *filing) record() audit.Record {
	r := f.request
	record := audit.Record{Kind: audit.RequestCreated, Caller: f.caller.Actor.Party(), Request: r.facts(), Decision: r.Decision.facts(""), Openings: r.openings(), From: r.SourceIP}
	r.onBehalf(&record)
	return record
}

// file stores a request that policy permits: approved, or pending if people
// must approve.
func (b *Broker) file(ctx context.Context, f *filing) (*Request, error) {
	r, now := f.request, f.caller.At
	if !r.needsPeople() {
		blocks := chainBlocks(b.rules.Load(), r.Requester, r.Delegation, f.e)
		r.commit(now)
		r.approve(now)
		if f.waitAtMost > 0 {
			r.CollectUntil = earlier(r.CollectUntil, now.Add(f.waitAtMost))
		}
		_, err := b.write(ctx, slices.Concat(f.key.reads(), r.reviews(), blocks, f.footing.reads(), r.Delegation.reads()), f.record(), func(tx Tx) error {
			if err := errors.Join(CheckBlocks(tx, blocks), f.footing.check(tx), r.Delegation.spend(tx)); err != nil {
				return err
			}
			if err := b.breakGlass(tx, r, now); err != nil {
				return err
			}
			tx.Put(r)
			return f.key.record(tx, r.ID, now)
		})
		if err == nil && r.BreakGlass {
			b.waiters.changed(r.ID)
		}
		return r, err
	}
	return b.filePending(ctx, f)
}

// filePending stores a pending request, unless an identical one is pending or
// granted. The row of the identical ask is read before the transaction and
// compared within it, so that two identical asks at once file one request.
func (b *Broker) filePending(ctx context.Context, f *filing) (*Request, error) {
	r, now := f.request, f.caller.At
	open := AskKey(r.askDigest())
	var same RequestID
	view := b.cfg.Store.View(ctx, func(tx Tx) error {
		row, err := Get[*OpenAsk](tx, open)
		if err == nil && now.Before(row.Expires) {
			same = row.Request
		}
		return ignoreNotFound(err)
	})
	if view != nil {
		return nil, Unavailable(view)
	}
	if !same.IsZero() {
		if prior, err := b.Request(ctx, f.caller, same); err == nil && prior.isOpen(now) && prior.Created.After(f.footing.fallen) && (!f.once || prior.FirstExpires.IsZero()) {
			prior.Reused = true
			return prior, b.spendAlone(ctx, r.Delegation)
		}
	}
	r.commit(now)
	r.Status, r.Version = RequestPending, 1
	r.Lapses = earlier(now.Add(shorter(r.Waits(), f.waitAtMost)), r.Until)
	rules := b.rules.Load()
	blocks := chainBlocks(rules, r.Requester, r.Delegation, f.e)
	count := pendingKey(r.Requester)
	_, err := b.write(ctx, slices.Concat(f.key.reads(), []Key{open, count}, blocks, f.footing.reads(), r.awaited(), r.Delegation.reads()), f.record(), func(tx Tx) error {
		if err := errors.Join(CheckBlocks(tx, blocks), f.footing.check(tx), r.Delegation.spend(tx)); err != nil {
			return err
		}
		if row, err := Get[*OpenAsk](tx, open); err == nil && row.Request != same && now.Before(row.Expires) {
			return errOvertaken
		} else if ignoreNotFound(err) != nil {
			return err
		}
		c, err := counter(tx, count)
		if err != nil {
			return err
		}
		if !c.hold(b.cfg.MaxPending, r.ID.String(), r.Lapses, now) {
			return refuse(ErrTooManyPending, fmt.Sprintf("you have %d pending requests: withdraw one, or wait for a decision", b.cfg.MaxPending))
		}
		tx.Put(c)
		tx.Put(&OpenAsk{AskKey: open, Request: r.ID, Expires: r.Lapses})
		tx.Put(r)
		if err := announceWaiting(tx, rules, r, now); err != nil {
			return err
		}
		b.notify(tx, NoticePending, r, r.approverGroups(), rules, now)
		for _, step := range r.Decision.Obligations.Escalations {
			b.notifyAt(tx, NoticeEscalated, r, []string{step.Group}, rules, now.Add(step.After), now)
		}
		return f.key.record(tx, r.ID, now)
	})
	if err == nil {
		b.waiters.changed(r.ID)
	}
	return r, err
}

// PendingFor is how long a request waits for approval before it lapses, unless
// policy sets another time.
const PendingFor = time.Hour

// Withdraw closes the caller's own pending request. The person on whose behalf another
// filed it ends it, also after its approval: see CanEnd.
func (b *Broker) Withdraw(ctx context.Context, caller Caller, id RequestID) (r *Request, err error) {
	err = b.retry(func() error {
		r, err = b.withdrawOnce(ctx, caller, id)
		return err
	})
	return r, err
}

// withdrawOnce is Withdraw. It returns errOvertaken if another call changed the request first.
func (b *Broker) withdrawOnce(ctx context.Context, caller Caller, id RequestID) (*Request, error) {
	r, err := b.load(ctx, id)
	if err != nil {
		return nil, err
	}
	if CanEnd(b, caller, r) {
		return b.endForSubject(ctx, caller, r)
	}
	if r.Requester.ID != caller.Subject.ID {
		return nil, b.missingRequest(id, caller.At)
	}
	if err := r.withdraw(caller.At); err != nil {
		return nil, err
	}
	version, rules := r.Version-1, b.rules.Load()
	record := audit.Record{Kind: audit.RequestWithdrawn, Caller: caller.Actor.Party(), Request: &audit.RequestFacts{ID: id.String(), Digest: r.Digest, Entitlement: r.Entitlement}}
	_, err = b.write(ctx, r.waiting(), record, func(tx Tx) error {
		if stored, err := Get[*Request](tx, id); err != nil {
			return err
		} else if stored.Version != version {
			return errOvertaken
		}
		if err := leavePending(tx, r, caller.At); err != nil {
			return err
		}
		b.notify(tx, NoticeWithdrawn, r, r.approverGroups(), rules, caller.At)
		tx.Put(r)
		return nil
	})
	b.waiters.changed(id)
	return r, err
}

// changed returns the refusal for a row that another call changed first, or err
// if there is one.
func changed(err error) error {
	if err != nil {
		return err
	}
	return refuse(ErrNotPending, "another call changed the request at the same time: read it again")
}
