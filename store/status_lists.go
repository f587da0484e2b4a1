package store

import (
	"bytes"
	"context"
	"database/sql"
	"slices"
	"sync"
	"time"

	"accessbroker.internal/broker"
)

// statusListTables are the tables of status lists: the lists that were opened.
const statusListTables = `
CREATE TABLE status_lists (id BLOB NOT NULL PRIMARY KEY, body BLOB NOT NULL, expires INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX status_lists_expires ON status_lists (expires);
`

// hasEnded reports whether the status of a lease's token is invalid because of the lease: it
// has ended, or its end was requested.
func hasEnded(l *broker.Lease) bool {
	return !l.Listed.IsZero() && l.Status != broker.LeaseActive
}

// statuses keeps the places of ended leases in memory, of lists that were read. A place is
// only ever set: a lease that has ended stays so. The zero value is empty. It is safe for
// concurrent use.
type statuses struct {
	mu      sync.Mutex
	version uint64 // of the bits of the list that changed last
	byList  map[broker.StatusListID]*endedPlaces
}

// endedPlaces are the places of one list.
type endedPlaces struct {
	loading sync.Mutex // held while the list is loaded
	loaded  bool       // guarded by loading

	bits    []byte // guarded by statuses.mu; never changed while shared
	shared  bool   // a reader has the bits
	version uint64
}

// maxStatusLists bounds the lists in memory. Each takes 128 KiB, and 256 KiB while it changes.
const maxStatusLists = 256

// of returns the places of a list.
func (s *statuses) of(id broker.StatusListID) *endedPlaces {
	s.mu.Lock()
	defer s.mu.Unlock()
	if known := s.byList[id]; known != nil {
		return known
	}
	if s.byList == nil || len(s.byList) >= maxStatusLists {
		s.byList = map[broker.StatusListID]*endedPlaces{}
	}
	s.version++
	fresh := &endedPlaces{bits: make([]byte, broker.StatusListSize/8), version: s.version}
	s.byList[id] = fresh
	return fresh
}

// set sets a place. The caller holds the lock.
func (s *statuses) set(p *endedPlaces, index uint32) {
	if index >= broker.StatusListSize || p.bits[index/8]&(1<<(index%8)) != 0 {
		return
	}
	if p.shared {
		p.bits, p.shared = bytes.Clone(p.bits), false
	}
	p.bits[index/8] |= 1 << (index % 8)
	s.version++
	p.version = s.version
}

// follow sets the places of the leases that a group ended.
func (s *statuses) follow(g *group) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.byList) == 0 {
		return
	}
	for _, r := range g.order {
		if x := &r.index; r.table == leases && x.ended {
			if p := s.byList[x.listed.List]; p != nil {
				s.set(p, x.listed.Index)
			}
		}
	}
}

// forget drops everything: another process may have ended leases.
func (s *statuses) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.byList = nil
}

// share returns the bits, and false if they were dropped while they were loaded.
func (s *statuses) share(id broker.StatusListID, p *endedPlaces) (bits []byte, version uint64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p.shared = true
	return p.bits, p.version, s.byList[id] == p
}

// EndedPlaces implements broker.StatusReader.
func (s *Store) EndedPlaces(ctx context.Context, list *broker.StatusList) (bits []byte, version uint64, err error) {
	if err := s.fresh(ctx); err != nil {
		return nil, 0, err
	}
	for {
		p := s.statuses.of(list.ID)
		if err := s.loadEnded(ctx, list, p); err != nil {
			return nil, 0, err
		}
		if bits, version, ok := s.statuses.share(list.ID, p); ok {
			return bits, version, nil
		}
	}
}

// loadEnded sets the places of the leases that ended before the list was read. Those that
// end from now on are set by follow, in any order.
func (s *Store) loadEnded(ctx context.Context, list *broker.StatusList, p *endedPlaces) error {
	p.loading.Lock()
	defer p.loading.Unlock()
	if p.loaded {
		return nil
	}
	set := func(l *broker.Lease) {
		if l.Listed.List == list.ID && hasEnded(l) {
			s.statuses.mu.Lock()
			defer s.statuses.mu.Unlock()
			s.statuses.set(p, l.Listed.Index)
		}
	}
	from, before := list.Leases()
	for table, name := range holdingTables {
		condition := ""
		if table == liveTable {
			condition = " AND until >= ?" // those that are being revoked
		}
		query := "SELECT leases.id, body, NULL FROM " + name + " AS n CROSS JOIN leases ON leases.id = n.id WHERE n.id >= ? AND n.id < ?" + condition
		args := []any{from[:], before[:]}
		if table == liveTable {
			args = append(args, int64(untilEnded))
		}
		if err := eachLease(ctx, s.readers, query, args, nil, set); err != nil {
			return unavailable("reading the ended leases of a status list", err)
		}
	}
	p.loaded = true
	return nil
}

// eachLease calls f for the leases of a query whose body wanted accepts; nil: all.
func eachLease(ctx context.Context, db *sql.DB, query string, args []any, wanted func(body []byte) bool, f func(*broker.Lease)) error {
	return each(ctx, db, query, args, func(rows *sql.Rows) error {
		var id, body, lease sql.RawBytes
		if err := rows.Scan(&id, &body, &lease); err != nil {
			return err
		}
		if wanted != nil && !wanted(body) && !wanted(lease) {
			return nil
		}
		key, err := leases.key(id)
		if err != nil {
			return err
		}
		l, err := decodeLease(key.(broker.LeaseID), body, lease)
		if err == nil {
			f(l)
		}
		return err
	})
}

// ListedLeases implements broker.StatusReader. It reads the leases in the order of their ids,
// and decodes few: a body has the names of its holder, its subject, its actors, its entitlement
// and its issuer as they are.
func (s *Store) ListedLeases(ctx context.Context, list *broker.StatusList, q broker.ListedQuery, f func(*broker.Lease)) error {
	var names [][]byte
	for _, name := range q.Names {
		names = append(names, []byte(name))
	}
	err := s.readHoldings(ctx, func(h *holdings) {
		for _, k := range h.kinds {
			if q.Catalogue[k.entitlement] == nil {
				names = append(names, []byte(k.entitlement))
			}
		}
	})
	if err != nil || len(names) == 0 {
		return err
	}
	wanted := func(body []byte) bool {
		return slices.ContainsFunc(names, func(name []byte) bool { return bytes.Contains(body, name) })
	}
	from, before := list.Leases()
	err = eachLease(ctx, s.readers, leaseFrom("id >= ?1 AND id < ?2"), []any{from[:], before[:]}, wanted, func(l *broker.Lease) {
		if l.Listed.List == list.ID && l.State(q.Now) == broker.LeaseActive {
			f(l)
		}
	})
	if err != nil {
		return unavailable("reading the leases of a status list", err)
	}
	return nil
}

// StatusLists implements broker.StatusReader.
func (s *Store) StatusLists(ctx context.Context, now time.Time, limit int) ([]*broker.StatusList, error) {
	lists, err := listRows[*broker.StatusList](ctx, s.readers, statusLists, "SELECT id, body FROM status_lists INDEXED BY status_lists_expires WHERE expires > ? ORDER BY id DESC LIMIT ?", now.UnixMilli(), limit)
	if err != nil {
		return nil, unavailable("listing status lists", err)
	}
	return lists, nil
}
