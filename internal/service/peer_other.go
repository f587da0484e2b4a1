//go:build !linux

package service

import (
	"net"
	"os"
)

// PeerOf trusts the socket's mode: the peer's credentials are read on Linux only.
func PeerOf(net.Conn) (Peer, error) { return Peer{UID: os.Geteuid()}, nil }
