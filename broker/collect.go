package broker

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"accessbroker.internal/audit"
)

// Issued is a credential with its lease and its record.
type Issued struct {
	Lease      *Lease
	Credential Credential
	Request    *Request
	Receipt    Receipt

	memory *workspace // of all of these; nil: it is not used again
}

// Release lets a later call use the memory of what was issued: the lease, the request and
// the Issued itself, but not what they refer to. Calling it is optional. The caller must
// not use them any more.
func (i *Issued) Release() {
	if w := i.memory; w != nil {
		*w = workspace{}
		workspaces.Put(w)
	}
}

// A Receipt identifies a record of the log.
type Receipt struct {
	Index    int64
	LeafHash audit.Digest
}

// A collection is one attempt to get a credential for a request.
type collection struct {
	request  *Request // as granted; or as it will be stored
	asked    []string // the requested scopes, before approvals narrowed them
	new      bool     // this call files the request
	once     bool     // only the first credential of the request is wanted
	version  int      // of the stored request, as decided
	e        *Entitlement
	issuer   Issuer
	caller   *Caller // with labels
	decision *Decision
	replaces *Lease // the lease that the new one replaces
	how      string // how the replaced lease ends
	blocks   []Key  // that would refuse it
	footing  footing
	key      IdempotencyKey
	lost     LeaseID       // the lease that the idempotency key led to
	later    bool          // not the first collection, so the credential ends with the grant
	made     time.Duration // time that the issuer took
	facts    facts         // for its record
	opened   Lease         // the memory of the new lease
	issued   Issued        // the memory of the result
}

// AskAndCollect files a request and, if policy approves it, collects at once
// (POST /v1/credentials, POST /oauth2/token). The broker's own tokens take one
// transaction and one record. If people must approve, Issued is nil and the
// request is pending.
func (b *Broker) AskAndCollect(ctx context.Context, caller Caller, ask Ask, key IdempotencyKey) (issued *Issued, r *Request, err error) {
	err = b.retry(func() (err error) {
		issued, r, err = b.askAndCollectOnce(ctx, caller, ask, key)
		return err
	})
	return issued, r, err
}

func (b *Broker) askAndCollectOnce(ctx context.Context, caller Caller, ask Ask, key IdempotencyKey) (*Issued, *Request, error) {
	if prior, err := b.prior(ctx, key); err != nil {
		return nil, nil, err
	} else if prior != nil {
		return b.resume(ctx, caller, prior, key)
	}
	w := workspaces.Get().(*workspace)
	f := &w.filing
	f.caller, f.key = caller, key
	err := b.decide(ctx, f, ask)
	r := f.request
	if err != nil || ask.DryRun {
		return nil, r, err
	}
	if r.needsPeople() {
		filed, err := b.filePending(ctx, f)
		if err == nil && filed.State(caller.At) == RequestApproved {
			return b.collectReused(ctx, caller, filed, key)
		}
		return nil, filed, err
	}
	if r.NotBefore.After(caller.At) {
		filed, err := b.file(ctx, f)
		return nil, filed, err
	}
	r.commit(caller.At)
	r.approve(caller.At)
	c := &w.collection
	*c = collection{caller: &f.caller, request: r, new: true, e: f.e, decision: &r.Decision, key: key, footing: f.footing}
	issued, err := b.issue(ctx, c)
	if isLimit(err) {
		return nil, nil, b.limited(ctx, c, err)
	}
	if err == nil {
		issued.memory = w
	}
	return issued, r, err
}

// A workspace is the memory of one askAndCollectOnce and of what it issues. Another one uses
// it again after Issued.Release. Other outcomes keep it: they may still be shown or recorded.
type workspace struct {
	filing     filing
	collection collection
}

var workspaces = sync.Pool{New: func() any { return new(workspace) }}

// collectReused collects from the grant of an earlier identical ask.
func (b *Broker) collectReused(ctx context.Context, caller Caller, r *Request, key IdempotencyKey) (*Issued, *Request, error) {
	issued, err := b.collect(ctx, caller, r.ID, key, nil)
	switch {
	case errors.Is(err, ErrNotYet):
		return nil, r, nil
	case err != nil:
		return nil, nil, err
	}
	issued.Request.Reused = true
	return issued, issued.Request, nil
}

// resume answers a repeated AskAndCollect.
func (b *Broker) resume(ctx context.Context, caller Caller, prior *Idempotency, key IdempotencyKey) (*Issued, *Request, error) {
	issued, err := b.collect(ctx, caller, prior.Request, key, prior)
	if errors.Is(err, ErrPending) || errors.Is(err, ErrNotYet) {
		r, err := b.Request(ctx, caller, prior.Request)
		return nil, r, err
	}
	if err != nil {
		return nil, nil, err
	}
	return issued, issued.Request, nil
}

// Collect collects a credential of an approved request (POST
// /v1/requests/{id}/credentials). For requests in other states it returns
// ErrPending, ErrLapsed, ErrDenied, ErrNotPending or ErrGrantEnded.
func (b *Broker) Collect(ctx context.Context, caller Caller, id RequestID, key IdempotencyKey) (issued *Issued, err error) {
	err = b.retry(func() error {
		prior, err := b.prior(ctx, key)
		if err != nil {
			return err
		}
		issued, err = b.collect(ctx, caller, id, key, prior)
		return err
	})
	return issued, err
}

// collect gets a credential for a stored request. A repeated call cannot return
// the same credential, because secrets are not stored: it revokes the lease of
// the lost answer and issues a new credential.
func (b *Broker) collect(ctx context.Context, caller Caller, id RequestID, key IdempotencyKey, prior *Idempotency) (*Issued, error) {
	r, err := b.ownRequest(ctx, caller, id)
	if err != nil {
		return nil, err
	}
	c := &collection{caller: &caller, request: r, key: key}
	if prior != nil && !prior.Lease.IsZero() {
		lost, err := b.Lease(ctx, caller, prior.Lease)
		if err != nil {
			return nil, err
		}
		c.replaces, c.how, c.lost = lost, EndAnswerLost, lost.ID
	}
	return b.collectNow(ctx, c)
}

// Renew issues a new lease under the same grant and ends the old one. Policy
// decides again.
func (b *Broker) Renew(ctx context.Context, caller Caller, id LeaseID, key IdempotencyKey) (issued *Issued, err error) {
	err = b.retry(func() (err error) {
		issued, err = b.renewOnce(ctx, caller, id, key)
		return err
	})
	return issued, err
}

func (b *Broker) renewOnce(ctx context.Context, caller Caller, id LeaseID, key IdempotencyKey) (*Issued, error) {
	prior, err := b.prior(ctx, key)
	if err != nil {
		return nil, err
	}
	c := &collection{caller: &caller, key: key, how: EndReplaced}
	if prior != nil {
		// The answer was lost: replace the lease that the lost call opened.
		id, c.lost, c.how = prior.Lease, prior.Lease, EndAnswerLost
	}
	if c.replaces, err = b.Lease(ctx, caller, id); err != nil {
		return nil, err
	}
	if c.replaces.Holder != caller.Subject.ID {
		return nil, b.missingLease(id, caller.At)
	}
	// A repeat may have ended the lease of the lost answer and then failed.
	if c.replaces.State(caller.At) != LeaseActive && (c.how != EndAnswerLost || c.replaces.EndHow != EndAnswerLost) {
		return nil, refuse(ErrNotRenewable, "the lease has ended: collect again, or file a new request")
	}
	if c.request, err = b.ownRequest(ctx, caller, c.replaces.Request); err != nil {
		return nil, err
	}
	return b.collectNow(ctx, c)
}

// collectNow decides under the current revision, and then issues.
func (b *Broker) collectNow(ctx context.Context, c *collection) (*Issued, error) {
	c.version = c.request.Version
	rules := b.rules.Load()
	if !c.caller.Actor.Proof.Valid(c.caller.At) {
		return nil, refuse(ErrProofExpired, "your identity's proof has expired: fetch a new SVID")
	}
	if err := c.request.collectable(c.caller.At); err != nil {
		return nil, err
	}
	if c.request.Requester.Attested == AttestedSPIFFE && c.caller.Actor.Attested == AttestedOIDC {
		return nil, &Refusal{Err: ErrNeedsNewRequest, Detail: "the request was filed with an SVID: collect with one, or file a new request", RequestID: c.request.ID}
	}
	caller := c.caller.labelled(rules)
	c.caller, c.asked, c.request = &caller, c.request.Scopes, c.request.granted()
	if c.e = rules.Catalogue[c.request.Entitlement]; c.e == nil {
		return nil, b.denyCollect(ctx, c, Decision{Revision: rules.Revision})
	}
	if !c.e.fulfils(c.request) {
		return nil, refuse(ErrNeedsNewRequest, "the entitlement has changed since the approval: file a new request")
	}
	c.request.Delegation = c.request.Delegation.decided()
	decision, err := b.decideRequest(ctx, rules, c.request.query(c.caller.Subject, c.e), c.request.Delegation, c.caller.At)
	if err != nil {
		return nil, err
	}
	c.decision = &decision
	if !c.decision.Permit {
		return nil, b.denyCollect(ctx, c, decision)
	}
	var approvers footing
	if err := b.voidApprovals(ctx, rules, &approvers, c.request, c.caller.At); err != nil {
		return nil, err
	}
	if err := c.checkCovered(rules); err != nil {
		return nil, err
	}
	if c.footing, err = b.standAll(ctx, rules, c.caller.Subject, c.request.Delegation, c.request.Created, c.caller.At); err == nil {
		err = b.restOnTicket(ctx, &c.footing, rules, c.request, &decision.Obligations.TicketTerms, ticketCheck{since: c.request.Created, now: c.caller.At})
	}
	if err != nil {
		return nil, b.fallen(ctx, c, err)
	}
	c.footing.seen = append(c.footing.seen, approvers.seen...)
	if err := b.stillAssessed(ctx, rules, c); err != nil {
		return nil, b.fallen(ctx, c, err)
	}
	issued, err := b.issue(ctx, c)
	if isLimit(err) {
		return nil, b.limited(ctx, c, err)
	}
	return issued, err
}

// fulfils reports whether the entitlement still has the effect, the scopes, the
// parameters and the details of the request.
func (e *Entitlement) fulfils(r *Request) bool {
	for _, scope := range r.Scopes {
		if _, ok := slices.BinarySearch(e.Scopes, scope); !ok {
			return false
		}
	}
	if e.Effect != r.Effect || e.checkParameters(r.Parameters) != nil {
		return false
	}
	_, err := e.CheckDetails(r.Details)
	return err == nil
}

// checkCovered refuses the collection if policy now requires more than was
// requested and approved. A ttl that the requester left open is cut.
func (c *collection) checkCovered(rules *Rules) error {
	o, r := c.decision.Obligations, c.request
	var asked Ask
	if r.TTLAsked {
		asked.TTL = r.TTL
	}
	duration := r.Duration
	if err := r.applyObligations(o, asked, c.e); err != nil || !r.stillApproved(rules, o).covered(o) {
		return &Refusal{Err: ErrNeedsNewRequest, Detail: "policy now requires more than was approved: file a new request", RequestID: r.ID}
	}
	if o.MaxDuration > 0 && r.Duration < duration && !c.caller.At.Before(r.Starts().Add(o.MaxDuration)) {
		return &Refusal{Err: ErrGrantEnded, Detail: "the time to collect is over: file a new request", RequestID: r.ID}
	}
	return nil
}

// collectUntil returns the end of the grant, which newer policy may have moved
// forward.
func (c *collection) collectUntil() time.Time {
	until, most := c.request.CollectUntil, c.decision.Obligations.MaxDuration
	if most > 0 && c.request.Starts().Add(most).Before(until) {
		until = c.request.Starts().Add(most)
	}
	return earlier(until, c.footing.until)
}

// lease returns the lease of the collection, in state issuing.
func (c *collection) lease() (*Lease, error) {
	expires := c.caller.At.Add(c.request.TTL)
	c.later = !c.request.FirstExpires.IsZero()
	if until := c.collectUntil(); c.later && until.Before(expires) {
		// The first credential gets its full time; the others end with the grant.
		expires = until
	}
	expires = earlier(expires, c.footing.until)
	tooSoon := "the grant ends before the issuer's shortest credential would: file a new request"
	if who := &c.caller.Actor; who.Attested == AttestedOIDC && who.Proof.Expires.Before(expires) {
		// Nothing outlives the token that the caller has in place of an SVID.
		expires = who.Proof.Expires
		tooSoon = "the token that proves your identity expires before the issuer's shortest credential would: get one with a longer lifetime"
	}
	id := LeaseID(c.request.ID) // so that the store can keep both in one row
	if !c.new {
		id = NewLeaseID(c.caller.At)
	}
	l := &c.opened
	*l = Lease{
		ID: id, Request: c.request.ID, Status: LeaseIssuing,
		Holder: c.caller.Subject.ID, Entitlement: c.e.Name, Issuer: c.e.Issuer,
		Scopes: c.request.Scopes, Parameters: c.request.Parameters, Details: c.request.Details,
		Opened: c.caller.At, Revocation: c.e.Revocation, Persists: c.e.Persists,
		Attested: c.caller.Actor.Attested,
	}
	if d := c.request.Delegation; d != nil {
		l.Subject, l.Actors, l.Parent = d.Subject.ID, d.Actors, d.Parent
	}
	if err := c.bind(l); err != nil {
		return nil, err
	}
	if c.replaces != nil {
		l.Replaces = c.replaces.ID
	}
	l.Expires = expires.Truncate(time.Second)
	if left := l.Expires.Sub(c.caller.At.Truncate(time.Second)); left < max(c.e.MinTTL, time.Second) {
		return nil, refuse(ErrGrantEndsTooSoon, tooSoon)
	}
	return l, nil
}
