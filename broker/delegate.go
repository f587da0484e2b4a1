package broker

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"accessbroker.internal/audit"
)

// delegate checks on whose behalf the caller asks, and bounds the ask by the proof. It
// returns nil for a caller that asks for itself.
func (b *Broker) delegate(ctx context.Context, rules *Rules, caller Caller, ask *Ask) (*Delegation, error) {
	if ask.Delegation == nil {
		return nil, nil
	}
	d := *ask.Delegation
	d.Decision = Decision{}
	if err := b.follow(ctx, caller, &d, ask); err != nil {
		return nil, err
	}
	d.Subject, d.Accountable = rules.WithLabels(d.Subject), nil
	for _, id := range d.Actors {
		d.Accountable = append(d.Accountable, rules.WithLabels(identityOf(id)).Accountable...)
	}
	return &d, d.check(caller)
}

// DelegationOf returns the delegation by which the caller exchanges a token of the broker that
// another workload holds. Ask decides whether the caller may.
func DelegationOf(ctx context.Context, b *Broker, caller Caller, token string) (*Delegation, error) {
	l, err := b.inspect(ctx, token)
	switch {
	case err != nil:
		return nil, err
	case l == nil:
		return nil, refuse(ErrForeignSubject, "the token is not one of this broker")
	case l.State(caller.At) != LeaseActive:
		return nil, errLinkEnded
	case !l.Confirm.IsZero() || !l.KeyThumbprint.IsZero():
		return nil, refuse(ErrDelegation, "the token is bound to its holder's key, so that only its holder may use it: a sub-agent needs a bearer token")
	}
	return &Delegation{Parent: l.ID}, nil
}

// follow fills in a delegation by which the caller exchanges a token: the subject, the
// actors and the bounds are those of the token's lease.
func (b *Broker) follow(ctx context.Context, caller Caller, d *Delegation, ask *Ask) error {
	if d.Parent.IsZero() {
		d.Actors, d.Links, d.Bound = nil, nil, false
		return nil
	}
	parent, r, err := b.link(ctx, d.Parent)
	if err != nil {
		return err
	}
	d.Subject, d.Actors, d.Links, d.Bound = r.Requester, nil, []LeaseID{parent.ID}, parent.isBound()
	d.Subject.Attested = parent.Attested
	if above := r.Delegation; above != nil {
		d.Subject, d.Actors, d.Links = above.Subject, append(slices.Clone(above.Actors), parent.Holder), append(slices.Clone(above.Links), parent.ID)
	}
	switch left := parent.Expires.Sub(caller.At).Truncate(time.Second); {
	case parent.State(caller.At) != LeaseActive:
		return errLinkEnded
	case parent.Type != "bearer":
		return refuse(ErrDelegation, "only a token of the broker can be exchanged")
	case ask.Entitlement != parent.Entitlement:
		return refuse(ErrDelegation, fmt.Sprintf("the token is for %s: a sub-agent gets a narrower token for the same entitlement", parent.Entitlement))
	case len(d.Links) > r.Decision.Obligations.Delegates:
		return refuse(ErrDelegation, tooDeep(r.Decision.Obligations.Delegates))
	case ask.TTL > left:
		return &Refusal{Err: ErrInvalidTTL, Detail: fmt.Sprintf("ttl is longer than the token that you exchange: at most %s", FormatDuration(left)), Allowed: &Allowed{MaxTTL: left}}
	case len(ask.Parameters) > 0 && !maps.Equal(ask.Parameters, parent.Parameters):
		return refuse(ErrDelegation, "the parameters differ from those of the token that you exchange: leave them out")
	}
	d.Scopes, d.Details, ask.Parameters = append([]string{}, parent.Scopes...), parent.Details, parent.Parameters
	return nil
}

var errLinkEnded = refuse(ErrDelegation, "the token that you exchange has ended: get a new one from its holder")

// link returns the lease of a token that is exchanged, and its request.
func (b *Broker) link(ctx context.Context, id LeaseID) (l *Lease, r *Request, err error) {
	err = b.cfg.Store.View(ctx, func(tx Tx) (err error) {
		if l, err = Get[*Lease](tx, id); err == nil {
			r, err = Get[*Request](tx, l.Request)
		}
		return err
	})
	if isNotFound(err) {
		return nil, nil, errLinkEnded
	}
	return l, r, Unavailable(err)
}

func tooDeep(most int) string {
	if most == 0 {
		return "policy does not permit sub-agents here"
	}
	return fmt.Sprintf("policy permits at most %d sub-agents below one another here", most)
}

// check refuses a delegation that the caller may not use, whatever policy says.
func (d *Delegation) check(caller Caller) error {
	who := caller.Subject
	switch {
	case who.Kind != KindWorkload && who.Kind != KindAgent:
		return refuse(ErrDelegation, "only a workload acts for another identity: call with its SVID")
	case d.Parent.IsZero() && d.Subject.Kind != KindPerson, d.Subject.Kind != KindPerson && d.Subject.Kind != KindWorkload && d.Subject.Kind != KindAgent:
		return refuse(ErrDelegation, "the proof is not that of a person")
	case d.Parent.IsZero() && !d.Subject.Proof.Valid(caller.At):
		return refuse(ErrProofExpired, "the person's proof has expired: get a new one")
	case who.ID == d.Subject.ID, slices.Contains(d.Actors, who.ID):
		return refuse(ErrDelegation, "you are in this chain already: a delegation has no loops")
	case d.MayAct != nil && !slices.Contains(d.MayAct, who.ID):
		return refuse(ErrActorNotAllowed, "the person's proof names other actors than "+who.ID)
	case len(d.Links) > MaxDelegates, !audit.FitActors(d.Actors):
		return refuse(ErrDelegation, "the chain has too many actors")
	}
	return nil
}

// bound narrows the ask to what the proof allows, or refuses an ask for more.
func (d *Delegation) bound(ask *Ask, e *Entitlement) error {
	if d == nil {
		return nil
	}
	if d.Resource != "" && d.Resource != e.Audience {
		return refuse(ErrInvalidTarget, "the person's proof is for another resource")
	}
	if len(ask.Details) == 0 {
		ask.Details = d.Details
	}
	if !DetailsWithin(SortDetails(ask.Details), d.Details) {
		return badDetail("the token that you exchange does not allow these: name less, or leave them out")
	}
	if d.Scopes == nil {
		return nil
	}
	if len(e.Scopes) == 0 && d.Parent.IsZero() {
		return refuse(ErrInvalidScope, "the proof is limited to scopes, and this entitlement has none: use a proof that does not name scopes")
	}
	if len(ask.Scopes) == 0 && len(e.Scopes) > 0 {
		for _, s := range d.Scopes {
			if slices.Contains(e.Scopes, s) {
				ask.Scopes = append(ask.Scopes, s)
			}
		}
		if len(ask.Scopes) == 0 {
			return refuse(ErrInvalidScope, "the proof of the delegation allows no scope of this entitlement")
		}
	}
	for _, s := range ask.Scopes {
		if !slices.Contains(d.Scopes, s) {
			return &Refusal{Err: ErrInvalidScope, Detail: "the proof of the delegation does not allow the scope " + s, Allowed: &Allowed{Scopes: d.Scopes}}
		}
	}
	return nil
}

// decideRequest evaluates the request against policy, on both sides of a delegation. Both
// must permit, and their obligations add up. Limits stay with the side whose permits state
// them: those of the subject are in the delegation's decision.
func (b *Broker) decideRequest(ctx context.Context, rules *Rules, q Query, d *Delegation, now time.Time) (Decision, error) {
	if d == nil {
		return b.decideQuery(ctx, rules, q, now)
	}
	subject := rules.WithLabels(d.Subject)
	q.OnBehalfOf, q.Depth = &subject, d.Depth()
	own, err := b.decideQuery(ctx, rules, q, now)
	if err != nil {
		return own, err
	}
	if d.Decision, err = b.decideQuery(ctx, rules, q.OfSubject(), now); err != nil {
		return own, err
	}
	both := own
	both.Above = cmp.Or(own.Above, d.Decision.Above, d.exceeds(rules, q))
	both.Permit = own.Permit && d.Decision.Permit && both.Above == ""
	switch {
	case own.Permit && !both.Permit:
		both.Reasons, both.Obligations = d.Decision.Reasons, Obligations{}
	case both.Permit:
		both.Reasons = slices.Concat(own.Reasons, d.Decision.Reasons)
		both.Obligations = own.Obligations.And(d.Decision.Obligations)
		both.Obligations.Limits, both.Obligations.MaxActive = own.Obligations.Limits, own.Obligations.MaxActive
		if len(d.Links) > both.Obligations.Delegates {
			both.Permit, both.Reasons, both.Obligations = false, []string{tooDeep(both.Obligations.Delegates)}, Obligations{}
		}
	}
	return both, nil
}

// exceeds returns why the ceiling of an identity that acted before does not allow the query;
// empty if all do. The ceilings of both sides are part of their decisions.
func (d *Delegation) exceeds(rules *Rules, q Query) string {
	for _, id := range d.Actors {
		q.Principal = rules.WithLabels(identityOf(id))
		if above := q.Exceeds(); above != "" {
			return above
		}
	}
	return ""
}

// isLike reports whether two requests are on behalf of the same subject, by the same chain.
func (d *Delegation) isLike(o *Delegation) bool {
	if d == nil || o == nil {
		return d == o
	}
	return d.Subject.ID == o.Subject.ID && d.Parent == o.Parent && slices.Equal(d.Actors, o.Actors) && d.Decision.Obligations.equal(&o.Decision.Obligations)
}

// decided returns a copy of the request's delegation, for a decision of its own.
func (d *Delegation) decided() *Delegation {
	if d == nil {
		return nil
	}
	next := *d
	return &next
}

// standAll is stand for everyone in the chain of a request: who acts, on whose behalf, and
// who acted before.
func (b *Broker) standAll(ctx context.Context, rules *Rules, who Identity, d *Delegation, since, now time.Time) (footing, error) {
	f, err := b.stand(ctx, rules, who, since, now)
	if err != nil || d == nil {
		return f, err
	}
	// The proof may state an end that no source has stated yet.
	if p := d.Subject.Person; p != nil && !p.Ends.IsZero() {
		if !now.Before(p.Ends) {
			return f, refuseFact(StandingKey{FactPerson, d.Subject.ID}, CauseUntil)
		}
		f.until = earlier(f.until, p.Ends)
	}
	for _, other := range d.others(rules) {
		more, err := b.stand(ctx, rules, other, since, now)
		if err != nil {
			return f, err
		}
		if other.Kind != KindPerson { // its end is the end of what others do for it
			more.rests = append(more.rests, StandingKey{FactAgent, other.ID})
		}
		f.join(more)
	}
	for _, id := range d.Links {
		l, _, err := b.link(ctx, id)
		if err != nil {
			return f, err
		}
		if l.State(now) != LeaseActive {
			return f, errLinkEnded
		}
		f.until = earlier(f.until, l.Expires)
		f.rests = append(f.rests, linkKey(id))
	}
	f.links = d.Links
	slices.SortFunc(f.rests, StandingKey.compare)
	f.rests = slices.Compact(f.rests)
	return f, nil
}

// linkKey names the standing of a token that was exchanged.
func linkKey(id LeaseID) StandingKey { return StandingKey{FactLease, id.String()} }

// others returns the identities of the chain apart from the requester, with their labels: the
// subject and those that acted before.
func (d *Delegation) others(rules *Rules) []Identity {
	if d == nil {
		return nil
	}
	list := []Identity{rules.WithLabels(d.Subject)}
	for _, id := range d.Actors {
		list = append(list, rules.WithLabels(identityOf(id)))
	}
	return list
}

// join adds what else access rests on.
func (f *footing) join(o footing) {
	f.rests = append(f.rests, o.rests...)
	for _, s := range o.seen {
		if !slices.Contains(f.seen, s) {
			f.seen = append(f.seen, s)
		}
	}
	f.until = earlier(f.until, o.until)
	if o.fallen.After(f.fallen) {
		f.fallen = o.fallen
	}
}

// checkLinks refuses unless every token of the chain is still active, and marked as
// exchanged, so that its end ends what rests on it.
func (f *footing) checkLinks(tx Tx) error {
	for _, id := range f.links {
		l, err := Get[*Lease](tx, id)
		if err != nil {
			return err
		}
		if l.Status != LeaseActive || !l.Exchanged {
			return errLinkEnded
		}
	}
	return nil
}

// markExchanged notes that a token is about to be exchanged, before anything rests on it. That
// is no event of the lease, so it has no record. If nothing is issued then, the end of the lease
// finds nothing to end.
func (b *Broker) markExchanged(ctx context.Context, d *Delegation) error {
	if d == nil || d.Parent.IsZero() {
		return nil
	}
	if l, err := b.cfg.Reader.Lease(ctx, d.Parent); err != nil || l.Exchanged {
		return Unavailable(err)
	}
	return Unavailable(b.cfg.Store.Update(ctx, []Key{d.Parent}, func(tx Tx) error {
		l, err := Get[*Lease](tx, d.Parent)
		if err != nil {
			return err
		}
		l.Exchanged = true
		tx.Put(l)
		return nil
	}))
}

// chainBlocks returns the key of every block that would refuse the request: those of the
// entitlement, the requester, and everyone else in the chain.
func chainBlocks(rules *Rules, who Identity, d *Delegation, e *Entitlement) []Key {
	list := blockKeys(who, e)
	for _, other := range d.others(rules) {
		list = append(list, blockKeys(other, nil)...)
	}
	return list
}

// onBehalf adds to a record on whose behalf the request is made, and the decision on the
// subject's side. It changes the record's caller.
func (r *Request) onBehalf(record *audit.Record) {
	d := r.Delegation
	if d == nil || record.Caller == nil {
		return
	}
	record.Subject, record.Caller.Actors = d.Subject.Party(), d.Actors
	if d.Decision.Revision == (audit.Digest{}) {
		return // policy did not decide
	}
	code := ""
	if !d.Decision.Permit {
		code = Code(ErrDenied)
	}
	record.Delegated = d.Decision.facts(code)
}

// suppliersNow returns the suppliers on whose contracts a request rests: those of the
// requester and of everyone else in the chain.
func (r *Request) suppliersNow(rules *Rules) []string {
	names := rules.Suppliers.Of(r.Requester)
	for _, other := range r.Delegation.others(rules) {
		names = append(slices.Clone(names), rules.suppliersOf(other)...)
	}
	if r.Delegation != nil {
		slices.Sort(names)
		names = slices.Compact(names)
	}
	return names
}

// denyFor returns the refusal by policy of a request. On behalf of another, it does not say
// which side policy denies.
func denyFor(d *Delegation, reasons []string, allowed *Allowed) error {
	if d == nil {
		return deny(reasons, allowed)
	}
	return &Refusal{Err: ErrDenied, Detail: "policy does not permit this to you on behalf of " + d.Subject.ID, Reasons: reasons, DeniedBy: DeniedByPolicy, Allowed: allowed}
}
