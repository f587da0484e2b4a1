package broker

import (
	"context"
	"time"

	"accessbroker.internal/audit"
)

// A Delegation is on whose behalf a request is made, as it was proven when the request was
// filed. The requester is the caller that acts. What it gets is bounded by the rights of
// both: policy decides each, and a denial of either denies.
type Delegation struct {
	// Subject is whose rights are used: a person, or the workload whose own token starts
	// a chain of sub-agents.
	Subject Identity

	// Parent is the lease whose token the caller exchanged; zero if the subject's own proof
	// came with the ask.
	Parent LeaseID

	// Actors are the SPIFFE IDs that acted for the subject before the caller, the first one
	// first. It is empty without a Parent, and if the Parent is the subject's own.
	Actors []string

	// Bound means that the token of Parent is bound to a key of its holder: the tokens below
	// it are bound to keys of theirs.
	Bound bool

	// Links are the leases of the chain down to Parent, the first one first.
	Links []LeaseID

	// Accountable are the people accountable for the actors.
	Accountable []string

	Scopes   []string  // that the proof allows; nil: the proof does not bound them; not stored
	Details  []Detail  // that the proof allows; nil: not bounded; not stored
	Resource string    // the token audience that the proof is limited to; empty: any; not stored
	ID       string    // of the proof, for single use; empty: the proof may be used again; not stored
	IDUntil  time.Time // when the ID may be forgotten; not stored
	MayAct   []string  // the actors that the proof names; nil: any that policy permits; not stored

	Decision Decision // of policy with the subject as the principal
}

// spend uses the proof of the delegation up, in the transaction that stores the request. A
// proof that was used is refused.
func (d *Delegation) spend(tx Tx) error {
	if d == nil || d.ID == "" {
		return nil
	}
	key := d.proofKey()
	if _, err := Get[*Spent](tx, key); err == nil {
		return errSpent
	} else if !isNotFound(err) {
		return err
	}
	tx.Put(&Spent{SpentKey: key, Expires: d.IDUntil})
	return nil
}

var errSpent = refuse(ErrProofReplayed, "this proof of the person was used before: get a new one")

// spendAlone uses the proof of a delegation up for a request that exists.
func (b *Broker) spendAlone(ctx context.Context, d *Delegation) error {
	if d == nil || d.ID == "" {
		return nil
	}
	return Unavailable(b.cfg.Store.Update(ctx, d.reads(), d.spend))
}

// reads returns the row that spend reads.
func (d *Delegation) reads() []Key {
	if d == nil || d.ID == "" {
		return nil
	}
	return []Key{d.proofKey()}
}

func (d *Delegation) proofKey() SpentKey {
	return SpentKey(audit.HashObject("accessbroker/proof/v1", audit.NewObject().String("id", d.ID)))
}

// Depth returns how many identities act for the subject, the caller included; zero for a
// caller that acts for itself.
func (d *Delegation) Depth() int {
	if d == nil {
		return 0
	}
	return len(d.Actors) + 1
}

// OfSubject returns the query of the other side of a delegation: whether policy permits the
// subject the same, with the principal as the actor.
func (q Query) OfSubject() Query {
	actor := q.Principal
	q.Principal, q.Actor, q.OnBehalfOf = *q.OnBehalfOf, &actor, nil
	return q
}

// requester returns who makes the request, as digests cover it.
func (r *Request) requester() audit.Requester {
	if r.Delegation == nil {
		return audit.Requester{ID: r.Requester.ID}
	}
	return audit.Requester{ID: r.Requester.ID, Subject: r.Delegation.Subject.ID, Actors: r.Delegation.Actors}
}
