package broker

import (
	"context"
	"errors"
	"slices"
	"time"
)

// A collection is one attempt to get a credential for a request.
type collection struct {
	request  *Request // as it will be stored, or as it was granted
	asked    []string // the scopes of a stored request, before approvals narrowed them
	new      bool     // the request is filed by this very call
	version  int      // of the stored request that it was decided on
	e        *Entitlement
	issuer   Issuer
	who      Identity
	decision Decision
	replaces *Lease // whose place it takes
	how      string // how the replaced lease ends
	again    Again
	lost     LeaseID       // the lease that the idempotency key led to before
	later    bool          // not the first collection: it ends with the grant
	made     time.Duration // what the issuer took
	now      time.Time
}

// AskAndCollect files a request and, if policy approves it by itself, collects
// at once (POST /v1/credentials, POST /oauth2/token): one transaction and one
// record for the broker's own tokens. If people have to approve, Issued is nil
// and the request is pending.
func (b *Broker) AskAndCollect(ctx context.Context, who Identity, ask Ask, again Again, now time.Time) (*Issued, *Request, error) {
	if prior, err := b.prior(ctx, again); err != nil {
		return nil, nil, err
	} else if prior != nil {
		issued, r, err := b.resume(ctx, who, prior, again, now)
		if errors.Is(err, errAgain) {
			return b.AskAndCollect(ctx, who, ask, again, now)
		}
		return issued, r, err
	}
	r, e, err := b.decide(ctx, who, ask, now)
	if err != nil || ask.DryRun {
		return nil, r, err
	}
	if len(r.Decision.Obligations.Approvals) > 0 {
		filed, err := b.filePending(ctx, r, e, again, now)
		if errors.Is(err, errAgain) {
			return b.AskAndCollect(ctx, who, ask, again, now)
		}
		if err == nil && filed.State(now) == RequestApproved {
			return b.collectReused(ctx, who, filed, again, now)
		}
		return nil, filed, err
	}
	if r.NotBefore.After(now) {
		filed, err := b.file(ctx, r, e, again, now)
		if errors.Is(err, errAgain) {
			return b.AskAndCollect(ctx, who, ask, again, now)
		}
		return nil, filed, err
	}
	r.commit(now)
	r.approve(now)
	issued, err := b.open(ctx, &collection{request: r, new: true, e: e, who: r.Requester, decision: r.Decision, again: again, now: now})
	switch {
	case errors.Is(err, errAgain):
		return b.AskAndCollect(ctx, who, ask, again, now)
	case isLimit(err):
		return nil, nil, b.limited(ctx, r, err, now)
	}
	return issued, r, err
}

// collectReused collects with the grant that an identical ask got before.
func (b *Broker) collectReused(ctx context.Context, who Identity, r *Request, again Again, now time.Time) (*Issued, *Request, error) {
	issued, err := b.collect(ctx, who, r.ID, again, nil, now)
	switch {
	case errors.Is(err, ErrNotYet):
		return nil, r, nil
	case err != nil:
		return nil, nil, err
	}
	issued.Request.Reused = true
	return issued, &issued.Request, nil
}

// resume answers a repeated AskAndCollect.
func (b *Broker) resume(ctx context.Context, who Identity, prior *Idempotency, again Again, now time.Time) (*Issued, *Request, error) {
	issued, err := b.collect(ctx, who, prior.Request, again, prior, now)
	if errors.Is(err, ErrPending) || errors.Is(err, ErrNotYet) {
		r, err := b.Request(ctx, who, prior.Request, now)
		return nil, r, err
	}
	if err != nil {
		return nil, nil, err
	}
	return issued, &issued.Request, nil
}

// Collect collects a credential of an approved request (POST
// /v1/requests/{id}/credentials). Pending, lapsed, denied and ended requests
// are ErrPending, ErrLapsed, ErrDenied and ErrGrantEnded.
func (b *Broker) Collect(ctx context.Context, who Identity, id RequestID, again Again, now time.Time) (*Issued, error) {
	prior, err := b.prior(ctx, again)
	if err != nil {
		return nil, err
	}
	issued, err := b.collect(ctx, who, id, again, prior, now)
	if errors.Is(err, errAgain) {
		return b.Collect(ctx, who, id, again, now)
	}
	return issued, err
}

// collect gets a credential for a stored request. A repeated call can't get
// the same credential, which was never stored: it ends the lease of the lost
// answer and issues a new one.
func (b *Broker) collect(ctx context.Context, who Identity, id RequestID, again Again, prior *Idempotency, now time.Time) (*Issued, error) {
	r, err := b.own(ctx, who, id)
	if err != nil {
		return nil, err
	}
	c := &collection{request: r, who: who, again: again, now: now}
	if prior != nil && !prior.Lease.IsZero() {
		lost, err := b.Lease(ctx, who, prior.Lease, now)
		if err != nil {
			return nil, err
		}
		c.replaces, c.how, c.lost = lost, EndAnswerLost, lost.ID
	}
	return b.collectAnew(ctx, c)
}

// Renew gives a holder more time under the same grant: policy decides anew,
// a new lease takes the place of the old one, and the old one ends.
func (b *Broker) Renew(ctx context.Context, who Identity, id LeaseID, again Again, now time.Time) (*Issued, error) {
	prior, err := b.prior(ctx, again)
	if err != nil {
		return nil, err
	}
	c := &collection{who: who, again: again, how: EndReplaced, now: now}
	if prior != nil {
		// Its answer was lost: the lease that it led to is the one to replace.
		id, c.lost, c.how = prior.Lease, prior.Lease, EndAnswerLost
	}
	if c.replaces, err = b.Lease(ctx, who, id, now); err != nil {
		return nil, err
	}
	if c.replaces.Holder != who.ID {
		return nil, refuse(ErrNotFound, "no such lease of yours")
	}
	if c.replaces.State(now) != LeaseActive {
		return nil, refuse(ErrNotRenewable, "the lease has ended: collect again, or file a new request")
	}
	if c.request, err = b.own(ctx, who, c.replaces.Request); err != nil {
		return nil, err
	}
	issued, err := b.collectAnew(ctx, c)
	if errors.Is(err, errAgain) {
		return b.Renew(ctx, who, id, again, now)
	}
	return issued, err
}

// collectAnew decides anew under the current revision before anything is
// issued.
func (b *Broker) collectAnew(ctx context.Context, c *collection) (*Issued, error) {
	c.version = c.request.Version
	rules := b.rules.Load()
	if rules == nil {
		return nil, refuse(ErrUnavailable, "no policy is loaded yet")
	}
	if !c.who.Proof.Valid(c.now) {
		return nil, refuse(ErrProofExpired, "your identity's proof has expired: fetch a new SVID")
	}
	if err := c.request.collectable(c.now); err != nil {
		return nil, err
	}
	c.who, c.asked, c.request = rules.Mark(c.who), c.request.Scopes, c.request.granted()
	if c.e = rules.Catalogue[c.request.Entitlement]; c.e == nil {
		return nil, b.noLonger(ctx, c, Decision{Revision: rules.Revision})
	}
	if !c.e.still(c.request) {
		return nil, refuse(ErrNeedsNewRequest, "what this entitlement gives has changed since it was approved: file a new request")
	}
	var err error
	if c.decision, err = b.ask(ctx, rules, c.request.query(c.who, c.e), c.now); err != nil {
		return nil, err
	}
	if !c.decision.Permit {
		return nil, b.noLonger(ctx, c, c.decision)
	}
	if err := c.stillCovered(rules); err != nil {
		return nil, err
	}
	issued, err := b.open(ctx, c)
	if isLimit(err) {
		return nil, b.limited(ctx, c.request, err, c.now)
	}
	return issued, err
}

// still says whether the entitlement gives what it gave when the request was
// made, and still takes what was asked of it.
func (e *Entitlement) still(r *Request) bool {
	for _, scope := range r.Scopes {
		if _, ok := slices.BinarySearch(e.Scopes, scope); !ok {
			return false
		}
	}
	return e.Effect == r.Effect && e.checkParameters(r.Parameters) == nil
}

// stillCovered refuses if policy now demands more than what was asked and
// approved. A ttl that the requester left open is cut.
func (c *collection) stillCovered(rules *Rules) error {
	o, r := c.decision.Obligations, c.request
	var asked Ask
	if r.TTLAsked {
		asked.TTL = r.TTL
	}
	duration := r.Duration
	if err := r.meet(o, asked, c.e); err != nil || !r.holding(rules, o).covered(o) {
		return &Refusal{Err: ErrNeedsNewRequest, Detail: "policy now demands more than was approved: file a new request", RequestID: r.ID}
	}
	if o.MaxDuration > 0 && r.Duration < duration && !c.now.Before(r.Starts().Add(o.MaxDuration)) {
		return &Refusal{Err: ErrGrantEnded, Detail: "the time to collect is over: file a new request", RequestID: r.ID}
	}
	return nil
}

// collectUntil is the end of the grant, which policy may have moved forward
// since it was given.
func (c *collection) collectUntil() time.Time {
	until, most := c.request.CollectUntil, c.decision.Obligations.MaxDuration
	if most > 0 && c.request.Starts().Add(most).Before(until) {
		until = c.request.Starts().Add(most)
	}
	return until
}

// lease drafts the lease of a collection.
func (c *collection) lease() (*Lease, error) {
	expires := c.now.Add(c.request.TTL)
	c.later = !c.request.FirstExpires.IsZero()
	if until := c.collectUntil(); c.later && until.Before(expires) {
		// The first credential gets its full time; the others end with the grant.
		expires = until
	}
	l := &Lease{
		ID: NewLeaseID(c.now), Request: c.request.ID, Status: LeaseIssuing,
		Holder: c.who.ID, Entitlement: c.e.Name, Issuer: c.e.Issuer,
		Scopes: c.request.Scopes, Parameters: c.request.Parameters,
		Opened: c.now, Revocation: c.e.Revocation,
	}
	if c.e.Binding == BindingMTLS {
		if c.who.Proof.Method != MethodX509SVID {
			return nil, refuse(ErrBindingRequiresMTLS, "its tokens are bound to a client certificate: connect with your X.509-SVID")
		}
		l.Confirm = c.who.Proof.SHA256
		if c.who.Proof.Expires.Before(expires) {
			expires = c.who.Proof.Expires
		}
	}
	if c.replaces != nil {
		l.Replaces = c.replaces.ID
	}
	l.Expires = expires.Truncate(time.Second)
	if left := l.Expires.Sub(c.now.Truncate(time.Second)); left < max(c.e.MinTTL, time.Second) {
		return nil, refuse(ErrGrantEndsTooSoon, "what is left of the grant is shorter than the shortest credential: file a new request")
	}
	return l, nil
}
