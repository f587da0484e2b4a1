//go:build unix

package service

import (
	"errors"
	"net"
	"os"
	"syscall"
	"time"
)

// folderLockTimeout bounds the wait for another process that is creating or removing
// its socket.
const folderLockTimeout = 2 * time.Second

// lockFolder makes this process the only one that creates or removes sockets in a
// folder. The lock leaves no file behind.
func lockFolder(path string) (unlock func(), err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	for end := time.Now().Add(folderLockTimeout); ; time.Sleep(10 * time.Millisecond) {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil || !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) || time.Now().After(end) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() { _ = f.Close() }, nil
}

// isServed reports whether a process listens on the socket. Only the system's refusal
// proves that none does: a full backlog, for example, is a process.
func isServed(path string) (bool, error) {
	c, err := net.DialTimeout("unix", path, socketDialTimeout)
	if err == nil {
		_ = c.Close()
		return true, nil
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		return false, nil
	}
	if errors.Is(err, syscall.EAGAIN) || os.IsTimeout(err) {
		return true, nil
	}
	return false, err
}
