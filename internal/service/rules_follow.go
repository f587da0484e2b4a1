package service

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/internal/config"
)

// Each replica has rules of its own files. The row of the revision names those in force. If
// another replica puts other rules in force, this one reads its files again, and follows if
// they are the same by now. Otherwise it may decide by its own rules for a while, and then
// issues nothing and is not ready.

// replicaName returns a name that no other process has or had.
func replicaName() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return fmt.Sprintf("%.64s/%d/%s", host, os.Getpid(), rand.Text()[:8])
}

// staleRules is why this replica does not follow the others. It is safe for concurrent use.
type staleRules struct {
	mu    sync.Mutex
	why   string
	again time.Time // when the files are read again; zero: they need not be
}

// loggedOnly separates the part of a reason that anyone may read from the error, which may
// quote files.
const loggedOnly = ": "

// rereadEvery is how often a replica with other rules than those in force reads its files.
const rereadEvery = 2 * time.Second

func (s *staleRules) set(why string, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.why, s.again = why, now.Add(rereadEvery)
}

func (s *staleRules) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.why, s.again = "", time.Time{}
}

// due reports whether the files are to be read again at now.
func (s *staleRules) due(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.again.IsZero() && !now.Before(s.again)
}

func (s *staleRules) reason() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.why
}

// howToStart returns how the rules come into force at the start. A replica that was down
// while the others got new files must not put old rules in force again.
func (s *Service) howToStart(ctx context.Context) (broker.How, error) {
	if !s.shared {
		return broker.Replace, nil
	}
	others, err := s.otherReplicas(ctx)
	if err != nil {
		return broker.Join, err
	}
	if len(others) == 0 {
		return broker.Replace, nil
	}
	return broker.Join, nil
}

// followRules puts in force here what other replicas put in force: suspensions, and the
// rules of files that this replica has, too.
func (s *Service) followRules(ctx context.Context, now time.Time) error {
	s.reload.Lock()
	defer s.reload.Unlock()
	if err := s.amend(ctx, now); err != nil {
		return err
	}
	state, err := broker.StateOfRules(ctx, s.broker)
	if err != nil {
		return err
	}
	if !state.Behind() {
		s.stale.clear()
		return nil
	}
	why, err := s.reread(ctx, state, now)
	switch {
	case err != nil:
		return err
	case why == "":
		s.stale.clear()
		s.log.InfoContext(ctx, "following the rules that another replica put in force", "revision", state.InForce.Digest.String(), "replica", state.InForce.Replica)
		s.metrics.Reloaded(state.InForce.Digest.String(), nil)
		return nil
	}
	if why != s.stale.reason() {
		s.log.WarnContext(ctx, "another replica put other rules in force", "revision", state.InForce.Digest.String(), "replica", state.InForce.Replica, "own", state.Own.String(), "why", why)
	}
	s.stale.set(why, now)
	return nil
}

// reread reads the operator's file again, and decides by it if its rules are those in force.
// Otherwise it returns why not.
func (s *Service) reread(ctx context.Context, state broker.RulesState, now time.Time) (why string, err error) {
	fresh, err := config.Load(s.config.Path, s.options.Getenv)
	if err != nil {
		return "the operator's file can't be read" + loggedOnly + err.Error(), nil
	}
	if changed := s.current.NeedsRestart(fresh); len(changed) > 0 {
		return "restart the broker for the changes of " + strings.Join(changed, ", ") + " in " + filepath.Base(fresh.Path), nil
	}
	engine, err := fresh.Engine()
	if err != nil {
		return "its policies can't be read" + loggedOnly + err.Error(), nil
	}
	suspended, err := s.suspensions(ctx, engine, now)
	if err != nil {
		return "", err
	}
	decides, err := engine.Suspend(suspended)
	if err != nil {
		return "", err
	}
	if decides.Revision() != state.InForce.Digest {
		return "its files have the revision " + decides.Revision().String(), nil
	}
	inForce := false
	_, err = s.install(ctx, fresh, broker.Follow, func(rules *broker.Rules, a broker.Adoption) (err error) {
		if rules.Revision != state.InForce.Digest {
			return errFilesChanged
		}
		inForce, err = broker.Adopt(ctx, s.broker, broker.Caller{At: now}, rules, a)
		return err
	})
	switch {
	case errors.Is(err, errFilesChanged) || err == nil && !inForce:
		return "the files change", nil
	case err == nil:
		s.setCurrent(fresh)
	}
	return "", err
}

// errFilesChanged means that the files changed while they were read.
var errFilesChanged = errors.New("the files change")

// checkRules is a check of readiness: other rules are in force, and the time in which this
// replica may decide by its own is over.
func (s *Service) checkRules(ctx context.Context) error {
	state, err := s.behind(ctx)
	if err != nil || state == nil || time.Now().Before(state.Graced) {
		return err
	}
	return s.describeRules(state)
}

// warnOfRules is a warning: this replica still decides by rules that another one replaced.
func (s *Service) warnOfRules(ctx context.Context) error {
	state, err := s.behind(ctx)
	if err != nil || state == nil || !time.Now().Before(state.Graced) {
		return nil // checkRules reports it
	}
	return s.describeRules(state)
}

// behind returns the state of the rules if others are in force than those of this replica.
func (s *Service) behind(ctx context.Context) (*broker.RulesState, error) {
	if !s.shared {
		return nil, nil
	}
	state, err := broker.StateOfRules(ctx, s.broker)
	if err != nil || !state.Behind() {
		return nil, err
	}
	return &state, nil
}

func (s *Service) describeRules(state *broker.RulesState) error {
	text := fmt.Sprintf("this replica has the rules of revision %.12s, but revision %.12s is in force since %s", state.Own, state.InForce.Digest, state.InForce.Since.UTC().Format(time.RFC3339))
	if by := state.InForce.Replica; by != "" {
		text += " by replica " + by
	}
	effect := "nothing is issued here"
	if now := time.Now(); now.Before(state.Graced) {
		effect = "this replica issues until " + state.Graced.UTC().Format(time.RFC3339)
	}
	text += "; " + effect + ": install the same files here, or run broker reload here to put these in force everywhere"
	if why, _, _ := strings.Cut(s.stale.reason(), loggedOnly); why != "" {
		text += " (" + why + ")"
	}
	return errors.New(text)
}
