package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// A Direction is one of the two ways through a relay.
type Direction int

// Directions.
const (
	Up   Direction = iota // from the client to the server
	Down                  // from the server to the client
)

// A Relay passes connections on to a server, and disturbs them on request. It is safe for
// concurrent use.
type Relay struct {
	listener net.Listener

	mu      sync.Mutex
	target  string
	refuse  bool
	held    [2]bool
	delay   [2]time.Duration
	links   map[*link]bool
	changed chan struct{} // closed by the next change
	trap    *Trap
}

// A link is one connection through the relay.
type link struct {
	client, server net.Conn
	trap           *Trap // that it has triggered; nil: none. Guarded by the relay's mutex.
	closed         chan struct{}
	once           sync.Once
}

// reset closes both connections at once, as a firewall does that forgets them.
func (l *link) reset() {
	l.once.Do(func() { close(l.closed) })
	for _, c := range []net.Conn{l.client, l.server} {
		if tcp, ok := c.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		_ = c.Close()
	}
}

// A Trap waits for bytes that a client sends, and cuts the connection there.
type Trap struct {
	Match []byte // in the client's bytes; at most 32

	// Answer, in the server's bytes that follow, proves that the server has acted. The
	// relay passes Match on, keeps the server's bytes from the client, and cuts the
	// connection when Answer arrives. Without it, Match does not reach the server.
	Answer []byte

	sprung chan struct{}
}

// Sprung returns a channel that is closed when the trap has cut a connection.
func (t *Trap) Sprung() <-chan struct{} { return t.sprung }

// NewRelay starts a relay on a free port of loopback.
func NewRelay(target string) (*Relay, error) {
	port, err := FreePort()
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return nil, fmt.Errorf("starting a relay: %w", err)
	}
	r := &Relay{listener: l, target: target, links: map[*link]bool{}, changed: make(chan struct{})}
	go r.accept()
	return r, nil
}

// Address returns the address on which the relay listens.
func (r *Relay) Address() string { return r.listener.Addr().String() }

// Port returns the port on which the relay listens.
func (r *Relay) Port() int { return r.listener.Addr().(*net.TCPAddr).Port }

// Close ends the relay and its connections.
func (r *Relay) Close() {
	_ = r.listener.Close()
	r.Reset()
}

func (r *Relay) change(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
	close(r.changed)
	r.changed = make(chan struct{})
}

// SetTarget makes new connections go to another server. The existing ones stay.
func (r *Relay) SetTarget(address string) { r.change(func() { r.target = address }) }

// Reset cuts the existing connections once. New ones work.
func (r *Relay) Reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for l := range r.links {
		l.reset()
	}
}

// Cut cuts the existing connections and refuses new ones until Heal.
func (r *Relay) Cut() {
	r.change(func() { r.refuse = true })
	r.Reset()
}

// Blackhole holds all bytes in the given directions, by default both, until Heal. The
// connections stay open, and new ones are accepted.
func (r *Relay) Blackhole(directions ...Direction) {
	if len(directions) == 0 {
		directions = []Direction{Up, Down}
	}
	r.change(func() {
		for _, d := range directions {
			r.held[d] = true
		}
	})
}

// Delay delays all bytes of a direction until Heal.
func (r *Relay) Delay(d Direction, by time.Duration) { r.change(func() { r.delay[d] = by }) }

// Heal ends Cut, Blackhole and Delay, and removes a trap. Held bytes are passed on.
func (r *Relay) Heal() {
	r.change(func() { r.refuse, r.held, r.delay, r.trap = false, [2]bool{}, [2]time.Duration{}, nil })
}

// SetTrap sets a trap for the first connection that it matches.
func (r *Relay) SetTrap(match, answer string) *Trap {
	t := &Trap{Match: []byte(match), Answer: []byte(answer), sprung: make(chan struct{})}
	r.change(func() { r.trap = t })
	return t
}

// Connections returns the number of open connections.
func (r *Relay) Connections() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.links)
}

func (r *Relay) accept() {
	for {
		client, err := r.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			go r.serve(client)
		}
	}
}

func (r *Relay) serve(client net.Conn) {
	r.mu.Lock()
	target, refuse := r.target, r.refuse
	r.mu.Unlock()
	l := &link{client: client, server: client, closed: make(chan struct{})}
	if !refuse {
		if server, err := net.DialTimeout("tcp", target, 10*time.Second); err == nil {
			l.server = server
		} else {
			refuse = true
		}
	}
	if refuse {
		l.reset()
		return
	}
	r.mu.Lock()
	if r.refuse { // since
		l.reset()
	}
	r.links[l] = true
	r.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { r.pump(l, Up, l.client, l.server) })
	both.Go(func() { r.pump(l, Down, l.server, l.client) })
	both.Wait()
	_, _ = client.Close(), l.server.Close()
	r.mu.Lock()
	delete(r.links, l)
	r.mu.Unlock()
}

// maxMatch bounds the length of what a trap waits for.
const maxMatch = 32

// contains reports whether b contains text and text ends in the last n bytes of b.
func contains(b []byte, n int, text []byte) bool {
	return bytes.Contains(b[max(0, len(b)-n-len(text)+1):], text)
}

// pump passes the bytes of one direction on, until the connection ends.
func (r *Relay) pump(l *link, d Direction, from, to net.Conn) {
	buffer := make([]byte, 64<<10)
	var seen []byte // with the end of the previous bytes, because a match may be in two reads
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			seen = append(seen[max(0, len(seen)-maxMatch):], buffer[:n]...)
			if !r.pass(l, d, seen, n) {
				l.reset()
				return
			}
			if !r.swallows(l, d) {
				if _, err := to.Write(buffer[:n]); err != nil {
					l.reset()
					return
				}
			}
		}
		if err != nil {
			if tcp, ok := to.(*net.TCPConn); ok {
				_ = tcp.CloseWrite() // the other direction may still have bytes
			}
			return
		}
	}
}

// pass waits until the last n bytes may pass. It returns false if the connection has to be
// cut.
func (r *Relay) pass(l *link, d Direction, seen []byte, n int) bool {
	if !r.spring(l, d, seen, n) {
		return false
	}
	for {
		r.mu.Lock()
		held, delay, changed := r.held[d], r.delay[d], r.changed
		r.mu.Unlock()
		if !held {
			time.Sleep(delay)
			return true
		}
		select {
		case <-changed:
		case <-l.closed:
			return false
		}
	}
}

// spring looks for what the trap waits for. It returns false at the place of the cut.
func (r *Relay) spring(l *link, d Direction, seen []byte, n int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case d == Up && r.trap != nil && contains(seen, n, r.trap.Match):
		l.trap, r.trap = r.trap, nil
		if len(l.trap.Answer) == 0 {
			close(l.trap.sprung)
			return false
		}
	case d == Down && l.trap != nil && contains(seen, n, l.trap.Answer):
		close(l.trap.sprung)
		return false
	}
	return true
}

// swallows reports whether the server's bytes are kept from the client.
func (r *Relay) swallows(l *link, d Direction) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return d == Down && l.trap != nil
}
