package store

import (
	"syscall"
	"testing"
)

// bindMount shows a file at another path. Only root can.
func bindMount(t *testing.T, file, at string) error {
	t.Helper()
	err := syscall.Mount(file, at, "", syscall.MS_BIND, "")
	if err == nil {
		t.Cleanup(func() {
			if err := syscall.Unmount(at, syscall.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
	}
	return err
}
