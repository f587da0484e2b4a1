package broker_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"accessbroker.internal/broker"
)

// A moody system says it is unavailable as long as it is down.
type moody struct {
	system
	down  atomic.Bool
	tries atomic.Int64
}

func (m *moody) Revoke(ctx context.Context, l broker.Lease) error {
	m.tries.Add(1)
	if m.down.Load() {
		return fmt.Errorf("%w: down", broker.ErrIssuerUnavailable)
	}
	return m.system.Revoke(ctx, l)
}

// An issuer that is down is asked now and then by one call, however many
// leases are due, and all of them end when it is back. What others have to end
// does not wait for it.
func TestAnIssuerThatIsDownIsSpared(t *testing.T) {
	const leases = 200
	sick := &moody{system: system{live: map[string]time.Time{}}}
	well := &moody{system: system{live: map[string]time.Time{}}}
	w := newWorld(t, worldConfig{issuers: map[string]broker.Issuer{"db": sick, "tickets": well}})
	tickets := w.rules.Catalogue["tickets"]
	tickets.Audience, tickets.Revocation = "", broker.RevokedImmediate
	for range leases {
		for _, ask := range []broker.Ask{{Entitlement: "db"}, read("tickets:read")} {
			if _, _, err := w.broker.AskAndCollect(t.Context(), agent(noon), ask, broker.Again{}, noon); err != nil {
				t.Fatal(err)
			}
		}
	}
	sick.down.Store(true)
	now := noon.Add(time.Hour)
	reap := func() {
		t.Helper()
		if _, err := w.broker.Reap(t.Context(), now); err != nil {
			t.Fatal(err)
		}
	}
	reap()
	if n := len(well.live); n != 0 {
		t.Errorf("%d credentials of the healthy issuer still work", n)
	}
	first := sick.tries.Load()
	if first < 1 || first > 3*16 {
		t.Errorf("the issuer that is down was asked %d times, at 16 calls at a time", first)
	}
	reap()
	if n := sick.tries.Load(); n != first {
		t.Errorf("it was asked %d times more in the same moment", n-first)
	}
	for range 10 {
		now = now.Add(2 * time.Minute)
		reap()
	}
	if n := sick.tries.Load() - first; n < 1 || n > 10 {
		t.Errorf("over twenty minutes it was asked %d times more, want at most once each two", n)
	}
	sick.down.Store(false)
	for range 3 {
		now = now.Add(10 * time.Minute)
		reap()
	}
	if n := len(sick.live); n != 0 {
		t.Errorf("%d credentials still work after it was back for half an hour", n)
	}
	w.verify(t)
}
