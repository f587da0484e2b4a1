//go:build unix

package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// noFollow refuses a symbolic link: who may write to the folder must not have root write to
// another file.
const noFollow = syscall.O_NOFOLLOW

// lockFile makes this process the only writer of a database. The operating system
// releases the lock when the process ends, even by a crash.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|noFollow, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking the database: %w", err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		by, _ := os.ReadFile(path)
		_ = f.Close()
		return nil, fmt.Errorf("the database is in use by another broker (%s); SQLite serves one at a time: stop that one, or use another database", strings.TrimSpace(string(by)))
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("locking %s: %w", path, err)
	}
	// The process id is only for the message above.
	_ = f.Truncate(0)
	_, _ = fmt.Fprintf(f, "process %d\n", os.Getpid())
	return f, nil
}

// A fileID identifies a file, whatever its path. No other file has it while
// a process has the file open.
type fileID struct{ device, inode uint64 }

// idOf converts, because the types of the fields differ between systems.
func idOf(st *syscall.Stat_t) fileID { return fileID{uint64(st.Dev), uint64(st.Ino)} }

// statFile returns the ID of the file at a path.
func statFile(path string) (fileID, error) {
	var st syscall.Stat_t
	for {
		switch err := syscall.Stat(path, &st); err {
		case nil:
			return idOf(&st), nil
		case syscall.EINTR:
		default:
			return fileID{}, &os.PathError{Op: "stat", Path: path, Err: err}
		}
	}
}

// openDatabase creates the database file if necessary, and locks the file itself:
// a hard link, a bind mount or a removed .lock file leads a second process to the
// same file. The lock ends with the process.
//
// It returns a descriptor and not an *os.File, because the descriptor must stay
// open until SQLite has closed the file: a process that closes any descriptor of a
// file loses all of its POSIX locks on that file, which are SQLite's locks (POSIX,
// fcntl). This holds for a refused second Open in the same process, too, so a
// descriptor that is refused is never closed.
func openDatabase(path string) (fd int, id fileID, err error) {
	// SQLite would create the file with another mode, and its -wal and -shm
	// files get the mode of the database.
	if fd, err = syscall.Open(path, syscall.O_RDWR|syscall.O_CREAT|syscall.O_CLOEXEC, 0o600); err != nil {
		return -1, fileID{}, &os.PathError{Op: "open", Path: path, Err: err}
	}
	var st syscall.Stat_t
	if err := syscall.Fstat(fd, &st); err != nil {
		return -1, fileID{}, &os.PathError{Op: "fstat", Path: path, Err: err}
	}
	switch err := lockDatabase(fd); {
	case errors.Is(err, syscall.EWOULDBLOCK):
		return -1, fileID{}, errors.New("the database is in use by another broker, which opened it by another path or whose .lock file was removed; SQLite serves one at a time: stop that one, or use another database")
	case err != nil:
		return -1, fileID{}, fmt.Errorf("locking %s: %w", path, err)
	}
	return fd, idOf(&st), nil
}

// closeDatabase closes the descriptor of openDatabase. Call it after SQLite has
// closed the file.
func closeDatabase(fd int) error { return syscall.Close(fd) }

// lockPartial locks a file that is being written. The lock ends with the process.
func lockPartial(f *os.File) error {
	err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return errors.New("another process is writing it")
	}
	return err
}

// ownAs gives a file that root has made to the owner of a database, or to that of its folder
// if there is none: the broker does not run as root.
func ownAs(path, database string) {
	if os.Geteuid() != 0 {
		return
	}
	var st syscall.Stat_t
	if syscall.Stat(database, &st) != nil && syscall.Stat(filepath.Dir(database), &st) != nil {
		return
	}
	_ = os.Lchown(path, int(st.Uid), int(st.Gid))
}
