package service

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"accessbroker.internal/attest"
	"accessbroker.internal/broker"
	"accessbroker.internal/server"
	"accessbroker.internal/store"
)

// counts are values of gauges. The sweeper reads them now and then.
type counts struct {
	active, pending, stuck, overdue atomic.Int64
	memberships                     atomic.Pointer[[]server.MembershipCount]
}

// read updates the gauges. If a count fails, its gauge keeps the old value.
func (c *counts) read(ctx context.Context, s *store.Store, log *slog.Logger) {
	now := time.Now()
	active, err := s.CountActive(ctx, now)
	if err != nil {
		if ctx.Err() == nil {
			log.ErrorContext(ctx, "counting leases", "err", err)
		}
		return
	}
	n := int64(0)
	for _, a := range active {
		n += a.Leases
	}
	c.active.Store(n)
	pending, err := s.CountPending(ctx, now)
	if err != nil {
		return
	}
	c.pending.Store(pending)
	if stuck, err := s.CountStuck(ctx, now); err == nil {
		c.stuck.Store(stuck)
	}
	c.readMemberships(ctx, s)
	if overdue, err := countOverdue(ctx, s, now); err == nil {
		c.overdue.Store(overdue)
	}
}

// countOverdue counts break-glass uses whose review is overdue.
func countOverdue(ctx context.Context, s *store.Store, now time.Time) (n int64, err error) {
	err = s.View(ctx, func(tx broker.Tx) error {
		n = 0
		open, err := tx.Reviews()
		for _, of := range open {
			for _, due := range of.Open {
				if !now.Before(due) {
					n++
				}
			}
		}
		return err
	})
	return n, err
}

func (s *Service) gauges() server.Gauges {
	g := server.Gauges{
		LeasesActive:     func() float64 { return float64(s.counts.active.Load()) },
		LeasesStuck:      func() float64 { return float64(s.counts.stuck.Load()) },
		ApprovalsPending: func() float64 { return float64(s.counts.pending.Load()) },
		ReviewsOverdue:   func() float64 { return float64(s.counts.overdue.Load()) },
		AuditRecords:     func() float64 { return float64(s.store.Head().Size) },
		AuditUnpublished: func() float64 { return s.publisher.unpublished() },
		StoreFilesLost:   func() float64 { return oneIf(s.store.FilesLost()) },
	}
	g.Replica, g.Ready = s.replicaGauge, s.readyGauge
	g.Keys, g.Signals = s.keySources, s.signalGauges
	g.Memberships, g.Directory = s.membershipCounts, s.directoryGauges
	if s.config.WorkloadAPI != "" {
		g.SVIDExpires = func() float64 { return s.trust.SVIDTimeLeft().Seconds() }
	}
	return g
}

func oneIf(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

// keySources describes the keys of bundles and OpenID providers. Every reason has a
// series from the start, so that an alert sees the first key that is left out.
func (s *Service) keySources() (list []server.KeySource) {
	add := func(kind string, sources []attest.KeySource) {
		for _, k := range sources {
			left := map[string]int{}
			for _, reason := range attest.Reasons {
				left[string(reason)] = k.LeftOut[reason]
			}
			list = append(list, server.KeySource{Kind: kind, Name: k.Name, Keys: k.Keys, LeftOut: left, Age: k.Age.Seconds()})
		}
	}
	now := time.Now()
	if s.trust != nil {
		add("bundle", s.trust.KeySources(now))
	}
	if s.workloads != nil {
		add("workload_issuer", s.workloads.KeySources(now))
	}
	if s.people != nil {
		add("provider", s.people.KeySources(now))
	}
	return list
}
