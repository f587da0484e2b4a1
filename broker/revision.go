package broker

import (
	"context"
	"errors"
	"fmt"

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
}

// Key returns the row's key.
func (r *Revision) Key() Key { return r.RevisionKey }

// SetRules records the rules and then puts them in force. If recording them
// fails, the rules before stay.
func (b *Broker) SetRules(ctx context.Context, caller Caller, rules *Rules) error {
	b.reload.Lock()
	defer b.reload.Unlock()
	rules.directory = b.cfg.Directory
	if rules.resourceServers == nil {
		rules.resourceServers = rules.Catalogue.findResourceServers()
	}
	record := audit.Record{Kind: audit.PolicyLoaded, Caller: caller.Actor.Party(), Rules: &audit.RulesFacts{Revision: rules.Revision, Files: rules.Files}}
	_, err := b.write(ctx, nil, record, func(tx Tx) error {
		tx.Put(&Revision{Digest: rules.Revision})
		return nil
	})
	if err != nil {
		return fmt.Errorf("recording the rules: %w", err)
	}
	// Between the record and this line, decisions by the old rules are refused as
	// stale, and made again once the lock is released.
	b.rules.Store(rules)
	if err := b.Facts.StateRules(ctx, caller); err != nil {
		// The rules are in force. Contracts and people whose time is over are denied by
		// the rules themselves, and the next pass of the facts states the rest.
		b.Facts.restate.Store(true)
		b.cfg.Log.ErrorContext(ctx, "stating the facts of suppliers.yaml and people.yaml: trying again", "err", err)
	}
	return nil
}

// errOvertaken means that another call changed the rows on which this call decided.
// The call is made again: see retry.
var errOvertaken = errors.New("overtaken by another call")

// errStale means that the rules were replaced between deciding and writing.
var errStale = fmt.Errorf("%w: the rules were replaced", errOvertaken)

// checkRevision returns errStale unless the rules of that revision are in
// force. The Update must name RevisionKey in its reads.
func checkRevision(tx Tx, revision audit.Digest) error {
	inForce, err := Get[*Revision](tx, RevisionKey{})
	if err != nil {
		return fmt.Errorf("%w: reading the revision in force: %v", ErrUnavailable, err)
	}
	if inForce.Digest != revision {
		return errStale
	}
	return nil
}

const (
	maxTries   = 100 // of a call that others keep overtaking
	staleTries = 3   // of them, with rules that this process has not replaced
)

// retry makes a call until no other call overtakes it. It waits while this process
// replaces its rules. If another process has replaced them, calls are refused until
// this process reloads.
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
		if b.reloaded() != before {
			continue
		}
		if stale++; stale == staleTries {
			return refuse(ErrUnavailable, "the rules are being replaced: try again")
		}
	}
	return refuse(ErrSlowDown, "other calls made changes at the same time: try again")
}

// reloaded returns the rules in force once no reload is under way.
func (b *Broker) reloaded() *Rules {
	b.reload.Lock()
	defer b.reload.Unlock()
	return b.rules.Load()
}
