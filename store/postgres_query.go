package store

import (
	"context"
	"database/sql/driver"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// ExecContext implements driver.ExecerContext. A text without arguments may be several
// statements.
func (c *postgresConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if len(args) == 0 {
		if err := c.beginNow(ctx); err != nil {
			return nil, c.failed(ctx, err)
		}
		results, err := c.conn.PgConn().Exec(ctx, translate(query)).ReadAll()
		var changed int64
		for _, r := range results {
			changed += r.CommandTag.RowsAffected()
		}
		return driver.RowsAffected(changed), c.failed(ctx, err)
	}
	rows, err := c.query(ctx, query, args)
	if err != nil {
		return nil, err
	}
	for rows.reader.NextRow() { //revive:disable-line:empty-block the rows are not wanted
	}
	err = rows.Close()
	return driver.RowsAffected(rows.tag.RowsAffected()), err
}

// beginNow begins a transaction that waits for its first query.
func (c *postgresConn) beginNow(ctx context.Context) error {
	for _, s := range c.begin {
		if err := c.run(ctx, s); err != nil {
			return err
		}
	}
	c.begin = nil
	return nil
}

// QueryContext implements driver.QueryerContext.
func (c *postgresConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	rows, err := c.query(ctx, query, args)
	if err != nil {
		return nil, err // not a typed nil
	}
	return rows, nil
}

// query sends a query and reads until its first row.
func (c *postgresConn) query(ctx context.Context, query string, args []driver.NamedValue) (*postgresRows, error) {
	cancel := func() {}
	if _, limited := ctx.Deadline(); !limited {
		ctx, cancel = context.WithTimeout(ctx, c.cfg.limits.answer())
	}
	rows, err := c.send(ctx, translate(query), encodeValues(args))
	if err != nil {
		err = c.failed(ctx, err)
		cancel()
		return nil, err
	}
	rows.cancel = cancel
	return rows, nil
}

// send sends a query with the statements that begin its transaction, and those that end it if
// it has one of its own.
func (c *postgresConn) send(ctx context.Context, text string, v values) (*postgresRows, error) {
	rows := &postgresRows{c: c, ctx: ctx}
	name, err := c.prepare(ctx, text, v.types)
	if err != nil {
		return nil, err
	}
	before, after := c.begin, ""
	if !c.inTx && !c.direct {
		before, after = c.start(beginWriting), "COMMIT"
		if c.cfg.readOnly {
			before[0] = "BEGIN READ ONLY"
		}
	}
	if len(before) == 0 {
		if name != "" {
			rows.reader = c.conn.PgConn().ExecPrepared(ctx, name, v.bytes, v.formats, binaryResults)
		} else {
			rows.reader = c.conn.PgConn().ExecParams(ctx, text, v.bytes, v.types, v.formats, binaryResults)
		}
		return rows, rows.first()
	}
	b := &pgconn.Batch{}
	for _, s := range before {
		b.ExecParams(s, nil, nil, nil, nil)
	}
	if name != "" {
		b.ExecPrepared(name, v.bytes, v.formats, binaryResults)
	} else {
		b.ExecParams(text, v.bytes, v.types, v.formats, binaryResults)
	}
	if after != "" {
		b.ExecParams(after, nil, nil, nil, nil)
	}
	rows.all = c.conn.PgConn().ExecBatch(ctx, b)
	c.begin = nil
	for range before {
		if !rows.all.NextResult() {
			return nil, rows.discard(nil)
		}
		if _, err := rows.all.ResultReader().Close(); err != nil {
			return nil, rows.discard(err)
		}
	}
	if !rows.all.NextResult() {
		return nil, rows.discard(nil)
	}
	rows.reader = rows.all.ResultReader()
	return rows, rows.first()
}

// maxPrepared bounds the statements that a connection has prepared. The texts that are used
// most are used first.
const maxPrepared = 256

// prepare returns the name of a prepared statement; empty: the query is sent as it is.
func (c *postgresConn) prepare(ctx context.Context, text string, types []uint32) (name string, err error) {
	// A prepared statement gets one plan for all arguments, which takes a limit of 500 rows for a
	// tenth of the table, and reads all of it.
	if !c.direct || strings.Contains(text, "LIMIT $") {
		return "", nil
	}
	if known := c.prepared[text]; known != nil {
		if !fits(types, known.ParamOIDs) {
			return "", nil
		}
		return known.Name, nil
	}
	if len(c.prepared) >= maxPrepared || c.conn.PgConn().TxStatus() == 'E' {
		return "", nil
	}
	name = fmt.Sprintf("s%d", len(c.prepared)+1)
	description, err := c.conn.PgConn().Prepare(ctx, name, text, types)
	if err != nil {
		return "", err
	}
	c.prepared[text] = description
	return name, nil
}

// fits reports whether arguments of these types are those of a statement. NULL fits any.
func fits(types, prepared []uint32) bool {
	return slices.EqualFunc(types, prepared, func(t, p uint32) bool { return t == p || t == 0 })
}

// failed notes what an error says about the connection, and returns the error for
// database/sql.
func (c *postgresConn) failed(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		c.doubtful = true
	}
	switch sqlState(err) {
	case "0A000", "26000": // the result of a prepared statement changed, or it is gone
		c.direct, c.prepared = false, nil
	}
	if c.cfg.readOnly && !c.inTx && c.again && ctx.Err() == nil && c.conn.IsClosed() {
		return driver.ErrBadConn // the connection was lost while it was idle: database/sql takes another
	}
	return err
}

// postgresRows are the rows of a query. They are read as they arrive.
type postgresRows struct {
	c       *postgresConn
	ctx     context.Context
	cancel  context.CancelFunc
	all     *pgconn.MultiResultReader // of the statements that were sent together; nil: there is one
	reader  *pgconn.ResultReader
	fields  []pgconn.FieldDescription
	waiting bool // the first row was read, and is not taken yet
	tag     pgconn.CommandTag
	closed  bool
}

// first reads the first row, so that an error of the query itself is that of the call.
func (r *postgresRows) first() error {
	r.waiting = r.reader.NextRow()
	r.fields = r.reader.FieldDescriptions()
	if r.waiting {
		return nil
	}
	tag, err := r.reader.Close()
	r.tag = tag
	if err != nil {
		return r.discard(err)
	}
	return nil
}

// discard ends the rows after an error, which it returns.
func (r *postgresRows) discard(err error) error {
	if r.all != nil {
		if end := r.all.Close(); err == nil {
			err = end
		}
	}
	r.closed = true
	if err == nil {
		err = fmt.Errorf("the server answered with fewer results than statements")
	}
	r.endOwn()
	return err
}

// endOwn ends the transaction of a query that has one of its own and failed.
func (r *postgresRows) endOwn() {
	if c := r.c; !c.inTx && !c.conn.IsClosed() && c.conn.PgConn().TxStatus() != 'I' {
		ctx, cancel := context.WithTimeout(context.Background(), connectWaits)
		defer cancel()
		_ = c.run(ctx, "ROLLBACK") // if this fails, the connection is not used again
	}
}

// Columns implements driver.Rows.
func (r *postgresRows) Columns() []string {
	names := make([]string, len(r.fields))
	for i := range r.fields {
		names[i] = r.fields[i].Name
	}
	return names
}

// Next implements driver.Rows.
func (r *postgresRows) Next(dest []driver.Value) (err error) {
	if !r.waiting && !r.reader.NextRow() {
		if r.tag, err = r.reader.Close(); err != nil {
			return r.c.failed(r.ctx, err)
		}
		return io.EOF
	}
	r.waiting = false
	for i, b := range r.reader.Values() {
		if dest[i], err = decodeValue(&r.fields[i], b); err != nil {
			return err
		}
	}
	return nil
}

// Close implements driver.Rows.
func (r *postgresRows) Close() error {
	if r.closed {
		return nil
	}
	r.closed = true
	defer r.cancel()
	tag, err := r.reader.Close()
	r.tag = tag
	if r.all != nil {
		if end := r.all.Close(); err == nil {
			err = end
		}
	}
	r.endOwn()
	return r.c.failed(r.ctx, err)
}
