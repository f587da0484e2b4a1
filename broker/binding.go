package broker

import (
	"context"
	"fmt"
	"strings"
	"time"

	"accessbroker.internal/audit"
)

// A Binding is a set of keys, one of which a token must be bound to. The zero Binding
// demands nothing: a token may be bound or not.
type Binding uint8

// The keys that a token can be bound to.
const (
	BindingMTLS Binding = 1 << iota // a client certificate: cnf x5t#S256 (RFC 8705), and the SPIFFE ID
	BindingDPoP                     // the key of a DPoP proof: cnf jkt (RFC 9449)

	bindingEmpty Binding = 1 << 7 // demands that exclude each other
)

// BindingNone demands nothing.
const BindingNone Binding = 0

// bindingWords are the bindings of configurations and policies, and their texts in records
// and answers.
var bindingWords = map[Binding]string{
	BindingNone: "none", BindingMTLS: "mtls", BindingDPoP: "dpop", BindingDPoP | BindingMTLS: "dpop or mtls",
	bindingEmpty: "impossible",
}

// String returns the binding as ParseBinding reads it; "impossible" if no token meets it.
func (b Binding) String() string { return bindingWords[b] }

// ParseBinding parses "none", "mtls", "dpop" or "dpop or mtls", in any order.
func ParseBinding(text string) (b Binding, err error) {
	if text == "none" {
		return BindingNone, nil
	}
	for word := range strings.SplitSeq(text, " or ") {
		one := map[string]Binding{"mtls": BindingMTLS, "dpop": BindingDPoP}[word]
		if one == 0 || b&one != 0 {
			return 0, fmt.Errorf("%q: write mtls, dpop or %q", text, "dpop or mtls")
		}
		b |= one
	}
	return b, nil
}

// And returns the keys that meet both demands.
func (b Binding) And(other Binding) Binding {
	switch {
	case b == BindingNone:
		return other
	case other == BindingNone:
		return b
	case b&other == 0:
		return bindingEmpty
	}
	return b & other
}

// Impossible reports whether no token meets the demand.
func (b Binding) Impossible() bool { return b&bindingEmpty != 0 }

// proven returns the keys that the caller proved to hold in this call.
func (c *Caller) proven() (b Binding) {
	if !c.Key.IsZero() {
		b |= BindingDPoP
	}
	if c.Actor.Proof.Method == MethodX509SVID {
		b |= BindingMTLS
	}
	return b
}

// checkBinding refuses a caller that cannot get a token with this binding, and states what
// is missing.
func (c *Caller) checkBinding(demand Binding) error {
	const (
		byKey         = "send a DPoP proof (RFC 9449) with each call, or use --dpop"
		byCertificate = "connect with your X.509-SVID"
	)
	switch {
	case demand == BindingNone || c.proven()&demand != 0:
		return nil
	case demand == BindingMTLS:
		return refuse(ErrBindingRequiresMTLS, "its tokens are bound to a client certificate: "+byCertificate)
	case demand == BindingDPoP:
		return refuse(ErrBindingRequired, "its tokens are bound to a key of the caller: "+byKey)
	case demand.Impossible():
		return refuse(ErrBindingRequired, "policy and the entitlement demand bindings that exclude each other, so no token can be issued: the operators must correct them")
	}
	return refuse(ErrBindingRequired, "its tokens are bound to a key of the caller: "+byKey+", or "+byCertificate)
}

// demand returns what tokens of the request must be bound to: what the entitlement demands,
// and policy, and the token that was exchanged to file it, which no sub-agent can unbind.
func (r *Request) demand(e *Entitlement, o *Obligations) Binding {
	demand := e.Binding.And(o.Binding)
	if r.Delegation != nil && r.Delegation.Bound {
		demand = demand.And(BindingMTLS | BindingDPoP)
	}
	return demand
}

// isBound reports whether the token of the lease is bound to a key.
func (l *Lease) isBound() bool { return !l.KeyThumbprint.IsZero() || !l.Confirm.IsZero() }

// checkKey refuses a call for a request that was filed with another key than the call
// proves. A request without a key may be collected with any.
func (r *Request) checkKey(caller *Caller) error {
	if r.KeyThumbprint.IsZero() || r.KeyThumbprint == caller.Key {
		return nil
	}
	return &Refusal{Err: ErrBindingRequired, Detail: "the request was filed with a DPoP key: collect it with a proof of the same key", RequestID: r.ID}
}

// checkHolderKey refuses a holder who asks about the token of the lease with a proof of
// another key than the token is bound to. Others have keys of their own.
func (l *Lease) checkHolderKey(caller *Caller) error {
	if l.Holder != caller.Subject.ID || caller.Key.IsZero() || l.KeyThumbprint.IsZero() || l.KeyThumbprint == caller.Key {
		return nil
	}
	return refuse(ErrInvalidDPoP, "the token is bound to another key than that of the DPoP proof")
}

// bind binds a lease to keys that the caller proved, so that it meets the demands of the
// entitlement, of policy, and of the lease that it replaces. A key that the caller proved
// without being asked to binds the token too: the client has asked for that.
func (c *collection) bind(l *Lease) error {
	if err := c.request.checkKey(c.caller); err != nil {
		return err
	}
	demand := c.request.demand(c.e, &c.decision.Obligations)
	if old := c.replaces; old != nil {
		switch {
		case !old.KeyThumbprint.IsZero() && old.KeyThumbprint != c.caller.Key:
			return refuse(ErrBindingRequired, "the lease is bound to a DPoP key: renew it with a proof of the same key")
		case !old.KeyThumbprint.IsZero():
			demand = demand.And(BindingDPoP)
		case !old.Confirm.IsZero():
			demand = demand.And(BindingMTLS)
		}
	}
	if demand != BindingNone && c.e.Audience == "" {
		return refuse(ErrBindingRequired, "policy demands a bound token, and credentials of this entitlement cannot be bound: the operators must correct the policy")
	}
	if err := c.caller.checkBinding(demand); err != nil {
		return err
	}
	if c.e.Audience == "" {
		return nil
	}
	l.KeyThumbprint = c.caller.Key
	if byKey := demand&BindingDPoP != 0 && !l.KeyThumbprint.IsZero(); demand&BindingMTLS != 0 && !byKey {
		l.Confirm = c.caller.Actor.Proof.SHA256
	}
	return nil
}

// A SpentKey names something that may be used once, such as a proof of possession: it is
// the digest of what makes it unique.
type SpentKey audit.Digest

func (SpentKey) isKey() {}

// IsZero reports whether k names nothing.
func (k SpentKey) IsZero() bool { return k == SpentKey{} }

// Spent is the row of something that was used. It may be forgotten once nothing accepts it
// any longer.
type Spent struct {
	SpentKey
	Expires time.Time
}

// Key implements Row.
func (s *Spent) Key() Key { return s.SpentKey }

// errReplayed does not name the first use, which may have been another caller's.
var errReplayed = refuse(ErrInvalidDPoP, "the DPoP proof was used before: make a new one for each call")

// errTokenSpent does not name the first use, which may have been another caller's.
var errTokenSpent = refuse(ErrTokenSpent, "a credential was issued with this token before: get a new token from its issuer for each credential, or ask the operators to set one_time: false for an issuer whose tokens are used until they expire, such as Kubernetes")

// spend marks the caller's proofs as used, in the transaction that issues with them: its proof
// of possession, and tokens with which one credential is issued. Two processes cannot both do
// so.
func (c *Caller) spend(tx Tx) error {
	for _, once := range c.Actor.Once {
		if _, err := tx.Get(once.SpentKey); err == nil {
			return errTokenSpent
		} else if !isNotFound(err) {
			return err
		}
		tx.Put(&once)
	}
	if c.Once.IsZero() {
		return nil
	}
	if _, err := tx.Get(c.Once); err == nil {
		return errReplayed
	} else if !isNotFound(err) {
		return err
	}
	tx.Put(&Spent{SpentKey: c.Once, Expires: c.OnceUntil})
	return nil
}

// SpendProof spends a proof of possession in the store, so that it works once in all processes
// that share it. It returns an error if the proof was spent before.
func SpendProof(ctx context.Context, store Store, once SpentKey, until time.Time) error {
	caller := Caller{Once: once, OnceUntil: until}
	return Unavailable(store.Update(ctx, []Key{once}, caller.spend))
}
