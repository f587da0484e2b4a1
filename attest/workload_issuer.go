package attest

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"accessbroker.internal/attest/jwks"
	"accessbroker.internal/attest/mapping"
	"accessbroker.internal/broker"
	"accessbroker.internal/internal/outbound"
)

// A WorkloadIssuerConfig configures an issuer of OIDC tokens of workloads, such as a
// Kubernetes cluster, a CI service or a cloud. Its workloads need no SVID.
type WorkloadIssuerConfig struct {
	Name        string // for logs and metrics
	Issuer      string // its URL, exactly as in the iss of its tokens
	Audience    string // of the broker, the only audience of its tokens
	Algorithms  []string
	MaxLifetime time.Duration // from iat to exp

	// Reusable means that a token may be used for several credentials. Otherwise, one with a
	// jti is used for one.
	Reusable bool

	// JWKSURI or JWKSFile is where the keys are. Without either, the issuer's discovery
	// document has their URL.
	JWKSURI, JWKSFile string

	Bearer func() (string, error) // authenticates the broker at the issuer; nil: it does not
	Roots  *x509.CertPool         // nil: the system's
	Rules  []*mapping.Compiled
	Log    *slog.Logger // nil: discarded
}

// WorkloadAlgorithms are the algorithms that tokens of workloads may have. HMAC, whose key
// the broker would have to share, and none are not among them.
func WorkloadAlgorithms() []string { return slices.Clone(idTokenAlgorithms) }

// Intervals of the keys of issuers.
const (
	issuerTimeout  = 5 * time.Second // of one call of an issuer
	keysInterval   = 5 * time.Minute // after which the keys of an issuer are fetched again, with jitter
	fileInterval   = 5 * time.Second // as keysInterval, for a file
	firstKeyRetry  = 2 * time.Second // after a failed fetch; it doubles up to lastKeyRetry
	lastKeyRetry   = time.Minute
	unknownKeyWait = 3 * time.Second // how long a token with an unknown key waits for a fetch
	unknownKeyRest = 5 * time.Second // after which another token with an unknown key causes a fetch
)

// WorkloadIssuers are the issuers of OIDC tokens of workloads. They are safe for concurrent
// use.
//
// Run fetches their keys. A call never waits for an issuer, except one at a time whose token
// has an unknown key: anyone can send tokens, and those of other callers must not wait.
type WorkloadIssuers struct {
	byURL   map[string]*workloadIssuer
	names   []string // of the issuers, sorted, as byURL has them
	tokens  *cache[cachedWorkload]
	waiting chan struct{} // has room for the call that waits
}

// A workloadIssuer is one issuer.
type workloadIssuer struct {
	cfg    WorkloadIssuerConfig
	log    *slog.Logger
	client *http.Client
	keys   *jwks.Remote

	unknown atomic.Int64 // when a token with an unknown key caused a fetch last, in Unix nanoseconds

	jwksURI string    // guarded by the mutex of keys, which is held during a fetch
	found   time.Time // when discovery found jwksURI; guarded as jwksURI is
}

// NewWorkloadIssuers returns the issuers. Each URL has one.
func NewWorkloadIssuers(configs ...WorkloadIssuerConfig) (*WorkloadIssuers, error) {
	all := &WorkloadIssuers{byURL: map[string]*workloadIssuer{}, tokens: newCache[cachedWorkload](8192), waiting: make(chan struct{}, 1)}
	for _, cfg := range configs {
		if all.byURL[cfg.Issuer] != nil {
			return nil, fmt.Errorf("two issuers of workload tokens have the URL %s", cfg.Issuer)
		}
		i, err := newWorkloadIssuer(cfg)
		if err != nil {
			return nil, fmt.Errorf("issuer %s: %w", cfg.Name, err)
		}
		all.byURL[cfg.Issuer] = i
	}
	slices.SortFunc(configs, func(a, b WorkloadIssuerConfig) int { return strings.Compare(a.Name, b.Name) })
	for _, cfg := range configs {
		all.names = append(all.names, cfg.Issuer)
	}
	return all, nil
}

func newWorkloadIssuer(cfg WorkloadIssuerConfig) (*workloadIssuer, error) {
	if err := CheckWorkloadIssuer(cfg.Issuer); err != nil {
		return nil, err
	}
	if len(cfg.Rules) == 0 || cfg.Audience == "" || cfg.MaxLifetime <= 0 || len(cfg.Algorithms) == 0 {
		return nil, errors.New("rules, audience, maximum lifetime and algorithms are required")
	}
	for _, alg := range cfg.Algorithms {
		if !slices.Contains(idTokenAlgorithms, alg) {
			return nil, fmt.Errorf("the algorithm %q is not supported", alg)
		}
	}
	client := outbound.Client(cfg.Roots, true)
	client.Timeout = issuerTimeout
	client.Transport.(*http.Transport).Proxy = http.ProxyFromEnvironment
	i := &workloadIssuer{cfg: cfg, log: cmp.Or(cfg.Log, slog.New(slog.DiscardHandler)), client: client, jwksURI: cfg.JWKSURI}
	i.keys = jwks.NewRemote(i.fetchKeys, i.observe)
	return i, nil
}

// CheckWorkloadIssuer returns an error unless a URL may be that of an issuer: https, or http
// on this machine (OpenID Connect Core 1.0, section 2).
func CheckWorkloadIssuer(issuer string) error {
	u, err := url.Parse(issuer)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Opaque != "" || strings.ContainsAny(issuer, "?#") || u.Scheme != "https" && !loopback(u) {
		return errors.New("the issuer must be an https URL without user, query and fragment, exactly as in the iss of its tokens")
	}
	return nil
}

// observe logs the outcome of a fetch.
func (i *workloadIssuer) observe(set *jwks.Set, err error) {
	if err != nil {
		i.log.Warn("the keys of the issuer of workload tokens can't be read", "issuer", i.cfg.Name, "err", err)
		return
	}
	if len(set.LeftOut) > 0 {
		i.log.Warn("keys of the issuer of workload tokens are left out", "issuer", i.cfg.Name, "count", len(set.LeftOut), "keys", describe(set.LeftOut))
	}
}

// Run keeps the keys of the issuers up to date until ctx ends, so that a key that an issuer
// withdraws is no longer accepted.
func (w *WorkloadIssuers) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, i := range w.byURL {
		g.Go(func() error { return i.run(ctx) })
	}
	return g.Wait()
}

func (i *workloadIssuer) run(ctx context.Context) error {
	interval := keysInterval
	if i.cfg.JWKSFile != "" {
		interval = fileInterval
	}
	for retry := firstKeyRetry; ; {
		pause := interval
		if err := i.keys.Refresh(ctx); err != nil {
			pause = min(retry, interval)
			retry = min(2*retry, lastKeyRetry)
		} else {
			retry = firstKeyRetry
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause - time.Duration(rand.Int64N(int64(pause/5)+1))):
		}
	}
}

// Refresh fetches the keys of all issuers once. Each error names its issuer.
func (w *WorkloadIssuers) Refresh(ctx context.Context) error {
	errs := make([]error, len(w.names))
	var all sync.WaitGroup
	for n, url := range w.names {
		all.Go(func() {
			if err := w.byURL[url].keys.Refresh(ctx); err != nil {
				errs[n] = fmt.Errorf("issuer %s: %w", w.byURL[url].cfg.Name, err)
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// Degraded returns an error if the keys of an issuer cannot be read.
func (w *WorkloadIssuers) Degraded() error {
	var failing []string
	for _, url := range w.names {
		i := w.byURL[url]
		if status, ok := i.keys.Status(time.Now()); !ok || status.Age > 0 {
			failing = append(failing, i.cfg.Name)
		}
	}
	if failing == nil {
		return nil
	}
	return fmt.Errorf("the keys of issuers of workload tokens can't be read: %s: see the broker's log", strings.Join(failing, ", "))
}

// KeySources describes the keys of the issuers.
func (w *WorkloadIssuers) KeySources(now time.Time) (list []KeySource) {
	for _, url := range w.names {
		i := w.byURL[url]
		if k, ok := i.keys.Status(now); ok {
			list = append(list, KeySource{Name: i.cfg.Name, Keys: map[string]int{"sig": k.Keys}, LeftOut: countReasons(k.LeftOut), Age: k.Age})
		}
	}
	return list
}

// verify verifies the signature of a token.
func (w *WorkloadIssuers) verify(ctx context.Context, i *workloadIssuer, signed *jwks.Signed, now time.Time) error {
	if i.keys.VerifyKnown(signed, now) == nil {
		return nil
	}
	forged := workloadFailure(CauseSignature, "is not signed with a key that its issuer publishes: get a new one")
	if _, trusted := i.keys.Generation(); trusted && time.Since(time.Unix(0, i.unknown.Load())) < unknownKeyRest {
		return forged
	}
	select {
	case w.waiting <- struct{}{}:
		defer func() { <-w.waiting }()
	default:
		return i.unavailable(errors.New("its keys are being fetched"))
	}
	i.unknown.Store(time.Now().UnixNano())
	ctx, cancel := context.WithTimeout(ctx, unknownKeyWait)
	defer cancel()
	err := i.keys.Verify(ctx, signed)
	if failed := (*jwks.FetchError)(nil); errors.As(err, &failed) {
		return i.unavailable(failed)
	}
	if err != nil {
		return forged
	}
	return nil
}

// unavailable returns a broker.ErrUnavailable: the issuer is at fault, not the caller.
func (i *workloadIssuer) unavailable(err error) error {
	return fmt.Errorf("%w: issuer %s of workload tokens: %w", broker.ErrUnavailable, i.cfg.Name, err)
}
