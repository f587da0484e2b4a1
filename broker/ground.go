package broker

import (
	"context"
	"errors"
	"slices"
	"time"
)

// A Ground is what a decision of a person in another package rests on: the rules, and the
// standing of the person. The transaction that makes the decision true checks that neither
// has changed.
type Ground struct {
	Rules   *Rules
	footing footing
	b       *Broker
	at      time.Time // of the decision
}

// Ground returns the ground for a decision of the caller, with the caller's labels, or
// refuses a person whose access has ended.
func (f *Facts) Ground(ctx context.Context, caller *Caller) (*Ground, error) {
	rules := f.b.rules.Load()
	*caller = caller.labelled(rules)
	ground, err := f.b.stand(ctx, rules, caller.Subject, time.Time{}, caller.At)
	return &Ground{rules, ground, f.b, caller.At}, err
}

// Reads returns the keys that Check reads.
func (g *Ground) Reads() []Key { return append(g.footing.reads(), RevisionKey{}) }

// Check returns an error if the rules or the person's standing changed. Facts.Retry makes
// the decision again.
func (g *Ground) Check(tx Tx) error {
	return errors.Join(g.b.checkRevision(tx, g.Rules.Revision, g.at), g.footing.check(tx))
}

// Retry makes a call until no other call overtakes it.
func (f *Facts) Retry(call func() error) error { return f.b.retry(call) }

// IsMember reports whether a person is in a group, as listed or by claims that are recent
// enough. It refuses claims that are too old to tell.
func (f *Facts) IsMember(caller Caller, rules *Rules, group string) (bool, error) {
	who := caller.Subject
	listed, claimed := rules.Policy.Groups(who)
	switch {
	case slices.Contains(listed, group):
		return true, nil
	case !slices.Contains(claimed, group) && !rules.Groups[group].Claimed:
		return false, nil
	}
	if _, stale := f.b.ClaimsAge(caller); stale {
		return false, refuse(ErrLoginStale, "your groups were last confirmed too long ago: log in again")
	}
	return slices.Contains(claimed, group), nil
}
