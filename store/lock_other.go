//go:build !unix

package store

import (
	"errors"
	"os"
)

const noFollow = 0

// lockFile fails: without a lock that ends with the process, two brokers could
// write to one database.
func lockFile(string) (*os.File, error) {
	return nil, errors.New("locking the database: this system has no flock; run the broker on Linux, macOS or a BSD")
}

type fileID struct{}

func statFile(string) (fileID, error) { return fileID{}, errors.ErrUnsupported }

func openDatabase(string) (int, fileID, error) { return -1, fileID{}, errors.ErrUnsupported }

func closeDatabase(int) error { return nil }

func lockPartial(*os.File) error { return nil }

func ownAs(string, string) {}
