package tickets

import (
	"context"
	"errors"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"accessbroker.internal/broker"
)

// newLine returns the bounds of a tracker.
func newLine() *line {
	return &line{
		looks: make(chan struct{}, lookAtOnce), polls: make(chan struct{}, pollAtOnce), waiting: make(chan struct{}, maxWaiting), news: rate.NewLimiter(newsPerSecond, newsBurst),
	}
}

// A line bounds the calls to one tracker.
type line struct {
	looks, polls, waiting chan struct{}
	news                  *rate.Limiter // of tickets that the watcher does not know
	polling               int           // running polls; Watcher.mu guards it

	mu       sync.Mutex
	failures int       // in a row
	pause    time.Time // no calls until then
}

var errPaused = errors.New("the tracker is not called at the moment")

// fetch calls the tracker once there is a place, unless it has a pause.
func (w *Watcher) fetch(ctx context.Context, e *watched, places chan struct{}) (*broker.Ticket, error) {
	line := w.lines[e.tracker.Name]
	select {
	case places <- struct{}{}:
		defer func() { <-places }()
	case <-ctx.Done():
		return nil, &Failure{Err: errors.New("the tracker is busy with other calls")}
	}
	if line.paused(time.Now()) {
		return nil, &Failure{Err: errPaused, Whole: true}
	}
	known, err := e.tracker.fetch(ctx, e.id)
	if began := line.note(err, time.Now()); began {
		w.cfg.Log.WarnContext(ctx, "a tracker does not answer", "tracker", e.tracker.Name, "err", err)
	}
	if err != nil {
		return nil, err
	}
	return &known, nil
}

// paused reports whether the tracker must not be called.
func (l *line) paused(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return now.Before(l.pause)
}

// note takes the outcome of a call. After some failures in a row, and when the tracker
// requests it, the tracker gets a pause. A failure that concerns one ticket gives none: a
// requester must not be able to stop the looks at other tickets. began reports whether the
// tracker began to fail.
func (l *line) note(err error, now time.Time) (began bool) {
	var failure *Failure
	l.mu.Lock()
	defer l.mu.Unlock()
	if !errors.As(err, &failure) {
		l.failures, l.pause = 0, time.Time{}
		return false
	}
	if !failure.Whole {
		return false
	}
	l.failures++
	pause := failure.After
	if l.failures >= failuresToGo {
		pause = max(pause, min(broker.Backoff(l.failures-failuresToGo), longestPause))
	}
	if until := now.Add(pause); until.After(l.pause) {
		l.pause = until
	}
	return l.failures == 1
}
