package inbound

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// settle is how long handshakes in flight get to finish once the kernel refuses new
// ones. It is longer than a round trip.
const settle = 250 * time.Millisecond

// Drain stops new connections and waits until those that clients have already opened
// are accepted, or until ctx ends. Close the listener afterwards.
//
// If a listener closes, the kernel resets the connections that it holds for accept:
// their clients have connected and may have sent requests, so they do not know that
// nothing was done. So the kernel first ignores new connections. Their clients send
// again after a second, and are then refused.
func (l *Listener) Drain(ctx context.Context) error {
	socket, ok := l.Listener.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return fmt.Errorf("draining %s: %w", l.Addr(), err)
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = ignoreNew(int(fd)) }); err != nil || inner != nil {
		return fmt.Errorf("draining %s: %w", l.Addr(), errors.Join(err, inner))
	}
	for wait := settle; ; wait = 5 * time.Millisecond {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		var info *unix.TCPInfo
		if err := raw.Control(func(fd uintptr) { info, inner = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }); err != nil || inner != nil {
			return fmt.Errorf("draining %s: %w", l.Addr(), errors.Join(err, inner))
		}
		if info.Unacked == 0 { // of a listening socket: the connections that wait for accept
			return nil
		}
	}
}

// ignoreNew attaches a filter (socket(7), SO_ATTACH_FILTER) that drops segments with SYN
// and without ACK. The filter sees a segment from its TCP header on; byte 13 has the
// flags (RFC 9293, section 3.1).
func ignoreNew(fd int) error {
	const syn, ack, accept = 0x02, 0x10, 0xffffffff
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 13},
		{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, K: ack, Jt: 2},
		{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, K: syn, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
		{Code: unix.BPF_RET | unix.BPF_K, K: accept},
	}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
}
