package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// URL returns the URL of the database at a path.
func URL(path string) string { return scheme + path }

// FilePath returns the path of a database that is given as a URL or as a path.
func FilePath(urlOrPath string) string { return strings.TrimPrefix(urlOrPath, scheme) }

// HeaderSize is the number of bytes that IsDatabase needs.
const HeaderSize = len(sqliteHeader)

// sqliteHeader is the start of every SQLite database.
const sqliteHeader = "SQLite format 3\x00"

// IsDatabase reports whether a file that begins with these bytes is a database.
func IsDatabase(start []byte) bool { return strings.HasPrefix(string(start), sqliteHeader) }

// sqlitePath returns the absolute path of a sqlite: URL.
func sqlitePath(u string) (string, error) {
	path, err := ParseURL(u)
	if err != nil {
		return "", err
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("finding the store %s: %w", path, err)
	}
	// The lock is next to the database: all links to one database have to lead
	// to one lock.
	if real, err := filepath.EvalSymlinks(abs); err == nil {
		return real, nil
	}
	return abs, nil
}

// writeFile writes a file with mode 0600, completely or not at all.
func writeFile(path string, content []byte) (err error) {
	temp := path + ".new"
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|noFollow, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	return os.Rename(temp, path)
}
