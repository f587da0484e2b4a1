// Package broker is the domain. An Identity makes a Request; a Policy turns it
// into a Decision; once its obligations are met, the broker opens a Lease; an
// Issuer turns the Lease into a Credential. Each step appends one audit.Record
// in the transaction that makes it true.
//
// The files request.go and lease.go say which state may follow which, as pure
// functions. The files ask.go, collect.go, open.go and end.go say in what order store,
// issuer and log act; each flow is one straight function with a comment at
// every point of no return.
package broker

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"accessbroker.internal/audit"
)

// Config is what a Broker is made of. Store and Issuers are required.
type Config struct {
	Store   Store
	Issuers map[string]Issuer
	Log     *slog.Logger // for what no caller hears of; nil: discarded
	Replica string       // this process, as the owner of leases being issued
	Observe func(Event)  // told of everything that is counted; nil: nobody; must not block

	// Blocks lists the blocks in force, for operators, and for what the kill
	// switch left to end; nil: there are none.
	Blocks func(ctx context.Context) ([]*Block, error)

	// MaxPending is how many requests one identity may have waiting for
	// people; zero means 20.
	MaxPending int
}

// An Event is something worth counting. Its strings come from bounded sets:
// catalogue names, issuer names, codes.
type Event struct {
	Kind        EventKind
	Entitlement string // "unknown" if the catalogue has no such entry
	Issuer      string
	Code        string        // outcome: "permit", "ok", or a sentinel's text
	Took        time.Duration // of a decision; of what the issuer did of an issuance
	TTL         time.Duration // of an issued lease
	Lag         time.Duration // from when a lease should have ended to when its issuer confirmed that it did
}

// EventKind says what is counted.
type EventKind uint8

// The kinds of events.
const (
	EventRequest    EventKind = iota + 1 // a request was answered
	EventDecision                        // policy answered: permit, deny or error
	EventIssued                          // a credential is about to leave
	EventRevocation                      // an attempt to end a lease came to an end
	EventUpstream                        // an issuer failed
	EventApproved                        // the last approval came; Took is since the request
	EventNotified                        // an attempt to notify a channel ended; Issuer is the kind of the channel
)

// A Broker turns requests into credentials. It is safe for concurrent use.
// Every method takes the caller's identity and the time; none reads a clock
// but to measure.
type Broker struct {
	cfg          Config
	rules        atomic.Pointer[Rules]
	waiters      waiters
	pendingCache pending
	denials      denials
	reaper       *reaper
	lists        gate       // of lists, which read many rows: reading one row never waits for them
	reload       sync.Mutex // held while rules are replaced
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
	if cfg.MaxPending == 0 {
		cfg.MaxPending = 20
	}
	b := &Broker{cfg: cfg, reaper: newReaper(cfg), lists: make(gate, listsAtOnce)}
	if err := b.SetRules(ctx, caller, rules); err != nil {
		return nil, err
	}
	return b, nil
}

// Run ends due leases, continues interrupted kill switches and flushes the counts
// of repeated denials, until ctx ends.
func (b *Broker) Run(ctx context.Context) error {
	var group errgroup.Group
	for name := range b.cfg.Issuers {
		group.Go(func() error { b.reaper.run(ctx, name); return nil })
	}
	group.Go(func() error { b.resumeForever(ctx); return nil })
	b.flushForever(ctx)
	return group.Wait()
}

// Reap makes one pass: it ends the due leases of every issuer and continues
// interrupted kill switches. It returns the number of leases that it dealt with.
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

// An Issued is a credential on its way to its holder, with its lease and its
// place in the log.
type Issued struct {
	Lease      Lease
	Credential Credential
	Request    Request
	Receipt    Receipt
}

// A Receipt says which record of the log stands for something.
type Receipt struct {
	Index    int64
	LeafHash audit.Digest
}

// An Offer is an entitlement as one identity may ask for it.
type Offer struct {
	Entitlement    *Entitlement
	Scopes         []ScopeOffer // empty for an entitlement without scopes
	Decision       Decision     // for an entitlement without scopes
	BreakGlassOnly bool         // that may be had in an emergency only
	Blocked        bool         // by the kill switch, whatever policy says
}

// A ScopeOffer is what policy says to one scope alone.
type ScopeOffer struct {
	Scope          string
	Decision       Decision
	BreakGlassOnly bool // it may be had in an emergency only
}

// An Introspection is a live token.
type Introspection struct {
	Lease    Lease
	Audience string
}
