package broker_test

import (
	"errors"
	"strings"
	"testing"

	"accessbroker.internal/broker"
)

// relabel puts rules with changed labels into force.
func (w *world) relabel(t *testing.T, policies, groups string, change func(*broker.WorkloadLabels)) {
	t.Helper()
	rules := testRulesWith(t, policies, groups)
	for i := range rules.Labels {
		change(&rules.Labels[i])
	}
	rules.Revision[0] ^= 1 // the revision covers the labels
	if err := w.broker.SetRules(t.Context(), broker.Caller{At: noon}, rules); err != nil {
		t.Fatal(err)
	}
}

// If the team to exclude is not a group, its members are unknown and no one can
// approve.
func TestExcludedTeamIsNotAGroup(t *testing.T) {
	policies := closePolicies(`@approval("1 of support") @exclude_team("yes")`)
	w := peopleWorld(t, `@approval("1 of support") @exclude_team("yes")`)
	asked := w.ask(t, read("tickets:close"))
	w.adopt(t, policies, strings.ReplaceAll(testGroups, "agents:", "others:"))
	if _, err := w.broker.Ask(t.Context(), broker.Self(agent(noon), noon), read("tickets:read"), broker.IdempotencyKey{}); !errors.Is(err, broker.ErrNobodyCanApprove) {
		t.Errorf("requesting: got %v, want %v", err, broker.ErrNobodyCanApprove)
	}
	if _, err := w.vote(t, approver("cleo", noon), asked, yes, noon); !errors.Is(err, broker.ErrOwnRequest) {
		t.Errorf("approving an earlier request: got %v, want %v", err, broker.ErrOwnRequest)
	}
}

// Collection counts only approvals that would still be allowed.
func TestApprovalsAreCheckedAtCollection(t *testing.T) {
	plain, strict := closePolicies(`@approval("1 of support")`), closePolicies(`@approval("1 of support") @exclude_team("yes")`)
	for name, change := range map[string]func(*world){
		"team excluded": func(w *world) { w.adopt(t, strict, testGroups) },
		"approver accountable": func(w *world) {
			w.relabel(t, plain, testGroups, func(l *broker.WorkloadLabels) { l.Accountable = []string{"login/ben"} })
		},
		"no change": nil,
	} {
		w := peopleWorld(t, `@approval("1 of support")`)
		r := w.ask(t, read("tickets:close"))
		if _, err := w.vote(t, approver("ben", noon), r, yes, noon); err != nil {
			t.Fatal(err)
		}
		want := error(nil)
		if change != nil {
			want = broker.ErrNeedsNewRequest
			change(w)
		}
		if _, err := w.broker.Collect(t.Context(), broker.Self(agent(noon), noon), r.ID, broker.IdempotencyKey{}); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", name, err, want)
		}
	}
}

// A person who became accountable for a workload cannot approve its earlier
// requests.
func TestNewAccountablePersonCannotApprove(t *testing.T) {
	w := peopleWorld(t, `@approval("1 of support")`)
	r := w.ask(t, read("tickets:close"))
	w.relabel(t, closePolicies(`@approval("1 of support")`), testGroups, func(l *broker.WorkloadLabels) { l.Accountable = []string{"login/ben"} })
	for _, who := range []string{"ben", "ana"} { // ana was accountable at the request
		if _, err := w.vote(t, approver(who, noon), r, yes, noon); !errors.Is(err, broker.ErrOwnRequest) {
			t.Errorf("%s: got %v, want %v", who, err, broker.ErrOwnRequest)
		}
		if vote, _ := w.broker.CanDecide(broker.Self(approver(who, noon), noon), r); vote {
			t.Errorf("%s: got the right to vote, want none", who)
		}
	}
}

// Break-glass is refused if no one could review it.
func TestBreakGlassWithoutReviewers(t *testing.T) {
	w := peopleWorld(t, ``)
	alone := strings.ReplaceAll(testGroups, "security: {members: [login/ben, login/dan]", "security: {members: [login/ana]")
	w.adopt(t, closePolicies(``), alone)
	if _, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(noon), noon), breakGlass("tickets:read"), broker.IdempotencyKey{}); !errors.Is(err, broker.ErrNobodyCanApprove) {
		t.Errorf("with the accountable person as the only reviewer: got %v, want %v", err, broker.ErrNobodyCanApprove)
	}
}

// The bound on unreviewed break-glass uses is per requester.
func TestBreakGlassBoundIsPerRequester(t *testing.T) {
	w := peopleWorld(t, ``)
	as := func(name string) broker.Identity { return workload("spiffe://acme.test/agent/"+name, noon) }
	ask := func(name string) error {
		_, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(as(name), noon), breakGlass("tickets:read"), broker.IdempotencyKey{})
		return err
	}
	refused := 0
	for range 50 {
		if err := ask("triage"); errors.Is(err, broker.ErrReviewOverdue) {
			refused++
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if refused != 40 {
		t.Errorf("got %d refusals of 50, want 40", refused)
	}
	if err := ask("other"); err != nil {
		t.Errorf("another requester: got %v, want no error", err)
	}
}
