//go:build unix

package store

import (
	"io/fs"
	"os"
	"syscall"
)

// ownedByRoot reports whether a file belongs to root.
func ownedByRoot(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && st.Uid == 0
}

// ownedByAnother reports whether a file belongs to neither this user nor the owner of its
// folder.
func ownedByAnother(info fs.FileInfo, folder string) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || int(st.Uid) == os.Geteuid() {
		return false
	}
	var of syscall.Stat_t
	return syscall.Stat(folder, &of) != nil || of.Uid != st.Uid
}

// hasOtherNames reports whether a file has other names (hard links).
func hasOtherNames(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && st.Nlink > 1
}
