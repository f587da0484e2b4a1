package broker

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// The inboxes of all people show the requests that wait for a decision or a review. They
// are few compared to all requests, so the broker keeps them in memory. A change in this
// another process (see Wake), is read before the next inbox.

// maxWaiting bounds how many pending requests, and how many reviews, are kept for the
// inboxes.
const maxWaiting = 20_000

// A request may have 16 KB of parameters, so that 20,000 of them could take most of the
// memory. Those above largeWaiting share a budget; the others take at most 110 MB.
const (
	largeWaiting    = 4 << 10  // bytes of texts
	maxLargeWaiting = 64 << 20 // bytes of all large ones
)

// A waitingRoom counts the bytes of large requests. Small ones always have room.
type waitingRoom struct {
	large int
	full  bool // a request was left out
}

func (w *waitingRoom) admits(r *Request) bool {
	size := len(r.Justification) + len(r.Message)
	if len(r.Details) > 0 {
		size += len(AppendDetails(nil, r.Details))
	}
	for name, value := range r.Parameters {
		size += len(name) + len(value)
	}
	if size <= largeWaiting {
		return true
	}
	if w.large+size > maxLargeWaiting {
		w.full = true
		return false
	}
	w.large += size
	return true
}

const (
	waitingFresh = 30 * time.Second // an inbox reads everything again if it is older than this
	waitingEvery = 10 * time.Second // keepWaiting reads everything again
	waitingUsed  = 10 * time.Minute // keepWaiting stops if no inbox is opened
)

// A waitingRequest is a request that waits for a decision or a review. It is immutable.
type waitingRequest struct {
	*Request
	seen  time.Time // when this process first read it; for the first reading, when it was filed
	alike string    // equal for requests that may be identical; see isLike
}

// A waitingList has the requests that wait. It is safe for concurrent use.
type waitingList struct {
	loading sync.Mutex // held while everything is read

	mu     sync.Mutex
	read   time.Time         // the last complete reading; zero: none
	used   time.Time         // by an inbox
	seen   time.Time         // of the request that was seen last
	list   []*waitingRequest // oldest first; never modified
	more   bool              // there are more than maxWaiting, or too many large ones
	during []RequestID       // read again since the complete reading began; nil: none is under way
}

// requestsWaiting returns the requests that wait, oldest first, and when the newest of
// them was first seen. Callers share the rows and must not change them.
func (b *Broker) requestsWaiting(ctx context.Context, now time.Time) (list []*waitingRequest, seen time.Time, more bool, err error) {
	w := &b.waiting
	touched, all := b.waiters.takeTouched()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.used = now
	if age, last := now.Sub(w.read), w.read; all || last.IsZero() || age < 0 || age >= waitingFresh {
		w.mu.Unlock()
		err = b.loadWaiting(ctx, now, func() bool { return !all && !w.read.Equal(last) })
		w.mu.Lock()
	} else if len(touched) > 0 {
		if err = b.readTouched(ctx, touched, now); err != nil {
			b.waiters.touch(touched) // for the next inbox
		}
	}
	return w.list, w.seen, w.more, Unavailable(err)
}

// readTouched reads requests again that have changed. The caller holds w.mu.
func (b *Broker) readTouched(ctx context.Context, ids []RequestID, now time.Time) error {
	w := &b.waiting
	rows := make([]*Request, len(ids))
	err := b.cfg.Store.View(ctx, func(tx Tx) error {
		for i, id := range ids {
			r, err := Get[*Request](tx, id)
			if ignoreNotFound(err) != nil {
				return err
			}
			rows[i] = r
		}
		return nil
	})
	if err != nil {
		return err
	}
	if w.during != nil {
		w.during = append(w.during, ids...)
	}
	w.list = slices.Clone(w.list)
	for i, id := range ids {
		at, found := slices.BinarySearchFunc(w.list, id, compareWaiting)
		waits := rows[i] != nil && rows[i].waits()
		switch {
		case found && waits:
			w.list[at] = newWaiting(rows[i], w.list[at].seen)
		case found:
			w.list = slices.Delete(w.list, at, at+1)
		case waits:
			w.list = slices.Insert(w.list, at, newWaiting(rows[i], w.tick(now)))
		}
	}
	return nil
}

// loadWaiting reads all requests that wait, unless that is done when its turn comes.
// Inboxes continue with the previous reading meanwhile.
func (b *Broker) loadWaiting(ctx context.Context, now time.Time, done func() bool) error {
	w := &b.waiting
	w.loading.Lock()
	defer w.loading.Unlock()
	w.mu.Lock()
	if done() {
		w.mu.Unlock()
		return nil
	}
	w.during = []RequestID{}
	w.mu.Unlock()
	rows, more, err := b.readWaiting(ctx, now)
	w.mu.Lock()
	defer w.mu.Unlock()
	b.waiters.touch(w.during) // the reading may be older
	w.during = nil
	if err != nil {
		return err
	}
	first, known := w.read.IsZero(), map[RequestID]time.Time{}
	for _, r := range w.list {
		known[r.ID] = r.seen
	}
	w.list, w.more, w.read = make([]*waitingRequest, len(rows)), more, now
	for i, r := range rows {
		seen, ok := known[r.ID]
		if !ok && first {
			seen = r.Created
		} else if !ok {
			seen = w.tick(now)
		}
		w.list[i] = newWaiting(r, seen)
		if w.seen.Before(seen) {
			w.seen = seen
		}
	}
	return nil
}

// readWaiting returns the pending requests and those with open reviews, oldest first.
func (b *Broker) readWaiting(ctx context.Context, now time.Time) (list []*Request, more bool, err error) {
	err = b.cfg.Store.View(ctx, func(tx Tx) error {
		var room waitingRoom
		if list, more, err = pendingRequests(tx, now, &room); err != nil {
			return err
		}
		reviews, tooMany, err := openReviews(tx, &room)
		list, more = append(list, reviews...), more || tooMany || room.full
		return err
	})
	slices.SortFunc(list, func(x, y *Request) int { return compareIDs(x.ID, y.ID) })
	return list, more, err
}

func pendingRequests(tx Tx, now time.Time, room *waitingRoom) (list []*Request, more bool, err error) {
	q := RequestQuery{Status: RequestPending, Now: now, Limit: maxWaiting, Match: room.admits}
	for len(list) < maxWaiting {
		page, next, err := tx.Requests(q)
		if err != nil {
			return nil, false, err
		}
		list = append(list, page...)
		if q.Before, q.Limit = next, maxWaiting-len(list); next.IsZero() {
			return list, false, nil
		}
	}
	return list, true, nil
}

// openReviews returns the requests whose break-glass use is not reviewed yet.
func openReviews(tx Tx, room *waitingRoom) (list []*Request, more bool, err error) {
	open, err := tx.Reviews()
	if err != nil {
		return nil, false, err
	}
	for _, of := range open {
		for _, text := range slices.Sorted(maps.Keys(of.Open)) {
			id, err := ParseRequestID(text)
			if err != nil {
				continue
			}
			if len(list) == maxWaiting {
				return list, true, nil
			}
			r, err := Get[*Request](tx, id)
			if ignoreNotFound(err) != nil {
				return nil, false, err
			}
			if err == nil && r.awaitsReview() && room.admits(r) {
				list = append(list, r)
			}
		}
	}
	return list, false, nil
}

// keepWaiting reads the requests that wait at the start, and regularly while people look
// at their inboxes, so that no inbox has to wait for it.
func (b *Broker) keepWaiting(ctx context.Context) {
	_ = b.loadWaiting(ctx, time.Now(), func() bool { return !b.waiting.read.IsZero() }) // the first inbox tries again
	tick := time.NewTicker(waitingEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := time.Now()
		w := &b.waiting
		w.mu.Lock()
		used := !w.read.IsZero() && now.Sub(w.used) < waitingUsed
		w.mu.Unlock()
		if used {
			_ = b.loadWaiting(ctx, now, func() bool { return false }) // the next inbox reports a lasting failure
		}
	}
}

func newWaiting(r *Request, seen time.Time) *waitingRequest {
	return &waitingRequest{r, seen, alikeKey(r)}
}

// alikeKey returns the names that identical requests have in common.
func alikeKey(r *Request) string {
	return strings.Join(append([]string{r.Requester.ID, r.Entitlement}, r.Scopes...), "\x00")
}

// tick returns the time at which a new request is seen. It is later than all before.
func (w *waitingList) tick(now time.Time) time.Time {
	if !now.After(w.seen) {
		now = w.seen.Add(1)
	}
	w.seen = now
	return now
}

func compareIDs(x, y RequestID) int { return slices.Compare(x[:], y[:]) }

func compareWaiting(r *waitingRequest, id RequestID) int { return compareIDs(r.ID, id) }

// waits reports whether the request was pending when it was last written, or awaits its
// review.
func (r *Request) waits() bool { return r.Status == RequestPending || r.awaitsReview() }

func (r *Request) awaitsReview() bool { return !r.ReviewDue.IsZero() && r.Reviewed.IsZero() }
