package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// An ownFile is a file that a command writes, such as the credential of "exec --file". The
// command replaces and removes only a file that it wrote: its own of before, or one of an
// earlier run, which the mark shows.
type ownFile struct {
	path   string
	flag   string // names the path in errors
	writer string // the command, in errors
	mark   string // the mark of the command's files
	public bool   // other users may read the file

	own *os.File // written last, and open so that no other file gets its inode; nil: none yet
}

// check returns an error if there is a file at the path that the command may not replace.
func (f *ownFile) check() error {
	if f.path == "" {
		return nil
	}
	_, err := f.replaceable()
	return err
}

// replaceable returns the file at the path if the command wrote it, or nil if no file is there.
// Any other file is an error.
func (f *ownFile) replaceable() (fs.FileInfo, error) {
	info, err := os.Lstat(f.path) // does not follow links
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.flag, err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: %s is not a regular file; name one that does not exist", f.flag, f.path)
	}
	if f.isOwn(info) || f.own == nil && isMarked(f.path, f.mark) {
		return info, nil
	}
	return nil, fmt.Errorf("%s: %s did not write %s and does not replace it; remove it or name another file", f.flag, f.writer, f.path)
}

// write writes a new file, or replaces the old one atomically, so that no reader sees a
// part of the text.
func (f *ownFile) write(text string) (err error) {
	old, err := f.replaceable()
	if err != nil {
		return err
	}
	if old == nil {
		file, err := os.OpenFile(f.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return fmt.Errorf("writing %s: %w", f.path, err)
		}
		if err := f.fill(file, text); err != nil {
			return errors.Join(fmt.Errorf("writing %s: %w", f.path, err), file.Close(), os.Remove(f.path))
		}
		f.own = file
		return nil
	}
	temp, err := os.CreateTemp(filepath.Dir(f.path), ".broker-*") // mode 0600
	if err != nil {
		return fmt.Errorf("writing %s: %w", f.path, err)
	}
	if err = f.fill(temp, text); err == nil {
		err = os.Rename(temp.Name(), f.path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("writing %s: %w", f.path, err), temp.Close(), os.Remove(temp.Name()))
	}
	if f.own != nil {
		_ = f.own.Close() // its content was replaced
	}
	f.own = temp
	return nil
}

// fill writes the text to a new file of mode 0600.
func (f *ownFile) fill(file *os.File, text string) error {
	mark(file, f.mark)
	if f.public {
		if err := file.Chmod(0o644); err != nil {
			return err
		}
	}
	_, err := file.WriteString(text)
	return err
}

// isOwn reports whether a file is the one that this process wrote last.
func (f *ownFile) isOwn(info fs.FileInfo) bool {
	if f.own == nil {
		return false
	}
	own, err := f.own.Stat()
	return err == nil && os.SameFile(info, own)
}

// remove removes the file if it is still the one that the command wrote.
func (f *ownFile) remove() error {
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
