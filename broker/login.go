package broker

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
)

// How a terminal gets a session: its person logs in with a browser, and says
// there that the terminal may act for them. The browser then either hands the
// terminal a code on the loopback interface (RFC 8252, section 7.3, with PKCE),
// or the person types a code that the terminal shows (RFC 8628).

// Times of a terminal's login.
const (
	loginCodeFor   = time.Minute
	loginDeviceFor = 10 * time.Minute
	// PollEvery is how often a terminal may ask whether its person is done.
	PollEvery = 2 * time.Second
)

// A code is drawn at random; only its hash is stored.
func newCode() string {
	raw := make([]byte, 32)
	_, _ = rand.Read(raw) // never fails
	return base64.RawURLEncoding.EncodeToString(raw)
}

// userCodeLetters are easily told apart and make no words (RFC 8628, section 6.1).
const userCodeLetters = "BCDFGHJKLMNPQRSTVWXZ"

// newUserCode has 34 bits, for ten minutes, for people who are logged in.
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

func loginKey(kind LoginKind, code string) LoginKey {
	return sha256.Sum256([]byte("accessbroker/login/v1\n" + string(kind) + "\n" + code))
}

// userKey forgives what people do to codes: small letters, spaces, no dash.
func userKey(code string) LoginKey {
	code = strings.ToUpper(strings.Map(func(r rune) rune {
		if r == '-' || r == ' ' {
			return -1
		}
		return r
	}, code))
	return loginKey(LoginUserCode, code)
}

// A DeviceLogin is what a terminal shows, and polls by.
type DeviceLogin struct {
	DeviceCode string
	UserCode   string
	Expires    time.Time
}

// BeginDevice begins the login of a terminal that can't open a browser.
func (b *Broker) BeginDevice(ctx context.Context, from string, now time.Time) (DeviceLogin, error) {
	d := DeviceLogin{newCode(), newUserCode(), now.Add(loginDeviceFor)}
	device, user := loginKey(LoginDevice, d.DeviceCode), userKey(d.UserCode)
	err := b.cfg.Store.Update(ctx, []Key{user}, func(tx Tx) error {
		if _, err := Get[*Login](tx, user); !isNotFound(err) {
			return refuse(ErrSlowDown, "try again") // the same code, of 25 billion
		}
		tx.Put(&Login{LoginKey: device, Kind: LoginDevice, State: LoginWaiting, From: from, Created: now, Expires: d.Expires})
		tx.Put(&Login{LoginKey: user, Kind: LoginUserCode, Device: device, State: LoginWaiting, From: from, Created: now, Expires: d.Expires})
		return nil
	})
	return d, Unavailable(err)
}

// errNoCode is the same for whatever is wrong with a code.
var errNoCode = refuse(ErrNotFound, "this code is unknown, used, or too old: begin anew")

// Device gives the login that a person typed the code of.
func (b *Broker) Device(ctx context.Context, userCode string, now time.Time) (*Login, error) {
	var l *Login
	err := b.cfg.Store.View(ctx, func(tx Tx) (err error) {
		l, err = waitingLogin(tx, userKey(userCode), now)
		return err
	})
	return l, Unavailable(err)
}

func waitingLogin(tx Tx, key LoginKey, now time.Time) (*Login, error) {
	l, err := Get[*Login](tx, key)
	if isNotFound(err) || err == nil && (!now.Before(l.Expires) || l.State != LoginWaiting) {
		return nil, errNoCode
	}
	return l, err
}

// mayLetIn refuses sessions that let in no terminal. Only a browser's does: its
// person has just been asked, there, by a page of ours; and what a terminal is
// lent lends nothing on.
func (s *Session) mayLetIn() error {
	if s.Client != ClientBrowser {
		return refuse(ErrSessionRequired, "only a browser lets in a terminal: log in there")
	}
	return nil
}

// DecideDevice says for a person whether the terminal that shows the code may
// act for them.
func (b *Broker) DecideDevice(ctx context.Context, in *Session, userCode string, allow bool, now time.Time) error {
	if err := in.mayLetIn(); err != nil {
		return err
	}
	seen, err := b.Device(ctx, userCode, now)
	if err != nil {
		return err
	}
	err = b.cfg.Store.Update(ctx, []Key{seen.LoginKey, seen.Device}, func(tx Tx) error {
		user, err := waitingLogin(tx, seen.LoginKey, now)
		if err != nil {
			return err
		}
		device, err := waitingLogin(tx, seen.Device, now)
		if err != nil {
			return err
		}
		user.State, device.State = LoginUsed, LoginRefused
		if allow {
			device.State, device.By = LoginApproved, in.SessionKey
		}
		tx.Put(user)
		tx.Put(device)
		return nil
	})
	return Unavailable(err)
}

// NewLoginCode gives a code to a terminal on the loopback interface, which
// trades it for a session by the verifier that it made the challenge of.
func (b *Broker) NewLoginCode(ctx context.Context, in *Session, challenge audit.Digest, now time.Time) (string, error) {
	if err := in.mayLetIn(); err != nil {
		return "", err
	}
	code := newCode()
	l := &Login{
		LoginKey: loginKey(LoginCode, code), Kind: LoginCode, State: LoginApproved, Challenge: challenge,
		By: in.SessionKey, Created: now, Expires: now.Add(loginCodeFor),
	}
	err := b.cfg.Store.Update(ctx, nil, func(tx Tx) error { tx.Put(l); return nil })
	return code, Unavailable(err)
}

// RedeemCode trades a code and its verifier for a terminal's session (RFC 7636,
// S256). A code is good once.
func (b *Broker) RedeemCode(ctx context.Context, code, verifier string, now time.Time) (SessionToken, *Session, error) {
	key, challenge := loginKey(LoginCode, code), sha256.Sum256([]byte(verifier))
	return b.redeem(ctx, key, now, func(l *Login) error {
		if subtle.ConstantTimeCompare(l.Challenge[:], challenge[:]) != 1 {
			return errNoCode
		}
		return nil
	})
}

// RedeemDevice trades a device code for a terminal's session, once its person
// has allowed it. Until then it is ErrPending, or ErrSlowDown.
func (b *Broker) RedeemDevice(ctx context.Context, deviceCode string, now time.Time) (SessionToken, *Session, error) {
	key := loginKey(LoginDevice, deviceCode)
	if err := b.polled(ctx, key, now); err != nil {
		return SessionToken{}, nil, err
	}
	return b.redeem(ctx, key, now, func(*Login) error { return nil })
}

// polled says how far the login of a device is, and bounds how often that is
// asked (RFC 8628, section 3.5): who asks more often has nothing written.
func (b *Broker) polled(ctx context.Context, key LoginKey, now time.Time) error {
	err := b.cfg.Store.View(ctx, func(tx Tx) error {
		_, err := pollable(tx, key, now)
		return err
	})
	if !errors.Is(err, ErrPending) {
		return Unavailable(err)
	}
	noted := b.cfg.Store.Update(ctx, []Key{key}, func(tx Tx) error {
		l, err := pollable(tx, key, now)
		if !errors.Is(err, ErrPending) {
			return err
		}
		l.Polled = now
		tx.Put(l)
		return nil
	})
	if noted != nil {
		return Unavailable(noted)
	}
	return err
}

// pollable is nil once a login may be redeemed, and ErrPending while its person
// has yet to say so.
func pollable(tx Tx, key LoginKey, now time.Time) (*Login, error) {
	l, err := Get[*Login](tx, key)
	switch {
	case isNotFound(err):
		return nil, errNoCode
	case err != nil:
		return nil, err
	case !now.Before(l.Expires):
		return nil, refuse(ErrLapsed, "nobody allowed it in time: begin anew")
	case l.State == LoginRefused:
		return nil, &Refusal{Err: ErrDenied, Detail: "the person refused it", DeniedBy: DeniedByPerson}
	case l.State != LoginWaiting:
		return l, nil
	case now.Sub(l.Polled) < PollEvery:
		return nil, &Refusal{Err: ErrSlowDown, Detail: "ask less often", Retry: PollEvery}
	}
	return l, refuse(ErrPending, "the person has yet to allow it")
}

// redeem turns an approved login into a session, once.
//
// A terminal's session is a part of the browser's: it began when its person
// logged in, ends when the browser's would at the latest, and is ended by what
// the provider says of the time in between. So nobody gets round the end of a
// session by letting in one terminal after the other.
func (b *Broker) redeem(ctx context.Context, key LoginKey, now time.Time, check func(*Login) error) (SessionToken, *Session, error) {
	var by *Session
	err := b.cfg.Store.View(ctx, func(tx Tx) (err error) {
		_, by, err = b.redeemable(tx, key, now, check)
		return err
	})
	if err != nil {
		return SessionToken{}, nil, Unavailable(err)
	}
	token, s, err := b.newSession(LoggedIn{Who: by.Who, SID: by.SID, Client: ClientTerminal}, now)
	if err != nil {
		return SessionToken{}, nil, err
	}
	s.Created, s.Expires, s.Who.Proof.Expires = by.Created, by.Expires, by.Expires
	_, err = b.write(ctx, append(by.rows(), key), audit.Record{Kind: audit.SessionOpened, Caller: s.Who.Party()}, func(tx Tx) error {
		l, _, err := b.redeemable(tx, key, now, check)
		if err != nil {
			return err
		}
		l.State = LoginUsed
		tx.Put(l)
		tx.Put(s)
		return nil
	})
	if err != nil {
		return SessionToken{}, nil, err
	}
	return token, s, nil
}

// redeemable gives a login that may become a session now, and the session in
// which it was allowed, which must still be open.
func (b *Broker) redeemable(tx Tx, key LoginKey, now time.Time, check func(*Login) error) (*Login, *Session, error) {
	l, err := Get[*Login](tx, key)
	switch {
	case isNotFound(err), err == nil && (l.State != LoginApproved || !now.Before(l.Expires)):
		return nil, nil, errNoCode
	case err != nil:
		return nil, nil, err
	}
	if err := check(l); err != nil {
		return nil, nil, err
	}
	by, err := b.openSession(tx, l.By, now)
	if errors.Is(err, ErrUnauthenticated) {
		err = errNoCode
	}
	return l, by, err
}
