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

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// Config says where trust comes from: WorkloadAPI or Bundles, one of them.
type Config struct {
	// TrustDomain is our own. With a Workload API it may be empty: then it is
	// that of the SVID we are given (which is what command-line tools want).
	TrustDomain string

	// TrustDomains are those whose workloads may authenticate. Empty: only
	// our own.
	TrustDomains []string

	WorkloadAPI string            // "unix:///run/spire/agent.sock" or "tcp://127.0.0.1:8081"
	Bundles     map[string]string // trust domain to file: SPIFFE bundle format (JSON), or PEM for X.509 alone

	StartTimeout      time.Duration // how long Open waits for the Workload API; zero: 20 s
	StartWithoutAgent bool          // Open goes on without a Workload API that does not answer: Run gets what it gives
	PollInterval      time.Duration // between looks at files; zero: 5 s
	Log               *slog.Logger  // of what changes and what goes wrong; nil: discarded
}

// A Source is where trust comes from. It is safe for concurrent use. The zero
// Source trusts nobody and has no SVID; it is enough for ClientTLS by files.
type Source struct {
	cfg   Config
	trust atomic.Pointer[trust] // nil in the zero Source only
	own   atomic.Pointer[ownSVID]

	mu        sync.Mutex        // one change at a time; guards what follows
	delivered bundles           // the last of everything
	faults    map[string]string // what does not work now, by part
	certs     []*certFile       // of servers, polled by Run
	files     []*bundleFile     // polled by Run
}

// ownSVID is our own X.509-SVID, ready for TLS.
type ownSVID struct {
	svid *x509svid.SVID
	cert *tls.Certificate
}

// Open checks the configuration and gets the first bundles (and, from the
// Workload API, the first SVID). It waits for an agent that is not there yet,
// up to StartTimeout; with Later it asks once, and a source of which nobody has
// answered trusts nobody until Run has heard. It starts nothing: Run follows
// what changes.
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

func newSource(cfg Config) (*Source, error) {
	cfg.setDefaults()
	if (cfg.WorkloadAPI == "") == (len(cfg.Bundles) == 0) {
		return nil, errors.New("give a Workload API or bundle files, one of them")
	}
	if cfg.WorkloadAPI != "" {
		if err := workloadapi.ValidateAddress(cfg.WorkloadAPI); err != nil {
			return nil, fmt.Errorf("%q: %w (such as unix:///run/spire/agent.sock)", cfg.WorkloadAPI, err)
		}
	}
	if cfg.WorkloadAPI == "" && cfg.TrustDomain == "" {
		return nil, errors.New("bundle files need the own trust domain to be named")
	}
	s := &Source{cfg: cfg, faults: map[string]string{}}
	listed, err := cfg.listedDomains(cfg.TrustDomain)
	if err != nil {
		return nil, err
	}
	s.trust.Store(bundles{}.restrictTo(listed))
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

// listed gives the trust domains that may authenticate, if ours is own.
func (cfg *Config) listedDomains(own string) (map[spiffeid.TrustDomain]bool, error) {
	names := cfg.TrustDomains
	if len(names) == 0 && own != "" {
		names = []string{own}
	}
	listed := map[spiffeid.TrustDomain]bool{}
	for _, name := range names {
		td, err := spiffeid.TrustDomainFromString(name)
		if err != nil || td.Name() != name {
			return nil, fmt.Errorf("%q is not a trust domain, such as acme.test", name)
		}
		listed[td] = true
	}
	return listed, nil
}

// Run follows what changes, until ctx ends. It fails only on programming
// errors: whatever goes wrong outside is logged, shown by Ready or Degraded,
// and tried again.
func (s *Source) Run(ctx context.Context) error {
	if s.cfg.WorkloadAPI != "" {
		return s.followWorkloadAPI(ctx)
	}
	return s.pollFiles(ctx)
}

// change puts something new in force. The generation moves only if what is
// trusted is different from before.
func (s *Source) change(set func(*bundles)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	set(&s.delivered)
	own := s.cfg.TrustDomain
	if o := s.own.Load(); o != nil {
		own = o.svid.ID.TrustDomain().Name()
	}
	listed, err := s.cfg.listedDomains(own)
	if err != nil {
		return err
	}
	old, fresh := s.trust.Load(), s.delivered.restrictTo(listed)
	if fresh.equal(old) {
		return nil
	}
	fresh.generation = old.generation + 1
	s.trust.Store(fresh)
	s.cfg.Log.Info("trust bundles changed", "generation", fresh.generation, "trust_domains", fresh.domains())
	return nil
}

// report remembers what is wrong with a part, or that it is well (nil), and
// logs it if that is news.
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
		s.cfg.Log.Info("attestation source is well again", "part", part)
	}
}

// Generation counts the changes of what is trusted.
func (s *Source) Generation() uint64 { return s.trust.Load().generation }

// Ready says whether callers can be authenticated: it is an error if there is
// no bundle of our own trust domain, or if our own SVID has expired or, with a
// Workload API, has not come yet.
//
// An agent that is away is no reason to turn callers down: what it last said
// stays in force, and that it can't be heard is told by Degraded. Our own SVID
// bounds how long that goes well.
func (s *Source) Ready() error {
	t := s.trust.Load()
	if len(t.x509) == 0 && len(t.jwt) == 0 {
		return errors.Join(errors.New("there is no trust bundle yet"), s.Degraded())
	}
	if own := s.ownDomain(); !own.IsZero() && t.listed[own] && t.x509[own] == nil && t.jwt[own] == nil {
		return errors.Join(fmt.Errorf("there is no trust bundle of %s", own), s.Degraded())
	}
	if s.cfg.WorkloadAPI != "" && s.own.Load() == nil {
		return errors.Join(ErrNoSVID, s.Degraded())
	}
	if o := s.own.Load(); o != nil && o.svid.Certificates[0].NotAfter.Before(time.Now()) {
		return errors.Join(fmt.Errorf("the broker's own SVID expired at %s", o.cert.Leaf.NotAfter.UTC().Format(time.RFC3339)), s.Degraded())
	}
	return nil
}

// Degraded says what does not work although the broker does: an agent that is
// away, a bundle file that can't be read (what was known before stays in
// force), a listed trust domain without a bundle.
func (s *Source) Degraded() error {
	t := s.trust.Load()
	s.mu.Lock()
	wrong := maps.Clone(s.faults)
	s.mu.Unlock()
	var errs []error
	for _, part := range slices.Sorted(maps.Keys(wrong)) {
		errs = append(errs, fmt.Errorf("%s: %s", part, wrong[part]))
	}
	var missing []string
	for td := range t.listed {
		if t.x509[td] == nil && t.jwt[td] == nil {
			missing = append(missing, td.Name())
		}
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		errs = append(errs, fmt.Errorf("no trust bundle of %s: its workloads can't authenticate", strings.Join(missing, ", ")))
	}
	return errors.Join(errs...)
}

// Close releases what Open took. A source that runs is ended by its context.
func (s *Source) Close() error { return nil }

// SVIDExpires gives the time that is left of our own SVID; negative if it has
// expired, zero if there is none.
func (s *Source) SVIDTimeLeft() time.Duration {
	o := s.own.Load()
	if o == nil {
		return 0
	}
	return time.Until(o.cert.Leaf.NotAfter)
}

// SVIDID gives the SPIFFE ID of our own SVID; empty if there is none.
func (s *Source) SVIDID() string {
	o := s.own.Load()
	if o == nil {
		return ""
	}
	return o.svid.ID.String()
}

// ownDomain is zero as long as it is not known.
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

// ErrNoSVID is returned where our own SVID is needed and there is none.
var ErrNoSVID = errors.New("there is no SVID of our own: it comes from a Workload API")

// GetCertificate gives our own SVID to a TLS server (crypto/tls).
func (s *Source) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if o := s.own.Load(); o != nil {
		return o.cert, nil
	}
	return nil, ErrNoSVID
}

// GetX509BundleForTrustDomain gives the X.509 authorities of a listed trust
// domain. It implements x509bundle.Source.
func (s *Source) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	return s.trust.Load().GetX509BundleForTrustDomain(td)
}

// GetJWTBundleForTrustDomain gives the JWT authorities of a listed trust
// domain. It implements jwtbundle.Source.
func (s *Source) GetJWTBundleForTrustDomain(td spiffeid.TrustDomain) (*jwtbundle.Bundle, error) {
	return s.trust.Load().GetJWTBundleForTrustDomain(td)
}

// newOwnSVID makes an SVID ready for TLS.
func newOwnSVID(svid *x509svid.SVID) *ownSVID {
	chain := make([][]byte, len(svid.Certificates))
	for i, c := range svid.Certificates {
		chain[i] = c.Raw
	}
	return &ownSVID{svid, &tls.Certificate{Certificate: chain, PrivateKey: svid.PrivateKey, Leaf: svid.Certificates[0]}}
}
