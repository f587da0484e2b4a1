package session_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/broker/session"
)

// person is a person as a provider has just authenticated them.
func person(name string, now time.Time, groups ...string) broker.Identity {
	return broker.Identity{
		ID: "login/" + name, Kind: broker.KindPerson, Proof: broker.Proof{SHA256: audit.Digest{9}, Expires: now.Add(5 * time.Minute)},
		Person: &broker.Person{Provider: "login", Groups: groups, Claimed: now, Login: now, Name: name},
	}
}

func (w *world) logIn(t *testing.T, in broker.NewSession, now time.Time) (session.Token, *broker.Session) {
	t.Helper()
	token, s, err := w.sessions.Open(t.Context(), in, now)
	if err != nil {
		t.Fatal(err)
	}
	return token, s
}

func TestSessionLife(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	token, s := w.logIn(t, broker.NewSession{Who: person("ana", noon, "leads"), SID: "sid-1", Tokens: []byte("refresh-s3cret")}, noon)
	if s.Who.Proof.Method != broker.MethodSession || !s.Who.Proof.Expires.Equal(noon.Add(session.DefaultLasts)) {
		t.Errorf("proof: got %+v", s.Who.Proof)
	}
	for _, c := range []struct {
		name string
		at   time.Duration
		open bool
	}{
		{"immediately", 0, true},
		{"within the idle time", 29 * time.Minute, true},
		{"within the idle time of the last use", 58 * time.Minute, true},
		{"idle for too long", 89 * time.Minute, false},
	} {
		_, err := w.sessions.Get(ctx, token, noon.Add(c.at))
		if (err == nil) != c.open || err != nil && !errors.Is(err, broker.ErrUnauthenticated) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if sealed, err := token.ProviderTokens(s); err != nil || string(sealed) != "refresh-s3cret" {
		t.Errorf("provider tokens: got %q, %v", sealed, err)
	}
	other, _ := w.logIn(t, broker.NewSession{Who: person("ben", noon)}, noon)
	if _, err := other.ProviderTokens(s); err == nil {
		t.Error("another session's token decrypts the provider tokens")
	}
}

// A session ends at its latest end even if it is in use, and by a block, a logout,
// or the provider.
func TestSessionEnds(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	token, _ := w.logIn(t, broker.NewSession{Who: person("ana", noon)}, noon)
	for at := noon; at.Before(noon.Add(session.DefaultLasts)); at = at.Add(20 * time.Minute) {
		if _, err := w.sessions.Get(ctx, token, at); err != nil {
			t.Fatalf("after %s: %v", at.Sub(noon), err)
		}
	}
	ends := map[string]func(token session.Token) error{
		"its time":    func(session.Token) error { return nil },
		"logging out": func(token session.Token) error { return w.sessions.Close(ctx, token, noon.Add(time.Minute)) },
		"its sid": func(session.Token) error {
			return w.sessions.EndSessions(ctx, logoutToken("1", "ana", "sid-1", noon.Add(time.Minute)), noon.Add(time.Minute))
		},
		"the person": func(session.Token) error {
			return w.sessions.EndSessions(ctx, logoutToken("2", "ana", "", noon.Add(time.Minute)), noon.Add(time.Minute))
		},
		"an empty word": func(session.Token) error {
			return w.sessions.EndSessions(ctx, logoutToken("3", "", "", noon.Add(time.Minute)), noon.Add(time.Minute))
		},
	}
	for _, name := range []string{"logging out", "its sid", "the person"} {
		token, _ := w.logIn(t, broker.NewSession{Who: person("ana", noon), SID: "sid-1"}, noon)
		if err := ends[name](token); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, err := w.sessions.Get(ctx, token, noon.Add(2*time.Minute)); !errors.Is(err, broker.ErrUnauthenticated) {
			t.Errorf("%s: %v", name, err)
		}
		if name == "logging out" && ends[name](token) != nil {
			t.Error("logging out twice: got an error")
		}
	}
	if _, err := w.sessions.Get(ctx, token, noon.Add(session.DefaultLasts)); !errors.Is(err, broker.ErrUnauthenticated) {
		t.Errorf("at its end: got %v", err)
	}
	if err := ends["an empty word"](token); !errors.Is(err, broker.ErrInvalidRequest) {
		t.Errorf("a logout of no one: got %v", err)
	}
	after, _ := w.logIn(t, broker.NewSession{Who: person("ana", noon), SID: "sid-2"}, noon.Add(3*time.Minute))
	if _, err := w.sessions.Get(ctx, after, noon.Add(4*time.Minute)); err != nil {
		t.Errorf("a session opened after the provider's logout: got %v", err)
	}
}

// logoutToken is a provider's logout token.
func logoutToken(id, sub, sid string, issued time.Time) broker.LogoutToken {
	return broker.LogoutToken{Provider: "login", ID: id, Sub: sub, SID: sid, Issued: issued}
}

// A logout token ends the sessions that were opened before it was issued, even if
// it arrives late. Repeating it ends nothing more (Back-Channel Logout, section
// 2.6).
func TestProviderLogouts(t *testing.T) {
	ctx, at := t.Context(), func(d time.Duration) time.Time { return noon.Add(d) }
	const s, m = time.Second, time.Minute
	type said struct {
		token broker.LogoutToken
		at    time.Time
	}
	for _, c := range []struct {
		name   string
		sid    string
		opened time.Duration
		words  []said
		open   bool
	}{
		{"said at once", "sid-1", 0, []said{{logoutToken("1", "ana", "", at(m)), at(m)}}, false},
		{"said late, opened before", "sid-1", 0, []said{{logoutToken("1", "ana", "", at(m)), at(5 * m)}}, false},
		{"said late, opened after", "sid-1", 3 * m, []said{{logoutToken("1", "ana", "", at(m)), at(5 * m)}}, true},
		{"said again, opened in between", "sid-1", 61 * s, []said{{logoutToken("1", "ana", "", at(m)), at(m)}, {logoutToken("1", "ana", "", at(m)), at(90 * s)}}, true},
		{"said again in another way, opened in between", "sid-1", 61 * s, []said{{logoutToken("1", "ana", "", at(m)), at(m)}, {logoutToken("2", "ana", "", at(62*s)), at(90 * s)}}, false},
		{"an earlier word comes later", "sid-1", 2 * m, []said{{logoutToken("2", "ana", "", at(3*m)), at(3 * m)}, {logoutToken("1", "ana", "", noon), at(4 * m)}}, false},
		{"by a clock that is behind", "sid-1", m, []said{{logoutToken("1", "ana", "", at(30*s)), at(70 * s)}}, false},
		{"of another session", "sid-1", 0, []said{{logoutToken("1", "ana", "sid-2", at(m)), at(m)}}, true},
		{"of one session, and it has no name", "", 0, []said{{logoutToken("1", "ana", "sid-2", at(m)), at(m)}}, false},
		{"of somebody else", "sid-1", 0, []said{{logoutToken("1", "ben", "", at(m)), at(m)}}, true},
	} {
		w := newWorld(t)
		token, _ := w.logIn(t, broker.NewSession{Who: person("ana", noon), SID: c.sid}, at(c.opened))
		for _, one := range c.words {
			if err := w.sessions.EndSessions(ctx, one.token, one.at); err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
		}
		if _, err := w.sessions.Get(ctx, token, at(5*m)); (err == nil) != c.open {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	w := newWorld(t)
	if err := w.sessions.EndSessions(ctx, logoutToken("1", "ana", "", noon), noon); err != nil {
		t.Fatal(err)
	}
	before := w.store.Head().Size
	if err := w.sessions.EndSessions(ctx, logoutToken("1", "ana", "", noon), at(m)); err != nil || w.store.Head().Size != before {
		t.Errorf("repeated token: got %v and %d records", err, w.store.Head().Size-before)
	}
	for name, bad := range map[string]broker.LogoutToken{"without an id": logoutToken("", "ana", "", noon), "old": logoutToken("2", "ana", "", at(-6*m))} {
		if err := w.sessions.EndSessions(ctx, bad, noon); !errors.Is(err, broker.ErrInvalidRequest) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestBlockedPeople(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	token, _ := w.logIn(t, broker.NewSession{Who: person("ana", noon)}, noon)
	if err := w.block("login/ana", noon); err != nil {
		t.Fatal(err)
	}
	if _, err := w.sessions.Get(ctx, token, noon); !errors.Is(err, broker.ErrBlocked) {
		t.Errorf("a blocked person's session: got %v", err)
	}
	if _, _, err := w.sessions.Open(ctx, broker.NewSession{Who: person("ana", noon)}, noon); !errors.Is(err, broker.ErrBlocked) {
		t.Errorf("a blocked person logs in: got %v", err)
	}
}

// A session token appears in no printed form and in no row.
func TestSessionTokenIsHidden(t *testing.T) {
	w := newWorld(t)
	token, s := w.logIn(t, broker.NewSession{Who: person("ana", noon), Tokens: []byte("refresh-s3cret")}, noon)
	secret := strings.TrimPrefix(token.Reveal(), session.TokenPrefix)
	asJSON, err := json.Marshal(map[string]any{"token": token, "session": s})
	if err != nil {
		t.Fatal(err)
	}
	for _, shown := range []string{fmt.Sprint(token), fmt.Sprintf("%v %+v %#v %s %q %x", token, token, token, token, token, token), string(asJSON), fmt.Sprintf("%+v", *s)} {
		if strings.Contains(shown, secret) || strings.Contains(shown, "s3cret") {
			t.Errorf("the token is visible in %s", shown)
		}
	}
	for _, text := range []string{"", "abs_", "abs_" + secret[:10], secret, "abs_" + secret + "A", "ABS_" + secret} {
		if _, ok := session.ParseToken(text); ok {
			t.Errorf("%q was accepted as a token", text)
		}
	}
}

// A code works once, even if several calls redeem it at the same time.
func TestLoginCodeOnce(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	_, in := w.logIn(t, broker.NewSession{Who: person("ana", noon), Client: broker.ClientBrowser}, noon)
	verifier := strings.Repeat("v", 43)
	code, err := w.sessions.NewLoginCode(ctx, in, audit.Digest(sha(verifier)), noon)
	if err != nil {
		t.Fatal(err)
	}
	var got sync.Map
	var all sync.WaitGroup
	for i := range 16 {
		all.Go(func() {
			if token, _, err := w.sessions.RedeemCode(context.WithoutCancel(ctx), code, verifier, noon); err == nil {
				got.Store(i, token)
			} else if !errors.Is(err, broker.ErrNotFound) {
				t.Error(err)
			}
		})
	}
	all.Wait()
	n := 0
	got.Range(func(_, _ any) bool { n++; return true })
	if n != 1 {
		t.Errorf("got %d sessions for one code", n)
	}
	late, err := w.sessions.NewLoginCode(ctx, in, audit.Digest(sha(verifier)), noon)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.sessions.RedeemCode(ctx, late, verifier, noon.Add(time.Minute)); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("after a minute: got %v", err)
	}
}

func TestDeviceLogin(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	_, in := w.logIn(t, broker.NewSession{Who: person("ana", noon), Client: broker.ClientBrowser}, noon)
	begin := func() session.DeviceLogin {
		d, err := w.sessions.BeginDevice(ctx, "192.0.2.1", noon)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	refused, ignored := begin(), begin()
	if err := w.sessions.DecideDevice(ctx, in, refused.UserCode, false, noon); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.sessions.RedeemDevice(ctx, refused.DeviceCode, noon); !errors.Is(err, broker.ErrDenied) {
		t.Errorf("refused: got %v", err)
	}
	if err := w.sessions.DecideDevice(ctx, in, refused.UserCode, true, noon); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("allowing a refused login: got %v", err)
	}
	if _, _, err := w.sessions.RedeemDevice(ctx, ignored.DeviceCode, ignored.Expires); !errors.Is(err, broker.ErrLapsed) {
		t.Errorf("after 10 minutes: got %v", err)
	}
	if err := w.sessions.DecideDevice(ctx, in, ignored.UserCode, true, ignored.Expires); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("allowing it too late: got %v", err)
	}
	if _, _, err := w.sessions.RedeemDevice(ctx, "guessed", noon); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("a guessed code: got %v", err)
	}
	if _, _, err := w.sessions.RedeemDevice(ctx, ignored.UserCode, noon); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("polling with the user code: got %v", err)
	}
}

// letIn allows a terminal, by code or by device, and returns the function that
// redeems its login.
func (w *world) letIn(t *testing.T, by *broker.Session, device bool, now time.Time) (func(time.Time) (session.Token, *broker.Session, error), error) {
	t.Helper()
	ctx := t.Context()
	if !device {
		verifier := strings.Repeat("v", 43)
		code, err := w.sessions.NewLoginCode(ctx, by, audit.Digest(sha(verifier)), now)
		return func(now time.Time) (session.Token, *broker.Session, error) {
			return w.sessions.RedeemCode(ctx, code, verifier, now)
		}, err
	}
	d, err := w.sessions.BeginDevice(ctx, "192.0.2.1", now)
	if err != nil {
		t.Fatal(err)
	}
	return func(now time.Time) (session.Token, *broker.Session, error) {
		return w.sessions.RedeemDevice(ctx, d.DeviceCode, now)
	}, w.sessions.DecideDevice(ctx, by, d.UserCode, true, now)
}

// No terminal outlives the login that allowed it, and no terminal allows another.
func TestTerminalsDoNotProlongLogins(t *testing.T) {
	w := newWorld(t)
	_, browser := w.logIn(t, broker.NewSession{Who: person("ana", noon), Client: broker.ClientBrowser}, noon)
	end := noon.Add(session.DefaultLasts)
	for _, device := range []bool{false, true} {
		late := noon.Add(20 * time.Minute)
		redeem, err := w.letIn(t, browser, device, late)
		if err != nil {
			t.Fatal(err)
		}
		_, terminal, err := redeem(late)
		if err != nil {
			t.Fatal(err)
		}
		if !terminal.Expires.Equal(end) || !terminal.Who.Proof.Expires.Equal(end) || !terminal.Created.Equal(noon) {
			t.Errorf("device %t: from %s to %s, its proof to %s", device, terminal.Created, terminal.Expires, terminal.Who.Proof.Expires)
		}
		if _, err := w.letIn(t, terminal, device, late); !errors.Is(err, broker.ErrSessionRequired) {
			t.Errorf("device %t: a terminal allows another: got %v", device, err)
		}
	}
}

// The end of the browser's session also ends a terminal's login that was allowed
// but not redeemed.
func TestSessionEndsBeforeRedemption(t *testing.T) {
	soon, ctx := noon.Add(30*time.Second), t.Context()
	for name, end := range map[string]func(*world, session.Token) error{
		"by the provider, the person": func(w *world, _ session.Token) error {
			return w.sessions.EndSessions(ctx, logoutToken("1", "ana", "", soon), soon)
		},
		"by the provider, the session": func(w *world, _ session.Token) error {
			return w.sessions.EndSessions(ctx, logoutToken("1", "", "sid-1", soon), soon)
		},
		"by logging out": func(w *world, token session.Token) error { return w.sessions.Close(ctx, token, soon) },
		"by a block": func(w *world, _ session.Token) error {
			return w.block("login/ana", soon)
		},
	} {
		for _, device := range []bool{false, true} {
			w := newWorld(t)
			token, browser := w.logIn(t, broker.NewSession{Who: person("ana", noon), SID: "sid-1", Client: broker.ClientBrowser}, noon)
			redeem, err := w.letIn(t, browser, device, noon)
			if err != nil {
				t.Fatal(err)
			}
			if err := end(w, token); err != nil {
				t.Fatal(err)
			}
			if _, _, err := redeem(soon); !errors.Is(err, broker.ErrNotFound) && !errors.Is(err, broker.ErrBlocked) {
				t.Errorf("%s, device %t: %v", name, device, err)
			}
		}
	}
	// A logout token from before the redemption that arrives after it.
	w := newWorld(t)
	_, browser := w.logIn(t, broker.NewSession{Who: person("ana", noon), SID: "sid-1", Client: broker.ClientBrowser}, noon)
	redeem, err := w.letIn(t, browser, true, noon.Add(3*time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	token, _, err := redeem(noon.Add(3 * time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	if err := w.sessions.EndSessions(ctx, logoutToken("1", "ana", "", noon.Add(time.Minute)), noon.Add(4*time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.sessions.Get(ctx, token, noon.Add(5*time.Minute)); !errors.Is(err, broker.ErrUnauthenticated) {
		t.Errorf("the person was logged out before the redemption: got %v", err)
	}
}

// Older claims never replace newer ones, and a refresh does not reopen a session
// that was logged out.
func TestRefresh(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	token, in := w.logIn(t, broker.NewSession{Who: person("ana", noon, "leads"), Tokens: []byte("1")}, noon)
	later, earlier := person("ana", noon.Add(2*time.Minute)), person("ana", noon.Add(time.Minute), "leads")
	for _, who := range []broker.Identity{later, earlier} {
		s, err := w.sessions.Refresh(ctx, broker.Self(who, noon.Add(2*time.Minute)), token, []byte("2"))
		if err != nil || len(s.Who.Person.Groups) != 0 || s.Who.Proof != in.Who.Proof {
			t.Errorf("%+v, %v", s.Who, err)
		}
	}
	if _, err := w.sessions.Refresh(ctx, broker.Self(person("ben", noon.Add(3*time.Minute)), noon.Add(3*time.Minute)), token, nil); !errors.Is(err, broker.ErrUnauthenticated) {
		t.Errorf("another person's claims: got %v", err)
	}
	if err := w.sessions.EndSessions(ctx, logoutToken("1", "ana", "", noon.Add(4*time.Minute)), noon.Add(4*time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.sessions.Refresh(ctx, broker.Self(person("ana", noon.Add(4*time.Minute)), noon.Add(5*time.Minute)), token, nil); !errors.Is(err, broker.ErrUnauthenticated) {
		t.Errorf("after the provider's logout: got %v", err)
	}
}

func sha(s string) [32]byte { return sha256.Sum256([]byte(s)) }

// Polling too often writes nothing.
func TestPollingTooOftenWritesNothing(t *testing.T) {
	s := &countingStore{}
	w := newWorld(t, func(real broker.Store) broker.Store { s.Store = real; return s })
	d, err := w.sessions.BeginDevice(t.Context(), "198.51.100.7", noon)
	if err != nil {
		t.Fatal(err)
	}
	before := s.updates.Load()
	if _, _, err := w.sessions.RedeemDevice(t.Context(), d.DeviceCode, noon); !errors.Is(err, broker.ErrPending) {
		t.Fatalf("first poll: got %v", err)
	}
	for range 10 {
		if _, _, err := w.sessions.RedeemDevice(t.Context(), d.DeviceCode, noon.Add(time.Second)); !errors.Is(err, broker.ErrSlowDown) {
			t.Fatalf("polling too often: got %v", err)
		}
	}
	if n := s.updates.Load() - before; n != 1 {
		t.Errorf("got %d writes, want 1", n)
	}
}
