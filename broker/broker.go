package broker

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// Config configures a Broker. Store and Issuers are required.
type Config struct {
	Store   Store
	Issuers map[string]Issuer
	Log     *slog.Logger // nil: discarded
	Observe func(Event)  // receives every event, and must not block; may be nil

	// Reader answers introspections; nil: they read Store in transactions.
	Reader Reader

	// Statuses knows status lists; nil: tokens can't have places in them.
	Statuses StatusReader

	// Blocks lists the blocks in force; nil: there are none.
	Blocks func(ctx context.Context) ([]*Block, error)

	// Sources are the operator's rules for the sources of facts, by name.
	Sources map[string]SourceRule

	// Tickets looks at tickets; nil: there is no ticket system.
	Tickets Tickets
	// Directory states the groups and the manager of people; nil: only claims do.
	Directory Directory

	// Duties divide the background work with the other processes that share Store; nil:
	// there are none.
	Duties Duties

	// Replica names this process among those that share the store; empty: no other process
	// does. RevisionGrace is for how long it may decide by rules that another process
	// replaced. Adoption is how the first rules come into force.
	Replica       string
	RevisionGrace time.Duration
	Adoption      Adoption

	// Restored is when the log was opened that follows one that lost records; zero: none does.
	// A token from before is no longer accepted: its end may be among the lost records.
	Restored time.Time

	// MaxPending bounds the pending requests of one identity; zero means 20.
	MaxPending int

	// Retention is how long requests and leases are kept, for answers about those that are not.
	Retention Retention
}

// An Event is an occurrence to count. Its strings come from bounded sets: names
// from the catalogue, issuers and codes.
type Event struct {
	Kind        EventKind
	Entitlement string // "unknown" if the catalogue has no such entry
	Issuer      string
	Code        string        // the outcome: "permit", "ok", or the code of a refusal
	Took        time.Duration // of a decision; of the issuer's part of an issuance
	TTL         time.Duration // of an issued lease
	Lag         time.Duration // from when a lease should have ended to when its issuer confirmed the end
}

// EventKind is what an Event counts.
type EventKind uint8

// The kinds of events.
const (
	EventRequest    EventKind = iota + 1 // a request was answered
	EventDecision                        // policy answered: permit, deny or error
	EventIssued                          // a credential is about to be returned
	EventRevocation                      // an attempt to end a lease finished
	EventUpstream                        // an issuer failed
	EventApproved                        // the last approval was given; Took is since the request
	EventNotified                        // an attempt to notify a channel ended; Issuer is the kind of the channel
)

// A Broker turns requests into credentials. It is safe for concurrent use. Its
// methods take the caller with the time of the call; only loops and long calls
// read the clock.
type Broker struct {
	Facts       *Facts // what access rests on
	StatusLists *StatusLists
	Calls       *Calls // with the credentials of leases

	cfg     Config
	rules   atomic.Pointer[Rules]
	waiters waiters
	waiting waitingList
	denials denials
	reaper  *reaper
	lists   gate       // of lists, which read many rows
	reload  sync.Mutex // held while rules are replaced
	adopted adoptions
}

// New returns a Broker that decides by the rules, which it records first. It
// starts no goroutine: call Run.
func New(ctx context.Context, cfg Config, rules *Rules, caller Caller) (*Broker, error) {
	if cfg.Store == nil || cfg.Issuers == nil || rules == nil {
		return nil, errors.New("a broker needs a store, issuers and rules")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Observe == nil {
		cfg.Observe = func(Event) {}
	}
	if cfg.Blocks == nil {
		cfg.Blocks = func(context.Context) ([]*Block, error) { return nil, nil }
	}
	if cfg.Duties == nil {
		cfg.Duties = Alone
	}
	if cfg.Reader == nil {
		cfg.Reader = viewReader{cfg.Store}
	}
	if cfg.MaxPending == 0 {
		cfg.MaxPending = 20
	}
	cfg.Sources = maps.Clone(cfg.Sources)
	if cfg.Sources == nil {
		cfg.Sources = map[string]SourceRule{}
	}
	file := cfg.Sources[FileSource]
	file.Governs = governedByFile
	cfg.Sources[FileSource] = file
	b := &Broker{cfg: cfg, reaper: newReaper(cfg), lists: make(gate, listsAtOnce)}
	b.Facts = newFacts(b)
	b.reaper.hurry = b.Facts.hurryOwn
	b.Calls = &Calls{b}
	b.StatusLists = &StatusLists{b: b, reader: cfg.Statuses}
	if _, err := Adopt(ctx, b, caller, rules, cfg.Adoption); err != nil {
		return nil, err
	}
	return b, nil
}

// Run ends due leases and what rests on facts that ended, continues interrupted kill
// switches, flushes the counts of
// repeated denials and keeps the inboxes current, until ctx ends.
func (b *Broker) Run(ctx context.Context) error {
	var group errgroup.Group
	for name := range b.cfg.Issuers {
		group.Go(func() error { b.reaper.run(ctx, name); return nil })
	}
	group.Go(func() error { b.resumeForever(ctx); return nil })
	group.Go(func() error { b.keepWaiting(ctx); return nil })
	group.Go(func() error { b.Facts.run(ctx); return nil })
	b.flushForever(ctx)
	return group.Wait()
}

// Reap makes one pass: it ends the due leases of every issuer and continues
// interrupted kill switches. It returns the number of leases that it tried to end.
func (b *Broker) Reap(ctx context.Context, now time.Time) (int, error) {
	var group errgroup.Group
	var total atomic.Int64
	b.resumeKills(ctx, now)
	for name := range b.cfg.Issuers {
		group.Go(func() error {
			n, err := b.reaper.pass(ctx, name, now)
			total.Add(int64(n))
			return err
		})
	}
	err := group.Wait()
	return int(total.Load()), errors.Join(err, ctx.Err())
}

// Rules returns the rules in force.
func (b *Broker) Rules() *Rules { return b.rules.Load() }
