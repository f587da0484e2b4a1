package handoff

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"accessbroker.internal/api"
)

// TokenHelper is the name under which this program is the token helper of the Vault
// command: it prints the token of the folder.
const TokenHelper = "broker-token-helper"

// prefix begins the names of the folders.
const prefix = "access-broker-"

// current is the link to the folder of the files in force.
const current = "current"

// A Folder is a folder in memory, which no other user can enter, with the files of one
// credential. It is not safe for concurrent use.
type Folder struct {
	path string
	lock *os.File // the folder itself, locked while this process uses it

	credential *api.Credential // written last
	earlier    string          // the folder of the files before those in force
	files      []file
	lookup     func(string) (string, bool)
}

// ErrNoMemory means that this machine has no file system in memory that this user can
// write to.
var ErrNoMemory = errors.New("no folder in memory: XDG_RUNTIME_DIR and /dev/shm are missing, or not in memory")

// NewFolder creates a folder. It also removes those of processes that have ended without
// doing so.
func NewFolder() (*Folder, error) {
	for _, base := range memoryFolders() {
		removeStale(base)
		if f, err := newFolderIn(base); err == nil {
			return f, nil
		}
	}
	return nil, ErrNoMemory
}

func newFolderIn(base string) (*Folder, error) {
	for {
		path, err := os.MkdirTemp(base, prefix) // mode 0700
		if err != nil {
			return nil, err
		}
		lock, err := os.Open(path)
		if err != nil {
			if errors.Is(err, os.ErrNotExist) {
				continue // another process took it for a stale one before it was locked
			}
			return nil, err
		}
		err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX)
		held, statErr := lock.Stat()
		if now, lstatErr := os.Lstat(path); err == nil && statErr == nil && lstatErr == nil && os.SameFile(now, held) {
			return &Folder{path: path, lock: lock, lookup: os.LookupEnv}, nil
		}
		_ = lock.Close()
		if err != nil {
			return nil, errors.Join(err, os.Remove(path))
		}
	}
}

// removeStale removes this user's folders that no process has locked.
func removeStale(base string) {
	paths, _ := filepath.Glob(filepath.Join(base, prefix+"*")) // the pattern is valid
	for _, path := range paths {
		info, err := os.Lstat(path)
		if err != nil || !info.IsDir() || !isOurs(info) {
			continue
		}
		folder, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_DIRECTORY, 0)
		if err != nil {
			continue
		}
		if syscall.Flock(int(folder.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			_ = os.RemoveAll(path) // does not follow links
		}
		_ = folder.Close()
	}
}

func isOurs(info os.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(stat.Uid) == os.Geteuid()
}

// Write writes the files of a credential in place of those of an earlier one. A reader
// finds either all of the earlier files, or all of the new ones.
func (f *Folder) Write(c *api.Credential) error {
	files := filesOf(c, f.dir())
	next, err := os.MkdirTemp(f.path, "")
	if err != nil {
		return fmt.Errorf("writing the credential: %w", err)
	}
	if err := f.fill(next, c, files); err != nil {
		return errors.Join(fmt.Errorf("writing the credential: %w", err), os.RemoveAll(next))
	}
	last, _ := os.Readlink(f.dir()) // none before the first
	if err := os.Rename(next+".link", f.dir()); err != nil {
		return errors.Join(fmt.Errorf("writing the credential: %w", err), os.RemoveAll(next))
	}
	// A reader may have followed the link already, so the files that it led to stay until
	// the next time.
	gone := f.earlier
	f.credential, f.files, f.earlier = c, files, last
	if gone == "" {
		return nil
	}
	return os.RemoveAll(filepath.Join(f.path, filepath.Base(gone)))
}

// fill writes the files to a folder, and a link to it.
func (f *Folder) fill(folder string, c *api.Credential, files []file) error {
	for _, file := range files {
		if err := os.WriteFile(filepath.Join(folder, file.name), []byte(file.text), 0o600); err != nil {
			return err
		}
	}
	if c.Type == "vault" {
		program, err := os.Executable()
		if err == nil {
			err = os.Symlink(program, filepath.Join(folder, TokenHelper))
		}
		if err != nil {
			return err
		}
	}
	return os.Symlink(filepath.Base(folder), folder+".link")
}

// dir is the path by which children find the files.
func (f *Folder) dir() string { return filepath.Join(f.path, current) }

// Environment returns the environment of a child that reads the credential written last.
func (f *Folder) Environment() Environment {
	return environmentOf(f.credential, f.files, f.dir(), f.lookup)
}

// Close removes the folder.
func (f *Folder) Close() error {
	defer func() { _ = f.lock.Close() }()
	if err := os.RemoveAll(f.path); err != nil {
		return fmt.Errorf("removing the credential: %w", err)
	}
	return nil
}

// HelpWithToken is the token helper of the Vault command: its argument is what to do, and
// it returns what to print. It reads the token next to the link by which it was started.
func HelpWithToken(arg0 string, args []string) (string, error) {
	switch strings.Join(args, " ") {
	case "get":
		text, err := os.ReadFile(filepath.Join(filepath.Dir(arg0), "credential"))
		if err != nil {
			return "", fmt.Errorf("reading the token: %w", err)
		}
		return string(text), nil
	case "erase":
		return "", nil // the broker revokes the token when the command ends
	}
	return "", errors.New("this command has the token of broker exec, and no place for another one")
}
