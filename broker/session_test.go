package broker_test

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
)

// person is somebody whom a provider has just proved.
func person(name string, now time.Time, groups ...string) broker.Identity {
	return broker.Identity{
		ID: "login/" + name, Kind: broker.KindPerson, Proof: broker.Proof{SHA256: audit.Digest{9}, Expires: now.Add(5 * time.Minute)},
		Person: &broker.Person{Provider: "login", Groups: groups, Claimed: now, Login: now, Name: name},
	}
}

func (w *world) logIn(t *testing.T, in broker.LoggedIn, now time.Time) (broker.SessionToken, *broker.Session) {
	t.Helper()
	token, s, err := w.broker.OpenSession(t.Context(), in, now)
	if err != nil {
		t.Fatal(err)
	}
	return token, s
}

func TestSessionLife(t *testing.T) {
	w := newWorld(t, worldConfig{})
	ctx := t.Context()
	token, s := w.logIn(t, broker.LoggedIn{Who: person("ana", noon, "leads"), SID: "sid-1", Tokens: []byte("refresh-s3cret")}, noon)
	if s.Who.Proof.Method != broker.MethodSession || !s.Who.Proof.Expires.Equal(noon.Add(broker.SessionLasts)) {
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
		_, err := w.broker.Session(ctx, token, noon.Add(c.at))
		if (err == nil) != c.open || err != nil && !errors.Is(err, broker.ErrUnauthenticated) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if sealed, err := s.ProviderTokens(token); err != nil || string(sealed) != "refresh-s3cret" {
		t.Errorf("what the provider gave: %q, %v", sealed, err)
	}
	other, _ := w.logIn(t, broker.LoggedIn{Who: person("ben", noon)}, noon)
	if _, err := s.ProviderTokens(other); err == nil {
		t.Error("another session's token opens what the provider gave")
	}
}

// However long it is used, a session ends; so does each by a block, by logging
// out, and by the provider.
func TestSessionEnds(t *testing.T) {
	w := newWorld(t, worldConfig{})
	ctx := t.Context()
	token, _ := w.logIn(t, broker.LoggedIn{Who: person("ana", noon)}, noon)
	for at := noon; at.Before(noon.Add(broker.SessionLasts)); at = at.Add(20 * time.Minute) {
		if _, err := w.broker.Session(ctx, token, at); err != nil {
			t.Fatalf("after %s: %v", at.Sub(noon), err)
		}
	}
	ends := map[string]func(token broker.SessionToken) error{
		"its time":    func(broker.SessionToken) error { return nil },
		"logging out": func(token broker.SessionToken) error { return w.broker.CloseSession(ctx, token, noon.Add(time.Minute)) },
		"its sid": func(broker.SessionToken) error {
			return w.broker.LoggedOut(ctx, "login", "ana", "sid-1", noon.Add(time.Minute))
		},
		"the person": func(broker.SessionToken) error {
			return w.broker.LoggedOut(ctx, "login", "ana", "", noon.Add(time.Minute))
		},
		"an empty word": func(broker.SessionToken) error {
			return w.broker.LoggedOut(ctx, "login", "", "", noon.Add(time.Minute))
		},
	}
	for _, name := range []string{"logging out", "its sid", "the person"} {
		token, _ := w.logIn(t, broker.LoggedIn{Who: person("ana", noon), SID: "sid-1"}, noon)
		if err := ends[name](token); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, err := w.broker.Session(ctx, token, noon.Add(2*time.Minute)); !errors.Is(err, broker.ErrUnauthenticated) {
			t.Errorf("%s: %v", name, err)
		}
		if name == "logging out" && ends[name](token) != nil {
			t.Error("logging out twice is an error")
		}
	}
	if _, err := w.broker.Session(ctx, token, noon.Add(broker.SessionLasts)); !errors.Is(err, broker.ErrUnauthenticated) {
		t.Errorf("at its end: %v", err)
	}
	if err := ends["an empty word"](token); !errors.Is(err, broker.ErrInvalidRequest) {
		t.Errorf("a logout of nobody: %v", err)
	}
	after, _ := w.logIn(t, broker.LoggedIn{Who: person("ana", noon), SID: "sid-2"}, noon.Add(3*time.Minute))
	if _, err := w.broker.Session(ctx, after, noon.Add(4*time.Minute)); err != nil {
		t.Errorf("a session opened after the provider's logout: %v", err)
	}
}

func TestBlockedPeople(t *testing.T) {
	w := newWorld(t, worldConfig{})
	ctx := t.Context()
	token, _ := w.logIn(t, broker.LoggedIn{Who: person("ana", noon)}, noon)
	root := broker.Identity{ID: "operator", Kind: broker.KindOperator, Proof: broker.Proof{Method: broker.MethodAdminSocket, Expires: noon.Add(time.Hour)}}
	if err := w.broker.Block(ctx, root, broker.Selector{Holder: "login/ana"}, "she left", noon); err != nil {
		t.Fatal(err)
	}
	if _, err := w.broker.Session(ctx, token, noon); !errors.Is(err, broker.ErrBlocked) {
		t.Errorf("a blocked person's session: %v", err)
	}
	if _, _, err := w.broker.OpenSession(ctx, broker.LoggedIn{Who: person("ana", noon)}, noon); !errors.Is(err, broker.ErrBlocked) {
		t.Errorf("a blocked person logs in: %v", err)
	}
}

// A session's token is in no format, and in no row.
func TestSessionTokenIsHidden(t *testing.T) {
	w := newWorld(t, worldConfig{})
	token, s := w.logIn(t, broker.LoggedIn{Who: person("ana", noon), Tokens: []byte("refresh-s3cret")}, noon)
	secret := strings.TrimPrefix(token.Reveal(), broker.SessionPrefix)
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
		if _, ok := broker.ParseSessionToken(text); ok {
			t.Errorf("%q is taken for a token", text)
		}
	}
}

// A code is good once, however many use it at the same moment.
func TestLoginCodeOnce(t *testing.T) {
	w := newWorld(t, worldConfig{})
	ctx := t.Context()
	_, in := w.logIn(t, broker.LoggedIn{Who: person("ana", noon), Client: "browser"}, noon)
	verifier := strings.Repeat("v", 43)
	code, err := w.broker.NewLoginCode(ctx, in, audit.Digest(sha(verifier)), noon)
	if err != nil {
		t.Fatal(err)
	}
	var got sync.Map
	var all sync.WaitGroup
	for i := range 16 {
		all.Go(func() {
			if token, _, err := w.broker.RedeemCode(context.WithoutCancel(ctx), code, verifier, noon); err == nil {
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
	late, err := w.broker.NewLoginCode(ctx, in, audit.Digest(sha(verifier)), noon)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.broker.RedeemCode(ctx, late, verifier, noon.Add(time.Minute)); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("a minute later: %v", err)
	}
}

func TestDeviceLogin(t *testing.T) {
	w := newWorld(t, worldConfig{})
	ctx := t.Context()
	_, in := w.logIn(t, broker.LoggedIn{Who: person("ana", noon), Client: "browser"}, noon)
	begin := func() broker.DeviceLogin {
		d, err := w.broker.BeginDevice(ctx, "192.0.2.1", noon)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	refused, ignored := begin(), begin()
	if err := w.broker.DecideDevice(ctx, in, refused.UserCode, false, noon); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.broker.RedeemDevice(ctx, refused.DeviceCode, noon); !errors.Is(err, broker.ErrDenied) {
		t.Errorf("refused: %v", err)
	}
	if err := w.broker.DecideDevice(ctx, in, refused.UserCode, true, noon); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("allowing what was refused: %v", err)
	}
	if _, _, err := w.broker.RedeemDevice(ctx, ignored.DeviceCode, ignored.Expires); !errors.Is(err, broker.ErrLapsed) {
		t.Errorf("after ten minutes: %v", err)
	}
	if err := w.broker.DecideDevice(ctx, in, ignored.UserCode, true, ignored.Expires); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("allowing it too late: %v", err)
	}
	if _, _, err := w.broker.RedeemDevice(ctx, "guessed", noon); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("a guessed code: %v", err)
	}
	if _, _, err := w.broker.RedeemDevice(ctx, ignored.UserCode, noon); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("the code that a person types: %v", err)
	}
}

func sha(s string) [32]byte { return sha256.Sum256([]byte(s)) }
