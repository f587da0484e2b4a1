package service

import (
	"errors"
	"fmt"
	"net"
	"syscall"
)

// PeerOf returns the process at the other end of a Unix socket, as the system knows it
// since that process connected.
func PeerOf(c net.Conn) (Peer, error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return Peer{}, errors.New("not a Unix socket")
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return Peer{}, fmt.Errorf("reading the peer's credentials: %w", err)
	}
	var cred *syscall.Ucred
	var inner error
	if err := raw.Control(func(fd uintptr) {
		cred, inner = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); err != nil || inner != nil {
		return Peer{}, fmt.Errorf("reading the peer's credentials: %w", errors.Join(err, inner))
	}
	return Peer{UID: int(cred.Uid), PID: int(cred.Pid)}, nil
}
