package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// A start that is refused must not leave a new database behind: its log, which has
// a valid signature and no history, would verify.

// earlierFiles lists the files of a database that were there before Open.
type earlierFiles struct {
	path  string
	fresh bool            // there was no database, or an empty file
	was   map[string]bool // which of siblings were there
}

// siblings returns the paths of everything that belongs to a database, in the order
// in which Discard removes them: the lock comes last.
func siblings(path string) []string {
	return append(databaseFiles(path), path+".reserve", path+".rules", path+".lock")
}

// lockAndLook locks the .lock file and then looks which files there are: another broker
// could create or remove them until then.
func (s *Store) lockAndLook(path string) (err error) {
	s.before = earlierFiles{path: path, was: map[string]bool{}}
	if _, err := os.Lstat(path + ".lock"); err == nil {
		s.before.was[path+".lock"] = true
	}
	if s.lock, err = lockFile(path + ".lock"); err != nil {
		return err
	}
	for _, sibling := range append(databaseFiles(path), path+".reserve", path+".rules") {
		info, err := os.Lstat(sibling)
		missing := errors.Is(err, fs.ErrNotExist)
		if err != nil && !missing {
			return err
		}
		s.before.was[sibling] = !missing
		if sibling == path {
			s.before.fresh = missing || info.Mode().IsRegular() && info.Size() == 0
		}
	}
	return nil
}

// Fresh reports whether Open created the database.
func (s *Store) Fresh() bool { return s.before.fresh }

// Discard closes the store and removes the files that Open created: all of them if
// the database is new, and otherwise the reserve and the lock. A caller whose start
// fails calls it instead of Close.
func (s *Store) Discard() error { return s.shutDown(s.removeCreated) }

// removeCreated removes what Open created. SQLite must have closed the database, and
// the store must still have it locked.
func (s *Store) removeCreated() error {
	b := s.before
	if s.Shared() {
		return nil // the database is the server's
	}
	id, err := statFile(b.path)
	own := s.database >= 0 && err == nil && id == s.locked // a file of this store
	created := []string{b.path + ".reserve", b.path + ".lock"}
	switch {
	case b.fresh && own:
		created = siblings(b.path)
	case !own: // Open came no further than the lock, or the files are others now
		created = created[1:]
	}
	var errs []error
	for _, sibling := range created {
		if !b.was[sibling] {
			errs = append(errs, os.RemoveAll(sibling)) // .rules is a folder
		}
	}
	if b.fresh && own && b.was[b.path] {
		errs = append(errs, os.Truncate(b.path, 0))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("removing the files of a start that failed: %w", err)
	}
	return nil
}

// abort ends an Open that failed.
func (s *Store) abort() error { return s.shutDown(s.removeCreated) }
