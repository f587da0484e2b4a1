// Package forward is an HTTP proxy for the programs of one caller. It opens the TLS of
// their connections with certificates of its own authority, so that package egress can
// check each call, add the credential and remove the credential from the answer.
//
// The proxy speaks HTTP/1.1 and, within a tunnel, HTTP/2. It offers no HTTP/3.
package forward

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"accessbroker.internal/egress"
)

// A Caller makes calls. *egress.Transport is one.
type Caller interface {
	// MatchHost reports whether some rule names a host and port, for a scheme.
	MatchHost(scheme, hostport string) bool

	// RoundTrip makes a call. The error is an *egress.Refusal if the call was not made.
	RoundTrip(*http.Request) (*http.Response, error)

	// Upgrade makes a call that asks for a WebSocket. The body of an answer with status
	// 101 is an io.ReadWriteCloser.
	Upgrade(*http.Request) (*http.Response, error)
}

// A Config configures a Server.
type Config struct {
	Authority *Authority
	Caller    Caller

	// Token is the password of the proxy's URL. If it is empty, the listener must admit
	// nobody but the caller.
	Token string

	// Report receives the result of each call and of each refused tunnel. It may be nil.
	Report func(Event)

	Logger *slog.Logger // nil: slog.Default()
}

// User is the user name of the proxy's URL.
const User = "broker"

// An Event is the result of a call, or a refused tunnel. It has no credential and no
// query.
type Event struct {
	Method  string
	Host    string
	Path    string
	Status  int             // of the answer; zero: there was none
	Refusal *egress.Refusal // nil: the call was made
}

// Bounds of the proxy.
const (
	maxConnections = 512
	maxHeader      = 64 << 10
	maxStreams     = 100
	headerTimeout  = 30 * time.Second // also of the first byte in a tunnel and of a handshake
	idleTimeout    = 2 * time.Minute  // between two calls
)

// A Server is a proxy. Serve runs it, and Close ends it.
type Server struct {
	cfg    Config
	token  [sha256.Size]byte
	outer  *http.Server  // the connections of clients
	inner  *http.Server  // what is inside their tunnels
	opened *tunnelsQueue // from outer to inner
	start  sync.Once
}

// New returns a Server.
func New(cfg Config) *Server {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	s := &Server{cfg: cfg, token: sha256.Sum256([]byte(User + ":" + cfg.Token)), opened: newTunnelsQueue()}
	errorLog := slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelDebug)
	server := func(h http.HandlerFunc) *http.Server {
		return &http.Server{
			Handler: h, ErrorLog: errorLog, DisableGeneralOptionsHandler: true,
			ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
			HTTP2: &http.HTTP2Config{MaxConcurrentStreams: maxStreams, SendPingTimeout: idleTimeout},
		}
	}
	s.outer = server(s.serveOuter)
	s.outer.Protocols = new(http.Protocols)
	s.outer.Protocols.SetHTTP1(true)
	s.inner = server(s.serveInner)
	s.inner.ConnContext = withTunnel
	return s
}

// Serve serves connections until Close.
func (s *Server) Serve(l net.Listener) error {
	s.start.Do(func() {
		go func() { _ = s.inner.Serve(s.opened) }() // ends with Close
	})
	err := s.outer.Serve(newLimited(l, maxConnections))
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Close ends all connections.
func (s *Server) Close() error {
	return errors.Join(s.outer.Close(), s.inner.Close(), s.opened.Close())
}

// Shutdown waits until the calls in progress have ended, or ctx ends.
func (s *Server) Shutdown(ctx context.Context) error {
	return errors.Join(s.outer.Shutdown(ctx), s.inner.Shutdown(ctx), s.Close())
}

// hasToken reports whether a request has the token of a proxy (RFC 9110, section 11.7.2,
// with the Basic scheme of RFC 7617).
func hasToken(r *http.Request, token [sha256.Size]byte) bool {
	values := r.Header.Values("Proxy-Authorization")
	if len(values) != 1 {
		return false
	}
	scheme, encoded, _ := strings.Cut(values[0], " ")
	pair, err := base64.StdEncoding.DecodeString(strings.TrimSpace(encoded))
	if err != nil || !strings.EqualFold(scheme, "Basic") {
		return false
	}
	got := sha256.Sum256(pair)
	return subtle.ConstantTimeCompare(got[:], token[:]) == 1
}

// serveOuter serves what a client sends to the proxy itself.
func (s *Server) serveOuter(w http.ResponseWriter, r *http.Request) {
	if s.cfg.Token != "" && !hasToken(r, s.token) {
		w.Header().Set("Proxy-Authenticate", challenge)
		if r.Method == http.MethodConnect {
			s.refuseTunnel(w, r, http.StatusProxyAuthRequired, foreign)
			return
		}
		s.refuse(w, r, foreign)
		return
	}
	switch {
	case r.Method == http.MethodConnect:
		s.connect(w, r)
	case r.URL.Host != "": // absolute-form (RFC 9112, section 3.2.2)
		s.plain(w, r)
	case r.URL.Path == AuthorityPath && (r.Method == http.MethodGet || r.Method == http.MethodHead):
		w.Header().Set("Content-Type", "application/x-pem-file")
		_, _ = w.Write(s.cfg.Authority.PEM())
	default:
		s.refuse(w, r, &egress.Refusal{Code: CodeNotAProxyRequest, What: "This is a proxy, not a web server", Next: "set it as HTTPS_PROXY, and call the host that you mean"})
	}
}

// AuthorityPath is where the proxy itself has its authority's certificate.
const AuthorityPath = "/ca.pem"

// plain makes a call without TLS.
func (s *Server) plain(w http.ResponseWriter, r *http.Request) {
	if r.URL.Scheme != "http" {
		s.refuse(w, r, &egress.Refusal{Code: egress.CodeInvalidURL, What: "The proxy got the URL of a call over TLS", Next: "open a tunnel with CONNECT, as clients do for https"})
		return
	}
	if r.URL.User != nil || r.URL.Host != r.Host {
		s.refuse(w, r, &egress.Refusal{Code: egress.CodeInvalidURL, What: "The URL and the Host header differ, or the URL contains a user name", Next: "send a URL without a user name"})
		return
	}
	s.call(w, r, "http", r.URL.Host, r.URL.RequestURI())
}
