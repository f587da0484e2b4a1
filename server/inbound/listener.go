package inbound

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Causes with which Config.OnRefuse is called. They are values of a metric's label.
const (
	CauseTotal   = "total"   // there are too many connections
	CauseAddress = "address" // there are too many connections from this address
	CauseProxy   = "proxy"   // no valid PROXY header from a trusted proxy
)

// Causes lists the causes.
var Causes = []string{CauseTotal, CauseAddress, CauseProxy}

// Config configures a Listener.
type Config struct {
	Limits  *Limits // nil: no bounds
	Proxies Proxies // their addresses have no bound of their own

	// ProxyProtocol requires a header of the PROXY protocol, version 1 or 2, on each
	// connection. Connections from other addresses than those of Proxies are refused.
	ProxyProtocol bool

	OnRefuse func(cause string) // it may be nil
}

// proxyHeaderTime bounds how long a proxy may take to send its header.
const proxyHeaderTime = 5 * time.Second

// A Listener accepts TCP connections within limits. Its connections are *Conn.
type Listener struct {
	net.Listener
	cfg Config

	once  sync.Once
	ready chan *Conn // behind proxies: connections whose header was read
	errs  chan error
}

// Listen is net.Listen without Multipath TCP, whose sockets Drain cannot stop.
func Listen(network, address string) (net.Listener, error) {
	var c net.ListenConfig
	c.SetMultipathTCP(false)
	return c.Listen(context.Background(), network, address)
}

// New returns a Listener that accepts the connections of l.
func New(l net.Listener, cfg Config) *Listener {
	if cfg.Limits == nil {
		cfg.Limits = NewLimits(0, 0)
	}
	if cfg.OnRefuse == nil {
		cfg.OnRefuse = func(string) {}
	}
	return &Listener{Listener: l, cfg: cfg, ready: make(chan *Conn), errs: make(chan error)}
}

// Limits returns the limits of the connections.
func (l *Listener) Limits() *Limits { return l.cfg.Limits }

// Accept returns the next connection within the limits.
func (l *Listener) Accept() (net.Conn, error) {
	if l.cfg.ProxyProtocol {
		return l.acceptProxied()
	}
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if c := l.enter(raw); c != nil && l.enterNetwork(c) {
			return c, nil
		}
	}
}

// enter counts a connection for the total, or closes it and returns nil.
func (l *Listener) enter(raw net.Conn) *Conn {
	c := l.cfg.Limits.enter(raw)
	if c == nil {
		l.cfg.OnRefuse(CauseTotal)
		_ = raw.Close()
	}
	return c
}

// enterNetwork counts a connection for its client's network, or closes it.
func (l *Listener) enterNetwork(c *Conn) bool {
	addr := AddrOf(c.remote)
	if l.cfg.Proxies.Trusts(addr) || l.cfg.Limits.enterNetwork(c, Network(addr)) {
		return true
	}
	l.cfg.OnRefuse(CauseAddress)
	_ = c.Close()
	return false
}

// AddrOf returns the IP address of a network address, or the zero address.
func AddrOf(a net.Addr) netip.Addr {
	if at, ok := a.(*net.TCPAddr); ok {
		return at.AddrPort().Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}

// acceptProxied returns the next connection whose PROXY header has been read. Headers
// are read concurrently, so that a slow proxy does not delay others.
func (l *Listener) acceptProxied() (net.Conn, error) {
	l.once.Do(func() { go l.readHeaders() })
	select {
	case c, ok := <-l.ready:
		if !ok {
			return nil, net.ErrClosed
		}
		return c, nil
	case err := <-l.errs:
		return nil, err
	}
}

// readHeaders ends when the listener is closed and every accepted connection has been
// returned or closed.
func (l *Listener) readHeaders() {
	var pending sync.WaitGroup
	for {
		raw, err := l.Listener.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			pending.Wait()
			close(l.ready)
			return
		case err != nil:
			l.errs <- err // net/http waits before it accepts again
			continue
		case !l.cfg.Proxies.Trusts(AddrOf(raw.RemoteAddr())):
			l.cfg.OnRefuse(CauseProxy)
			_ = raw.Close()
			continue
		}
		if c := l.enter(raw); c != nil {
			pending.Go(func() { l.readHeader(c) })
		}
	}
}

func (l *Listener) readHeader(c *Conn) {
	if err := c.readProxyHeader(proxyHeaderTime); err != nil {
		l.cfg.OnRefuse(CauseProxy)
		_ = c.Close()
		return
	}
	if !l.enterNetwork(c) {
		return
	}
	handOver := time.NewTimer(proxyHeaderTime)
	defer handOver.Stop()
	select {
	case l.ready <- c:
	case <-handOver.C: // the server has stopped without waiting
		_ = c.Close()
	}
}
