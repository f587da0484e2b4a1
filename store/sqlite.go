package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"slices"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// A sqliteEngine writes to a file that only this process uses.
type sqliteEngine struct {
	path    string
	sync    string       // SQLite's synchronous
	present func() error // returns an error while the files of the database are lost
	writes  map[string]statement
	args    []driver.NamedValue // of the running statement; kept for the next
}

// openWriter opens the connection that writes, and migrates the database.
func openWriter(ctx context.Context, path string, cfg Config, present func() error) (*writer, error) {
	e := &sqliteEngine{path: path, sync: "FULL", present: present}
	if cfg.NoSync {
		e.sync = "OFF"
	}
	w := newWriter(e, URL(path))
	w.reserve = reserve{path: path + ".reserve", size: cfg.Reserve}
	// fdatasync is as durable, in half the time: WAL frames need no timestamps.
	// On systems without it this fails, and SQLite uses fsync.
	_, _ = sqlite.Fdatasync(true)
	if err := w.connect(ctx); err != nil {
		return nil, errors.Join(err, w.close())
	}
	if err := migrate(ctx, w.conn); err != nil {
		return nil, errors.Join(err, w.close())
	}
	if err := w.load(ctx); err != nil {
		return nil, errors.Join(err, w.close())
	}
	if err := w.reserve.hold(); err != nil {
		w.reserve.release(w.now())
	}
	return w, nil
}

func (e *sqliteEngine) connect(ctx context.Context) (db *sql.DB, conn *sql.Conn, err error) {
	e.writes = map[string]statement{}
	db, err = openPool(dsn(e.path, "rw", "journal_mode(WAL)", "synchronous("+e.sync+")", "cache_size(-4096)", "temp_store(MEMORY)", "journal_size_limit(67108864)",
		fmt.Sprintf("wal_autocheckpoint(%d)", checkpointPages)), e.present)
	if err != nil {
		return nil, nil, err
	}
	db.SetMaxOpenConns(1)
	if conn, err = db.Conn(ctx); err != nil {
		return db, nil, err
	}
	var mode string
	if err := conn.QueryRowContext(ctx, "PRAGMA journal_mode").Scan(&mode); err != nil {
		return db, conn, err
	}
	if mode != "wal" {
		return db, conn, fmt.Errorf("the file system does not support SQLite's write-ahead log (journal mode %q)", mode)
	}
	return db, conn, nil
}

func (e *sqliteEngine) begin(ctx context.Context, s *Store) error {
	if s.copied.Swap(false) {
		_, _ = s.w.conn.ExecContext(ctx, copyLog) // see checkpoint.go; a later commit copies the rest
	}
	return s.w.exec(ctx, "BEGIN IMMEDIATE")
}

// fetchSizes are the numbers of ids for which there is a query. They are few, so
// that each query is prepared once.
var fetchSizes = []int{1, 8, 64, 512}

func (e *sqliteEngine) fetch(ctx context.Context, w *writer, wanted *[tableCount][]any, f func(t table, id, body, lease []byte) error) error {
	for t, ids := range wanted {
		for len(ids) > 0 {
			n := fetchSizes[len(fetchSizes)-1]
			if i, _ := slices.BinarySearch(fetchSizes, len(ids)); i < len(fetchSizes) {
				n = fetchSizes[i]
			}
			chunk := slices.Clone(ids[:min(n, len(ids))])
			ids = ids[len(chunk):]
			for len(chunk) < n {
				chunk = append(chunk, nil) // NULL equals no id
			}
			query, err := w.prepared(ctx, table(t).fetchIn(idAmong(n)))
			if err != nil {
				return err
			}
			if err := scanFetched(ctx, query, table(t), chunk, f); err != nil {
				return fmt.Errorf("reading %s: %w", tables[t].name, err)
			}
		}
	}
	return nil
}

// scanFetched calls f for the rows of a query of fetchIn.
func scanFetched(ctx context.Context, query *sql.Stmt, t table, args []any, f func(t table, id, body, lease []byte) error) (err error) {
	rows, err := query.QueryContext(ctx, args...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var id, body, lease []byte
		dest := []any{&id, &body, &lease}
		if !t.fetchesLease() {
			dest = dest[:2]
		}
		if err := rows.Scan(dest...); err != nil {
			return err
		}
		if err := f(t, id, body, lease); err != nil {
			return err
		}
	}
	return rows.Err()
}

// The statements that write call the driver without package database/sql between them:
// a group runs hundreds of them, and database/sql locks, copies and converts for
// each one.
func (e *sqliteEngine) exec(ctx context.Context, w *writer, query string, args []any) (n int64, err error) {
	e.args = e.args[:0]
	for i, arg := range args {
		value, err := driver.DefaultParameterConverter.ConvertValue(arg)
		if err != nil {
			return 0, fmt.Errorf("binding parameter %d: %w", i+1, err)
		}
		e.args = append(e.args, driver.NamedValue{Ordinal: i + 1, Value: value})
	}
	err = w.conn.Raw(func(c any) error {
		s, err := e.statement(ctx, c, query)
		if err != nil {
			return err
		}
		result, err := s.ExecContext(ctx, e.args)
		if err != nil {
			return err
		}
		n, err = result.RowsAffected()
		return err
	})
	return n, err
}

// A statement is a prepared statement of the driver.
type statement interface {
	driver.Stmt
	driver.StmtExecContext
}

var errDriver = errors.New("the SQLite driver has no prepared statements with a context")

// statement returns a statement on the connection c. It prepares each query once.
func (e *sqliteEngine) statement(ctx context.Context, c any, query string) (statement, error) {
	if s := e.writes[query]; s != nil {
		return s, nil
	}
	conn, ok := c.(driver.ConnPrepareContext)
	if !ok {
		return nil, errDriver
	}
	prepared, err := conn.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	s, ok := prepared.(statement)
	if !ok {
		return nil, errors.Join(errDriver, prepared.Close())
	}
	e.writes[query] = s
	return s, nil
}

// closeStatements closes the statements of the connection. SQLite keeps a connection
// open, with its locks, until the last of them is closed.
func (e *sqliteEngine) closeStatements(w *writer) error {
	return w.conn.Raw(func(any) error {
		var errs []error
		for query, s := range e.writes {
			errs = append(errs, s.Close())
			delete(e.writes, query)
		}
		return errors.Join(errs...)
	})
}

func (e *sqliteEngine) flush() {}

func (e *sqliteEngine) finish(context.Context, *group) error { return nil }

func (e *sqliteEngine) commit(ctx context.Context, w *writer) error { return w.exec(ctx, "COMMIT") }

func (e *sqliteEngine) committed(ctx context.Context, w *writer, nonce []byte) (bool, error) {
	w.rollback()
	if err := e.reload(ctx, w); err != nil {
		return false, err
	}
	return string(w.nonce) == string(nonce), nil
}

// reload reads the state of the database, and retries for as long as it takes:
// until it succeeds, the outcome of the last transaction is not known, and no
// Update may return. It returns an error only when the files of the database are
// lost: whatever happened to the transaction, its records are lost with them.
func (e *sqliteEngine) reload(ctx context.Context, w *writer) error {
	err := w.load(ctx)
	for pause := time.Millisecond; err != nil; pause = min(2*pause, time.Second) {
		if lost := e.present(); lost != nil {
			w.stale = true
			return lost
		}
		time.Sleep(pause)
		_ = w.close()
		if err = w.connect(ctx); err == nil {
			err = w.load(ctx)
		}
	}
	w.stale = false
	return nil
}

// Classes of errors of SQLite.

func sqliteCode(err error) int {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return 0
	}
	return e.Code() & 0xff
}

// cantOpen reports whether a file of the database could not be opened or created.
func cantOpen(err error) bool { return sqliteCode(err) == sqlite3.SQLITE_CANTOPEN }

// isFull reports whether the disk is full.
func isFull(err error) bool {
	return sqliteCode(err) == sqlite3.SQLITE_FULL || sqlState(err) == "53100"
}

// isRows reports whether the error is about the rows themselves, which neither
// waiting nor space would cure.
func isRows(err error) bool {
	switch sqliteCode(err) {
	case sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_MISMATCH:
		return true
	}
	switch class := sqlState(err); {
	case class == "":
		return false
	case class == "54000": // program_limit_exceeded
		return true
	default:
		return class[:2] == "22" || class[:2] == "23" // data exception, integrity constraint violation
	}
}
