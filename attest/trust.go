package attest

import (
	"errors"
	"maps"
	"slices"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// A trust is what is trusted at one moment: the bundles of the listed trust
// domains, and of no other. It is not changed once made, so that one proof is
// checked against one state, and what was remembered under it can be told from
// what holds now.
type trust struct {
	generation uint64 // grows whenever a bundle changes
	listed     map[spiffeid.TrustDomain]bool
	x509       map[spiffeid.TrustDomain]*x509bundle.Bundle
	jwt        map[spiffeid.TrustDomain]*jwtbundle.Bundle
}

var errNoBundle = errors.New("there is no bundle of the trust domain")

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

// equal says whether both trust the same keys. The generation is left aside.
func (t *trust) equal(u *trust) bool {
	return maps.Equal(t.listed, u.listed) &&
		maps.EqualFunc(t.x509, u.x509, (*x509bundle.Bundle).Equal) &&
		maps.EqualFunc(t.jwt, u.jwt, (*jwtbundle.Bundle).Equal)
}

// domains gives the names of the listed trust domains, sorted.
func (t *trust) domains() []string {
	names := make([]string, 0, len(t.listed))
	for td := range t.listed {
		names = append(names, td.Name())
	}
	slices.Sort(names)
	return names
}

// delivered is everything that a source has been given, listed or not.
type bundles struct {
	x509 []*x509bundle.Bundle
	jwt  []*jwtbundle.Bundle
}

// trusting keeps what the operator listed. That a bundle was delivered says
// that somebody federated with its domain, not that its workloads may ask here.
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
