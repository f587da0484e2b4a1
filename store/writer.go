package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// A writer is the one connection that writes, with the state of the database
// that it keeps in memory between groups. Only the leader of the queue uses it.
type writer struct {
	engine  engine
	url     string // as an operator may see it
	stale   bool   // the state below and the connection are not usable: reload comes first
	db      *sql.DB
	conn    *sql.Conn
	stmts   map[string]*sql.Stmt // that read, on conn
	reserve reserve
	scratch scratch

	// The state after the last commit. A group works on copies.
	head          Head
	nonce         []byte // of the head row
	seq           int64  // number of the last commit, in a database that processes share; see feed.go
	tree          *audit.Tree
	blocks        map[broker.BlockKey][]byte // bodies of all blocks, lifted ones included; nil: not read yet
	blocksVersion int64                      // of blocks; the head row has the version of the table
	kinds         map[leaseKind]int32
	carriedSince  []byte // see carried.go
	used          *used  // nil: not read yet
	revision      []byte // body of the revision in force, which every issuance reads; nil: not read yet
	uncopied      int    // pages written since Run was last woken

	now func() time.Time // the clock of the records

	// fault, if not nil, runs each step of a commit: tests make a step fail, or
	// lose its answer.
	fault func(step string, f func() error) error
}

// newWriter returns a writer without a connection.
func newWriter(e engine, url string) *writer {
	return &writer{engine: e, url: url, now: time.Now}
}

func (w *writer) connect(ctx context.Context) (err error) {
	w.stmts = map[string]*sql.Stmt{}
	w.db, w.conn, err = w.engine.connect(ctx)
	return err
}

func (w *writer) close() error {
	var errs []error
	for _, s := range w.stmts {
		errs = append(errs, s.Close())
	}
	if w.conn != nil {
		errs = append(errs, w.engine.closeStatements(w), w.conn.Close())
	}
	if w.db != nil {
		errs = append(errs, w.db.Close())
	}
	w.stmts, w.conn, w.db = nil, nil, nil
	return errors.Join(errs...)
}

// prepared returns a statement that reads, on the connection. It prepares each query once.
func (w *writer) prepared(ctx context.Context, query string) (*sql.Stmt, error) {
	if s := w.stmts[query]; s != nil {
		return s, nil
	}
	s, err := w.conn.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	w.stmts[query] = s
	return s, nil
}

// load reads the state that the writer keeps in memory. It reads the blocks, which
// may be many, only if their version in the head row says that another process
// changed one.
func (w *writer) load(ctx context.Context) error {
	blocks, err := w.loadHead(ctx)
	if err != nil {
		return fmt.Errorf("reading the head of the log: %w", err)
	}
	w.revision, w.used = nil, nil // the next group that needs them reads them
	if err := w.loadTree(ctx); err != nil {
		return err
	}
	if w.blocks == nil || w.blocksVersion != blocks {
		if err := w.loadBlocks(ctx, blocks); err != nil {
			return fmt.Errorf("reading the blocks: %w", err)
		}
	}
	if err := w.loadKinds(ctx); err != nil {
		return fmt.Errorf("reading the kinds of leases: %w", err)
	}
	if err := w.loadCarried(ctx); err != nil {
		return fmt.Errorf("reading which requests carry leases: %w", err)
	}
	return nil
}

const selectHead = "SELECT epoch, size, root, time, blocks, nonce FROM head"

// loadHead reads the head row, and returns the version of the blocks.
func (w *writer) loadHead(ctx context.Context) (blocks int64, err error) {
	w.head, blocks, w.nonce, err = scanHead(w.conn.QueryRowContext(ctx, selectHead))
	return blocks, err
}

func scanHead(row *sql.Row) (h Head, blocks int64, nonce []byte, err error) {
	var root []byte
	var millis int64
	if err := row.Scan(&h.Epoch, &h.Size, &root, &millis, &blocks, &nonce); err != nil {
		return Head{}, 0, nil, err
	}
	copy(h.Root[:], root)
	if millis != 0 {
		h.Time = time.UnixMilli(millis).UTC()
	}
	return h, blocks, nonce, nil
}

func (w *writer) loadTree(ctx context.Context) error {
	tree, err := audit.LoadTree(w.head.Size, rowHashes(ctx, w.conn, w.head.Epoch))
	if err != nil {
		return err
	}
	if w.head.Epoch > 0 && tree.Root() != w.head.Root {
		return fmt.Errorf("the log is damaged: its hashes lead to the root %s, and its head says %s; run `broker audit verify %s` to find the record", tree.Root(), w.head.Root, w.url)
	}
	w.tree = tree
	return nil
}

func (w *writer) loadBlocks(ctx context.Context, version int64) error {
	blocks := map[broker.BlockKey][]byte{}
	err := each(ctx, w.conn, "SELECT body FROM blocks", nil, func(rows *sql.Rows) error {
		var body []byte
		if err := rows.Scan(&body); err != nil {
			return err
		}
		var b broker.Block
		if err := decodeBody(body, &b); err != nil {
			return err
		}
		blocks[b.Selector] = body
		return nil
	})
	if err == nil {
		w.blocks, w.blocksVersion = blocks, version
	}
	return err
}

func (w *writer) loadKinds(ctx context.Context) error {
	w.kinds = map[leaseKind]int32{}
	return eachKind(ctx, w.conn, func(id int32, k leaseKind) { w.kinds[k] = id })
}

// eachKind calls f for every kind of lease.
func eachKind(ctx context.Context, q queryer, f func(int32, leaseKind)) error {
	return each(ctx, q, "SELECT id, entitlement, issuer FROM kinds", nil, func(rows *sql.Rows) error {
		var k leaseKind
		var id int32
		err := rows.Scan(&id, &k.entitlement, &k.issuer)
		if err == nil {
			f(id, k)
		}
		return err
	})
}

// queryer is implemented by *sql.Conn, *sql.DB and *sql.Tx.
type queryer interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// each calls f for every row of a query.
func each(ctx context.Context, q queryer, query string, args []any, f func(*sql.Rows) error) (err error) {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		if err := f(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// rollbackTimeout bounds the end of a transaction that failed.
const rollbackTimeout = 5 * time.Second

// rollback ends a transaction. It fails if the database has already ended it, which is
// as good.
func (w *writer) rollback() {
	if w.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), rollbackTimeout)
	defer cancel()
	_, _ = w.conn.ExecContext(ctx, "ROLLBACK")
}

// reset makes the writer usable again after a group that stopped halfway.
func (w *writer) reset() {
	w.rollback()
	_ = w.engine.reload(context.Background(), w) // stale records a failure
}

// commit makes the transaction durable. A COMMIT that returns an error may have
// happened: it has if the database has the nonce.
func (w *writer) commit(ctx context.Context, nonce []byte) error {
	err := w.step("commit", func() error { return w.engine.commit(ctx, w) })
	if err == nil {
		return nil
	}
	happened, lost := w.engine.committed(ctx, w, nonce)
	switch {
	case lost != nil:
		return lost
	case happened:
		return nil
	}
	return err
}

// step runs a step of a commit. The names of the steps are in crash_test.go.
func (w *writer) step(name string, f func() error) error {
	if w.fault != nil {
		return w.fault(name, f)
	}
	return f()
}

// exec executes a statement.
func (w *writer) exec(ctx context.Context, query string, args ...any) error {
	_, err := w.engine.exec(ctx, w, query, args)
	return err
}

// execCount executes a statement and returns the number of rows that it changed.
func (w *writer) execCount(ctx context.Context, query string, args ...any) (int64, error) {
	return w.engine.exec(ctx, w, query, args)
}
