package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/user"
	"strconv"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"accessbroker.internal/internal/service"
)

// A peerSocket is a Unix socket that belongs to one caller.
type peerSocket struct {
	path string
	peer string // of --peer
}

// addPeer adds --peer. The command adds --socket, because the words differ.
func (p *peerSocket) addPeer(c *cobra.Command) {
	c.Flags().StringVar(&p.peer, "peer", "", "with --socket: the user who may connect, by name or number (default: the user of this process)")
}

// listen returns a listener that accepts the connections of the caller alone. refuse
// tells any other why its connection ends.
func (p *peerSocket) listen(log *slog.Logger, refuse func(net.Conn, error)) (*peerListener, error) {
	uid, err := userID(p.peer)
	if err != nil {
		return nil, err
	}
	l, err := service.ListenSocket(p.path)
	if err != nil {
		return nil, err
	}
	if uid != os.Geteuid() {
		if err := l.Give(uid); err != nil {
			_ = l.Close()
			return nil, fmt.Errorf("giving the socket to --peer: %w", err)
		}
	}
	return &peerListener{Socket: l, claim: &claim{uid: uid}, log: log, refuse: refuse}, nil
}

// A peerListener is the listener of a peerSocket.
type peerListener struct {
	*service.Socket
	claim  *claim
	log    *slog.Logger
	refuse func(net.Conn, error)
}

// Accept returns the next connection of the caller.
func (l *peerListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Socket.Accept()
		if err != nil {
			return nil, err
		}
		if err := l.claim.take(c); err != nil {
			l.log.Warn("connection refused", "err", err)
			l.refuse(c, err)
			continue
		}
		return c, nil
	}
}

// maxMCPStreams bounds the connections of the caller.
const maxMCPStreams = 16

// serveMCP serves the connections of the caller until ctx ends.
func (p *peerSocket) serveMCP(ctx context.Context, log *slog.Logger, each func(context.Context, io.ReadWriteCloser) error) error {
	l, err := p.listen(log, refuseStream)
	if err != nil {
		return err
	}
	return serveStreams(ctx, l, log, each)
}

// serveStreams serves the connections of a listener, and closes it at the end.
func serveStreams(ctx context.Context, l *peerListener, log *slog.Logger, each func(context.Context, io.ReadWriteCloser) error) error {
	defer func() { _ = l.Close() }() // ends Accept below, then again without effect
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	streams := new(errgroup.Group)
	streams.SetLimit(maxMCPStreams)
	for {
		c, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			_ = streams.Wait() // they end with ctx
			return nil
		case err != nil:
			return fmt.Errorf("accepting a connection: %w", err)
		}
		if !streams.TryGo(func() error { serveStream(ctx, log, c, each); return nil }) {
			refuseStream(c, fmt.Errorf("this socket serves at most %d connections", maxMCPStreams))
		}
	}
}

func serveStream(ctx context.Context, log *slog.Logger, c net.Conn, each func(context.Context, io.ReadWriteCloser) error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer func() { _ = c.Close() }()
	if err := each(ctx, c); err != nil {
		log.Info("connection ended", "err", err)
	}
}

// refuseStream tells a client why its connection ends.
func refuseStream(c net.Conn, err error) {
	_, _ = fmt.Fprintf(c, `{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":%q}}`+"\n", "access-broker: "+err.Error())
	_ = c.Close()
}

// A claim is whom a socket belongs to: one user and, while it is alive, one process. The
// socket's mode keeps other users out; the check of the user is the second wall.
type claim struct {
	uid int

	mu      sync.Mutex
	pid     int
	started string // tells the process from a later one with the same number
}

// take checks the peer of a new connection, and claims the socket for its process.
func (m *claim) take(c net.Conn) error {
	peer, err := service.PeerOf(c)
	switch {
	case err != nil:
		return err
	case peer.UID != m.uid:
		return fmt.Errorf("the socket belongs to user %d, not to user %d", m.uid, peer.UID)
	case peer.PID == 0:
		return errors.New("this system does not name the process that connects: use standard input and output")
	}
	started := startOf(peer.PID)
	if started == "" {
		return fmt.Errorf("process %d has ended", peer.PID)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.pid != 0 && (m.pid != peer.PID || m.started != started) && startOf(m.pid) == m.started {
		return fmt.Errorf("the socket belongs to process %d", m.pid)
	}
	m.pid, m.started = peer.PID, started
	return nil
}

// startOf returns when a process started, in the system's ticks; empty if it has ended
// (proc(5), field 22 of stat).
func startOf(pid int) string {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return ""
	}
	// The name of the program, in parentheses, may contain anything.
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	const state, startTime = 0, 19
	if len(fields) <= startTime || fields[state] == "Z" || fields[state] == "X" {
		return ""
	}
	return fields[startTime]
}

// userID returns the number of a user; of this process's user for an empty name.
func userID(name string) (int, error) {
	if name == "" {
		return os.Geteuid(), nil
	}
	if uid, err := strconv.ParseUint(name, 10, 31); err == nil {
		return int(uid), nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return 0, usage("--peer: there is no user %q", name)
	}
	return strconv.Atoi(u.Uid)
}
