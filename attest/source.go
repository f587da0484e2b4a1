package attest

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// Config configures a Source. Exactly one of WorkloadAPI, Bundles and WithoutSVIDs is
// required.
type Config struct {
	// TrustDomain is the process's own trust domain. With a Workload API it may be
	// empty, as in command-line tools: the SVID determines it.
	TrustDomain string

	// TrustDomains lists the trust domains whose workloads may authenticate.
	// Empty: only the own one.
	TrustDomains []string

	WorkloadAPI string            // "unix:///run/spire/agent.sock" or "tcp://127.0.0.1:8081"
	Bundles     map[string]string // files by trust domain: SPIFFE bundle format (JSON), or PEM for X.509 only

	// WithoutSVIDs means that no workload has an SVID: the Source trusts no one.
	WithoutSVIDs bool

	StartTimeout      time.Duration // how long Open waits for the Workload API; zero: 20 s
	StartWithoutAgent bool          // Open succeeds if the agent does not respond; Run then connects
	PollInterval      time.Duration // of files; zero: 5 s

	// BundleMaxAge is how long a bundle stays trusted while its source can't be read.
	// Zero: one hour, or five times the bundle's refresh hint if that is longer, up to
	// 24 hours.
	BundleMaxAge time.Duration
	Log          *slog.Logger // changes and faults; nil: discarded
}

// A Source provides trust bundles and the process's own SVID. It is safe for
// concurrent use. The zero Source has neither; ClientTLS with certificate files
// works with it.
type Source struct {
	cfg   Config
	trust atomic.Pointer[trust] // nil in the zero Source only
	own   atomic.Pointer[ownSVID]

	mu        sync.Mutex           // serializes changes; guards the fields below
	delivered map[origin]*delivery // the last readable bundles
	expired   map[origin]bool      // those that are too old and no longer trusted
	faults    map[string]string    // current faults, by part
	certs     []*certFile          // of servers; Run polls them
	files     []*bundleFile        // Run polls them
}

// An ownSVID is the process's X.509-SVID, with its form for TLS.
type ownSVID struct {
	svid *x509svid.SVID
	cert *tls.Certificate
}

// Open checks the configuration and loads the first bundles and, from a Workload
// API, the first SVID. It waits for the agent up to StartTimeout. With
// StartWithoutAgent it tries once; if the agent does not respond, the Source
// trusts no one until Run reaches it. Open starts no goroutine; Run follows
// changes.
func Open(ctx context.Context, cfg Config) (*Source, error) {
	s, err := newSource(cfg)
	if err != nil {
		return nil, fmt.Errorf("configuring attestation: %w", err)
	}
	if cfg.WorkloadAPI != "" {
		err = s.openWorkloadAPI(ctx)
	} else {
		err = s.openFiles()
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// CheckWorkloadAPI returns an error if the address of a Workload API is malformed.
func CheckWorkloadAPI(address string) error {
	if workloadapi.ValidateAddress(address) != nil {
		return fmt.Errorf("%q is not the address of a Workload API: write one such as unix:///run/spire/agent.sock or tcp://127.0.0.1:8081", address)
	}
	return nil
}

func newSource(cfg Config) (*Source, error) {
	cfg.setDefaults()
	if cfg.WithoutSVIDs && (cfg.WorkloadAPI != "" || len(cfg.Bundles) > 0) || !cfg.WithoutSVIDs && (cfg.WorkloadAPI == "") == (len(cfg.Bundles) == 0) {
		return nil, errors.New("set either a Workload API or bundle files")
	}
	if cfg.WorkloadAPI != "" {
		if err := CheckWorkloadAPI(cfg.WorkloadAPI); err != nil {
			return nil, err
		}
	}
	if cfg.WorkloadAPI == "" && cfg.TrustDomain == "" {
		return nil, errors.New("bundle files need trust_domain: set the broker's own trust domain")
	}
	s := &Source{cfg: cfg, faults: map[string]string{}, delivered: map[origin]*delivery{}, expired: map[origin]bool{}}
	listed, err := cfg.listedDomains(cfg.TrustDomain)
	if err != nil {
		return nil, err
	}
	s.trust.Store(newTrust(listed))
	return s, nil
}

func (cfg *Config) setDefaults() {
	if cfg.StartTimeout == 0 {
		cfg.StartTimeout = 20 * time.Second
	}
	if cfg.PollInterval == 0 {
		cfg.PollInterval = 5 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
}

// listedDomains returns the trust domains that may authenticate, given the own one.
func (cfg *Config) listedDomains(own string) (map[spiffeid.TrustDomain]bool, error) {
	names := cfg.TrustDomains
	if len(names) == 0 && own != "" {
		names = []string{own}
	}
	listed := map[spiffeid.TrustDomain]bool{}
	if cfg.WithoutSVIDs {
		return listed, nil
	}
	for _, name := range names {
		td, err := trustDomain(name)
		if err != nil {
			return nil, err
		}
		listed[td] = true
	}
	return listed, nil
}

// Run follows changes of the Workload API or the files until ctx ends. Faults of
// either are logged, shown by Ready or Degraded, and retried. Run returns an
// error only if the client of the Workload API can't be created.
func (s *Source) Run(ctx context.Context) error {
	if s.cfg.WorkloadAPI != "" {
		return s.followWorkloadAPI(ctx)
	}
	return s.pollFiles(ctx)
}

// change applies set to the delivered bundles and replaces the trust. The
// generation increases only if the trust differs, because a new generation
// invalidates all cached proofs.
func (s *Source) change(now time.Time, set func()) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	set()
	own := s.cfg.TrustDomain
	if o := s.own.Load(); o != nil {
		own = o.svid.ID.TrustDomain().Name()
	}
	listed, err := s.cfg.listedDomains(own)
	if err != nil {
		return err
	}
	old, fresh := s.trust.Load(), newTrust(listed, s.trusted(now)...)
	if fresh.equal(old) {
		return nil
	}
	fresh.generation = old.generation + 1
	s.trust.Store(fresh)
	s.cfg.Log.Info("trust bundles changed", "generation", fresh.generation, "trust_domains", fresh.domains())
	return nil
}

// report stores the state of a part, where nil means that it works, and logs
// changes.
func (s *Source) report(part string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	was, bad := s.faults[part]
	switch {
	case err != nil && was != err.Error():
		s.faults[part] = err.Error()
		s.cfg.Log.Warn("attestation source", "part", part, "err", err)
	case err == nil && bad:
		delete(s.faults, part)
		s.cfg.Log.Info("attestation source works again", "part", part)
	}
}

// Generation returns a counter of the changes of trust.
func (s *Source) Generation() uint64 { return s.trust.Load().generation }

// Ready returns an error if the broker can't authenticate callers: there is no
// bundle at all or none of a listed own trust domain, or, with a Workload API, the
// own SVID is missing or has expired.
//
// An unreachable agent is not an error: its last update stays in force until the
// own SVID expires. Degraded reports it.
func (s *Source) Ready() error {
	if s.cfg.WithoutSVIDs {
		return nil
	}
	t := s.trust.Load()
	if len(t.x509) == 0 && len(t.jwt) == 0 {
		return errors.Join(errors.New("no trust bundle is in force"), s.Degraded())
	}
	if own := s.ownDomain(); !own.IsZero() && t.listed[own] && !t.has(own) {
		return errors.Join(fmt.Errorf("no trust bundle of %s is in force", own), s.Degraded())
	}
	if s.cfg.WorkloadAPI != "" && s.own.Load() == nil {
		return errors.Join(ErrNoSVID, s.Degraded())
	}
	if o := s.own.Load(); o != nil && o.svid.Certificates[0].NotAfter.Before(time.Now()) {
		return errors.Join(fmt.Errorf("the broker's own SVID expired at %s", o.cert.Leaf.NotAfter.UTC().Format(time.RFC3339)), s.Degraded())
	}
	return nil
}

// Degraded returns the faults that do not stop the broker: an unreachable agent, a
// bundle or certificate file that can't be read (its previous content stays in
// force, a bundle for a limited time), and listed trust domains without a bundle.
func (s *Source) Degraded() error {
	t := s.trust.Load()
	s.mu.Lock()
	wrong := maps.Clone(s.faults)
	errs := s.stale(time.Now())
	s.mu.Unlock()
	for _, part := range slices.Sorted(maps.Keys(wrong)) {
		errs = append(errs, fmt.Errorf("%s: %s", part, wrong[part]))
	}
	return errors.Join(append(errs, s.missing(t)...)...)
}

// missing returns the listed trust domains without an authority.
func (s *Source) missing(t *trust) (errs []error) {
	const effect = "workloads of these domains can't authenticate"
	var absent, empty []string
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range t.domains() {
		td := spiffeid.RequireTrustDomainFromString(name)
		switch {
		case t.has(td):
		case s.hasEmpty(td):
			empty = append(empty, name)
		default:
			absent = append(absent, name)
		}
	}
	if len(absent) > 0 {
		errs = append(errs, fmt.Errorf("no trust bundle of %s: %s", strings.Join(absent, ", "), effect))
	}
	if len(empty) > 0 {
		errs = append(errs, fmt.Errorf("no usable key in the trust bundle of %s: %s", strings.Join(empty, ", "), effect))
	}
	return errs
}

// SVIDTimeLeft returns the time until the own SVID expires. It is negative after
// the expiry, and zero if there is no SVID.
func (s *Source) SVIDTimeLeft() time.Duration {
	o := s.own.Load()
	if o == nil {
		return 0
	}
	return time.Until(o.cert.Leaf.NotAfter)
}

// SVIDID returns the SPIFFE ID of the own SVID, or "" if there is none.
func (s *Source) SVIDID() string {
	o := s.own.Load()
	if o == nil {
		return ""
	}
	return o.svid.ID.String()
}

// ownDomain returns the own trust domain: that of the SVID, or else the configured
// one. It is zero while neither is known.
func (s *Source) ownDomain() spiffeid.TrustDomain {
	if o := s.own.Load(); o != nil {
		return o.svid.ID.TrustDomain()
	}
	td, err := spiffeid.TrustDomainFromString(s.cfg.TrustDomain)
	if err != nil {
		return spiffeid.TrustDomain{}
	}
	return td
}

// ErrNoSVID means that the own SVID is needed and there is none.
var ErrNoSVID = errors.New("this process has no SVID: configure a Workload API, or use certificate files")

// GetCertificate returns the own SVID. It has the signature of
// tls.Config.GetCertificate.
func (s *Source) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if o := s.own.Load(); o != nil {
		return o.cert, nil
	}
	return nil, ErrNoSVID
}

// GetX509BundleForTrustDomain returns the X.509 authorities of a listed trust
// domain. It implements x509bundle.Source.
func (s *Source) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	return s.trust.Load().GetX509BundleForTrustDomain(td)
}

// newOwnSVID converts an SVID for TLS.
func newOwnSVID(svid *x509svid.SVID) *ownSVID {
	chain := make([][]byte, len(svid.Certificates))
	for i, c := range svid.Certificates {
		chain[i] = c.Raw
	}
	return &ownSVID{svid, &tls.Certificate{Certificate: chain, PrivateKey: svid.PrivateKey, Leaf: svid.Certificates[0]}}
}
