// Package store keeps the broker's rows and its log. One type, Store,
// implements broker.Store; today it is SQLite.
//
// # One transaction for many
//
// Concurrent Updates join one database transaction (queue.go, group.go): the
// cost of making it durable is shared, and each returns when it is. Records are
// given their time, index and hashes there, under the one writer.
//
// # What is where
//
// Rows are a body (row_encoding.go, field_encoding.go) under an id, with few columns by which
// they are found (rows.go). A record stands in a row with the tree hashes that
// it completes: node n of a level is in record ((n+1)<<level)-1. The head row
// says how long the log is; its nonce tells whether a commit whose answer was
// lost took place.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// Config says where the store is.
type Config struct {
	// URL is "sqlite:/path/to/broker.db".
	URL string

	// Reserve is how many bytes of disk are held back, so that revocations can
	// be recorded when the disk is full. Zero means 32 MiB.
	Reserve int64

	// Observe is told of every commit; nil: nobody is. It must not block.
	Observe func(Commit)
}

// A Commit is one transaction of a group.
type Commit struct {
	Members int           // Updates that it made durable
	Records int           // records that it appended
	Took    time.Duration // from the first statement to the answer of the disk
}

// Store implements broker.Store. It is safe for concurrent use. It starts
// nothing in the background: whoever opens it starts Run, and calls Sweep now
// and then.
type Store struct {
	cfg      Config
	lock     *os.File
	readers  *sql.DB
	gets     [tableCount]*sql.Stmt // one row of a table by id, on readers
	queue    queue
	w        *writer // the leader's; see queue
	head     atomic.Pointer[Head]
	degraded atomic.Bool

	unwritable atomic.Bool // the last transaction could not be written, whatever was in it

	checkpoint chan struct{} // tells Run that there is something to do
	copied     atomic.Bool   // Run did it: the next group copies what came meanwhile
}

const (
	defaultReserve = 32 << 20
	maxReaders     = 8
)

// Open opens the database, and makes or migrates it if need be. It holds a lock
// on it until Close: a second process that opens it is refused.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	path, err := sqlitePath(cfg.URL)
	if err != nil {
		return nil, err
	}
	if cfg.Reserve == 0 {
		cfg.Reserve = defaultReserve
	}
	if cfg.Observe == nil {
		cfg.Observe = func(Commit) {}
	}
	s := &Store{cfg: cfg, checkpoint: make(chan struct{}, 1)}
	if err := s.open(ctx, path); err != nil {
		return nil, errors.Join(fmt.Errorf("opening the store %s: %w", path, err), s.Close())
	}
	return s, nil
}

// sqlitePath gives the absolute path of a sqlite: URL.
func sqlitePath(u string) (string, error) {
	path, ok := strings.CutPrefix(u, "sqlite:")
	if !ok || path == "" || strings.HasPrefix(path, "//") {
		return "", fmt.Errorf("the store %q is not of the form sqlite:/path/to/broker.db", u)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("finding the store %q: %w", u, err)
	}
	// One database has one name, and so one lock, whatever links lead to it.
	if real, err := filepath.EvalSymlinks(abs); err == nil {
		return real, nil
	}
	return abs, nil
}

func (s *Store) open(ctx context.Context, path string) (err error) {
	if s.lock, err = lockFile(path + ".lock"); err != nil {
		return err
	}
	// Made here, so that it never has another mode: SQLite gives its other
	// files the mode of this one.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if s.w, err = openWriter(ctx, path, s.cfg.Reserve); err != nil {
		return err
	}
	head := s.w.head
	s.head.Store(&head)
	s.degraded.Store(s.w.reserve.spent)
	return s.openReaders(ctx, path)
}

func (s *Store) openReaders(ctx context.Context, path string) (err error) {
	if s.readers, err = sql.Open(driverName, dsn(path, "rw", "query_only(1)", "cache_size(-2048)")); err != nil {
		return err
	}
	s.readers.SetMaxOpenConns(maxReaders)
	s.readers.SetMaxIdleConns(maxReaders)
	for t := range s.gets {
		if s.gets[t], err = s.readers.PrepareContext(ctx, "SELECT body FROM "+tables[t].name+" WHERE id = ?"); err != nil {
			return err
		}
	}
	return nil
}

// driverName is what the driver registered itself as.
const driverName = "sqlite"

// dsn is how the driver wants to be told of a database and of what is to be
// run on each connection.
func dsn(path, mode string, pragmas ...string) string {
	q := url.Values{"mode": {mode}, "_pragma": append([]string{"busy_timeout(5000)", "foreign_keys(1)", "trusted_schema(0)", "cell_size_check(1)"}, pragmas...)}
	return (&url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: q.Encode()}).String()
}

// Close ends the store. What comes from then on is refused; what came before
// is waited for. Closing again does nothing.
func (s *Store) Close() error {
	if !s.queue.close() {
		return nil
	}
	var errs []error
	for _, get := range s.gets {
		if get != nil {
			errs = append(errs, get.Close())
		}
	}
	if s.readers != nil {
		errs = append(errs, s.readers.Close())
	}
	if s.w != nil {
		errs = append(errs, s.w.close())
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	return errors.Join(errs...)
}

// Ping says whether the store can be read.
func (s *Store) Ping(ctx context.Context) error {
	if err := s.readers.PingContext(ctx); err != nil {
		return unavailable("reaching the store", err)
	}
	return nil
}

// Degraded says why nothing but endings can be recorded at present; nil: all
// is well. /readyz is not ready then.
func (s *Store) Degraded() error {
	switch {
	case s.degraded.Load():
		return fmt.Errorf("%w: the disk is full: nothing is issued, and revocations are recorded in the reserve", broker.ErrUnavailable)
	case s.unwritable.Load():
		return fmt.Errorf("%w: the database can't be written: nothing is issued, and revocations are recorded later", broker.ErrUnavailable)
	}
	return nil
}

// A Head is where the log ends.
type Head struct {
	Epoch int64 // which of the logs in this database
	Size  int64 // number of records
	Root  audit.Digest
	Time  time.Time // of the last record
}

// Head gives the end of the log, as of the last Update that returned.
func (s *Store) Head() Head { return *s.head.Load() }

// unavailable wraps an error of the database as broker.ErrUnavailable.
func unavailable(doing string, err error) error {
	return fmt.Errorf("%s: %w: %w", doing, broker.ErrUnavailable, err)
}
