package broker

import (
	"context"
	"errors"
	"slices"
	"time"
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
	if err := l.checkHolderKey(&caller); err != nil {
		return nil, err
	}
	if !b.inForce(ctx, l, e, caller.At) {
		return nil, nil
	}
	return &Introspection{Lease: *l, Audience: e.Audience}, nil
}

// Accept returns the lease of a token that was presented to the broker itself, or nil if
// the token is not active or not one of the inspector, which accepts only the audience
// of the broker. The caller checks what the token is bound to.
func Accept(ctx context.Context, b *Broker, inspector Inspector, token string, at time.Time) (*Lease, error) {
	id, err := inspector.Inspect(ctx, token)
	if err != nil {
		return nil, nil // of another issuer or audience, or no token
	}
	l, err := b.cfg.Reader.Lease(ctx, id)
	if isNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, Unavailable(err)
	}
	e := b.rules.Load().Catalogue[l.Entitlement]
	if e == nil || !b.inForce(ctx, l, e, at) {
		return nil, nil
	}
	accepted := *l
	return &accepted, nil
}

// inForce reports whether a lease is active, nothing blocks it, and the tokens that were
// exchanged for its are active too.
func (b *Broker) inForce(ctx context.Context, l *Lease, e *Entitlement, at time.Time) bool {
	return l.State(at) == LeaseActive && l.Opened.After(b.cfg.Restored) && !b.blocked(ctx, l, e) && b.chainHolds(ctx, l, at)
}

// inspect returns the lease of a token; nil if no issuer of ours signed it. The caller
// must not change the lease.
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
		l, err := b.cfg.Reader.Lease(ctx, id)
		if isNotFound(err) {
			return nil, nil
		}
		return l, Unavailable(err)
	}
	return nil, nil
}

// blocked reports whether the entitlement of a lease is blocked, its holder, or anyone else in
// a chain of delegation. An error counts as blocked.
func (b *Broker) blocked(ctx context.Context, l *Lease, e *Entitlement) bool {
	rules := b.rules.Load()
	list := blockKeys(rules.WithLabels(identityOf(l.Holder)), e)
	if l.Subject != "" {
		list = append(list, blockKeys(rules.WithLabels(identityOf(l.Subject)), nil)...)
	}
	for _, id := range l.Actors {
		list = append(list, blockKeys(rules.WithLabels(identityOf(id)), nil)...)
	}
	blocked, err := b.cfg.Reader.Blocked(ctx, list)
	return blocked || err != nil
}

// identityOf returns the identity that is known by its ID alone.
func identityOf(id string) Identity {
	if domain, _, err := ParseSPIFFEID(id); err == nil {
		return Identity{ID: id, Kind: KindWorkload, TrustDomain: domain, Paths: SPIFFEPaths(id)}
	}
	return Identity{ID: id, Kind: KindPerson}
}

// chainHolds reports whether the tokens that were exchanged for a lease's are still active,
// although the lease itself may not have ended yet. An error counts as an end.
func (b *Broker) chainHolds(ctx context.Context, l *Lease, now time.Time) bool {
	for range MaxDelegates {
		if l.Parent.IsZero() {
			return true
		}
		parent, err := b.cfg.Reader.Lease(ctx, l.Parent)
		if err != nil || parent.State(now) != LeaseActive {
			return false
		}
		l = parent
	}
	return l.Parent.IsZero()
}

// A viewReader reads a Store in transactions.
type viewReader struct{ store Store }

func (r viewReader) Lease(ctx context.Context, id LeaseID) (l *Lease, err error) {
	err = r.store.View(ctx, func(tx Tx) error {
		l, err = Get[*Lease](tx, id)
		return err
	})
	return l, err
}

func (r viewReader) Standing(ctx context.Context, subject StandingKey) (s *Standing, err error) {
	err = r.store.View(ctx, func(tx Tx) error {
		s, err = Get[*Standing](tx, subject)
		return err
	})
	return s, err
}

func (r viewReader) Blocked(ctx context.Context, blocks []Key) (bool, error) {
	err := r.store.View(ctx, func(tx Tx) error { return CheckBlocks(tx, blocks) })
	if errors.Is(err, ErrBlocked) {
		return true, nil
	}
	return false, err
}

// RevokeToken returns the lease of a token (RFC 7009). A token that is not ours, or
// that the caller does not hold, is ignored.
func (b *Broker) RevokeToken(ctx context.Context, caller Caller, token string) error {
	l, err := b.inspect(ctx, token)
	if err != nil || l == nil || l.Holder != caller.Subject.ID {
		return err
	}
	if err := l.checkHolderKey(&caller); err != nil {
		return err
	}
	_, err = b.Revoke(ctx, caller, l.ID, "")
	return err
}
