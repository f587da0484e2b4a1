package service

import (
	"context"
	"sync"
	"time"

	"accessbroker.internal/broker"
)

// The store calls Service.changed for each commit of another replica. What waits in memory is
// woken at once; copies that need I/O are refreshed by the loop follow.

// news is what other replicas changed and the loop has not looked at yet. It is safe for
// concurrent use.
type news struct {
	mu        sync.Mutex
	connected bool // the service is complete
	pending   topics
	wake      chan struct{}
}

// topics are the copies to refresh.
type topics struct {
	directory, keys, rules, suspensions bool
}

var everything = topics{directory: true, keys: true, rules: true, suspensions: true}

func newNews() *news { return &news{wake: make(chan struct{}, 1)} }

// topicsOf returns the copies that rows are in; nil keys mean that any row may have changed.
func topicsOf(keys []broker.Key) (t topics) {
	if keys == nil {
		return everything
	}
	for _, key := range keys {
		switch key.(type) {
		case broker.DirectoryUserID, broker.DirectoryGroupID, broker.DirectoryMemberKey, broker.SCIMTokenID:
			t.directory = true
		case broker.SigningKeyID:
			t.keys = true
		case broker.RevisionKey:
			t.rules = true
		case broker.SuspensionKey:
			t.suspensions = true
		}
	}
	return t
}

// add notes topics, and reports whether the service is complete.
func (n *news) add(t topics) (connected bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.pending.directory = n.pending.directory || t.directory
	n.pending.keys = n.pending.keys || t.keys
	n.pending.rules = n.pending.rules || t.rules
	n.pending.suspensions = n.pending.suspensions || t.suspensions
	if t != (topics{}) {
		select {
		case n.wake <- struct{}{}:
		default: // the loop has not begun to look at earlier news
		}
	}
	return n.connected
}

func (n *news) take() topics {
	n.mu.Lock()
	defer n.mu.Unlock()
	t := n.pending
	n.pending = topics{}
	return t
}

// connect lets news reach the parts of the service. What arrived before is looked at by the
// loop: the parts were opened meanwhile.
func (n *news) connect() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.connected = true
}

// changed takes the rows that a commit of another replica changed; nil keys mean that any row
// may have changed. It does not block.
func (s *Service) changed(keys []broker.Key) {
	if s.news.add(topicsOf(keys)) {
		s.pass(keys)
	}
}

// pass wakes what waits in memory for rows.
func (s *Service) pass(keys []broker.Key) {
	if s.directory != nil {
		s.directory.Changed(keys)
	}
	broker.Wake(s.broker, keys)
}

// followDirectory takes what other replicas provisioned into memory, for a decision about a
// person.
func (s *Service) followDirectory(ctx context.Context) error {
	if !s.shared || s.directory == nil {
		return nil
	}
	return s.directory.Refresh(ctx, time.Now())
}

// followAgain is when a refresh that failed is tried again.
const followAgain = time.Second

// follow refreshes what other replicas changed, until ctx ends.
func (s *Service) follow(ctx context.Context) error {
	if !s.shared {
		return nil
	}
	s.pass(nil) // what arrived before the service was complete
	tick := time.NewTicker(rereadEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.news.wake:
		case now := <-tick.C:
			if !s.stale.due(now) {
				continue
			}
			s.news.add(topics{rules: true})
		}
		failed := s.refresh(ctx, s.news.take())
		if failed == (topics{}) {
			continue
		}
		select {
		case <-ctx.Done():
		case <-time.After(followAgain):
		}
		s.news.add(failed)
	}
}

// refresh refreshes copies, and returns those for which it failed.
func (s *Service) refresh(ctx context.Context, t topics) (failed topics) {
	try := func(failed *bool, what string, err error) {
		if err != nil && ctx.Err() == nil {
			*failed = true
			s.log.WarnContext(ctx, "following the changes of another replica: trying again", "of", what, "err", err)
		}
	}
	if t.keys {
		try(&failed.keys, "signing keys", s.keys.Follow(ctx))
		if s.scim != nil {
			try(&failed.keys, "signing keys", s.scim.keys.Follow(ctx))
		}
	}
	if t.directory && s.directory != nil {
		try(&failed.directory, "the directory", s.directory.Refresh(ctx, time.Now()))
	}
	if t.rules || t.suspensions {
		try(&failed.rules, "the rules", s.followRules(ctx, time.Now()))
	}
	return failed
}
