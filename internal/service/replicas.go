package service

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/internal/config"
	"accessbroker.internal/store"
)

// Replica returns the name of this process among those that share the database.
func (s *Service) Replica() string { return s.replica }

// otherReplicas returns the other replicas that announced themselves a moment ago.
func (s *Service) otherReplicas(ctx context.Context) ([]store.Replica, error) {
	list, err := store.ReplicasOf(s.store).List(ctx)
	return slices.DeleteFunc(list, func(r store.Replica) bool { return r.Name == s.replica || r.Gone() }), err
}

// announce shows this replica to operators until ctx ends.
func (s *Service) announce(ctx context.Context) error {
	if !s.shared {
		return nil
	}
	tick := time.NewTicker(store.ReplicaEvery)
	defer tick.Stop()
	for {
		_ = s.announceOnce(ctx) // the checks of readiness report a database that is away
		select {
		case <-ctx.Done():
			_ = store.ReplicasOf(s.store).Leave(ctx, s.replica)
			return nil
		case <-tick.C:
		}
	}
}

func (s *Service) announceOnce(ctx context.Context) error {
	failed := s.server.NotReady(ctx)
	return store.ReplicasOf(s.store).Announce(ctx, store.Replica{
		Name: s.replica, Build: ReadBuild().Version, Revision: s.broker.Rules().Revision.String(), Config: *s.digest.Load(),
		NotReady: strings.Join(slices.Sorted(maps.Keys(failed)), ", "),
	})
}

// setCurrent notes whose rules are in force. The caller holds reload, or is New.
func (s *Service) setCurrent(c *config.Config) {
	digest := c.Digest()
	s.current = c
	s.digest.Store(&digest)
}
