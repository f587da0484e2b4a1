package store

import (
	"errors"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"accessbroker.internal/broker"
	"accessbroker.internal/internal/storetest"
)

// A file system that is unmounted lazily keeps its open files, like a removed folder.
func TestUnmountedDatabase(t *testing.T) {
	storetest.OnlySQLite(t, "the files are the server's")
	dir := smallDisk(t, "16m")
	s := open(t, filepath.Join(dir, "broker.db"))
	works(t, s)
	if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	i := newIssuance(t, 1)
	if err := i.store(t.Context(), s); !errors.Is(err, broker.ErrUnavailable) || !strings.Contains(err.Error(), "was removed or moved") {
		t.Errorf("got %v", err)
	}
	// The folder is a mount again, which smallDisk unmounts.
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	if err := i.store(t.Context(), s); !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("with another file system: got %v", err)
	}
}
