package broker

import (
	"context"
	"maps"
	"slices"
)

// An Offer is an entitlement as the caller may request it.
type Offer struct {
	Entitlement    *Entitlement
	Scopes         []ScopeOffer // empty for an entitlement without scopes
	Decision       Decision     // for an entitlement without scopes
	BreakGlassOnly bool         // permitted only with break-glass; for an entitlement without scopes
	NeedsDetails   bool         // permitted only with authorization_details; for an entitlement without scopes
	Blocked        bool         // by the kill switch
}

// A ScopeOffer is the decision on one scope alone.
type ScopeOffer struct {
	Scope          string
	Decision       Decision
	BreakGlassOnly bool // permitted only with break-glass
	NeedsDetails   bool // permitted only with authorization_details
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
		offer := b.offers(ctx, caller, rules, rules.Catalogue[name], nil)
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
	return e != nil && b.visible(ctx, caller.labelled(rules), rules, e, nil)
}

// offers asks policy about each scope of an entitlement alone, or about the
// whole entitlement if it has no scopes. On behalf of another, both must be permitted.
func (b *Broker) offers(ctx context.Context, caller Caller, rules *Rules, e *Entitlement, of *Delegation) Offer {
	offer := Offer{Entitlement: e}
	q := Query{Principal: caller.Subject, Action: ActionRequest, Entitlement: e, TTL: e.DefaultTTL, Duration: e.CollectWithin}
	evaluate := func() Decision {
		d, err := b.decideRequest(ctx, rules, q, of.decided(), caller.At)
		d.Permit = d.Permit && err == nil
		return d
	}
	decide := func(scopes ...string) (d Decision, breakGlassOnly bool) {
		q.Scopes, q.BreakGlass = scopes, false
		if d = evaluate(); d.Permit {
			return d, false
		}
		q.BreakGlass = true
		return d, evaluate().Permit
	}
	if len(e.Scopes) == 0 {
		offer.Decision, offer.BreakGlassOnly = decide()
	}
	for _, scope := range e.Scopes {
		d, breakGlassOnly := decide(scope)
		offer.Scopes = append(offer.Scopes, ScopeOffer{Scope: scope, Decision: d, BreakGlassOnly: breakGlassOnly})
	}
	if len(e.Details) > 0 {
		offer.addDetails(rules, caller.Subject, of)
	}
	return offer
}

// addDetails notes what policy permits with authorization_details alone. Policies can
// distinguish any elements, so the offer names what some permit may permit.
func (o *Offer) addDetails(rules *Rules, who Identity, of *Delegation) {
	lister, ok := rules.Policy.(PermitLister)
	if !ok {
		return
	}
	permits, _ := lister.Permits(who, maxOfferPermits)
	both := [][]*Permit{permits}
	if of != nil {
		permits, _ := lister.Permits(rules.WithLabels(of.Subject), maxOfferPermits)
		both = append(both, permits)
	}
	may := func(scope string) bool {
		reaches := func(r Reach) bool {
			return r.Entitlement == o.Entitlement.Name && (scope == "" || slices.Contains(r.Scopes, scope))
		}
		for _, permits := range both {
			if !slices.ContainsFunc(permits, func(p *Permit) bool { return !p.BreakGlass && slices.ContainsFunc(p.Reaches, reaches) }) {
				return false
			}
		}
		return true
	}
	if len(o.Scopes) == 0 {
		o.NeedsDetails = !o.Decision.Permit && !o.BreakGlassOnly && may("")
	}
	for i := range o.Scopes {
		s := &o.Scopes[i]
		s.NeedsDetails = !s.Decision.Permit && !s.BreakGlassOnly && may(s.Scope)
	}
}

// maxOfferPermits bounds the permits that an offer looks at.
const maxOfferPermits = 1000

// permitted reports whether policy permits any part of the entitlement.
func (o *Offer) permitted() bool {
	return o.Decision.Permit || o.BreakGlassOnly || o.NeedsDetails ||
		slices.ContainsFunc(o.Scopes, func(s ScopeOffer) bool { return s.Decision.Permit || s.BreakGlassOnly || s.NeedsDetails })
}
