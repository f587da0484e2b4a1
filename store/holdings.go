package store

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"hash/maphash"
	"maps"
	"slices"
	"sync"
	"time"

	"accessbroker.internal/broker"
)

// An index by holder would slow every issuance down, because holders are in no order.
// So the store keeps the leases whose credentials may work in memory as well, as a
// copy of the tables live and lingering that follows every commit. Counting them,
// finding those of a holder and finding expired ones reads memory only.

// holdings is the copy. It is safe for concurrent use.
type holdings struct {
	seed    maphash.Seed
	changes []holding // of the group that follow applies

	mu      sync.RWMutex
	loaded  bool
	forgets int           // number of calls of forget
	loading chan struct{} // closed when the load ends; nil: none
	behind  []holding     // changes that were committed since the load began
	tables  [2]leaseSet   // by liveTable and lingeringTable
	kinds   map[int32]leaseKind
	dropped broker.LeaseID           // the newest lease that Sweep dropped from live
	stuck   map[broker.LeaseID]int64 // when the leases whose revocation fails become stuck
}

const (
	liveTable = iota
	lingeringTable
)

var holdingTables = [...]string{liveTable: "live", lingeringTable: "lingering"}

// A holding is the state of one lease after a commit.
type holding struct {
	held
	holder uint64 // hash
	index  *leaseIndex
}

func newHoldings() *holdings { return &holdings{seed: maphash.MakeSeed()} }

func (h *holdings) hash(holder string) uint64 { return maphash.String(h.seed, holder) }

func requestHash(id broker.RequestID) uint32 { return binary.BigEndian.Uint32(id[12:]) }

// follow applies the leases of a group that was committed. Only the leader of the
// queue calls it.
func (h *holdings) follow(g *group) {
	h.changes = h.changes[:0]
	for _, r := range g.order {
		if r.table == leases {
			x := &r.index
			h.changes = append(h.changes, holding{newHeld(r.key.(broker.LeaseID), 0, x.request, g.w.kinds[x.kind], r.carried), h.hash(x.holder), x})
		}
	}
	if len(h.changes) == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.loaded {
		h.apply(h.changes)
	}
	if h.loading != nil {
		for _, c := range h.changes {
			index := *c.index // the group's rows do not outlive it
			c.index = &index
			h.behind = append(h.behind, c)
		}
	}
	clear(h.changes)
}

// apply does in memory what writeLeaseIndex does in the tables.
func (h *holdings) apply(changes []holding) {
	live, lingering := &h.tables[liveTable], &h.tables[lingeringTable]
	for _, c := range changes {
		if c.until = c.index.liveUntil; c.until == 0 {
			live.remove(c.id)
		} else {
			live.put(c.held, c.holder)
			h.kinds[c.kind()] = c.index.kind
		}
		if c.until = c.index.outlivesUntil; c.until != 0 {
			lingering.put(c.held, c.holder)
			h.kinds[c.kind()] = c.index.kind
		} else if c.index.revoking {
			lingering.remove(c.id)
		}
		if c.index.stuckFrom == 0 {
			delete(h.stuck, c.id)
		} else {
			h.stuck[c.id] = c.index.stuckFrom
		}
	}
}

// forget makes the next reader load the tables again: another process wrote to them.
func (h *holdings) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.forgets++
	h.loaded, h.tables, h.kinds, h.stuck = false, [2]leaseSet{}, nil, nil
}

// readHoldings calls f with the copy, and loads it first if necessary. f must not change it.
func (s *Store) readHoldings(ctx context.Context, f func(*holdings)) error {
	if err := s.fresh(ctx); err != nil {
		return err
	}
	h := s.holdings
	for {
		h.mu.RLock()
		if h.loaded {
			defer h.mu.RUnlock()
			f(h)
			return nil
		}
		h.mu.RUnlock()
		if err := s.loadHoldings(ctx); err != nil {
			return err
		}
	}
}

// loadHoldings reads the tables, or waits until another caller has read them.
// Commits continue meanwhile. It records their changes from before it reads: applying
// a change that was read already is harmless, because a change is the whole state of a
// lease.
func (s *Store) loadHoldings(ctx context.Context) error {
	h := s.holdings
	h.mu.Lock()
	if h.loaded {
		h.mu.Unlock()
		return nil
	}
	if other := h.loading; other != nil {
		h.mu.Unlock()
		select {
		case <-other:
			return nil
		case <-ctx.Done():
			return unavailable("loading the live leases", context.Cause(ctx))
		}
	}
	done := make(chan struct{})
	h.loading = done
	forgets := h.forgets
	h.mu.Unlock()

	next := &holdings{seed: h.seed}
	err := s.fillHoldings(ctx, next)
	h.mu.Lock()
	defer h.mu.Unlock()
	if err == nil && h.forgets == forgets {
		h.tables, h.kinds, h.stuck, h.loaded = next.tables, next.kinds, next.stuck, true
		h.apply(h.behind)
	}
	h.loading, h.behind = nil, nil
	close(done)
	return err
}

// fillHoldings has connections of its own: all connections of the pool may be in the
// hands of callers that wait for it.
func (s *Store) fillHoldings(ctx context.Context, h *holdings) (err error) {
	db, err := s.openPool()
	if err != nil {
		return unavailable("loading the live leases", err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	h.kinds, h.stuck = map[int32]leaseKind{}, map[broker.LeaseID]int64{}
	err = eachKind(ctx, db, func(id int32, k leaseKind) { h.kinds[id] = k })
	for t := range h.tables {
		err = errors.Join(err, h.fill(ctx, db, t))
	}
	if err == nil {
		err = h.fillStuck(ctx, db)
	}
	if err == nil {
		err = h.fillCarried(ctx, db)
	}
	if err != nil {
		return unavailable("loading the live leases", err)
	}
	return nil
}

// fill reads a table, its older and its newer half at once: a broker with a million
// live leases waits for it when it starts.
func (h *holdings) fill(ctx context.Context, db *sql.DB, table int) error {
	var first, last []byte
	if err := db.QueryRowContext(ctx, firstAndLast(holdingTables[table])).Scan(&first, &last); err != nil || first == nil {
		return err
	}
	set, err := readHalves(first, last, func(set *leaseSet, where string, bound []byte) error {
		return set.read(ctx, db, holdingTables[table]+" WHERE "+where, bound, h.seed)
	})
	h.tables[table] = set
	return err
}

// firstAndLast returns the query for the first and the last id of a table. (PostgreSQL has no
// min of bytes.)
func firstAndLast(table string) string {
	return "SELECT (SELECT id FROM " + table + " ORDER BY id LIMIT 1), (SELECT id FROM " + table + " ORDER BY id DESC LIMIT 1)"
}

// readHalves reads leases with ids from first to last with two calls of read: one for the
// older half of the time between them, and one for the newer.
func readHalves(first, last []byte, read func(set *leaseSet, where string, bound []byte) error) (leaseSet, error) {
	if len(first) < 8 || len(last) < 8 {
		return leaseSet{}, errBody
	}
	from, to := binary.BigEndian.Uint64(first), binary.BigEndian.Uint64(last)
	middle := binary.BigEndian.AppendUint64(nil, from+(max(to, from)-from)/2)
	var halves [2]leaseSet
	var errs [2]error
	var both sync.WaitGroup
	for i, where := range []string{"id < ?", "id >= ?"} {
		both.Go(func() { errs[i] = read(&halves[i], where, middle) })
	}
	both.Wait()
	halves[0].join(&halves[1])
	return halves[0], errors.Join(errs[:]...)
}

// read reads leases in the order of their ids. Reading one column costs half as much
// as reading three.
func (s *leaseSet) read(ctx context.Context, db *sql.DB, from string, bound []byte, seed maphash.Seed) error {
	query := "SELECT CAST(id || request || holder AS BLOB), until, kind FROM " + from + " ORDER BY id"
	return each(ctx, db, query, []any{bound}, func(rows *sql.Rows) error {
		var texts sql.RawBytes
		var until, kind any // into an int64, database/sql formats and parses the number
		if err := rows.Scan(&texts, &until, &kind); err != nil {
			return err
		}
		const size = len(broker.LeaseID{})
		end, ok := until.(int64)
		number, too := kind.(int64)
		if !ok || !too || len(texts) < 2*size {
			return errBody
		}
		e := newHeld(broker.LeaseID(texts[:size]), end, broker.RequestID(texts[size:2*size]), int32(number), false)
		s.put(e, maphash.Bytes(seed, texts[2*size:]))
		return nil
	})
}

func (h *holdings) fillStuck(ctx context.Context, db *sql.DB) error {
	var revoking []broker.LeaseID
	for e := range h.tables[liveTable].all() {
		if e.until == untilEnded {
			revoking = append(revoking, e.id)
		}
	}
	for _, id := range revoking {
		var body []byte
		var l broker.Lease
		err := db.QueryRowContext(ctx, "SELECT body FROM leases WHERE id = ?", id[:]).Scan(&body)
		if err == nil {
			err = decodeBody(body, &l)
		}
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		if from := stuckFrom(&l); from != 0 {
			h.stuck[id] = from
		}
	}
	return nil
}

// stuckFrom returns when a lease becomes stuck (broker.LeaseStuck), in milliseconds
// since 1970; 0 means that it does not, as far as is known.
func stuckFrom(l *broker.Lease) int64 {
	if l.Status != broker.LeaseRevoking || l.LastError == "" {
		return 0
	}
	return ceilMillis(l.EndAsked.Add(broker.StuckAfter))
}

// expired returns up to limit leases of a table that have ended by time, and up to limit
// that were carried and so have no row there.
func (h *holdings) expired(table int, now int64, limit int) (ids, carried []broker.LeaseID) {
	for e := range h.tables[table].all() {
		switch {
		case e.until > now:
		case e.carried():
			carried = append(carried, e.id)
		default:
			ids = append(ids, e.id)
		}
		if len(ids) == limit || len(carried) == limit {
			break
		}
	}
	return ids, carried
}

// drop removes leases that have ended by time.
func (h *holdings) drop(table int, ids []broker.LeaseID, now int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	set := &h.tables[table]
	for _, id := range ids {
		if table == liveTable && compareIDs(id, h.dropped) > 0 {
			h.dropped = id
		}
		// It may have been put again in the meantime.
		if i, at, found := set.find(id); found && set.chunks[i].leases[at].until <= now {
			set.remove(id)
		}
	}
}

// inMemory reports whether a query is answered from memory: all that it selects by
// must be there, and reading the table in its order must not be faster.
func inMemory(q *broker.LeaseQuery) bool {
	return (q.Live || q.Outliving) && !q.Due && q.Under == "" && q.TrustDomain == ""
}

// candidates returns up to n leases that a query may select, the newest first.
func (h *holdings) candidates(q *broker.LeaseQuery, n int) (ids []broker.LeaseID) {
	table, now := liveTable, q.Now.UnixMilli()
	if q.Outliving {
		table = lingeringTable
	}
	var kinds map[int32]bool // nil: all
	if q.Entitlement != "" || q.Issuer != "" {
		kinds = map[int32]bool{}
		for id, k := range h.kinds {
			kinds[id] = (q.Entitlement == "" || k.entitlement == q.Entitlement) && (q.Issuer == "" || k.issuer == q.Issuer)
		}
	}
	holder, request := h.hash(q.Holder), requestHash(q.Request)
	everyone := q.Holder == ""
	for c := range h.tables[table].before(q.Before) {
		for i := len(c.holders) - 1; i >= 0; i-- {
			if c.holders[i] != holder && !everyone {
				continue
			}
			e := &c.leases[i]
			if e.until <= now || !q.Request.IsZero() && e.request != request || kinds != nil && !kinds[e.kind()] {
				continue
			}
			if ids = append(ids, e.id); len(ids) == n {
				return ids
			}
		}
	}
	return ids
}

// candidateBatch is how many rows of candidates are read before memory is searched
// for more.
const candidateBatch = 128

// leases reads the rows of leases.
func (v *viewTx) leases(ids []broker.LeaseID) (map[broker.LeaseID]*broker.Lease, error) {
	args := make([]any, len(ids))
	for i := range ids {
		args[i] = ids[i][:]
	}
	if len(ids) == 0 {
		return nil, nil
	}
	rows, err := listLeases(v.ctx, v.tx, leases.selectIn(idAmong(len(ids))), args...)
	byID := make(map[broker.LeaseID]*broker.Lease, len(rows))
	for _, l := range rows {
		byID[l.ID] = l
	}
	return byID, err
}

// held lists the leases that a query selects from memory. It returns the rows as they
// are in the snapshot of the view.
func (v *viewTx) held(q broker.LeaseQuery) (page []*broker.Lease, next broker.LeaseID, err error) {
	for scanned := 0; scanned < maxScan; {
		var ids []broker.LeaseID
		if err := v.s.readHoldings(v.ctx, func(h *holdings) { ids = h.candidates(&q, candidateBatch) }); err != nil {
			return nil, broker.LeaseID{}, err
		}
		rows, err := v.leases(ids)
		if err != nil {
			return nil, broker.LeaseID{}, err
		}
		for _, id := range ids {
			scanned++
			q.Before = id
			// A lease that was opened after the snapshot has no row.
			if l := rows[id]; l != nil && wantsLease(&q, l) {
				if page = append(page, l); len(page) == q.Limit {
					return page, id, nil
				}
			}
		}
		if len(ids) < candidateBatch {
			return page, broker.LeaseID{}, nil
		}
	}
	return page, q.Before, nil
}

// CountActive counts the leases that are live at now, for a gauge.
func (s *Store) CountActive(ctx context.Context, now time.Time) (counts []Active, err error) {
	err = s.readHoldings(ctx, func(h *holdings) {
		byKind := map[int32]int64{}
		for e := range h.tables[liveTable].all() {
			if e.until > now.UnixMilli() {
				byKind[e.kind()]++
			}
		}
		for _, id := range slices.Sorted(maps.Keys(byKind)) {
			counts = append(counts, Active{h.kinds[id].entitlement, h.kinds[id].issuer, byKind[id]})
		}
	})
	return counts, err
}

// CountStuck counts the leases that are stuck at now (broker.LeaseStuck), for a
// gauge.
func (s *Store) CountStuck(ctx context.Context, now time.Time) (n int64, err error) {
	err = s.readHoldings(ctx, func(h *holdings) {
		for _, from := range h.stuck {
			if from <= now.UnixMilli() {
				n++
			}
		}
	})
	return n, err
}
