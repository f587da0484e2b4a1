package broker_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// A lateStore does something, once, before the next transaction that votes.
type lateStore struct {
	broker.Store
	mu   sync.Mutex
	once func()
}

func (s *lateStore) before(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.once = f
}

func (s *lateStore) Update(ctx context.Context, reads []broker.Key, f func(broker.Tx) error) error {
	s.mu.Lock()
	once := s.once
	s.once = nil
	s.mu.Unlock()
	if once != nil {
		once()
	}
	return s.Store.Update(ctx, reads, f)
}

// lateWorld is a world of people, in which something may happen between
// deciding and writing.
func lateWorld(t *testing.T, annotations string) (*world, *lateStore) {
	t.Helper()
	late := &lateStore{}
	w := newWorld(t, worldConfig{policies: closing(annotations), issuers: map[string]broker.Issuer{"tickets": signer{}}, wrap: func(s broker.Store) broker.Store {
		late.Store = s
		return late
	}})
	t.Cleanup(func() { w.verify(t) })
	return w, late
}

// Whoever lost the group, or the right, before a vote is written does not
// approve by the rules before.
func TestVoteUnderNewRules(t *testing.T) {
	without := strings.Replace(testGroups, "login/ben, login/cleo", "login/cleo", 1)
	forbids := closing(`@approval("1 of support")`) + `@id("not-ben") forbid (principal == Person::"login/ben", action == Action::"approve", resource);`
	for name, test := range map[string]struct {
		policies, groups string
		want             error
	}{
		"out of the group":    {closing(`@approval("1 of support")`), without, broker.ErrNotFound},
		"forbidden":           {forbids, testGroups, broker.ErrNotApprover},
		"of no matter to ben": {closing(`@approval("1 of support")`) + `@id("more") forbid (principal == Person::"login/dan", action == Action::"approve", resource);`, testGroups, nil},
	} {
		t.Run(name, func(t *testing.T) {
			w, late := lateWorld(t, `@approval("1 of support")`)
			r := w.ask(t, read("tickets:read"))
			late.before(func() { w.adopt(t, test.policies, test.groups) })
			_, err := w.vote(t, approver("ben", noon), r, yes, noon)
			if !errors.Is(err, test.want) || (err == nil) != (test.want == nil) {
				t.Errorf("%v, want %v", err, test.want)
			}
			if got := settled(t, w, r); (got == 1) != (test.want == nil) {
				t.Errorf("settled %d times", got)
			}
		})
	}
}

// A review is by the rules that are in force when it is written, too.
func TestReviewUnderNewRules(t *testing.T) {
	w, late := lateWorld(t, ``)
	issued, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(noon), noon), glass("tickets:read"), broker.IdempotencyKey{})
	if err != nil {
		t.Fatal(err)
	}
	late.before(func() { w.adopt(t, closing(``), strings.Replace(testGroups, "login/ben, login/dan", "login/ben", 1)) })
	finding := broker.Vote{Digest: issued.Request.Digest, Comment: "fine"}
	if _, err := w.broker.Review(t.Context(), broker.Self(approver("dan", noon), noon), issued.Request.ID, finding); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("%v", err)
	}
}

// A vote that set out before a request lapsed, and arrives after an identical
// one took its place, approves nothing.
func TestVoteThatComesTooLate(t *testing.T) {
	w, late := lateWorld(t, `@approval("1 of support") @lapse_after("10m")`)
	r := w.ask(t, read("tickets:read"))
	end := noon.Add(10 * time.Minute)
	var second *broker.Request
	late.before(func() {
		var err error
		if second, err = w.broker.Ask(t.Context(), broker.Self(agent(end), end), read("tickets:read"), broker.IdempotencyKey{}); err != nil {
			t.Error(err)
		}
	})
	_, err := w.vote(t, approver("ben", noon), r, yes, end.Add(-time.Second))
	if !errors.Is(err, broker.ErrNotPending) || second.ID == r.ID {
		t.Fatalf("%v; the second is %v", err, second.ID)
	}
	// Nor is the second one lost by taking back the first, late.
	if _, err := w.broker.Withdraw(t.Context(), broker.Self(agent(noon), end.Add(-time.Second)), r.ID); err != nil {
		t.Fatal(err)
	}
	again, err := w.broker.Ask(t.Context(), broker.Self(agent(end), end), read("tickets:read"), broker.IdempotencyKey{})
	if err != nil || again.ID != second.ID {
		t.Errorf("%v, %v: it is no longer found", again, err)
	}
	wantKinds(t, w, audit.RequestCreated, audit.RequestCreated, audit.RequestWithdrawn)
}

// A vote whose transaction takes until the request has lapsed approves nothing.
func TestVoteThatTakesTooLong(t *testing.T) {
	w, late := lateWorld(t, `@approval("1 of support") @lapse_after("10m")`)
	r := w.ask(t, read("tickets:read"))
	last := noon.Add(10*time.Minute - time.Nanosecond)
	late.before(func() { // on a clock that may be as coarse as it likes
		for start := time.Now(); time.Since(start) <= 0; {
			continue
		}
	})
	if _, err := w.vote(t, approver("ben", noon), r, yes, last); !errors.Is(err, broker.ErrNotPending) {
		t.Fatalf("%v", err)
	}
	wantKinds(t, w, audit.RequestCreated)
}

// Of two last approvals, or of one and the lapse, and of one and a withdrawal,
// exactly one makes the outcome.
func TestTwoLastApprovals(t *testing.T) {
	w, late := lateWorld(t, `@approval("1 of support")`)
	ben, cleo := approver("ben", noon), approver("cleo", noon)
	for name, first := range map[string]func(r *broker.Request) error{
		"another approval": func(r *broker.Request) error { _, err := w.vote(t, cleo, r, yes, noon); return err },
		"a no":             func(r *broker.Request) error { _, err := w.vote(t, cleo, r, broker.Vote{}, noon); return err },
		"a withdrawal": func(r *broker.Request) error {
			_, err := w.broker.Withdraw(t.Context(), broker.Self(agent(noon), noon), r.ID)
			return err
		},
	} {
		ask := read("tickets:read")
		ask.Justification = name
		r := w.ask(t, ask)
		late.before(func() {
			if err := first(r); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
		if _, err := w.vote(t, ben, r, yes, noon); !errors.Is(err, broker.ErrNotPending) {
			t.Errorf("%s came first: %v", name, err)
		}
		if n := settled(t, w, r); n != 1 {
			t.Errorf("%s came first: settled %d times", name, n)
		}
	}
}

// Taking away every scope is no way to say "as asked".
func TestApprovalOfNothing(t *testing.T) {
	w := peopleWorld(t, `@approval("1 of support")`)
	r := w.ask(t, read("tickets:close", "tickets:read"))
	if _, err := w.vote(t, approver("ben", noon), r, broker.Vote{Approve: true, Scopes: []string{}}, noon); !errors.Is(err, broker.ErrInvalidScope) {
		t.Errorf("%v", err)
	}
	if slices.Contains(w.kinds(t), audit.RequestApproved) {
		t.Error("it was approved")
	}
}
