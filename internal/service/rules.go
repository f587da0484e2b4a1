package service

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/attest"
	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/broker/campaign"
	"accessbroker.internal/internal/config"
	"accessbroker.internal/notify"
	"accessbroker.internal/policy"
	"accessbroker.internal/server"
	"accessbroker.internal/store"
)

// Reload reads the operator's file again and puts its rules in force. It refuses a
// file with changes that need a restart, because they would not take effect. After an
// error, the old rules stay in force. Reload logs and counts the outcome.
func (s *Service) Reload(ctx context.Context, by broker.Identity) (revision string, err error) {
	s.reload.Lock()
	defer s.reload.Unlock()
	defer func() {
		s.metrics.Reloaded(revision, err)
		who := cmp.Or(by.ID, "a signal")
		if err != nil {
			s.log.ErrorContext(ctx, "reload refused: the old rules stay in force", "by", who, "err", err)
			return
		}
		s.log.InfoContext(ctx, "reloaded", "by", who, "revision", revision)
	}()
	fresh, err := config.Load(s.config.Path, s.options.Getenv)
	if err != nil {
		return "", err
	}
	if changed := s.current.NeedsRestart(fresh); len(changed) > 0 {
		return "", fmt.Errorf("%s: restart the broker for the changes of %s", filepath.Base(fresh.Path), strings.Join(changed, ", "))
	}
	if revision, err = s.install(ctx, fresh, broker.Replace, func(rules *broker.Rules, a broker.Adoption) error {
		_, err := broker.Adopt(ctx, s.broker, broker.Self(by, time.Now()), rules, a)
		return err
	}); err == nil {
		s.setCurrent(fresh)
	}
	return revision, err
}

// ReloadOn reloads on every signal until ctx ends.
func (s *Service) ReloadOn(ctx context.Context, signals <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-signals:
			_, _ = s.Reload(ctx, broker.Identity{}) // which logs the outcome
		}
	}
}

// install puts the rules of c in force. The order matters: their files are kept
// next to the log first, then enforce records their digests in the log, and only
// then do they decide.
func (s *Service) install(ctx context.Context, c *config.Config, how broker.How, put putRules) (revision string, err error) {
	engine, err := c.Engine()
	if err != nil {
		return "", err
	}
	for _, w := range c.Warnings {
		s.log.WarnContext(ctx, "configuration", "warning", w)
	}
	for _, w := range engine.Warnings() {
		s.log.WarnContext(ctx, "policy", "warning", w)
	}
	decides, err := s.enforce(ctx, engine, c, time.Now(), how, put)
	if err != nil {
		return "", err
	}
	s.engine = engine
	s.outbox.SetNotifiers(c.Notifiers)
	s.metrics.Expect(knownLabels(c))
	return decides.Revision().String(), nil
}

// putRules puts rules in force.
type putRules func(*broker.Rules, broker.Adoption) error

// maxTries bounds how often rules are made again because other replicas changed what is
// suspended meanwhile.
const maxTries = 10

// enforce puts the engine in force without the permissions that are suspended, and returns
// the engine that decides.
func (s *Service) enforce(ctx context.Context, engine *policy.Engine, c *config.Config, now time.Time, how broker.How, put putRules) (*policy.Engine, error) {
	for try := 1; ; try++ {
		seen, err := s.revisionInForce(ctx)
		if err != nil {
			return nil, err
		}
		suspended, err := s.suspensions(ctx, engine, now)
		if err != nil {
			return nil, err
		}
		decides, err := s.enforceOnce(engine, suspended, c, func(rules *broker.Rules) error {
			return put(rules, broker.Adoption{How: how, Seen: seen})
		})
		if !errors.Is(err, broker.ErrOvertaken) || try == maxTries {
			return decides, err
		}
	}
}

// revisionInForce returns the revision that other replicas may replace; zero if there are no
// other replicas.
func (s *Service) revisionInForce(ctx context.Context) (digest audit.Digest, err error) {
	if !s.shared {
		return digest, nil
	}
	err = s.store.View(ctx, func(tx broker.Tx) error {
		inForce, err := broker.Get[*broker.Revision](tx, broker.RevisionKey{})
		if err == nil {
			digest = inForce.Digest
		}
		if errors.Is(err, broker.ErrNotFound) {
			err = nil
		}
		return err
	})
	return digest, broker.Unavailable(err)
}

// enforceOnce is enforce with what was suspended a moment ago.
func (s *Service) enforceOnce(engine *policy.Engine, suspended []broker.Suspension, c *config.Config, put func(*broker.Rules) error) (*policy.Engine, error) {
	engine, err := engine.Suspend(suspended)
	if err != nil {
		return nil, err
	}
	if err := s.store.KeepRules(engine.Contents(), engine.Files()); err != nil {
		return nil, err
	}
	rules := engine.Rules()
	rules.PeopleChannel = c.Notifiers[broker.PeopleChannel] != nil
	if err := checkPages(c, rules); err != nil {
		return nil, err
	}
	return engine, put(rules)
}

// suspensions returns what access reviews suspend at now, including what is overdue.
func (s *Service) suspensions(ctx context.Context, engine *policy.Engine, now time.Time) ([]broker.Suspension, error) {
	exists := func(key broker.PermissionKey) bool {
		_, ok := engine.Find(key)
		return ok
	}
	return campaign.Suspended(ctx, store.NewCampaignRows(s.store), exists, now)
}

// suspend puts the suspensions at now in force, if they differ from those of the rules.
func (s *Service) suspend(ctx context.Context, now time.Time) error {
	s.reload.Lock()
	defer s.reload.Unlock()
	return s.amend(ctx, now)
}

// amend is suspend. The caller holds reload.
func (s *Service) amend(ctx context.Context, now time.Time) error {
	suspended, err := s.suspensions(ctx, s.engine, now)
	if err != nil {
		return err
	}
	same := func(a, b broker.Suspension) bool {
		return a.Key == b.Key && a.Cause == b.Cause && a.Campaign == b.Campaign && a.Item == b.Item && a.Since.Equal(b.Since) && slices.Equal(a.Left, b.Left)
	}
	if slices.EqualFunc(suspended, s.broker.Rules().Suspensions, same) {
		return nil
	}
	how := broker.Replace
	if s.shared {
		how = broker.Amend
	}
	engine, err := s.enforce(ctx, s.engine, s.current, now, how, func(rules *broker.Rules, a broker.Adoption) error {
		_, err := broker.Adopt(ctx, s.broker, broker.Caller{At: now}, rules, a)
		return err
	})
	if err != nil {
		return err
	}
	s.log.InfoContext(ctx, "access reviews changed what is suspended", "suspensions", len(s.broker.Rules().Suspensions), "revision", engine.Revision().String())
	s.metrics.Reloaded(engine.Revision().String(), nil)
	return nil
}

// knownLabels returns the label values whose series start at zero.
func knownLabels(c *config.Config) server.Known {
	k := server.Known{
		Entitlements: map[string]string{}, Issuers: slices.Collect(maps.Keys(c.Issuers)),
		NoticeCodes: notify.Outcomes(), AttestFailures: attest.Failures(),
	}
	for name, issuer := range c.Issuers {
		if issuer.Joins() {
			k.Compared = append(k.Compared, name)
		}
	}
	for name, e := range c.Catalogue {
		k.Entitlements[name] = e.Issuer
		if e.Egress != nil {
			k.Egress = append(k.Egress, name)
		}
	}
	for channel := range c.Notifiers {
		k.Channels = append(k.Channels, notify.Kind(channel))
	}
	return k
}
