// Package inbound accepts the connections of a server. It bounds their number, in
// total and for each address, finds out the address of a client behind trusted
// proxies, and stops accepting without losing a connection.
package inbound

import (
	"container/list"
	"context"
	"net"
	"net/http"
	"net/netip"
	"sync"
)

// Network returns the network that one party controls: an IPv4 address or an IPv6
// /64. The zero address has the zero network, which all unknown addresses share.
func Network(addr netip.Addr) netip.Prefix {
	addr = addr.Unmap().WithZone("")
	bits := addr.BitLen()
	if addr.Is6() {
		bits = 64
	}
	prefix, _ := addr.Prefix(bits)
	return prefix
}

// Limits bounds the open connections of the listeners that share it. It is safe for
// concurrent use.
//
// When the total is reached, a new connection takes the place of the one that has been
// idle for the longest time, or else of the oldest one without a request. So clients
// that hold connections without using them do not shut others out.
type Limits struct {
	total, perNetwork int

	mu       sync.Mutex
	open     int                  // guarded by mu
	networks map[netip.Prefix]int // guarded by mu; open connections
	idle     *list.List           // guarded by mu; of *Conn, the longest idle first
	silent   *list.List           // guarded by mu; of *Conn without a request, the oldest first
}

// NewLimits returns Limits for a total, and for one network (see Network). Zero means
// no bound.
func NewLimits(total, perNetwork int) *Limits {
	return &Limits{total: total, perNetwork: perNetwork, networks: map[netip.Prefix]int{}, idle: list.New(), silent: list.New()}
}

// Open returns the number of open connections.
func (l *Limits) Open() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.open
}

// A Conn is a connection that counts for its Limits until it is closed.
type Conn struct {
	net.Conn
	limits *Limits
	remote net.Addr
	early  []byte // was read with the PROXY header

	endsTLS bool // the proxy says that it ends the client's TLS connection

	network netip.Prefix  // guarded by limits.mu; zero: that of all unknown addresses
	counted bool          // guarded by limits.mu: for its network, not only for the total
	closed  bool          // guarded by limits.mu
	in      *list.List    // guarded by limits.mu: idle, silent or nil
	element *list.Element // guarded by limits.mu; in in
}

// enter counts a new connection. It returns nil and the cause if there are too many.
func (l *Limits) enter(c net.Conn) *Conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	var victim *Conn
	if l.total > 0 && l.open >= l.total {
		if victim = l.victim(); victim == nil {
			return nil
		}
		l.leave(victim)
		defer func() { go func() { _ = victim.Conn.Close() }() }() // closing may take a while
	}
	l.open++
	conn := &Conn{Conn: c, limits: l, remote: c.RemoteAddr()}
	l.move(conn, l.silent)
	return conn
}

func (l *Limits) victim() *Conn {
	for _, from := range []*list.List{l.idle, l.silent} {
		if first := from.Front(); first != nil {
			return first.Value.(*Conn)
		}
	}
	return nil
}

// enterNetwork counts a connection for its network, and reports whether that has room.
func (l *Limits) enterNetwork(c *Conn, network netip.Prefix) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.closed || l.perNetwork > 0 && l.networks[network] >= l.perNetwork {
		return false
	}
	l.networks[network]++
	c.network, c.counted = network, true
	return true
}

// leave ends the counting of a connection, once.
func (l *Limits) leave(c *Conn) {
	if c.closed {
		return
	}
	c.closed = true
	l.open--
	l.move(c, nil)
	if !c.counted {
		return
	}
	if l.networks[c.network]--; l.networks[c.network] == 0 {
		delete(l.networks, c.network)
	}
}

// move moves a connection to the end of a list; nil: to none.
func (l *Limits) move(c *Conn, to *list.List) {
	if c.in != nil {
		c.in.Remove(c.element)
	}
	if c.in = to; to != nil {
		c.element = to.PushBack(c)
	}
}

// State follows the connections of an http.Server: set it as ConnState.
func (l *Limits) State(c net.Conn, state http.ConnState) {
	if t, ok := c.(interface{ NetConn() net.Conn }); ok { // a *tls.Conn
		c = t.NetConn()
	}
	conn, ok := c.(*Conn)
	if !ok || state != http.StateActive && state != http.StateIdle {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case conn.closed:
	case state == http.StateIdle:
		l.move(conn, l.idle)
	default:
		l.move(conn, nil)
	}
}

// An endsTLSKey is the context key of connections whose proxy ends the client's TLS.
type endsTLSKey struct{}

// ConnContext adds to the context of a connection what EndsTLS returns. next may be nil.
func ConnContext(next func(context.Context, net.Conn) context.Context) func(context.Context, net.Conn) context.Context {
	return func(ctx context.Context, c net.Conn) context.Context {
		if next != nil {
			ctx = next(ctx, c)
		}
		if t, ok := c.(interface{ NetConn() net.Conn }); ok { // a *tls.Conn
			c = t.NetConn()
		}
		if conn, ok := c.(*Conn); ok && conn.endsTLS {
			ctx = context.WithValue(ctx, endsTLSKey{}, true)
		}
		return ctx
	}
}

// EndsTLS reports whether the proxy of a connection says that the client's TLS connection
// ends at the proxy. A certificate on the connection is then that of the proxy.
func EndsTLS(ctx context.Context) bool { return ctx.Value(endsTLSKey{}) != nil }

// RemoteAddr returns the client's address, also behind a proxy that sends it by the
// PROXY protocol. It is not an address of a network if the proxy does not know it.
func (c *Conn) RemoteAddr() net.Addr { return c.remote }

func (c *Conn) Read(p []byte) (int, error) {
	if len(c.early) > 0 {
		n := copy(p, c.early)
		c.early = c.early[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

// CloseWrite closes the sending side, for net/http.
func (c *Conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return net.ErrClosed
}

// Close closes the connection.
func (c *Conn) Close() error {
	c.limits.mu.Lock()
	c.limits.leave(c)
	c.limits.mu.Unlock()
	return c.Conn.Close()
}
