package attest

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"accessbroker.internal/attest/jwks"
)

// How long a bundle stays trusted after its source could be read last. SPIFFE
// Federation, section 4.1, has new keys published three to five refreshes before
// they are used; a consumer that missed five can't verify new SVIDs anyway, and a key
// that was withdrawn meanwhile must not stay trusted without end.
const (
	minBundleAge = time.Hour
	maxBundleAge = 24 * time.Hour
	refreshes    = 5
)

// An origin is where a bundle comes from.
type origin struct {
	part   string // the path of a file, or a part of the Workload API
	domain spiffeid.TrustDomain
}

// String names the origin in logs and in Degraded.
func (s origin) String() string { return s.part + ", bundle of " + s.domain.Name() }

// A delivery is the last bundle of an origin that could be read.
type delivery struct {
	*bundle
	live bool      // the source still confirms it
	read time.Time // if not live: when the source last confirmed it
}

// age returns how long ago the source confirmed the bundle.
func (d *delivery) age(now time.Time) time.Duration {
	if d.live {
		return 0
	}
	return max(0, now.Sub(d.read))
}

// maxAge returns the age at which the bundle is no longer trusted.
func (cfg *Config) maxAge(b *bundle) time.Duration {
	return cmp.Or(cfg.BundleMaxAge, min(max(minBundleAge, refreshes*b.refresh), maxBundleAge))
}

// deliver stores a bundle that was read at now, and logs the keys that it leaves out
// if they changed. The caller holds mu.
func (s *Source) deliver(from origin, b *bundle, now time.Time) {
	var before []jwks.LeftOut
	if old := s.delivered[from]; old != nil {
		before = old.leftOut
	}
	if s.isListed(b.domain) && !slices.Equal(before, b.leftOut) {
		s.logLeftOut(from, b.leftOut)
	}
	s.delivered[from] = &delivery{b, true, now}
}

func (s *Source) logLeftOut(from origin, left []jwks.LeftOut) {
	if len(left) == 0 {
		s.cfg.Log.Info("every key of the trust bundle is used again", "source", from.String())
		return
	}
	s.cfg.Log.Warn("keys of the trust bundle are left out", "source", from.String(), "count", len(left), "keys", describe(left))
}

// describe describes the first of the left-out keys.
func describe(left []jwks.LeftOut) string {
	const most = 10
	var details []string
	for _, l := range left[:min(len(left), most)] {
		details = append(details, l.String())
	}
	return strings.Join(details, "; ")
}

func countReasons(left []jwks.LeftOut) map[jwks.Reason]int {
	n := map[jwks.Reason]int{}
	for _, l := range left {
		n[l.Reason]++
	}
	return n
}

// unconfirmed records that the source of an origin could not be read at now. Its last
// bundle stays in force until it is too old. The caller holds mu.
func (s *Source) unconfirmed(from origin, now time.Time) {
	if d := s.delivered[from]; d != nil && d.live {
		d.live, d.read = false, now
	}
}

// trusted returns the bundles that are not too old. The caller holds mu.
func (s *Source) trusted(now time.Time) (list []*bundle) {
	for from, d := range s.delivered {
		if d.age(now) < s.cfg.maxAge(d.bundle) {
			list = append(list, d.bundle)
			continue
		}
		if !s.expired[from] {
			s.expired[from] = true
			s.cfg.Log.Error("the trust bundle is too old and no longer trusted", "source", from.String(), "age", d.age(now).Round(time.Second).String())
		}
	}
	maps.DeleteFunc(s.expired, func(from origin, _ bool) bool {
		d := s.delivered[from]
		return d == nil || d.age(now) < s.cfg.maxAge(d.bundle)
	})
	return list
}

// stale returns the bundles whose source can't be read. The caller holds mu.
func (s *Source) stale(now time.Time) (errs []error) {
	for _, from := range sortedOrigins(s.delivered) {
		d := s.delivered[from]
		age, most := d.age(now).Round(time.Second), s.cfg.maxAge(d.bundle)
		switch {
		case d.live || !s.isListed(d.domain):
		case age >= most:
			errs = append(errs, fmt.Errorf("%s: it was read %s ago and is no longer trusted", from, age))
		default:
			errs = append(errs, fmt.Errorf("%s: it was read %s ago and stays trusted for another %s", from, age, most-age))
		}
	}
	return errs
}

// hasEmpty reports whether the current bundle of a trust domain has no usable key. The
// caller holds mu.
func (s *Source) hasEmpty(td spiffeid.TrustDomain) bool {
	for from, d := range s.delivered {
		if from.domain == td && !s.expired[from] && d.x509.Empty() && len(d.jwt) == 0 {
			return true
		}
	}
	return false
}

func (s *Source) isListed(td spiffeid.TrustDomain) bool { return s.trust.Load().listed[td] }

func sortedOrigins(m map[origin]*delivery) []origin {
	return slices.SortedFunc(maps.Keys(m), func(a, b origin) int {
		return cmp.Or(strings.Compare(a.domain.Name(), b.domain.Name()), strings.Compare(a.part, b.part))
	})
}

// Reasons lists why keys are left out.
var Reasons = jwks.Reasons

// A KeySource describes the keys of a trust bundle or of an OpenID provider, for
// metrics.
type KeySource struct {
	Name    string              // trust domain or provider
	Keys    map[string]int      // in use, by kind: x509, jwt
	LeftOut map[jwks.Reason]int // not in use
	Age     time.Duration       // since the source was last read
}

// KeySources describes the bundles of the listed trust domains.
func (s *Source) KeySources(now time.Time) []KeySource {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.trust.Load()
	var list []KeySource
	for _, name := range t.domains() {
		k := KeySource{Name: name, Keys: map[string]int{"x509": 0, "jwt": 0}, LeftOut: map[jwks.Reason]int{}}
		td := spiffeid.RequireTrustDomainFromString(name)
		if t.x509[td] != nil {
			k.Keys["x509"] = len(t.x509[td].X509Authorities())
		}
		for _, keys := range t.jwt[td] {
			k.Keys["jwt"] += len(keys)
		}
		for _, d := range s.delivered {
			if d.domain == td {
				k.Age = max(k.Age, d.age(now))
				for _, l := range d.leftOut {
					k.LeftOut[l.Reason]++
				}
			}
		}
		list = append(list, k)
	}
	return list
}
