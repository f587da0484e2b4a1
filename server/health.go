package server

import (
	"context"
	"maps"
	"net/http"
	"sync"
	"time"

	"accessbroker.internal/api"
)

// A Check is a condition of readiness. /readyz publishes the text of its error, which
// must contain no secret.
type Check struct {
	Name  string
	Check func(context.Context) error
}

// Bounds of the checks. Their result is cached, because /readyz needs no
// authentication and must not become a way to cause work.
const (
	checkTime = 2 * time.Second // for all checks together
	checkKept = time.Second     // how long a result is reused
)

type readiness struct {
	mu       sync.Mutex
	at       time.Time         // end of the last checks; guarded by mu
	last     map[string]string // guarded by mu; never modified
	degraded map[string]string // likewise
}

// notReady returns the error texts of failing checks and of warnings, by name. It runs
// them unless a recent result is cached.
func (s *Server) notReady(ctx context.Context) (failed, degraded map[string]string) {
	r := &s.readiness
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Since(r.at) >= checkKept {
		r.last, r.degraded = runChecks(ctx, s.cfg.Checks), runChecks(ctx, s.cfg.Warnings)
		r.at = time.Now() // those who waited for slow checks use their result
	}
	return r.last, r.degraded
}

// Checks returns the names of the checks of /readyz, and whether each fails.
func (s *Server) Checks(ctx context.Context) map[string]bool {
	failed, _ := s.notReady(ctx)
	all := map[string]bool{}
	for _, check := range s.cfg.Checks {
		_, all[check.Name] = failed[check.Name]
	}
	return all
}

// NotReady returns the error texts of failing checks, by name.
func (s *Server) NotReady(ctx context.Context) map[string]string {
	failed, _ := s.notReady(ctx)
	return failed
}

func runChecks(ctx context.Context, checks []Check) map[string]string {
	// The result is cached for other callers, so it must not depend on whether this
	// one disconnects.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), checkTime)
	defer cancel()
	failed := map[string]string{}
	for _, check := range checks {
		if err := check.Check(ctx); err != nil {
			failed[check.Name] = err.Error()
		}
	}
	return failed
}

func (s *Server) readyz(c *call) (reply, error) {
	failed, degraded := s.notReady(c.r.Context())
	if s.draining.Err() != nil {
		failed = maps.Clone(failed)
		failed["draining"] = "the broker is shutting down"
	}
	status, code := http.StatusOK, api.Code("")
	if len(failed) > 0 {
		status, code = http.StatusServiceUnavailable, "not_ready"
	}
	body := api.Readiness{Ready: len(failed) == 0, NotReady: failed, Degraded: degraded}
	if s.cfg.Replica != nil {
		if r := s.cfg.Replica(); r != nil && r.Replicas != nil {
			body.Replica = &api.Replica{Revision: r.Revision, Config: r.Config, ClockOffset: r.ClockOffset, Replicas: r.Replicas}
		}
	}
	return reply{status: status, code: code, body: body}, nil
}

// healthz reports that the process responds. It checks nothing else.
func (s *Server) healthz(*call) (reply, error) { return ok(map[string]string{"status": "ok"}) }
