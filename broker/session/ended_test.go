package session_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/broker/session"
)

// The sessions of a person end with their access, and do not revive when the person returns.
func TestSessionsEndWithTheAccessOfTheirPerson(t *testing.T) {
	w := newWorld(t)
	var from, until time.Time // of the end
	m, err := session.New(session.Config{Store: w.store, Ended: func(_ context.Context, person string, created, now time.Time) (bool, error) {
		ended := !from.IsZero() && !now.Before(from) && (until.IsZero() || now.Before(until))
		return person == "login/ana" && (ended || !from.IsZero() && !created.After(from) && !now.Before(from)), nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	open := func(name string, now time.Time) (session.Token, error) {
		token, _, err := m.Open(t.Context(), broker.NewSession{Who: person(name, now)}, now)
		return token, err
	}
	ana, err1 := open("ana", noon)
	ben, err2 := open("ben", noon)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	from = noon.Add(time.Minute)
	if _, err := m.Get(t.Context(), ana, from.Add(-time.Millisecond)); err != nil {
		t.Errorf("before the end: %v", err)
	}
	if _, err := m.Get(t.Context(), ana, from); !errors.Is(err, broker.ErrUnauthenticated) {
		t.Errorf("at the end: %v", err)
	}
	if _, err := open("ana", from); !errors.Is(err, broker.ErrFactEnded) {
		t.Errorf("a login after the end: %v", err)
	}
	until = from.Add(time.Minute)
	if _, err := m.Get(t.Context(), ana, until); !errors.Is(err, broker.ErrUnauthenticated) {
		t.Errorf("the session from before the end: %v", err)
	}
	if _, err := open("ana", until); err != nil {
		t.Errorf("a login after the return: %v", err)
	}
	if _, err := m.Get(t.Context(), ben, until); err != nil {
		t.Errorf("another person: %v", err)
	}
}
