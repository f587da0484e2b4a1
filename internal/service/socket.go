package service

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"
)

const (
	socketDialTimeout = time.Second
	socketCheckEvery  = time.Second
)

// A Socket listens on a path of the file system. It never deletes a file that is
// not its own: ListenSocket refuses a path at which there is anything but a socket
// that no process serves, and Close removes the socket only if it is still the one
// that was created.
type Socket struct {
	path string

	mu     sync.Mutex
	l      *net.UnixListener // guarded by mu
	own    fs.FileInfo       // the socket's file; guarded by mu
	closed bool              // guarded by mu
}

// ListenSocket listens on a socket that only its owner and root can connect to. It
// replaces the socket of a process that has ended.
func ListenSocket(path string) (*Socket, error) {
	s := &Socket{path: path}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("creating the socket's folder: %w", err)
	}
	unlock, err := lockFolder(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("locking the socket's folder: %w", err)
	}
	defer unlock()
	if err := removeUnserved(path); err != nil {
		return nil, err
	}
	return s, s.open()
}

// removeUnserved removes the socket of a process that has ended. It returns an error
// if there is another kind of file at the path, or if a process serves the socket.
func removeUnserved(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("listening on %s: %w", path, err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("listening on %s: the path is in use by %s; name a path that does not exist", path, kindOf(info))
	}
	served, err := isServed(path)
	if err != nil {
		return fmt.Errorf("listening on %s: the socket exists, and whether a process serves it is unknown (%w); stop that process or remove the socket", path, err)
	}
	if served {
		return fmt.Errorf("listening on %s: another process serves this socket; stop that process, or name another path", path)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("removing the socket of an ended process: %w", err)
	}
	return nil
}

func kindOf(info fs.FileInfo) string {
	switch t := info.Mode().Type(); {
	case t == 0:
		return "a file"
	case t.IsDir():
		return "a folder"
	case t&fs.ModeSymlink != 0:
		return "a symbolic link"
	}
	return "something that is not a socket"
}

// open creates the socket. The folder is locked, and mu is held or s is not shared.
func (s *Socket) open() error {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: s.path, Net: "unix"})
	if err != nil {
		return fmt.Errorf("listening on %s: %w", s.path, err)
	}
	l.SetUnlinkOnClose(false) // Close decides
	if s.own, err = restrict(s.path); err != nil {
		return errors.Join(fmt.Errorf("restricting the socket: %w", err), l.Close())
	}
	s.l = l
	return nil
}

// restrict lets only the owner connect to a new socket, and returns its file. A user who may
// write to the folder may replace the socket at any time, so no link leads out of the folder.
func restrict(path string) (fs.FileInfo, error) {
	folder, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer func() { _ = folder.Close() }()
	name := filepath.Base(path)
	own, err := folder.Lstat(name)
	if err != nil {
		return nil, err
	}
	if own.Mode().Type() != fs.ModeSocket {
		return nil, errReplaced
	}
	return own, folder.Chmod(name, 0o600)
}

// Give makes another user the owner of the socket. The user may write to the folder, and
// replace the socket by a link to a file of root: the link is not followed.
func (s *Socket) Give(uid int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.check(); err != nil {
		return err
	}
	return os.Lchown(s.path, uid, -1)
}

// current returns the listener, or nil after Close.
func (s *Socket) current() *net.UnixListener {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	return s.l
}

// Accept implements net.Listener.
func (s *Socket) Accept() (net.Conn, error) {
	for {
		l := s.current()
		if l == nil {
			return nil, net.ErrClosed
		}
		c, err := l.Accept()
		if err == nil || l == s.current() {
			return c, err
		}
	}
}

// Addr implements net.Listener.
func (s *Socket) Addr() net.Addr { return &net.UnixAddr{Name: s.path, Net: "unix"} }

// Close stops listening and removes the socket if it is still this one. The file is
// compared before the listener closes: until then, the inode cannot be reused.
func (s *Socket) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	s.closed = true
	var err error
	if unlock, lockErr := lockFolder(filepath.Dir(s.path)); lockErr == nil {
		defer unlock()
		if s.check() == nil {
			err = os.Remove(s.path)
		}
	}
	return errors.Join(err, s.l.Close())
}

var errReplaced = errors.New("another file has taken the place of the socket")

// check returns nil if the path still leads to this socket, fs.ErrNotExist if the
// socket was deleted, or errReplaced. The caller holds mu.
func (s *Socket) check() error {
	info, err := os.Lstat(s.path)
	if err != nil {
		return err
	}
	if !os.SameFile(info, s.own) {
		return errReplaced
	}
	return nil
}

// Watch creates the socket again when it was deleted, and logs when no one can reach
// this process by it any more. It returns when ctx ends.
func (s *Socket) Watch(ctx context.Context, log *slog.Logger) error {
	tick := time.NewTicker(socketCheckEvery)
	defer tick.Stop()
	var last string
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		restored, err := s.restore()
		text := ""
		if err != nil {
			text = err.Error()
		}
		switch {
		case restored:
			log.WarnContext(ctx, "the socket was deleted; created it again", "path", s.path)
		case err != nil && text != last:
			log.ErrorContext(ctx, "the socket no longer leads to this process", "path", s.path, "err", err)
		case err == nil && last != "":
			log.InfoContext(ctx, "the socket leads to this process again", "path", s.path)
		}
		last = text
	}
}

// restore creates the socket again if it was deleted.
func (s *Socket) restore() (restored bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false, nil
	}
	if err := s.check(); !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	unlock, err := lockFolder(filepath.Dir(s.path))
	if err != nil {
		return false, err
	}
	defer unlock()
	old := s.l
	if err := s.open(); err != nil {
		return false, err
	}
	_ = old.Close() // Accept continues with the new listener
	return true, nil
}
