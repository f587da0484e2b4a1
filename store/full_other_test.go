//go:build !linux

package store

import "testing"

func smallDisk(t *testing.T, _ string) string {
	t.Helper()
	t.Skip("mounting a small disk works only on Linux")
	return ""
}
