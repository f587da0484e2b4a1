package broker

import (
	"time"

	"accessbroker.internal/audit"
)

// The rows of people's sessions and logins. Package session has their flows.

// A SessionKey is the SHA-256 of a session's token. The token is not stored.
type SessionKey [32]byte

// A Session is a person's session. Who.Proof.Expires is its latest end.
type Session struct {
	SessionKey
	Who     Identity
	Client  string    // ClientBrowser or ClientTerminal
	SID     string    // the provider's session id; may be empty
	Created time.Time // when the person logged in; a terminal's session inherits it from the browser's
	Seen    time.Time // when it was last used, to about a minute
	Expires time.Time
	Closed  time.Time // when the person logged out; zero: open
	Sealed  []byte    // the provider's tokens, sealed by the session's token
}

// A LogoutKey names the person or the provider session that was logged out.
type LogoutKey struct {
	Provider string
	Claim    string // "sub", "sid"
	Value    string
}

// A Logout ends every matching session that was opened before it.
type Logout struct {
	LogoutKey
	At      time.Time
	Expires time.Time // when every session that it ends has expired
}

// A LoginKey is the SHA-256 of a code that leads to a session.
type LoginKey [32]byte

// A Login is the login of a terminal, which its person completes in a browser.
type Login struct {
	LoginKey
	Kind      LoginKind
	State     LoginState
	Challenge audit.Digest // of LoginCode: SHA-256 of the terminal's verifier (RFC 7636)
	Device    LoginKey     // of LoginUserCode: the device's
	By        SessionKey   // the session that approved it
	From      string       // the terminal's address, shown to the person
	Created   time.Time
	Polled    time.Time
	Expires   time.Time
}

// LoginKind is the kind of a login's code.
type LoginKind string

// The kinds of codes.
const (
	LoginCode     LoginKind = "code"      // the browser redirects with it to the loopback interface (RFC 8252)
	LoginDevice   LoginKind = "device"    // the terminal polls with it (RFC 8628)
	LoginUserCode LoginKind = "user_code" // the person types it
)

// LoginState is the state of a login.
type LoginState string

// The states of a login.
const (
	LoginWaiting  LoginState = "waiting"
	LoginApproved LoginState = "approved"
	LoginRefused  LoginState = "refused"
	LoginUsed     LoginState = "used"
)

func (SessionKey) isKey() {}
func (LogoutKey) isKey()  {}
func (LoginKey) isKey()   {}

// Key returns the row's key.
func (s *Session) Key() Key { return s.SessionKey }

// Key returns the row's key.
func (l *Logout) Key() Key { return l.LogoutKey }

// Key returns the row's key.
func (l *Login) Key() Key { return l.LoginKey }

// The clients that have sessions.
const (
	ClientBrowser  = "browser"
	ClientTerminal = "terminal"
)

// A NewSession describes a session to open for a person whom a provider has just
// authenticated.
type NewSession struct {
	Who    Identity
	SID    string // the provider's session id; may be empty
	Client string // ClientBrowser or ClientTerminal
	Tokens []byte // the provider's tokens, for refreshing claims; secret
}

// A LogoutToken is a provider's verified statement that it logged out a person or
// one of its sessions (OpenID Connect Back-Channel Logout 1.0).
type LogoutToken struct {
	Provider string
	Sub, SID string    // one may be empty
	ID       string    // its jti; a token counts once
	Issued   time.Time // by the provider's clock
}

// LogoutFor is how old a logout token may be.
const LogoutFor = 5 * time.Minute
