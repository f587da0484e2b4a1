package store

import (
	"cmp"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"
)

// The code that reads uses database/sql for both databases. This file is its driver for
// PostgreSQL: pgx sends and receives, and the driver translates queries (postgres_dialect.go),
// converts values (postgres_values.go), and saves round trips.
//
// A pooler such as PgBouncer gives each transaction another session of the server. So a
// connection through one keeps nothing in the session: each transaction sets its timeouts
// itself, a query without a transaction gets one, and no statement has a name. On a direct
// connection the session has the timeouts, and statements are prepared once.
//
// A transaction begins with its first query, in the same round trip.

// A postgresConfig says how to connect.
type postgresConfig struct {
	// settings returns where to connect to. It is called for each connection, so that a
	// new password is read.
	settings func() (*pgx.ConnConfig, error)
	readOnly bool // transactions read one snapshot and write nothing
	limits   postgresLimits
}

// postgresLimits are limits of the server on one connection. Zero means the usual ones.
type postgresLimits struct {
	statement time.Duration // of one statement
	lock      time.Duration // waiting for a lock
	idle      time.Duration // of a transaction that sends nothing
}

// The usual limits.
const (
	statementLasts = 30 * time.Second
	lockWaits      = 10 * time.Second
	idleLasts      = 30 * time.Second
)

// settings are the limits as statements, each of which begins with set.
func (l postgresLimits) settings(set string) []string {
	of := func(name string, limit, usual time.Duration) string {
		if limit == 0 {
			limit = usual
		}
		return fmt.Sprintf("%s %s = %d", set, name, limit.Milliseconds())
	}
	return []string{
		of("statement_timeout", l.statement, statementLasts),
		of("lock_timeout", l.lock, lockWaits),
		of("idle_in_transaction_session_timeout", l.idle, idleLasts),
	}
}

// answer is how long a call waits for the server's answer: longer than the server may work.
func (l postgresLimits) answer() time.Duration {
	if l.statement == 0 {
		l.statement = statementLasts
	}
	return l.statement + 5*time.Second
}

const (
	connectWaits = 5 * time.Second // for a new connection, unless the URL has a limit, and for the answer of one that was idle
	cancelWaits  = 5 * time.Second // after a cancel request, until the connection is given up
	idleUnasked  = time.Second     // a connection that was idle for longer is asked before it is used
)

// openPostgres returns a pool of connections. It does not connect.
func openPostgres(cfg postgresConfig) *sql.DB {
	return sql.OpenDB(postgresConnector{&cfg})
}

// A postgresConnector opens connections.
type postgresConnector struct{ cfg *postgresConfig }

// Driver implements driver.Connector.
func (c postgresConnector) Driver() driver.Driver { return postgresDriver{} }

// Connect implements driver.Connector.
func (c postgresConnector) Connect(ctx context.Context) (driver.Conn, error) {
	settings, err := c.cfg.settings()
	if err != nil {
		return nil, err
	}
	settings.DefaultQueryExecMode = pgx.QueryExecModeExec
	settings.StatementCacheCapacity, settings.DescriptionCacheCapacity = 0, 0
	settings.RuntimeParams["client_encoding"] = "UTF8"
	settings.BuildContextWatcherHandler = func(c *pgconn.PgConn) ctxwatch.Handler {
		return &pgconn.CancelRequestContextWatcherHandler{Conn: c, DeadlineDelay: cancelWaits}
	}
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(settings.ConnectTimeout, connectWaits))
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, settings)
	if err != nil {
		return nil, err
	}
	p := &postgresConn{conn: conn, cfg: c.cfg, prepared: map[string]*pgconn.StatementDescription{}, used: time.Now()}
	if err := p.look(ctx); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// postgresDriver opens nothing by itself: openPostgres does.
type postgresDriver struct{}

// Open implements driver.Driver.
func (postgresDriver) Open(string) (driver.Conn, error) {
	return nil, errors.New("connections to PostgreSQL come from openPostgres")
}

// A postgresConn is one connection. database/sql never calls it concurrently.
type postgresConn struct {
	conn     *pgx.Conn
	cfg      *postgresConfig
	direct   bool // to the server; otherwise through a pooler
	prepared map[string]*pgconn.StatementDescription
	begin    []string // statements that begin the transaction, and wait for its first query
	inTx     bool     // a transaction was begun, perhaps only here
	used     time.Time
	again    bool // it has been used before
	doubtful bool // a cancel request may still be on its way
}

// Conn returns pgx's connection, for a caller of sql.Conn.Raw.
func (c *postgresConn) Conn() *pgx.Conn { return c.conn }

// Direct reports whether the connection leads to the server itself.
func (c *postgresConn) Direct() bool { return c.direct }

// look finds out whether the connection is direct: a pooler has invented the process ID that
// it stated at the start. The session of a direct connection gets its limits.
func (c *postgresConn) look(ctx context.Context) error {
	results, err := c.conn.PgConn().Exec(ctx, "SELECT pg_backend_pid()").ReadAll()
	if err != nil {
		return err
	}
	if len(results) != 1 || len(results[0].Rows) != 1 {
		return errors.New("the server did not state its process ID")
	}
	if string(results[0].Rows[0][0]) != fmt.Sprint(c.conn.PgConn().PID()) {
		return nil
	}
	c.direct = true
	set := c.cfg.limits.settings("SET")
	if c.cfg.readOnly { // otherwise the server's default counts, so that an administrator can stop all writing
		set = append(set, "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
	}
	return c.conn.PgConn().Exec(ctx, strings.Join(set, "; ")).Close()
}

// Close implements driver.Conn.
func (c *postgresConn) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), connectWaits)
	defer cancel()
	return c.conn.Close(ctx)
}

// Begin implements driver.Conn.
func (c *postgresConn) Begin() (driver.Tx, error) {
	return c.BeginTx(context.Background(), driver.TxOptions{})
}

// BeginTx implements driver.ConnBeginTx. The first query begins the transaction.
func (c *postgresConn) BeginTx(_ context.Context, opts driver.TxOptions) (driver.Tx, error) {
	begin := beginWriting
	switch {
	case c.cfg.readOnly || opts.ReadOnly:
		begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
	case sql.IsolationLevel(opts.Isolation) == sql.LevelRepeatableRead:
		begin = "BEGIN ISOLATION LEVEL REPEATABLE READ"
	case sql.IsolationLevel(opts.Isolation) != sql.LevelDefault:
		return nil, fmt.Errorf("a transaction with the isolation level %v is not supported", sql.IsolationLevel(opts.Isolation))
	}
	c.begin, c.inTx = c.start(begin), true
	return postgresTx{c}, nil
}

// beginWriting begins a transaction that writes. It states the isolation, which may have
// another default in the database or for the role: a group waits for the lock on the head, and
// then has to see what the others committed.
const beginWriting = "BEGIN ISOLATION LEVEL READ COMMITTED"

// start returns the statements that begin a transaction.
func (c *postgresConn) start(begin string) []string {
	if c.direct {
		return []string{begin}
	}
	return append([]string{begin}, c.cfg.limits.settings("SET LOCAL")...)
}

// A postgresTx is a transaction.
type postgresTx struct{ c *postgresConn }

// Commit implements driver.Tx.
func (tx postgresTx) Commit() error { return tx.end("COMMIT") }

// Rollback implements driver.Tx.
func (tx postgresTx) Rollback() error { return tx.end("ROLLBACK") }

func (tx postgresTx) end(statement string) error {
	waiting := tx.c.begin != nil
	tx.c.begin, tx.c.inTx = nil, false
	if waiting {
		return nil // it never began
	}
	ctx, cancel := context.WithTimeout(context.Background(), tx.c.cfg.limits.answer())
	defer cancel()
	return tx.c.run(ctx, statement)
}

// run runs statements without arguments.
func (c *postgresConn) run(ctx context.Context, statements string) error {
	return c.conn.PgConn().Exec(ctx, statements).Close()
}

// Ping implements driver.Pinger.
func (c *postgresConn) Ping(ctx context.Context) error { return c.ask(ctx) }

// ask waits for any answer of the server.
func (c *postgresConn) ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, connectWaits)
	defer cancel()
	err := c.conn.PgConn().Ping(ctx)
	if err != nil && sqlState(err) == queryCanceled && c.doubtful {
		err = c.conn.PgConn().Ping(ctx) // the cancel request arrived
	}
	if err == nil {
		c.doubtful = false
	}
	return err
}

// queryCanceled is PostgreSQL's code for a query that a cancel request or a limit ended.
const queryCanceled = "57014"

// ResetSession implements driver.SessionResetter. It is called before a connection is used
// again.
func (c *postgresConn) ResetSession(ctx context.Context) error {
	if !c.IsValid() {
		return driver.ErrBadConn
	}
	if c.doubtful || time.Since(c.used) > idleUnasked {
		if err := c.ask(ctx); err != nil {
			return driver.ErrBadConn
		}
	}
	c.used, c.again = time.Now(), true
	return nil
}

// IsValid implements driver.Validator.
func (c *postgresConn) IsValid() bool {
	return !c.conn.IsClosed() && c.conn.PgConn().TxStatus() == 'I'
}

// PrepareContext implements driver.ConnPrepareContext. It sends nothing: what is prepared
// where is decided when the query runs.
func (c *postgresConn) PrepareContext(_ context.Context, query string) (driver.Stmt, error) {
	return postgresStatement{c, query}, nil
}

// Prepare implements driver.Conn.
func (c *postgresConn) Prepare(query string) (driver.Stmt, error) {
	return c.PrepareContext(context.Background(), query)
}

// A postgresStatement is a query of a connection.
type postgresStatement struct {
	c     *postgresConn
	query string
}

// Close implements driver.Stmt.
func (s postgresStatement) Close() error { return nil }

// NumInput implements driver.Stmt: the server counts the arguments.
func (s postgresStatement) NumInput() int { return -1 }

// Exec implements driver.Stmt.
func (s postgresStatement) Exec([]driver.Value) (driver.Result, error) { return nil, errNoContext }

// Query implements driver.Stmt.
func (s postgresStatement) Query([]driver.Value) (driver.Rows, error) { return nil, errNoContext }

var errNoContext = errors.New("a statement of PostgreSQL needs a context")

// ExecContext implements driver.StmtExecContext.
func (s postgresStatement) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	return s.c.ExecContext(ctx, s.query, args)
}

// QueryContext implements driver.StmtQueryContext.
func (s postgresStatement) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	return s.c.QueryContext(ctx, s.query, args)
}
