package server

import (
	"sync"
	"time"

	"accessbroker.internal/broker"
)

// polls remembers when each code was last polled, so that the endpoint can answer
// slow_down (RFC 8628, section 3.5). The memory is bounded and of this process only, on
// purpose: a poll changes no row, and a client that reaches several replicas is slowed
// down later, but never wrongly. It is safe for concurrent use.
type polls struct {
	mu   sync.Mutex
	last *lru[broker.RequestID, *polled] // guarded by mu
}

type polled struct {
	at       time.Time
	interval time.Duration // that the client must keep
}

func newPolls() *polls { return &polls{last: newLRU[broker.RequestID, *polled](maxRemembered)} }

const (
	slowDownBy   = 5 * time.Second // RFC 8628, section 3.5
	longestPolls = time.Minute     // interval
	pollLeeway   = time.Second     // networks deliver two polls closer together than they were sent
)

// count records a poll of a request that still waits. If it came too early, the interval
// grows, and count returns the new one.
func (p *polls) count(id broker.RequestID, now time.Time) (interval time.Duration, tooOften bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	state, ok := p.last.get(id)
	if !ok {
		p.last.put(id, &polled{now, pollInterval})
		return pollInterval, false
	}
	tooOften = now.Sub(state.at) < state.interval-pollLeeway
	if tooOften {
		state.interval = min(state.interval+slowDownBy, longestPolls)
	}
	state.at = now
	return state.interval, tooOften
}
