package broker_test

import (
	"errors"
	"strings"
	"testing"

	"accessbroker.internal/broker"
)

// remark lets other marks decide.
func (w *world) remark(t *testing.T, policies, groups string, change func(*broker.WorkloadLabels)) {
	t.Helper()
	rules := testRulesWith(t, policies, groups)
	for i := range rules.Labels {
		change(&rules.Labels[i])
	}
	rules.Revision[0] ^= 1 // it is over the marks as well
	if err := w.broker.SetRules(t.Context(), broker.Caller{At: noon}, rules); err != nil {
		t.Fatal(err)
	}
}

// Nobody can say who is outside of a team that is no group.
func TestExcludedTeamThatNobodyKnows(t *testing.T) {
	policies := closing(`@approval("1 of support") @exclude_team("yes")`)
	w := peopleWorld(t, `@approval("1 of support") @exclude_team("yes")`)
	asked := w.ask(t, read("tickets:close"))
	w.adopt(t, policies, strings.ReplaceAll(testGroups, "agents:", "others:"))
	if _, err := w.broker.Ask(t.Context(), broker.Self(agent(noon), noon), read("tickets:read"), broker.IdempotencyKey{}); !errors.Is(err, broker.ErrNobodyCanApprove) {
		t.Errorf("asking: %v", err)
	}
	if _, err := w.vote(t, approver("cleo", noon), asked, yes, noon); !errors.Is(err, broker.ErrOwnRequest) {
		t.Errorf("approving what was asked before: %v", err)
	}
}

// Who may not approve by now did not approve, when something is collected.
func TestApprovalsThatHoldNoMore(t *testing.T) {
	plain, strict := closing(`@approval("1 of support")`), closing(`@approval("1 of support") @exclude_team("yes")`)
	for name, change := range map[string]func(*world){
		"the team is excluded": func(w *world) { w.adopt(t, strict, testGroups) },
		"who approved answers for it": func(w *world) {
			w.remark(t, plain, testGroups, func(m *broker.WorkloadLabels) { m.Accountable = []string{"login/ben"} })
		},
		"nothing changed, as it seems": nil,
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
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
}

// Who answers for a workload by now does not approve what it asked for before.
func TestAccountableByNow(t *testing.T) {
	w := peopleWorld(t, `@approval("1 of support")`)
	r := w.ask(t, read("tickets:close"))
	w.remark(t, closing(`@approval("1 of support")`), testGroups, func(m *broker.WorkloadLabels) { m.Accountable = []string{"login/ben"} })
	for _, who := range []string{"ben", "ana"} { // ana answered for it then
		if _, err := w.vote(t, approver(who, noon), r, yes, noon); !errors.Is(err, broker.ErrOwnRequest) {
			t.Errorf("%s: %v", who, err)
		}
		if vote, _ := w.broker.CanDecide(broker.Self(approver(who, noon), noon), r); vote {
			t.Errorf("%s is asked", who)
		}
	}
}

// A glass that nobody could review is not broken.
func TestGlassThatNobodyReviews(t *testing.T) {
	w := peopleWorld(t, ``)
	alone := strings.ReplaceAll(testGroups, "security: {members: [login/ben, login/dan]", "security: {members: [login/ana]")
	w.adopt(t, closing(``), alone)
	if _, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(noon), noon), glass("tickets:read"), broker.IdempotencyKey{}); !errors.Is(err, broker.ErrNobodyCanApprove) {
		t.Errorf("reviewed by who answers for it alone: %v", err)
	}
}

// One requester's emergencies keep no other from theirs.
func TestEmergenciesOfOthers(t *testing.T) {
	w := peopleWorld(t, ``)
	as := func(name string) broker.Identity { return workload("spiffe://acme.test/agent/"+name, noon) }
	ask := func(name string) error {
		_, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(as(name), noon), glass("tickets:read"), broker.IdempotencyKey{})
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
		t.Errorf("%d of 50 are refused", refused)
	}
	if err := ask("other"); err != nil {
		t.Errorf("another's emergency: %v", err)
	}
}
