package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"accessbroker.internal/audit"
)

// issue issues a credential. The broker's own tokens need one transaction,
// upstream credentials two.
func (b *Broker) issue(ctx context.Context, c *collection) (*Issued, error) {
	c.issuer = b.cfg.Issuers[c.e.Issuer]
	if c.issuer == nil {
		return nil, fmt.Errorf("%w: there is no issuer %q", ErrIssuerUnavailable, c.e.Issuer)
	}
	c.blocks = chainBlocks(b.rules.Load(), c.caller.Subject, c.request.Delegation, c.e)
	l, err := c.lease()
	if err != nil {
		return nil, err
	}
	if err := b.endLost(ctx, c); err != nil {
		return nil, err
	}
	if c.request.FirstExpires.IsZero() {
		c.request.FirstExpires = l.Expires
	}
	issued, err := b.mintOrFetch(ctx, c, l)
	if err != nil {
		return nil, err
	}
	b.cfg.Observe(Event{Kind: EventIssued, Entitlement: l.Entitlement, Issuer: l.Issuer, Code: "ok", Took: c.made, TTL: l.Expires.Sub(c.caller.At)})
	if c.new && c.request.BreakGlass {
		b.waiters.changed(l.Request)
	}
	b.waiters.wake(l.Request)
	return issued, nil
}

// mintOrFetch issues from the broker itself or from an upstream.
func (b *Broker) mintOrFetch(ctx context.Context, c *collection, l *Lease) (*Issued, error) {
	if m, ok := c.issuer.(Minter); ok {
		return b.mint(ctx, c, l, m)
	}
	return b.fetch(ctx, c, l)
}

// mint issues one of the broker's own tokens. It signs first, and discards the
// token if the transaction fails.
func (b *Broker) mint(ctx context.Context, c *collection, l *Lease, m Minter) (*Issued, error) {
	if c.e.StatusList {
		if err := b.StatusLists.place(ctx, l); err != nil {
			return nil, err
		}
	}
	start := time.Now()
	cred, err := m.Mint(ctx, *l)
	c.made = time.Since(start)
	if err != nil {
		return nil, b.upstream(ctx, l, err)
	}
	if err := l.activate(cred, nil); err != nil {
		return nil, err
	}
	record := c.record(audit.LeaseIssued, l)
	record.Lease.Credential = cred.Hash
	receipt, err := b.write(ctx, c.reads(), record, func(tx Tx) error { return b.enter(tx, c, l) })
	if err != nil {
		return nil, err
	}
	// The record is durable: the credential may be returned.
	b.endReplaced(ctx, c)
	c.issued = Issued{Lease: l, Credential: cred, Request: c.request, Receipt: receipt}
	return &c.issued, nil
}

// fetch has an upstream issue a credential. The handle that revokes it is
// durable before the credential exists, and its record is durable before the
// caller gets it.
func (b *Broker) fetch(ctx context.Context, c *collection, l *Lease) (*Issued, error) {
	ctx, cancel := context.WithTimeout(ctx, IssueDeadline)
	defer cancel()
	clock, start := startClock(c.caller.At), time.Now()
	prepared, err := c.issuer.Prepare(ctx, Order{Lease: *l, Entitlement: c.e})
	c.made = time.Since(start)
	if err != nil {
		return nil, b.upstream(ctx, l, err)
	}
	l.Handle, l.Deadline = prepared.Handle, c.caller.At.Add(IssueDeadline)
	if _, err := b.write(ctx, c.reads(), c.record(audit.LeaseOpened, l), func(tx Tx) error { return b.enter(tx, c, l) }); err != nil {
		b.reaper.discard(ctx, c.issuer, l)
		return nil, err
	}
	// Point of no return: if this process dies now, the reaper revokes the
	// credential that the upstream creates.
	start = time.Now()
	cred, handle, err := c.issuer.Issue(ctx, Order{Lease: *l, Entitlement: c.e, Key: prepared.Key})
	c.made += time.Since(start)
	now := clock.now()
	if err != nil {
		if handle != nil {
			l.Handle = handle
		}
		b.reaper.endLease(ctx, l, EndFailed, Identity{}, "", now)
		return nil, b.upstream(ctx, l, err)
	}
	receipt, err := b.confirm(ctx, c, l, cred, handle)
	if err != nil {
		// The credential exists but its record does not: revoke it and do not
		// return it.
		if handle != nil {
			l.Handle = handle
		}
		b.reaper.endLease(ctx, l, EndUnrecorded, Identity{}, "", now)
		return nil, err
	}
	// The record is durable: the credential may be returned.
	b.endReplaced(ctx, c)
	c.issued = Issued{Lease: l, Credential: cred, Request: c.request, Receipt: receipt}
	return &c.issued, nil
}

// confirm changes the lease from issuing to active by compare and set. It fails
// if a block or new rules came into force while the upstream was working.
func (b *Broker) confirm(ctx context.Context, c *collection, l *Lease, cred Credential, handle []byte) (Receipt, error) {
	active := *l
	if err := active.activate(cred, handle); err != nil {
		return Receipt{}, err
	}
	record := audit.Record{Kind: audit.LeaseIssued, Lease: active.facts()}
	record.Lease.Credential = cred.Hash
	receipt, err := b.write(ctx, append(slices.Concat(c.blocks, c.footing.reads()), l.ID, RevisionKey{}), record, func(tx Tx) error {
		if err := errors.Join(b.checkRevision(tx, c.decision.Revision, c.caller.At), CheckBlocks(tx, c.blocks), c.footing.check(tx)); err != nil {
			return err
		}
		if stored, err := Get[*Lease](tx, l.ID); err != nil || stored.Status != LeaseIssuing {
			return errors.Join(errLostLease, err)
		}
		tx.Put(&active)
		return nil
	})
	if err == nil {
		*l = active
	} else if errors.Is(err, errLostLease) {
		err = fmt.Errorf("%w: %w", ErrIssuerUnavailable, err)
	}
	return receipt, err
}

// reads returns the keys that enter reads.
func (c *collection) reads() []Key {
	list := append(make([]Key, 0, len(c.blocks)+4), RevisionKey{}) // room for the usual rows
	list = append(list, c.key.reads()...)
	list = append(list, keys(limitKeys(c.decision.Obligations, c.caller.Subject, c.e.Name))...)
	if d := c.request.Delegation; d != nil {
		list = append(list, keys(limitKeys(d.Decision.Obligations, d.Subject, c.e.Name))...)
	}
	list = append(list, c.blocks...)
	list = append(list, c.footing.reads()...)
	if !c.new {
		list = append(list, c.request.ID, CollectedKey(c.request.ID))
	} else {
		list = append(append(list, c.request.reviews()...), c.request.Delegation.reads()...)
	}
	for _, once := range c.caller.Actor.Once {
		list = append(list, once.SpentKey)
	}
	if !c.caller.Once.IsZero() {
		list = append(list, c.caller.Once)
	}
	if c.replaces != nil {
		list = append(list, c.replaces.ID)
		list = append(list, keys(c.replaces.Limits)...)
	}
	return list
}

// enter is the transaction that opens a lease. It checks revision, blocks and
// limits, so that no concurrent call can pass them.
func (b *Broker) enter(tx Tx, c *collection, l *Lease) error {
	if err := b.checkRevision(tx, c.decision.Revision, c.caller.At); err != nil {
		return err
	}
	if err := CheckBlocks(tx, c.blocks); err != nil {
		return err
	}
	if err := errors.Join(c.footing.check(tx), c.caller.spend(tx)); err != nil {
		return err
	}
	if !c.new {
		if err := c.reenter(tx, l); err != nil {
			return err
		}
	} else {
		if err := errors.Join(b.breakGlass(tx, c.request, c.caller.At), c.request.Delegation.spend(tx)); err != nil {
			return err
		}
		c.request.FirstLease = l.ID
		tx.Put(c.request)
	}
	ended := false
	if c.replaces != nil {
		var err error
		if ended, err = c.supersede(tx); err != nil {
			return err
		}
	}
	repeats, err := c.key.replace(tx, c.lost, c.request.ID, l.ID, c.caller.At)
	if err != nil {
		return err
	}
	free := ended && repeats <= freeRepeats
	l.Limits = l.Limits[:0]
	if err := takeLimits(tx, c.decision.Obligations, c.caller.Subject, l, free, c.caller.At); err != nil {
		return err
	}
	if d := c.request.Delegation; d != nil {
		if err := takeLimits(tx, d.Decision.Obligations, d.Subject, l, free, c.caller.At); err != nil {
			return err
		}
	}
	tx.Put(l)
	return nil
}

// freeRepeats is how many repeats of a call with a lost answer are not counted
// against limits. They are bounded because the answer may have arrived: a caller
// would otherwise get any number of credentials with one key, each until the next.
const freeRepeats = 2

// reenter checks that the stored request has not changed since the decision. If
// another call collected first, this credential must end with the grant.
func (c *collection) reenter(tx Tx, l *Lease) error {
	stored, err := Get[*Request](tx, c.request.ID)
	if err != nil || stored.Version != c.version {
		return changed(err)
	}
	if stored.restOn(c.footing.rests) {
		tx.Put(stored)
	}
	if !stored.FirstExpires.IsZero() {
		if c.once {
			return errRedeemed()
		}
		if !c.later && l.Expires.After(c.collectUntil()) {
			return changed(nil)
		}
		return l.follow(tx, stored)
	}
	stored.FirstExpires, stored.FirstLease = l.Expires, l.ID
	tx.Put(stored)
	return nil
}

// supersede ends the replaced lease in the transaction that opens its
// successor. The upstream is called later, by endReplaced or by the reaper.
// ended reports whether the lease belonged to a lost answer and its credential
// has really ended: only then is the successor's issuance not another one.
func (c *collection) supersede(tx Tx) (ended bool, err error) {
	old, err := Get[*Lease](tx, c.replaces.ID)
	if err != nil {
		return false, err
	}
	switch {
	case old.Status != LeaseActive && c.how == EndReplaced:
		return false, refuse(ErrNotRenewable, "the lease has ended: collect again, or file a new request")
	case old.Status != LeaseActive:
		return old.EndHow == EndAnswerLost && old.Status == LeaseRevoked && old.Revocation == RevokedImmediate, nil
	}
	if c.how == EndReplaced {
		// A renewal hands over its place, because otherwise no one could renew at
		// the bound. The credential of a lost answer keeps its own: no one returned
		// it, and it works until it expires.
		if err := releaseLimits(tx, old); err != nil {
			return false, err
		}
	}
	if old.endable() {
		old.Status, old.EndAsked, old.EndHow, old.NextTry, old.Revocation = LeaseRevoking, c.caller.At, c.how, c.caller.At, RevokedPending
	} else {
		old.end(endAttempt{how: c.how, outcome: outcomeTimeOnly}, c.caller.At)
	}
	tx.Put(old)
	endLink(tx, old, c.caller.At)
	return false, nil
}

// record returns the record of opening or issuing a lease. If the same call
// files the request, the record includes the request.
func (c *collection) record(kind audit.Kind, l *Lease) audit.Record {
	f := &c.facts
	record := audit.Record{Kind: kind, Caller: &f.caller, Decision: &f.decision, Lease: &f.lease}
	c.caller.Actor.fill(&f.caller)
	c.decision.fill(&f.decision, "")
	l.fill(&f.lease)
	if c.new {
		c.request.fill(&f.request)
		record.Request, record.Openings, record.From = &f.request, c.request.openings(), c.request.SourceIP
	} else {
		record.Request = &audit.RequestFacts{ID: c.request.ID.String(), Digest: c.request.Digest, Entitlement: c.request.Entitlement, Scopes: c.asked}
		if d := c.request.Delegation; d != nil {
			record.Request.Parent = d.Parent.String()
		}
		if len(l.Scopes) != len(c.asked) {
			record.Lease.Scopes = l.Scopes
		}
	}
	c.request.onBehalf(&record)
	if c.replaces != nil {
		record.End = &audit.EndFacts{How: c.how, ValidUntil: c.replaces.Expires}
	}
	return record
}

// upstream logs and counts an issuer's failure, and returns the error that the
// caller may see.
func (b *Broker) upstream(ctx context.Context, l *Lease, err error) error {
	code := Code(err)
	b.cfg.Observe(Event{Kind: EventUpstream, Entitlement: l.Entitlement, Issuer: l.Issuer, Code: code})
	b.cfg.Log.ErrorContext(ctx, "issuer did not issue", "issuer", l.Issuer, "lease", l.ID.String(), "err", err)
	for _, known := range upstreamErrors {
		if errors.Is(err, known) {
			return err
		}
	}
	return fmt.Errorf("%w: %w", ErrIssuerUnavailable, err)
}

// upstreamErrors are the errors of an issuer that callers see.
var upstreamErrors = []error{ErrIssuerRefused, ErrIssuerUnavailable, ErrInvalidParameter, ErrInvalidTTL, ErrPolicyTooLarge}

// UpstreamCodes returns the codes of EventUpstream.
func UpstreamCodes() []string {
	codes := []string{Code(nil)}
	for _, err := range upstreamErrors {
		codes = append(codes, Code(err))
	}
	return codes
}
