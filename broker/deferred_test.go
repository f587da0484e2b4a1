package broker_test

import (
	"errors"
	"testing"

	"accessbroker.internal/broker"
)

// A cancellation succeeds although people decide at the same time.
func TestCancelMeetsAVote(t *testing.T) {
	t.Parallel()
	for name, approvals := range map[string]string{"approved": `@approval("1 of support")`, "one of two approvals": `@approval("2 of support")`} {
		t.Run(name, func(t *testing.T) {
			var meanwhile func()
			w := hookedWorld(t, approvals, &meanwhile)
			r := w.ask(t, broker.Ask{Entitlement: "tickets", Scopes: []string{"tickets:close"}})
			voted := false
			meanwhile = func() {
				_, err := w.vote(t, approver("ben", noon, "support"), r, yes, noon)
				voted = err == nil
			}
			caller := broker.Self(agent(noon), noon)
			if err := (broker.Deferred{Broker: w.broker}).Cancel(t.Context(), caller, r.ID); err != nil || !voted {
				t.Errorf("got %v, voted %t", err, voted)
			}
			if after, err := w.broker.Request(t.Context(), caller, r.ID); err != nil || after.Status != broker.RequestWithdrawn {
				t.Errorf("got %v, %+v, want a withdrawn request", err, after)
			}
		})
	}
}

// A withdrawal succeeds as long as the request is pending, although one of its approvers
// decides at the same time.
func TestWithdrawalMeetsAVote(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, approvals string
		want            error
		status          broker.RequestStatus
	}{
		{"one of two approvals", `@approval("2 of support")`, nil, broker.RequestWithdrawn},
		{"approved", `@approval("1 of support")`, broker.ErrNotPending, broker.RequestApproved},
	} {
		t.Run(test.name, func(t *testing.T) {
			var meanwhile func()
			w := hookedWorld(t, test.approvals, &meanwhile)
			r := w.ask(t, broker.Ask{Entitlement: "tickets", Scopes: []string{"tickets:close"}})
			meanwhile = func() {
				if _, err := w.vote(t, approver("ben", noon, "support"), r, yes, noon); err != nil {
					t.Error(err)
				}
			}
			caller := broker.Self(agent(noon), noon)
			if _, err := w.broker.Withdraw(t.Context(), caller, r.ID); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			if after, err := w.broker.Request(t.Context(), caller, r.ID); err != nil || after.Status != test.status {
				t.Errorf("got %v, %+v, want status %v", err, after, test.status)
			}
		})
	}
}
