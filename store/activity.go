package store

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/broker/activity"
)

// Two tables are projections of the log: hours has the counts of each hour (package
// activity), and events finds records by their kind. Each commit notes in memory what it
// appended, which costs a few nanoseconds a record. A loop writes what was noted, about
// once a second.
//
// One transaction writes what a range of records adds to both tables, and the row of the
// table counted, which has the last record of the range. So each record is counted
// exactly once, whenever the process dies. What was noted and not written is read from
// the log when the process starts again, as is the whole log of a database from before
// these tables.

const (
	countEvery = time.Second
	countBatch = 1024                  // records that are read from the log at a time
	countPause = 10 * time.Millisecond // after such a batch, so that issuing goes first

	// maxNoted bounds the records in memory that are not issuances. When there are more,
	// they are forgotten, and read from the log.
	maxNoted = 8192
)

// counting is the part of a Store that counts records. It is safe for concurrent use.
type counting struct {
	mu    sync.Mutex
	noted *span         // appended since the last count; nil: none
	write chan struct{} // holds one token; the holder writes the tables
}

// A span is what a range of records adds to the tables.
type span struct {
	after int64 // the record before the first
	last  int64
	n     int // records that were read from the log
	hours activity.Hours
	rest  []noted // records that are not issuances
}

// A noted record is one of a span.
type noted struct {
	id   int64
	kind audit.Kind
	leaf []byte
}

// indexed reports whether events has the records of a kind. It leaves out only the bulk
// of the log.
func indexed(kind audit.Kind) bool { return kind != audit.LeaseIssued }

// follow notes the records of a group that was committed. Only the leader of the queue
// calls it.
func (c *counting) follow(g *group) {
	if len(g.entries) == 0 {
		return
	}
	first := recordID(g.head.Epoch, g.head.Size-int64(len(g.entries)))
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.noted == nil || c.noted.last != first-1 || len(c.noted.rest) > maxNoted {
		c.noted = &span{after: first - 1, hours: activity.Hours{}}
	}
	for i, e := range g.entries {
		files, glass := e.Files()
		if !c.noted.hours.AddIssuance(e.Kind(), g.head.Time, files, glass) {
			c.noted.rest = append(c.noted.rest, noted{first + int64(i), e.Kind(), bytes.Clone(e.Leaf())})
		}
	}
	c.noted.last = first + int64(len(g.entries)) - 1
}

// take returns what was noted; nil if nothing was.
func (c *counting) take() *span {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.noted
	c.noted = nil
	return s
}

// countForever counts records until ctx ends.
func (s *Store) countForever(ctx context.Context) {
	tick := time.NewTicker(countEvery)
	defer tick.Stop()
	failing := false
	for {
		err := s.count(ctx)
		if err != nil && !failing && ctx.Err() == nil {
			s.cfg.Log.ErrorContext(ctx, "counting the log's records: the overview and searches are behind", "err", err)
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// count counts all records that were committed before the call.
func (s *Store) count(ctx context.Context) error {
	select {
	case s.counting.write <- struct{}{}:
		defer func() { <-s.counting.write }()
	case <-ctx.Done():
		return unavailable("counting the log's records", context.Cause(ctx))
	}
	noted := s.counting.take()
	until := int64(math.MaxInt64) // another process may have written
	if noted != nil {
		until = noted.after
	}
	for {
		behind, err := s.uncounted(ctx, until)
		switch {
		case err != nil:
			return err
		case behind.n > 0:
			if err := s.addCounted(ctx, behind); err != nil {
				return err
			}
			if behind.n < countBatch && noted == nil {
				return nil // what was committed meanwhile is noted
			}
			err = pause(ctx)
		case noted == nil:
			return nil
		case behind.after > noted.after: // it was read from the log before it was noted
			until, noted = noted.last, nil
		default:
			noted.after = behind.after // no record is between them
			return s.addCounted(ctx, noted)
		}
		if err != nil {
			return err
		}
	}
}

// pause lets other writers go first.
func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return unavailable("counting the log's records", context.Cause(ctx))
	case <-time.After(countPause):
		return nil
	}
}

// uncounted reads a batch of the records after the last counted one.
func (s *Store) uncounted(ctx context.Context, until int64) (b *span, err error) {
	err = s.View(ctx, func(tx broker.Tx) (err error) {
		b, err = tx.(*viewTx).uncounted(until, countBatch)
		return err
	})
	return b, err
}

// uncounted reads up to n records after the last counted one, and none after until.
func (v *viewTx) uncounted(until int64, n int) (*span, error) {
	b := &span{hours: activity.Hours{}}
	if err := v.tx.QueryRowContext(v.ctx, "SELECT record FROM counted").Scan(&b.after); err != nil {
		return nil, unavailable("reading the position of the counts", err)
	}
	b.last = b.after
	if until <= b.after {
		return b, nil
	}
	err := each(v.ctx, v.tx, "SELECT id, leaf FROM records WHERE id > ? AND id <= ? ORDER BY id LIMIT ?", []any{b.after, until, n}, func(rows *sql.Rows) error {
		var leaf sql.RawBytes
		if err := rows.Scan(&b.last, &leaf); err != nil {
			return err
		}
		b.n++
		outline, err := audit.Glance(leaf)
		if err != nil {
			return fmt.Errorf("record %d: %w", broker.RecordID(b.last).Index(), err)
		}
		files, glass := outline.Files()
		if !b.hours.AddIssuance(outline.Kind, outline.Time, files, glass) {
			b.rest = append(b.rest, noted{b.last, outline.Kind, bytes.Clone(leaf)})
		}
		return nil
	})
	if err != nil {
		return nil, unavailable("reading records to count", err)
	}
	return b, nil
}

// addCounted writes what a span adds.
func (s *Store) addCounted(ctx context.Context, b *span) error {
	err := s.View(ctx, func(tx broker.Tx) error { return tx.(*viewTx).countRest(b) })
	if err != nil {
		return err
	}
	return s.exec(ctx, func(ctx context.Context, w *writer) error { return w.addCounted(ctx, b) })
}

// countRest counts the records of a span that have to be decoded.
func (v *viewTx) countRest(b *span) error {
	records := make([]*audit.Record, len(b.rest))
	for i, n := range b.rest {
		r, err := audit.Decode(n.leaf)
		if err != nil {
			return fmt.Errorf("record %d: %w", broker.RecordID(n.id).Index(), err)
		}
		records[i] = &r
	}
	return v.countDecoded(b.hours, records)
}

// countDecoded counts records, with the times of their leases' ends.
func (v *viewTx) countDecoded(hours activity.Hours, records []*audit.Record) error {
	var ids []broker.LeaseID
	for _, r := range records {
		if id, ok := activity.ConfirmedLease(r); ok {
			ids = append(ids, id)
		}
	}
	ended, err := v.leasesOf(ids)
	if err != nil {
		return err
	}
	for _, r := range records {
		var asked time.Time
		if id, ok := activity.ConfirmedLease(r); ok && ended[id] != nil {
			asked = ended[id].EndAsked
		}
		hours.Add(r, asked)
	}
	return nil
}

// leasesOf reads the rows of leases, a batch at a time.
func (v *viewTx) leasesOf(ids []broker.LeaseID) (map[broker.LeaseID]*broker.Lease, error) {
	found := make(map[broker.LeaseID]*broker.Lease, len(ids))
	for len(ids) > 0 {
		n := min(len(ids), candidateBatch)
		batch, err := v.leases(ids[:n])
		if err != nil {
			return nil, err
		}
		for id, l := range batch {
			found[id] = l
		}
		ids = ids[n:]
	}
	return found, nil
}

// addCounted writes nothing if the span has been counted, as after a commit whose answer
// was lost.
func (w *writer) addCounted(ctx context.Context, b *span) error {
	n, err := w.execCount(ctx, "UPDATE counted SET record = ? WHERE record = ?", b.last, b.after)
	if err != nil || n == 0 {
		return err
	}
	for hour, counts := range b.hours {
		if err := w.addHour(ctx, hour, counts); err != nil {
			return fmt.Errorf("writing the counts of an hour: %w", err)
		}
	}
	for _, r := range b.rest {
		if !indexed(r.kind) {
			continue
		}
		if err := w.exec(ctx, "INSERT INTO events (kind, record) VALUES (?, ?)", string(r.kind), r.id); err != nil {
			return fmt.Errorf("writing the index of records: %w", err)
		}
	}
	return nil
}

func (w *writer) addHour(ctx context.Context, hour int64, counts *activity.Counts) error {
	query, err := w.prepared(ctx, "SELECT body FROM hours WHERE hour = ?")
	if err != nil {
		return err
	}
	var sum activity.Counts
	var body []byte
	switch err := query.QueryRowContext(ctx, hour).Scan(&body); {
	case errors.Is(err, sql.ErrNoRows):
	case err != nil:
		return err
	default:
		if err := json.Unmarshal(body, &sum); err != nil {
			return err
		}
	}
	sum.Merge(counts)
	if body, err = json.Marshal(&sum); err != nil {
		return err
	}
	return w.exec(ctx, "INSERT INTO hours (hour, body) VALUES (?, ?) ON CONFLICT (hour) DO UPDATE SET body = excluded.body", hour, body)
}

// Activity returns the counts of the hours from the hour of from until now.
func (s *Store) Activity(ctx context.Context, from, now time.Time) (r activity.Report, err error) {
	if err := s.countNow(ctx); err != nil {
		return r, err
	}
	err = s.View(ctx, func(tx broker.Tx) (err error) {
		v := tx.(*viewTx)
		if r.Hours, err = v.hours(activity.HourOf(from)); err != nil {
			return err
		}
		if r.Uncounted, err = v.recordsUncounted(); err != nil {
			return err
		}
		r.Lapsed, r.Waiting, err = v.lapsed(from, now)
		return err
	})
	return r, err
}

// countNow counts what was noted, so that a reader sees all records that were committed
// before. A reader does not wait for the count of a whole log, nor for a database that
// cannot be written: it states how many records are not counted yet.
func (s *Store) countNow(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, countNowFor)
	defer cancel()
	if err := s.count(ctx); err != nil && !errors.Is(err, broker.ErrUnavailable) {
		return err
	}
	return nil
}

// countNowFor is how long a reader waits.
const countNowFor = 50 * time.Millisecond

func (v *viewTx) hours(from int64) (activity.Hours, error) {
	hours := activity.Hours{}
	err := each(v.ctx, v.tx, "SELECT hour, body FROM hours WHERE hour >= ?", []any{from}, func(rows *sql.Rows) error {
		var hour int64
		var body sql.RawBytes
		if err := rows.Scan(&hour, &body); err != nil {
			return err
		}
		hours[hour] = &activity.Counts{}
		return json.Unmarshal(body, hours[hour])
	})
	if err != nil {
		return nil, unavailable("reading the counts", err)
	}
	return hours, nil
}

// recordsUncounted returns the number of records that are not counted yet. It does not
// read them: the records of a log have consecutive ids.
func (v *viewTx) recordsUncounted() (n int64, err error) {
	head, _, _, err := scanHead(v.tx.QueryRowContext(v.ctx, selectHead))
	if err != nil {
		return 0, unavailable("reading the head of the log", err)
	}
	var id broker.RecordID
	if err := v.tx.QueryRowContext(v.ctx, "SELECT record FROM counted").Scan(&id); err != nil {
		return 0, unavailable("reading the position of the counts", err)
	}
	if id.Epoch() == head.Epoch {
		return head.Size - id.Index() - 1, nil
	}
	return head.Size, nil // and the rest of an earlier log
}

// lapsed counts the requests that lapsed from from to now, by hour, and those that are
// pending now. A lapsed request stays in the index of pending ones.
func (v *viewTx) lapsed(from, now time.Time) (byHour map[int64]int, waiting int64, err error) {
	byHour = map[int64]int{}
	const query = "SELECT lapses / 3600000, count(*) FROM requests INDEXED BY requests_pending WHERE lapses >= ? AND lapses <= ? GROUP BY 1"
	first := from.Truncate(time.Hour).UnixMilli()
	err = each(v.ctx, v.tx, query, []any{first, now.UnixMilli()}, func(rows *sql.Rows) error {
		var hour int64
		var n int
		err := rows.Scan(&hour, &n)
		byHour[hour] = n
		return err
	})
	if err == nil {
		err = v.tx.QueryRowContext(v.ctx, "SELECT count(*) FROM requests INDEXED BY requests_pending WHERE lapses > ?", now.UnixMilli()).Scan(&waiting)
	}
	if err != nil {
		return nil, 0, unavailable("counting pending requests", err)
	}
	return byHour, waiting, nil
}
