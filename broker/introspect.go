package broker

import (
	"context"
	"slices"
)

// An Introspection describes an active token.
type Introspection struct {
	Lease    Lease
	Audience string
}

// Introspect describes a token (RFC 7662). It returns nil for a token that is not
// active or not ours, and for a caller that may not introspect it.
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
	who := Identity{ID: l.Holder, Kind: KindPerson}
	if domain, _, err := ParseSPIFFEID(l.Holder); err == nil {
		who = Identity{ID: l.Holder, Kind: KindWorkload, TrustDomain: domain, Paths: SPIFFEPaths(l.Holder)}
	}
	who = b.rules.Load().WithLabels(who)
	return nil != b.cfg.Store.View(ctx, func(tx Tx) error { return CheckBlocks(tx, blockKeys(who, e)) })
}

// RevokeToken returns the lease of a token (RFC 7009). A token that is not ours, or
// that the caller does not hold, is ignored.
func (b *Broker) RevokeToken(ctx context.Context, caller Caller, token string) error {
	l, err := b.inspect(ctx, token)
	if err != nil || l == nil || l.Holder != caller.Subject.ID {
		return err
	}
	_, err = b.Revoke(ctx, caller, l.ID, "")
	return err
}
