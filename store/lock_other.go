//go:build !unix

package store

import (
	"errors"
	"os"
)

// lockFile fails: without a lock that ends with the process, two brokers could
// write to one database.
func lockFile(string) (*os.File, error) {
	return nil, errors.New("locking the database: this system has no flock; run the broker on Linux, macOS or a BSD")
}
