package broker_test

import (
	"errors"
	"testing"

	"accessbroker.internal/broker"
)

// The kill switch takes a person whom policy permits to block, or the operator. No
// policy lets a workload use it.
func TestKillSwitchTakesAPermittedPerson(t *testing.T) {
	w := newWorld(t, worldConfig{policies: testPolicies + `
@id("blockers") permit (principal == Person::"login/vic", action == Action::"block", resource);
@id("agents-block") permit (principal in Path::"spiffe://acme.test/agent", action == Action::"block", resource);`})
	selector := broker.Selector{Under: "spiffe://acme.test/agent"}
	for name, test := range map[string]struct {
		who  broker.Identity
		want error
	}{
		"a permitted person":   {approver("vic", noon), nil},
		"another person":       {approver("ben", noon), broker.ErrDenied},
		"a permitted workload": {agent(noon), broker.ErrDenied},
		"the operator":         {root, nil},
	} {
		if _, err := w.broker.Preview(t.Context(), broker.Self(test.who, noon), selector); !errors.Is(err, test.want) {
			t.Errorf("%s: got %v, want %v", name, err, test.want)
		}
	}
}
