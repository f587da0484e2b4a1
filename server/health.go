package server

import (
	"context"
	"maps"
	"net/http"
	"sync"
	"time"

	"accessbroker.internal/api"
)

// A Check is something without which the broker is not ready. What its error
// says is shown to whoever asks /readyz: it names no secret.
type Check struct {
	Name  string
	Check func(context.Context) error
}

// How long checks may take together, and how long what they found is good
// for: /readyz is open to everybody, and must not be a way to make work.
const (
	checkTime = 2 * time.Second
	checkKept = time.Second
)

type readiness struct {
	mu   sync.Mutex
	at   time.Time         // guarded by mu
	last map[string]string // guarded by mu; not changed once it is here
}

// notReady runs the checks, or gives what they found a moment ago.
func (s *Server) notReady(ctx context.Context) map[string]string {
	s.readiness.mu.Lock()
	defer s.readiness.mu.Unlock()
	if now := time.Now(); now.Sub(s.readiness.at) >= checkKept {
		s.readiness.last, s.readiness.at = s.runChecks(ctx), now
	}
	return s.readiness.last
}

func (s *Server) runChecks(ctx context.Context) map[string]string {
	// What is found is kept for others, so this caller's going away must not
	// be among it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), checkTime)
	defer cancel()
	found := map[string]string{}
	for _, check := range s.cfg.Checks {
		if err := check.Check(ctx); err != nil {
			found[check.Name] = err.Error()
		}
	}
	return found
}

func (s *Server) readyz(c *call) (reply, error) {
	found := s.notReady(c.r.Context())
	if s.draining.Err() != nil {
		found = maps.Clone(found)
		found["draining"] = "the broker is shutting down"
	}
	status := http.StatusOK
	if len(found) > 0 {
		status = http.StatusServiceUnavailable
	}
	return reply{status: status, body: api.Readiness{Ready: len(found) == 0, NotReady: found}}, nil
}

// healthz says that the process answers, and nothing else.
func (s *Server) healthz(*call) (reply, error) { return ok(map[string]string{"status": "ok"}) }
