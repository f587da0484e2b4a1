package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io/fs"
	"sync/atomic"

	"accessbroker.internal/broker"
)

// A process keeps its open files when they are removed, renamed or replaced, or
// when their folder is renamed or unmounted. SQLite would continue to write to them,
// and every record would be lost at the end of the process. So the store compares
// the files at the database's paths with those that it opened: after each commit,
// before an Update returns, and once a second.
//
// While they differ, no Update succeeds. Connections that are open keep reading
// the open files, so a lease can still be found and revoked at its issuer.

// presence knows the files that SQLite has open. It is safe for concurrent use
// after remember.
type presence struct {
	files []openFile
	lost  atomic.Pointer[string] // the reason; nil: every file is at its path
}

type openFile struct {
	path string
	id   fileID
}

// databaseFiles returns the paths of the files that SQLite has open while a
// database is in use.
func databaseFiles(path string) []string { return []string{path, path + "-wal", path + "-shm"} }

// remember notes the files as SQLite opened them. The database must be the file with
// this ID, which is the one that is locked.
func (p *presence) remember(path string, locked fileID) error {
	for _, path := range databaseFiles(path) {
		id, err := statFile(path)
		if err != nil {
			return err
		}
		p.files = append(p.files, openFile{path, id})
	}
	if p.files[0].id != locked {
		return fmt.Errorf("%s was replaced while the broker opened it: start again", path)
	}
	return nil
}

// check compares the files. Before remember, it has nothing to compare.
func (p *presence) check() error {
	for _, f := range p.files {
		id, err := statFile(f.path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return lostFile(f.path, "was removed or moved")
		case err != nil:
			return lostFile(f.path, "cannot be reached ("+err.Error()+")")
		case id != f.id:
			return lostFile(f.path, "was replaced by another file")
		}
	}
	return nil
}

func lostFile(path, happened string) error {
	return fmt.Errorf("%w: the database file %s %s while the broker uses it: nothing is issued, and revocations are sent but not recorded: move the original file back, or restore a backup and restart the broker", broker.ErrUnavailable, path, happened)
}

// checkFiles returns an error while the files of the database are not the open
// ones. It logs when this begins and when it ends.
func (s *Store) checkFiles() error {
	err := s.presence.check()
	var reason *string
	if err != nil {
		text := err.Error()
		reason = &text
	}
	switch before := s.presence.lost.Swap(reason); {
	case err != nil && (before == nil || *before != *reason):
		s.cfg.Log.Error("the database files are not the ones that the broker opened", "err", err)
	case err == nil && before != nil:
		s.cfg.Log.Warn("the database files are back")
	}
	return err
}

// FilesLost reports whether the files at the database's paths are not those that
// the store opened. It is current to the second while Run runs.
func (s *Store) FilesLost() bool { return s.presence.lost.Load() != nil }

// ready returns an error if a group must not run: the files were lost and are not
// back, or the writer has no usable connection since.
func (s *Store) ready(ctx context.Context) error {
	if s.FilesLost() {
		if err := s.checkFiles(); err != nil {
			return err
		}
	}
	if s.w.stale {
		s.forget() // the last COMMIT may have happened
		return s.w.engine.reload(ctx, s.w)
	}
	return nil
}

// A connector opens connections to the database's path. A connection to another
// file than the one that the store opened would read or write foreign rows.
type connector struct {
	driver driver.Driver
	name   string
	check  func() error
}

// openPool returns a pool of connections that check is called for.
func openPool(name string, check func() error) (*sql.DB, error) {
	db, err := sql.Open(driverName, name)
	if err != nil {
		return nil, err
	}
	d := db.Driver()
	return sql.OpenDB(connector{d, name, check}), db.Close()
}

// Driver implements driver.Connector.
func (c connector) Driver() driver.Driver { return c.driver }

// Connect implements driver.Connector.
func (c connector) Connect(context.Context) (driver.Conn, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	conn, err := c.driver.Open(c.name)
	if err != nil {
		return nil, err
	}
	if err := c.check(); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}
