package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"accessbroker.internal/audit"
)

// A CopyReport is what Copy did.
type CopyReport struct {
	From    string           `json:"from"`
	To      string           `json:"to"`     // without its password
	Rows    int64            `json:"rows"`   // of all tables
	Tables  map[string]int64 `json:"tables"` // rows by table
	Records int64            `json:"records"`
	Root    audit.Digest     `json:"root"` // of the log
	Marker  string           `json:"marker"`
}

// CopyOptions are options of Copy.
type CopyOptions struct {
	Roles    []string                           // that get the rights of a broker
	Progress func(table string, done, of int64) // called now and then, and at the end of a table; may be nil
}

// A copying copies a database of SQLite to PostgreSQL: all rows, in one transaction, which
// ends only if the target has what the source has.
type copying struct {
	opts   CopyOptions
	path   string // of the source
	source *sql.Tx
	target *postgresConn
	report *CopyReport
}

// Copy copies a database of SQLite to an empty database of PostgreSQL, with the log and its
// proofs. No broker may use either. The source stays as it is, and a marker next to it keeps
// brokers from serving it again. If Copy fails, the target is empty, and Copy can run again.
func Copy(ctx context.Context, from, to string, o CopyOptions) (report *CopyReport, err error) {
	path, err := sqlitePath(from)
	if err != nil {
		return nil, err
	}
	if _, err := parsePostgres(to); err != nil {
		return nil, err
	}
	if o.Progress == nil {
		o.Progress = func(string, int64, int64) {}
	}
	c := &copying{opts: o, path: path, report: &CopyReport{From: from, To: Redacted(to), Tables: map[string]int64{}, Marker: movedMarker(path)}}
	if err := c.withSource(ctx, func() error { return c.withTarget(ctx, to) }); err != nil {
		return nil, fmt.Errorf("copying %s to %s: %w", path, c.report.To, err)
	}
	return c.report, nil
}

// withSource calls f while the source is locked and open.
func (c *copying) withSource(ctx context.Context, f func() error) (err error) {
	version, err := fileVersion(ctx, c.path)
	switch {
	case err != nil:
		return err
	case version == 0 && !fileExists(c.path):
		return errors.New("the source does not exist: correct its path")
	case version == 0:
		return errors.New("the source is not the database of a broker")
	case version > len(migrations):
		return fmt.Errorf("the source has schema version %d, and this program knows versions up to %d: run the newer program that wrote it", version, len(migrations))
	case version < len(migrations):
		return fmt.Errorf(`the source has schema version %d, and this program has %d: run "broker store migrate --store %s%s" first`, version, len(migrations), scheme, c.path)
	}
	if err := checkMoved(c.path); err != nil {
		return err
	}
	unlock, err := lockSource(c.path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	name := dsn(c.path, "ro", "query_only(1)")
	if !inUse(c.path) {
		name += "&immutable=1" // so that SQLite creates no files next to it
	}
	db, err := sql.Open(driverName, name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if c.source, err = db.BeginTx(ctx, nil); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.source.Rollback()) }()
	return f()
}

// lockSource locks a database of SQLite, so that no broker uses it.
func lockSource(path string) (unlock func() error, err error) {
	_, err = os.Lstat(path + ".lock")
	own := errors.Is(err, fs.ErrNotExist)
	lock, err := lockFile(path + ".lock")
	if err != nil {
		return nil, err
	}
	release := func() error {
		if own {
			_ = os.Remove(path + ".lock") // it is empty of meaning without a process
		}
		return lock.Close()
	}
	database, _, err := openDatabase(path)
	if err != nil {
		return nil, errors.Join(err, release())
	}
	return func() error { return errors.Join(closeDatabase(database), release()) }, nil
}

// withTarget prepares the target and copies.
func (c *copying) withTarget(ctx context.Context, to string) (err error) {
	if _, err := Migrate(ctx, to, c.opts.Roles); err != nil {
		return err
	}
	db := openPostgres(postgresConfig{settings: func() (*pgx.ConnConfig, error) { return parsePostgres(to) }})
	defer func() { err = errors.Join(err, db.Close()) }()
	schema, err := readSchema(ctx, db)
	if err != nil {
		return err
	}
	if err := schema.check(); err != nil {
		return err
	}
	conn, err := db.Conn(ctx)
	if err != nil {
		return reaching(err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	err = conn.Raw(func(raw any) error {
		c.target = raw.(*postgresConn)
		return c.transaction(ctx)
	})
	if err != nil {
		return err
	}
	_, err = conn.ExecContext(ctx, "SET statement_timeout = 0; ANALYZE")
	return err
}

// transaction copies everything in one transaction of the target.
func (c *copying) transaction(ctx context.Context) (err error) {
	// A broker that starts now waits for the head.
	const begin = "BEGIN; SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = '10s'; SET LOCAL idle_in_transaction_session_timeout = 0; LOCK TABLE head IN ACCESS EXCLUSIVE MODE"
	defer func() {
		if err != nil && !c.target.conn.IsClosed() {
			end, cancel := context.WithTimeout(context.WithoutCancel(ctx), cancelWaits)
			defer cancel()
			_ = c.target.run(end, "ROLLBACK") // the server does so, too, when the connection ends
		}
	}()
	if err := c.target.run(ctx, begin); err != nil {
		return err
	}
	if err := c.checkEmpty(ctx); err != nil {
		return err
	}
	for _, table := range commonTables() {
		if err := c.copyTable(ctx, table); err != nil {
			return fmt.Errorf("copying the table %s: %w", table, err)
		}
	}
	if err := c.copyRules(ctx); err != nil {
		return fmt.Errorf("copying the log's rules: %w", err)
	}
	return c.commit(ctx)
}

// commit marks the source before it commits: otherwise, a crash between the two would leave
// two databases that a broker can serve.
func (c *copying) commit(ctx context.Context) error {
	head, _, _, err := scanHead(c.source.QueryRowContext(ctx, selectHead))
	if err != nil {
		return fmt.Errorf("reading the head of the log: %w", err)
	}
	c.report.Records, c.report.Root = head.Size, head.Root
	text := fmt.Sprintf("This database was copied to %s at %s, with %d records of its log.\nA broker that serves both would fork the log. Remove this file only if the copy is given up.\n",
		c.report.To, time.Now().UTC().Format(time.RFC3339), head.Size)
	if err := writeFile(c.report.Marker, []byte(text)); err != nil {
		return fmt.Errorf("marking the source: %w", err)
	}
	err = c.target.run(ctx, "COMMIT")
	switch {
	case err == nil:
		return nil
	case sqlState(err) != "": // the server refused, so nothing was copied
		return errors.Join(err, os.Remove(c.report.Marker))
	}
	return fmt.Errorf("it is unknown whether the copy was committed, so %s stays: if the target has no log, remove that file and copy again: %w", c.report.Marker, err)
}

// checkEmpty returns an error if the target has rows of a broker.
func (c *copying) checkEmpty(ctx context.Context) error {
	for _, table := range append(commonTables(), ruleFiles) {
		if singletons[table] {
			continue
		}
		n, err := c.number(ctx, "SELECT count(*) FROM (SELECT FROM "+table+" LIMIT 1) t")
		if err != nil {
			return err
		}
		if n > 0 {
			return fmt.Errorf("the target has rows in the table %s: copy to an empty database", table)
		}
	}
	return nil
}

// singletons have one row, which the migration inserts.
var singletons = map[string]bool{"head": true, "counted": true, "surveyed": true, "tallied": true, "carried": true}

// ruleFiles is the table of the log's rules, which SQLite does not have.
const ruleFiles = "rule_files"

// number returns the number that a query of the target returns.
func (c *copying) number(ctx context.Context, query string) (n int64, err error) {
	r := c.target.conn.PgConn().ExecParams(ctx, query, nil, nil, nil, binaryResults)
	for r.NextRow() {
		if v := r.Values()[0]; len(v) == 8 {
			n = int64(binary.BigEndian.Uint64(v))
		}
	}
	_, err = r.Close()
	return n, err
}

// copyTable copies a table, reads it back, and compares.
func (c *copying) copyTable(ctx context.Context, table string) error {
	columns, err := c.columns(ctx, table)
	if err != nil {
		return err
	}
	var of int64
	if err := c.source.QueryRowContext(ctx, "SELECT count(*) FROM "+table).Scan(&of); err != nil {
		return err
	}
	if singletons[table] {
		if err := c.target.run(ctx, "DELETE FROM "+table); err != nil {
			return err
		}
	}
	rows, err := c.source.QueryContext(ctx, "SELECT "+columns.names()+" FROM "+table)
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }() // after its last row
	in := &copyReader{columns: columns, progress: func(done int64) { c.opts.Progress(table, done, of) }}
	in.next = func() ([]any, error) {
		if !rows.Next() {
			return nil, rows.Err()
		}
		values, targets := make([]any, len(columns)), make([]any, len(columns))
		for i := range values {
			targets[i] = &values[i]
		}
		return values, rows.Scan(targets...)
	}
	return c.load(ctx, table, in, of)
}

// load sends rows to a table of the target, and compares what the table has then.
func (c *copying) load(ctx context.Context, table string, in *copyReader, of int64) error {
	query := fmt.Sprintf("COPY %s (%s) FROM STDIN (FORMAT binary)", table, in.columns.names())
	if _, err := c.target.conn.PgConn().CopyFrom(ctx, in, query); err != nil {
		return errors.Join(in.err, err)
	}
	var back rowDigest
	r := c.target.conn.PgConn().ExecParams(ctx, "SELECT "+in.columns.names()+" FROM "+table, nil, nil, nil, binaryResults)
	for r.NextRow() {
		back.add(encodeFields(nil, r.Values()))
	}
	if _, err := r.Close(); err != nil {
		return fmt.Errorf("reading it back: %w", err)
	}
	if back != in.digest || in.digest.rows != of {
		return fmt.Errorf("the copy differs: the source has %d rows, %d were read, and %d are in the target", of, in.digest.rows, back.rows)
	}
	c.report.Tables[table] = of
	c.report.Rows += of
	c.opts.Progress(table, of, of)
	return nil
}

// copyRules copies the folder of the log's rules to its table.
func (c *copying) copyRules(ctx context.Context) error {
	files, err := os.ReadDir(c.path + ".rules")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var names []string
	for _, f := range files {
		if digest, err := hex.DecodeString(f.Name()); err == nil && len(digest) == sha256.Size { // others were not written completely
			names = append(names, f.Name())
		}
	}
	of := int64(len(names))
	in := &copyReader{columns: copyColumns{{"digest", true}, {"content", true}}, progress: func(int64) {}}
	in.next = func() ([]any, error) {
		if len(names) == 0 {
			return nil, nil
		}
		name := names[0]
		names = names[1:]
		digest, err := hex.DecodeString(name)
		if err != nil {
			return nil, err
		}
		content, err := os.ReadFile(filepath.Join(c.path+".rules", name))
		return []any{digest, content}, err
	}
	return c.load(ctx, ruleFiles, in, of)
}

// copyColumns are the columns that a table has in both databases.
type copyColumns []struct {
	name  string
	bytes bool // or text: its value is sent as it is
}

func (l copyColumns) names() string {
	names := make([]string, len(l))
	for i := range l {
		names[i] = l[i].name
	}
	return strings.Join(names, ", ")
}

// columns returns the columns of a table of the source.
func (c *copying) columns(ctx context.Context, table string) (list copyColumns, err error) {
	err = each(ctx, c.source, "SELECT name, type FROM pragma_table_info(?)", []any{table}, func(rows *sql.Rows) error {
		var name, kind string
		err := rows.Scan(&name, &kind)
		list = append(list, struct {
			name  string
			bytes bool
		}{name, kind != "INTEGER"})
		return err
	})
	if err == nil && len(list) == 0 {
		err = errors.New("the source has no such table")
	}
	return list, err
}

func fileExists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
