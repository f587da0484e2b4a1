package store

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// Several processes, replicas, may share a PostgreSQL database, and each keeps in memory what
// the others change. So every commit has a number and leaves a row in the table commits with
// what the others must know: the feed. A replica that is behind reads the rows after its own
// number, and does in memory what the commits did in the tables. It reads them in the
// transaction of each of its groups, before each read that memory answers (fresh), and a few
// times a second (Run).
//
// A row also names the nonce of the commit before it. A replica whose last commit has no
// successor in the database knows that commits were lost, as by a failover to a standby that
// had not received them: see ErrRewound.
//
// Rows are deleted after feedLasts. A replica that finds its successor missing forgets its
// memory, after it has checked that the log continues the one that it knew.

// feedTables are the columns and the table of the feed. Only PostgreSQL has them.
const feedTables = `
ALTER TABLE head ADD COLUMN seq INTEGER NOT NULL DEFAULT 0;
CREATE TABLE commits (seq INTEGER PRIMARY KEY, nonce BLOB NOT NULL, at INTEGER NOT NULL, changes BLOB NOT NULL);
CREATE INDEX commits_at ON commits (at);
`

const (
	// feedLasts is how long rows of the feed are kept.
	feedLasts = 20 * time.Second

	// feedTimeout bounds one reading of the feed.
	feedTimeout = 5 * time.Second

	// maxClockOffset is the difference between the clock of the broker and that of the
	// database from which on the broker issues nothing.
	maxClockOffset = 2 * time.Second
)

// ErrRewound means that the database no longer contains the last commit that this process
// knew: it was restored, or a standby without the last transactions replaced it. The process
// writes and answers nothing more. A restart compares the log with the checkpoint file.
var ErrRewound = errors.New("the database went back: it lacks commits that this broker has seen; restart the broker, which compares the log with its checkpoint file (see broker audit new-epoch --help)")

// A commitNote is what the feed has of one commit.
type commitNote struct {
	seq    int64
	nonce  []byte
	before []byte // the nonce of the commit before it
	head   Head
	blocks int64       // version of the blocks
	leaves []tlog.Hash // hashes of the records that it appended
	since  []byte      // see carried.go
	rows   []*row      // with what memory needs of them
	kinds  kindNumbers // of the leases among them
}

// kindNumbers are the numbers of kinds of leases.
type kindNumbers map[leaseKind]int32

// A feed is the part of a Store that follows the commits of all replicas. It is safe for
// concurrent use.
type feed struct {
	db    *sql.DB    // of its own: all connections of the readers may wait for the feed
	mu    sync.Mutex // held while a commit is applied
	seq   int64      // of the last commit that memory contains
	nonce []byte     // of the same
	head  Head       // of the same
	asked time.Time  // memory contains what was committed before
	lost  error      // ErrRewound, once it happened

	flights   sync.Mutex
	flying    *flight
	following *flight // begins when flying has ended
}

// A flight is one reading of the feed for all who wait for it.
type flight struct {
	done chan struct{}
	err  error
}

// Shared reports whether other processes may write to the database.
func (s *Store) Shared() bool { return s.feed != nil }

// fresh makes memory contain every commit that was durable before the call, whichever replica
// made it. All calls that arrive while the feed is being read share the next reading.
func (s *Store) fresh(ctx context.Context) error {
	if s.feed == nil {
		return nil
	}
	f := s.feed
	f.flights.Lock()
	mine := f.following
	switch {
	case f.flying == nil:
		mine = &flight{done: make(chan struct{})}
		f.flying = mine
		go s.fly()
	case mine == nil:
		mine = &flight{done: make(chan struct{})}
		f.following = mine
	}
	f.flights.Unlock()
	select {
	case <-mine.done:
		return mine.err
	case <-ctx.Done():
		return unavailable("reading the commits of other brokers", context.Cause(ctx))
	}
}

// standingsLag is how long a standing that is read from memory may lack the commits of other
// replicas. A decision that rests on a standing reads it again in its transaction.
const standingsLag = 250 * time.Millisecond

// freshWithin is fresh, except that memory may lag.
func (s *Store) freshWithin(ctx context.Context, lag time.Duration) error {
	if s.feed == nil {
		return nil
	}
	s.feed.mu.Lock()
	recent, lost := time.Since(s.feed.asked) <= lag, s.feed.lost
	s.feed.mu.Unlock()
	if recent || lost != nil {
		return lost
	}
	return s.fresh(ctx)
}

// caughtUp notes that memory contains what was committed before a time.
func (f *feed) caughtUp(asked time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if asked.After(f.asked) {
		f.asked = asked
	}
}

// fly reads the feed until no caller waits.
func (s *Store) fly() {
	f := s.feed
	for {
		f.flights.Lock()
		now := f.flying
		f.flights.Unlock()
		if now == nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), feedTimeout)
		now.err = s.readFeed(ctx)
		cancel()
		close(now.done)
		f.flights.Lock()
		f.flying, f.following = f.following, nil
		f.flights.Unlock()
	}
}

// feedBatch bounds the commits of one query. A replica that is further behind than that
// forgets its memory.
const feedBatch = 4096

// selectFeed reads the head and the rows of the feed after a number. It returns a row even if
// there are none.
const selectFeed = `SELECT now.at, now.standby, head.seq, head.nonce, commits.seq, commits.nonce, commits.changes
	FROM (SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT) AS at,
		CAST(CASE WHEN pg_is_in_recovery() THEN 1 ELSE 0 END AS BIGINT) AS standby) AS now, head
	LEFT JOIN commits ON commits.seq > ? ORDER BY commits.seq LIMIT ?`

// errStandby means that the server is a standby. It may not have received the last commits,
// so nothing that it says is an answer.
var errStandby = errors.New("the server is a standby, which cannot be written to: connect to the primary")

// A feedPage is the result of selectFeed.
type feedPage struct {
	at    time.Time // the database's clock
	seq   int64     // of the head
	nonce []byte
	notes []*commitNote
	odd   bool // a newer version wrote a note that this one can't read
}

// leads reports whether the notes lead from a commit to the head.
func (p *feedPage) leads(from int64) bool {
	return !p.odd && len(p.notes) > 0 && p.notes[0].seq == from+1 && p.notes[len(p.notes)-1].seq == p.seq
}

// forks reports whether the note after a commit names another one before it.
func (p *feedPage) forks(from int64, nonce []byte) bool {
	return !p.odd && len(p.notes) > 0 && p.notes[0].seq == from+1 && !bytes.Equal(p.notes[0].before, nonce)
}

func readFeedPage(ctx context.Context, q queryer, after int64) (p feedPage, err error) {
	err = each(ctx, q, selectFeed, []any{after, feedBatch}, func(rows *sql.Rows) error {
		var at, standby int64
		var seq sql.NullInt64
		var nonce, changes []byte
		if err := rows.Scan(&at, &standby, &p.seq, &p.nonce, &seq, &nonce, &changes); err != nil {
			return err
		}
		p.at = time.UnixMicro(at)
		if standby != 0 {
			return errStandby
		}
		if !seq.Valid {
			return nil
		}
		n := &commitNote{seq: seq.Int64, nonce: nonce}
		p.notes = append(p.notes, n)
		p.odd = n.decode(changes) != nil || p.odd // memory is read again
		return nil
	})
	return p, err
}

// readFeed applies the commits that memory lacks.
func (s *Store) readFeed(ctx context.Context) error {
	f := s.feed
	f.mu.Lock()
	seq, nonce, lost := f.seq, f.nonce, f.lost
	f.mu.Unlock()
	if lost != nil {
		return lost
	}
	sent := time.Now()
	p, err := readFeedPage(ctx, f.db, seq)
	if err != nil {
		return unavailable("reading the commits of other brokers", err)
	}
	s.clock.measured(p.at, sent, time.Now())
	if err := s.catchUpTo(ctx, f.db, p, seq, nonce); err != nil {
		return err
	}
	f.caughtUp(sent)
	return nil
}

// catchUpTo applies a page of the feed that was read after the commit seq, whose nonce is
// given.
func (s *Store) catchUpTo(ctx context.Context, q queryer, p feedPage, seq int64, nonce []byte) error {
	switch {
	case p.seq < seq, p.seq == seq && !bytes.Equal(p.nonce, nonce), p.forks(seq, nonce):
		return s.rewind()
	case p.seq == seq:
		return nil
	case !p.leads(seq):
		return s.skipTo(ctx, q, p)
	}
	for _, n := range p.notes {
		s.apply(n)
	}
	return nil
}

// apply does in memory what a commit did in the tables, unless memory contains it.
func (s *Store) apply(n *commitNote) {
	f := s.feed
	f.mu.Lock()
	defer f.mu.Unlock()
	if n.seq != f.seq+1 {
		return
	}
	s.followNote(n)
	f.seq, f.nonce, f.head = n.seq, n.nonce, n.head
	if s.cfg.Changed != nil {
		keys := make([]broker.Key, 0, len(n.rows))
		for _, r := range n.rows {
			keys = append(keys, r.key)
		}
		s.cfg.Changed(keys)
	}
}

// followNote makes the copies in memory follow a commit.
func (s *Store) followNote(n *commitNote) {
	g := &group{s: s, w: &writer{kinds: n.kinds}, order: n.rows, head: n.head}
	for _, r := range n.rows {
		if key, ok := r.key.(broker.BlockKey); ok {
			g.newBlock(key, r.body)
		}
	}
	s.follow(g)
}

// skipTo forgets what memory has, because the feed no longer leads to the head. Before that, it
// checks that the log contains the one that memory knew.
func (s *Store) skipTo(ctx context.Context, q queryer, p feedPage) error {
	f := s.feed
	f.mu.Lock()
	known := f.head
	f.mu.Unlock()
	head, _, _, err := scanHead(q.QueryRowContext(ctx, selectHead))
	if err != nil {
		return unavailable("reading the head of the log", err)
	}
	if err := continues(ctx, q, known, head); errors.Is(err, ErrRewound) {
		return s.rewind()
	} else if err != nil {
		return unavailable("comparing the log with the one that was known", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.seq >= p.seq {
		return nil // another reading was faster
	}
	f.seq, f.nonce, f.head = p.seq, p.nonce, head
	s.head.Store(&head)
	s.forget()
	if s.cfg.Changed != nil {
		s.cfg.Changed(nil)
	}
	return nil
}

// continues returns ErrRewound unless a log contains the records of an earlier head.
func continues(ctx context.Context, q queryer, known, head Head) error {
	switch {
	case known.Epoch == 0:
		return nil
	case head.Epoch != known.Epoch, head.Size < known.Size:
		return ErrRewound
	}
	tree, err := audit.LoadTree(known.Size, rowHashes(ctx, q, known.Epoch))
	if err != nil {
		return err
	}
	if tree.Root() != known.Root {
		return ErrRewound
	}
	return nil
}

// rewind notes that commits were lost. Nothing can be trusted afterwards.
func (s *Store) rewind() error {
	f := s.feed
	f.mu.Lock()
	first := f.lost == nil
	f.lost = fmt.Errorf("%w: %w", broker.ErrUnavailable, ErrRewound)
	f.mu.Unlock()
	if first {
		s.cfg.Log.Error("the database lacks commits that this broker has seen: nothing is issued, read or written", "err", ErrRewound)
		s.forget()
		if s.cfg.Changed != nil {
			s.cfg.Changed(nil)
		}
	}
	return f.lost
}

// rewound returns an error if commits were lost.
func (s *Store) rewound() error {
	if s.feed == nil {
		return nil
	}
	s.feed.mu.Lock()
	defer s.feed.mu.Unlock()
	return s.feed.lost
}

// own makes memory follow a commit of this process, unless the feed was faster.
func (f *feed) own(seq int64, nonce []byte, head Head, follow func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if seq != f.seq+1 {
		return
	}
	follow()
	f.seq, f.nonce, f.head = seq, nonce, head
}

// note returns what the feed must have of a group.
func (g *group) note() *commitNote {
	n := &commitNote{seq: g.seq, nonce: g.nonce, before: g.w.nonce, head: g.head, blocks: g.blocksVersion, since: g.w.carriedSince, rows: g.order, kinds: kindNumbers{}}
	for _, nodes := range g.nodes {
		n.leaves = append(n.leaves, nodes[0])
	}
	for _, r := range g.order {
		if r.table != leases {
			continue
		}
		if number, ok := g.w.kinds[r.index.kind]; ok {
			n.kinds[r.index.kind] = number
		} else if number, ok := g.newKinds[r.index.kind]; ok {
			n.kinds[r.index.kind] = number
		}
	}
	return n
}

// adopt makes the writer's memory follow a commit of another replica.
func (w *writer) adopt(n *commitNote) error {
	if w.head.Epoch != n.head.Epoch {
		w.tree = &audit.Tree{}
	} else if len(n.leaves) > 0 {
		w.tree = w.tree.Clone()
	}
	for _, leaf := range n.leaves {
		w.tree.Append(audit.Digest(leaf))
	}
	if n.head.Epoch > 0 && w.tree.Root() != n.head.Root {
		return fmt.Errorf("the log is damaged: the commit %d leads to the root %s, and its head says %s", n.seq, w.tree.Root(), n.head.Root)
	}
	for _, r := range n.rows {
		switch key := r.key.(type) {
		case broker.BlockKey:
			w.blocks[key] = r.body
		case broker.RevisionKey:
			w.revision = r.body
		case broker.SpentKey:
			w.used.add(r.at, key)
		}
	}
	for k, number := range n.kinds {
		w.kinds[k] = number
	}
	w.used.expire(n.head.Time)
	w.carriedSince = n.since
	w.seq, w.nonce, w.head, w.blocksVersion = n.seq, n.nonce, n.head, n.blocks
	return nil
}
