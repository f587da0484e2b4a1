package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"accessbroker.internal/broker"
)

// A member is one Update in the queue or in a group. It does one of three things:
// it runs f, runs statements of the store, or opens a log.
type member struct {
	ctx   context.Context
	reads []broker.Key
	f     func(broker.Tx) error
	raw   func(context.Context, *writer) error
	epoch *epoch // such a member has a group of its own

	wake     chan struct{} // receives once: the member is done, or it leads
	leads    bool
	err      error
	panicked any // the value with which f panicked; the caller's goroutine panics with it
}

// A queue forms groups of Updates. An Update that finds no leader leads: it commits
// all waiting Updates as one group, appoints the first Update that arrived in the
// meantime as the next leader, and only then wakes its group. So exactly one
// goroutine uses the writer at a time, and no caller leads for longer than one
// group after its own.
type queue struct {
	mu      sync.Mutex
	waiting []*member
	leading bool
	closed  bool
	last    int           // members of the previous group
	enough  int           // the number of members that a delaying leader waits for; 0: no leader delays
	full    chan struct{} // receives when enough are waiting
	idle    chan struct{} // closed when no Update leads any more; made by close
}

const (
	maxGroup = 256
	// After a busy group, the leader delays briefly, so that callers that were
	// just answered can join with their next Update. Always delaying would
	// halve the rate of a single caller.
	delayFrom = 4
	delayFor  = 500 * time.Microsecond
)

var errClosed = errors.New("the store is closed")

// submit takes a member through a group. It returns when the outcome is known.
func (s *Store) submit(m *member) error {
	m.wake = make(chan struct{}, 1)
	lead, err := s.queue.enqueue(m)
	if err != nil {
		return err
	}
	if !lead {
		if err := s.queue.wait(m); err != nil {
			return err
		}
		lead = m.leads
	}
	if lead {
		s.lead()
	}
	if m.panicked != nil {
		panic(m.panicked)
	}
	return m.err
}

func (q *queue) enqueue(m *member) (lead bool, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return false, unavailable("writing", errClosed)
	}
	q.waiting = append(q.waiting, m)
	if q.enough > 0 && len(q.waiting) >= q.enough {
		q.enough = 0
		q.full <- struct{}{}
	}
	lead = !q.leading
	q.leading = true
	return lead, nil
}

// wait waits until the member is done or leads. A member whose context ends before
// a leader took it leaves the queue without effect.
func (q *queue) wait(m *member) error {
	select {
	case <-m.wake:
		return nil
	case <-m.ctx.Done():
	}
	if q.leave(m) {
		return fmt.Errorf("waiting to write: %w: %w", broker.ErrUnavailable, context.Cause(m.ctx))
	}
	<-m.wake // a leader took it, and its outcome will be known
	return nil
}

func (q *queue) leave(m *member) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	i := slices.Index(q.waiting, m)
	if i < 0 || m.leads {
		return false
	}
	q.waiting = slices.Delete(q.waiting, i, i+1)
	return true
}

// lead commits one group. Whatever happens in it, even a panic, it appoints the
// next leader and wakes every member.
func (s *Store) lead() {
	var group []*member
	done := false
	defer func() {
		if !done { // a bug in this package, or f called runtime.Goexit
			if group == nil {
				group = s.queue.takeGroup()
			}
			for _, m := range group {
				m.err = unavailable("writing", errors.New("the group was abandoned"))
			}
			s.w.reset()
			s.forget()
		}
		s.queue.handOver(len(group))
		for _, m := range group {
			m.wake <- struct{}{}
		}
	}()
	s.queue.delay()
	begun := s.begin() // Updates that come while another process has the lock join the group
	group = s.queue.takeGroup()
	s.commit(group, begun)
	done = true
}

// delay waits briefly for a group as large as the previous one.
func (q *queue) delay() {
	q.mu.Lock()
	if q.last < delayFrom || len(q.waiting) >= q.last {
		q.mu.Unlock()
		return
	}
	q.enough, q.full = q.last, make(chan struct{}, 1)
	q.mu.Unlock()
	timer := time.NewTimer(delayFor)
	defer timer.Stop()
	select {
	case <-q.full:
	case <-timer.C:
	}
	q.mu.Lock()
	q.enough = 0
	q.mu.Unlock()
}

// takeGroup removes all that wait from the queue, in their order, and returns
// them. A member that opens a log is a group by itself.
func (q *queue) takeGroup() []*member {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := 0
	for n < min(len(q.waiting), maxGroup) {
		if q.waiting[n].epoch != nil {
			n = max(n, 1)
			break
		}
		n++
	}
	group := slices.Clone(q.waiting[:n])
	q.waiting = slices.Delete(q.waiting, 0, n)
	return group
}

// handOver appoints the first waiting member as the next leader.
func (q *queue) handOver(last int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.last = last
	if len(q.waiting) == 0 {
		q.leading = false
		if q.idle != nil {
			close(q.idle)
			q.idle = nil
		}
		return
	}
	next := q.waiting[0]
	next.leads = true
	next.wake <- struct{}{}
}

// close makes enqueue fail from now on, and waits until no Update leads. It
// reports whether this is the first call.
func (q *queue) close() (first bool) {
	q.mu.Lock()
	first = !q.closed
	q.closed = true
	if q.leading && q.idle == nil {
		q.idle = make(chan struct{})
	}
	idle := q.idle
	q.mu.Unlock()
	if idle != nil {
		<-idle
	}
	return first
}
