package verify

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// Config configures a Verifier. Issuer and Audience are required. The zero value of every
// other field is safe.
type Config struct {
	// Issuer is the broker's external URL, such as "https://broker.acme.test". It must be
	// https, except on loopback. The Verifier reads its metadata (RFC 8414) when it needs them.
	Issuer string

	// Audience is the audience of the tokens that the service accepts, exactly.
	Audience string

	// JWKS is the URL of the issuer's keys; empty: the metadata name it.
	JWKS string

	// Client makes all calls to the issuer; nil: a client with default settings. Set its
	// transport to trust the broker's certificate, and to show the service's own X.509-SVID
	// for introspections. A call takes 5 s at most and follows no redirect.
	Client *http.Client

	// Leeway is how far the clocks of issuer and service may differ. Zero: 5 s; negative:
	// none; at most 1 min.
	Leeway time.Duration

	// MinRefresh is the shortest time between two fetches of the keys, also for tokens with
	// an unknown key. Zero: 30 s.
	MinRefresh time.Duration

	// MaxStale is how long the keys stay in use while the issuer is down. Zero: 6 h.
	MaxStale time.Duration

	// DetailTypes are the types of authorization_details (RFC 9396) that the service enforces.
	// A token with another type is refused: the service would grant more than was approved.
	DetailTypes []string

	// MaxActors is the length of the longest chain of actors (act, RFC 8693, section 4.1).
	// Zero: 4; negative: delegated tokens are refused.
	MaxActors int

	// RequireBinding refuses tokens that are not bound to a key or a certificate.
	RequireBinding bool

	// RotatedSVIDs accepts another certificate than the one to which a token is bound if it
	// is a certificate of the same workload: its SPIFFE ID is the member spiffe_id of cnf.
	// Set it only if the service's TLS configuration verifies client certificates as
	// X.509-SVIDs, as go-spiffe does.
	RotatedSVIDs bool

	// DPoP configures proofs of possession (RFC 9449).
	DPoP DPoP

	// RequireStatus refuses tokens whose revocation can't be seen: those without a status
	// list, unless Introspection is set.
	RequireStatus bool

	// Introspection, if set, checks every token at the issuer, which sees revocations at once.
	// Status lists are not read then.
	Introspection *Introspection

	// ResourceMetadata is the URL of the service's metadata (RFC 9728), for challenges; empty:
	// there are none.
	ResourceMetadata string

	// Realm is the realm of challenges; empty: omitted.
	Realm string

	// Failed, if set, receives the error of every refused call of a Handler, for the service's
	// log. The error contains no part of a token.
	Failed func(*http.Request, error)

	// Now returns the time; nil: time.Now.
	Now func() time.Time
}

// DPoP configures how proofs are checked (RFC 9449). The zero value checks proofs without
// nonces and remembers them in memory.
type DPoP struct {
	// URL is the external URL of the service, such as "https://tickets.acme.test", to which
	// the path of a call is added. Empty: scheme and host of Config.Audience.
	URL string

	// Lasts is how old a proof may be. Zero: 1 min; at most 10 min.
	Lasts time.Duration

	// NonceKey, if set, requires a nonce in each proof (section 9). It has at least 32
	// bytes, and is the same for all processes of the service.
	NonceKey []byte

	// Replays remembers proofs; nil: in the memory of this process. A service with several
	// processes either shares them or requires nonces and accepts that a proof works once per
	// process.
	Replays Replays
}

// Replays remembers used proofs. It is safe for concurrent use.
type Replays interface {
	// Use notes that a proof was used. It reports whether this is the first time. The
	// proof may be forgotten at the given time. An error refuses the call.
	Use(ctx context.Context, proof [32]byte, until time.Time) (first bool, err error)
}

// Introspection configures introspections (RFC 7662). The broker accepts them from the
// resource_servers of the issuer of the tokens.
type Introspection struct {
	// URL is the endpoint; empty: the metadata name it.
	URL string

	// Authorize, if set, returns a JWT-SVID of the service, which authenticates it. Without
	// it, the client certificate of Config.Client does.
	Authorize func(context.Context) (string, error)

	// CacheFor is how long an active token is not introspected again: a revocation is seen
	// that much later. Zero: every call introspects; at most 5 min.
	CacheFor time.Duration
}

const (
	defaultLeeway = 5 * time.Second
	maxLeeway     = time.Minute
	defaultLasts  = time.Minute
	maxLasts      = 10 * time.Minute
	maxCacheFor   = 5 * time.Minute
	minNonceKey   = 32
)

// A Verifier checks tokens. It is safe for concurrent use. It has no goroutines except while
// it fetches from the issuer.
type Verifier struct {
	cfg     Config
	issuer  *url.URL
	service *url.URL // of DPoP proofs; nil: proofs can't be checked
	client  *http.Client
	leeway  time.Duration

	keys   keys
	lists  lists
	active activeTokens
	nonces *nonces
}

// New returns a Verifier. It makes no calls: the first token does.
func New(cfg Config) (*Verifier, error) {
	v := &Verifier{cfg: cfg}
	var err error
	if v.issuer, err = parseIssuer(cfg.Issuer); err != nil {
		return nil, fmt.Errorf("verify: the issuer: %w", err)
	}
	if cfg.Audience == "" {
		return nil, errors.New("verify: the audience is missing")
	}
	for name, address := range map[string]string{"keys": cfg.JWKS, "introspection endpoint": introspectionURL(cfg.Introspection)} {
		if address != "" && !v.trusts(address) {
			return nil, fmt.Errorf("verify: the URL of the %s is not https", name)
		}
	}
	if err := v.setTimes(); err != nil {
		return nil, err
	}
	if err := v.setDPoP(); err != nil {
		return nil, err
	}
	v.setClient()
	v.keys.v, v.lists.v, v.active.v = v, v, v
	return v, nil
}

func introspectionURL(i *Introspection) string {
	if i == nil {
		return ""
	}
	return i.URL
}

// parseIssuer accepts an https URL without query and fragment (RFC 8414, section 2).
func parseIssuer(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || u.User != nil:
		return nil, errors.New("write the external URL of the broker, such as https://broker.acme.test")
	case u.Scheme == "https" || u.Scheme == "http" && isLoopback(u.Hostname()):
		return u, nil
	}
	return nil, errors.New("it must be an https URL")
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// trusts reports whether the Verifier calls a URL: it must be https if the issuer is.
func (v *Verifier) trusts(address string) bool {
	u, err := url.Parse(address)
	return err == nil && u.Host != "" && u.User == nil && (u.Scheme == "https" || u.Scheme == "http" && v.issuer.Scheme == "http" && isLoopback(u.Hostname()))
}

func (v *Verifier) setTimes() error {
	c := &v.cfg
	for _, d := range []*time.Duration{&c.MinRefresh, &c.MaxStale, &c.DPoP.Lasts} {
		if *d < 0 {
			return errors.New("verify: a duration is negative")
		}
	}
	v.leeway = max(0, c.Leeway)
	if c.Leeway == 0 {
		v.leeway = defaultLeeway
	}
	if c.MinRefresh == 0 {
		c.MinRefresh = 30 * time.Second
	}
	if c.MaxStale == 0 {
		c.MaxStale = 6 * time.Hour
	}
	if c.DPoP.Lasts == 0 {
		c.DPoP.Lasts = defaultLasts
	}
	if c.MaxActors == 0 {
		c.MaxActors = 4
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	switch i := c.Introspection; {
	case v.leeway > maxLeeway:
		return errors.New("verify: the leeway is longer than 1 min")
	case c.DPoP.Lasts > maxLasts:
		return errors.New("verify: DPoP proofs may not be older than 10 min")
	case i != nil && (i.CacheFor < 0 || i.CacheFor > maxCacheFor):
		return errors.New("verify: introspections may be kept for 5 min at most")
	}
	return nil
}

func (v *Verifier) setDPoP() error {
	d := &v.cfg.DPoP
	text := d.URL
	if text == "" {
		text = v.cfg.Audience
	}
	u, err := url.Parse(text)
	if err == nil && u.Host != "" && (u.Scheme == "https" || u.Scheme == "http") {
		if d.URL == "" {
			u.Path = ""
		}
		v.service = &url.URL{Scheme: u.Scheme, Host: u.Host, Path: strings.TrimSuffix(u.Path, "/")}
	} else if d.URL != "" {
		return errors.New("verify: the URL of the service is not an https URL")
	}
	if d.Replays == nil {
		d.Replays = newReplays(v.cfg.Now)
	}
	if d.NonceKey != nil {
		if len(d.NonceKey) < minNonceKey {
			return fmt.Errorf("verify: the key of nonces is shorter than %d bytes", minNonceKey)
		}
		v.nonces = &nonces{key: append([]byte(nil), d.NonceKey...)}
	}
	return nil
}

func (v *Verifier) setClient() {
	v.client = &http.Client{}
	if v.cfg.Client != nil {
		*v.client = *v.cfg.Client
	}
	v.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	v.client.Jar = nil
}

// A refresher lets one fetch run at a time, and none earlier than a pause after the last one
// began.
type refresher struct {
	mu      sync.Mutex
	last    time.Time
	running chan struct{} // closed when the fetch ends; nil: none runs
}

// start runs fetch in the background, unless it ran less than the pause ago. It returns a
// channel that is closed when the fetch that runs has ended; nil: none runs.
func (r *refresher) start(now time.Time, pause time.Duration, fetch func(context.Context)) <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.running != nil {
		return r.running
	}
	if since := now.Sub(r.last); !r.last.IsZero() && since < pause && since >= 0 {
		return nil
	}
	done := make(chan struct{})
	r.last, r.running = now, done
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), fetchTimeout)
		defer func() {
			cancel()
			r.mu.Lock()
			r.running = nil
			r.mu.Unlock()
			close(done)
		}()
		fetch(ctx)
	}()
	return done
}

// wait waits for a channel of start.
func wait(ctx context.Context, done <-chan struct{}) error {
	if done == nil {
		return nil
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
