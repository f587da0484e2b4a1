package egress

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"accessbroker.internal/api"
)

// A Source has the rules of a caller's entitlements as the broker has them. Load reads
// them first, and Run reads them again from time to time. A Source is safe for concurrent
// use.
type Source struct {
	Client *api.Client
	Only   []string // the entitlements to use; empty: all of the caller

	current atomic.Pointer[Policy]
}

// refreshEvery is the time between two reads of the rules.
const refreshEvery = 30 * time.Second

// Load reads the rules.
func (s *Source) Load(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, refreshEvery)
	defer cancel()
	offers, err := s.Client.Entitlements(ctx)
	if err != nil {
		return fmt.Errorf("reading the rules of your entitlements: %w", err)
	}
	if len(s.Only) > 0 {
		offers = slices.DeleteFunc(offers, func(o api.Offer) bool { return !slices.Contains(s.Only, o.Entitlement) })
	}
	p, err := Compile(offers)
	if err != nil {
		p = new(Policy)
	}
	s.current.Store(p)
	return err
}

// Run reads the rules from time to time until ctx ends. While the broker is unavailable,
// the last rules apply. If the broker refuses the caller, or its rules can't be read,
// nothing is allowed. report receives the errors.
func (s *Source) Run(ctx context.Context, report func(error)) error {
	tick := time.NewTicker(refreshEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		err := s.Load(ctx)
		if err == nil || ctx.Err() != nil {
			continue
		}
		if !api.Transient(err) && !api.Unreachable(err) {
			s.current.Store(new(Policy))
		}
		report(err)
	}
}

// Policy returns the rules in force. Before Load, they allow nothing.
func (s *Source) Policy() *Policy {
	if p := s.current.Load(); p != nil {
		return p
	}
	return new(Policy)
}
