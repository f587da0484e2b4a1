package service

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/internal/config"
)

// Reload reads the operator's file again and puts its rules in force. It refuses a
// file with changes that need a restart, because they would not take effect. After an error, the old rules stay in force.
func (s *Service) Reload(ctx context.Context, by broker.Identity) (revision string, err error) {
	s.reload.Lock()
	defer s.reload.Unlock()
	fresh, err := config.Load(s.config.Path, s.options.Getenv)
	if err != nil {
		return "", err
	}
	if changed := s.current.NeedsRestart(fresh); len(changed) > 0 {
		return "", fmt.Errorf("%s: restart the broker for the changes of %s", filepath.Base(fresh.Path), strings.Join(changed, ", "))
	}
	if revision, err = s.install(ctx, fresh, func(rules *broker.Rules) error {
		return s.broker.SetRules(ctx, broker.Self(by, time.Now()), rules)
	}); err == nil {
		s.current = fresh
	}
	return revision, err
}

// ReloadOn reloads on every signal until ctx ends, and logs the outcome.
func (s *Service) ReloadOn(ctx context.Context, signals <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-signals:
			revision, err := s.Reload(ctx, broker.Identity{})
			if err != nil {
				s.log.ErrorContext(ctx, "reload refused: the old rules stay in force", "err", err)
				continue
			}
			s.log.InfoContext(ctx, "reloaded", "revision", revision)
		}
	}
}

// install puts the rules of c in force. The order matters: their files are kept
// next to the log first, then enforce records their digests in the log, and only
// then do they decide.
func (s *Service) install(ctx context.Context, c *config.Config, enforce func(*broker.Rules) error) (revision string, err error) {
	defer func() { s.metrics.Reloaded(revision, err) }()
	engine, err := c.Engine()
	if err != nil {
		return "", err
	}
	for _, w := range engine.Warnings() {
		s.log.WarnContext(ctx, "policy", "warning", w)
	}
	if err := s.store.KeepRules(engine.Contents(), engine.Files()); err != nil {
		return "", err
	}
	rules := engine.Rules()
	rules.PeopleChannel = c.Notifiers[broker.PeopleChannel] != nil
	if err := enforce(rules); err != nil {
		return "", err
	}
	s.outbox.SetNotifiers(c.Notifiers)
	return engine.Revision().String(), nil
}
