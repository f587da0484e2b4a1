package membership

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// A Config configures a Ledger.
type Config struct {
	Store broker.Store
	List  func(ctx context.Context, q broker.MembershipQuery) ([]*broker.Membership, error) // of Store, by ID
	Log   *slog.Logger                                                                      // nil: discarded

	// Duties keep other processes from changing the same membership; nil: there are none.
	Duties broker.Duties

	// May reports whether policy permits the caller an action on the broker. It may be
	// set after New, and is needed by List and Accept only.
	May func(ctx context.Context, caller broker.Caller, action broker.Action) bool

	// Pauses are the times between the readings that confirm a change; nil: three, of
	// three seconds together.
	Pauses []time.Duration

	// Compared is called after each comparison of an issuer's memberships; it may be nil.
	Compared func(issuer string, err error, at time.Time)
}

// A Ledger knows which leases rely on which memberships. One Ledger serves all issuers,
// because two of them may have the same system. It is safe for concurrent use.
type Ledger struct {
	cfg Config

	mu    sync.Mutex
	locks map[broker.MembershipID]*turn // of memberships that are being changed
}

// A turn is a lock that a context can stop waiting for.
type turn struct {
	busy    chan struct{}
	waiting int // those who wait, and the one whose turn it is
}

// maxClaims bounds how many leases rely on one membership at a time.
const maxClaims = 64

// New returns a Ledger.
func New(cfg Config) *Ledger {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Duties == nil {
		cfg.Duties = broker.Alone
	}
	if cfg.Pauses == nil {
		cfg.Pauses = []time.Duration{250 * time.Millisecond, 750 * time.Millisecond, 2 * time.Second}
	}
	if cfg.Compared == nil {
		cfg.Compared = func(string, error, time.Time) {}
	}
	return &Ledger{cfg: cfg, locks: map[broker.MembershipID]*turn{}}
}

// lock waits until no other call works on the membership, in any process.
func (g *Ledger) lock(ctx context.Context, id broker.MembershipID) (unlock func(), err error) {
	leave, err := g.lockHere(ctx, id)
	if err != nil {
		return nil, err
	}
	free, err := g.cfg.Duties.Lock(ctx, "membership/"+audit.Digest(id).String())
	if err != nil {
		leave()
		return nil, fmt.Errorf("%w: another replica changes the same membership: %w", broker.ErrIssuerUnavailable, err)
	}
	return func() { free(); leave() }, nil
}

// lockHere is lock for the calls in this process.
func (g *Ledger) lockHere(ctx context.Context, id broker.MembershipID) (unlock func(), err error) {
	g.mu.Lock()
	t := g.locks[id]
	if t == nil {
		t = &turn{busy: make(chan struct{}, 1)}
		g.locks[id] = t
	}
	t.waiting++
	g.mu.Unlock()
	leave := func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if t.waiting--; t.waiting == 0 {
			delete(g.locks, id)
		}
	}
	select {
	case t.busy <- struct{}{}:
		return func() { <-t.busy; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, fmt.Errorf("%w: another change of the same membership takes long", broker.ErrIssuerUnavailable)
	}
}

func (g *Ledger) account(ctx context.Context, key broker.PersonKey) (a *broker.Account, err error) {
	err = g.cfg.Store.View(ctx, func(tx broker.Tx) (err error) {
		a, err = broker.AccountOf(tx, key)
		return err
	})
	return a, err
}

// state is a membership with its claims as of one moment.
type state struct {
	row  *broker.Membership
	open []broker.LeaseID // claims of leases that have not ended

	// unreleased is a claim of a lease that has ended, and was not abandoned; zero: none.
	unreleased broker.LeaseID
}

// read returns the membership; its row has no claims if the broker does not know it.
func (g *Ledger) read(ctx context.Context, id broker.MembershipID) (s state, err error) {
	err = g.cfg.Store.View(ctx, func(tx broker.Tx) (err error) {
		s, err = readState(tx, id)
		return err
	})
	return s, broker.Unavailable(err)
}

func readState(tx broker.Tx, id broker.MembershipID) (s state, err error) {
	s.row, err = broker.Get[*broker.Membership](tx, id)
	if errors.Is(err, broker.ErrNotFound) {
		s.row, err = &broker.Membership{ID: id}, nil
	}
	if err != nil {
		return s, err
	}
	for _, lease := range s.row.Claims {
		l, err := broker.Get[*broker.Lease](tx, lease)
		if errors.Is(err, broker.ErrNotFound) {
			continue // it ended long ago, and is no longer kept
		}
		if err != nil {
			return s, err
		}
		switch {
		case !l.HasEnded():
			s.open = append(s.open, lease)
		case l.Status != broker.LeaseAbandoned:
			s.unreleased = lease
		}
	}
	return s, nil
}

// others returns the open claims of other leases.
func (s *state) others(lease broker.LeaseID) []broker.LeaseID {
	return slices.DeleteFunc(slices.Clone(s.open), func(id broker.LeaseID) bool { return id == lease })
}

// update changes a membership in one transaction with the record. The turn of the caller
// keeps the claims the same between read and update, except that leases end meanwhile.
// f gets the state again, because it may run more than once.
func (g *Ledger) update(ctx context.Context, before state, lease broker.LeaseID, record audit.Record, f func(broker.Tx, *state) error) error {
	reads := []broker.Key{before.row.ID}
	for _, claim := range before.row.Claims {
		reads = append(reads, claim)
	}
	if !lease.IsZero() && !slices.Contains(before.row.Claims, lease) {
		reads = append(reads, lease)
	}
	_, err := broker.Write(ctx, g.cfg.Store, reads, record, func(tx broker.Tx) error {
		now, err := readState(tx, before.row.ID)
		if err != nil {
			return err
		}
		if !slices.Equal(now.row.Claims, before.row.Claims) {
			return fmt.Errorf("%w: the membership changed in the meantime", broker.ErrUnavailable)
		}
		if err := f(tx, &now); err != nil {
			return err
		}
		tx.Put(now.row)
		return nil
	})
	return err
}

// A claim is what a lease contributes to the row of a membership.
type claim struct {
	lease  broker.Lease
	issuer string
	system string
}

func claimOf(o broker.Order) claim { return claim{o.Lease, o.Lease.Issuer, systemOf(o)} }

// record returns a record about a membership.
func record(kind audit.Kind, m *broker.Membership, change string) audit.Record {
	member, opening := audit.Commit(m.Member)
	return audit.Record{
		Kind: kind, Openings: map[string]audit.Opening{"member": opening},
		Membership: &audit.MembershipFacts{ID: audit.Digest(m.ID), System: m.System, Group: m.Group, Member: member, Change: change},
	}
}

func (c claim) apply(m *broker.Membership, p Place) {
	m.Issuer, m.Holder, m.System, m.Group, m.Member = c.issuer, c.lease.Holder, c.system, p.GroupName, p.MemberName
	m.Place, _ = json.Marshal(p) // a struct of strings always marshals
}

// placeOf returns the place of a membership.
func placeOf(m *broker.Membership) (p Place, err error) {
	err = json.Unmarshal(m.Place, &p)
	return p, err
}
