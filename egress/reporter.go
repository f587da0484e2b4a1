package egress

import (
	"context"
	"sync"
	"time"

	"accessbroker.internal/api"
)

// A Reporter is a Meter that accounts to the broker: it announces calls before they are
// made, and reports the counts of all others from time to time. A Reporter is safe for
// concurrent use.
type Reporter struct {
	Calls api.Calls

	mu     sync.Mutex
	counts map[string]*api.CallCounts // by lease
}

const (
	reportEvery     = 10 * time.Second
	announceTimeout = 10 * time.Second
	maxReported     = 1000 // leases whose counts wait for a report
)

// Announce implements Meter.
func (r *Reporter) Announce(ctx context.Context, lease string, c Call) error {
	ctx, cancel := context.WithTimeout(ctx, announceTimeout)
	defer cancel()
	_, err := r.Calls.Announce(ctx, lease, api.Call{Method: c.Method, URL: c.URL()})
	return err
}

// Count implements Meter. A call without a lease is not the broker's.
func (r *Reporter) Count(o Outcome) {
	if o.Lease == "" {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.counts[o.Lease]
	if n == nil {
		if len(r.counts) >= maxReported {
			return
		}
		if r.counts == nil {
			r.counts = map[string]*api.CallCounts{}
		}
		n = new(api.CallCounts)
		r.counts[o.Lease] = n
	}
	switch o.Outcome {
	case OutcomeMade:
		n.Made++
	case OutcomeRefused:
		n.Refused++
	default:
		n.Failed++
	}
	n.Sent += o.Sent
	n.Received += o.Received
}

// Run reports counts until ctx ends.
func (r *Reporter) Run(ctx context.Context) error {
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			r.flush(ctx)
		case <-ctx.Done():
			return nil
		}
	}
}

// Close reports the last counts, even if ctx has ended. Call it after the last call.
func (r *Reporter) Close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), announceTimeout)
	defer cancel()
	r.flush(ctx)
}

// flush reports the counts. The counts of a report that fails are lost, because the broker
// may have received it: a count too low is better than one too high.
func (r *Reporter) flush(ctx context.Context) {
	r.mu.Lock()
	counts := r.counts
	r.counts = nil
	r.mu.Unlock()
	for lease, n := range counts {
		_ = r.Calls.Count(ctx, lease, *n)
	}
}
