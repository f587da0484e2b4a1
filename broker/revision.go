package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"accessbroker.internal/audit"
)

// RevisionKey names the one row that holds the revision of the rules in force.
type RevisionKey struct{}

func (RevisionKey) isKey() {}

// A Revision is the row of the rules in force. Every Update that issues or
// counts a vote reads it, so that nothing is decided by rules that another
// call, or another process on the same database, has replaced.
type Revision struct {
	RevisionKey
	Digest audit.Digest

	// The other fields matter where several processes share the store.
	Base    audit.Digest // the revision without the suspensions
	Since   time.Time
	Replica string     // the process that put it in force
	Earlier []Replaced // the newest first; at most maxEarlier
}

// A Replaced is a revision that was in force earlier. Other processes may decide by it for
// a while after Until. If Until is zero, they may not: a suspension came into force since.
type Replaced struct {
	Digest, Base audit.Digest
	Until        time.Time
}

const maxEarlier = 8

// Key returns the row's key.
func (r *Revision) Key() Key { return r.RevisionKey }

// next returns the row after rules have replaced those in force. A change of the rules'
// files lets other processes decide by their own files for a while, because no one can
// change all of them at once. A suspension counts everywhere at once.
func (r *Revision) next(rules *Rules, replica string, now time.Time) *Revision {
	next := &Revision{Digest: rules.Revision, Base: rules.Base, Since: now, Replica: replica}
	if r == nil || replica == "" {
		return next
	}
	if r.Base == rules.Base {
		for _, e := range r.Earlier {
			next.Earlier = append(next.Earlier, Replaced{e.Digest, e.Base, time.Time{}})
		}
		return next
	}
	next.Earlier = []Replaced{{r.Digest, r.Base, now}}
	for _, e := range r.Earlier {
		if e.Base != rules.Base && len(next.Earlier) < maxEarlier {
			next.Earlier = append(next.Earlier, e)
		}
	}
	return next
}

// wasInForce reports whether the rules were in force and have been replaced.
func (r *Revision) wasInForce(rules *Rules) bool {
	return slices.ContainsFunc(r.Earlier, func(e Replaced) bool { return e.Base == rules.Base })
}

// graced returns until when another process than the one that replaced it may decide by a
// revision; zero: not at all.
func (r *Revision) graced(digest audit.Digest, replica string, grace time.Duration) time.Time {
	if replica == "" || replica == r.Replica {
		return time.Time{}
	}
	for _, e := range r.Earlier {
		if e.Digest == digest && !e.Until.IsZero() {
			return e.Until.Add(grace)
		}
	}
	return time.Time{}
}

// SetRules records the rules and then puts them in force. If recording them
// fails, the rules before stay.
func (b *Broker) SetRules(ctx context.Context, caller Caller, rules *Rules) error {
	_, err := Adopt(ctx, b, caller, rules, Adoption{How: Replace})
	return err
}

// How says what rules do to rules that another process put in force.
type How uint8

const (
	Replace How = iota // an operator's decision: they replace any others
	Join               // at the start: the same, except for rules that they had been replaced by
	Follow             // nothing: they are in force if another process put them in force
	Amend              // suspensions changed: they replace those of the same files
)

// An Adoption is how rules come into force.
type Adoption struct {
	How How

	// Seen is the revision in force before the suspensions of the rules were read. If
	// another one is in force by now, Adopt returns ErrOvertaken. Zero: any.
	Seen audit.Digest
}

// ErrOvertaken means that other rules came into force meanwhile: make the rules again.
var ErrOvertaken = errOvertaken

// Adopt makes rules those by which this process decides, and puts them in force as far as
// the adoption lets them. It reports whether they are in force: otherwise, decisions by them
// do not count, except for a while after they were replaced. An error leaves the rules as
// they were.
func Adopt(ctx context.Context, b *Broker, caller Caller, rules *Rules, a Adoption) (inForce bool, err error) {
	b.reload.Lock()
	defer b.reload.Unlock()
	rules.directory = b.cfg.Directory
	if rules.resourceServers == nil {
		rules.resourceServers = rules.Catalogue.findResourceServers()
	}
	record := audit.Record{Kind: audit.PolicyLoaded, Caller: caller.Actor.Party(), Rules: &audit.RulesFacts{Revision: rules.Revision, Files: rules.Files}}
	_, err = b.write(ctx, []Key{RevisionKey{}}, record, func(tx Tx) (err error) {
		inForce, err = b.adopt(tx, caller, rules, a)
		return err
	})
	if errors.Is(err, errOvertaken) {
		return false, err
	}
	if err != nil && !errors.Is(err, ErrUnchanged) {
		return false, fmt.Errorf("recording the rules: %w", err)
	}
	// Between the record and this line, decisions by the old rules are refused as
	// stale, and made again once the lock is released.
	b.rules.Store(rules)
	b.adopted.happened(inForce)
	if !inForce {
		return false, nil
	}
	if err := b.Facts.StateRules(ctx, caller); err != nil {
		// The rules are in force. Contracts and people whose time is over are denied by
		// the rules themselves, and the next pass of the facts states the rest.
		b.Facts.restate.Store(true)
		b.cfg.Log.ErrorContext(ctx, "stating the facts of suppliers.yaml and people.yaml: trying again", "err", err)
	}
	return true, nil
}

// adopt is the transaction of Adopt. It returns ErrUnchanged if there is nothing to record.
func (b *Broker) adopt(tx Tx, caller Caller, rules *Rules, a Adoption) (inForce bool, err error) {
	before, err := Get[*Revision](tx, RevisionKey{})
	switch {
	case isNotFound(err):
		before = nil
	case err != nil:
		return false, err
	case !a.Seen.IsZero() && before.Digest != a.Seen:
		return false, errOvertaken
	case before.Digest == rules.Revision && a.How >= Follow:
		return true, ErrUnchanged
	case before.Digest == rules.Revision:
		return true, nil // the record says that this process decides by them
	case a.How == Follow, a.How == Amend && before.Base != rules.Base, a.How == Join && before.wasInForce(rules):
		return false, ErrUnchanged
	}
	tx.Put(before.next(rules, b.cfg.Replica, caller.At))
	return true, nil
}

// A RulesState is how the rules of this process relate to those in force.
type RulesState struct {
	InForce *Revision // nil: none yet
	Own     audit.Digest
	Graced  time.Time // until when decisions by the own rules count although others are in force; zero: never
}

// Behind reports whether other rules than those of this process are in force.
func (s RulesState) Behind() bool { return s.InForce != nil && s.InForce.Digest != s.Own }

// StateOfRules reads which rules are in force.
func StateOfRules(ctx context.Context, b *Broker) (s RulesState, err error) {
	s.Own = b.rules.Load().Revision
	err = b.cfg.Store.View(ctx, func(tx Tx) (err error) {
		s.InForce, err = Get[*Revision](tx, RevisionKey{})
		return ignoreNotFound(err)
	})
	if err == nil && s.InForce != nil {
		s.Graced = s.InForce.graced(s.Own, b.cfg.Replica, b.cfg.RevisionGrace)
	}
	return s, Unavailable(err)
}

// errOvertaken means that another call changed the rows on which this call decided.
// The call is made again: see retry.
var errOvertaken = errors.New("overtaken by another call")

// errStale means that the rules were replaced between deciding and writing.
var errStale = fmt.Errorf("%w: the rules were replaced", errOvertaken)

// checkRevision returns errStale unless decisions by the rules of that revision count. The
// Update must name RevisionKey in its reads.
func (b *Broker) checkRevision(tx Tx, revision audit.Digest, now time.Time) error {
	inForce, err := Get[*Revision](tx, RevisionKey{})
	if err != nil {
		return fmt.Errorf("%w: reading the revision in force: %v", ErrUnavailable, err)
	}
	if inForce.Digest != revision && !now.Before(inForce.graced(revision, b.cfg.Replica, b.cfg.RevisionGrace)) {
		return errStale
	}
	return nil
}

const (
	maxTries   = 100 // of a call that others keep overtaking
	staleTries = 3   // of them, with rules that this process has not replaced

	// adoptWithin is how long a call waits until this process follows the rules of another one.
	adoptWithin = 2 * time.Second
)

// retry makes a call until no other call overtakes it. It waits while this process
// replaces its rules. If another process has replaced them, calls are refused until
// this process has the same rules.
func (b *Broker) retry(call func() error) error {
	stale := 0
	for range maxTries {
		before := b.rules.Load()
		err := call()
		if !errors.Is(err, errOvertaken) {
			return err
		}
		if !errors.Is(err, errStale) {
			continue
		}
		if b.reloaded(before) != before {
			continue
		}
		if stale++; stale == staleTries {
			return refuse(ErrUnavailable, "the rules are being replaced: try again")
		}
	}
	return refuse(ErrSlowDown, "other calls made changes at the same time: try again")
}

// reloaded returns the rules once no reload is under way. If they are the same as before, it
// waits a moment in case that this process is about to follow another one.
func (b *Broker) reloaded(before *Rules) *Rules {
	next, behind := b.adopted.next()
	b.reload.Lock()
	now := b.rules.Load()
	b.reload.Unlock()
	if now != before || behind || b.cfg.Replica == "" {
		return now
	}
	wait := time.NewTimer(adoptWithin)
	defer wait.Stop()
	select {
	case <-next:
	case <-wait.C:
	}
	return b.rules.Load()
}

// adoptions tell calls when this process adopts rules. It is safe for concurrent use.
type adoptions struct {
	sync.Mutex
	c      chan struct{} // closed by the next adoption; nil: no one waits
	behind bool          // the last rules were adopted and did not come into force
}

func (a *adoptions) next() (adopted <-chan struct{}, behind bool) {
	a.Lock()
	defer a.Unlock()
	if a.c == nil {
		a.c = make(chan struct{})
	}
	return a.c, a.behind
}

func (a *adoptions) happened(inForce bool) {
	a.Lock()
	defer a.Unlock()
	if a.c != nil {
		close(a.c)
	}
	a.c, a.behind = nil, !inForce
}
