package store

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// Update implements broker.Store.
func (s *Store) Update(ctx context.Context, reads []broker.Key, f func(broker.Tx) error) error {
	return s.submit(&member{ctx: ctx, reads: reads, f: f})
}

// exec runs statements of the store itself in the transaction of a group. f may
// run more than once.
func (s *Store) exec(ctx context.Context, f func(context.Context, *writer) error) error {
	return s.submit(&member{ctx: ctx, raw: f})
}

// commit takes a group to a known outcome, and sets the outcome of each member. begun is the
// result of begin.
func (s *Store) commit(group []*member, begun error) {
	err := s.attempt(group, begun)
	for tries := 0; errors.Is(err, errMoved) && tries < maxMoved; tries++ {
		s.forget()
		if err = s.w.engine.reload(context.Background(), s.w); err == nil {
			err = s.attempt(group, s.begin())
		}
	}
	if err == nil {
		return
	}
	if failed := (*failedMember)(nil); errors.As(err, &failed) {
		// The statements of that member failed halfway, so all of the
		// transaction was rolled back: the others run again without it.
		if rest := slices.DeleteFunc(slices.Clone(group), func(m *member) bool { return m == failed.m }); len(rest) > 0 {
			s.commit(rest, s.begin())
		}
		failed.m.err = failed.err
		return
	}
	if isFull(err) && s.w.reserve.exists() && !s.w.reserve.spent {
		// With the space of the reserve, members that record endings succeed.
		s.w.reserve.release(s.w.now())
		s.degraded.Store(true)
		s.commit(group, s.begin())
		return
	}
	if isRows(err) && len(group) > 1 {
		// The rows of some member are at fault: alone, only that one fails.
		for _, m := range group {
			s.commit([]*member{m}, s.begin())
		}
		return
	}
	if s.w.stale {
		s.forget() // the COMMIT may have happened, and readers may see it
	}
	if !isRows(err) {
		s.troubled(err)
	}
	for _, m := range group {
		if m.err == nil && m.panicked == nil {
			m.err = unavailable("writing", err)
		}
	}
}

// A failedMember is the error of a member whose own statements failed halfway.
type failedMember struct {
	m   *member
	err error
}

func (f *failedMember) Error() string { return f.err.Error() }

// begin begins the transaction of a group. An error means that there is none.
func (s *Store) begin() error {
	ctx := context.Background()
	if err := s.ready(ctx); err != nil {
		return err
	}
	w := s.w
	w.reserve.restore(w.now())
	s.degraded.Store(w.reserve.spent)
	err := w.step("begin", func() error { return w.engine.begin(ctx, s) })
	if err != nil {
		w.rollback()
	}
	return err
}

// attempt runs the members and commits the rows and records of those that
// succeeded. An error means that nothing is committed.
func (s *Store) attempt(group []*member, begun error) (err error) {
	if begun != nil {
		return begun
	}
	// The context of one member must not end the transaction of all.
	ctx := context.Background()
	w, start := s.w, time.Now()
	committing := false
	defer func() {
		if err != nil && !committing {
			w.rollback()
		}
	}()
	g := newGroup(s)
	if err := w.step("fetch", func() error { return g.prefetch(ctx, group) }); err != nil {
		return err
	}
	for _, m := range group {
		if err := g.run(ctx, m); err != nil {
			return &failedMember{m, err}
		}
	}
	if g.members < len(group) {
		// A member may have failed because of another writer's change. Those that
		// succeeded are covered by writeHead.
		if err := g.checkHead(ctx); err != nil {
			return err
		}
	}
	if g.empty() {
		w.rollback()
		return nil
	}
	if err := g.flush(ctx); err != nil {
		return err
	}
	committing = true
	if err := w.commit(ctx, g.nonce); err != nil {
		return err
	}
	// The point of no return: the group is durable, if the file is the database.
	g.adopt(s)
	if err := s.checkFiles(); err != nil {
		return err
	}
	s.recovered()
	s.cfg.Observe(Commit{Members: g.members, Records: len(g.entries), Took: time.Since(start)})
	return nil
}

// A group is the content of one transaction.
type group struct {
	s       *Store
	w       *writer
	fetched map[broker.Key][]byte       // bodies in the database; nil if there is no such row
	carried map[broker.LeaseID]carrying // of the requests and leases that were fetched
	rows    map[broker.Key]*row         // rows put by members that succeeded, in the writer's scratch
	order   []*row                      // the same rows, in the order in which they were first put
	entries []*audit.Entry
	nodes   [][]tlog.Hash // for each entry, the tree nodes that it completes
	members int           // that succeeded
	wrote   bool          // a member ran statements of its own
	execs   []deferred    // statements of members that succeeded, after the rows

	// The state of the log after this group. It becomes the writer's only when
	// the transaction is committed.
	head          Head
	nonce         []byte
	seq           int64 // see writer
	tree          *audit.Tree
	blocksVersion int64
	newBlocks     map[broker.BlockKey][]byte
	newKinds      map[leaseKind]int32
}

func newGroup(s *Store) *group {
	w := s.w
	w.scratch.reset()
	g := &group{s: s, w: w, rows: w.scratch.rows, order: w.scratch.order, head: w.head, tree: w.tree, blocksVersion: w.blocksVersion, nonce: make([]byte, 16), seq: w.seq + 1}
	_, _ = rand.Read(g.nonce) // never fails
	return g
}

func (g *group) empty() bool {
	return len(g.order) == 0 && len(g.entries) == 0 && len(g.execs) == 0 && !g.wrote
}

// prefetch reads the rows that the members named in reads, with one query per
// table.
func (g *group) prefetch(ctx context.Context, members []*member) error {
	var wanted [tableCount][]any
	loaded := false
	for _, m := range members {
		for _, key := range m.reads {
			switch key.(type) {
			case broker.StandingKey:
				if !loaded {
					if err := g.s.loadStandings(ctx); err != nil {
						return err
					}
					loaded = true
				}
			case broker.SpentKey:
				if err := g.w.loadUsed(ctx); err != nil {
					return err
				}
			}
			if g.w.remembers(key) {
				continue
			}
			if _, ok := g.fetched[key]; ok {
				continue
			}
			t, id, err := locate(key)
			if err != nil {
				return &failedMember{m, err}
			}
			if g.fetched == nil {
				g.fetched = map[broker.Key][]byte{}
			}
			g.fetched[key] = nil
			wanted[t] = append(wanted[t], id)
		}
	}
	if g.fetched == nil {
		return nil
	}
	return g.w.engine.fetch(ctx, g.w, &wanted, func(t table, id, body, lease []byte) error {
		key, err := t.key(id)
		if err != nil {
			return err
		}
		g.fetched[key] = g.fetchCarried(key, body, lease)
		return nil
	})
}

// remembers reports whether the row of a key is in memory: all blocks, standings and what was
// used are, and the revision in force once it has been read.
func (w *writer) remembers(key broker.Key) bool {
	switch key.(type) {
	case broker.BlockKey, broker.StandingKey, broker.SpentKey:
		return true
	case broker.RevisionKey:
		return w.revision != nil
	}
	return false
}

// run runs one member. A member that fails or panics has no effect on the group. An
// error means that it left something in the transaction, which can then not be
// committed.
func (g *group) run(ctx context.Context, m *member) (err error) {
	m.err, m.panicked = nil, nil
	switch {
	case m.ctx.Err() != nil:
		m.err = fmt.Errorf("waiting to write: %w: %w", broker.ErrUnavailable, context.Cause(m.ctx))
	case m.epoch != nil:
		err = g.open(ctx, m.epoch)
	case m.raw != nil && g.w.reserve.spent:
		m.err = unavailable("writing", errFull)
	case m.raw != nil:
		g.wrote = true
		err = m.raw(ctx, g.w)
	default:
		g.runTx(m)
	}
	if err == nil && m.err == nil && m.panicked == nil {
		g.members++
	}
	return err
}

func (g *group) runTx(m *member) {
	tx := &updateTx{g: g, reads: m.reads, rows: make([]*row, 0, 2)} // an issuance puts two
	defer func() {
		if p := recover(); p != nil {
			m.panicked = p
		}
	}()
	err := m.f(tx)
	switch {
	case err != nil:
		m.err = err
	case tx.err != nil:
		m.err = fmt.Errorf("writing: %w", tx.err)
	case len(tx.entries) > 0 && g.head.Epoch == 0:
		m.err = unavailable("appending to the log", errNoLog)
	case g.w.reserve.spent && !recordsEndings(tx.entries) && len(tx.rows)+len(tx.entries)+len(tx.execs) > 0:
		m.err = unavailable("writing", errFull)
	case g.s.clockOff() != nil && !recordsEndings(tx.entries) && len(tx.rows)+len(tx.entries) > 0:
		m.err = unavailable("writing", errClock)
	default:
		g.join(tx)
	}
}

var (
	errNoLog = errors.New("no log is open: OpenLog comes first")
	errFull  = errors.New("the disk is full; the reserved space is kept for recording revocations")
)

// join adds the rows and entries of a member to the group. From here on the indexes
// of its entries are known.
func (g *group) join(tx *updateTx) {
	first := g.head.Size + int64(len(g.entries))
	g.entries, g.execs = append(g.entries, tx.entries...), append(g.execs, tx.execs...)
	for _, r := range tx.rows {
		r.addRecords(g.head.Epoch, first, len(tx.entries))
		if there := g.rows[r.key]; there != nil {
			*there = *r
			continue
		}
		g.rows[r.key] = r
		g.order = append(g.order, r)
	}
	g.w.scratch.order = g.order
}

// adopt makes the committed state of the group the state of the writer, from
// which the next group begins.
func (g *group) adopt(s *Store) {
	w := g.w
	first := g.head.Size - int64(len(g.entries))
	for i, e := range g.entries {
		e.Index, e.LeafHash = first+int64(i), audit.Digest(g.nodes[i][0])
	}
	w.head, w.nonce, w.seq, w.tree, w.blocksVersion = g.head, g.nonce, g.seq, g.tree, g.blocksVersion
	maps.Copy(w.blocks, g.newBlocks)
	maps.Copy(w.kinds, g.newKinds)
	if body := g.body(broker.RevisionKey{}); body != nil {
		w.revision = bytes.Clone(body)
	}
	w.used.follow(g)
	if s.feed == nil {
		s.follow(g)
	} else {
		s.feed.own(g.seq, g.nonce, g.head, func() { s.follow(g) })
	}
	s.counting.follow(g)
	s.surveying.follow(g)
	s.tallying.follow(g)
	s.written()
}

// follow makes the copies in memory follow a commit of this process or of another one.
func (s *Store) follow(g *group) {
	s.holdings.follow(g)
	s.standings.follow(g)
	s.recent.follow(g)
	s.statuses.follow(g)
	head := g.head
	s.head.Store(&head)
}
