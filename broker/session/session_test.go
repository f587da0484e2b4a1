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

// person is somebody whom a provider has just proved.
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
		t.Errorf("the proof of a session: %+v", s.Who.Proof)
	}
	for _, c := range []struct {
		name string
		at   time.Duration
		open bool
	}{
		{"at once", 0, true},
		{"within the idle time", 29 * time.Minute, true},
		{"within the idle time of that use", 58 * time.Minute, true},
		{"after being idle", 89 * time.Minute, false},
	} {
		_, err := w.sessions.Get(ctx, token, noon.Add(c.at))
		if (err == nil) != c.open || err != nil && !errors.Is(err, broker.ErrUnauthenticated) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if sealed, err := token.ProviderTokens(s); err != nil || string(sealed) != "refresh-s3cret" {
		t.Errorf("what the provider gave: %q, %v", sealed, err)
	}
	other, _ := w.logIn(t, broker.NewSession{Who: person("ben", noon)}, noon)
	if _, err := other.ProviderTokens(s); err == nil {
		t.Error("another session's token opens what the provider gave")
	}
}

// However long it is used, a session ends; so does each by a block, by logging
// out, and by the provider.
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
			return w.sessions.EndSessions(ctx, word("1", "ana", "sid-1", noon.Add(time.Minute)), noon.Add(time.Minute))
		},
		"the person": func(session.Token) error {
			return w.sessions.EndSessions(ctx, word("2", "ana", "", noon.Add(time.Minute)), noon.Add(time.Minute))
		},
		"an empty word": func(session.Token) error {
			return w.sessions.EndSessions(ctx, word("3", "", "", noon.Add(time.Minute)), noon.Add(time.Minute))
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
			t.Error("logging out twice is an error")
		}
	}
	if _, err := w.sessions.Get(ctx, token, noon.Add(session.DefaultLasts)); !errors.Is(err, broker.ErrUnauthenticated) {
		t.Errorf("at its end: %v", err)
	}
	if err := ends["an empty word"](token); !errors.Is(err, broker.ErrInvalidRequest) {
		t.Errorf("a logout of nobody: %v", err)
	}
	after, _ := w.logIn(t, broker.NewSession{Who: person("ana", noon), SID: "sid-2"}, noon.Add(3*time.Minute))
	if _, err := w.sessions.Get(ctx, after, noon.Add(4*time.Minute)); err != nil {
		t.Errorf("a session opened after the provider's logout: %v", err)
	}
}

// word is a provider's word that it logged somebody out.
func word(id, sub, sid string, issued time.Time) broker.LogoutToken {
	return broker.LogoutToken{Provider: "login", ID: id, Sub: sub, SID: sid, Issued: issued}
}

// A provider's logout ends what was opened before it was said, however late it
// comes, and nothing else when it is said again (Back-Channel Logout, section 2.6).
func TestProviderLogouts(t *testing.T) {
	ctx, at := t.Context(), func(d time.Duration) time.Time { return noon.Add(d) }
	const s, m = time.Second, time.Minute
	type said struct {
		word broker.LogoutToken
		at   time.Time
	}
	for _, c := range []struct {
		name   string
		sid    string
		opened time.Duration
		words  []said
		open   bool
	}{
		{"said at once", "sid-1", 0, []said{{word("1", "ana", "", at(m)), at(m)}}, false},
		{"said late, opened before", "sid-1", 0, []said{{word("1", "ana", "", at(m)), at(5 * m)}}, false},
		{"said late, opened after", "sid-1", 3 * m, []said{{word("1", "ana", "", at(m)), at(5 * m)}}, true},
		{"said again, opened in between", "sid-1", 61 * s, []said{{word("1", "ana", "", at(m)), at(m)}, {word("1", "ana", "", at(m)), at(90 * s)}}, true},
		{"said again in another way, opened in between", "sid-1", 61 * s, []said{{word("1", "ana", "", at(m)), at(m)}, {word("2", "ana", "", at(62*s)), at(90 * s)}}, false},
		{"an earlier word comes later", "sid-1", 2 * m, []said{{word("2", "ana", "", at(3*m)), at(3 * m)}, {word("1", "ana", "", noon), at(4 * m)}}, false},
		{"by a clock that is behind", "sid-1", m, []said{{word("1", "ana", "", at(30*s)), at(70 * s)}}, false},
		{"of another session", "sid-1", 0, []said{{word("1", "ana", "sid-2", at(m)), at(m)}}, true},
		{"of one session, and it has no name", "", 0, []said{{word("1", "ana", "sid-2", at(m)), at(m)}}, false},
		{"of somebody else", "sid-1", 0, []said{{word("1", "ben", "", at(m)), at(m)}}, true},
	} {
		w := newWorld(t)
		token, _ := w.logIn(t, broker.NewSession{Who: person("ana", noon), SID: c.sid}, at(c.opened))
		for _, one := range c.words {
			if err := w.sessions.EndSessions(ctx, one.word, one.at); err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
		}
		if _, err := w.sessions.Get(ctx, token, at(5*m)); (err == nil) != c.open {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	w := newWorld(t)
	if err := w.sessions.EndSessions(ctx, word("1", "ana", "", noon), noon); err != nil {
		t.Fatal(err)
	}
	before := w.store.Head().Size
	if err := w.sessions.EndSessions(ctx, word("1", "ana", "", noon), at(m)); err != nil || w.store.Head().Size != before {
		t.Errorf("the same word again: %v, and %d records", err, w.store.Head().Size-before)
	}
	for name, bad := range map[string]broker.LogoutToken{"without an id": word("", "ana", "", noon), "old": word("2", "ana", "", at(-6*m))} {
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
		t.Errorf("a blocked person's session: %v", err)
	}
	if _, _, err := w.sessions.Open(ctx, broker.NewSession{Who: person("ana", noon)}, noon); !errors.Is(err, broker.ErrBlocked) {
		t.Errorf("a blocked person logs in: %v", err)
	}
}

// A session's token is in no format, and in no row.
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
			t.Errorf("it shows: %s", shown)
		}
	}
	for _, text := range []string{"", "abs_", "abs_" + secret[:10], secret, "abs_" + secret + "A", "ABS_" + secret} {
		if _, ok := session.ParseToken(text); ok {
			t.Errorf("%q is taken for a token", text)
		}
	}
}

// A code is good once, however many use it at the same moment.
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
		t.Errorf("%d sessions of one code", n)
	}
	late, err := w.sessions.NewLoginCode(ctx, in, audit.Digest(sha(verifier)), noon)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.sessions.RedeemCode(ctx, late, verifier, noon.Add(time.Minute)); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("a minute later: %v", err)
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
		t.Errorf("refused: %v", err)
	}
	if err := w.sessions.DecideDevice(ctx, in, refused.UserCode, true, noon); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("allowing what was refused: %v", err)
	}
	if _, _, err := w.sessions.RedeemDevice(ctx, ignored.DeviceCode, ignored.Expires); !errors.Is(err, broker.ErrLapsed) {
		t.Errorf("after ten minutes: %v", err)
	}
	if err := w.sessions.DecideDevice(ctx, in, ignored.UserCode, true, ignored.Expires); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("allowing it too late: %v", err)
	}
	if _, _, err := w.sessions.RedeemDevice(ctx, "guessed", noon); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("a guessed code: %v", err)
	}
	if _, _, err := w.sessions.RedeemDevice(ctx, ignored.UserCode, noon); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("the code that a person types: %v", err)
	}
}

// letIn lets a terminal in by the session, by code or by device, and gives what
// redeems it.
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

// A login ends when it ends: no terminal outlives it, and no terminal lets in
// another.
func TestTerminalsDoNotProlong(t *testing.T) {
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
			t.Errorf("device %t: a terminal lets in another: %v", device, err)
		}
	}
}

// What ends the browser's session between allowing a terminal and its calling
// for the session ends that, too.
func TestEndedBeforeRedeemed(t *testing.T) {
	soon, ctx := noon.Add(30*time.Second), t.Context()
	for name, end := range map[string]func(*world, session.Token) error{
		"by the provider, the person": func(w *world, _ session.Token) error {
			return w.sessions.EndSessions(ctx, word("1", "ana", "", soon), soon)
		},
		"by the provider, the session": func(w *world, _ session.Token) error {
			return w.sessions.EndSessions(ctx, word("1", "", "sid-1", soon), soon)
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
	// A word of the time in between that comes after the terminal was let in.
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
	if err := w.sessions.EndSessions(ctx, word("1", "ana", "", noon.Add(time.Minute)), noon.Add(4*time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.sessions.Get(ctx, token, noon.Add(5*time.Minute)); !errors.Is(err, broker.ErrUnauthenticated) {
		t.Errorf("its person was logged out before it was let in: %v", err)
	}
}

// What a provider said later is never put back by what it said before; and who
// was logged out meanwhile is not let in again.
func TestRefreshed(t *testing.T) {
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
		t.Errorf("somebody else's claims: %v", err)
	}
	if err := w.sessions.EndSessions(ctx, word("1", "ana", "", noon.Add(4*time.Minute)), noon.Add(4*time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.sessions.Refresh(ctx, broker.Self(person("ana", noon.Add(4*time.Minute)), noon.Add(5*time.Minute)), token, nil); !errors.Is(err, broker.ErrUnauthenticated) {
		t.Errorf("after the provider's logout: %v", err)
	}
}

func sha(s string) [32]byte { return sha256.Sum256([]byte(s)) }

// Whoever asks too often whether a terminal may act for somebody has nothing
// written.
func TestPollingTooOftenWritesNothing(t *testing.T) {
	s := &countingStore{}
	w := newWorld(t, func(real broker.Store) broker.Store { s.Store = real; return s })
	d, err := w.sessions.BeginDevice(t.Context(), "198.51.100.7", noon)
	if err != nil {
		t.Fatal(err)
	}
	before := s.updates.Load()
	if _, _, err := w.sessions.RedeemDevice(t.Context(), d.DeviceCode, noon); !errors.Is(err, broker.ErrPending) {
		t.Fatalf("first: %v", err)
	}
	for range 10 {
		if _, _, err := w.sessions.RedeemDevice(t.Context(), d.DeviceCode, noon.Add(time.Second)); !errors.Is(err, broker.ErrSlowDown) {
			t.Fatalf("too often: %v", err)
		}
	}
	if n := s.updates.Load() - before; n != 1 {
		t.Errorf("%d writes", n)
	}
}
