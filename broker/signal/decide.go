package signal

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// A Status describes a transmitter.
type Status struct {
	Transmitter string
	Provider    string
	Stream      string    // enabled, paused or disabled, as the transmitter stated last
	Heard       time.Time // when its stream was last known to work, since the start; zero: never
	Holding     int       // events that wait
	Since       time.Time // when the events began to be held; zero: none are
}

// List returns the status of every transmitter, sorted by name.
func (m *Manager) List(ctx context.Context, caller broker.Caller) (list []Status, err error) {
	if err := m.may(ctx, caller); err != nil {
		return nil, err
	}
	for name, rule := range m.cfg.Rules {
		s, err := m.status(ctx, name, rule)
		if err != nil {
			return nil, err
		}
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b Status) int { return strings.Compare(a.Transmitter, b.Transmitter) })
	return list, nil
}

// A Gauge describes a transmitter for metrics. It is read from memory.
type Gauge struct {
	Transmitter string
	Heard       time.Time // zero: not since the start
	Holding     int
}

// Gauges returns a gauge for every transmitter.
func (m *Manager) Gauges() (list []Gauge) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name := range m.cfg.Rules {
		list = append(list, Gauge{name, m.heard[name], m.held[name]})
	}
	return list
}

func (m *Manager) status(ctx context.Context, name string, rule Rule) (Status, error) {
	s, err := m.stream(ctx, name)
	if err != nil {
		return Status{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	stream := s.Status
	if stream == "" {
		stream = streamEnabled
	}
	return Status{Transmitter: name, Provider: rule.Provider, Stream: stream, Heard: m.heard[name], Holding: s.Holding, Since: s.Tripped}, nil
}

// A Preview shows what a person decides on.
type Preview struct {
	Status
	Digest  audit.Digest         // of exactly these events
	Through int64                // the number of the last of them
	Events  int                  // their number; later ones are not part of the decision
	ByKind  map[Kind]int         // the same by kind
	People  int                  // whom they name
	Leases  int64                // that would end, as of now
	First   []*broker.HeldSignal // the first ones, at most maxShown
	Own     bool                 // one of them is about the caller, who therefore may not decide
}

const maxShown = 50

// Preview returns the waiting events of a transmitter.
func (m *Manager) Preview(ctx context.Context, caller broker.Caller, transmitter string) (*Preview, error) {
	if err := m.may(ctx, caller); err != nil {
		return nil, err
	}
	rule, ok := m.cfg.Rules[transmitter]
	if !ok {
		return nil, refuse(broker.ErrNotFound, "there is no transmitter of this name")
	}
	status, err := m.status(ctx, transmitter, rule)
	if err != nil {
		return nil, err
	}
	p, err := m.preview(ctx, caller, rule, transmitter, 0)
	if err != nil {
		return nil, err
	}
	p.Status = status
	return p, nil
}

// preview reads the waiting events up to a number; zero: all.
func (m *Manager) preview(ctx context.Context, caller broker.Caller, rule Rule, transmitter string, through int64) (*Preview, error) {
	p := &Preview{ByKind: map[Kind]int{}}
	digest, people := sha256.New(), map[string]bool{}
	_, _ = fmt.Fprintf(digest, "accessbroker/signals/v1\n%s\n", transmitter)
	err := m.eachHeld(ctx, transmitter, func(h *broker.HeldSignal) error {
		if through > 0 && h.Number > through {
			return errStop
		}
		p.Events, p.Through = p.Events+1, h.Number
		p.ByKind[Kind(h.Kind)]++
		_, _ = fmt.Fprintf(digest, "%d %q %s %q %q %q\n", h.Number, h.ID, h.Kind, h.Account, h.Email, h.SID)
		if len(p.First) < maxShown {
			p.First = append(p.First, h)
		}
		accounts, _, err := m.find(ctx, rule, subjectOf(h), caller.At)
		for _, account := range accounts {
			if people[account] {
				continue
			}
			people[account] = true
			if k := Kind(h.Kind); k == KindAccountDisabled || k == KindAccountPurged {
				leases, err := m.leasesOf(ctx, account, caller.At)
				if err != nil {
					return err
				}
				p.Leases += leases
			}
		}
		return err
	})
	p.Digest, p.People = audit.Digest(digest.Sum(nil)), len(people)
	for account := range people {
		p.Own = p.Own || m.isAbout(caller, account)
	}
	return p, err
}

func subjectOf(h *broker.HeldSignal) Subject {
	return Subject{Account: h.Account, Email: h.Email, SID: h.SID}
}

var errStop = errors.New("stop")

// eachHeld calls f for each waiting event of a transmitter, in their order. errStop of f
// ends it without an error.
func (m *Manager) eachHeld(ctx context.Context, transmitter string, f func(*broker.HeldSignal) error) error {
	for after := int64(0); ; {
		page, err := m.cfg.Reader.Held(ctx, transmitter, after, pageMax)
		if err != nil {
			return err
		}
		for _, h := range page {
			if err := f(h); errors.Is(err, errStop) {
				return nil
			} else if err != nil {
				return err
			}
			after = h.Number
		}
		if len(page) < pageMax {
			return nil
		}
	}
}

// A Decision is what a person decides about waiting events.
type Decision struct {
	Release bool         // they take effect; otherwise they are discarded
	Through int64        // the number of the last event that the person saw
	Digest  audit.Digest // of the preview that the person saw
	Reason  string
}

// DecideDeadline bounds the time in which released events take effect before the call
// returns. The rest follows.
const DecideDeadline = 5 * time.Minute

// Decide releases or discards exactly the events that the person saw. Events that arrived
// later are judged anew.
func (m *Manager) Decide(ctx context.Context, caller broker.Caller, transmitter string, d Decision) (*Preview, error) {
	if err := m.may(ctx, caller); err != nil {
		return nil, err
	}
	rule, ok := m.cfg.Rules[transmitter]
	if !ok {
		return nil, refuse(broker.ErrNotFound, "there is no transmitter of this name")
	}
	reason := strings.TrimSpace(d.Reason)
	if err := broker.CheckLine(broker.ErrInvalidRequest, "reason", reason, broker.MaxJustification); err != nil {
		return nil, err
	}
	if reason == "" {
		return nil, refuse(broker.ErrJustificationRequired, "give a reason")
	}
	p, err := m.preview(ctx, caller, rule, transmitter, d.Through)
	switch {
	case err != nil:
		return nil, err
	case p.Events == 0:
		return nil, refuse(broker.ErrNotFound, "no events of this transmitter wait for a decision")
	case p.Own:
		return nil, refuse(broker.ErrOwnRequest, "one of the events is about you: another person must decide")
	case p.Digest != d.Digest:
		return nil, refuse(broker.ErrPreviewStale, "the events that wait have changed since they were shown: look at them again")
	}
	if err := m.decide(ctx, caller, transmitter, d, reason, p); err != nil {
		return nil, err
	}
	// From here on the decision is durable. The events take effect even if the caller no
	// longer waits, or after a restart.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), DecideDeadline)
	defer cancel()
	if err := m.drainOne(ctx, transmitter, caller.At); err != nil {
		m.cfg.Log.ErrorContext(ctx, "applying held security events", "transmitter", transmitter, "err", err)
	}
	p.Status, err = m.status(ctx, transmitter, rule)
	return p, err
}

// decide records a decision.
func (m *Manager) decide(ctx context.Context, caller broker.Caller, transmitter string, d Decision, reason string, p *Preview) error {
	digest, opening := audit.Commit(reason)
	record := audit.Record{
		Kind: audit.SignalDiscarded, Caller: caller.Actor.Party(), End: &audit.EndFacts{How: "discarded", Reason: digest},
		Openings: map[string]audit.Opening{"reason": opening},
		Signal:   &audit.SignalFacts{Transmitter: transmitter, Events: int64(p.Events), People: int64(p.People), Leases: p.Leases},
	}
	if d.Release {
		record.Kind, record.End.How = audit.SignalReleased, "released"
	}
	_, err := broker.Write(ctx, m.cfg.Store, []broker.Key{broker.StreamKey(transmitter)}, record, func(tx broker.Tx) error {
		s, err := streamOf(tx, transmitter)
		if err != nil {
			return err
		}
		if s.Tripped.IsZero() || s.Decided > p.Through {
			return refuse(broker.ErrPreviewStale, "another person has decided meanwhile: look at the events again")
		}
		s.Decided, s.Discarded, s.Tripped = p.Through+1, !d.Release, time.Time{}
		s.Leases, s.People = nil, nil
		tx.Put(s)
		return nil
	})
	return err
}

const drainEvery = 5 * time.Second

// Run applies the events on which a person decided before a restart, until ctx ends.
func (m *Manager) Run(ctx context.Context) error {
	tick := time.NewTicker(drainEvery)
	defer tick.Stop()
	for {
		if err := m.Drain(ctx, time.Now()); err != nil && ctx.Err() == nil {
			m.cfg.Log.ErrorContext(ctx, "applying held security events", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Drain makes one pass: it applies the held events that need not wait any longer.
func (m *Manager) Drain(ctx context.Context, now time.Time) error {
	var failed []error
	for name := range m.cfg.Rules {
		if err := m.drainOne(ctx, name, now); err != nil {
			failed = append(failed, fmt.Errorf("of %s: %w", name, err))
		}
	}
	return errors.Join(failed...)
}

// drainOne applies the held events of a transmitter in their order, up to the first one
// that still waits for a person.
func (m *Manager) drainOne(ctx context.Context, transmitter string, now time.Time) error {
	m.drain.Lock()
	defer m.drain.Unlock()
	s, err := m.stream(ctx, transmitter)
	if err != nil {
		return err
	}
	m.mu.Lock()
	m.held[transmitter] = s.Holding
	m.mu.Unlock()
	if s.Holding == 0 {
		return nil
	}
	return m.eachHeld(ctx, transmitter, func(h *broker.HeldSignal) error { return m.settle(ctx, h, now) })
}

// settle applies or discards one held event; errStop if it waits.
func (m *Manager) settle(ctx context.Context, h *broker.HeldSignal, now time.Time) error {
	rule := m.cfg.Rules[h.Transmitter]
	e := Event{
		Transmitter: h.Transmitter, ID: h.ID, Kind: Kind(h.Kind), Issued: h.Issued, At: h.At, Subject: subjectOf(h), Reason: h.Reason,
	}
	s, err := m.stream(ctx, h.Transmitter)
	if err != nil {
		return err
	}
	decided := h.Number < s.Decided
	if !decided || !s.Discarded {
		accounts, known, err := m.find(ctx, rule, e.Subject, now)
		if err != nil {
			return err
		}
		if !decided {
			if err := m.readmit(ctx, rule, e, accounts, now); err != nil {
				return err
			}
		}
		if known {
			if _, err := m.effect(ctx, rule, e, accounts, now); err != nil {
				return err
			}
		}
	}
	_, err = outcomeOf(m.updateStream(ctx, h.Transmitter, []broker.Key{h.HeldSignalKey}, func(tx broker.Tx, s *broker.Stream) error {
		stored, err := broker.Get[*broker.HeldSignal](tx, h.HeldSignalKey)
		switch {
		case err != nil:
			return err
		case !stored.Done.IsZero():
			return &errOutcome{Unchanged} // another process was faster
		}
		stored.Done = now
		tx.Put(stored)
		s.Holding--
		return nil
	}))
	return err
}

// readmit judges an event that was held only because others before it were. It returns
// errStop if the event waits for a person.
func (m *Manager) readmit(ctx context.Context, rule Rule, e Event, accounts []string, now time.Time) error {
	t, err := m.toll(ctx, e, accounts, now)
	if err != nil {
		return err
	}
	var record audit.Record
	waits := false
	err = m.updateStream(ctx, e.Transmitter, nil, func(tx broker.Tx, s *broker.Stream) error {
		waits = !s.Tripped.IsZero()
		if waits {
			return nil
		}
		if !m.exceeds(rule, s, t, now) {
			count(s, t, now)
			return nil
		}
		waits = true
		return m.trip(tx, rule, s, e, t, now, &record)
	})
	if err == nil && waits {
		return errStop
	}
	return err
}
