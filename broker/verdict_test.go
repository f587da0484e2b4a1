package broker_test

import (
	"testing"

	"accessbroker.internal/broker"
)

// Two verdicts at the same moment both count, and the closed review leaves nothing
// in the list of open ones.
func TestVerdictsAtTheSameMoment(t *testing.T) {
	var before func()
	w := newWorld(t, worldConfig{
		policies: closePolicies(`@approval("1 of support")`), issuers: map[string]broker.Issuer{"tickets": signer{}},
		wrap: func(s broker.Store) broker.Store { return hookedStore{s, &before} },
	})
	ask := breakGlass("tickets:read")
	ask.Justification = "the till is on fire"
	r := w.ask(t, ask)
	review := func(name string) *broker.Request {
		t.Helper()
		reviewed, err := w.broker.Review(t.Context(), broker.Self(approver(name, noon), noon), r.ID, broker.Vote{Approve: true, Digest: r.Digest, Comment: "it was"})
		if err != nil {
			t.Error(err)
			return &broker.Request{}
		}
		return reviewed
	}
	if open := w.openReviews(t); len(open.Open) != 1 || len(open.By) != 1 {
		t.Errorf("got open reviews %+v, want one", open)
	}
	before = func() { review("cleo") }
	if got := review("dan"); len(got.Verdicts) != 2 || got.Reviewed.IsZero() {
		t.Errorf("got verdicts %+v, reviewed at %s, want both and a closed review", got.Verdicts, got.Reviewed)
	}
	if open := w.openReviews(t); len(open.Open) != 0 || len(open.By) != 0 {
		t.Errorf("got open reviews %+v, want none", open)
	}
	w.verify(t)
}

func (w *world) openReviews(t *testing.T) (open *broker.Reviews) {
	t.Helper()
	err := w.store.View(t.Context(), func(tx broker.Tx) (err error) {
		open, err = broker.Get[*broker.Reviews](tx, broker.ReviewKey{Entitlement: "tickets"})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return open
}

// Two votes at the same moment both count, also if neither decides alone.
func TestVotesAtTheSameMoment(t *testing.T) {
	var before func()
	w := newWorld(t, worldConfig{
		policies: closePolicies(`@approval("1 of support, 1 of security")`), issuers: map[string]broker.Issuer{"tickets": signer{}},
		wrap: func(s broker.Store) broker.Store { return hookedStore{s, &before} },
	})
	asked := w.ask(t, read("tickets:close"))
	before = func() {
		if _, err := w.vote(t, approver("dan", noon), asked, yes, noon); err != nil {
			t.Error(err)
		}
	}
	r, err := w.vote(t, approver("cleo", noon), asked, yes, noon)
	if err != nil || r.Status != broker.RequestApproved || len(r.Approvals) != 2 {
		t.Errorf("got %+v, %v, want an approved request with two approvals", r, err)
	}
	w.verify(t)
}

// An approval that its person turned into a denial no longer counts.
func TestDenialReplacesApproval(t *testing.T) {
	w := peopleWorld(t, `@approval("1 of support, 1 of security") @deny("2")`)
	asked := w.ask(t, read("tickets:close"))
	no := denial
	for i, v := range []struct {
		person string
		vote   broker.Vote
		want   broker.RequestStatus
	}{
		{"cleo", yes, broker.RequestPending},
		{"cleo", no, broker.RequestPending},
		{"dan", yes, broker.RequestPending}, // with cleo's approval it would be approved
		{"dan", no, broker.RequestDenied},
	} {
		r, err := w.vote(t, approver(v.person, noon), asked, v.vote, noon)
		if err != nil || r.Status != v.want {
			t.Fatalf("vote %d: got %+v, %v, want status %d", i, r, err, v.want)
		}
	}
}
