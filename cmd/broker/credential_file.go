package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"accessbroker.internal/api"
)

// A credentialFile is the file with a credential that "exec --file" writes. It
// replaces and removes only a file that this program wrote: its own of before, or one
// that a killed exec left behind, which its mark shows.
type credentialFile struct {
	path string
	own  *os.File // written last, and open so that no other file gets its inode; nil: none yet
}

// check returns an error if there is a file at the path that exec may not replace.
func (f *credentialFile) check() error {
	if f.path == "" {
		return nil
	}
	_, err := f.replaceable()
	return err
}

// replaceable returns the file at the path if exec wrote it, or nil if there is none.
// Any other file is an error.
func (f *credentialFile) replaceable() (fs.FileInfo, error) {
	info, err := os.Lstat(f.path) // does not follow links
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("--file: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("--file: %s is not a regular file; name one that does not exist", f.path)
	}
	if f.isOwn(info) || f.own == nil && isMarked(f.path) {
		return info, nil
	}
	return nil, fmt.Errorf("--file: exec did not write %s and does not replace it; remove it or name another file", f.path)
}

// write writes a credential to a new file, or replaces the old one atomically, so that
// no reader sees a part of a credential.
func (f *credentialFile) write(c *api.Credential) (err error) {
	old, err := f.replaceable()
	if err != nil {
		return err
	}
	if old == nil {
		file, err := os.OpenFile(f.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return fmt.Errorf("writing the credential: %w", err)
		}
		if err := fill(file, c); err != nil {
			return errors.Join(fmt.Errorf("writing the credential: %w", err), file.Close(), os.Remove(f.path))
		}
		f.own = file
		return nil
	}
	temp, err := os.CreateTemp(filepath.Dir(f.path), ".broker-*") // mode 0600
	if err != nil {
		return fmt.Errorf("writing the credential: %w", err)
	}
	if err = fill(temp, c); err == nil {
		err = os.Rename(temp.Name(), f.path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("writing the credential: %w", err), temp.Close(), os.Remove(temp.Name()))
	}
	if f.own != nil {
		_ = f.own.Close() // its content was replaced
	}
	f.own = temp
	return nil
}

// fill writes a credential to a new file.
func fill(file *os.File, c *api.Credential) error {
	mark(file)
	_, err := file.WriteString(fileOf(c))
	return err
}

// isOwn reports whether a file is the one that this process wrote last.
func (f *credentialFile) isOwn(info fs.FileInfo) bool {
	if f.own == nil {
		return false
	}
	own, err := f.own.Stat()
	return err == nil && os.SameFile(info, own)
}

// remove removes the file if it is still the one that exec wrote.
func (f *credentialFile) remove() error {
	if f.own == nil {
		return nil
	}
	defer func() { _ = f.own.Close() }() // written before
	info, err := os.Lstat(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && !f.isOwn(info) {
		return fmt.Errorf("leaving %s: another program has replaced it", f.path)
	}
	if err == nil {
		err = os.Remove(f.path)
	}
	if err != nil {
		return fmt.Errorf("removing the credential: %w", err)
	}
	return nil
}
