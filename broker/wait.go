package broker

import (
	"context"
	"sync"
	"time"
)

// waiters are the calls that wait for a request to change.
type waiters struct {
	sync.Mutex
	by map[RequestID]*waiting
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

// wake lets those go on who wait for the request.
func (w *waiters) wake(id RequestID) {
	w.Lock()
	defer w.Unlock()
	if one := w.by[id]; one != nil {
		close(one.changed)
		delete(w.by, id)
	}
}

// lookAgain is how often a waiting call looks by itself, because another
// replica may have changed the request, or time alone.
const lookAgain = time.Second

// Await is Request, but if the version is not past after yet it waits for that
// until ctx ends or the wait is over, and then gives what there is.
func (b *Broker) Await(ctx context.Context, who Identity, id RequestID, after int, wait time.Duration) (*Request, error) {
	if wait <= 0 {
		return b.Request(ctx, who, id, time.Now())
	}
	over := time.NewTimer(wait)
	defer over.Stop()
	again := time.NewTicker(lookAgain)
	defer again.Stop()
	for {
		r, changed, err := b.look(ctx, who, id, after)
		if err != nil || changed == nil {
			return r, err
		}
		select {
		case <-changed.changed:
		case <-again.C:
		case <-over.C:
			wait = 0
		case <-ctx.Done():
			wait = 0
		}
		b.waiters.leave(id, changed)
		if wait <= 0 {
			return r, nil
		}
	}
}

// look gives the request and, if it is worth waiting for, a place among those
// who wait, taken before looking so that no change is missed.
func (b *Broker) look(ctx context.Context, who Identity, id RequestID, after int) (*Request, *waiting, error) {
	place := b.waiters.join(id)
	r, err := b.Request(ctx, who, id, time.Now())
	if err == nil && r.Version <= after && r.State(time.Now()) == RequestPending {
		return r, place, nil
	}
	b.waiters.leave(id, place)
	return r, nil, err
}
