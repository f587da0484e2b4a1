package signal

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/broker/session"
)

// A Rule is the operator's rule for a transmitter.
type Rule struct {
	Provider string        // whose people its events may be about
	StreamID string        // of events about the stream; empty: any
	MaxAge   time.Duration // of an event
	Verified bool          // only events show that the stream works, and answered polls do not

	// A person must decide if the events of a minute would end more than MostPercent of all
	// leases, or the access of more than MostPercent of all people, unless these are not
	// more than Always.
	MostPercent, Always int
	Page                string // the group that is notified then; empty: none
}

// Source returns the name under which a transmitter states facts.
func Source(transmitter string) string { return "ssf:" + transmitter }

// A Reader reads rows that have no key that the caller knows.
type Reader interface {
	// Held returns the waiting events of a transmitter in their order, after a number.
	Held(ctx context.Context, transmitter string, after int64, limit int) ([]*broker.HeldSignal, error)
	// CountPeople returns the number of people who ever logged in.
	CountPeople(ctx context.Context) (int64, error)
	// CountLive returns the number of leases whose credentials may work.
	CountLive(ctx context.Context, now time.Time) (int64, error)
	// HasSession reports whether a session of a provider has this session id.
	HasSession(ctx context.Context, provider, sid string, now time.Time) (bool, error)
	// AccountsByEmail returns the people of a provider by their addresses.
	AccountsByEmail(ctx context.Context, provider string) (map[string][]string, error)
}

// Config configures a Manager. All fields are required.
type Config struct {
	Store    broker.Store
	Reader   Reader
	Broker   *broker.Broker
	Sessions *session.Manager
	Rules    map[string]Rule // by transmitter
	Log      *slog.Logger
}

// A Manager applies the events of transmitters. It is safe for concurrent use.
type Manager struct {
	cfg    Config
	seed   maphash.Seed
	people [64]sync.Mutex // events about one person are applied one after the other
	drain  sync.Mutex     // held while held events are applied

	mu    sync.Mutex
	heard map[string]time.Time // when the stream of a transmitter was last known to work; guarded by mu
	held  map[string]int       // events that wait, as of the last pass; guarded by mu

	reading sync.Mutex           // held while addresses are read
	emails  map[string]addresses // by provider; guarded by reading
}

// addresses are the accounts of a provider by address, as of a time.
type addresses struct {
	read     time.Time
	accounts map[string][]string
}

// New returns a Manager.
func New(cfg Config) *Manager {
	return &Manager{cfg: cfg, seed: maphash.MakeSeed(), heard: map[string]time.Time{}, held: map[string]int{}, emails: map[string]addresses{}}
}

var errNoTransmitter = errors.New("the transmitter is not configured")

// Apply applies an event. An error means that the broker is at fault and the event must
// be delivered again.
//
// The order of the durable steps: first the events of the minute are counted, then the
// event takes effect, and then it counts as seen. After a crash in between, it is delivered
// again, and its effect is the same.
func (m *Manager) Apply(ctx context.Context, e Event, now time.Time) (Outcome, error) {
	rule, ok := m.cfg.Rules[e.Transmitter]
	if !ok {
		return Failed, errNoTransmitter
	}
	switch e.Kind {
	case KindVerification:
		return m.verified(ctx, rule, e, now)
	case KindStreamUpdated:
		return m.streamUpdated(ctx, rule, e, now)
	}
	switch seen, err := m.seen(ctx, e); {
	case err != nil:
		return Failed, err
	case seen:
		return Replayed, nil
	}
	accounts, known, err := m.find(ctx, rule, e.Subject, now)
	switch {
	case err != nil:
		return Failed, err
	case !known:
		return UnknownSubject, nil
	}
	outcome, err := m.admit(ctx, rule, e, accounts, now)
	if err != nil || outcome == Replayed || outcome == Full {
		return outcome, err
	}
	if outcome != Held {
		if outcome, err = m.effect(ctx, rule, e, accounts, now); err != nil {
			return Failed, err
		}
		if err := m.remember(ctx, rule, e, now); err != nil {
			return Failed, err
		}
	}
	return outcome, m.confirm(ctx, e.Transmitter, now)
}

// keyOf returns the key by which an event is remembered.
func keyOf(e Event) broker.SignalKey {
	sum := sha256.Sum256([]byte(e.ID))
	return broker.SignalKey{Transmitter: e.Transmitter, ID: base64.RawURLEncoding.EncodeToString(sum[:])}
}

func (m *Manager) seen(ctx context.Context, e Event) (seen bool, err error) {
	err = m.cfg.Store.View(ctx, func(tx broker.Tx) error {
		_, err := broker.Get[*broker.Signal](tx, keyOf(e))
		seen = err == nil
		return ignoreNotFound(err)
	})
	return seen, broker.Unavailable(err)
}

func ignoreNotFound(err error) error {
	if errors.Is(err, broker.ErrNotFound) {
		return nil
	}
	return err
}

// memory returns the row by which an event counts as seen. It lasts for longer than the
// event would be accepted.
func (r Rule) memory(e Event, now time.Time) *broker.Signal {
	return &broker.Signal{SignalKey: keyOf(e), Seen: now, Expires: now.Add(r.MaxAge + time.Hour)}
}

func (m *Manager) remember(ctx context.Context, rule Rule, e Event, now time.Time) error {
	return broker.Unavailable(m.cfg.Store.Update(ctx, nil, func(tx broker.Tx) error {
		tx.Put(rule.memory(e, now))
		return nil
	}))
}

// find returns the accounts that a subject names, of those that the broker knows. known is
// false if it knows neither an account nor the session.
func (m *Manager) find(ctx context.Context, rule Rule, s Subject, now time.Time) (accounts []string, known bool, err error) {
	candidates := []string{s.Account}
	switch {
	case s.Account == "" && s.Email == "":
		known, err = m.cfg.Reader.HasSession(ctx, rule.Provider, s.SID, now)
		return nil, known, err
	case s.Account == "":
		if candidates, err = m.byEmail(ctx, rule.Provider, s.Email, now); err != nil {
			return nil, false, err
		}
	}
	for _, account := range candidates {
		is, err := m.knows(ctx, account)
		if err != nil {
			return nil, false, err
		}
		if is {
			accounts = append(accounts, account)
		}
	}
	return accounts, len(accounts) > 0, nil
}

// knows reports whether a person ever logged in, or is named by the rules or by a source of
// facts. Without this, a transmitter could fill the database with people who have no
// access.
func (m *Manager) knows(ctx context.Context, account string) (bool, error) {
	rules := m.cfg.Broker.Rules()
	for _, g := range rules.Groups {
		if slices.Contains(g.Members, account) {
			return true, nil
		}
	}
	for _, l := range rules.Labels {
		if slices.Contains(l.Accountable, account) {
			return true, nil
		}
	}
	if len(rules.People.Accounts(account)) > 1 {
		return true, nil
	}
	if _, err := m.cfg.Broker.Facts.Standing(ctx, person(account)); err == nil || !errors.Is(err, broker.ErrNotFound) {
		return err == nil, err
	}
	known := false
	err := m.cfg.Store.View(ctx, func(tx broker.Tx) error {
		_, err := broker.Get[*broker.Account](tx, broker.PersonKey(account))
		known = err == nil
		return ignoreNotFound(err)
	})
	return known, broker.Unavailable(err)
}

func person(account string) broker.StandingKey {
	return broker.StandingKey{Kind: broker.FactPerson, Name: account}
}

const (
	emailsFresh = 10 * time.Second // how long addresses are used without reading them again
	emailsMiss  = time.Second      // the same for an address that no account has
)

// byEmail returns the accounts with an address, whatever its case: providers and transmitters
// spell addresses differently. If several have it, the event is about all of them: a person
// who claims the address of another one must not keep it from ending.
func (m *Manager) byEmail(ctx context.Context, provider, email string, now time.Time) ([]string, error) {
	email = strings.ToLower(email)
	m.reading.Lock()
	defer m.reading.Unlock()
	known := m.emails[provider]
	accounts := known.accounts[email]
	if age := now.Sub(known.read); age > emailsFresh || len(accounts) == 0 && age > emailsMiss || age < 0 {
		list, err := m.cfg.Reader.AccountsByEmail(ctx, provider)
		if err != nil {
			return nil, err
		}
		known = addresses{now, map[string][]string{}}
		for address, of := range list {
			address = strings.ToLower(address)
			known.accounts[address] = append(known.accounts[address], of...)
		}
		m.emails[provider] = known
		accounts = known.accounts[email]
	}
	return accounts, nil
}

// Heard notes that the transmitter answered a poll.
func (m *Manager) Heard(ctx context.Context, transmitter string, now time.Time) error {
	if m.cfg.Rules[transmitter].Verified {
		return nil
	}
	return m.confirm(ctx, transmitter, now)
}

// confirm notes that a transmitter's stream works, unless the transmitter has stopped it.
func (m *Manager) confirm(ctx context.Context, transmitter string, now time.Time) error {
	s, err := m.stream(ctx, transmitter)
	if err != nil || s.Status != "" && s.Status != streamEnabled {
		return err
	}
	m.mu.Lock()
	m.heard[transmitter] = now
	m.mu.Unlock()
	if err := m.cfg.Broker.Facts.Confirm(ctx, Source(transmitter), now); err != nil {
		return fmt.Errorf("confirming the facts of %s: %w", transmitter, err)
	}
	return nil
}

func (m *Manager) stream(ctx context.Context, transmitter string) (s *broker.Stream, err error) {
	err = m.cfg.Store.View(ctx, func(tx broker.Tx) (err error) {
		s, err = streamOf(tx, transmitter)
		return err
	})
	return s, broker.Unavailable(err)
}

// streamOf returns the state of a transmitter's stream, or a new one.
func streamOf(tx broker.Tx, transmitter string) (*broker.Stream, error) {
	s, err := broker.Get[*broker.Stream](tx, broker.StreamKey(transmitter))
	if errors.Is(err, broker.ErrNotFound) {
		return &broker.Stream{StreamKey: broker.StreamKey(transmitter), Next: 1}, nil
	}
	return s, err
}
