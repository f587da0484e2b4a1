package session

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"strings"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// A terminal gets a session when its person, logged in with a browser, allows it
// there. Either the browser passes a code to the terminal on the loopback
// interface (RFC 8252, section 7.3, with PKCE), or the person types a code that
// the terminal shows (RFC 8628).

// Lifetimes of a terminal's login.
const (
	loginCodeFor   = time.Minute
	loginDeviceFor = 10 * time.Minute
	// PollEvery is the shortest time between two polls of a terminal.
	PollEvery = 2 * time.Second
)

// newCode returns a random code. Only its hash is stored.
func newCode() string {
	raw := make([]byte, 32)
	_, _ = rand.Read(raw) // never fails
	return base64.RawURLEncoding.EncodeToString(raw)
}

// userCodeLetters are easy to distinguish and form no words (RFC 8628, section 6.1).
const userCodeLetters = "BCDFGHJKLMNPQRSTVWXZ"

// newUserCode returns a code of 34 bits. That suffices because it is valid for ten
// minutes and only logged-in people may try codes, at a limited rate.
func newUserCode() string {
	raw := make([]byte, 8)
	for i := range raw {
		for {
			var one [1]byte
			_, _ = rand.Read(one[:]) // never fails
			if int(one[0]) < 256-256%len(userCodeLetters) {
				raw[i] = userCodeLetters[int(one[0])%len(userCodeLetters)]
				break
			}
		}
	}
	return string(raw[:4]) + "-" + string(raw[4:])
}

func loginKey(kind broker.LoginKind, code string) broker.LoginKey {
	return sha256.Sum256([]byte("accessbroker/login/v1\n" + string(kind) + "\n" + code))
}

// userKey accepts lower-case letters, spaces and a missing dash.
func userKey(code string) broker.LoginKey {
	code = strings.ToUpper(strings.Map(func(r rune) rune {
		if r == '-' || r == ' ' {
			return -1
		}
		return r
	}, code))
	return loginKey(broker.LoginUserCode, code)
}

// A DeviceLogin has the code that a terminal shows and the one it polls with.
type DeviceLogin struct {
	DeviceCode string
	UserCode   string
	Expires    time.Time
}

// BeginDevice starts the login of a terminal that cannot open a browser. from is the
// terminal's address, which its person is shown.
func (m *Manager) BeginDevice(ctx context.Context, from string, now time.Time) (DeviceLogin, error) {
	d := DeviceLogin{newCode(), newUserCode(), now.Add(loginDeviceFor)}
	device, user := loginKey(broker.LoginDevice, d.DeviceCode), userKey(d.UserCode)
	err := m.cfg.Store.Update(ctx, []broker.Key{user}, func(tx broker.Tx) error {
		if _, err := broker.Get[*broker.Login](tx, user); !isNotFound(err) {
			return refuse(broker.ErrSlowDown, "try again") // a collision among 25 billion codes
		}
		tx.Put(&broker.Login{LoginKey: device, Kind: broker.LoginDevice, State: broker.LoginWaiting, From: from, Created: now, Expires: d.Expires})
		tx.Put(&broker.Login{LoginKey: user, Kind: broker.LoginUserCode, Device: device, State: broker.LoginWaiting, From: from, Created: now, Expires: d.Expires})
		return nil
	})
	return d, broker.Unavailable(err)
}

// errNoCode does not reveal why a code is not accepted.
var errNoCode = refuse(broker.ErrNotFound, "this code is unknown, used or expired: start again")

// Device returns the login of a user code.
func (m *Manager) Device(ctx context.Context, userCode string, now time.Time) (*broker.Login, error) {
	var l *broker.Login
	err := m.cfg.Store.View(ctx, func(tx broker.Tx) (err error) {
		l, err = waitingLogin(tx, userKey(userCode), now)
		return err
	})
	return l, broker.Unavailable(err)
}

func waitingLogin(tx broker.Tx, key broker.LoginKey, now time.Time) (*broker.Login, error) {
	l, err := broker.Get[*broker.Login](tx, key)
	if isNotFound(err) || err == nil && (!now.Before(l.Expires) || l.State != broker.LoginWaiting) {
		return nil, errNoCode
	}
	return l, err
}

// mayAllowTerminal refuses sessions that may not allow a terminal. Only a browser's
// session may, because its person has just confirmed it on a page. A terminal's
// session cannot create further sessions.
func mayAllowTerminal(s *broker.Session) error {
	if s.Client != broker.ClientBrowser {
		return refuse(broker.ErrSessionRequired, "a terminal must be allowed in a browser: log in there")
	}
	return nil
}

// DecideDevice allows or refuses the terminal that shows the code.
func (m *Manager) DecideDevice(ctx context.Context, in *broker.Session, userCode string, allow bool, now time.Time) error {
	if err := mayAllowTerminal(in); err != nil {
		return err
	}
	seen, err := m.Device(ctx, userCode, now)
	if err != nil {
		return err
	}
	err = m.cfg.Store.Update(ctx, []broker.Key{seen.LoginKey, seen.Device}, func(tx broker.Tx) error {
		user, err := waitingLogin(tx, seen.LoginKey, now)
		if err != nil {
			return err
		}
		device, err := waitingLogin(tx, seen.Device, now)
		if err != nil {
			return err
		}
		user.State, device.State = broker.LoginUsed, broker.LoginRefused
		if allow {
			device.State, device.By = broker.LoginApproved, in.SessionKey
		}
		tx.Put(user)
		tx.Put(device)
		return nil
	})
	return broker.Unavailable(err)
}

// NewLoginCode returns a code for a terminal on the loopback interface. The terminal
// redeems it with the verifier of the PKCE challenge.
func (m *Manager) NewLoginCode(ctx context.Context, in *broker.Session, challenge audit.Digest, now time.Time) (string, error) {
	if err := mayAllowTerminal(in); err != nil {
		return "", err
	}
	code := newCode()
	l := &broker.Login{
		LoginKey: loginKey(broker.LoginCode, code), Kind: broker.LoginCode, State: broker.LoginApproved, Challenge: challenge,
		By: in.SessionKey, Created: now, Expires: now.Add(loginCodeFor),
	}
	err := m.cfg.Store.Update(ctx, nil, func(tx broker.Tx) error { tx.Put(l); return nil })
	return code, broker.Unavailable(err)
}

// RedeemCode exchanges a code and its verifier (RFC 7636, S256) for a terminal's
// session. A code works once.
func (m *Manager) RedeemCode(ctx context.Context, code, verifier string, now time.Time) (Token, *broker.Session, error) {
	key, challenge := loginKey(broker.LoginCode, code), sha256.Sum256([]byte(verifier))
	return m.redeem(ctx, key, now, func(l *broker.Login) error {
		if subtle.ConstantTimeCompare(l.Challenge[:], challenge[:]) != 1 {
			return errNoCode
		}
		return nil
	})
}

// RedeemDevice exchanges a device code for a terminal's session once the person has
// allowed it. Until then it returns ErrPending or ErrSlowDown.
func (m *Manager) RedeemDevice(ctx context.Context, deviceCode string, now time.Time) (Token, *broker.Session, error) {
	key := loginKey(broker.LoginDevice, deviceCode)
	if err := m.polled(ctx, key, now); err != nil {
		return Token{}, nil, err
	}
	return m.redeem(ctx, key, now, func(*broker.Login) error { return nil })
}

// polled returns nil once a device's login can be redeemed, and bounds the rate of
// polling (RFC 8628, section 3.5). Polling too often writes nothing.
func (m *Manager) polled(ctx context.Context, key broker.LoginKey, now time.Time) error {
	err := m.cfg.Store.View(ctx, func(tx broker.Tx) error {
		_, err := pollable(tx, key, now)
		return err
	})
	if !errors.Is(err, broker.ErrPending) {
		return broker.Unavailable(err)
	}
	noted := m.cfg.Store.Update(ctx, []broker.Key{key}, func(tx broker.Tx) error {
		l, err := pollable(tx, key, now)
		if !errors.Is(err, broker.ErrPending) {
			return err
		}
		l.Polled = now
		tx.Put(l)
		return nil
	})
	if noted != nil {
		return broker.Unavailable(noted)
	}
	return err
}

// pollable returns nil once a login can be redeemed, and ErrPending while its person
// has not decided.
func pollable(tx broker.Tx, key broker.LoginKey, now time.Time) (*broker.Login, error) {
	l, err := broker.Get[*broker.Login](tx, key)
	switch {
	case isNotFound(err):
		return nil, errNoCode
	case err != nil:
		return nil, err
	case !now.Before(l.Expires):
		return nil, refuse(broker.ErrLapsed, "the login was not allowed in time: start again")
	case l.State == broker.LoginRefused:
		return nil, &broker.Refusal{Err: broker.ErrDenied, Detail: "the person refused the terminal", DeniedBy: broker.DeniedByPerson}
	case l.State != broker.LoginWaiting:
		return l, nil
	case now.Sub(l.Polled) < PollEvery:
		return nil, &broker.Refusal{Err: broker.ErrSlowDown, Detail: "poll less often", Retry: PollEvery}
	}
	return l, refuse(broker.ErrPending, "waiting for the person to allow the terminal")
}

// redeem turns an approved login into a session, once.
//
// A terminal's session inherits the browser session's start and latest end, so
// that a chain of terminals cannot outlive a login, and a logout at the provider
// ends all of them.
func (m *Manager) redeem(ctx context.Context, key broker.LoginKey, now time.Time, check func(*broker.Login) error) (Token, *broker.Session, error) {
	var by *broker.Session
	err := m.cfg.Store.View(ctx, func(tx broker.Tx) (err error) {
		_, by, err = m.redeemable(tx, key, now, check)
		return err
	})
	if err != nil {
		return Token{}, nil, broker.Unavailable(err)
	}
	token, s, err := m.new(broker.NewSession{Who: by.Who, SID: by.SID, Client: broker.ClientTerminal}, now)
	if err != nil {
		return Token{}, nil, err
	}
	s.Created, s.Expires, s.Who.Proof.Expires = by.Created, by.Expires, by.Expires
	err = m.write(ctx, append(m.rowsOf(by), key), audit.Record{Kind: audit.SessionOpened, Caller: s.Who.Party()}, func(tx broker.Tx) error {
		l, _, err := m.redeemable(tx, key, now, check)
		if err != nil {
			return err
		}
		l.State = broker.LoginUsed
		tx.Put(l)
		tx.Put(s)
		return nil
	})
	if err != nil {
		return Token{}, nil, err
	}
	return token, s, nil
}

// redeemable returns a login that can become a session now, and the session that
// approved it, which must still be open.
func (m *Manager) redeemable(tx broker.Tx, key broker.LoginKey, now time.Time, check func(*broker.Login) error) (*broker.Login, *broker.Session, error) {
	l, err := broker.Get[*broker.Login](tx, key)
	switch {
	case isNotFound(err), err == nil && (l.State != broker.LoginApproved || !now.Before(l.Expires)):
		return nil, nil, errNoCode
	case err != nil:
		return nil, nil, err
	}
	if err := check(l); err != nil {
		return nil, nil, err
	}
	by, err := m.open(tx, l.By, now)
	if errors.Is(err, broker.ErrUnauthenticated) {
		err = errNoCode
	}
	return l, by, err
}
