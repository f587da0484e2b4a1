//go:build !linux

package handoff

import "os"

// memoryFolders returns the folder for temporary files: other systems have no file system
// in memory at a known path.
func memoryFolders() []string { return []string{os.TempDir()} }
