package broker

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
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
		if _, err := get[*Login](tx, user); !isNotFound(err) {
			return refuse(ErrSlowDown, "try again") // the same code, of 25 billion
		}
		tx.Put(&Login{LoginKey: device, Kind: LoginDevice, State: LoginWaiting, From: from, Created: now, Expires: d.Expires})
		tx.Put(&Login{LoginKey: user, Kind: LoginUserCode, Device: device, State: LoginWaiting, From: from, Created: now, Expires: d.Expires})
		return nil
	})
	return d, unavailable(err)
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
	return l, unavailable(err)
}

func waitingLogin(tx Tx, key LoginKey, now time.Time) (*Login, error) {
	l, err := get[*Login](tx, key)
	if isNotFound(err) || err == nil && (!now.Before(l.Expires) || l.State != LoginWaiting) {
		return nil, errNoCode
	}
	return l, err
}

// DecideDevice says for a person whether the terminal that shows the code may
// act for them.
func (b *Broker) DecideDevice(ctx context.Context, in *Session, userCode string, allow bool, now time.Time) error {
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
			device.State, device.Who, device.SID = LoginApproved, in.Who, in.SID
		}
		tx.Put(user)
		tx.Put(device)
		return nil
	})
	return unavailable(err)
}

// NewLoginCode gives a code to a terminal on the loopback interface, which
// trades it for a session by the verifier that it made the challenge of.
func (b *Broker) NewLoginCode(ctx context.Context, in *Session, challenge audit.Digest, now time.Time) (string, error) {
	code := newCode()
	l := &Login{
		LoginKey: loginKey(LoginCode, code), Kind: LoginCode, State: LoginApproved, Challenge: challenge,
		Who: in.Who, SID: in.SID, Created: now, Expires: now.Add(loginCodeFor),
	}
	err := b.cfg.Store.Update(ctx, nil, func(tx Tx) error { tx.Put(l); return nil })
	return code, unavailable(err)
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
// asked (RFC 8628, section 3.5).
func (b *Broker) polled(ctx context.Context, key LoginKey, now time.Time) error {
	var answer error
	err := b.cfg.Store.Update(ctx, []Key{key}, func(tx Tx) error {
		l, err := get[*Login](tx, key)
		switch {
		case isNotFound(err):
			return errNoCode
		case err != nil:
			return err
		case !now.Before(l.Expires):
			answer = refuse(ErrLapsed, "nobody allowed it in time: begin anew")
			return nil
		case l.State == LoginRefused:
			answer = &Refusal{Err: ErrDenied, Detail: "the person refused it", DeniedBy: DeniedByPerson}
			return nil
		case l.State != LoginWaiting:
			return nil
		}
		answer = refuse(ErrPending, "the person has yet to allow it")
		if now.Sub(l.Polled) < PollEvery {
			answer = &Refusal{Err: ErrSlowDown, Detail: "ask less often", Retry: PollEvery}
		}
		l.Polled = now
		tx.Put(l)
		return nil
	})
	if err != nil {
		return unavailable(err)
	}
	return answer
}

// redeem turns an approved login into a session, once.
func (b *Broker) redeem(ctx context.Context, key LoginKey, now time.Time, check func(*Login) error) (SessionToken, *Session, error) {
	var l *Login
	err := b.cfg.Store.View(ctx, func(tx Tx) (err error) {
		l, err = get[*Login](tx, key)
		return err
	})
	switch {
	case isNotFound(err):
		return SessionToken{}, nil, errNoCode
	case err != nil:
		return SessionToken{}, nil, unavailable(err)
	}
	token, s, err := b.newSession(LoggedIn{Who: l.Who, SID: l.SID, Client: "terminal"}, now)
	if err != nil {
		return SessionToken{}, nil, err
	}
	blocked := BlockKey{"holder", l.Who.ID}
	_, err = b.write(ctx, []Key{key, blocked}, audit.Record{Kind: audit.SessionOpened, Caller: party(s.Who)}, func(tx Tx) error {
		stored, err := get[*Login](tx, key)
		if err != nil || stored.State != LoginApproved || !now.Before(stored.Expires) {
			return errNoCode
		}
		if err := check(stored); err != nil {
			return err
		}
		if err := checkBlocks(tx, []BlockKey{blocked}); err != nil {
			return err
		}
		stored.State = LoginUsed
		tx.Put(stored)
		tx.Put(s)
		return nil
	})
	return token, s, err
}
