package forward

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"accessbroker.internal/egress"
)

// A tunnel is the connection of a client after CONNECT. All that it carries is for one
// host and port.
type tunnel struct {
	net.Conn
	reader *bufio.Reader // with what the client sent before the answer to CONNECT
	host   string        // as in certificates
	port   string
	scheme string // https or http
}

// Read reads what the client sends.
func (t *tunnel) Read(p []byte) (int, error) { return t.reader.Read(p) }

// authority returns the host and port as URLs have them.
func (t *tunnel) authority() string {
	host := t.host
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if t.port == defaultPorts[t.scheme] {
		return host
	}
	return host + ":" + t.port
}

var defaultPorts = map[string]string{"https": "443", "http": "80"}

// agrees reports whether a Host header or an :authority names the tunnel's target.
func (t *tunnel) agrees(host string) bool {
	host = strings.ToLower(host)
	return host == t.authority() || host == net.JoinHostPort(t.host, t.port)
}

// connect opens a tunnel to a host of the rules (RFC 9110, section 9.3.6). All others are
// refused before TLS.
func (s *Server) connect(w http.ResponseWriter, r *http.Request) {
	host, port, err := net.SplitHostPort(r.RequestURI)
	if err != nil || r.Host != r.RequestURI || port == "" {
		s.refuseTunnel(w, r, http.StatusBadRequest, &egress.Refusal{Code: egress.CodeInvalidURL, What: "CONNECT names no host and port", Next: "send CONNECT host:port with the same Host header"})
		return
	}
	// The resolver and the rules ignore case. A trailing dot makes another name.
	host = strings.ToLower(host)
	overTLS := s.cfg.Caller.MatchHost("https", r.RequestURI)
	if !overTLS && !s.cfg.Caller.MatchHost("http", r.RequestURI) {
		s.refuseTunnel(w, r, http.StatusForbidden, s.offTheList(r.RequestURI))
		return
	}
	if overTLS && !s.cfg.Authority.Covers(host) {
		s.refuseTunnel(w, r, http.StatusForbidden, &egress.Refusal{Code: egress.CodeHost, What: host + " was added to the rules after this proxy started", Next: "start broker proxy again"})
		return
	}
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		s.refuse(w, r, &egress.Refusal{Code: egress.CodeInvalidURL, What: "A tunnel can't be opened inside of this connection", Next: "send CONNECT over HTTP/1.1"})
		return
	}
	t := &tunnel{Conn: conn, reader: buffered.Reader, host: host, port: port}
	if err := s.open(t); err != nil {
		s.cfg.Logger.Debug("tunnel ended", "host", host, "err", err)
		_ = conn.Close()
	}
}

func (s *Server) offTheList(hostport string) *egress.Refusal {
	return &egress.Refusal{Code: egress.CodeHost, What: "No rule of your entitlements allows calls to " + visible(hostport), Next: "\"broker proxy --list\" shows the hosts that are allowed"}
}

// open answers CONNECT, and hands the tunnel over to the server of tunnels.
func (s *Server) open(t *tunnel) error {
	if err := t.SetDeadline(time.Now().Add(headerTimeout)); err != nil {
		return err
	}
	if _, err := io.WriteString(t.Conn, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		return err
	}
	first, err := t.reader.Peek(1)
	if err != nil {
		return err
	}
	if err := t.SetDeadline(time.Time{}); err != nil {
		return err
	}
	const handshake = 22 // the content type of a TLS record (RFC 8446, section 5.1)
	hostport := net.JoinHostPort(t.host, t.port)
	switch {
	case first[0] == handshake && s.cfg.Caller.MatchHost("https", hostport):
		t.scheme = "https"
		return s.opened.put(tls.Server(t, s.tlsFor(t)))
	case first[0] != handshake && s.cfg.Caller.MatchHost("http", hostport):
		t.scheme = "http"
		return s.opened.put(t)
	}
	s.report(Event{Method: http.MethodConnect, Host: hostport, Refusal: &egress.Refusal{Code: CodeNotTLS, What: "The tunnel to " + visible(hostport) + " does not carry TLS", Next: "call the host over https"}})
	_, err = io.WriteString(t.Conn, "HTTP/1.1 400 Not TLS\r\nConnection: close\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 57\r\n\r\nbroker proxy: this tunnel needs TLS. Call with https://.\n")
	return errors.Join(errors.New("the tunnel does not carry TLS"), err)
}

// tlsFor returns the configuration of TLS in a tunnel. There are no session tickets, by
// which a session of another host could be resumed.
func (s *Server) tlsFor(t *tunnel) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS12,
		NextProtos:             []string{"h2", "http/1.1"},
		SessionTicketsDisabled: true,
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if hello.ServerName != "" && strings.ToLower(hello.ServerName) != t.host {
				refusal := &egress.Refusal{Code: CodeMisdirected, What: fmt.Sprintf("The tunnel is to %s, and TLS in it names %s", t.host, visible(hello.ServerName)), Next: "open one tunnel for each host"}
				s.report(Event{Method: http.MethodConnect, Host: net.JoinHostPort(t.host, t.port), Refusal: refusal})
				return nil, refusal
			}
			return s.cfg.Authority.Certificate(t.host)
		},
	}
}

type tunnelKey struct{}

// withTunnel adds the tunnel of a connection to the context of its calls.
func withTunnel(ctx context.Context, c net.Conn) context.Context {
	if over, ok := c.(*tls.Conn); ok {
		c = over.NetConn()
	}
	return context.WithValue(ctx, tunnelKey{}, c.(*tunnel))
}

// serveInner serves a call inside of a tunnel. The target of CONNECT, the name in TLS and
// the host of the call must agree.
func (s *Server) serveInner(w http.ResponseWriter, r *http.Request) {
	t := r.Context().Value(tunnelKey{}).(*tunnel)
	if r.Method == http.MethodConnect {
		s.refuse(w, r, &egress.Refusal{Code: egress.CodeMethod, What: "CONNECT can't be called inside of a tunnel", Next: "send CONNECT to the proxy itself"})
		return
	}
	uri := r.RequestURI
	if r.URL.Host != "" { // absolute-form
		if r.URL.Scheme != t.scheme || r.URL.User != nil || !t.agrees(r.URL.Host) {
			s.misdirected(w, r, t, r.URL.Host)
			return
		}
		uri = r.URL.RequestURI()
	}
	if !t.agrees(r.Host) {
		s.misdirected(w, r, t, r.Host)
		return
	}
	s.call(w, r, t.scheme, t.authority(), uri)
}

func (s *Server) misdirected(w http.ResponseWriter, r *http.Request, t *tunnel, host string) {
	s.refuse(w, r, &egress.Refusal{Code: CodeMisdirected, What: fmt.Sprintf("The tunnel is to %s, and the call in it is to %s", t.authority(), visible(host)), Next: "open one tunnel for each host"})
}

// A tunnelsQueue is the listener of the server of tunnels.
type tunnelsQueue struct {
	conns chan net.Conn
	ended chan struct{}
	once  sync.Once
}

func newTunnelsQueue() *tunnelsQueue {
	return &tunnelsQueue{conns: make(chan net.Conn), ended: make(chan struct{})}
}

func (q *tunnelsQueue) put(c net.Conn) error {
	select {
	case q.conns <- c:
		return nil
	case <-q.ended:
		return net.ErrClosed
	}
}

// Accept returns the next tunnel.
func (q *tunnelsQueue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.ended:
		return nil, net.ErrClosed
	}
}

// Close ends Accept.
func (q *tunnelsQueue) Close() error {
	q.once.Do(func() { close(q.ended) })
	return nil
}

// Addr returns the address of no network.
func (q *tunnelsQueue) Addr() net.Addr { return &net.UnixAddr{Name: "tunnels", Net: "unix"} }

// limited is a listener that has a bounded number of open connections.
type limited struct {
	net.Listener
	free chan struct{}
}

func newLimited(l net.Listener, n int) *limited { return &limited{l, make(chan struct{}, n)} }

// Accept waits until there is room for another connection. A connection that is closed
// makes room, so the wait ends with the server.
func (l *limited) Accept() (net.Conn, error) {
	l.free <- struct{}{}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.free
		return nil, err
	}
	return &limitedConn{Conn: c, release: sync.OnceFunc(func() { <-l.free })}, nil
}

type limitedConn struct {
	net.Conn
	release func()
}

// Close makes room for another connection.
func (c *limitedConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}

// CloseWrite ends one direction, as servers do before they close.
func (c *limitedConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}
