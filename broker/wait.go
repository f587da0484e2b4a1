package broker

import (
	"context"
	"sync"
	"time"
)

// waiters are the calls that wait for one request to change, and the watchers
// of all requests.
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
func (w *waiters) changed(id RequestID) {
	w.wake(id)
	w.Lock()
	defer w.Unlock()
	w.changes++
	for watcher := range w.watchers {
		select {
		case watcher <- struct{}{}:
		default: // an earlier change is still unread
		}
	}
}

// count returns the number of changes so far.
func (w *waiters) count() uint64 {
	w.Lock()
	defer w.Unlock()
	return w.changes
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
