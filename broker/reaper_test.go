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

// A moody system says it is unavailable as long as it is down.
type moody struct {
	system
	down  atomic.Bool
	tries atomic.Int64

	asked sync.Mutex
	first []broker.LeaseID // that it was asked to end, the first 16, which are asked for at once

	// gather, if not nil, makes the first 16 calls wait for each other: without it,
	// a call that returns early lets a later one overtake the others.
	gather *sync.WaitGroup
}

func (m *moody) Revoke(ctx context.Context, l broker.Lease) error {
	m.tries.Add(1)
	m.asked.Lock()
	among := len(m.first) < 16
	if among {
		m.first = append(m.first, l.ID)
	}
	m.asked.Unlock()
	if among && m.gather != nil {
		m.gather.Done()
		m.gather.Wait()
	}
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

// A credential that nobody was answered does not wait behind a thousand others
// that are due.
func TestUnfinishedIssuingComesFirst(t *testing.T) {
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
	late := noon.Add(10 * time.Minute) // when they all fall due
	s.left.Store(1)                    // its lease is opened, and then the broker dies
	db.down.Store(true)
	if err := ask(late); err == nil {
		t.Fatal("it was issued")
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
		t.Errorf("what nobody was answered was not ended first")
	}
}

// What has expired and its issuer was not told of may still work: it is listed
// with what lives, whoever gives it back or pulls the kill switch reaches it, and
// it is gone from there once its issuer has ended it.
func TestWhatIsStillOwedIsLive(t *testing.T) {
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
				t.Errorf("the preview: %+v, %v", seen, err)
			}
			_, err = w.broker.RevokeAll(t.Context(), broker.Self(root, now), all, "incident", seen.Digest, false)
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
				t.Fatalf("expired, and not ended: %+v", page)
			}
			if err := end(w, id, late); err != nil {
				t.Fatal(err)
			}
			if _, err := w.broker.Reap(t.Context(), late); err != nil {
				t.Fatal(err)
			}
			if page := live(); len(page) != 0 || len(db.live) != 0 {
				t.Errorf("once it was ended: %+v, and %d of its credentials work", page, len(db.live))
			}
			w.verify(t)
		})
	}
}

// How late an end is counts from when it was due, or first asked for, to when
// the issuer confirmed it, whatever was tried between. An end that is not
// confirmed has no lag.
func TestEndingSaysHowLateItIs(t *testing.T) {
	due := noon.Add(testCatalogue()["db"].DefaultTTL)
	for name, test := range map[string]struct {
		givenBack time.Time // by its holder; zero: never
		down      bool      // until it has been tried once
		ended     time.Time
		late      time.Duration
	}{
		"looked at late":       {ended: due.Add(2 * time.Minute), late: 2 * time.Minute},
		"due, and tried again": {down: true, ended: due.Add(20 * time.Minute), late: 20 * time.Minute},
		"given back":           {givenBack: noon.Add(time.Minute), ended: noon.Add(time.Minute)},
		"given back, and late": {givenBack: noon.Add(time.Minute), down: true, ended: noon.Add(4 * time.Minute), late: 3 * time.Minute},
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
			if !test.givenBack.IsZero() {
				if _, err := w.broker.Revoke(t.Context(), broker.Self(agent(noon), test.givenBack), issued.Lease.ID, ""); err != nil {
					t.Fatal(err)
				}
			} else if test.down {
				w.reap(t, due)
			}
			db.down.Store(false)
			w.reap(t, test.ended)

			last := len(ends) - 1
			if last < 0 || test.down != (last == 1) {
				t.Fatalf("it says %+v", ends)
			}
			l := w.leases(t)[0]
			// What telling the issuer took, by the real clock, is a part of it.
			if got := ends[last].Lag; ends[last].Code != string(broker.RevokedImmediate) || got != l.Ended.Sub(l.EndAsked) || got.Round(time.Minute) != test.late {
				t.Errorf("it says %+v, want %s late; asked for at %s, ended at %s", ends[last], test.late, l.EndAsked, l.Ended)
			}
			for _, tried := range ends[:last] {
				if tried.Lag != 0 || tried.Code != string(broker.RevokedPending) {
					t.Errorf("a try that failed says %+v", tried)
				}
			}
		})
	}
}
