package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"modernc.org/sqlite"

	"accessbroker.internal/audit"
)

// A backup is one file: a copy of the database, with a table more for what is not in the
// database. So a backup can be read as the database that it is.
const backupTable = `
DROP TABLE IF EXISTS backup_files;
CREATE TABLE backup_files (name TEXT NOT NULL PRIMARY KEY, content BLOB NOT NULL) WITHOUT ROWID;
`

// The names in the table of a backup. A file of the rules is "rules/" and its digest.
const (
	backupManifest   = "manifest.json"
	backupCheckpoint = "checkpoint"
	backupReadMe     = "README"
	backupRules      = "rules/"
)

// backupFormat is the version of the table's content.
const backupFormat = 1

// BackupInfo describes a backup.
type BackupInfo struct {
	Format   int          `json:"format"`
	Program  string       `json:"program"` // the version that wrote it
	Taken    time.Time    `json:"taken_at"`
	Schema   int          `json:"schema"`
	Origin   string       `json:"origin"` // of the log
	Epoch    int64        `json:"epoch"`
	Records  int64        `json:"records"`
	Root     audit.Digest `json:"root"`
	Last     time.Time    `json:"last_record_at,omitzero"`
	Signed   int64        `json:"signed"` // records that the checkpoint in the backup covers
	Rules    int          `json:"rule_files"`
	Contents audit.Digest `json:"contents"` // SHA-256 over all rows of all tables

	Size int64 `json:"size"` // of the file; not part of it
}

// BackupOptions are what a caller of Backup chooses.
type BackupOptions struct {
	Program string
	Replace bool // an existing file is replaced

	// Check verifies the log in the copy before the copy gets its name.
	Check func(context.Context, audit.Source) error

	// step, if not nil, is called between two steps of copying.
	step func()
}

// ErrExists means that a file is there that must not be replaced.
var ErrExists = errors.New("the file exists")

// Backup writes a copy of the database to a file, which it creates completely or not at
// all. A broker may be using the database; Backup only reads it, from one snapshot, in
// small steps. The broker keeps its write-ahead log until the copy is complete.
func Backup(ctx context.Context, database, file string, o BackupOptions) (info *BackupInfo, err error) {
	path, err := sqlitePath(URL(FilePath(database)))
	if err != nil {
		return nil, err
	}
	if err := checkBackupFile(path, file, o.Replace); err != nil {
		return nil, err
	}
	p, err := createPartial(file)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	if err := copyDatabase(ctx, path, p.path, o.step); err != nil {
		return nil, fmt.Errorf("copying %s: %w", path, err)
	}
	if err := packBackup(ctx, p.path, path+".rules", o.Program); err != nil {
		return nil, fmt.Errorf("completing the copy of %s: %w", path, err)
	}
	if info, err = checkBackup(ctx, p.path, o.Check); err != nil {
		return nil, fmt.Errorf("verifying the copy of %s: %w", path, err)
	}
	return info, p.publish(file, o.Replace)
}

// checkBackupFile refuses a file that a backup must not be written to.
func checkBackupFile(database, file string, replace bool) error {
	if file == "" || file == "-" {
		return errors.New("a backup is verified after it is written, so it can't be written to standard output: name a file")
	}
	info, err := os.Lstat(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.IsDir():
		return fmt.Errorf("%s is a folder: name a file in it", file)
	case !info.Mode().IsRegular() && info.Mode()&fs.ModeSymlink == 0:
		return fmt.Errorf("%s is no regular file: a backup is verified after it is written, so it can't be written to a pipe or device", file)
	case !replace:
		return fmt.Errorf("%w: %s", ErrExists, file)
	}
	for _, own := range append(siblings(database), database+".checkpoint") {
		if known, err := os.Stat(own); err == nil {
			if there, err := os.Stat(file); err == nil && os.SameFile(known, there) {
				return fmt.Errorf("%s belongs to the database: name another file", file)
			}
		}
	}
	return nil
}

// stepPages is how many pages are copied in one step: a megabyte.
const stepPages = 256

// copyDatabase copies a database to an empty file, as of one instant.
func copyDatabase(ctx context.Context, from, to string, step func()) (err error) {
	f, err := OpenSource(ctx, from)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	conn, err := f.db.Conn(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	// The transaction keeps the snapshot while the broker commits. Without it, each commit
	// would make SQLite copy from the start again.
	if _, err := conn.ExecContext(ctx, "BEGIN"); err != nil {
		return err
	}
	defer func() { _, _ = conn.ExecContext(context.WithoutCancel(ctx), "ROLLBACK") }()
	var one int
	if err := conn.QueryRowContext(ctx, "SELECT count(*) FROM head").Scan(&one); err != nil {
		return err
	}
	if err := conn.Raw(func(c any) error { return copyPages(ctx, c, to, step) }); err != nil {
		return err
	}
	if f.check != nil {
		return f.check()
	}
	return nil
}

// copyPages copies the database of a driver's connection in steps.
func copyPages(ctx context.Context, conn any, to string, step func()) (err error) {
	type backuper interface {
		NewBackup(string) (*sqlite.Backup, error)
	}
	b, err := conn.(backuper).NewBackup(copyName(to))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Finish()) }()
	for more := true; more; {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if more, err = b.Step(stepPages); err != nil {
			return err
		}
		if step != nil {
			step()
		}
	}
	return nil
}

// copyName is the data source name of a file that is made durable at the end, and that is
// of no use before.
func copyName(path string) string {
	return dsn(path, "rw") + "&" + url.Values{"_pragma": {"journal_mode(MEMORY)", "synchronous(OFF)"}}.Encode()
}

// openCopy opens a file that copyDatabase wrote.
func openCopy(path string) (*sql.DB, error) {
	db, err := sql.Open(driverName, copyName(path))
	if err == nil {
		db.SetMaxOpenConns(1)
	}
	return db, err
}

// packBackup adds to a copy what is not in the database.
func packBackup(ctx context.Context, path, rules, program string) (err error) {
	db, err := openCopy(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	// The copy has the mode of the broker's database, in which readers need two more files.
	if _, err := db.ExecContext(ctx, "PRAGMA journal_mode = DELETE"); err != nil {
		return err
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // no effect after Commit
	if _, err := tx.ExecContext(ctx, backupTable); err != nil {
		return err
	}
	put := func(name string, content []byte) error {
		_, err := tx.ExecContext(ctx, "INSERT INTO backup_files (name, content) VALUES (?, ?)", name, content)
		return err
	}
	info, checkpoint, err := describeCopy(ctx, tx)
	if err != nil {
		return err
	}
	if info.Rules, err = packRules(rules, put); err != nil {
		return err
	}
	info.Format, info.Program, info.Taken = backupFormat, program, audit.Millis(time.Now())
	manifest, err := json.Marshal(info)
	if err != nil {
		return err
	}
	if err := errors.Join(put(backupManifest, manifest), put(backupCheckpoint, checkpoint), put(backupReadMe, []byte(backupNote))); err != nil {
		return err
	}
	return tx.Commit()
}

// backupNote is for people who find a backup and have nothing else.
const backupNote = `This file is a backup of an access broker: its SQLite database, with the table backup_files.
"broker backup --verify FILE" checks it, "broker restore FILE" restores it.

It does not contain the seal keys (seal_keys in the operator's file), without which no broker
starts with this database. Keep them apart from the backups: with both, anyone can sign
tokens. The broker's checkpoint file is not part of it either. It shows a broker that its
database was restored to an earlier time.
`

// packRules stores the files of all rules that the log names.
func packRules(dir string, put func(string, []byte) error) (n int, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	for _, entry := range entries {
		if filepath.Ext(entry.Name()) != "" || !entry.Type().IsRegular() { // a file that is being written
			continue
		}
		content, err := os.ReadFile(filepath.Join(dir, entry.Name()))
		if err != nil {
			return n, err
		}
		if err := put(backupRules+entry.Name(), content); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// describeCopy returns what a copy contains, and its newest checkpoint.
func describeCopy(ctx context.Context, tx *sql.Tx) (info BackupInfo, checkpoint []byte, err error) {
	if err := tx.QueryRowContext(ctx, "PRAGMA user_version").Scan(&info.Schema); err != nil {
		return info, nil, err
	}
	head, _, _, err := scanHead(tx.QueryRowContext(ctx, selectHead))
	if err != nil {
		return info, nil, err
	}
	info.Epoch, info.Records, info.Root, info.Last = head.Epoch, head.Size, head.Root, head.Time
	known, err := currentLog(ctx, tx)
	if err != nil {
		return info, nil, err
	}
	info.Origin = known.Origin
	err = tx.QueryRowContext(ctx, "SELECT note FROM checkpoints WHERE id >= ? ORDER BY id DESC LIMIT 1", recordID(head.Epoch, 0)).Scan(&checkpoint)
	if err == nil {
		var c audit.Checkpoint
		c, err = audit.OpenCheckpoint(checkpoint, known.Public)
		info.Signed = c.Size
	}
	if errors.Is(err, sql.ErrNoRows) {
		checkpoint, err = []byte{}, nil
	}
	if err != nil {
		return info, nil, err
	}
	info.Contents, err = digestTables(ctx, tx)
	return info, checkpoint, err
}
