package broker_test

import (
	"errors"
	"testing"

	"accessbroker.internal/broker"
)

// The details of a token that is exchanged bound those of the narrower token: it inherits
// them, names less, or is refused.
func TestDelegationNeverWidensDetails(t *testing.T) {
	parent := []broker.Detail{look("TCK-1", "close", "read"), refundOf("TCK-1", 50)}
	for name, one := range map[string]struct {
		asked []broker.Detail
		want  bool
	}{
		"the same, in another order": {[]broker.Detail{refundOf("TCK-1", 50), look("TCK-1", "read", "close")}, true},
		"fewer elements":             {parent[:1], true},
		"fewer actions":              {[]broker.Detail{look("TCK-1", "read")}, true},
		"a lower maximum":            {[]broker.Detail{refundOf("TCK-1", 5)}, true},
		"inherited":                  {nil, true},
		"a higher maximum":           {[]broker.Detail{refundOf("TCK-1", 51)}, false},
		"another identifier":         {[]broker.Detail{look("TCK-2", "read")}, false},
		"one element of two":         {[]broker.Detail{look("TCK-1", "read"), refundOf("TCK-2", 1)}, false},
		"another tool":               {[]broker.Detail{{Type: "ticket", Identifier: "TCK-1", Actions: []string{"read"}, Tool: "refund"}}, true},
		"another type":               {[]broker.Detail{{Type: "other", Identifier: "TCK-1", Actions: []string{"read"}, Tool: "look"}}, false},
	} {
		if name == "another tool" {
			one.want = false
			one.asked[0].Tool = "drop"
		}
		ask := broker.Ask{Entitlement: "tickets", Details: one.asked}
		err := broker.BoundDetails(&broker.Delegation{Details: parent}, &ask, &broker.Entitlement{Name: "tickets"})
		if (err == nil) != one.want || err != nil && !errors.Is(err, broker.ErrInvalidDetails) {
			t.Errorf("%s: got %v, want allowed: %t", name, err, one.want)
		}
		if one.asked == nil && !broker.EqualDetails(ask.Details, parent) {
			t.Errorf("got %v, want those of the token", ask.Details)
		}
	}
}
