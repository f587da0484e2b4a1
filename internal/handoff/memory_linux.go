package handoff

import (
	"os"
	"path/filepath"
	"syscall"
)

// Types of file systems in memory (statfs(2)).
const (
	tmpfs = 0x01021994
	ramfs = 0x858458f6
)

// memoryFolders returns the folders in memory in which this user may create folders that
// other users can't replace.
func memoryFolders() []string {
	var all []string
	for _, path := range []string{os.Getenv("XDG_RUNTIME_DIR"), "/dev/shm"} {
		if filepath.IsAbs(path) && isInMemory(path) && isSafe(path) {
			all = append(all, path)
		}
	}
	return all
}

func isInMemory(path string) bool {
	var fs syscall.Statfs_t
	if syscall.Statfs(path, &fs) != nil {
		return false
	}
	kind := uint32(fs.Type) // signed or not, by architecture
	return kind == tmpfs || kind == ramfs
}

// isSafe reports whether no other user can rename folders of ours in the folder.
func isSafe(path string) bool {
	info, err := os.Stat(path)
	if err != nil || !info.IsDir() {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	owned := ok && (stat.Uid == 0 || int(stat.Uid) == os.Geteuid())
	return owned && (info.Mode()&os.ModeSticky != 0 || info.Mode().Perm()&0o022 == 0)
}
