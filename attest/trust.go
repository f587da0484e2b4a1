package attest

import (
	"errors"
	"maps"
	"slices"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"accessbroker.internal/broker"
)

// A trust is an immutable set of the authorities of the listed trust domains. Each
// proof is verified against one trust, and cached with its generation.
type trust struct {
	generation uint64 // increases with every change of an authority
	listed     map[spiffeid.TrustDomain]bool
	x509       map[spiffeid.TrustDomain]*x509bundle.Bundle // none is empty
	jwt        map[spiffeid.TrustDomain]jwtKeys            // likewise
}

var errNoBundle = errors.New("no bundle of the trust domain")

// GetX509BundleForTrustDomain implements x509bundle.Source.
func (t *trust) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	if t != nil && t.x509[td] != nil {
		return t.x509[td], nil
	}
	return nil, errNoBundle
}

// has reports whether t has an authority of the trust domain.
func (t *trust) has(td spiffeid.TrustDomain) bool { return t.x509[td] != nil || t.jwt[td] != nil }

// equal reports whether t and u list the same trust domains and trust the same
// keys. It ignores the generation.
func (t *trust) equal(u *trust) bool {
	return maps.Equal(t.listed, u.listed) &&
		maps.EqualFunc(t.x509, u.x509, (*x509bundle.Bundle).Equal) &&
		maps.EqualFunc(t.jwt, u.jwt, jwtKeys.equal)
}

// domains returns the sorted names of the listed trust domains.
func (t *trust) domains() []string {
	names := make([]string, 0, len(t.listed))
	for td := range t.listed {
		names = append(names, td.Name())
	}
	slices.Sort(names)
	return names
}

// newTrust returns the trust with the bundles of the listed trust domains. A
// Workload API also delivers bundles of domains with which someone federated;
// their workloads may not authenticate unless the operator lists the domain.
func newTrust(listed map[spiffeid.TrustDomain]bool, list ...*bundle) *trust {
	t := &trust{
		listed: listed,
		x509:   map[spiffeid.TrustDomain]*x509bundle.Bundle{},
		jwt:    map[spiffeid.TrustDomain]jwtKeys{},
	}
	for _, b := range list {
		if listed[b.domain] && !b.x509.Empty() {
			t.x509[b.domain] = b.x509
		}
		if listed[b.domain] && len(b.jwt) > 0 {
			t.jwt[b.domain] = b.jwt
		}
	}
	return t
}

// trustDomain returns a trust domain as go-spiffe's type. Unlike go-spiffe it refuses a
// SPIFFE ID.
func trustDomain(name string) (spiffeid.TrustDomain, error) {
	if err := broker.CheckTrustDomain(name); err != nil {
		return spiffeid.TrustDomain{}, err
	}
	return spiffeid.TrustDomainFromString(name)
}
