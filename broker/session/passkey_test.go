package session_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/broker/session"
)

// Without other settings a passkey waits as long as auditors require.
func TestPasskeysWaitByDefault(t *testing.T) {
	w, now := newWorld(t), time.Now() // the store's clock is the real one
	_, s := w.logIn(t, broker.NewSession{Who: person("ana", now)}, now)
	caller := broker.Self(s.Who, now)
	if err := w.sessions.Enrol(t.Context(), caller, broker.Passkey{ID: []byte{1}, Public: []byte{2}, RP: "broker.test", Name: "phone"}); err != nil {
		t.Fatal(err)
	}
	a, err := w.sessions.Account(t.Context(), caller)
	if err != nil || len(a.Passkeys) != 1 || !a.Passkeys[0].Counts.Equal(now.Add(audit.PasskeyWait)) {
		t.Errorf("got account %+v, %v", a, err)
	}
	if session.MayEnrol(s.Who, now.Add(session.EnrolWithin+time.Second)) || !session.MayEnrol(s.Who, now.Add(session.EnrolWithin)) {
		t.Error("enrolling is not bounded by the time of the login")
	}
}

// Each bound of an enrolment.
func TestPasskeysThatAreRefused(t *testing.T) {
	w := newWorld(t)
	_, s := w.logIn(t, broker.NewSession{Who: person("ana", noon)}, noon)
	good := broker.Passkey{ID: []byte{1}, Public: []byte{2}, RP: "broker.test", Name: "phone"}
	for name, change := range map[string]func(*broker.Passkey){
		"no id":             func(p *broker.Passkey) { p.ID = nil },
		"a long id":         func(p *broker.Passkey) { p.ID = make([]byte, audit.MaxCredential+1) },
		"no public key":     func(p *broker.Passkey) { p.Public = nil },
		"a long public key": func(p *broker.Passkey) { p.Public = make([]byte, audit.MaxPublic+1) },
		"no relying party":  func(p *broker.Passkey) { p.RP = "" },
		"a long name":       func(p *broker.Passkey) { p.Name = strings.Repeat("x", session.MaxKeyName+1) },
	} {
		p := good
		change(&p)
		if err := w.sessions.Enrol(t.Context(), broker.Self(s.Who, noon), p); !errors.Is(err, broker.ErrInvalidRequest) {
			t.Errorf("%s: got %v, want %v", name, err, broker.ErrInvalidRequest)
		}
	}
	late := broker.Self(s.Who, noon.Add(session.EnrolWithin+time.Second))
	if err := w.sessions.Enrol(t.Context(), late, good); !errors.Is(err, broker.ErrLoginStale) {
		t.Errorf("long after the login: got %v, want %v", err, broker.ErrLoginStale)
	}
}

// An account holds MaxPasskeys. A removed one makes room, others do not.
func TestPasskeysOfOnePersonAreBounded(t *testing.T) {
	w, now := newWorld(t), time.Now() // the store's clock is the real one
	_, s := w.logIn(t, broker.NewSession{Who: person("ana", now)}, now)
	caller := broker.Self(s.Who, now)
	enrol := func(id byte) error {
		return w.sessions.Enrol(t.Context(), caller, broker.Passkey{ID: []byte{id}, Public: []byte{2}, RP: "broker.test", Name: "phone"})
	}
	for id := range byte(session.MaxPasskeys) {
		if err := enrol(id); err != nil {
			t.Fatal(err)
		}
	}
	if err := enrol(99); !errors.Is(err, broker.ErrInvalidRequest) {
		t.Errorf("above the bound: got %v, want %v", err, broker.ErrInvalidRequest)
	}
	if err := w.sessions.RemovePasskey(t.Context(), caller, []byte{3}); err != nil {
		t.Fatal(err)
	}
	if err := w.sessions.RemovePasskey(t.Context(), caller, []byte{77}); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("removing an unknown one: got %v, want %v", err, broker.ErrNotFound)
	}
	if err := enrol(99); err != nil {
		t.Errorf("in the place of the removed one: got %v", err)
	}
	a, err := w.sessions.Account(t.Context(), caller)
	if err != nil || len(a.Passkeys) != session.MaxPasskeys {
		t.Fatalf("got account %+v, %v", a, err)
	}
	for _, p := range a.Passkeys {
		if p.ID[0] == 3 || !p.Removed.IsZero() {
			t.Errorf("got passkey %+v, want the removed one replaced", p)
		}
	}
}

// A colleague who may vouch for a passkey sees what a voucher signs, and not its
// private name.
func TestPasskeyOfAnother(t *testing.T) {
	w, now := newWorld(t), time.Now() // the store's clock is the real one
	_, ana := w.logIn(t, broker.NewSession{Who: person("ana", now)}, now)
	_, ben := w.logIn(t, broker.NewSession{Who: person("ben", now)}, now)
	p := broker.Passkey{ID: []byte{1}, Public: []byte{2}, RP: "broker.test", Name: "private phone"}
	if err := w.sessions.Enrol(t.Context(), broker.Self(ana.Who, now), p); err != nil {
		t.Fatal(err)
	}
	seen, err := w.sessions.PasskeyOf(t.Context(), broker.Self(ben.Who, now), "login/ana", p.ID)
	if err != nil || seen.Name != "" || string(seen.Public) != string(p.Public) {
		t.Errorf("got %+v, %v, want the passkey without its name", seen, err)
	}
	if _, err := w.sessions.PasskeyOf(t.Context(), broker.Self(ana.Who, now), "login/ana", p.ID); !errors.Is(err, broker.ErrOwnRequest) {
		t.Errorf("the owner: got %v, want %v", err, broker.ErrOwnRequest)
	}
	if _, err := w.sessions.PasskeyOf(t.Context(), broker.Self(ben.Who, now), "login/ana", []byte{9}); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("an unknown passkey: got %v, want %v", err, broker.ErrNotFound)
	}
	if _, err := w.sessions.PasskeyOf(t.Context(), broker.Self(workloadIdentity(now), now), "login/ana", p.ID); !errors.Is(err, broker.ErrSessionRequired) {
		t.Errorf("a workload: got %v, want %v", err, broker.ErrSessionRequired)
	}
}

func workloadIdentity(now time.Time) broker.Identity {
	return broker.Identity{ID: "spiffe://acme.test/agent", Kind: broker.KindWorkload, Proof: broker.Proof{Method: broker.MethodJWTSVID, Expires: now.Add(time.Hour)}}
}
