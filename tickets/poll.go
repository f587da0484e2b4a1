package tickets

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"accessbroker.internal/broker"
)

// hint looks at a ticket soon, if access may rest on it. Within an interval, one hint leads
// to a look of its own, however many there are; the others move nothing.
func (w *Watcher) hint(key broker.StandingKey, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	e := w.list[key]
	if e == nil || now.Sub(e.hinted) < e.tracker.Interval && !e.hinted.IsZero() {
		return
	}
	e.hinted, e.next = now, now
	w.stir()
}

// stir makes Run look for work at once.
func (w *Watcher) stir() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Run looks at tickets on which access rests until ctx ends.
func (w *Watcher) Run(ctx context.Context) error {
	if len(w.trackers) == 0 {
		return nil
	}
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	var running sync.WaitGroup
	defer running.Wait()
	var loaded time.Time
	for {
		if loaded.IsZero() || w.cfg.Duties != broker.Alone && time.Since(loaded) > loadEvery {
			err := w.load(ctx, time.Now())
			if err == nil {
				loaded = time.Now()
			} else if ctx.Err() == nil {
				w.cfg.Log.ErrorContext(ctx, "listing tickets", "err", err)
			}
		}
		for _, e := range w.due(time.Now()) {
			running.Go(func() { w.poll(ctx, e) })
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-w.wake:
		}
	}
}

// loadEvery is how often a process looks for tickets on which other processes let access rest.
const loadEvery = 30 * time.Second

// load finds the tickets on which access rests after a start, or because of another process.
// They are looked at within one interval, spread over it.
func (w *Watcher) load(ctx context.Context, now time.Time) error {
	for after := ""; ; {
		page, err := w.cfg.Facts().List(ctx, broker.FactTicket, after, loadPage)
		if err != nil {
			return err
		}
		for _, s := range page {
			after = s.Name
			if w.watches(s.StandingKey) {
				continue
			}
			if err := w.resume(ctx, s.StandingKey, now); err != nil {
				return err
			}
		}
		if len(page) == 0 {
			return nil
		}
	}
}

func (w *Watcher) watches(key broker.StandingKey) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.list[key] != nil
}

// resume watches a ticket again after a start. What it no longer carries ends at once: its
// change window may have ended meanwhile, or the end of a grant was interrupted.
func (w *Watcher) resume(ctx context.Context, key broker.StandingKey, now time.Time) error {
	name, id, _ := strings.Cut(key.Name, "/")
	t := w.trackers[name]
	if t == nil {
		return nil
	}
	used, err := w.cfg.Facts().HasResting(ctx, key, now)
	if err != nil || !used {
		return err
	}
	if err := w.cfg.Facts().CheckTicket(ctx, key, now); err != nil {
		return err
	}
	e, err := w.watch(t, id, false)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if e.looked.IsZero() { // a request has not looked at it already
		e.next = now.Add(rand.N(t.Interval/2 + 1))
	}
	return nil
}

// due returns the tickets whose time has come, the longest unseen first, and for each
// tracker as many as may be looked at. It sets a next time, so that none is returned twice.
func (w *Watcher) due(now time.Time) (list []*watched) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range w.list {
		if e.flight == nil && !e.next.IsZero() && !now.Before(e.next) {
			list = append(list, e)
		}
	}
	slices.SortFunc(list, func(a, b *watched) int { return a.looked.Compare(b.looked) })
	return slices.DeleteFunc(list, func(e *watched) bool {
		line := w.lines[e.tracker.Name]
		if line.polling >= pollAtOnce {
			return true
		}
		line.polling++
		e.next = now.Add(e.tracker.Interval)
		return false
	})
}

// poll looks at a ticket, or drops it if nothing rests on it.
func (w *Watcher) poll(ctx context.Context, e *watched) {
	now, line := time.Now(), w.lines[e.tracker.Name]
	defer func() {
		w.mu.Lock()
		line.polling--
		w.mu.Unlock()
		w.stir() // others may wait for the place
	}()
	key := e.tracker.key(e.id)
	used, err := w.cfg.Facts().HasResting(ctx, key, now)
	switch {
	case err != nil:
		return // tried again after an interval
	case !used:
		if err := w.drop(ctx, key, e, now); err != nil {
			w.cfg.Log.ErrorContext(ctx, "leaving a ticket", "ticket", key.String(), "err", err)
		}
		return
	}
	// A process looks when a caller waits for it. Otherwise one looks for all of them.
	name := "tickets/" + e.tracker.Name
	duty := w.cfg.Duties.Hold(ctx, name)
	defer duty.End()
	if duty.Has(name) {
		_, _ = w.look(ctx, e, line.polls, 0) // it has reported and logged the outcome
	}
}

// drop forgets a ticket. One that was looked at for a caller a moment ago stays: its
// request may not be stored yet.
func (w *Watcher) drop(ctx context.Context, key broker.StandingKey, e *watched, now time.Time) error {
	w.mu.Lock()
	unused := e.flight == nil && now.Sub(e.looked) >= e.tracker.Interval
	if unused {
		delete(w.list, key)
	}
	w.mu.Unlock()
	if !unused {
		return nil
	}
	return w.cfg.Facts().LeaveTicket(ctx, key, now)
}
