package broker

import (
	"time"

	"accessbroker.internal/audit"
)

// The rows of people: their sessions, what it takes to get one, their passkeys.

// A SessionKey is the SHA-256 of a session's token, which is stored nowhere.
type SessionKey [32]byte

// A Session is a person's stay with the broker. Who.Proof.Expires is its end at
// the latest.
type Session struct {
	SessionKey
	Who     Identity
	Client  string    // ClientBrowser, ClientTerminal
	SID     string    // the provider's id of its own session; empty: it has none
	Created time.Time // when its person logged in; a terminal's is that of the browser's session
	Seen    time.Time // about when it was last used
	Expires time.Time
	Closed  time.Time // by logging out; zero: open
	Sealed  []byte    // the provider's tokens, sealed by the session's token
}

// A LogoutKey names whom, or which of its sessions, a provider logged out.
type LogoutKey struct {
	Provider string
	Claim    string // "sub", "sid"
	Value    string
}

// A Logout ends every session that was opened before it.
type Logout struct {
	LogoutKey
	At      time.Time
	Expires time.Time // when no session is older
}

// A LoginKey is the SHA-256 of a code that leads to a session.
type LoginKey [32]byte

// A Login is the login of a terminal, which takes place in a browser.
type Login struct {
	LoginKey
	Kind      LoginKind
	State     LoginState
	Challenge audit.Digest // of LoginCode: SHA-256 of the terminal's verifier (RFC 7636)
	Device    LoginKey     // of LoginUserCode: the device's
	By        SessionKey   // once approved: the session in which it was
	From      string       // the address that the terminal called from, shown to the person
	Created   time.Time
	Polled    time.Time
	Expires   time.Time
}

// LoginKind says what a login's code is.
type LoginKind string

// The kinds of codes.
const (
	LoginCode     LoginKind = "code"      // came by the browser's redirect to the loopback interface (RFC 8252)
	LoginDevice   LoginKind = "device"    // polled for (RFC 8628)
	LoginUserCode LoginKind = "user_code" // typed in by the person
)

// LoginState is how far a login got.
type LoginState string

// The states of a login.
const (
	LoginWaiting  LoginState = "waiting"
	LoginApproved LoginState = "approved"
	LoginRefused  LoginState = "refused"
	LoginUsed     LoginState = "used"
)

// A PersonKey is a person's ID.
type PersonKey string

// An Account is what the broker keeps of a person.
type Account struct {
	Person   PersonKey
	Name     string // as of the last login, for display
	Email    string
	Passkeys []Passkey
}

// A Passkey is a WebAuthn credential that a person signs approvals with.
type Passkey struct {
	ID        []byte
	Public    []byte // SubjectPublicKeyInfo, in DER
	RP        string // the relying party's id that it is for
	SignCount uint32
	Name      string
	Enrolled  time.Time
	Counts    time.Time // from when its signatures count
	VouchedBy string    // who signed for it, so that it counted earlier
	Removed   time.Time
}

func (SessionKey) isKey() {}
func (LogoutKey) isKey()  {}
func (LoginKey) isKey()   {}
func (PersonKey) isKey()  {}

// Key gives the row's key.
func (s *Session) Key() Key { return s.SessionKey }

// Key gives the row's key.
func (l *Logout) Key() Key { return l.LogoutKey }

// Key gives the row's key.
func (l *Login) Key() Key { return l.LoginKey }

// Key gives the row's key.
func (a *Account) Key() Key { return a.Person }
