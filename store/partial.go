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
	again, err := p.open(0)
	if again && err == nil {
		_, err = p.open(os.O_EXCL)
	}
	if err != nil {
		return nil, fmt.Errorf("writing %s: %w", p.path, err)
	}
	return p, nil
}

// open opens the file, locks it and makes it empty. If a process was killed in nameFile, the
// file has its final name, too: then open removes the other name and reports that it has to be
// called again.
func (p *partial) open(flags int) (again bool, err error) {
	f, err := os.OpenFile(p.path, os.O_RDWR|os.O_CREATE|noFollow|flags, 0o600)
	if err != nil {
		return false, err
	}
	defer func() {
		if err != nil || again {
			err = errors.Join(err, f.Close())
		}
	}()
	info, err := f.Stat()
	switch {
	case err != nil:
		return false, err
	case ownedByAnother(info, filepath.Dir(p.path)): // who may have it open
		return false, errors.New("it belongs to another user: remove it")
	}
	if err := lockPartial(f); err != nil {
		return false, err
	}
	if hasOtherNames(info) {
		return true, os.Remove(p.path)
	}
	p.lock = f
	return false, errors.Join(f.Truncate(0), f.Chmod(0o600))
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
