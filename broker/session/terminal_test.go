package session_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// lastRecord returns the newest record.
func (w *world) lastRecord(t *testing.T) audit.Record {
	t.Helper()
	item, err := w.store.Record(t.Context(), w.store.Head().Size-1)
	if err != nil {
		t.Fatal(err)
	}
	r, err := audit.Decode(item.Leaf)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// The codes of two logins differ, in form and content: a constant code could be
// guessed.
func TestCodesAreRandom(t *testing.T) {
	w := newWorld(t)
	_, in := w.logIn(t, broker.NewSession{Who: person("ana", noon), Client: broker.ClientBrowser}, noon)
	var codes []string
	for range 3 {
		d, err := w.sessions.BeginDevice(t.Context(), "192.0.2.1", noon)
		if err != nil {
			t.Fatal(err)
		}
		code, err := w.sessions.NewLoginCode(t.Context(), in, audit.Digest(sha("verifier")), noon)
		if err != nil {
			t.Fatal(err)
		}
		if len(d.DeviceCode) != 43 || len(code) != 43 || len(d.UserCode) != 9 || d.UserCode[4] != '-' {
			t.Errorf("got codes %q, %q, %q", d.DeviceCode, code, d.UserCode)
		}
		codes = append(codes, d.DeviceCode, code, d.UserCode)
	}
	slices.Sort(codes)
	if n := len(slices.Compact(codes)); n != 9 {
		t.Errorf("got %d different codes, want 9", n)
	}
}

// People may type a user code in lower case, with spaces or without the dash. A
// decided code is no longer shown, and the terminal's session is stored.
func TestUserCodeAsTyped(t *testing.T) {
	w := newWorld(t)
	_, in := w.logIn(t, broker.NewSession{Who: person("ana", noon), Client: broker.ClientBrowser}, noon)
	for name, typed := range map[string]func(string) string{
		"as shown":   func(code string) string { return code },
		"lower case": strings.ToLower,
		"no dash":    func(code string) string { return strings.ReplaceAll(code, "-", "") },
		"spaces":     func(code string) string { return " " + strings.ReplaceAll(code, "-", " ") + " " },
	} {
		d, err := w.sessions.BeginDevice(t.Context(), "192.0.2.1", noon)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.sessions.DecideDevice(t.Context(), in, typed(d.UserCode), true, noon); err != nil {
			t.Errorf("%s: got %v", name, err)
			continue
		}
		if l, err := w.sessions.Device(t.Context(), d.UserCode, noon); !errors.Is(err, broker.ErrNotFound) {
			t.Errorf("%s: got login %+v after the decision, %v", name, l, err)
		}
		token, _, err := w.sessions.RedeemDevice(t.Context(), d.DeviceCode, noon)
		if err != nil {
			t.Fatal(err)
		}
		if s, err := w.sessions.Get(t.Context(), token, noon); err != nil || s.Who.ID != "login/ana" {
			t.Errorf("%s: got session %+v, %v", name, s, err)
		}
	}
}

func TestOnlyPeopleHaveSessions(t *testing.T) {
	w := newWorld(t)
	noPerson, workload := person("ana", noon), person("ana", noon)
	noPerson.Person, workload.Kind = nil, broker.KindWorkload
	for name, who := range map[string]broker.Identity{"no person": noPerson, "a workload": workload} {
		if _, _, err := w.sessions.Open(t.Context(), broker.NewSession{Who: who}, noon); !errors.Is(err, broker.ErrUnauthenticated) {
			t.Errorf("%s: got %v, want %v", name, err, broker.ErrUnauthenticated)
		}
	}
}

// A login stores the person's name and address, which notices need.
func TestLoginStoresTheAccount(t *testing.T) {
	w := newWorld(t)
	who := person("ana", noon)
	who.Person.Email = "ana@acme.test"
	_, s := w.logIn(t, broker.NewSession{Who: who}, noon)
	a, err := w.sessions.Account(t.Context(), broker.Self(s.Who, noon))
	if err != nil || a.Name != "ana" || a.Email != "ana@acme.test" {
		t.Errorf("got account %+v, %v", a, err)
	}
}

// The records of logouts name the person.
func TestLogoutsAreRecorded(t *testing.T) {
	w := newWorld(t)
	token, _ := w.logIn(t, broker.NewSession{Who: person("ana", noon)}, noon)
	if err := w.sessions.Close(t.Context(), token, noon); err != nil {
		t.Fatal(err)
	}
	if r := w.lastRecord(t); r.Kind != audit.SessionClosed || r.Caller == nil || r.Caller.ID != "login/ana" || r.End.How != "logout" {
		t.Errorf("got record %+v", r)
	}
	if err := w.sessions.EndSessions(t.Context(), logoutToken("1", "ana", "", noon), noon); err != nil {
		t.Fatal(err)
	}
	if r := w.lastRecord(t); r.Kind != audit.SessionClosed || r.Subject == nil || r.Subject.ID != "login/ana" || r.End.How != "provider" {
		t.Errorf("got record %+v", r)
	}
	if err := w.sessions.EndSessions(t.Context(), logoutToken("2", "", "sid-1", noon), noon); err != nil {
		t.Fatal(err)
	}
	if r := w.lastRecord(t); r.Subject != nil {
		t.Errorf("got record %+v, want no subject", r)
	}
}

// A blocked person's session can be closed.
func TestBlockedPeopleLogOut(t *testing.T) {
	w := newWorld(t)
	token, _ := w.logIn(t, broker.NewSession{Who: person("ana", noon)}, noon)
	if err := w.block("login/ana", noon); err != nil {
		t.Fatal(err)
	}
	if err := w.sessions.Close(t.Context(), token, noon); err != nil {
		t.Fatal(err)
	}
	if _, err := w.sessions.Get(t.Context(), token, noon); !errors.Is(err, broker.ErrUnauthenticated) {
		t.Errorf("got %v, want %v", err, broker.ErrUnauthenticated)
	}
	if r := w.lastRecord(t); r.Kind != audit.SessionClosed {
		t.Errorf("got record %+v", r)
	}
}
