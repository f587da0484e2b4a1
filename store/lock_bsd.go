//go:build unix && !linux

package store

// lockDatabase does nothing: on these systems, the lock would conflict with the
// POSIX locks by which SQLite coordinates the readers of the file. The .lock file
// is the only lock.
func lockDatabase(int) error { return nil }
