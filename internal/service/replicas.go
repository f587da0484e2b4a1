package service

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/internal/config"
	"accessbroker.internal/server"
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
		s.replicas.Store(s.announceAndList(ctx))
		select {
		case <-ctx.Done():
			_ = store.ReplicasOf(s.store).Leave(ctx, s.replica)
			return nil
		case <-tick.C:
		}
	}
}

// announceAndList returns all replicas, or nil if they can't be read. Until it returns,
// /readyz and the metrics show those of the last time.
func (s *Service) announceAndList(ctx context.Context) *[]store.Replica {
	if err := s.announceOnce(ctx); err != nil {
		return nil
	}
	list, err := store.ReplicasOf(s.store).List(ctx)
	if err != nil {
		return nil
	}
	return &list
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

// A ReplicaState is a replica as operators see it.
type ReplicaState struct {
	Name     string    `json:"name"`
	This     bool      `json:"this,omitempty"` // it is the one that answers
	State    string    `json:"state"`          // ready, not_ready or gone
	NotReady string    `json:"not_ready,omitempty"`
	Version  string    `json:"version"`
	Revision string    `json:"revision"`
	Config   string    `json:"configuration"`
	Clock    string    `json:"clock_offset"`
	Started  time.Time `json:"started_at"`
	Seen     time.Time `json:"seen_at"`
}

func stateOf(r *store.Replica) string {
	switch {
	case r.Gone():
		return "gone"
	case r.NotReady != "":
		return "not_ready"
	}
	return "ready"
}

// listReplicas returns all replicas that were seen within the last hour.
func (s *Service) listReplicas(ctx context.Context) ([]ReplicaState, error) {
	list, err := store.ReplicasOf(s.store).List(ctx)
	out := make([]ReplicaState, len(list))
	for i, r := range list {
		out[i] = ReplicaState{
			Name: r.Name, This: r.Name == s.replica, State: stateOf(&r), NotReady: r.NotReady, Version: r.Build, Revision: r.Revision, Config: r.Config,
			Clock: r.Clock.String(), Started: r.Started, Seen: r.Seen,
		}
	}
	return out, err
}

// replicaGauge describes this replica.
func (s *Service) replicaGauge() *server.ReplicaGauge {
	if s.broker == nil { // it starts
		return nil
	}
	r := &server.ReplicaGauge{Revision: s.broker.Rules().Revision.String(), Config: *s.digest.Load(), ClockOffset: s.store.ClockOffset().Seconds()}
	if s.shared {
		r.Replicas = map[string]int{"ready": 0, "not_ready": 0, "gone": 0}
	}
	if list := s.replicas.Load(); list != nil {
		for _, one := range *list {
			r.Replicas[stateOf(&one)]++
		}
	}
	return r
}

// readyGauge returns the checks of /readyz, and whether each fails.
func (s *Service) readyGauge() map[string]bool {
	if s.server == nil { // it starts
		return nil
	}
	return s.server.Checks(context.Background())
}
