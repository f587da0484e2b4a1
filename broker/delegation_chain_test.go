package broker_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/broker"
)

// underMarks puts rules into force in which each agent has a mark of its own.
func (w *world) underMarks(t *testing.T, policies string, marks ...broker.WorkloadLabels) {
	t.Helper()
	for i := range marks {
		marks[i].Kind = broker.KindAgent
	}
	if err := w.broker.SetRules(t.Context(), broker.Caller{At: noon}, testRulesOf(t, policies, testGroups, marks)); err != nil {
		t.Fatal(err)
	}
}

func accountableTo(under, name string) broker.WorkloadLabels {
	return broker.WorkloadLabels{Under: under, Accountable: []string{"login/" + name}}
}

// The people who were accountable for an actor when a request was filed don't approve it, even
// if they have handed the actor over since.
func TestFormerAccountablePeopleOfTheChainDoNotApprove(t *testing.T) {
	policies := strings.ReplaceAll(delegationPolicies, "1 of security", "1 of support")
	w := newWorld(t, worldConfig{issuers: map[string]broker.Issuer{"tickets": signer{}}, policies: policies})
	t.Cleanup(func() { w.verify(t) })
	w.underMarks(t, policies, accountableTo(triage, "cleo"), accountableTo(search, "dan"))
	first := w.get(t, triage, delegated(onBehalf("ben", noon), "tickets:comment", "tickets:read"), noon)
	w.adoptApproval(t, policies)
	caller := broker.Self(workload(search, noon), noon)
	d, err := broker.DelegationOf(t.Context(), w.broker, caller, token(first))
	if err != nil {
		t.Fatal(err)
	}
	r, err := w.broker.Ask(t.Context(), caller, delegated(d, "tickets:read"), broker.IdempotencyKey{})
	if err != nil || r.State(noon) != broker.RequestPending {
		t.Fatalf("got %v, %v, want a pending request", r, err)
	}
	w.underMarks(t, withApproval(policies), accountableTo(triage, "dan"), accountableTo(search, "dan"))
	_, err = w.broker.Vote(t.Context(), broker.Self(approver("cleo", noon), noon), r.ID, broker.Vote{Digest: r.Digest, Approve: true})
	if !errors.Is(err, broker.ErrOwnRequest) {
		t.Errorf("got %v, want %v", err, broker.ErrOwnRequest)
	}
	if _, err := w.broker.Vote(t.Context(), broker.Self(approver("ana", noon), noon), r.ID, broker.Vote{Digest: r.Digest, Approve: true}); err != nil {
		t.Errorf("another member: %v", err)
	}
}

// withApproval returns the policies with approval for everything that people permit.
func withApproval(policies string) string {
	return strings.ReplaceAll(policies, `@id("people")`, `@id("people") @approval("1 of support")`)
}

func (w *world) adoptApproval(t *testing.T, policies string) {
	t.Helper()
	w.underMarks(t, withApproval(policies), accountableTo(triage, "cleo"), accountableTo(search, "dan"))
}

// A request that people must approve has an accountable person for each workload of its chain:
// without one, those who control the workload could approve.
func TestApprovalNeedsAccountablePeopleInTheChain(t *testing.T) {
	policies := strings.ReplaceAll(delegationPolicies, "1 of security", "1 of support")
	for name, subject := range map[string]*broker.Delegation{"an actor": onBehalf("ben", noon), "the subject": nil} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, worldConfig{issuers: map[string]broker.Issuer{"tickets": signer{}}, policies: policies})
			t.Cleanup(func() { w.verify(t) })
			w.underMarks(t, policies, broker.WorkloadLabels{Under: triage}, accountableTo(search, "dan"))
			first := w.get(t, triage, delegated(subject, "tickets:read"), noon)
			approved := strings.ReplaceAll(withApproval(policies), `@id("agents")`, `@id("agents") @approval("1 of support")`)
			w.underMarks(t, approved, broker.WorkloadLabels{Under: triage}, accountableTo(search, "dan"))
			_, err := w.exchange(t, search, first, noon, "tickets:read")
			if !errors.Is(err, broker.ErrNobodyAccountable) || !strings.Contains(err.Error(), triage) {
				t.Errorf("got %v, want %v for %s", err, broker.ErrNobodyAccountable, triage)
			}
		})
	}
}

// The ceilings of all in a chain hold, at each collection: also that of an actor in the middle,
// lowered after it passed its token on.
func TestCeilingsOfTheWholeChainHold(t *testing.T) {
	closed := ceilingOf(broker.CeilingPart{Entitlement: "tickets", Scopes: []string{"tickets:comment"}})
	for name, lowered := range map[string]string{"the first actor": triage, "the actor in the middle": search, "the last one": fetch} {
		t.Run(name, func(t *testing.T) {
			w := delegationWorld(t)
			first := w.get(t, triage, delegated(onBehalf("ben", noon), "tickets:read"), noon)
			second, err := w.exchange(t, search, first, noon)
			if err != nil {
				t.Fatal(err)
			}
			third, err := w.exchange(t, fetch, second, noon)
			if err != nil {
				t.Fatal(err)
			}
			var marks []broker.WorkloadLabels
			for _, who := range []string{triage, search, fetch} {
				mark := accountableTo(who, "ana")
				if who == lowered {
					mark.Ceiling = closed
				}
				marks = append(marks, mark)
			}
			w.underMarks(t, delegationPolicies, marks...)
			caller := broker.Self(workload(fetch, noon), noon)
			_, renew := w.broker.Renew(t.Context(), caller, third.Lease.ID, broker.IdempotencyKey{})
			_, collect := w.broker.Collect(t.Context(), caller, third.Request.ID, broker.IdempotencyKey{})
			for call, err := range map[string]error{"renew": renew, "collect": collect} {
				if !errors.Is(err, broker.ErrNoLongerAllowed) || !strings.Contains(err.Error(), "the ceiling of "+lowered) {
					t.Errorf("%s: got %v, want a refusal by the ceiling of %s", call, err, lowered)
				}
			}
			if _, err := w.exchange(t, fetch, second, noon); !errors.Is(err, broker.ErrDenied) {
				t.Errorf("a new exchange: got %v, want %v", err, broker.ErrDenied)
			}
		})
	}
}

// A proof that is limited to scopes does not get an entitlement without scopes, which is more
// than any of them.
func TestScopedProofGetsNoWholeEntitlement(t *testing.T) {
	policies := strings.ReplaceAll(delegationPolicies, `resource == Entitlement::"tickets"`, "resource")
	w := newWorld(t, worldConfig{policies: policies, issuers: map[string]broker.Issuer{"tickets": signer{}, "db": signer{}}})
	t.Cleanup(func() { w.verify(t) })
	caller := broker.Self(workload(triage, noon), noon)
	for _, test := range []struct {
		name   string
		scopes []string
		want   error
	}{
		{"scopes of another entitlement", []string{"tickets:read"}, broker.ErrInvalidScope},
		{"no scope", []string{}, broker.ErrInvalidScope},
		{"not limited", nil, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := onBehalf("ana", noon)
			d.Scopes = test.scopes
			_, _, err := w.broker.AskAndCollect(t.Context(), caller, broker.Ask{Entitlement: "db", Delegation: d}, broker.IdempotencyKey{})
			if !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
	whole := w.get(t, triage, broker.Ask{Entitlement: "db", Delegation: onBehalf("ana", noon)}, noon)
	below, err := broker.DelegationOf(t.Context(), w.broker, broker.Self(workload(search, noon), noon), token(whole))
	if err != nil {
		t.Fatal(err)
	}
	w.get(t, search, broker.Ask{Entitlement: "db", Delegation: below}, noon) // a link without scopes has the whole
}

// A person whose break-glass use is overdue for review does not break glass through agents, nor
// through one agent after another. What agents do never locks the person out.
func TestOverdueReviewCountsForThoseWhoActForThePerson(t *testing.T) {
	policies := delegationPolicies + `
@id("break-glass") @break_glass("security") @review_within("1h")
permit (principal, action == Action::"request", resource == Entitlement::"tickets");`
	later := noon.Add(2 * time.Hour)
	use := func(w *world, who broker.Identity, d *broker.Delegation, now time.Time) error {
		ask := breakGlass("tickets:read")
		ask.Delegation, ask.Justification = d, "the till is on fire"
		_, err := w.broker.Ask(t.Context(), broker.Self(who, now), ask, broker.IdempotencyKey{})
		return err
	}
	for name, test := range map[string]struct {
		by   func(now time.Time) broker.Identity
		from *broker.Delegation
		own  error // of the person's next use without an agent
	}{
		"by the person":    {func(now time.Time) broker.Identity { return approver("ana", now) }, nil, broker.ErrReviewOverdue},
		"through an agent": {func(now time.Time) broker.Identity { return workload(search, now) }, onBehalf("ana", noon), nil},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, worldConfig{policies: policies, issuers: map[string]broker.Issuer{"tickets": signer{}}})
			t.Cleanup(func() { w.verify(t) })
			if err := use(w, test.by(noon), test.from, noon); err != nil {
				t.Fatal(err)
			}
			if err := use(w, workload(triage, later), onBehalf("ana", later), later); !errors.Is(err, broker.ErrReviewOverdue) {
				t.Errorf("through another agent: got %v, want %v", err, broker.ErrReviewOverdue)
			}
			if err := use(w, workload(triage, later), onBehalf("ben", later), later); err != nil {
				t.Errorf("for another person: %v", err)
			}
			if err := use(w, approver("ana", later), nil, later); !errors.Is(err, test.own) {
				t.Errorf("by the person: got %v, want %v", err, test.own)
			}
		})
	}
}
