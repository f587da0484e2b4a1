package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// A projection is a set of tables whose rows follow from the records of the log: counts,
// indexes, the inventory. Each commit notes in memory what it appended, which costs less
// than a microsecond a record. A loop writes what was noted every now and then.
//
// One transaction writes what a range of records adds to the tables, and the row of the
// table that has the projection's position, the last record of the range. So each record
// is counted exactly once, whenever the process dies. What was noted and not written is
// read from the log when the process starts again, as is the whole log of a database from
// before the tables.
//
// It is safe for concurrent use.
type projection struct {
	table string        // of the position
	doing string        // for the operator's log
	every time.Duration // how often the loop writes
	empty func() addition
	wake  chan struct{} // the loop writes at once; nil: never needed

	mu     sync.Mutex
	noted  *span         // appended since the last write; nil: none
	theirs bool          // another process writes the tables, so nothing is noted
	write  chan struct{} // holds one token; the holder writes the tables
}

// An addition is what a range of records adds to the tables of a projection.
type addition interface {
	// note adds a record that was just committed. The entry is valid only during the call.
	note(id int64, e *audit.Entry, at time.Time)
	// read adds a record of the log. The leaf is valid only during the call.
	read(id int64, leaf []byte) error
	// size returns the size in memory and its bound, in its own measure. Over the
	// bound, what was noted is forgotten, and read from the log.
	size() (now, most int)
	// complete adds what rows state, and prepares write.
	complete(v *viewTx) error
	// write writes the tables. It may run more than once.
	write(ctx context.Context, w *writer) error
}

const (
	followBatch  = 1024                  // records that are read from the log at a time
	followPause  = 10 * time.Millisecond // after such a batch, so that issuing goes first
	catchUpLimit = 50 * time.Millisecond // how long a reader waits
)

// A span is what a range of records adds to the tables.
type span struct {
	after int64 // the record before the first
	last  int64
	n     int // records that were read from the log
	adds  addition
}

// follow notes the records of a group that was committed. Only the leader of the queue
// calls it.
func (p *projection) follow(g *group) {
	if len(g.entries) == 0 {
		return
	}
	first := recordID(g.head.Epoch, g.head.Size-int64(len(g.entries)))
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.theirs {
		p.noted = nil
		return
	}
	if p.noted == nil || p.noted.last != first-1 || p.overfull() {
		p.noted = &span{after: first - 1, adds: p.empty()}
	}
	for i, e := range g.entries {
		p.noted.adds.note(first+int64(i), e, g.head.Time)
	}
	p.noted.last = first + int64(len(g.entries)) - 1
	if now, most := p.noted.adds.size(); p.wake != nil && now > most/2 {
		select {
		case p.wake <- struct{}{}:
		default: // it is awake
		}
	}
}

func (p *projection) overfull() bool {
	now, most := p.noted.adds.size()
	return now > most
}

// take returns what was noted; nil if nothing was.
func (p *projection) take() *span {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.noted
	p.noted = nil
	return s
}

// leave notes whether another process writes the tables.
func (p *projection) leave(theirs bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.theirs = theirs
}

// catchUpOnDuty is catchUp if this process is the one that writes the tables. A reader in
// another process reads the log by itself, as far as the tables lack it.
func (s *Store) catchUpOnDuty(ctx context.Context, p *projection) error {
	name := "projection/" + p.table
	duty := DutiesOf(s).Hold(ctx, name)
	defer duty.End()
	mine := duty.Has(name)
	p.leave(!mine)
	if !mine {
		return nil
	}
	return s.catchUp(duty.Context(), p)
}

// followForever writes the tables of a projection until ctx ends.
func (s *Store) followForever(ctx context.Context, p *projection) {
	tick := time.NewTicker(p.every)
	defer tick.Stop()
	failing := false
	for {
		err := s.catchUpOnDuty(ctx, p)
		if err != nil && !failing && ctx.Err() == nil {
			s.cfg.Log.ErrorContext(ctx, p.doing, "err", err)
		}
		failing = err != nil
		wake := p.wake
		if failing {
			wake = nil // no more often than the tick
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-wake:
		}
	}
}

// catchUp writes all records that were committed before the call to the tables of a
// projection.
func (s *Store) catchUp(ctx context.Context, p *projection) error {
	select {
	case p.write <- struct{}{}:
		defer func() { <-p.write }()
	case <-ctx.Done():
		return unavailable("following the log", context.Cause(ctx))
	}
	noted := p.take()
	until := int64(math.MaxInt64) // another process may have written
	if noted != nil {
		until = noted.after
	}
	for {
		behind, err := s.unread(ctx, p, until)
		switch {
		case err != nil:
			return err
		case behind.n > 0:
			if err := s.addSpan(ctx, p, behind); err != nil {
				return err
			}
			if behind.n < followBatch && noted == nil {
				return nil // what was committed meanwhile is noted
			}
			err = pause(ctx)
		case noted == nil:
			return nil
		case behind.after > noted.after: // it was read from the log before it was noted
			until, noted = noted.last, nil
		default:
			noted.after = behind.after // no record is between them
			if err = s.addSpan(ctx, p, noted); err != nil || !s.Shared() {
				return err
			}
			until, noted = math.MaxInt64, nil // other processes may have appended after them
		}
		if err != nil {
			return err
		}
	}
}

// catchUpNow writes what was noted, so that a reader sees all records that were committed
// before. A reader does not wait for the reading of a whole log, nor for a database that
// cannot be written: it states how many records are not counted yet.
func (s *Store) catchUpNow(ctx context.Context, p *projection) error {
	ctx, cancel := context.WithTimeout(ctx, catchUpLimit)
	defer cancel()
	if err := s.catchUp(ctx, p); err != nil && !errors.Is(err, broker.ErrUnavailable) {
		return err
	}
	return nil
}

// pause lets other writers go first.
func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return unavailable("following the log", context.Cause(ctx))
	case <-time.After(followPause):
		return nil
	}
}

// unread reads a batch of the records after the position of a projection.
func (s *Store) unread(ctx context.Context, p *projection, until int64) (b *span, err error) {
	err = s.View(ctx, func(tx broker.Tx) (err error) {
		b, err = tx.(*viewTx).unread(p, until, followBatch)
		return err
	})
	return b, err
}

// position returns the last record that the tables of a projection contain.
func (v *viewTx) position(p *projection) (id broker.RecordID, err error) {
	if err := v.tx.QueryRowContext(v.ctx, "SELECT record FROM "+p.table).Scan(&id); err != nil {
		return 0, unavailable("reading a position in the log", err)
	}
	return id, nil
}

// unread reads up to n records after the position of a projection, and none after until.
func (v *viewTx) unread(p *projection, until int64, n int) (*span, error) {
	at, err := v.position(p)
	if err != nil {
		return nil, err
	}
	b := &span{after: int64(at), last: int64(at), adds: p.empty()}
	if until <= b.after {
		return b, nil
	}
	err = each(v.ctx, v.tx, "SELECT id, leaf FROM records WHERE id > ? AND id <= ? ORDER BY id LIMIT ?", []any{b.after, until, n}, func(rows *sql.Rows) error {
		var leaf sql.RawBytes
		if err := rows.Scan(&b.last, &leaf); err != nil {
			return err
		}
		b.n++
		if err := b.adds.read(b.last, leaf); err != nil {
			return fmt.Errorf("record %d: %w", broker.RecordID(b.last).Index(), err)
		}
		return nil
	})
	if err != nil {
		return nil, unavailable("reading records of the log", err)
	}
	return b, nil
}

// addSpan writes what a span adds.
func (s *Store) addSpan(ctx context.Context, p *projection, b *span) error {
	err := s.View(ctx, func(tx broker.Tx) error { return b.adds.complete(tx.(*viewTx)) })
	if err != nil {
		return err
	}
	return s.exec(ctx, func(ctx context.Context, w *writer) error { return w.addSpan(ctx, p, b) })
}

// addSpan writes nothing if the span was written before, as after a commit whose answer
// was lost.
func (w *writer) addSpan(ctx context.Context, p *projection, b *span) error {
	n, err := w.execCount(ctx, "UPDATE "+p.table+" SET record = ? WHERE record = ?", b.last, b.after)
	if err != nil || n == 0 {
		return err
	}
	return b.adds.write(ctx, w)
}

// recordsBehind returns the number of records that the tables of a projection do not
// contain yet. It does not read them: the records of a log have consecutive ids.
func (v *viewTx) recordsBehind(p *projection) (n int64, err error) {
	head, _, _, err := scanHead(v.tx.QueryRowContext(v.ctx, selectHead))
	if err != nil {
		return 0, unavailable("reading the head of the log", err)
	}
	id, err := v.position(p)
	if err != nil {
		return 0, err
	}
	if id.Epoch() == head.Epoch {
		return head.Size - id.Index() - 1, nil
	}
	return head.Size, nil // and the rest of an earlier log
}
