package attest

import (
	"errors"
	"maps"
	"slices"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// A trust is an immutable set of the bundles of the listed trust domains. Each
// proof is verified against one trust, and cached with its generation.
type trust struct {
	generation uint64 // increases with every change of a bundle
	listed     map[spiffeid.TrustDomain]bool
	x509       map[spiffeid.TrustDomain]*x509bundle.Bundle
	jwt        map[spiffeid.TrustDomain]*jwtbundle.Bundle
}

var errNoBundle = errors.New("no bundle of the trust domain")

// GetX509BundleForTrustDomain implements x509bundle.Source.
func (t *trust) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	if t != nil && t.x509[td] != nil {
		return t.x509[td], nil
	}
	return nil, errNoBundle
}

// GetJWTBundleForTrustDomain implements jwtbundle.Source.
func (t *trust) GetJWTBundleForTrustDomain(td spiffeid.TrustDomain) (*jwtbundle.Bundle, error) {
	if t != nil && t.jwt[td] != nil {
		return t.jwt[td], nil
	}
	return nil, errNoBundle
}

// equal reports whether t and u list the same trust domains and trust the same
// keys. It ignores the generation.
func (t *trust) equal(u *trust) bool {
	return maps.Equal(t.listed, u.listed) &&
		maps.EqualFunc(t.x509, u.x509, (*x509bundle.Bundle).Equal) &&
		maps.EqualFunc(t.jwt, u.jwt, (*jwtbundle.Bundle).Equal)
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

// bundles holds every bundle that a Source received, listed or not.
type bundles struct {
	x509 []*x509bundle.Bundle
	jwt  []*jwtbundle.Bundle
}

// restrictTo returns the trust with the bundles of the listed trust domains. A
// Workload API also delivers bundles of domains with which someone federated;
// their workloads may not authenticate unless the operator lists the domain.
func (b bundles) restrictTo(listed map[spiffeid.TrustDomain]bool) *trust {
	t := &trust{
		listed: listed,
		x509:   map[spiffeid.TrustDomain]*x509bundle.Bundle{},
		jwt:    map[spiffeid.TrustDomain]*jwtbundle.Bundle{},
	}
	for _, bundle := range b.x509 {
		if listed[bundle.TrustDomain()] && !bundle.Empty() {
			t.x509[bundle.TrustDomain()] = bundle
		}
	}
	for _, bundle := range b.jwt {
		if listed[bundle.TrustDomain()] && !bundle.Empty() {
			t.jwt[bundle.TrustDomain()] = bundle
		}
	}
	return t
}
