// Package server is the broker's HTTP layer: routes, headers, forms, status codes
// and pages. It contains no rules of its own; package broker decides everything.
//
// Every endpoint is a row of the table in routes.go and a function of a few lines.
// Everything that endpoints share begins in call.go: the method, the host (hosts.go),
// the caller (proofs.go), turns and admission (turns.go, admission.go), the body
// (bodies.go, decode.go), errors (errors.go), encoding and logging. Therefore no
// endpoint can forget to authenticate its caller.
package server

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/attest/dpop"
	"accessbroker.internal/broker"
	"accessbroker.internal/broker/campaign"
	"accessbroker.internal/broker/inventory"
	"accessbroker.internal/broker/membership"
	"accessbroker.internal/broker/session"
	"accessbroker.internal/broker/signal"
	"accessbroker.internal/broker/supplier"
	"accessbroker.internal/server/inbound"
	"accessbroker.internal/server/ui"
)

// Config configures a Server. Broker, Sessions, Authenticate, Keys, Log, History,
// Inventory and ExternalURL are required.
type Config struct {
	Broker   *broker.Broker
	Sessions *session.Manager

	// Campaigns are the access reviews. ReviewPatch proposes the change for git that
	// suspensions ask for; nil: it is not possible.
	Campaigns   *campaign.Manager
	ReviewPatch func(ctx context.Context, of []*broker.SuspensionRow) (patch string, notes []string, err error)

	// Memberships are the memberships that are credentials; nil: there are none.
	Memberships *membership.Ledger
	Suppliers   *supplier.Manager

	// Authenticate identifies the caller from the connection's certificate, the
	// Authorization header and tokens in the body (client_assertion, subject_token; ""
	// if there is none), which must all prove one identity. It returns that identity, or
	// an error that wraps a sentinel of package broker and contains no part of a token.
	Authenticate func(r *http.Request, tokens ...string) (broker.Identity, error)

	// Remembers reports whether a token was verified before and is cheap to verify
	// again; nil: none was. Other tokens wait for their turn (see turns).
	Remembers func(token string) bool

	// Follow, if set, takes what other processes stored about people into memory. It is
	// called before a person acts, or a workload on behalf of another identity.
	Follow func(context.Context) error

	// ConnContext, if set, prepares a connection's context for Authenticate (see
	// http.Server).
	ConnContext func(context.Context, net.Conn) context.Context

	// DPoP verifies proofs of possession (RFC 9449); nil: calls with one are refused.
	DPoP *dpop.Verifier

	// Keys returns the JWK Set (RFC 7517) of the token signing keys.
	Keys func(ctx context.Context) ([]byte, error)

	// StatusLists are the lists of the tokens' status; nil: there are none.
	StatusLists StatusLists

	// People, if set, logs people in with the OpenID providers of these names.
	// LogoutToken verifies a provider's logout token (OpenID Connect Back-Channel
	// Logout).
	People      People
	Providers   []string
	LogoutToken func(ctx context.Context, provider, token string, now time.Time) (broker.LogoutToken, error)

	// Sealer encrypts what clients keep for the broker: the state of a login in a browser,
	// and the codes by which OAuth clients wait.
	Sealer *broker.Sealer

	// SubjectToken verifies the token of a person on whose behalf a caller acts; nil: no
	// provider issues such tokens. Its errors are those of Authenticate.
	SubjectToken func(ctx context.Context, t broker.SubjectToken) (*broker.Delegation, error)

	// Passkeys enrols passkeys; nil: passkeys are not available.
	Passkeys Passkeys

	// Inventory lists identities.
	Inventory *inventory.Inventory

	// Log reads the audit log, and History what it says about many records.
	Log     LogReader
	History History

	// ExternalURL is the issuer (RFC 8414), such as "https://broker.acme.test". If it
	// has a path, everything is served below that path, too.
	ExternalURL string

	UIURL string // the URL of the pages if it differs; its path must be the same
	// Hosts are further names, NAME or NAME:PORT, by which clients may address the
	// broker. Calls to other hosts than these, those of the two URLs and the address of
	// the listener are refused.
	Hosts []string

	TicketURL string // template of links to tickets, "https://tracker.acme.test/{ticket}"; empty: no links

	Algorithms    func() []string // signing algorithms of Keys, for the metadata; nil: omitted
	Clients       Clients         // of the token endpoint
	SVIDAudiences []string        // accepted audiences of callers' JWT-SVIDs, for the metadata

	CallsPerSecond float64 // of one identity; zero: 50
	CallsAtOnce    int     // of one identity; zero: 20

	// Introspections of one resource server have limits of their own: it introspects
	// for all of its clients.
	IntrospectionsPerSecond float64 // zero: 2000
	IntrospectionsAtOnce    int     // zero: 100

	Proxies inbound.Proxies // whose word about their clients' addresses counts

	UnprovedBytes int // of calls whose callers are not known yet, in sum; zero: 32 MiB

	// Signals are the transmitters of shared security signals.
	Signals *signal.Manager

	Handlers []Handler // resources of other packages

	// Duties keep other processes from using a session's refresh token at the same time; nil:
	// there are none.
	Duties broker.Duties

	Replica  func() *ReplicaGauge // for /readyz; may be nil
	Checks   []Check              // of /readyz
	Warnings []Check              // of /readyz; they don't make the broker unready
	Metrics  *Metrics             // nil: discarded
	Logger   *slog.Logger         // one event per request; nil: discarded

	DrainDelay   time.Duration // between /readyz failing and refusing connections; zero: none
	DrainTimeout time.Duration // for running requests; zero: 20 s
}

// A Server serves HTTP. It is safe for concurrent use.
type Server struct {
	cfg       Config
	external  *url.URL
	pages     *url.URL
	crossing  *http.CrossOriginProtection // refuses requests that other sites cause a browser to send
	hosts     hosts
	limits    limits
	failures  *failures
	verifying *turns // of proofs
	polls     *polls
	heartbeat time.Duration // of event streams
	loggingIn *turns        // of logins
	beginning *turns        // of calls that begin a login
	polling   *turns        // of terminals that wait for a login
	bodies    *budget
	refreshes *refreshes
	readiness readiness
	documents documents

	openAPIText []byte // names the external URL

	draining context.Context // ends when Drain is called
	drain    context.CancelFunc
}

// New returns a Server. It starts nothing.
func New(cfg Config) (*Server, error) {
	if cfg.Broker == nil || cfg.Sessions == nil || cfg.Authenticate == nil || cfg.Keys == nil || cfg.Log == nil || cfg.History == nil || cfg.Inventory == nil || cfg.Sealer == nil {
		return nil, errors.New("a server needs a broker, sessions, a way to authenticate, keys, a sealer, a log and its history, and an inventory")
	}
	external, err := broker.NormalURL(cfg.ExternalURL)
	if err != nil {
		return nil, fmt.Errorf("the external URL %q %w", cfg.ExternalURL, err)
	}
	pages, err := broker.NormalURL(cmp.Or(cfg.UIURL, cfg.ExternalURL))
	if err != nil {
		return nil, fmt.Errorf("the URL of the pages %q %w", cfg.UIURL, err)
	}
	own, err := newHosts([]*url.URL{external, pages}, cfg.Hosts)
	if err != nil {
		return nil, err
	}
	ui.Load()
	openAPIText, err := openAPIOf(external)
	if err != nil {
		return nil, err
	}
	protection := http.NewCrossOriginProtection()
	if err := protection.AddTrustedOrigin(broker.Origin(pages)); err != nil {
		return nil, fmt.Errorf("the URL of the pages: %w", err)
	}
	if cfg.Duties == nil {
		cfg.Duties = broker.Alone
	}
	cfg.Handlers = slices.Clone(cfg.Handlers)
	for i := range cfg.Handlers {
		h := &cfg.Handlers[i]
		if err := h.check(); err != nil {
			return nil, err
		}
		if h.CallsPerSecond > 0 && h.CallsAtOnce > 0 {
			h.admission = newAdmission(h.CallsPerSecond, h.CallsAtOnce)
		}
	}
	cfg.setDefaults()
	draining, drain := context.WithCancel(context.Background())
	return &Server{
		cfg:       cfg,
		external:  external,
		pages:     pages,
		hosts:     own,
		crossing:  protection,
		limits:    newLimits(&cfg),
		failures:  newFailures(),
		verifying: newTurns(verifyLimits()),
		polls:     newPolls(),
		heartbeat: pingEvery,
		loggingIn: newTurns(loginLimits()),
		beginning: newTurns(beginLimits()),
		polling:   newTurns(pollLimits()),
		bodies:    newBudget(cfg.UnprovedBytes),
		refreshes: newRefreshes(),

		openAPIText: openAPIText,

		draining: draining,
		drain:    drain,
	}, nil
}

func (cfg *Config) setDefaults() {
	if cfg.CallsPerSecond == 0 {
		cfg.CallsPerSecond = 50
	}
	if cfg.CallsAtOnce == 0 {
		cfg.CallsAtOnce = 20
	}
	if cfg.IntrospectionsPerSecond == 0 {
		cfg.IntrospectionsPerSecond = 2000
	}
	if cfg.IntrospectionsAtOnce == 0 {
		cfg.IntrospectionsAtOnce = 100
	}
	if cfg.UnprovedBytes == 0 {
		cfg.UnprovedBytes = defaultUnprovedBytes
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Metrics == nil {
		cfg.Metrics = NewMetrics(Build{}, Gauges{})
	}
	if cfg.Algorithms == nil {
		cfg.Algorithms = func() []string { return nil }
	}
	if cfg.DrainTimeout == 0 {
		cfg.DrainTimeout = 20 * time.Second
	}
}

// An Audience is a part of the server that a listener can serve.
type Audience string

// The audiences. Every listener serves health and the OpenAPI document.
const (
	API   Audience = "api"   // /v1
	OAuth Audience = "oauth" // /oauth2, /.well-known
	Log   Audience = "log"   // /log
	SCIM  Audience = "scim"  // /scim/v2
	MCP   Audience = "mcp"   // /mcp
)

// Handler returns the handler for some audiences. It panics if the patterns of two
// Handlers, or of a Handler and an endpoint, conflict.
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
	for pattern, byMethod := range methods {
		mux.Handle(pattern, s.dispatch(pattern, byMethod))
	}
	for _, h := range s.cfg.Handlers {
		if rt := h.route(); rt.isFor(audiences) {
			mux.Handle(rt.path, s.serve(rt))
		}
	}
	noResource := s.serve(route{path: "(none)", open: true, run: func(*Server, *call) (reply, error) {
		return reply{}, refuse(broker.ErrNotFound, "no such resource: see /openapi.json")
	}})
	mux.Handle("/", noResource)
	noPage := noResource
	if nowhere := (route{path: "(none)", audience: UI, run: func(*Server, *call) (reply, error) {
		return reply{}, refuse(broker.ErrNotFound, "no such page")
	}}); nowhere.isFor(audiences) { // otherwise the answer is the API's 404
		noPage = s.serve(nowhere)
		mux.Handle("/ui/", noPage)
	}
	return s.cleanOnly(s.underPath(mux), noResource, noPage)
}

// cleanOnly answers a path with empty or dot segments, such as "//oauth2/token", like
// any other unknown path. net/http would redirect the call, with its proof, to a path
// that a proxy's rules may not have judged.
func (s *Server) cleanOnly(next, noResource, noPage http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p := r.URL.EscapedPath()
		switch clean := path.Clean(p); {
		case p == "", p == clean && p[0] == '/', p == clean+"/" && clean != "/" && p[0] == '/':
			next.ServeHTTP(w, r)
		case strings.HasPrefix(strings.TrimPrefix(p, s.external.Path), "/ui/"):
			noPage.ServeHTTP(w, r)
		default:
			noResource.ServeHTTP(w, r)
		}
	})
}

// underPath also serves everything below the external URL's path, so that a proxy
// may strip the path or keep it.
func (s *Server) underPath(mux *http.ServeMux) http.Handler {
	if s.external.Path == "" {
		return mux
	}
	outer := http.NewServeMux()
	outer.Handle("/", mux)
	outer.Handle(s.external.Path+"/", http.StripPrefix(s.external.Path, mux))
	return outer
}

// Drain makes /readyz fail and ends long polls. It may be called more than once.
func (s *Server) Drain() { s.drain() }

// Bounds of a connection. Long polls extend them for their call (see call.extend).
const (
	headerTimeout = 10 * time.Second
	readTimeout   = 20 * time.Second
	writeTimeout  = 40 * time.Second // an issuer may take 20 s
	idleTimeout   = 2 * time.Minute
	maxHeader     = 32 << 10
	maxStreams    = 128
	connBuffer    = 64 << 10 // unread bodies of an HTTP/2 connection; the least that HTTP/2 allows
	streamBuffer  = 32 << 10
)

// HTTPServer returns an http.Server for the handler with all timeouts and size
// limits. tlsConfig may be nil for loopback and Unix sockets.
func (s *Server) HTTPServer(h http.Handler, tlsConfig *tls.Config) *http.Server {
	return &http.Server{
		Handler:           s.closeWhenDraining(h),
		TLSConfig:         tlsConfig,
		ConnContext:       s.cfg.ConnContext,
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams:          maxStreams,
			MaxReceiveBufferPerConnection: connBuffer,
			MaxReceiveBufferPerStream:     streamBuffer,
		},
		ErrorLog: slog.NewLogLogger(s.cfg.Logger.Handler(), slog.LevelWarn),
	}
}

// Serve serves the listener until ctx ends, and then drains in this order: /readyz fails,
// long polls and event streams end, and every answer closes its connection ("Connection:
// close", or GOAWAY). After the drain delay, in which load balancers learn of it and
// clients leave their connections, the listener closes. Running calls get the drain
// timeout. Serve returns nil after an orderly end.
//
// The listener should be an *inbound.Listener, which closes without losing connections.
func (s *Server) Serve(ctx context.Context, l net.Listener, h http.Handler, tlsConfig *tls.Config) error {
	server := s.HTTPServer(h, tlsConfig)
	in, limited := l.(*inbound.Listener)
	if limited {
		server.ConnState = in.Limits().State
		server.ConnContext = inbound.ConnContext(server.ConnContext)
	}
	served := make(chan error, 1)
	go func() {
		if tlsConfig == nil {
			served <- server.Serve(l)
		} else {
			served <- server.ServeTLS(l, "", "")
		}
	}()
	select {
	case err := <-served:
		return fmt.Errorf("serving %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	s.Drain()
	time.Sleep(s.cfg.DrainDelay)
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.DrainTimeout)
	defer cancel()
	if limited {
		if err := in.Drain(stop); err != nil {
			s.cfg.Logger.WarnContext(ctx, "closing a listener: connections that it has not accepted yet are lost", "err", err)
		}
	}
	err := server.Shutdown(stop)
	if <-served; err == nil {
		err = server.Shutdown(stop) // a connection may have been accepted during the first call
	}
	if err != nil {
		return errors.Join(fmt.Errorf("draining %s: %w", l.Addr(), err), server.Close())
	}
	return nil
}

// closeWhenDraining asks clients to leave their connections during a drain.
func (s *Server) closeWhenDraining(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.draining.Err() != nil {
			w.Header().Set("Connection", "close") // over HTTP/2, net/http sends GOAWAY
		}
		h.ServeHTTP(w, r)
	})
}
