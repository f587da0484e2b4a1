package broker_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"accessbroker.internal/broker"
)

// A moody system is unavailable while down is set.
type moody struct {
	system
	down  atomic.Bool
	tries atomic.Int64

	mu    sync.Mutex
	first []broker.LeaseID // the first 16 leases that it was called for

	// gather, if set, makes the first 16 calls wait for each other. Otherwise a call
	// that returns early lets a later one overtake the others.
	gather *sync.WaitGroup
}

func (m *moody) Revoke(ctx context.Context, l broker.Lease) error {
	m.tries.Add(1)
	m.mu.Lock()
	among := len(m.first) < 16
	if among {
		m.first = append(m.first, l.ID)
	}
	m.mu.Unlock()
	if among && m.gather != nil {
		m.gather.Done()
		m.gather.Wait()
	}
	if m.down.Load() {
		return fmt.Errorf("%w: down", broker.ErrIssuerUnavailable)
	}
	return m.system.Revoke(ctx, l)
}

// An issuer that is down gets one call at a time, with pauses, no matter how many
// leases are due. All of them end when it is back. Leases of other issuers do not
// wait.
func TestReaperProtectsIssuerThatIsDown(t *testing.T) {
	const leases = 200
	sick := &moody{system: system{live: map[string]time.Time{}}}
	well := &moody{system: system{live: map[string]time.Time{}}}
	w := newWorld(t, worldConfig{issuers: map[string]broker.Issuer{"db": sick, "tickets": well}})
	tickets := w.rules.Catalogue["tickets"]
	tickets.Audience, tickets.Revocation = "", broker.RevokedImmediate
	for range leases {
		for _, ask := range []broker.Ask{{Entitlement: "db"}, read("tickets:read")} {
			if _, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(noon), noon), ask, broker.IdempotencyKey{}); err != nil {
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
		t.Errorf("got %d calls to the issuer that is down, with 16 in parallel", first)
	}
	reap()
	if n := sick.tries.Load(); n != first {
		t.Errorf("got %d more calls at the same time", n-first)
	}
	for range 10 {
		now = now.Add(2 * time.Minute)
		reap()
	}
	if n := sick.tries.Load() - first; n < 1 || n > 10 {
		t.Errorf("got %d more calls in 20 minutes, want at most one every 2 minutes", n)
	}
	sick.down.Store(false)
	for range 3 {
		now = now.Add(10 * time.Minute)
		reap()
	}
	if n := len(sick.live); n != 0 {
		t.Errorf("%d credentials still work 30 minutes after the issuer is back", n)
	}
	w.verify(t)
}

// A credential that no one received does not wait behind a thousand due leases.
func TestReaperEndsUnfinishedLeasesFirst(t *testing.T) {
	db := &moody{system: system{live: map[string]time.Time{}}}
	s := &dying{}
	s.left.Store(1 << 20)
	w := newWorld(t, worldConfig{issuers: map[string]broker.Issuer{"db": db}, wrap: func(real broker.Store) broker.Store { s.Store = real; return s }})
	ask := func(now time.Time) error {
		_, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(now), now), broker.Ask{Entitlement: "db"}, broker.IdempotencyKey{})
		return err
	}
	for range 1200 {
		if err := ask(noon); err != nil {
			t.Fatal(err)
		}
	}
	late := noon.Add(10 * time.Minute) // when all of them are due
	s.left.Store(1)                    // the lease is opened, then the broker dies
	db.down.Store(true)
	if err := ask(late); err == nil {
		t.Fatal("the credential was issued")
	}
	db.down.Store(false)
	again := w.restart(t, map[string]broker.Issuer{"db": db})
	db.first, db.gather = nil, &sync.WaitGroup{}
	db.gather.Add(16)
	if _, err := again.Reap(t.Context(), late.Add(21*time.Second)); err != nil {
		t.Fatal(err)
	}
	newest := w.leases(t)[0]
	if !slices.Contains(db.first, newest.ID) {
		t.Errorf("the unfinished lease was not ended first")
	}
}

// An expired lease whose issuer was not called may still work. It is listed as
// live, its holder and the kill switch can end it, and it disappears from the list
// once its issuer has ended it.
func TestExpiredLeaseIsLiveUntilRevoked(t *testing.T) {
	for name, end := range map[string]func(*world, broker.LeaseID, time.Time) error{
		"by the reaper": func(w *world, _ broker.LeaseID, now time.Time) error { return nil },
		"by its holder": func(w *world, id broker.LeaseID, now time.Time) error {
			_, err := w.broker.Revoke(t.Context(), broker.Self(agent(now), now), id, "")
			return err
		},
		"by the kill switch": func(w *world, _ broker.LeaseID, now time.Time) error {
			all := broker.Selector{Entitlement: "db"}
			seen, err := w.broker.Preview(t.Context(), broker.Self(root, now), all)
			if err != nil || seen.Leases != 1 || seen.ByIssuer["db"] != 1 {
				t.Errorf("preview: got %+v, %v", seen, err)
			}
			_, err = w.broker.RevokeAll(t.Context(), broker.Self(root, now), all, "incident", broker.Consent{Seen: seen.Digest})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			db := &moody{system: system{live: map[string]time.Time{}}}
			w := newWorld(t, worldConfig{issuers: map[string]broker.Issuer{"db": db, "tickets": signer{}}})
			var id broker.LeaseID
			for _, ask := range []broker.Ask{read("tickets:read"), {Entitlement: "db"}} {
				issued, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(noon), noon), ask, broker.IdempotencyKey{})
				if err != nil {
					t.Fatal(err)
				}
				id = issued.Lease.ID
			}
			late := noon.Add(time.Hour)
			live := func() []*broker.Lease {
				page, _, err := w.broker.Leases(t.Context(), broker.Self(root, late), broker.LeaseQuery{Holder: broker.Everyone, Live: true})
				if err != nil {
					t.Fatal(err)
				}
				return page
			}
			if page := live(); len(page) != 1 || page[0].ID != id || page[0].State(late) != broker.LeaseExpired {
				t.Fatalf("live after expiry: got %+v", page)
			}
			if err := end(w, id, late); err != nil {
				t.Fatal(err)
			}
			if _, err := w.broker.Reap(t.Context(), late); err != nil {
				t.Fatal(err)
			}
			if page := live(); len(page) != 0 || len(db.live) != 0 {
				t.Errorf("after the end: live leases %+v, %d working credentials", page, len(db.live))
			}
			w.verify(t)
		})
	}
}

// The lag of a revocation is the time from when it was due or first requested to
// the issuer's confirmation, regardless of failed attempts. An unconfirmed
// revocation has no lag.
func TestRevocationLag(t *testing.T) {
	due := noon.Add(testCatalogue()["db"].DefaultTTL)
	for name, test := range map[string]struct {
		returned time.Time // by the holder; zero: never
		down     bool      // until after the first attempt
		ended    time.Time
		late     time.Duration
	}{
		"late pass":         {ended: due.Add(2 * time.Minute), late: 2 * time.Minute},
		"due and retried":   {down: true, ended: due.Add(20 * time.Minute), late: 20 * time.Minute},
		"returned":          {returned: noon.Add(time.Minute), ended: noon.Add(time.Minute)},
		"returned and late": {returned: noon.Add(time.Minute), down: true, ended: noon.Add(4 * time.Minute), late: 3 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			var ends []broker.Event
			db := &moody{system: system{live: map[string]time.Time{}}}
			w := newWorld(t, worldConfig{issuers: map[string]broker.Issuer{"db": db}, observe: func(e broker.Event) {
				if e.Kind == broker.EventRevocation {
					ends = append(ends, e)
				}
			}})
			issued, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(noon), noon), broker.Ask{Entitlement: "db"}, broker.IdempotencyKey{})
			if err != nil {
				t.Fatal(err)
			}
			db.down.Store(test.down)
			if !test.returned.IsZero() {
				if _, err := w.broker.Revoke(t.Context(), broker.Self(agent(noon), test.returned), issued.Lease.ID, ""); err != nil {
					t.Fatal(err)
				}
			} else if test.down {
				w.reap(t, due)
			}
			db.down.Store(false)
			w.reap(t, test.ended)

			last := len(ends) - 1
			if last < 0 || test.down != (last == 1) {
				t.Fatalf("got events %+v", ends)
			}
			l := w.leases(t)[0]
			// The lag includes the real time of the call.
			if got := ends[last].Lag; ends[last].Code != string(broker.RevokedImmediate) || got != l.Ended.Sub(l.EndAsked) || got.Round(time.Minute) != test.late {
				t.Errorf("got %+v, want a lag of %s; due at %s, ended at %s", ends[last], test.late, l.EndAsked, l.Ended)
			}
			for _, tried := range ends[:last] {
				if tried.Lag != 0 || tried.Code != string(broker.RevokedPending) {
					t.Errorf("failed attempt: got %+v", tried)
				}
			}
		})
	}
}
