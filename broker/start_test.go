package broker_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// The start of a grant must be neither in the past nor far in the future. A time of
// another century would be stored as a future one.
func TestStartIsNear(t *testing.T) {
	w := peopleWorld(t, `@approval("1 of support")`)
	for start, want := range map[time.Time]error{
		noon.Add(-time.Minute):                          nil, // the requester's clock is slow
		noon.Add(-time.Hour):                            broker.ErrInvalidTTL,
		time.Date(1542, 4, 11, 12, 25, 27, 0, time.UTC): broker.ErrInvalidTTL,
		time.Date(2300, 1, 1, 0, 0, 0, 0, time.UTC):     broker.ErrInvalidTTL,
		noon.Add(broker.MaxDuration).Add(time.Second):   broker.ErrInvalidTTL,
		noon.Add(broker.MaxDuration).Add(-time.Second):  nil,
	} {
		ask := read("tickets:read")
		ask.NotBefore = start
		if _, err := w.broker.Ask(t.Context(), broker.Self(agent(noon), noon), ask, broker.IdempotencyKey{}); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", start, err, want)
		}
	}
}

// Concurrent repeats of AskAndCollect for a grant that starts later return the same
// request and no credential.
func TestAskAndCollectBeforeTheStart(t *testing.T) {
	w := tokenWorld(t)
	ask := read("tickets:read")
	ask.NotBefore, ask.Duration = noon.Add(2*time.Hour), time.Hour
	again := broker.IdempotencyKey{ID: broker.IdempotencyID{1}, Body: audit.Digest{1}}
	ids := make([]broker.RequestID, 8)
	var group errgroup.Group
	for i := range ids {
		group.Go(func() error {
			issued, r, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(noon), noon), ask, again)
			if err != nil || issued != nil {
				return fmt.Errorf("got credential %+v, want none: %w", issued, err)
			}
			ids[i] = r.ID
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		if id != ids[0] {
			t.Fatalf("got requests %s and %s for one key", ids[0], id)
		}
	}
}
