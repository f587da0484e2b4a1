package broker_test

import (
	"errors"
	"testing"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// Data of a request is returned only to callers who may see the request, even if
// they pass the request itself.
func TestRequestViewsCheckTheCaller(t *testing.T) {
	w := tokenWorld(t)
	owner, stranger := broker.Self(agent(noon), noon), broker.Self(workload("spiffe://acme.test/other", noon), noon)
	_, r, err := w.broker.AskAndCollect(t.Context(), owner, broker.Ask{Entitlement: "db"}, broker.IdempotencyKey{})
	if err != nil {
		t.Fatal(err)
	}
	views := map[string]func(broker.Caller) error{
		"history": func(c broker.Caller) error { _, err := w.broker.RequestHistory(t.Context(), c, r); return err },
		"effect":  func(c broker.Caller) error { _, err := w.broker.Effect(t.Context(), c, r); return err },
		"leases":  func(c broker.Caller) error { _, err := w.broker.LeasesOf(t.Context(), c, r); return err },
		"wait":    func(c broker.Caller) error { _, err := w.broker.Await(t.Context(), c, r.ID, 0, nil); return err },
	}
	for name, view := range views {
		t.Run(name, func(t *testing.T) {
			if err := view(owner); err != nil {
				t.Errorf("requester: got %v, want no error", err)
			}
			if err := view(stranger); !errors.Is(err, broker.ErrNotFound) {
				t.Errorf("stranger: got %v, want %v", err, broker.ErrNotFound)
			}
		})
	}
	if w.broker.SeesPolicies(t.Context(), stranger, r) {
		t.Error("stranger: got the policies, want them hidden")
	}
	if vote, review := w.broker.CanDecide(stranger, r); vote || review {
		t.Errorf("stranger: got vote %t, review %t, want neither", vote, review)
	}
}

// A caller who acts for another person cannot vote.
func TestSessionsAreNotDelegated(t *testing.T) {
	w := tokenWorld(t)
	person := broker.Identity{
		ID: "login/ana", Kind: broker.KindPerson, Person: &broker.Person{Provider: "login", Claimed: noon},
		Proof: broker.Proof{Method: broker.MethodSession, Expires: noon.Add(1)},
	}
	if _, err := w.broker.Inbox(t.Context(), broker.Self(person, noon), broker.InboxQuery{}); err != nil {
		t.Fatal(err)
	}
	delegated := broker.Caller{Actor: person, Subject: person, At: noon}
	delegated.Subject.ID = "login/ben"
	if _, err := w.broker.Inbox(t.Context(), delegated, broker.InboxQuery{}); !errors.Is(err, broker.ErrSessionRequired) {
		t.Errorf("got %v, want %v", err, broker.ErrSessionRequired)
	}
}

// New records the rules before the broker decides anything.
func TestBrokerStartsWithRecordedRules(t *testing.T) {
	w := newWorld(t, worldConfig{})
	for _, record := range w.records(t) {
		if record.Kind == audit.PolicyLoaded && record.Rules.Revision == w.rules.Revision {
			return
		}
	}
	t.Errorf("got no record of the rules %x", w.rules.Revision)
}

func TestNewRequiresRules(t *testing.T) {
	w := newWorld(t, worldConfig{})
	if _, err := broker.New(t.Context(), broker.Config{Store: w.store, Issuers: map[string]broker.Issuer{}}, nil, broker.Caller{At: noon}); err == nil {
		t.Error("got a broker without rules, want an error")
	}
}
