package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// A partial is a file that is being written. It gets its name when it is complete.
type partial struct {
	path string
	lock *os.File // open until SQLite has closed the file, see openDatabase
	done bool
}

// createPartial creates an empty file next to the one that it will be. A file that a
// process left behind when it was killed is used again.
func createPartial(file string) (*partial, error) {
	p := &partial{path: file + ".partial"}
	if info, err := os.Lstat(p.path); err == nil && !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file: remove it", p.path)
	}
	f, err := os.OpenFile(p.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(lockPartial(f), f.Truncate(0), f.Chmod(0o600)); err != nil {
		return nil, errors.Join(fmt.Errorf("writing %s: %w", p.path, err), f.Close())
	}
	p.lock = f
	return p, nil
}

// publish makes the content durable, and then the name.
func (p *partial) publish(file string, replace bool) error {
	if err := p.lock.Sync(); err != nil {
		return fmt.Errorf("writing %s: %w", p.path, err)
	}
	if err := nameFile(p.path, file, replace); err != nil {
		return err
	}
	p.done = true
	return syncFolder(filepath.Dir(file))
}

// nameFile renames a file. Unless replace is set, it fails if there is another one.
func nameFile(from, to string, replace bool) error {
	if replace {
		return os.Rename(from, to)
	}
	err := os.Link(from, to)
	if err == nil {
		return os.Remove(from)
	}
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%w: %s", ErrExists, to)
	}
	// The file system has no links.
	if _, there := os.Lstat(to); !errors.Is(there, fs.ErrNotExist) {
		return fmt.Errorf("%w: %s", ErrExists, to)
	}
	return os.Rename(from, to)
}

// close removes the file unless it has its name.
func (p *partial) close() error {
	if p.done {
		return p.lock.Close()
	}
	return errors.Join(os.Remove(p.path), p.lock.Close())
}

// syncFolder makes new names in a folder durable.
func syncFolder(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
