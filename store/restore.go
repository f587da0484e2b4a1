package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"accessbroker.internal/audit"
)

// RestoreOptions are what a caller of Restore chooses.
type RestoreOptions struct {
	// Replace lets Restore replace a database. The one that was there is kept under another
	// name.
	Replace bool

	// Check verifies the log of the backup before anything is changed.
	Check func(context.Context, audit.Source) error
}

// A Restored is what Restore did.
type Restored struct {
	*BackupInfo
	Database string `json:"database"`
	Aside    string `json:"aside,omitempty"` // where the database is now that was there before
}

// Restore makes the content of a backup the database at a path, completely or not at all. It
// refuses while a broker uses that database. It does not touch the checkpoint file, which
// shows the broker that its log went back.
func Restore(ctx context.Context, file, database string, o RestoreOptions) (r *Restored, err error) {
	path, err := sqlitePath(URL(FilePath(database)))
	if err != nil {
		return nil, err
	}
	info, err := VerifyBackup(ctx, file, o.Check)
	if err != nil {
		return nil, err
	}
	there, err := os.Stat(path)
	switch {
	case err == nil && !o.Replace:
		return nil, fmt.Errorf("%w: %s: a database is never deleted; replace it with --force, which keeps it under another name", ErrExists, path)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, err
	case err == nil:
		if from, err := os.Stat(file); err == nil && os.SameFile(from, there) {
			return nil, fmt.Errorf("%s is the database itself", file)
		}
	}
	release, err := lockAgainstBrokers(path, there != nil)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, release()) }()
	r = &Restored{BackupInfo: info, Database: path}
	p, err := createPartial(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	if err := p.unpack(ctx, file, path+".rules"); err != nil {
		return nil, fmt.Errorf("unpacking %s: %w", file, err)
	}
	if there != nil {
		if r.Aside, err = setAside(ctx, path, time.Now()); err != nil {
			return nil, fmt.Errorf("keeping the database that is there: %w", err)
		}
	}
	return r, p.publish(path, o.Replace)
}

// lockAgainstBrokers takes the locks by which a broker owns a database.
func lockAgainstBrokers(path string, exists bool) (release func() error, err error) {
	lock, err := lockFile(path + ".lock")
	if err != nil {
		return nil, err
	}
	ownAs(path+".lock", path)
	if !exists {
		return lock.Close, nil
	}
	fd, _, err := openDatabase(path)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return func() error { return errors.Join(closeDatabase(fd), lock.Close()) }, nil
}

// unpack copies a backup, and takes apart what Backup put together.
func (p *partial) unpack(ctx context.Context, file, rules string) (err error) {
	if err := copyContent(p.lock, file); err != nil {
		return err
	}
	ownAs(p.path, strings.TrimSuffix(p.path, ".partial"))
	db, err := openCopy(p.path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if err := unpackRules(ctx, db, rules); err != nil {
		return err
	}
	_, err = db.ExecContext(ctx, "DROP TABLE backup_files")
	return err
}

func copyContent(to *os.File, file string) error {
	from, err := os.Open(file)
	if err != nil {
		return err
	}
	_, err = io.Copy(to, from)
	return errors.Join(err, from.Close())
}

// unpackRules writes the files of the rules that are not there yet.
func unpackRules(ctx context.Context, db *sql.DB, dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	database := strings.TrimSuffix(dir, ".rules")
	ownAs(dir, database)
	err := each(ctx, db, "SELECT name, content FROM backup_files WHERE name >= ? AND name < ?", []any{backupRules, "rules0"}, func(rows *sql.Rows) error {
		var name string
		var content []byte
		if err := rows.Scan(&name, &content); err != nil {
			return err
		}
		path := filepath.Join(dir, filepath.Base(name)) // VerifyBackup has compared the name with the content
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		defer ownAs(path, database)
		return writeFile(path, content)
	})
	return errors.Join(err, syncFolder(dir))
}

// setAside gives a second name to the database at a path, so that the restored one can take
// its place in one step. The changes that are only in its write-ahead log come into the
// database first. If that fails, because the database is damaged, they are kept next to it.
func setAside(ctx context.Context, path string, now time.Time) (aside string, err error) {
	if db, err := sql.Open(driverName, dsn(path, "rw")); err == nil {
		db.SetMaxOpenConns(1)
		_, _ = db.ExecContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)")
		_ = db.Close()
	}
	aside = path + ".replaced-" + now.UTC().Format("20060102T150405.000Z")
	if err := nameTwice(path, aside); err != nil {
		return "", err
	}
	for _, suffix := range []string{"-wal", "-shm"} { // they would be taken for those of the restored database
		if err := os.Rename(path+suffix, aside+suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	return aside, nil
}

// nameTwice gives a file a second name, or another one if the file system has no links.
func nameTwice(path, second string) error {
	err := os.Link(path, second)
	if err == nil || errors.Is(err, fs.ErrExist) {
		return err
	}
	return os.Rename(path, second)
}
