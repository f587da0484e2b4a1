// Package supplier has the flows around other organizations: the risk assessment of a
// supplier (assess.go), extensions of its contract (extend.go), and the notices to its
// sponsor before the contract ends (sponsor.go).
//
// Package policy reads suppliers.yaml, package broker decides by it: what a supplier's
// identities get rests on the facts about the supplier and about its assessment.
package supplier

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// Config configures a Manager. Store and Broker are required.
type Config struct {
	Store  broker.Store
	Broker *broker.Broker
	Log    *slog.Logger // nil: discarded
}

// A Manager has the flows. It is safe for concurrent use.
type Manager struct {
	cfg      Config
	settling sync.Mutex // of assessments: the latest decides
}

// New returns a Manager. It starts no goroutine: call Run.
func New(cfg Config) (*Manager, error) {
	if cfg.Store == nil || cfg.Broker == nil {
		return nil, errors.New("suppliers need a store and a broker")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Manager{cfg: cfg}, nil
}

func refuse(err error, detail string) error { return &broker.Refusal{Err: err, Detail: detail} }

func isNotFound(err error) bool { return errors.Is(err, broker.ErrNotFound) }

// write appends one record in the transaction f: see broker.Write.
func (m *Manager) write(ctx context.Context, reads []broker.Key, record audit.Record, f func(broker.Tx) error) error {
	_, err := broker.Write(ctx, m.cfg.Store, reads, record, f)
	return err
}

// A State is what is known about a supplier at a time.
type State struct {
	*broker.Supplier
	Standing   *broker.Standing   // of the contract; nil: none is known
	Ends       time.Time          // of the contract, or of its extension
	Assessment *broker.Assessment // the latest; nil: there is none
	Extension  *broker.Extension  // the latest of this contract; nil: there is none
	Waiting    int                // requests that wait for the assessment, at most MaxWaiting

	MayAssess, MayAsk, MayDecide bool // by the caller: assess it, ask for an extension, decide on one
}

// Live reports whether the contract is in force.
func (s *State) Live(now time.Time) bool { return !now.Before(s.Starts) && now.Before(s.Ends) }

// Assessed reports whether the latest assessment is valid at now.
func (s *State) Assessed(now time.Time) bool {
	return s.Assessment != nil && s.Assessment.Version > 0 && now.Before(s.Assessment.ValidUntil)
}

// MaxWaiting bounds how many waiting requests are counted.
const MaxWaiting = 50

// List returns the suppliers that the caller may see, sorted by name: all of them for
// auditors and operators, otherwise those that the caller sponsors, assesses or extends.
func (m *Manager) List(ctx context.Context, caller broker.Caller) (list []*State, err error) {
	rules := m.cfg.Broker.Rules()
	all := m.seesAll(ctx, caller)
	for _, s := range rules.Suppliers.All() {
		state, err := m.state(ctx, caller, rules, s)
		if err != nil {
			return nil, err
		}
		if all || state.concerns() {
			list = append(list, state)
		}
	}
	return list, nil
}

// Get returns one supplier that the caller may see.
func (m *Manager) Get(ctx context.Context, caller broker.Caller, name string) (*State, error) {
	rules := m.cfg.Broker.Rules()
	s := rules.Suppliers.Named(name)
	if s == nil {
		return nil, errNoSupplier
	}
	state, err := m.state(ctx, caller, rules, s)
	if err != nil {
		return nil, err
	}
	if !state.concerns() && !m.seesAll(ctx, caller) {
		return nil, errNoSupplier
	}
	return state, nil
}

var errNoSupplier = refuse(broker.ErrNotFound, "there is no such supplier, or you may not view it")

func (s *State) concerns() bool { return s.MayAssess || s.MayAsk || s.MayDecide }

// Concern reports whether the caller sees any supplier. It is cheap, and asks no provider.
func (m *Manager) Concern(ctx context.Context, caller broker.Caller) bool {
	rules := m.cfg.Broker.Rules()
	if rules.Suppliers.Len() == 0 || caller.Subject.Kind != broker.KindPerson {
		return false
	}
	listed, claimed := rules.Policy.Groups(caller.Subject)
	in := func(group string) bool { return slices.Contains(listed, group) || slices.Contains(claimed, group) }
	for _, s := range rules.Suppliers.All() {
		if in(s.Assessors) || in(s.SponsorGroup()) || in(ExtendersOf(s)) || rules.People.Same(s.Sponsor, caller.Subject.ID) {
			return true
		}
	}
	return m.seesAll(ctx, caller)
}

// seesAll reports whether the caller may see all suppliers.
func (m *Manager) seesAll(ctx context.Context, caller broker.Caller) bool {
	if caller.Subject.Kind == broker.KindOperator {
		return true
	}
	for _, action := range []broker.Action{broker.ActionAudit, broker.ActionOperate} {
		if m.cfg.Broker.May(ctx, caller, action) {
			return true
		}
	}
	return false
}

// state reads what is known about a supplier, and what the caller may do.
func (m *Manager) state(ctx context.Context, caller broker.Caller, rules *broker.Rules, s *broker.Supplier) (*State, error) {
	state := &State{Supplier: s, Ends: s.Ends}
	standing, err := m.cfg.Broker.Facts.Standing(ctx, broker.SupplierKey(s.Name))
	if err != nil && !isNotFound(err) {
		return nil, err
	}
	if err == nil {
		state.Standing = standing
	}
	err = m.cfg.Store.View(ctx, func(tx broker.Tx) error {
		a, err := broker.Get[*broker.Assessment](tx, broker.AssessmentKey(s.Name))
		if err == nil && a.Version > 0 {
			state.Assessment = a
		} else if err != nil && !isNotFound(err) {
			return err
		}
		x, err := broker.Get[*broker.Extension](tx, broker.ExtensionKey(s.Name))
		if err == nil && x.From.Equal(s.Ends) {
			state.Extension = x
		} else if err != nil && !isNotFound(err) {
			return err
		}
		waits := func(r *broker.Request) bool { return r.State(caller.At) == broker.RequestPending && r.Awaits }
		page, _, err := tx.Requests(broker.RequestQuery{RestsOn: broker.SupplierKey(s.Name), Match: waits, Now: caller.At, Limit: MaxWaiting})
		state.Waiting = len(page)
		return err
	})
	if err != nil {
		return nil, broker.Unavailable(err)
	}
	if state.Extension != nil && state.Extension.Extends(s) {
		state.Ends = state.Extension.Until
	}
	return state, m.setRights(ctx, caller, rules, state)
}

// setRights sets what the caller may do.
func (m *Manager) setRights(ctx context.Context, caller broker.Caller, rules *broker.Rules, s *State) error {
	if caller.Subject.Kind != broker.KindPerson {
		return nil
	}
	caller.Subject = rules.WithLabels(caller.Subject)
	s.MayAssess = m.checkAssessor(caller, rules, s.Supplier) == nil
	s.MayAsk = m.checkSponsor(caller, rules, s.Supplier) == nil
	s.MayDecide = s.Extension != nil && s.Extension.Decision == broker.ExtensionPending && m.checkExtender(caller, rules, s.Supplier, s.Extension) == nil
	return nil
}
