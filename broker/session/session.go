// Package session has the flows of people's sessions: opening, using, refreshing
// and closing them (session.go), the logins of terminals (terminal.go), logouts
// by the provider (logout.go), and passkeys (passkey.go).
//
// Package attest authenticates a person; package broker decides what the person
// may do. The rows are in package broker, because votes verify passkeys in their
// own transaction.
package session

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// Defaults of Config.
const (
	DefaultIdle  = 30 * time.Minute
	DefaultLasts = 12 * time.Hour
)

// seenEvery is the precision of the time of a session's last use.
const seenEvery = time.Minute

// Config configures a Manager. Store is required.
type Config struct {
	Store broker.Store
	Log   *slog.Logger // nil: discarded

	Idle        time.Duration // a session closes if unused for this long; zero: DefaultIdle
	Lasts       time.Duration // the longest life of a session; zero: DefaultLasts
	PasskeyWait time.Duration // from enrolment until a passkey's signatures count; zero: audit.PasskeyWait, and auditors accept no less

	// NotifiesPeople reports whether people can be notified in person; nil: they
	// cannot.
	NotifiesPeople func() bool

	// State takes what a provider has just claimed about a person, before the claims count;
	// nil: nothing is done.
	State func(ctx context.Context, who broker.Identity, now time.Time) error

	// Ended reports whether the access of a person has ended since the session was created,
	// or had ended before; nil: no one's has.
	Ended func(ctx context.Context, person string, created, now time.Time) (bool, error)

	// People returns the accounts that are linked now; nil: none are.
	People func() broker.People
}

// A Manager opens and closes people's sessions. It is safe for concurrent use.
type Manager struct{ cfg Config }

// New returns a Manager.
func New(cfg Config) (*Manager, error) {
	if cfg.Store == nil {
		return nil, errors.New("sessions need a store")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Idle == 0 {
		cfg.Idle = DefaultIdle
	}
	if cfg.Lasts == 0 {
		cfg.Lasts = DefaultLasts
	}
	if cfg.PasskeyWait == 0 {
		cfg.PasskeyWait = audit.PasskeyWait
	}
	if cfg.People == nil {
		cfg.People = func() broker.People { return broker.People{} }
	}
	if cfg.Ended == nil {
		cfg.Ended = func(context.Context, string, time.Time, time.Time) (bool, error) { return false, nil }
	}
	if cfg.State == nil {
		cfg.State = func(context.Context, broker.Identity, time.Time) error { return nil }
	}
	if cfg.NotifiesPeople == nil {
		cfg.NotifiesPeople = func() bool { return false }
	}
	return &Manager{cfg}, nil
}

// Idle returns how long a session may be unused.
func (m *Manager) Idle() time.Duration { return m.cfg.Idle }

// write appends one record in the transaction f: see broker.Write.
func (m *Manager) write(ctx context.Context, reads []broker.Key, record audit.Record, f func(broker.Tx) error) error {
	_, err := broker.Write(ctx, m.cfg.Store, reads, record, f)
	return err
}

func refuse(err error, detail string) error { return &broker.Refusal{Err: err, Detail: detail} }

func isNotFound(err error) bool { return errors.Is(err, broker.ErrNotFound) }

// ignoreUnchanged treats a transaction that had nothing to change as a success.
func ignoreUnchanged(err error) error {
	if errors.Is(err, broker.ErrUnchanged) {
		return nil
	}
	return err
}

// Open opens a session for a person who has logged in.
func (m *Manager) Open(ctx context.Context, in broker.NewSession, now time.Time) (Token, *broker.Session, error) {
	if in.Who.Kind != broker.KindPerson || in.Who.Person == nil {
		return Token{}, nil, refuse(broker.ErrUnauthenticated, "only people have sessions")
	}
	token, s, err := m.new(in, now)
	if err != nil {
		return Token{}, nil, err
	}
	if err := m.cfg.State(ctx, in.Who, now); err != nil {
		return Token{}, nil, err
	}
	if ended, err := m.ended(ctx, s, now); err != nil || ended {
		return Token{}, nil, cmp.Or(err, refuse(broker.ErrFactEnded, "your access has ended: ask your sponsor"))
	}
	account, blocks := broker.PersonKey(in.Who.ID), m.blocksOf(s)
	record := audit.Record{Kind: audit.SessionOpened, Caller: s.Who.Party()}
	err = m.write(ctx, append(slices.Clone(blocks), account), record, func(tx broker.Tx) error {
		if err := broker.CheckBlocks(tx, blocks); err != nil {
			return err
		}
		a, err := broker.AccountOf(tx, account)
		if err != nil {
			return err
		}
		a.Name, a.Email, a.EmailVerified = in.Who.Person.Name, in.Who.Person.Email, in.Who.Person.EmailVerified
		tx.Put(a)
		tx.Put(s)
		return nil
	})
	return token, s, err
}

func (m *Manager) new(in broker.NewSession, now time.Time) (Token, *broker.Session, error) {
	token := newToken()
	sealed, err := token.seal(in.Tokens)
	if err != nil {
		return Token{}, nil, err
	}
	s := &broker.Session{
		SessionKey: token.key(), Who: in.Who, Client: in.Client, SID: in.SID,
		Created: now, Seen: now, Expires: now.Add(m.cfg.Lasts), Sealed: sealed,
	}
	s.Who.Proof.Method, s.Who.Proof.Expires = broker.MethodSession, s.Expires
	return token, s, nil
}

// errNoSession does not reveal why a token has no open session.
var errNoSession = refuse(broker.ErrUnauthenticated, "your session has ended: log in again")

// Get returns the open session of a token and counts as a use of it. A session
// is open unless it expired, was unused for too long, was closed by its person or
// the provider, or its person is blocked.
func (m *Manager) Get(ctx context.Context, token Token, now time.Time) (*broker.Session, error) {
	s, err := m.Peek(ctx, token, now)
	if err != nil {
		return nil, err
	}
	if now.Sub(s.Seen) > seenEvery {
		s.Seen = now
		m.touch(ctx, s.SessionKey, now)
	}
	return s, nil
}

// Peek is Get without counting as a use.
func (m *Manager) Peek(ctx context.Context, token Token, now time.Time) (s *broker.Session, err error) {
	err = m.cfg.Store.View(ctx, func(tx broker.Tx) (err error) {
		s, err = m.open(tx, token.key(), now)
		return err
	})
	if err != nil {
		return nil, broker.Unavailable(err)
	}
	if ended, err := m.ended(ctx, s, now); err != nil || ended {
		return nil, cmp.Or(err, errNoSession)
	}
	return s, nil
}

// ended reports whether the access of the session's person has ended, with any account. A
// session never revives, also if the person returns.
func (m *Manager) ended(ctx context.Context, s *broker.Session, now time.Time) (bool, error) {
	for _, account := range m.cfg.People().Accounts(s.Who.ID) {
		if ended, err := m.cfg.Ended(ctx, account, s.Created, now); err != nil || ended {
			return ended, err
		}
	}
	return false, nil
}

// open returns a session if it is open. Its transaction must read rowsOf(session).
func (m *Manager) open(tx broker.Tx, key broker.SessionKey, now time.Time) (*broker.Session, error) {
	s, err := broker.Get[*broker.Session](tx, key)
	switch {
	case isNotFound(err):
		return nil, errNoSession
	case err != nil:
		return nil, err
	case !s.Closed.IsZero() || !now.Before(s.Expires) || now.Sub(s.Seen) > m.cfg.Idle:
		return nil, errNoSession
	}
	for _, key := range logoutsOf(s) {
		out, err := broker.Get[*broker.Logout](tx, key)
		switch {
		case isNotFound(err):
		case err != nil:
			return nil, err
		case !out.At.Before(s.Created):
			return nil, errNoSession
		}
	}
	return s, broker.CheckBlocks(tx, m.blocksOf(s))
}

// rowsOf returns the keys of the rows that decide whether a session is open.
func (m *Manager) rowsOf(s *broker.Session) []broker.Key {
	keys := append(m.blocksOf(s), s.SessionKey)
	for _, key := range logoutsOf(s) {
		keys = append(keys, key)
	}
	return keys
}

// blocksOf returns the keys of the blocks of the session's person, with any account.
func (m *Manager) blocksOf(s *broker.Session) (keys []broker.Key) {
	for _, account := range m.cfg.People().Accounts(s.Who.ID) {
		keys = append(keys, broker.BlockKey{Kind: "holder", Name: account})
	}
	return keys
}

// logoutsOf returns the keys of the logouts that would end the session.
func logoutsOf(s *broker.Session) []broker.LogoutKey {
	provider, sub, _ := strings.Cut(s.Who.ID, "/")
	if s.SID == "" {
		return []broker.LogoutKey{subKey(provider, sub), noSIDKey(provider, sub)}
	}
	return []broker.LogoutKey{subKey(provider, sub), sidKey(provider, s.SID)}
}

// touch stores the time of a session's last use. That is not a state change and
// has no record. If it fails, the session merely looks unused a little longer.
func (m *Manager) touch(ctx context.Context, key broker.SessionKey, now time.Time) {
	err := m.cfg.Store.Update(ctx, []broker.Key{key}, func(tx broker.Tx) error {
		s, err := broker.Get[*broker.Session](tx, key)
		if err == nil && now.After(s.Seen) {
			s.Seen = now
			tx.Put(s)
		}
		if isNotFound(err) {
			return nil
		}
		return err
	})
	if err != nil {
		m.cfg.Log.WarnContext(ctx, "storing the last use of a session", "err", err)
	}
}

// Refresh stores the person's claims as the provider has just confirmed them,
// and the provider's new tokens.
func (m *Manager) Refresh(ctx context.Context, caller broker.Caller, token Token, tokens []byte) (*broker.Session, error) {
	who := caller.Subject
	sealed, err := token.seal(tokens)
	if err != nil {
		return nil, err
	}
	if err := m.cfg.State(ctx, who, caller.At); err != nil {
		return nil, err
	}
	s, err := m.Peek(ctx, token, caller.At)
	if err != nil {
		return nil, err
	}
	err = m.cfg.Store.Update(ctx, m.rowsOf(s), func(tx broker.Tx) (err error) {
		switch s, err = m.open(tx, token.key(), caller.At); {
		case err != nil:
			return err
		case s.Who.ID != who.ID || who.Person == nil:
			return errNoSession
		case who.Person.Claimed.Before(s.Who.Person.Claimed):
			return nil // another call has stored newer claims
		}
		s.Who.Person, s.Sealed = who.Person, sealed
		tx.Put(s)
		return nil
	})
	if err != nil {
		return nil, broker.Unavailable(err)
	}
	return s, nil
}

// Close logs a person out. Closing a closed session is no error.
func (m *Manager) Close(ctx context.Context, token Token, now time.Time) error {
	s, err := m.Get(ctx, token, now)
	switch {
	case errors.Is(err, broker.ErrUnauthenticated):
		return nil
	case err != nil && !errors.Is(err, broker.ErrBlocked):
		return err
	}
	record := audit.Record{Kind: audit.SessionClosed, End: &audit.EndFacts{How: "logout"}}
	if s != nil {
		record.Caller = s.Who.Party()
	}
	err = m.write(ctx, []broker.Key{token.key()}, record, func(tx broker.Tx) error {
		s, err := broker.Get[*broker.Session](tx, token.key())
		if err != nil {
			return err
		}
		if !s.Closed.IsZero() {
			return broker.ErrUnchanged
		}
		s.Closed, s.Sealed = now, nil
		tx.Put(s)
		return nil
	})
	if isNotFound(err) {
		return nil
	}
	return ignoreUnchanged(err)
}
