package service

import (
	"errors"
	"fmt"
	"net"
	"syscall"
)

// peerUID returns the user ID of the process at the other end of a Unix socket.
func peerUID(c net.Conn) (int, error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return 0, errors.New("not a Unix socket")
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("reading the peer's credentials: %w", err)
	}
	var cred *syscall.Ucred
	var inner error
	if err := raw.Control(func(fd uintptr) {
		cred, inner = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); err != nil || inner != nil {
		return 0, fmt.Errorf("reading the peer's credentials: %w", errors.Join(err, inner))
	}
	return int(cred.Uid), nil
}
