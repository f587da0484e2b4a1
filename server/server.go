// Package server is the broker's HTTP: routes, headers, forms, status codes.
// It holds no rule of its own; package broker decides everything.
//
// Every endpoint is a row of a table in routes.go and a function of a few
// lines. The whole of a request that is not its own lives once, in call.go:
// method, media type, identity, admission, bounds, decoding, errors, encoding,
// logging. So no endpoint can forget to ask who calls.
package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/broker/session"
)

// Config configures a Server. Broker, Sessions, Authenticate, Keys, Log and
// ExternalURL are required.
type Config struct {
	Broker   *broker.Broker
	Sessions *session.Manager

	// Authenticate finds out who calls, from the connection's certificate, the
	// Authorization header, or a token that stands in the body as the caller's
	// own proof (subject_token, client_assertion; "" if there is none). It
	// gives exactly one identity, or an error that wraps a sentinel of package
	// broker. What it returns must hold neither the token nor a part of it.
	Authenticate func(r *http.Request, bodyToken string) (broker.Identity, error)

	// Remembers says whether a token held before, and costs little to look at
	// again; nil: none is known to. Others are not looked at once too many from
	// the same address did not hold.
	Remembers func(token string) bool

	// ConnContext, if set, keeps what is known of a connection (see
	// http.Server), for Authenticate.
	ConnContext func(context.Context, net.Conn) context.Context

	// Keys gives the JWK Set (RFC 7517) of the broker's token signing keys.
	Keys func(ctx context.Context) ([]byte, error)

	// People, if set, lets people log in, by the Providers of these names.
	// LogoutToken proves a provider's word that it logged somebody out (OpenID
	// Connect Back-Channel Logout). Sealer seals what a browser keeps meanwhile.
	People      People
	Providers   []string
	LogoutToken func(ctx context.Context, provider, token string, now time.Time) (broker.LogoutToken, error)
	Sealer      *broker.Sealer

	// Passkeys enrol passkeys; nil: nobody has any.
	Passkeys Passkeys

	// Log reads the audit log.
	Log LogReader

	// ExternalURL is the issuer (RFC 8414), "https://broker.acme.test". If it
	// has a path, everything is served below it, too.
	ExternalURL string

	UIURL     string // of the pages, where that is another; its path must be the same
	TicketURL string // where a ticket is looked at: "https://tracker.acme.test/{ticket}"; empty: pages don't link them

	Algorithms    func() []string // of the keys that Keys gives, for the metadata; nil: not said
	SVIDAudiences []string        // accepted in callers' JWT-SVIDs, for the metadata

	CallsPerSecond float64 // that one identity may make; zero: 50
	CallsAtOnce    int     // zero: 20

	Checks  []Check      // of /readyz
	Metrics *Metrics     // nil: counted nowhere
	Logger  *slog.Logger // one event a request; nil: discarded

	DrainDelay   time.Duration // from when /readyz says no to when connections are refused; zero: none
	DrainTimeout time.Duration // for requests to end; zero: 20 s
}

// A Server answers HTTP. It is safe for concurrent use.
type Server struct {
	cfg       Config
	external  *url.URL
	admission *admission
	scans     *admission // by identity, of calls that look through many rows
	strangers *admission // by address, for what is done for callers who are not proved
	returns   *admission // by address, of browsers that come back from a provider
	polls     *admission // by address, of terminals that wait to be let in
	providers *admission // by address, for what providers say
	viewers   *admission // by person, of pages that stay open
	failures  *failures
	askings   *askings
	readiness readiness

	draining context.Context // ends when Drain is called
	drain    context.CancelFunc
}

// New makes a Server. It starts nothing.
func New(cfg Config) (*Server, error) {
	if cfg.Broker == nil || cfg.Sessions == nil || cfg.Authenticate == nil || cfg.Keys == nil || cfg.Log == nil {
		return nil, errors.New("a server needs a broker, sessions, a way to authenticate, keys and a log")
	}
	if cfg.People != nil && cfg.Sealer == nil {
		return nil, errors.New("a server that logs people in needs a sealer")
	}
	external, err := url.Parse(cfg.ExternalURL)
	if err != nil || external.Host == "" || external.RawQuery != "" || external.Fragment != "" {
		return nil, fmt.Errorf("the external URL %q is not a URL without query and fragment (RFC 8414, section 2)", cfg.ExternalURL)
	}
	external.Path = strings.TrimSuffix(external.Path, "/")
	cfg.setDefaults()
	draining, drain := context.WithCancel(context.Background())
	return &Server{
		cfg:       cfg,
		external:  external,
		admission: newAdmission(cfg.CallsPerSecond, cfg.CallsAtOnce),
		scans:     newAdmission(scansPerSecond, scansAtOnce),
		strangers: newAdmission(strangersPerSecond, strangersAtOnce),
		returns:   newAdmission(returnsPerSecond, returnsAtOnce),
		polls:     newAdmission(pollsPerSecond, pollsAtOnce),
		providers: newAdmission(providersPerSecond, providersAtOnce),
		viewers:   newAdmission(strangersPerSecond, viewersAtOnce),
		failures:  newFailures(),
		askings:   newAskings(),
		draining:  draining,
		drain:     drain,
	}, nil
}

// Calls of one identity that look through many rows: each may read tens of
// thousands, which is the work of hundreds of other calls.
const (
	scansPerSecond = 5
	scansAtOnce    = 2
)

// Calls of those who are not proved, by address, where each costs a write or a
// call to a provider.
const (
	strangersPerSecond = 5
	strangersAtOnce    = 5
)

// Browsers that come back from a provider, by address: an office may share one.
const (
	returnsPerSecond = 20
	returnsAtOnce    = 10
)

// Terminals that ask whether they were let in, by address: each does so every
// few seconds, and many may share one.
const (
	pollsPerSecond = 50
	pollsAtOnce    = 20
)

// Words of providers, by address. Who signs everybody out says so of each at
// the same time, and a word that is lost leaves a session open; what does not
// hold costs no more than a look at its signature.
const (
	providersPerSecond = 1000
	providersAtOnce    = 100
)

func (cfg *Config) setDefaults() {
	if cfg.CallsPerSecond == 0 {
		cfg.CallsPerSecond = 50
	}
	if cfg.CallsAtOnce == 0 {
		cfg.CallsAtOnce = 20
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Metrics == nil {
		cfg.Metrics = NewMetrics(Build{}, Gauges{})
	}
	if cfg.Algorithms == nil {
		cfg.Algorithms = func() []string { return []string{} }
	}
	if cfg.DrainTimeout == 0 {
		cfg.DrainTimeout = 20 * time.Second
	}
}

// An Audience is a part of the server that a listener may serve.
type Audience string

// The audiences. Health and the OpenAPI document are served to all of them.
const (
	API   Audience = "api"   // /v1
	OAuth Audience = "oauth" // /oauth2, /.well-known
	Log   Audience = "log"   // /log
)

// Handler gives the part of the server that is for the audiences.
func (s *Server) Handler(audiences ...Audience) http.Handler {
	methods := map[string]map[string]route{} // by path, then method
	for _, rt := range s.routes() {
		if !rt.isFor(audiences) {
			continue
		}
		if methods[rt.path] == nil {
			methods[rt.path] = map[string]route{}
		}
		methods[rt.path][rt.method] = rt
	}
	mux := http.NewServeMux()
	for path, byMethod := range methods {
		mux.Handle(path, s.dispatch(path, byMethod))
	}
	mux.Handle("/", s.serve(route{path: "(none)", open: true, run: func(*Server, *call) (reply, error) {
		return reply{}, refuse(broker.ErrNotFound, "no such resource: see /openapi.json")
	}}))
	nowhere := route{path: "(none)", audience: UI, run: func(*Server, *call) (reply, error) {
		return reply{}, refuse(broker.ErrNotFound, "there is no such page")
	}}
	if nowhere.isFor(audiences) { // else it is the API's to answer
		mux.Handle("/ui/", s.serve(nowhere))
	}
	return s.underPath(mux)
}

// underPath serves everything below the external URL's path as well, whether a
// proxy in between takes the path away or not.
func (s *Server) underPath(mux *http.ServeMux) http.Handler {
	if s.external.Path == "" {
		return mux
	}
	outer := http.NewServeMux()
	outer.Handle("/", mux)
	outer.Handle(s.external.Path+"/", http.StripPrefix(s.external.Path, mux))
	return outer
}

// Drain makes /readyz say no and ends the long polls. It may be called more
// than once.
func (s *Server) Drain() { s.drain() }

// Bounds of a connection. Calls that wait on purpose extend them for
// themselves (see call.extend).
const (
	headerTimeout = 10 * time.Second
	readTimeout   = 20 * time.Second
	writeTimeout  = 40 * time.Second // an upstream may take 20 s to make a credential
	idleTimeout   = 2 * time.Minute
	maxHeader     = 32 << 10
	maxStreams    = 128
)

// HTTPServer gives a net/http server for the handler with every timeout and
// size limit set; tlsConfig may be nil, for loopback and Unix sockets.
func (s *Server) HTTPServer(h http.Handler, tlsConfig *tls.Config) *http.Server {
	return &http.Server{
		Handler:           h,
		TLSConfig:         tlsConfig,
		ConnContext:       s.cfg.ConnContext,
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: maxStreams},
		ErrorLog:          slog.NewLogLogger(s.cfg.Logger.Handler(), slog.LevelWarn),
	}
}

// Serve answers on the listener until ctx ends. Then /readyz says no, long
// polls end, and after the drain delay the listener closes and calls have the
// drain timeout to end. It gives nil after an orderly end.
func (s *Server) Serve(ctx context.Context, l net.Listener, h http.Handler, tlsConfig *tls.Config) error {
	server := s.HTTPServer(h, tlsConfig)
	failed := make(chan error, 1)
	go func() {
		if tlsConfig == nil {
			failed <- server.Serve(l)
		} else {
			failed <- server.ServeTLS(l, "", "")
		}
	}()
	select {
	case err := <-failed:
		return fmt.Errorf("serving %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	s.Drain()
	time.Sleep(s.cfg.DrainDelay)
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.DrainTimeout)
	defer cancel()
	if err := server.Shutdown(stop); err != nil {
		return errors.Join(fmt.Errorf("draining %s: %w", l.Addr(), err), server.Close())
	}
	return nil
}
