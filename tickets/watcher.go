package tickets

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"accessbroker.internal/broker"
)

// Facts keep what trackers state, and end what rests on it.
type Facts interface {
	// ReportTicket notes what a tracker states about a ticket on which access rests, and
	// ends the access that its new state no longer carries.
	ReportTicket(ctx context.Context, t *broker.Ticket) error

	// LoseTicket notes that a tracker has no such ticket any more; LeaveTicket, that the
	// ticket is not looked at any more.
	LoseTicket(ctx context.Context, key broker.StandingKey, source string, now time.Time) error
	LeaveTicket(ctx context.Context, key broker.StandingKey, now time.Time) error

	// CheckTicket ends the access whose conditions a ticket no longer meets, without news.
	CheckTicket(ctx context.Context, key broker.StandingKey, now time.Time) error

	// HasResting reports whether live or requested access rests on a ticket.
	HasResting(ctx context.Context, key broker.StandingKey, now time.Time) (bool, error)

	// List returns the standings of a kind, sorted by name, after a name.
	List(ctx context.Context, kind broker.FactKind, after string, limit int) ([]*broker.Standing, error)
}

const (
	fresh         = 2 * time.Second // how long an answer serves further requests and collections
	lookAtOnce    = 4               // calls to one tracker for callers who wait
	pollAtOnce    = 8               // other calls to one tracker
	maxWaiting    = 64              // callers who wait for one tracker
	maxWatched    = 100_000         // tickets of all trackers
	newsPerSecond = 2               // tickets of one tracker that callers name and that the broker does not know
	newsBurst     = 60
	pollEvery     = time.Second
	failuresToGo  = 3           // in a row, until a tracker gets a pause
	longestPause  = time.Minute // without a Retry-After
	loadPage      = 1000
	jitterPercent = 20 // of an interval, which a look may be later
)

// An Observation is one look, to count.
type Observation struct {
	Tracker string
	Outcome string // ok, not_found, failed or paused
}

// A WatcherConfig configures a Watcher.
type WatcherConfig struct {
	Trackers []*Tracker
	Facts    func() Facts // from the first look on
	Log      *slog.Logger
	Duties   broker.Duties     // one process looks at the tickets of a tracker; nil: there is no other one
	Observe  func(Observation) // may be nil
}

// A Watcher looks at tickets: for requests and collections, at once; while access rests
// on a ticket, once in an interval. All grants of a ticket share a look. It is safe for
// concurrent use.
type Watcher struct {
	cfg      WatcherConfig
	trackers map[string]*Tracker
	lines    map[string]*line // by tracker
	wake     chan struct{}

	mu   sync.Mutex
	list map[broker.StandingKey]*watched
}

// A watched is a ticket that the watcher knows. Watcher.mu guards it.
type watched struct {
	tracker *Tracker
	id      string
	looked  time.Time      // when the last look ended
	hinted  time.Time      // when a webhook last led to a look
	next    time.Time      // when it is looked at next
	ticket  *broker.Ticket // of the last look that was answered; nil: none
	err     error          // of the last look
	flight  chan struct{}  // closed when the running look ends; nil: none runs
}

// NewWatcher returns a Watcher. It starts nothing: call Run.
func NewWatcher(c WatcherConfig) *Watcher {
	w := &Watcher{cfg: c, trackers: map[string]*Tracker{}, lines: map[string]*line{}, list: map[broker.StandingKey]*watched{}, wake: make(chan struct{}, 1)}
	if w.cfg.Duties == nil {
		w.cfg.Duties = broker.Alone
	}
	if w.cfg.Observe == nil {
		w.cfg.Observe = func(Observation) {}
	}
	for _, t := range c.Trackers {
		w.trackers[t.Name] = t
		w.lines[t.Name] = newLine()
	}
	return w
}

func unknown(format string, args ...any) error {
	return &broker.Refusal{Err: broker.ErrFactUnknown, Detail: fmt.Sprintf(format, args...)}
}

// find returns the one tracker of a ticket.
func (w *Watcher) find(ticket string) (*Tracker, string, error) {
	var found *Tracker
	var id string
	for _, t := range w.cfg.Trackers {
		as, ok := t.id(ticket)
		switch {
		case !ok:
		case found != nil:
			return nil, "", unknown("the ticket could belong to %s or to %s: ask the operators to separate them", found.Name, t.Name)
		default:
			found, id = t, as
		}
	}
	if found == nil {
		return nil, "", unknown("no ticket system of the broker has tickets of this form")
	}
	return found, id, nil
}

// Look implements broker.Tickets.
func (w *Watcher) Look(ctx context.Context, ticket string) (key broker.StandingKey, known *broker.Ticket, err error) {
	t, id, err := w.find(ticket)
	if err != nil {
		return key, nil, err
	}
	e, err := w.watch(t, id, true)
	if err != nil {
		return key, nil, err
	}
	known, err = w.lookFor(ctx, e)
	switch {
	case err == nil:
		return t.key(id), known, nil
	case errors.Is(err, ErrNoTicket):
		return key, nil, unknown("%s has no ticket %s, or does not show it to the broker", t.Name, id)
	}
	return t.key(id), nil, unknown("%s does not answer, so the state of ticket %s is unknown: try again later", t.Name, id)
}

// Seen implements broker.Tickets.
func (w *Watcher) Seen(ticket string) *broker.Ticket {
	t, id, err := w.find(ticket)
	if err != nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if e := w.list[t.key(id)]; e != nil {
		return e.ticket
	}
	return nil
}

// watch returns the entry of a ticket. A new entry is dropped at its first poll if nothing
// rests on the ticket by then. asked means that a caller named it: callers must not be able
// to use up what the tracker allows the broker, because access rests on the looks at others.
func (w *Watcher) watch(t *Tracker, id string, asked bool) (*watched, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	e := w.list[t.key(id)]
	if e == nil {
		if len(w.list) >= maxWatched {
			return nil, unknown("the broker looks at too many tickets at the moment: try again later")
		}
		if asked && !w.lines[t.Name].news.Allow() {
			return nil, unknown("too many tickets of %s were named that the broker does not know: try again in some seconds", t.Name)
		}
		e = &watched{tracker: t, id: id}
		w.list[t.key(id)] = e
	}
	return e, nil
}

// lookFor looks for a caller, unless an answer is fresh.
func (w *Watcher) lookFor(ctx context.Context, e *watched) (*broker.Ticket, error) {
	line := w.lines[e.tracker.Name]
	select {
	case line.waiting <- struct{}{}:
		defer func() { <-line.waiting }()
	default:
		return nil, &Failure{Err: errors.New("too many callers wait for the tracker")}
	}
	return w.look(ctx, e, line.looks, fresh)
}

// look returns what the tracker states, from memory if the last look is younger than
// recent. Looks that run at the same time are one.
func (w *Watcher) look(ctx context.Context, e *watched, places chan struct{}, recent time.Duration) (*broker.Ticket, error) {
	for {
		w.mu.Lock()
		flight := e.flight
		switch {
		case flight == nil && time.Since(e.looked) < recent && !e.looked.IsZero():
			known, err := e.ticket, e.err
			w.mu.Unlock()
			return known, err
		case flight == nil:
			e.flight = make(chan struct{})
			w.mu.Unlock()
			return w.call(ctx, e, places)
		}
		w.mu.Unlock()
		select {
		case <-flight:
			recent = max(recent, callTimeout) // that look began before this one, or a moment later
		case <-ctx.Done():
			return nil, &Failure{Err: ctx.Err()}
		}
	}
}

// call makes the call of a look and notes its outcome. A look for a caller continues after
// the caller has gone away, because others may wait for it.
func (w *Watcher) call(ctx context.Context, e *watched, places chan struct{}) (*broker.Ticket, error) {
	if places == w.lines[e.tracker.Name].looks {
		ctx = context.WithoutCancel(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, 2*callTimeout)
	defer cancel()
	start := time.Now()
	known, err := w.fetch(ctx, e, places)
	w.cfg.Observe(Observation{Tracker: e.tracker.Name, Outcome: outcome(err)})
	now := time.Now()
	if known != nil {
		known.Looked = now
	}
	w.mu.Lock()
	e.looked, e.err, e.next = now, err, now.Add(jitter(e.tracker.Interval))
	if known != nil || errors.Is(err, ErrNoTicket) {
		e.ticket = known
	}
	switch {
	case e.hinted.After(start): // the answer may be older than the hint
		e.next = now
	case e.ticket != nil && e.ticket.Until.After(now): // its window must not end unnoticed
		e.next = earlier(e.next, e.ticket.Until)
	}
	w.mu.Unlock()
	err = errors.Join(err, w.report(ctx, e, known, err, now))
	w.mu.Lock()
	close(e.flight)
	e.flight = nil
	w.mu.Unlock()
	return known, err
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// jitter returns an interval, or up to a fifth more, so that tickets that were looked at
// together are not looked at together again.
func jitter(interval time.Duration) time.Duration {
	return interval + rand.N(interval*jitterPercent/100)
}

func outcome(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, ErrNoTicket):
		return "not_found"
	case errors.Is(err, errPaused):
		return "paused"
	}
	return "failed"
}

// report passes the outcome of a look on.
func (w *Watcher) report(ctx context.Context, e *watched, known *broker.Ticket, failed error, now time.Time) error {
	key := e.tracker.key(e.id)
	var err error
	switch {
	case known != nil:
		err = w.cfg.Facts().ReportTicket(ctx, known)
	case errors.Is(failed, ErrNoTicket):
		err = w.cfg.Facts().LoseTicket(ctx, key, e.tracker.source(), now)
	default:
		err = w.cfg.Facts().CheckTicket(ctx, key, now)
	}
	if err != nil {
		w.cfg.Log.ErrorContext(ctx, "noting what a tracker states", "ticket", key.String(), "err", err)
	}
	return err
}
