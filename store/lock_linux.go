package store

import "syscall"

// lockDatabase locks an open file. On Linux, this lock is independent of the POSIX
// locks by which SQLite coordinates the readers of the file.
func lockDatabase(fd int) error { return syscall.Flock(fd, syscall.LOCK_EX|syscall.LOCK_NB) }
