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

// A member is one Update on its way through a group.
type member struct {
	ctx   context.Context
	reads []broker.Key
	f     func(broker.Tx) error
	raw   func(context.Context, *writer) error // the store's own statements, instead of f
	epoch *epoch                               // opens a log; such a member has a group of its own

	wake     chan struct{} // told once: it is done, or it leads
	leads    bool
	err      error
	panicked any // what f panicked with: its own goroutine goes on with that
}

// A queue forms groups of Updates. Whoever finds nobody leading leads: it takes
// all that wait as one group, commits them, names the first of those that came
// meanwhile as the next leader, and only then wakes its group. So there is
// always one goroutine at the database, it is one of the callers', and none is
// kept leading for the others' sake longer than one group.
type queue struct {
	mu      sync.Mutex
	waiting []*member
	leading bool
	closed  bool
	last    int           // members of the group before
	enough  int           // how many a lingering leader waits for; 0: nobody lingers
	full    chan struct{} // tells it
	idle    chan struct{} // tells close that nobody leads
}

const (
	maxGroup = 256
	// A leader lingers if the group before was busy, so that those who were
	// just answered can join with their next Update. Lingering always would
	// halve the rate of a single caller.
	lingerFrom = 4
	lingerFor  = 500 * time.Microsecond
)

var errClosed = errors.New("the store is closed")

// submit takes a member through a group. It returns when the outcome is known.
func (s *Store) submit(m *member) error {
	m.wake = make(chan struct{}, 1)
	lead, err := s.queue.join(m)
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

func (q *queue) join(m *member) (lead bool, err error) {
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

// wait waits until the member is done or leads. If ctx ends while it is still
// waiting for its turn, it leaves, and nothing has happened.
func (q *queue) wait(m *member) error {
	select {
	case <-m.wake:
		return nil
	case <-m.ctx.Done():
	}
	if q.leave(m) {
		return fmt.Errorf("waiting to write: %w: %w", broker.ErrUnavailable, context.Cause(m.ctx))
	}
	<-m.wake // it was taken: the truth is on its way
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

// lead takes a group through the database. Whatever happens in it, even a
// panic, the next leader is named and every member woken.
func (s *Store) lead() {
	s.queue.linger()
	group := s.queue.take()
	done := false
	defer func() {
		if !done { // a bug in this package, or f ended its goroutine
			for _, m := range group {
				m.err = unavailable("writing", errors.New("the group was abandoned"))
			}
			s.w.abandon()
		}
		s.queue.handOver(len(group))
		for _, m := range group {
			m.wake <- struct{}{}
		}
	}()
	s.commit(group)
	done = true
}

// linger waits a moment for a group as large as the one before.
func (q *queue) linger() {
	q.mu.Lock()
	if q.last < lingerFrom || len(q.waiting) >= q.last {
		q.mu.Unlock()
		return
	}
	q.enough, q.full = q.last, make(chan struct{}, 1)
	q.mu.Unlock()
	timer := time.NewTimer(lingerFor)
	defer timer.Stop()
	select {
	case <-q.full:
	case <-timer.C:
	}
	q.mu.Lock()
	q.enough = 0
	q.mu.Unlock()
}

// take takes all that wait, in their order; one that opens a log goes alone.
func (q *queue) take() []*member {
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

// handOver names the next leader, if anybody waits.
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

// close refuses all that comes from now on, and waits until nobody leads. It
// says false if it was called before.
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
