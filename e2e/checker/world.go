package checker

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"accessbroker.internal/attest/localca"
	"accessbroker.internal/e2e/cluster"
)

// The entitlements of a run.
const (
	free     = "free-api"     // no bounds
	limited  = "limited-api"  // limitCount in any period
	active   = "active-api"   // activeCount at a time
	approved = "approved-api" // approvals by two of three people
	orders   = "orders"       // made by the upstream
)

const (
	limitCount  = 5
	activeCount = 3
)

// rules are the bounds that checkerPolicies state.
var rules = Rules{
	limited:  {Limit: limitCount, Per: 24 * time.Hour},
	active:   {MaxActive: activeCount},
	approved: {Approvals: 2},
}

// voters may approve; the operator may block and revoke.
var voters = []string{"login/ben", "login/dan", "login/kim"}

const operator = "login/dan"

const checkerPolicies = `
@id("checker")
permit (principal in Path::"spiffe://acme.test/checker", action == Action::"request", resource)
when { resource == Entitlement::"free-api" || resource == Entitlement::"orders" };

@id("checker-limited")
@limit("5 per 24h")
permit (principal in Path::"spiffe://acme.test/checker", action == Action::"request", resource == Entitlement::"limited-api");

@id("checker-active")
@max_active("3")
permit (principal in Path::"spiffe://acme.test/checker", action == Action::"request", resource == Entitlement::"active-api");

@id("checker-approved")
@approval("2 of voters")
permit (principal in Path::"spiffe://acme.test/checker", action == Action::"request", resource == Entitlement::"approved-api");
`

const checkerGroups = `
voters: {members: [login/ben, login/dan, login/kim]}
`

const checkerEntitlements = `  free-api: {issuer: tickets, scopes: ["free:read"], default_ttl: 2m, max_ttl: 15m}
  limited-api: {issuer: tickets, scopes: ["limited:read"], default_ttl: 2m, max_ttl: 15m}
  active-api: {issuer: tickets, scopes: ["active:read"], default_ttl: 20s, max_ttl: 15m}
  approved-api: {issuer: tickets, scopes: ["approved:read"], default_ttl: 2m, max_ttl: 15m}
  orders: {issuer: vault, vault: {path: database/creds/orders}, default_ttl: 2m, max_ttl: 15m}
`

// edit adds what a run needs to the operator's file of a replica.
func edit(file, upstream string) (string, error) {
	for _, e := range [][2]string{
		{"server:\n", "server:\n  admission: {per_second: 100000, pending: 1000, waiting_requests: 500, resource_servers: {per_second: 100000, pending: 1000}}\n"},
		{"\nissuers:\n", "\nissuers:\n  vault: {vault: {address: \"http://" + upstream + "\", token_role: broker-leases, auth: {agent: true}}}\n"},
		{"\nentitlements:\n", "\nentitlements:\n" + checkerEntitlements},
	} {
		if strings.Count(file, e[0]) != 1 {
			return "", fmt.Errorf("the operator's file does not have %q once", e[0])
		}
		file = strings.Replace(file, e[0], e[1], 1)
	}
	return file, nil
}

// A world is the replicas of a run, as its clients see them.
type world struct {
	*cluster.World
	upstream  *upstream
	relays    []*cluster.Relay // between the clients and each replica
	endpoints []*endpoint
	sessions  map[string]string // of people

	history   *History
	recovery  time.Duration // how long replicas may take until they are ready after a fault
	immortal  int           // the number of replicas, from the first, whose process must not end
	failovers int           // so far
	notes     []string      // checkpoints from the files of replicas

	mu     sync.Mutex
	proofs map[string]proof // by holder
}

// A proof is a JWT-SVID.
type proof struct {
	token string
	until time.Time
}

// newWorld starts everything that a run needs, and the replicas.
func newWorld(ctx context.Context, c Config, h *History) (w *world, err error) {
	w = &world{history: h, recovery: c.Recovery, sessions: map[string]string{}, proofs: map[string]proof{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.close())
		}
	}()
	if w.upstream, err = startUpstream(c.Seed); err != nil {
		return w, err
	}
	var edited error
	dir := filepath.Join(c.Dir, "world")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return w, err
	}
	o := cluster.Options{Dir: dir, Binary: c.Binary, Replicas: c.Replicas, Edit: func(_ int, file string) string {
		file, err := edit(file, w.upstream.at)
		edited = errors.Join(edited, err)
		return file
	}}
	if c.Postgres {
		o.Postgres, o.Relays, o.Standby = &cluster.PostgresOptions{}, true, c.Standby
	}
	if c.Spare {
		w.immortal = 1
	}
	if w.World, err = cluster.New(ctx, o); err != nil || edited != nil {
		return w, errors.Join(err, edited)
	}
	if err := w.writePolicies(); err != nil {
		return w, err
	}
	if c.Postgres {
		if err := w.prepareClock(ctx); err != nil {
			return w, err
		}
	}
	if err := w.StartBrokers(ctx); err != nil {
		return w, fmt.Errorf("%w: %w", ErrNotStarted, err)
	}
	if c.Standby {
		if err := w.synchronize(ctx); err != nil {
			return w, err
		}
	}
	for _, b := range w.Replicas {
		relay, err := cluster.NewRelay(b.Address)
		if err != nil {
			return w, err
		}
		w.relays = append(w.relays, relay)
		w.endpoints = append(w.endpoints, &endpoint{base: w.URL(), http: w.through(relay.Address())})
	}
	for _, person := range voters {
		if w.sessions[person], err = w.logIn(ctx, strings.TrimPrefix(person, "login/")); err != nil {
			return w, fmt.Errorf("logging %s in: %w", person, err)
		}
	}
	return w, nil
}

func (w *world) writePolicies() error {
	groups := w.Dev.Path("policies/groups.yaml")
	text, err := os.ReadFile(groups)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(groups, append(text, checkerGroups...), 0o600),
		os.WriteFile(w.Dev.Path("policies/checker.cedar"), []byte(checkerPolicies), 0o600),
	)
}

// through returns a client that calls the broker at an address, whatever the URL is.
func (w *world) through(address string) *http.Client {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(w.CA.X509Bundle())
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	return &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 64,
			DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return dialer.DialContext(ctx, network, address)
			},
		},
	}
}

// proofOf returns a JWT-SVID of a workload.
func (w *world) proofOf(holder string) (string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	if p := w.proofs[holder]; now.Before(p.until) {
		return p.token, nil
	}
	token, err := w.CA.JWTSVID(holder, localca.JWTTTL, w.URL())
	if err == nil {
		w.proofs[holder] = proof{token, now.Add(time.Minute)}
	}
	return token, err
}

// logIn logs a person in at the first replica, as a browser does, and returns the token of
// the session.
func (w *world) logIn(ctx context.Context, person string) (string, error) {
	jar, err := cookiejar.New(nil)
	if err != nil {
		return "", err
	}
	broker := w.through(w.Replicas[0].Address)
	broker.Jar = jar
	provider := &http.Client{CheckRedirect: broker.CheckRedirect, Timeout: 10 * time.Second}
	where, err := follow(ctx, broker, http.MethodGet, w.URL()+"/ui/login?provider=login", nil)
	if err != nil {
		return "", err
	}
	if where, err = follow(ctx, provider, http.MethodPost, where, url.Values{"person": {person}}); err != nil {
		return "", err
	}
	if _, err = follow(ctx, broker, http.MethodGet, where, nil); err != nil {
		return "", err
	}
	at, err := url.Parse(w.URL())
	if err != nil {
		return "", err
	}
	for _, c := range jar.Cookies(at) {
		if c.Name == "__Host-broker-session" {
			return c.Value, nil
		}
	}
	return "", errors.New("the broker set no session")
}

// follow makes a call that must be answered with a redirect, and returns its target.
func follow(ctx context.Context, c *http.Client, method, where string, form url.Values) (string, error) {
	req, err := http.NewRequestWithContext(ctx, method, where, strings.NewReader(form.Encode()))
	if err != nil {
		return "", err
	}
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	resp, err := c.Do(req)
	if err != nil {
		return "", err
	}
	_ = resp.Body.Close()
	if next := resp.Header.Get("Location"); next != "" {
		return next, nil
	}
	return "", fmt.Errorf("%s answers %s, want a redirect", where, resp.Status)
}

// close ends everything.
func (w *world) close() error {
	var err error
	for _, e := range w.endpoints {
		e.http.CloseIdleConnections()
	}
	for _, r := range w.relays {
		r.Close()
	}
	if w.World != nil {
		err = w.World.Close()
	}
	if w.upstream != nil {
		w.upstream.close()
	}
	return err
}
