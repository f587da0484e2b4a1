package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/mod/sumdb/tlog"
)

// ErrRollback means that a log does not continue the log of an earlier
// checkpoint: records were removed or changed, or an old copy was restored.
var ErrRollback = errors.New("the audit log does not continue its earlier checkpoint")

// WriteCheckpointFile writes a signed checkpoint to a file outside the database,
// so that the next start notices a database that was restored to an older state.
// It replaces the file atomically. The file is durable when it returns.
func WriteCheckpointFile(path string, signed []byte) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("writing the checkpoint file: %w", err)
		}
	}()
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".new-*") // with mode 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }() // after the rename it no longer exists
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

// syncDir makes a rename in a directory durable.
func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// ReadCheckpointFile returns the checkpoint that WriteCheckpointFile wrote, or nil
// if the file does not exist.
func ReadCheckpointFile(path string) ([]byte, error) {
	signed, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the checkpoint file: %w", err)
	}
	return signed, nil
}

const newEpoch = "restore the newest copy of the database or, if there is none, open a new log with `broker audit new-epoch`"

// CheckContinuation returns ErrRollback, with advice, unless the log continues a
// signed checkpoint. A nil checkpoint is no error. public and size are the log's
// public key and number of records; r reads its hashes.
func CheckContinuation(signed []byte, public string, size int64, r tlog.HashReader) error {
	if signed == nil {
		return nil
	}
	c, err := OpenCheckpoint(signed, public)
	if err != nil {
		return fmt.Errorf("%w: the checkpoint file is not of this log (%w): correct the store or the checkpoint file if one of them is another broker's; otherwise %s", ErrRollback, err, newEpoch)
	}
	if c.Size > size {
		return fmt.Errorf("%w: it has %d records, and the checkpoint file covers %d: %s", ErrRollback, size, c.Size, newEpoch)
	}
	root, err := RootAt(c.Size, r)
	if err != nil {
		return fmt.Errorf("checking the checkpoint file: %w", err)
	}
	if root != c.Root {
		return fmt.Errorf("%w: its first %d records have the root %s, and the checkpoint file has the root %s: %s", ErrRollback, c.Size, root, c.Root, newEpoch)
	}
	return nil
}
