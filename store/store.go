package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"sync/atomic"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// Config configures a Store.
type Config struct {
	// URL is "sqlite:/path/to/broker.db".
	URL string

	// Reserve is the number of bytes of disk that are kept for recording
	// revocations when the disk is full. Zero means 32 MiB.
	Reserve int64

	// NoSync is for tests whose subject is not durability: it does not wait for
	// the disk, so that a power cut can damage the database.
	NoSync bool

	// Existing makes Open fail, rather than create a database, if there is none.
	Existing bool

	// Observe, if not nil, is called after every commit. It must not block.
	Observe func(Commit)

	// Changed, if not nil, is called in order after the commits of other processes are in
	// memory, with the keys of the rows that they wrote; nil: any row may have changed. It
	// must not block.
	Changed func(keys []broker.Key)

	// Replica names this process among those that share a database of PostgreSQL. No
	// other process, earlier or later, has the same name.
	Replica string

	Log *slog.Logger // nil: no log
}

// A Commit describes one transaction of a group.
type Commit struct {
	Members int           // Updates that it made durable
	Records int           // records that it appended
	Took    time.Duration // from when the transaction has begun to the answer of COMMIT
}

// Store implements broker.Store. It is safe for concurrent use. It starts no
// goroutine: the caller of Open runs Run in one, and calls Sweep about once a
// minute.
type Store struct {
	cfg       Config
	before    earlierFiles
	lock      *os.File
	database  int    // the descriptor that holds the lock on the database itself; -1: none
	locked    fileID // of that descriptor
	presence  presence
	holdings  *holdings
	standings *standingSet
	recent    recent
	statuses  statuses
	counting  *projection // hours and events
	surveying *projection // the inventory
	tallying  *projection // records by their traits
	readers   *sql.DB
	openPool  func() (*sql.DB, error) // connections for the reading of many rows
	gets      [tableCount]*sql.Stmt   // one row of a table by id, on readers
	queue     queue
	w         *writer // owned by the leader of the queue
	feed      *feed   // nil: no other process writes
	clock     clock
	head      atomic.Pointer[Head]
	degraded  atomic.Bool

	claims *claims // nil: the work of all processes is done here, because no other one shares the database

	unwritable atomic.Pointer[string] // why the last transaction failed, if the reason is not in its rows; nil: it did not

	checkpoint chan struct{} // wakes Run; see checkpoint.go
	copied     atomic.Bool   // Run has copied; the next group copies the rest
}

const (
	defaultReserve = 32 << 20
	maxReaders     = 8
)

// Open opens the database, and creates or migrates it if necessary. It locks the
// database until Close; Open fails in a second process. An Open that fails leaves
// no new files behind.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if cfg.Reserve == 0 {
		cfg.Reserve = defaultReserve
	}
	if cfg.Observe == nil {
		cfg.Observe = func(Commit) {}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Store{cfg: cfg, database: -1, holdings: newHoldings(), standings: new(standingSet), checkpoint: make(chan struct{}, 1)}
	s.counting, s.surveying, s.tallying = newCounting(), newSurveying(), newTallying()
	name, open := Redacted(cfg.URL), s.openShared
	if !isPostgres(cfg.URL) {
		path, err := sqlitePath(cfg.URL)
		if err != nil {
			return nil, err
		}
		name, open = path, func(ctx context.Context) error { return s.open(ctx, path) }
	}
	if err := open(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("opening the store %s: %w", name, err), s.abort())
	}
	return s, nil
}

func (s *Store) open(ctx context.Context, path string) (err error) {
	if err := checkMoved(path); err != nil {
		return err
	}
	if err := s.lockAndLook(path); err != nil {
		return err
	}
	if s.cfg.Existing && s.before.fresh {
		return errors.New("there is no database")
	}
	if s.database, s.locked, err = openDatabase(path); err != nil {
		return err
	}
	if s.w, err = openWriter(ctx, path, s.cfg, s.presence.check); err != nil {
		return err
	}
	if err := s.presence.remember(path, s.locked); err != nil {
		return err
	}
	head := s.w.head
	s.head.Store(&head)
	s.degraded.Store(s.w.reserve.spent)
	s.openPool = func() (*sql.DB, error) {
		return openPool(dsn(path, "rw", "query_only(1)", "cache_size(-2048)"), s.presence.check)
	}
	return s.openReaders(ctx, path)
}

func (s *Store) openReaders(ctx context.Context, path string) (err error) {
	if s.readers, err = openPool(dsn(path, "rw", "query_only(1)", "cache_size(-512)", "schema_version"), s.presence.check); err != nil {
		return err
	}
	s.readers.SetMaxOpenConns(maxReaders)
	s.readers.SetMaxIdleConns(maxReaders)
	if err := s.connectReaders(ctx); err != nil {
		return err
	}
	return s.prepareGets(ctx)
}

// connectReaders opens all connections of the pool. They work even after the files
// of the database are lost, when new ones can no longer be opened.
func (s *Store) connectReaders(ctx context.Context) error {
	var errs []error
	var conns []*sql.Conn
	for range maxReaders {
		conn, err := s.readers.Conn(ctx)
		if err != nil {
			errs = append(errs, err)
			break
		}
		conns = append(conns, conn)
	}
	for _, conn := range conns {
		errs = append(errs, conn.Close()) // returns it to the pool
	}
	return errors.Join(errs...)
}

// driverName is the name under which modernc.org/sqlite registers itself.
const driverName = "sqlite"

// dsn returns the data source name of a database file. The driver runs the
// pragmas on each connection.
func dsn(path, mode string, pragmas ...string) string {
	q := url.Values{"mode": {mode}, "_pragma": append([]string{"busy_timeout(5000)", "foreign_keys(1)", "trusted_schema(0)", "cell_size_check(1)"}, pragmas...)}
	return (&url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: q.Encode()}).String()
}

// Close closes the store. It waits for Updates that have been called; later ones
// fail. A second Close does nothing.
func (s *Store) Close() error { return s.shutDown(func() error { return nil }) }

// shutDown closes the store. Before it releases the locks, it calls closed.
func (s *Store) shutDown(closed func() error) error {
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
	if s.feed != nil {
		errs = append(errs, s.feed.db.Close())
	}
	errs = append(errs, s.closeClaims())
	if s.w != nil {
		errs = append(errs, s.w.close())
	}
	if s.lock != nil {
		errs = append(errs, closed())
	}
	if s.database >= 0 {
		errs = append(errs, closeDatabase(s.database))
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	return errors.Join(errs...)
}

// Ping returns an error if the database cannot be reached, or if its files are not
// the ones that the store opened.
func (s *Store) Ping(ctx context.Context) error {
	if err := s.checkFiles(); err != nil {
		return err
	}
	if s.Shared() {
		return s.pingShared(ctx)
	}
	if err := s.readers.PingContext(ctx); err != nil {
		return unavailable("reaching the store", err)
	}
	return nil
}

// Degraded returns an error while the store cannot record issuances: the disk is
// full, or the last transaction could not be written. /readyz reports it.
func (s *Store) Degraded() error {
	if err := s.rewound(); err != nil {
		return err
	}
	if err := s.clockOff(); err != nil {
		return err
	}
	why := s.unwritable.Load()
	switch {
	case s.degraded.Load():
		return fmt.Errorf("%w: the disk is full: nothing is issued, and revocations are recorded in the reserved space", broker.ErrUnavailable)
	case why != nil:
		return fmt.Errorf("%w: %s: nothing is issued, and revocations are recorded later", broker.ErrUnavailable, *why)
	}
	return nil
}

// A Head is the end of the log.
type Head struct {
	Epoch int64 // the number of the log in this database; the first is 1, and 0 means none
	Size  int64 // number of records
	Root  audit.Digest
	Time  time.Time // of the last record
}

// Head returns the end of the log as of the last commit.
func (s *Store) Head() Head { return *s.head.Load() }

// An unavailableError is an error of the database, which is a broker.ErrUnavailable.
type unavailableError struct {
	doing string
	err   error
}

func (e *unavailableError) Error() string {
	return fmt.Sprintf("%s: %s: %s", e.doing, broker.ErrUnavailable, e.err)
}

func (e *unavailableError) Unwrap() []error { return []error{broker.ErrUnavailable, e.err} }

// unavailable wraps an error of the database as broker.ErrUnavailable.
func unavailable(doing string, err error) error {
	return &unavailableError{doing, err}
}
