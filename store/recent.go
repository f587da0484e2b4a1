package store

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"sync"

	"accessbroker.internal/broker"
)

// Introspection reads one lease and the blocks in force on every call. The store keeps
// the leases that were read recently and the blocks in memory. Every commit drops what
// it changes before its Updates return, so a reader never sees an older state than a
// View would.

// maxRecent bounds the leases of a generation. There are two: when one is full, it
// replaces the older one, whose leases are forgotten unless they were read again.
//
// A lease can have 16 KB of parameters. Those whose rows exceed maxRecentRow are read
// again each time, so that both generations take at most about 64 MB.
const (
	maxRecent    = 8192
	maxRecentRow = 2 << 10 // bytes; a usual row has about 300
)

// recent is what was read recently. The zero value is empty. It is safe for concurrent
// use.
type recent struct {
	mu            sync.Mutex
	newer, older  map[broker.LeaseID]*broker.Lease
	reading       map[broker.LeaseID]*reading
	blocks        map[broker.BlockKey]bool // in force; never modified; nil: not read
	blocksChanged int                      // number of changes
}

// A reading is the state of a row that is being read. A row that was committed since the
// reading began must not be kept.
type reading struct {
	readers int
	changed bool
}

// follow drops what a group changed.
func (r *recent) follow(g *group) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, row := range g.order {
		id, ok := row.key.(broker.LeaseID)
		if !ok {
			continue
		}
		delete(r.newer, id)
		delete(r.older, id)
		if x := r.reading[id]; x != nil {
			x.changed = true
		}
	}
	if len(g.newBlocks) > 0 {
		r.blocks = nil
		r.blocksChanged++
	}
}

// forget drops everything: another process may have written, or the outcome of a commit
// was not known for a while.
func (r *recent) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.newer, r.older, r.blocks = nil, nil, nil
	r.blocksChanged++
	for _, x := range r.reading {
		x.changed = true
	}
}

// get returns a lease, and otherwise notes that its row is being read.
func (r *recent) get(id broker.LeaseID) *broker.Lease {
	r.mu.Lock()
	defer r.mu.Unlock()
	if l := r.newer[id]; l != nil {
		return l
	}
	if l := r.older[id]; l != nil {
		r.keep(l)
		return l
	}
	x := r.reading[id]
	if x == nil {
		if r.reading == nil {
			r.reading = map[broker.LeaseID]*reading{}
		}
		x = &reading{}
		r.reading[id] = x
	}
	x.readers++
	return nil
}

// put ends a reading that get began. A nil lease is not kept.
func (r *recent) put(id broker.LeaseID, l *broker.Lease) {
	r.mu.Lock()
	defer r.mu.Unlock()
	x := r.reading[id]
	if x.readers--; x.readers == 0 {
		delete(r.reading, id)
	}
	if l != nil && !x.changed {
		r.keep(l)
	}
}

func (r *recent) keep(l *broker.Lease) {
	if r.newer == nil || len(r.newer) >= maxRecent {
		r.newer, r.older = map[broker.LeaseID]*broker.Lease{}, r.newer
	}
	r.newer[l.ID] = l
}

// Lease implements broker.Reader.
func (s *Store) Lease(ctx context.Context, id broker.LeaseID) (*broker.Lease, error) {
	if err := s.fresh(ctx); err != nil {
		return nil, err
	}
	if l := s.recent.get(id); l != nil {
		return l, nil
	}
	var l *broker.Lease // to keep
	defer func() { s.recent.put(id, l) }()
	var body, lease []byte
	err := s.gets[leases].QueryRowContext(ctx, id[:]).Scan(&body, &lease)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, broker.ErrNotFound
	}
	if err != nil {
		return nil, unavailable("reading a lease", err)
	}
	found, err := decodeLease(id, body, lease)
	if err != nil {
		return nil, err
	}
	if len(body) <= maxRecentRow {
		l = found
	}
	return found, nil
}

// Blocked implements broker.Reader.
func (s *Store) Blocked(ctx context.Context, blocks []broker.Key) (bool, error) {
	inForce, err := s.blocksInForce(ctx)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(blocks, func(key broker.Key) bool {
		block, ok := key.(broker.BlockKey)
		return ok && inForce[block]
	}), nil
}

// blocksInForce returns the blocks in force. The caller must not change the map.
func (s *Store) blocksInForce(ctx context.Context) (map[broker.BlockKey]bool, error) {
	if err := s.fresh(ctx); err != nil {
		return nil, err
	}
	r := &s.recent
	r.mu.Lock()
	known, changed := r.blocks, r.blocksChanged
	r.mu.Unlock()
	if known != nil {
		return known, nil
	}
	list, err := s.Blocks(ctx)
	if err != nil {
		return nil, err
	}
	blocks := map[broker.BlockKey]bool{}
	for _, b := range list {
		blocks[b.Selector] = true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.blocksChanged == changed {
		r.blocks = blocks
	}
	return blocks, nil
}

// forget drops the copies in memory of rows that others may have changed.
func (s *Store) forget() {
	s.holdings.forget()
	s.recent.forget()
	s.standings.forget()
	s.statuses.forget()
}
