package broker

import (
	"context"
	"sync"
	"time"
)

// waiters are the calls that wait for a request to change, and those who watch
// for any to change.
type waiters struct {
	sync.Mutex
	by       map[RequestID]*waiting
	watchers map[chan struct{}]bool
	changes  uint64
}

type waiting struct {
	changed chan struct{} // closed when the request changed
	callers int
}

// join gives a channel that is closed when the request changes. The caller
// leaves when it is done.
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

// changed tells of a request that people see differently now: those who wait
// for it, and those who watch.
func (w *waiters) changed(id RequestID) {
	w.wake(id)
	w.Lock()
	defer w.Unlock()
	w.changes++
	for watcher := range w.watchers {
		select {
		case watcher <- struct{}{}:
		default: // it has yet to look after the change before
		}
	}
}

// count gives how many changes were told.
func (w *waiters) count() uint64 {
	w.Lock()
	defer w.Unlock()
	return w.changes
}

// wake lets those go on who wait for the request.
func (w *waiters) wake(id RequestID) {
	w.Lock()
	defer w.Unlock()
	if one := w.by[id]; one != nil {
		close(one.changed)
		delete(w.by, id)
	}
}

// Watch gives a channel that is sent to after any request was filed for people,
// or changed by them; several changes may be one. stop ends that.
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

// Await is Request, but if the version is not past after yet it waits for that
// until enough is closed, and then gives what there is. Whoever changes a request
// wakes those who wait; nobody looks now and then, but when time alone changes it.
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

// look gives the request and, if it is worth waiting for, a place among those
// who wait, taken before looking so that no change is missed.
func (b *Broker) readOrWait(ctx context.Context, caller Caller, id RequestID, after int) (*Request, *waiting, error) {
	place := b.waiters.join(id)
	r, err := b.Request(ctx, caller, id)
	if err == nil && r.Version <= after && r.State(caller.At) == RequestPending {
		return r, place, nil
	}
	b.waiters.leave(id, place)
	return r, nil, err
}
