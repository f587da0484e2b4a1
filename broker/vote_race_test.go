package broker_test

import (
	"sync"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// runConcurrently runs all functions concurrently and counts those that succeed.
func runConcurrently(fs ...func() error) (succeeded int) {
	var all sync.WaitGroup
	var mu sync.Mutex
	start := make(chan struct{})
	for _, f := range fs {
		all.Go(func() {
			<-start
			if f() == nil {
				mu.Lock()
				succeeded++
				mu.Unlock()
			}
		})
	}
	close(start)
	all.Wait()
	return succeeded
}

// decisions counts the records that decided the request.
func decisions(t *testing.T, w *world, r *broker.Request) (n int) {
	t.Helper()
	for _, record := range w.records(t) {
		if record.Request == nil || record.Request.ID != r.ID.String() {
			continue
		}
		switch record.Kind {
		case audit.RequestApproved, audit.RequestDenied, audit.RequestWithdrawn:
			n++
		}
	}
	return n
}

// Concurrent calls lead to exactly one outcome of a request, which is recorded once.
func TestRacesHaveOneOutcome(t *testing.T) {
	w := peopleWorld(t, `@approval("2 of support, 1 of security")`)
	vote := func(name string, r *broker.Request, v broker.Vote) func() error {
		return func() error {
			_, err := w.vote(t, approver(name, noon), r, v, noon)
			return err
		}
	}
	withdraw := func(r *broker.Request) func() error {
		return func() error {
			_, err := w.broker.Withdraw(t.Context(), broker.Self(agent(noon), noon), r.ID)
			return err
		}
	}
	for i := range 12 {
		ask := read("tickets:read")
		ask.TTL = time.Duration(i+1) * time.Second
		fresh := func() *broker.Request {
			ask.Justification += "x"
			return w.ask(t, ask)
		}
		// The last two approvals, and the same person twice.
		r := fresh()
		if n := runConcurrently(vote("ben", r, yes), vote("cleo", r, yes), vote("dan", r, yes)); n != 3 {
			t.Fatalf("three concurrent approvers: got %d successes, want 3", n)
		}
		if decisions(t, w, r) != 1 {
			t.Fatalf("decided %d times, want 1", decisions(t, w, r))
		}
		r = fresh()
		if n := runConcurrently(vote("ben", r, yes), vote("ben", r, yes), vote("ben", r, yes)); n != 1 {
			t.Fatalf("three concurrent votes of one person: got %d successes, want 1", n)
		}
		if err := withdraw(r)(); err != nil {
			t.Fatal(err)
		}
		// Approving and withdrawing, approving and denying.
		for _, other := range []func(*broker.Request) func() error{withdraw, func(r *broker.Request) func() error { return vote("dan", r, denial) }} {
			r = fresh()
			for _, name := range []string{"ben", "cleo"} {
				if err := vote(name, r, yes)(); err != nil {
					t.Fatal(err)
				}
			}
			runConcurrently(vote("dan", r, yes), other(r))
			if decisions(t, w, r) != 1 {
				t.Fatalf("decided %d times, want 1", decisions(t, w, r))
			}
			now, err := w.broker.Request(t.Context(), broker.Self(agent(noon), noon), r.ID)
			if err != nil || now.Status == broker.RequestPending {
				t.Fatalf("got %+v, %v, want a decided request", now, err)
			}
			_, err = w.broker.Collect(t.Context(), broker.Self(agent(noon), noon), r.ID, broker.IdempotencyKey{})
			if (err == nil) != (now.Status == broker.RequestApproved) {
				t.Fatalf("status %v: collecting got %v, want success only if approved", now.Status, err)
			}
		}
	}
}
