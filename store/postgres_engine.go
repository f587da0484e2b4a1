package store

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"accessbroker.internal/broker"
)

// A postgresEngine writes to a database that several processes share. A group is one
// transaction with three round trips:
//
//  1. BEGIN, and the head row, which it locks: no other group of any process runs until the
//     transaction ends, and the others gather their next groups meanwhile. If another
//     process has committed since, the feed (feed.go) brings memory up to date, in a fourth.
//  2. One query per table for the rows that the members named in reads.
//  3. All statements that write, and COMMIT (pipeline.go).
//
// The row of this process in the table writers has the nonce of its last commit. So a COMMIT
// whose answer was lost is found or missing there, however much others have committed since.
type postgresEngine struct {
	cfg      postgresConfig
	process  string      // this process, in writers
	troubled func(error) // called while an outcome cannot be found out
	types    columnTypes
	pipe     *pipeline // of the group that is being flushed; nil: none
	refused  bool      // the server refused the last commit, so nothing of it happened
}

// writerTables is the table of the processes that write. Only PostgreSQL has it.
const writerTables = `
CREATE TABLE writers (process TEXT NOT NULL PRIMARY KEY, nonce BLOB NOT NULL, at INTEGER NOT NULL) WITHOUT ROWID;
`

const (
	// beginTimeout bounds the wait for the lock on the head, and commitTimeout that for a
	// commit. They are longer than the server's own limits.
	beginTimeout  = 20 * time.Second
	commitTimeout = 40 * time.Second
)

func (e *postgresEngine) connect(ctx context.Context) (*sql.DB, *sql.Conn, error) {
	db := openPostgres(e.cfg)
	db.SetMaxOpenConns(1)
	conn, err := db.Conn(ctx)
	return db, conn, err
}

// raw calls f with the driver's connection.
func (e *postgresEngine) raw(w *writer, f func(*postgresConn) error) error {
	return w.conn.Raw(func(c any) error { return f(c.(*postgresConn)) })
}

// usable opens a new connection unless there is one that works, as far as is known.
func (e *postgresEngine) usable(ctx context.Context, w *writer) error {
	if w.conn != nil {
		valid := false
		if err := e.raw(w, func(c *postgresConn) error { valid = c.IsValid(); return nil }); err == nil && valid {
			return nil
		}
	}
	_ = w.close() // the connection is lost
	return w.connect(ctx)
}

// A lockedHead is the head row, which the transaction has locked.
type lockedHead struct {
	head   Head
	blocks int64
	nonce  []byte
	seq    int64
	at     time.Time // the database's clock
}

const lockHead = `SELECT epoch, size, root, time, blocks, nonce, seq,
	CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT) FROM head FOR UPDATE`

// lock begins a transaction and locks the head row.
func (e *postgresEngine) lock(ctx context.Context, w *writer) (l lockedHead, err error) {
	err = e.raw(w, func(c *postgresConn) error {
		c.begin, c.inTx = c.start(beginWriting), true // sent with the query
		return nil
	})
	if err != nil {
		return l, err
	}
	var root []byte
	var millis, micros int64
	err = w.conn.QueryRowContext(ctx, lockHead).Scan(&l.head.Epoch, &l.head.Size, &root, &millis, &l.blocks, &l.nonce, &l.seq, &micros)
	if err != nil {
		return l, fmt.Errorf("locking the head of the log: %w", err)
	}
	copy(l.head.Root[:], root)
	if millis != 0 {
		l.head.Time = time.UnixMilli(millis).UTC()
	}
	l.at = time.UnixMicro(micros)
	return l, nil
}

func (e *postgresEngine) begin(ctx context.Context, s *Store) error {
	if err := s.rewound(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, beginTimeout)
	defer cancel()
	w := s.w
	e.refused, e.pipe = false, nil // a group may have failed before its statements were sent
	if err := e.usable(ctx, w); err != nil {
		return err
	}
	sent := time.Now()
	l, err := e.lock(ctx, w)
	if err != nil && sqlSeverity(err) != "ERROR" && ctx.Err() == nil {
		// The connection was lost while it was idle. Nothing has happened yet.
		_ = w.close()
		if err := w.connect(ctx); err != nil {
			return err
		}
		sent = time.Now()
		l, err = e.lock(ctx, w)
	}
	if err != nil {
		return err
	}
	s.clock.measured(l.at, sent, time.Now())
	switch {
	case w.tree == nil:
		err = e.start(ctx, s, &l)
	case l.seq != w.seq || !bytes.Equal(l.nonce, w.nonce):
		err = e.catchUp(ctx, s, &l)
	}
	if err == nil {
		s.feed.caughtUp(sent)
	}
	return err
}

// start reads what the writer keeps in memory, for its first group.
func (e *postgresEngine) start(ctx context.Context, s *Store, l *lockedHead) error {
	if err := s.w.load(ctx); err != nil {
		return err
	}
	types, err := readTypes(ctx, s.w.conn)
	if err != nil {
		return fmt.Errorf("reading the types of the columns: %w", err)
	}
	e.types, s.w.seq = types, l.seq
	f := s.feed
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seq, f.nonce, f.head = l.seq, l.nonce, l.head
	return nil
}

// catchUp makes memory follow the commits of others.
func (e *postgresEngine) catchUp(ctx context.Context, s *Store, l *lockedHead) error {
	w := s.w
	known := w.head
	p, err := readFeedPage(ctx, w.conn, w.seq)
	if err != nil {
		return fmt.Errorf("reading the commits of other brokers: %w", err)
	}
	if l.seq < w.seq || l.seq == w.seq && !bytes.Equal(l.nonce, w.nonce) || p.forks(w.seq, w.nonce) {
		return s.rewind()
	}
	if !p.leads(w.seq) {
		if err := s.skipTo(ctx, w.conn, p); err != nil {
			return err
		}
		if err := continues(ctx, w.conn, known, l.head); errors.Is(err, ErrRewound) {
			return s.rewind()
		} else if err != nil {
			return err
		}
		if err := w.load(ctx); err != nil {
			return err
		}
		w.seq = l.seq
		return nil
	}
	for _, n := range p.notes {
		if err := w.adopt(n); err != nil {
			return err
		}
		s.apply(n)
	}
	return nil
}

func (e *postgresEngine) fetch(ctx context.Context, w *writer, wanted *[tableCount][]any, f func(t table, id, body, lease []byte) error) error {
	var list []table
	for t := range wanted {
		if len(wanted[t]) > 0 {
			list = append(list, table(t))
		}
	}
	ctx, cancel := context.WithTimeout(ctx, e.cfg.limits.answer())
	defer cancel()
	return e.raw(w, func(c *postgresConn) error {
		b := &pgconn.Batch{}
		for _, t := range list {
			ids := values{[][]byte{bytesArray(wanted[t])}, []uint32{pgtype.ByteaArrayOID}, binaryResults}
			if err := c.queue(ctx, b, translate(t.fetchIn("id = ANY(?1)")), ids); err != nil {
				return err
			}
		}
		results := c.conn.PgConn().ExecBatch(ctx, b)
		err := readFetched(results, list, f)
		if closed := results.Close(); err == nil {
			err = closed
		}
		return c.failed(ctx, err)
	})
}

// readFetched calls f for the rows of the tables' queries.
func readFetched(results *pgconn.MultiResultReader, list []table, f func(t table, id, body, lease []byte) error) error {
	for _, t := range list {
		if !results.NextResult() {
			return fmt.Errorf("reading %s: %w", tables[t].name, errors.Join(results.Close(), errors.New("no result")))
		}
		rows := results.ResultReader()
		for rows.NextRow() {
			v := rows.Values()
			var lease []byte
			if t.fetchesLease() {
				lease = bytes.Clone(v[2])
			}
			if err := f(t, bytes.Clone(v[0]), bytes.Clone(v[1]), lease); err != nil {
				return err
			}
		}
		if _, err := rows.Close(); err != nil {
			return fmt.Errorf("reading %s: %w", tables[t].name, err)
		}
	}
	return nil
}

func (e *postgresEngine) exec(ctx context.Context, w *writer, query string, args []any) (int64, error) {
	if e.pipe != nil {
		return 0, e.pipe.add(query, args)
	}
	ctx, cancel := context.WithTimeout(ctx, e.cfg.limits.answer())
	defer cancel()
	result, err := w.conn.ExecContext(ctx, query, args...)
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

func (e *postgresEngine) flush() { e.pipe = &pipeline{} }

const upsertWriter = `INSERT INTO writers (process, nonce, at) VALUES (?, ?, CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT))
	ON CONFLICT (process) DO UPDATE SET nonce = excluded.nonce, at = excluded.at`

func (e *postgresEngine) commit(ctx context.Context, w *writer) error {
	ctx, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	p := e.pipe
	e.pipe = nil
	err := e.raw(w, func(c *postgresConn) error {
		c.inTx = false
		return c.failed(ctx, p.send(ctx, c, e.types))
	})
	e.refused = err != nil && refused(err)
	return err
}

// refused reports whether an error of the server means that the transaction did not commit.
// A server that is shut down during COMMIT may have committed.
func refused(err error) bool {
	return sqlSeverity(err) == "ERROR" && sqlState(err) != "40003" // statement_completion_unknown
}

// sqlSeverity returns how the server classes an error; empty: it is not one of the server's.
// After any but an ERROR, the connection is of no use.
func sqlSeverity(err error) string {
	if e := (*pgconn.PgError)(nil); errors.As(err, &e) {
		return e.SeverityUnlocalized
	}
	return ""
}

func (e *postgresEngine) committed(ctx context.Context, w *writer, nonce []byte) (bool, error) {
	e.pipe = nil
	if e.refused {
		w.rollback()
		return false, nil
	}
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		_ = w.close() // the server ends the transaction, if it still runs
		happened, err := e.find(ctx, w, nonce)
		if err == nil {
			return happened, nil
		}
		e.troubled(err)
		time.Sleep(pause)
	}
}

// find reports whether a commit of this process is in the database. The lock on the head
// waits for the end of its transaction.
func (e *postgresEngine) find(ctx context.Context, w *writer, nonce []byte) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, beginTimeout)
	defer cancel()
	if err := w.connect(ctx); err != nil {
		return false, err
	}
	defer w.rollback()
	if _, err := e.lock(ctx, w); err != nil {
		return false, err
	}
	var last []byte
	err := w.conn.QueryRowContext(ctx, "SELECT nonce FROM writers WHERE process = ?", e.process).Scan(&last)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return bytes.Equal(last, nonce), err
}

// reload gives the connection up. The next group opens another one, and the feed brings
// memory up to date.
func (e *postgresEngine) reload(_ context.Context, w *writer) error {
	e.pipe = nil
	_ = w.close()
	return nil
}

func (e *postgresEngine) closeStatements(*writer) error { return nil }

// finish writes what other replicas must know of a group, and the nonce by which this
// process finds it again.
func (e *postgresEngine) finish(ctx context.Context, g *group) error {
	changes, err := g.note().encode()
	if err != nil {
		return err
	}
	if err := g.w.exec(ctx, "INSERT INTO commits (seq, nonce, at, changes) VALUES (?, ?, CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT), ?)", g.seq, g.nonce, changes); err != nil {
		return err
	}
	if g.announces() {
		if err := g.w.exec(ctx, "SELECT pg_notify(?, '')", notifications); err != nil {
			return err
		}
	}
	return g.w.exec(ctx, upsertWriter, e.process, g.nonce)
}

var errClock = fmt.Errorf("the clock of this machine differs from the database's by %s or more: nothing is issued; synchronize it", maxClockOffset)

// clockOff returns an error while the clock is too far from the database's.
func (s *Store) clockOff() error {
	if off := s.ClockOffset(); off.Abs() >= maxClockOffset {
		return fmt.Errorf("%w: %w (%s off)", broker.ErrUnavailable, errClock, off.Round(time.Millisecond))
	}
	return nil
}
