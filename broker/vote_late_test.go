package broker_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// A vote is judged by the rules in force when it is written: an approver who lost the
// group or the permission in between does not approve.
func TestVoteUnderNewRules(t *testing.T) {
	without := strings.Replace(testGroups, "login/ben, login/cleo", "login/cleo", 1)
	forbids := closePolicies(`@approval("1 of support")`) + `@id("not-ben") forbid (principal == Person::"login/ben", action == Action::"approve", resource);`
	for name, test := range map[string]struct {
		policies, groups string
		want             error
	}{
		"left the group":   {closePolicies(`@approval("1 of support")`), without, broker.ErrNotFound},
		"forbidden":        {forbids, testGroups, broker.ErrNotApprover},
		"another approver": {closePolicies(`@approval("1 of support")`) + `@id("more") forbid (principal == Person::"login/dan", action == Action::"approve", resource);`, testGroups, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var before func()
			w := hookedWorld(t, `@approval("1 of support")`, &before)
			r := w.ask(t, read("tickets:read"))
			before = func() { w.adopt(t, test.policies, test.groups) }
			_, err := w.vote(t, approver("ben", noon), r, yes, noon)
			if !errors.Is(err, test.want) || (err == nil) != (test.want == nil) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			if got := decisions(t, w, r); (got == 1) != (test.want == nil) {
				t.Errorf("got %d decisions, want one only for a valid vote", got)
			}
		})
	}
}

// A review is judged by the rules in force when it is written, too.
func TestReviewUnderNewRules(t *testing.T) {
	var before func()
	w := hookedWorld(t, ``, &before)
	issued, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(noon), noon), breakGlass("tickets:read"), broker.IdempotencyKey{})
	if err != nil {
		t.Fatal(err)
	}
	before = func() {
		w.adopt(t, closePolicies(``), strings.Replace(testGroups, "login/ben, login/dan", "login/ben", 1))
	}
	verdict := broker.Vote{Digest: issued.Request.Digest, Comment: "fine"}
	if _, err := w.broker.Review(t.Context(), broker.Self(approver("dan", noon), noon), issued.Request.ID, verdict); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("got %v, want %v", err, broker.ErrNotFound)
	}
}

// A vote that began before a request lapsed, and is written after an identical request
// has replaced it, approves nothing.
func TestLateVoteAfterReplacement(t *testing.T) {
	var before func()
	w := hookedWorld(t, `@approval("1 of support") @lapse_after("10m")`, &before)
	r := w.ask(t, read("tickets:read"))
	end := noon.Add(10 * time.Minute)
	var second *broker.Request
	before = func() {
		var err error
		if second, err = w.broker.Ask(t.Context(), broker.Self(agent(end), end), read("tickets:read"), broker.IdempotencyKey{}); err != nil {
			t.Error(err)
		}
	}
	_, err := w.vote(t, approver("ben", noon), r, yes, end.Add(-time.Second))
	if !errors.Is(err, broker.ErrNotPending) || second.ID == r.ID {
		t.Fatalf("got %v, second request %v, want %v and a new request", err, second.ID, broker.ErrNotPending)
	}
	// A late withdrawal of the first request does not affect the second one.
	if _, err := w.broker.Withdraw(t.Context(), broker.Self(agent(noon), end.Add(-time.Second)), r.ID); err != nil {
		t.Fatal(err)
	}
	again, err := w.broker.Ask(t.Context(), broker.Self(agent(end), end), read("tickets:read"), broker.IdempotencyKey{})
	if err != nil || again.ID != second.ID {
		t.Errorf("identical request: got %v, %v, want %s", again, err, second.ID)
	}
	wantKinds(t, w, audit.RequestCreated, audit.RequestCreated, audit.RequestWithdrawn)
}

// A vote whose transaction ends after the request has lapsed approves nothing.
func TestVoteWrittenAfterTheLapse(t *testing.T) {
	var before func()
	w := hookedWorld(t, `@approval("1 of support") @lapse_after("10m")`, &before)
	r := w.ask(t, read("tickets:read"))
	last := noon.Add(10*time.Minute - time.Nanosecond)
	before = func() { // the resolution of the clock does not matter
		for start := time.Now(); time.Since(start) <= 0; {
			continue
		}
	}
	if _, err := w.vote(t, approver("ben", noon), r, yes, last); !errors.Is(err, broker.ErrNotPending) {
		t.Fatalf("got %v, want %v", err, broker.ErrNotPending)
	}
	wantKinds(t, w, audit.RequestCreated)
}

// A last approval loses to an approval, a denial or a withdrawal that is written
// first: exactly one of them decides the outcome.
func TestTwoLastApprovals(t *testing.T) {
	var before func()
	w := hookedWorld(t, `@approval("1 of support")`, &before)
	ben, cleo := approver("ben", noon), approver("cleo", noon)
	for name, first := range map[string]func(r *broker.Request) error{
		"another approval": func(r *broker.Request) error { _, err := w.vote(t, cleo, r, yes, noon); return err },
		"a denial":         func(r *broker.Request) error { _, err := w.vote(t, cleo, r, denial, noon); return err },
		"a withdrawal": func(r *broker.Request) error {
			_, err := w.broker.Withdraw(t.Context(), broker.Self(agent(noon), noon), r.ID)
			return err
		},
	} {
		ask := read("tickets:read")
		ask.Justification = name
		r := w.ask(t, ask)
		before = func() {
			if err := first(r); err != nil {
				t.Errorf("%s: got %v, want no error", name, err)
			}
		}
		if _, err := w.vote(t, ben, r, yes, noon); !errors.Is(err, broker.ErrNotPending) {
			t.Errorf("%s first: got %v, want %v", name, err, broker.ErrNotPending)
		}
		if n := decisions(t, w, r); n != 1 {
			t.Errorf("%s first: decided %d times, want 1", name, n)
		}
	}
}

// An empty list of scopes does not mean "as requested".
func TestApprovalWithoutScopes(t *testing.T) {
	w := peopleWorld(t, `@approval("1 of support")`)
	r := w.ask(t, read("tickets:close", "tickets:read"))
	if _, err := w.vote(t, approver("ben", noon), r, broker.Vote{Approve: true, Scopes: []string{}}, noon); !errors.Is(err, broker.ErrInvalidScope) {
		t.Errorf("got %v, want %v", err, broker.ErrInvalidScope)
	}
	if slices.Contains(w.kinds(t), audit.RequestApproved) {
		t.Error("got a record of an approval, want none")
	}
}
