package broker

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"accessbroker.internal/audit"
)

// SessionPrefix begins every session token, so that one that leaked is found
// by those who scan for such.
const SessionPrefix = "abs_"

// Defaults of how long a session lasts.
const (
	SessionIdle  = 30 * time.Minute // unused
	SessionLasts = 12 * time.Hour   // at the latest
)

// Idle is how long a session may be unused.
func (b *Broker) Idle() time.Duration { return b.cfg.SessionIdle }

// seenEvery is how exactly it is known when a session was last used.
const seenEvery = time.Minute

// A SessionToken is what a person's browser or terminal proves itself with. It
// can't be printed or logged by accident.
type SessionToken struct{ text string }

// ParseSessionToken reads a token as it was presented; false: it is none.
func ParseSessionToken(text string) (SessionToken, bool) {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(strings.TrimPrefix(text, SessionPrefix))
	return SessionToken{text}, err == nil && len(raw) == sha256.Size && strings.HasPrefix(text, SessionPrefix)
}

func newSessionToken() SessionToken {
	raw := make([]byte, sha256.Size)
	_, _ = rand.Read(raw) // never fails
	return SessionToken{SessionPrefix + base64.RawURLEncoding.EncodeToString(raw)}
}

// Reveal gives the text, on its way to its holder.
func (t SessionToken) Reveal() string { return t.text }

// String hides the token.
func (SessionToken) String() string { return "[session]" }

// GoString hides the token.
func (SessionToken) GoString() string { return "[session]" }

// MarshalText hides the token.
func (SessionToken) MarshalText() ([]byte, error) { return []byte("[session]"), nil }

func (t SessionToken) key() SessionKey { return sha256.Sum256([]byte(t.text)) }

// aead seals what only the holder of the token can open again.
func (t SessionToken) aead() (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, []byte(t.text), nil, "accessbroker/session-seal/v1", SealKeySize)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// seal encrypts what the provider gave, with a key that lies nowhere.
func (t SessionToken) seal(secret []byte) ([]byte, error) {
	if len(secret) == 0 {
		return nil, nil
	}
	aead, err := t.aead()
	if err != nil {
		return nil, fmt.Errorf("sealing a session: %w", err)
	}
	return aead.Seal(nil, nil, secret, nil), nil
}

// unseal decrypts what seal made.
func (t SessionToken) unseal(sealed []byte) ([]byte, error) {
	if len(sealed) == 0 {
		return nil, nil
	}
	aead, err := t.aead()
	if err != nil {
		return nil, fmt.Errorf("unsealing a session: %w", err)
	}
	return aead.Open(nil, nil, sealed, nil)
}

// What a session is for.
const (
	ClientBrowser  = "browser"
	ClientTerminal = "terminal"
)

// A LoggedIn is a person whom a provider has just proved.
type LoggedIn struct {
	Who    Identity
	SID    string // of the provider's own session; may be empty
	Client string // ClientBrowser, ClientTerminal
	Tokens []byte // the provider's, to ask it again; secret
}

// OpenSession opens a session for a person who logged in.
func (b *Broker) OpenSession(ctx context.Context, in LoggedIn, now time.Time) (SessionToken, *Session, error) {
	if in.Who.Kind != KindPerson || in.Who.Person == nil {
		return SessionToken{}, nil, refuse(ErrUnauthenticated, "only people have sessions")
	}
	token, s, err := b.newSession(in, now)
	if err != nil {
		return SessionToken{}, nil, err
	}
	account, blocked := PersonKey(in.Who.ID), BlockKey{"holder", in.Who.ID}
	_, err = b.write(ctx, []Key{account, blocked}, audit.Record{Kind: audit.SessionOpened, Caller: s.Who.Party()}, func(tx Tx) error {
		if err := CheckBlocks(tx, []BlockKey{blocked}); err != nil {
			return err
		}
		a, err := AccountOf(tx, account)
		if err != nil {
			return err
		}
		a.Name, a.Email = in.Who.Person.Name, in.Who.Person.Email
		tx.Put(a)
		tx.Put(s)
		return nil
	})
	return token, s, err
}

func (b *Broker) newSession(in LoggedIn, now time.Time) (SessionToken, *Session, error) {
	token := newSessionToken()
	sealed, err := token.seal(in.Tokens)
	if err != nil {
		return SessionToken{}, nil, err
	}
	s := &Session{
		SessionKey: token.key(), Who: in.Who, Client: in.Client, SID: in.SID,
		Created: now, Seen: now, Expires: now.Add(b.cfg.SessionLasts), Sealed: sealed,
	}
	s.Who.Proof.Method, s.Who.Proof.Expires = MethodSession, s.Expires
	return token, s, nil
}

// AccountOf returns the account of a person, or a new one.
func AccountOf(tx Tx, key PersonKey) (*Account, error) {
	a, err := Get[*Account](tx, key)
	if isNotFound(err) {
		return &Account{Person: key}, nil
	}
	return a, err
}

// errNoSession is the same for whatever is wrong with a session.
var errNoSession = refuse(ErrUnauthenticated, "your session has ended: log in again")

// Session gives the session of a token, if it is open: not closed, not logged
// out by its provider, used within the idle time, and of nobody who is blocked.
func (b *Broker) Session(ctx context.Context, token SessionToken, now time.Time) (*Session, error) {
	s, err := b.Glance(ctx, token, now)
	if err != nil {
		return nil, err
	}
	if now.Sub(s.Seen) > seenEvery {
		s.Seen = now
		b.touch(ctx, s.SessionKey, now)
	}
	return s, nil
}

// Glance is Session, and does not count as a use of it.
func (b *Broker) Glance(ctx context.Context, token SessionToken, now time.Time) (s *Session, err error) {
	err = b.cfg.Store.View(ctx, func(tx Tx) (err error) {
		s, err = b.openSession(tx, token.key(), now)
		return err
	})
	if err != nil {
		return nil, Unavailable(err)
	}
	return s, nil
}

func (b *Broker) openSession(tx Tx, key SessionKey, now time.Time) (*Session, error) {
	s, err := Get[*Session](tx, key)
	switch {
	case isNotFound(err):
		return nil, errNoSession
	case err != nil:
		return nil, err
	case !s.Closed.IsZero() || !now.Before(s.Expires) || now.Sub(s.Seen) > b.cfg.SessionIdle:
		return nil, errNoSession
	}
	for _, key := range s.logoutKeys() {
		out, err := Get[*Logout](tx, key)
		switch {
		case isNotFound(err):
		case err != nil:
			return nil, err
		case !out.At.Before(s.Created):
			return nil, errNoSession
		}
	}
	return s, CheckBlocks(tx, []BlockKey{{"holder", s.Who.ID}})
}

// logoutKeys name the rows by which a provider would have ended the session.
func (s *Session) logoutKeys() []LogoutKey {
	provider, sub, _ := strings.Cut(s.Who.ID, "/")
	if s.SID == "" {
		return []LogoutKey{{provider, "sub", sub}, {provider, "no sid", sub}}
	}
	return []LogoutKey{{provider, "sub", sub}, {provider, "sid", s.SID}}
}

// rows name what says whether the session is open.
func (s *Session) rows() []Key {
	keys := []Key{s.SessionKey, BlockKey{"holder", s.Who.ID}}
	for _, key := range s.logoutKeys() {
		keys = append(keys, key)
	}
	return keys
}

// touch notes that a session is in use. That is no change of state, and has no
// record; if it fails, the session merely counts as unused for a little longer.
func (b *Broker) touch(ctx context.Context, key SessionKey, now time.Time) {
	err := b.cfg.Store.Update(ctx, []Key{key}, func(tx Tx) error {
		s, err := Get[*Session](tx, key)
		if err == nil && now.After(s.Seen) {
			s.Seen = now
			tx.Put(s)
		}
		return ignoreNotFound(err)
	})
	if err != nil {
		b.cfg.Log.WarnContext(ctx, "the use of a session was not noted", "err", err)
	}
}

// Refreshed puts what a provider says of the person now into its session, with
// the provider's tokens that it gave with it.
func (b *Broker) Refreshed(ctx context.Context, caller Caller, token SessionToken, tokens []byte) (*Session, error) {
	sealed, err := token.seal(tokens)
	if err != nil {
		return nil, err
	}
	s, err := b.Glance(ctx, token, caller.At)
	if err != nil {
		return nil, err
	}
	err = b.cfg.Store.Update(ctx, s.rows(), func(tx Tx) (err error) {
		switch s, err = b.openSession(tx, token.key(), caller.At); {
		case err != nil:
			return err
		case s.Who.ID != caller.Subject.ID || caller.Subject.Person == nil:
			return errNoSession
		case caller.Subject.Person.Claimed.Before(s.Who.Person.Claimed):
			return nil // somebody asked later, and was faster
		}
		s.Who.Person, s.Sealed = caller.Subject.Person, sealed
		tx.Put(s)
		return nil
	})
	if err != nil {
		return nil, Unavailable(err)
	}
	return s, nil
}

// ClaimsAge says how old what the provider said of the person is, and whether
// that is too old to go by: some group has members by what providers say.
func (b *Broker) ClaimsAge(caller Caller) (age time.Duration, stale bool) {
	if caller.Subject.Person == nil {
		return 0, false
	}
	age = caller.At.Sub(caller.Subject.Person.Claimed)
	if rules := b.rules.Load(); rules != nil && age > ClaimsFor {
		for _, g := range rules.Groups {
			stale = stale || g.Claimed
		}
	}
	return age, stale
}

// ProviderTokens gives what Refreshed and OpenSession sealed, to the holder of
// the session.
func (s *Session) ProviderTokens(token SessionToken) ([]byte, error) { return token.unseal(s.Sealed) }

// CloseSession logs a person out. Closing what is closed is no error.
func (b *Broker) CloseSession(ctx context.Context, token SessionToken, now time.Time) error {
	s, err := b.Session(ctx, token, now)
	switch {
	case errors.Is(err, ErrUnauthenticated):
		return nil
	case err != nil && !errors.Is(err, ErrBlocked):
		return err
	}
	record := audit.Record{Kind: audit.SessionClosed, End: &audit.EndFacts{How: "logout"}}
	if s != nil {
		record.Caller = s.Who.Party()
	}
	_, err = b.write(ctx, []Key{token.key()}, record, func(tx Tx) error {
		s, err := Get[*Session](tx, token.key())
		if err != nil {
			return err
		}
		if !s.Closed.IsZero() {
			return ErrUnchanged
		}
		s.Closed, s.Sealed = now, nil
		tx.Put(s)
		return nil
	})
	if errors.Is(err, ErrUnchanged) || isNotFound(err) {
		return nil
	}
	return err
}

// Times of a provider's word that it logged somebody out.
const (
	LogoutFor    = 5 * time.Minute // how old it may be
	logoutLeeway = time.Minute     // that the provider's clock may be behind
)

// A LogoutWord is a provider's word that it logged somebody out (OpenID Connect
// Back-Channel Logout 1.0): all of a person, or one session of its own.
type LogoutWord struct {
	Provider string
	Sub, SID string    // one may be empty
	ID       string    // the word's own; it counts once
	Issued   time.Time // by the provider's clock
}

// LoggedOut ends the sessions that a provider logged out, which are those that
// were opened before it said so. The same word again changes nothing, or
// whoever saw one could end what its person opens later (section 2.6).
func (b *Broker) LoggedOut(ctx context.Context, word LogoutWord, now time.Time) error {
	var out []LogoutKey
	record := audit.Record{Kind: audit.SessionClosed, End: &audit.EndFacts{How: "provider"}}
	if word.Sub != "" {
		record.Subject = &audit.Party{ID: word.Provider + "/" + word.Sub, Kind: string(KindPerson)}
	}
	switch {
	case word.ID == "" || now.Sub(word.Issued) > LogoutFor:
		return refuse(ErrInvalidRequest, "a logout has an id, and is of now")
	case word.SID != "" && word.Sub != "": // of sessions without a sid nobody can tell whether they are meant
		out = []LogoutKey{{word.Provider, "sid", word.SID}, {word.Provider, "no sid", word.Sub}}
	case word.SID != "":
		out = []LogoutKey{{word.Provider, "sid", word.SID}}
	case word.Sub != "":
		out = []LogoutKey{{word.Provider, "sub", word.Sub}}
	default:
		return refuse(ErrInvalidRequest, "a logout names sub or sid")
	}
	at := word.Issued.Add(logoutLeeway)
	if now.Before(at) {
		at = now
	}
	sum := sha256.Sum256([]byte(word.ID))
	said := LogoutKey{word.Provider, "jti", base64.RawURLEncoding.EncodeToString(sum[:])}
	reads := []Key{said}
	for _, key := range out {
		reads = append(reads, key)
	}
	_, err := b.write(ctx, reads, record, func(tx Tx) error {
		switch _, err := Get[*Logout](tx, said); {
		case err == nil:
			return ErrUnchanged
		case !isNotFound(err):
			return err
		}
		tx.Put(&Logout{LogoutKey: said, At: now, Expires: now.Add(2 * LogoutFor)})
		for _, key := range out {
			if err := logOut(tx, key, at, at.Add(b.cfg.SessionLasts)); err != nil {
				return err
			}
		}
		return nil
	})
	if errors.Is(err, ErrUnchanged) {
		return nil
	}
	return err
}

// logOut notes a logout, which never takes back a later one.
func logOut(tx Tx, key LogoutKey, at, expires time.Time) error {
	old, err := Get[*Logout](tx, key)
	switch {
	case err != nil && !isNotFound(err):
		return err
	case err == nil && !at.After(old.At):
		return nil
	}
	tx.Put(&Logout{LogoutKey: key, At: at, Expires: expires})
	return nil
}
