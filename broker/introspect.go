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

// inForce reports whether a lease is active and nothing blocks it.
func (b *Broker) inForce(ctx context.Context, l *Lease, e *Entitlement, at time.Time) bool {
	return l.State(at) == LeaseActive && !b.blocked(ctx, l, e)
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

// blocked reports whether the holder or the entitlement of a lease is blocked.
// An error counts as blocked.
func (b *Broker) blocked(ctx context.Context, l *Lease, e *Entitlement) bool {
	who := Identity{ID: l.Holder, Kind: KindPerson}
	if domain, _, err := ParseSPIFFEID(l.Holder); err == nil {
		who = Identity{ID: l.Holder, Kind: KindWorkload, TrustDomain: domain, Paths: SPIFFEPaths(l.Holder)}
	}
	who = b.rules.Load().WithLabels(who)
	blocked, err := b.cfg.Reader.Blocked(ctx, blockKeys(who, e))
	return blocked || err != nil
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
