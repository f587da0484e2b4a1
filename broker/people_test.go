package broker_test

import (
	"slices"
	"testing"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/notify"
)

// A person is notified of a passkey that is enrolled for them, at the address that
// their provider returned.
func TestPersonIsNotifiedOfNewPasskey(t *testing.T) {
	for name, test := range map[string]struct {
		email, channel string
		want           []broker.NoticeEvent
	}{
		"by mail":         {"ben@acme.test", broker.PeopleChannel, []broker.NoticeEvent{broker.NoticePasskey}},
		"no address":      {"", broker.PeopleChannel, nil},
		"no such channel": {"ben@acme.test", "mail:ops", nil},
	} {
		t.Run(name, func(t *testing.T) {
			r := &receiver{}
			w := peopleWorld(t, `@approval("1 of support")`)
			w.setNotifiers(t, map[string]notify.Notifier{test.channel: r})
			who := logsIn("ben", noon)
			who.Person.Email = test.email
			p := broker.Passkey{ID: []byte{1}, Public: []byte{2}, RP: rp, Name: "call +1 555 0100"}
			if err := w.sessions.Enrol(t.Context(), broker.Self(who, noon), p); err != nil {
				t.Fatal(err)
			}
			if err := w.sessions.Enrol(t.Context(), broker.Self(who, noon), p); err == nil {
				t.Fatal("the passkey was enrolled twice")
			}
			w.deliver(t, noon)
			w.deliver(t, noon.Add(time.Hour))
			if got := r.events(); !slices.Equal(got, test.want) {
				t.Fatalf("got events %v, want %v", got, test.want)
			}
			if len(r.calls) == 0 {
				return
			}
			if n := r.calls[0].notice; n.Address != test.email || n.Person != "login/ben" || !n.Counts.Equal(noon.Add(24*time.Hour)) {
				t.Errorf("got notice %+v", n)
			}
		})
	}
}

// The requester's manager is notified by mail, at the address of the manager's
// account.
func TestManagerIsNotified(t *testing.T) {
	for name, test := range map[string]struct {
		email string
		want  []broker.NoticeEvent
	}{
		"by mail":    {"mia@acme.test", []broker.NoticeEvent{broker.NoticePending, broker.NoticeApproved}},
		"no address": {"", nil},
	} {
		t.Run(name, func(t *testing.T) {
			r := &receiver{}
			w := newWorld(t, worldConfig{policies: `@id("people") @approval("1 of manager") permit (principal is Person, action == Action::"request", resource == Entitlement::"tickets");`, issuers: map[string]broker.Issuer{"tickets": signer{}}})
			w.setNotifiers(t, map[string]notify.Notifier{broker.PeopleChannel: r})
			err := w.store.Update(t.Context(), nil, func(tx broker.Tx) error {
				tx.Put(&broker.Account{Person: "login/mia", Email: test.email})
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			who := approver("zoe", noon)
			who.Person.Manager = "login/mia"
			asked, err := w.broker.Ask(t.Context(), broker.Self(who, noon), read("tickets:read"), broker.IdempotencyKey{})
			if err != nil {
				t.Fatal(err)
			}
			w.deliver(t, noon)
			if _, err := w.vote(t, approver("mia", noon), asked, yes, noon); err != nil {
				t.Fatal(err)
			}
			w.deliver(t, noon)
			if got := r.events(); !slices.Equal(got, test.want) {
				t.Fatalf("got events %v, want %v", got, test.want)
			}
			for _, c := range r.calls {
				if c.notice.Address != test.email || c.notice.Person != "login/mia" {
					t.Errorf("got notice %+v", c.notice)
				}
			}
		})
	}
}
