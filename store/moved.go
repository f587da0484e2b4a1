package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// movedMarker is the file that keeps brokers from serving a database that was copied.
func movedMarker(path string) string { return path + ".moved" }

// checkMoved returns an error if the database was copied to another one, which brokers
// serve now.
func checkMoved(path string) error {
	text, err := os.ReadFile(movedMarker(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	first, _, _ := strings.Cut(string(text), "\n")
	return fmt.Errorf("%s Serving it again would fork the log: serve the copy, or remove %s if the copy is given up", first, movedMarker(path))
}
