package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/mod/sumdb/tlog"
)

// ErrRollback says that a log is not what a checkpoint of it says it was:
// records were taken away or changed, or an old copy was put back.
var ErrRollback = errors.New("the audit log is not a continuation of what it was")

// Remember keeps a signed checkpoint in a file outside the database, so that a
// database that was put back to an older state is noticed. The file is
// replaced whole and is durable when Remember returns.
func Remember(path string, signed []byte) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("remembering the checkpoint: %w", err)
		}
	}()
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".new-*") // with mode 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }() // gone already if all went well
	_, err = f.Write(signed)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes a rename in the folder durable.
func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// Recall gives the checkpoint that Remember kept; nil if there is none.
func Recall(path string) ([]byte, error) {
	signed, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("recalling the checkpoint: %w", err)
	}
	return signed, nil
}

const newEpoch = "put the newest copy of the database back or, if there is none, open a new log with `broker audit new-epoch`"

// CheckRemembered says whether the log of that public key and size, whose
// hashes r reads, continues the remembered checkpoint. Nothing remembered is
// no error. If it does not, the error is ErrRollback, and says what to do.
func CheckRemembered(signed []byte, public string, size int64, r tlog.HashReader) error {
	if signed == nil {
		return nil
	}
	c, err := OpenCheckpoint(signed, public)
	if err != nil {
		return fmt.Errorf("%w: the remembered checkpoint is not this log's (%w): %s", ErrRollback, err, newEpoch)
	}
	if c.Size > size {
		return fmt.Errorf("%w: it has %d records, and its remembered checkpoint %d: %s", ErrRollback, size, c.Size, newEpoch)
	}
	root, err := RootAt(c.Size, r)
	if err != nil {
		return fmt.Errorf("checking the remembered checkpoint: %w", err)
	}
	if root != c.Root {
		return fmt.Errorf("%w: its first %d records have the root %s, and its remembered checkpoint %s: %s", ErrRollback, c.Size, root, c.Root, newEpoch)
	}
	return nil
}
