package broker_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"accessbroker.internal/broker"
)

// A call that waits for a decision returns when the request lapses.
func TestAwaitReturnsWhenTheRequestLapses(t *testing.T) {
	w := peopleWorld(t, `@approval("1 of support")`)
	r := w.ask(t, read("tickets:close"))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	before := r.Lapses.Add(-20 * time.Millisecond)
	got, err := w.broker.Await(ctx, broker.Self(agent(before), before), r.ID, r.Version, nil)
	if err != nil || ctx.Err() != nil || got.Version != r.Version || got.State(r.Lapses) != broker.RequestLapsed {
		t.Errorf("got %+v, %v, %v, want the lapsed request before the context ends", got, err, ctx.Err())
	}
}

// A signature counter must grow, unless the authenticator does not count.
func TestSignatureCounters(t *testing.T) {
	later := noon.Add(tomorrow)
	for name, test := range map[string]struct {
		first, second uint32
		want          error
	}{
		"no counter":    {0, 0, nil},
		"it grows":      {7, 8, nil},
		"it stays":      {7, 7, broker.ErrSignatureRequired},
		"it goes back":  {7, 6, broker.ErrSignatureRequired},
		"it disappears": {7, 0, broker.ErrSignatureRequired},
		"it appears":    {0, 2, nil},
	} {
		w := peopleWorld(t, signedPolicy)
		key := w.enrols(t, "ben", noon)
		sign := func(why string, count uint32) error {
			r := w.askAt(t, withReason(read("tickets:close"), why), later)
			if key.Counter = count; count > 0 {
				key.Counter-- // the key counts before it signs
			}
			_, err := w.vote(t, approver("ben", later), r, w.signs(t, "ben", key, r, yes, later), later)
			return err
		}
		if err := sign("first", test.first); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := sign("second", test.second); !errors.Is(err, test.want) {
			t.Errorf("%s: got %v, want %v", name, err, test.want)
		}
	}
}
