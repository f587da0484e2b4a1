package broker_test

import (
	"errors"
	"testing"
	"time"

	"accessbroker.internal/broker"
)

// A source that states only ends is heard of regularly, or the people whose ends it would
// state have no access.
func TestWatchedPeopleNeedTheirSource(t *testing.T) {
	w := newWorld(t, worldConfig{policies: testPolicies + `
@id("people-read")
permit (principal is Person, action == Action::"request", resource == Entitlement::"tickets") when { context.scopes == ["tickets:read"] };
`})
	rule := broker.SourceRule{StaleAfter: time.Hour, Silence: true, Watches: func(k broker.StandingKey) bool {
		return k.Kind == broker.FactPerson && k.Name == "login/ana"
	}}
	b := start(t, broker.Config{Store: w.store, Issuers: map[string]broker.Issuer{}, Sources: map[string]broker.SourceRule{"ssf:okta": rule}}, w.rules)
	ask := func(who broker.Identity, now time.Time) error {
		_, err := b.Ask(t.Context(), broker.Self(who, now), read("tickets:read"), broker.IdempotencyKey{})
		return err
	}
	if err := ask(approver("ana", noon), noon); !errors.Is(err, broker.ErrFactUnknown) {
		t.Errorf("never heard of the source: got %v", err)
	}
	if err := ask(approver("ben", noon), noon); err != nil {
		t.Errorf("a person whom the source does not watch: got %v", err)
	}
	if err := b.Facts.Confirm(t.Context(), "ssf:okta", noon); err != nil {
		t.Fatal(err)
	}
	last := noon.Add(time.Hour - time.Second)
	if err := ask(approver("ana", last), last); err != nil {
		t.Errorf("heard of it within the hour: got %v", err)
	}
	if err := b.Facts.Report(t.Context(), broker.Caller{At: noon}, broker.StandingKey{Kind: broker.FactPerson, Name: "login/ana"}, broker.Fact{Source: "ssf:okta", State: broker.FactActive}); err != nil {
		t.Fatal(err)
	}
	late := noon.Add(time.Hour)
	if err := ask(approver("ana", late), late); !errors.Is(err, broker.ErrFactUnknown) {
		t.Errorf("silent for an hour: got %v", err)
	}
	if err := b.Facts.Confirm(t.Context(), "ssf:okta", late); err != nil {
		t.Fatal(err)
	}
	if err := ask(approver("ana", late.Add(time.Second)), late.Add(time.Second)); err != nil {
		t.Errorf("heard of again, and its own fact is older: got %v", err)
	}
}
