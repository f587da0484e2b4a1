package broker

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"
)

// waiters are the calls that wait for one request to change, and the watchers
// of all requests.
type waiters struct {
	sync.Mutex
	by       map[RequestID]*waiting
	watchers map[chan struct{}]bool
	touched  map[RequestID]bool // changed since the inboxes were last read; nil: too many
}

// maxTouched bounds the changes that are remembered until an inbox is read.
const maxTouched = 1000

type waiting struct {
	changed chan struct{} // closed when the request changed
	callers int
}

// join returns a channel that is closed when the request changes. The caller
// leaves when it has waited.
func (w *waiters) join(id RequestID) *waiting {
	w.Lock()
	defer w.Unlock()
	if w.by == nil {
		w.by = map[RequestID]*waiting{}
	}
	if w.by[id] == nil {
		w.by[id] = &waiting{changed: make(chan struct{})}
	}
	w.by[id].callers++
	return w.by[id]
}

func (w *waiters) leave(id RequestID, one *waiting) {
	w.Lock()
	defer w.Unlock()
	if one.callers--; one.callers == 0 && w.by[id] == one {
		delete(w.by, id)
	}
}

// changed wakes the calls that wait for a request, and all watchers.
func (w *waiters) changed(ids ...RequestID) {
	for _, id := range ids {
		w.wake(id)
	}
	w.touch(ids)
	w.notify()
}

// notify wakes all watchers.
func (w *waiters) notify() {
	w.Lock()
	defer w.Unlock()
	for watcher := range w.watchers {
		select {
		case watcher <- struct{}{}:
		default: // an earlier change is still unread
		}
	}
}

// wakeAll wakes everyone who waits: any request may have changed.
func (w *waiters) wakeAll() {
	w.Lock()
	for id, one := range w.by {
		close(one.changed)
		delete(w.by, id)
	}
	w.touched = nil
	w.Unlock()
	w.notify()
}

// touch remembers requests that an inbox must read again.
func (w *waiters) touch(ids []RequestID) {
	w.Lock()
	defer w.Unlock()
	for _, id := range ids {
		if w.touched != nil {
			w.touched[id] = true
		}
	}
	if len(w.touched) > maxTouched {
		w.touched = nil
	}
}

// takeTouched returns the requests that an inbox must read again; all means that it must
// read all.
func (w *waiters) takeTouched() (ids []RequestID, all bool) {
	w.Lock()
	defer w.Unlock()
	ids, all = slices.Collect(maps.Keys(w.touched)), w.touched == nil
	w.touched = map[RequestID]bool{}
	return ids, all
}

// wake wakes the calls that wait for a request.
func (w *waiters) wake(id RequestID) {
	w.Lock()
	defer w.Unlock()
	if one := w.by[id]; one != nil {
		close(one.changed)
		delete(w.by, id)
	}
}

// Wake wakes the calls and loops of this process that wait for rows which another process
// changed; nil keys mean that any row may have changed. It does not block.
func Wake(b *Broker, keys []Key) {
	if keys == nil {
		b.waiters.wakeAll()
		b.Facts.hurry()
		return
	}
	var requests []RequestID
	var reviews, facts bool
	issued := map[RequestID]bool{} // filed and collected in one call, by the ID that they share with the lease
	for _, key := range keys {
		switch k := key.(type) {
		case RequestID:
			requests = append(requests, k)
		case LeaseID:
			issued[RequestID(k)] = true
		case ReviewKey:
			reviews = true
		case StandingKey:
			facts = true
		}
	}
	if facts {
		b.Facts.hurry()
	}
	if !reviews { // no inbox shows requests that never waited, and there are many
		requests = slices.DeleteFunc(requests, func(id RequestID) bool { return issued[id] })
	}
	if len(requests) > 0 {
		b.waiters.changed(requests...)
	}
}

// Watch returns a channel that receives after requests are filed for approval,
// or decided. One value may stand for several changes. stop ends the watching.
func (b *Broker) Watch() (changed <-chan struct{}, stop func()) {
	c := make(chan struct{}, 1)
	w := &b.waiters
	w.Lock()
	defer w.Unlock()
	if w.watchers == nil {
		w.watchers = map[chan struct{}]bool{}
	}
	w.watchers[c] = true
	return c, func() {
		w.Lock()
		defer w.Unlock()
		delete(w.watchers, c)
	}
}

// Await returns the request once its version is past after, or as it is when
// enough is closed. It wakes by changes and by the end of the request's time;
// it does not poll.
func (b *Broker) Await(ctx context.Context, caller Caller, id RequestID, after int, enough <-chan struct{}) (*Request, error) {
	clock := startClock(caller.At)
	for {
		r, changed, err := b.readOrWait(ctx, caller.at(clock.now()), id, after)
		if err != nil || changed == nil {
			return r, err
		}
		over := false
		lapse := time.NewTimer(r.Lapses.Sub(clock.now()))
		select {
		case <-changed.changed:
		case <-lapse.C:
		case <-enough:
			over = true
		case <-ctx.Done():
			over = true
		}
		lapse.Stop()
		b.waiters.leave(id, changed)
		if over {
			return r, nil
		}
	}
}

// readOrWait returns the request and, while it is pending and unchanged, a
// place to wait. It joins before it reads, so that no change is missed.
func (b *Broker) readOrWait(ctx context.Context, caller Caller, id RequestID, after int) (*Request, *waiting, error) {
	place := b.waiters.join(id)
	r, err := b.Request(ctx, caller, id)
	if err == nil && r.Version <= after && r.State(caller.At) == RequestPending {
		return r, place, nil
	}
	b.waiters.leave(id, place)
	return r, nil, err
}
