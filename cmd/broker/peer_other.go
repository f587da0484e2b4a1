//go:build !linux

package main

import (
	"net"
	"os"
)

// peerUID trusts the socket's mode where the system is not asked who connects.
func peerUID(net.Conn) (int, error) { return os.Geteuid(), nil }
