package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"iter"
	"net/url"
	"os"

	"github.com/jackc/pgx/v5"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// A logSource is an audit.Source over a database.
type logSource struct {
	db *sql.DB
	// check, if not nil, returns an error if the database changed while it was
	// read.
	check func() error
}

// Source returns the current log for verifying and exporting.
func (s *Store) Source() audit.Source { return &logSource{db: s.readers} }

// A Source is an audit.Source over a database that this process does not write.
// It needs no key and no lock, and does not change the database, which a broker
// may be using. It is safe for concurrent use.
type Source struct{ logSource }

// OpenSource opens the log in a database, given as a URL or as the path of a SQLite
// database. The caller closes it. A role of PostgreSQL that may only read suffices.
func OpenSource(ctx context.Context, pathOrURL string) (*Source, error) {
	if isPostgres(pathOrURL) {
		return openSharedSource(ctx, pathOrURL)
	}
	path, err := sqlitePath(pathOrURL)
	if err != nil {
		if path, err = sqlitePath("sqlite:" + pathOrURL); err != nil {
			return nil, err
		}
	}
	// The error of SQLite would be "unable to open database file (14)".
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("opening the log: %w", err)
	}
	f := &Source{}
	name := dsn(path, "ro", "query_only(1)")
	if !inUse(path) {
		// No process uses the database. Opened as immutable, SQLite creates no
		// files next to it, so its folder need not be writable.
		name += "&" + url.Values{"immutable": {"1"}}.Encode()
		f.check = func() error {
			if inUse(path) {
				return errors.New("a broker began to use the database while it was read: try again")
			}
			return nil
		}
	}
	if f.db, err = sql.Open(driverName, name); err != nil {
		return nil, fmt.Errorf("opening the log in %s: %w", path, err)
	}
	f.db.SetMaxOpenConns(1)
	if err := f.checkSchema(ctx); err != nil {
		if cantOpen(err) {
			// The error of SQLite is only "unable to open database file (14)".
			err = fmt.Errorf("it is in use, or its broker was killed, so the -wal and -shm files next to it have to be read or created; without permission for that, read an export (broker audit export) or a backup (%w)", err)
		}
		return nil, errors.Join(fmt.Errorf("opening the log in %s: %w", path, err), f.Close())
	}
	return f, nil
}

// openSharedSource opens the log in a database of PostgreSQL.
func openSharedSource(ctx context.Context, url string) (*Source, error) {
	u, err := parsePostgresURL(url)
	if err != nil {
		return nil, err
	}
	f := &Source{}
	f.db = openPostgres(postgresConfig{settings: func() (*pgx.ConnConfig, error) { return parsePostgres(url) }, readOnly: true})
	f.db.SetMaxOpenConns(1)
	schema, err := readSchema(ctx, f.db)
	switch {
	case err != nil:
	case schema.version == 0:
		err = errors.New("it is not the database of a broker")
	default:
		err = schema.check()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening the log in %s: %w", u, err), f.Close())
	}
	return f, nil
}

// inUse reports whether there is a write-ahead log next to the database file: a
// broker uses it, or was killed.
func inUse(path string) bool {
	info, err := os.Stat(path + "-wal")
	return err == nil && info.Size() > 0
}

func (f *Source) checkSchema(ctx context.Context) error {
	conn, err := f.db.Conn(ctx)
	if err != nil {
		return err
	}
	version, err := schemaVersion(ctx, conn)
	if err == nil && version == 0 {
		err = errors.New("it is not the database of a broker")
	}
	return errors.Join(err, conn.Close())
}

// Close closes the database.
func (f *Source) Close() error { return f.db.Close() }

// Header implements audit.Source.
func (l *logSource) Header(ctx context.Context) (audit.Header, error) {
	log, err := currentLog(ctx, l.db)
	if err != nil {
		return audit.Header{}, err
	}
	head, _, _, err := scanHead(l.db.QueryRowContext(ctx, selectHead))
	if err != nil {
		return audit.Header{}, fmt.Errorf("reading the head of the log: %w", err)
	}
	if head.Epoch != log.Epoch {
		return audit.Header{}, fmt.Errorf("reading the head of the log: it is of log %d, and the newest is %d", head.Epoch, log.Epoch)
	}
	h := audit.Header{Origin: log.Origin, Key: log.Public, Size: head.Size, Root: head.Root}
	query := "SELECT note FROM checkpoints WHERE id >= ? AND id <= ? ORDER BY id"
	err = each(ctx, l.db, query, []any{recordID(head.Epoch, 0), recordID(head.Epoch, head.Size)}, func(rows *sql.Rows) error {
		var note string
		err := rows.Scan(&note)
		h.Checkpoints = append(h.Checkpoints, note)
		return err
	})
	if err != nil {
		return audit.Header{}, fmt.Errorf("reading the checkpoints: %w", err)
	}
	return h, nil
}

// Items implements audit.Source. Records never change, so it reads them in
// batches: one snapshot over all of them would keep SQLite from copying its
// write-ahead log.
func (l *logSource) Items(ctx context.Context) iter.Seq2[audit.Item, error] {
	return func(yield func(audit.Item, error) bool) {
		head, _, _, err := scanHead(l.db.QueryRowContext(ctx, selectHead))
		for next := int64(0); err == nil && next < head.Size; next += itemBatch {
			var batch []audit.Item
			batch, err = l.batch(ctx, head.Epoch, next, min(next+itemBatch, head.Size))
			for _, item := range batch {
				if !yield(item, nil) {
					return
				}
			}
		}
		if err == nil && l.check != nil {
			err = l.check()
		}
		if err != nil {
			yield(audit.Item{}, fmt.Errorf("reading the log: %w", err))
		}
	}
}

const itemBatch = 256

func (l *logSource) batch(ctx context.Context, epoch, from, to int64) (items []audit.Item, err error) {
	query := "SELECT id, leaf, hashes, openings FROM records WHERE id >= ? AND id < ? ORDER BY id"
	err = each(ctx, l.db, query, []any{recordID(epoch, from), recordID(epoch, to)}, func(rows *sql.Rows) error {
		item, err := scanItem(rows)
		items = append(items, item)
		return err
	})
	return items, err
}

// scanItem reads a record's id, leaf, hashes and openings.
func scanItem(rows *sql.Rows) (item audit.Item, err error) {
	var id int64
	err = rows.Scan(&id, &item.Leaf, &item.Hashes, &item.Openings)
	item.Index = broker.RecordID(id).Index()
	return item, err
}
