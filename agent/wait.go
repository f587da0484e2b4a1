package agent

import (
	"context"
	"time"

	"accessbroker.internal/api"
)

// A Wait is how to wait for approval. The zero value does not wait.
type Wait struct {
	For      time.Duration
	Progress func(Progress) // called before each poll and after the decision; may be nil
}

// Progress describes a wait.
type Progress struct {
	Request *api.Request  // in its last known state
	Left    time.Duration // until the wait ends
	Err     error         // why the last poll failed; nil if the broker answered
}

// The pause after a failed poll doubles from minPause to maxPause. maxPause is also
// the longest poll, so that a lost connection is noticed.
const (
	minPause = time.Second
	maxPause = 30 * time.Second
)

// Await returns a request when it is decided, or in its last state when w.For has
// passed. It keeps polling a broker that does not answer. The error is a
// *PendingError if ctx ends, an *UnreachableError if the broker does not answer at
// the end of the wait, and otherwise the broker's refusal.
func Await(ctx context.Context, client *api.Client, r *api.Request, w Wait) (*api.Request, error) {
	deadline := time.Now().Add(w.For)
	var failed error
	for pause := minPause; r.Status == api.StatusPending; {
		left := time.Until(deadline)
		if left <= 0 {
			if failed != nil {
				return nil, &UnreachableError{RequestID: r.ID, Err: failed}
			}
			return r, nil
		}
		w.report(Progress{Request: r, Left: left, Err: failed})
		next, err := client.Await(ctx, r.ID, r.Version, min(left, maxPause))
		switch {
		case err == nil:
			r, failed, pause = next, nil, minPause
			continue
		case ctx.Err() != nil:
			return nil, &PendingError{Request: r, Interrupted: true}
		case !api.Transient(err):
			return nil, err
		}
		failed = err
		select {
		case <-ctx.Done(): // the next poll fails and ends the wait
		case <-time.After(min(pause, left)):
		}
		pause = min(2*pause, maxPause)
	}
	w.report(Progress{Request: r, Left: max(time.Until(deadline), 0)})
	return r, nil
}

func (w Wait) report(p Progress) {
	if w.Progress != nil {
		w.Progress(p)
	}
}
