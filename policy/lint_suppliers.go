package policy

import (
	"fmt"
	"slices"

	"github.com/cedar-policy/cedar-go/types"

	"accessbroker.internal/broker"
)

// placesOf returns the SPIFFE IDs of the paths and trust domains of a supplier.
func (l *linter) placesOf(uid types.EntityUID) (places []string) {
	s := l.suppliers.Named(string(uid.ID))
	if s == nil {
		return nil
	}
	places = slices.Clone(s.Paths)
	for _, domain := range s.TrustDomains {
		places = append(places, spiffeScheme+domain)
	}
	return places
}

// checkSuppliers warns of suppliers that no one can assess although a policy requires it,
// and of federated trust domains without a supplier.
func (l *linter) checkSuppliers() {
	if !l.governs {
		return
	}
	named := set{l.known.home: true}
	for _, domain := range l.in.Internal {
		named[domain] = true
	}
	for _, s := range l.suppliers.All() {
		for _, place := range l.placesOf(types.NewEntityUID(typeSupplier, types.String(s.Name))) {
			named[broker.TrustDomainOf(place)] = true
		}
	}
	for _, d := range l.in.TrustDomains {
		if !named[d] {
			l.problems.add(Problem{File: "attest.trust_domains", Text: fmt.Sprintf(
				"%q belongs to no supplier of %s, so every request of its workloads is denied: add its supplier, or list a domain of your own in attest.internal_domains", d, suppliersName)})
		}
	}
}

// checkAssessed warns of @supplier on a permit that others than suppliers can use: their
// requests are refused. It warns of suppliers without assessors too, and of entitlements
// above a ceiling.
func (l *linter) checkAssessed(r *rule, covered []*broker.Entitlement) {
	if r.Supplier.Required() && l.suppliers.Len() == 0 {
		l.warn(r, "@supplier", "@supplier requires a supplier, but there is none: add %s", suppliersName)
		return
	}
	if r.principal.uid.Type != typeSupplier {
		return
	}
	s := l.suppliers.Named(string(r.principal.uid.ID))
	if s == nil {
		return
	}
	if r.Supplier.Required() && s.Assessors == "" {
		l.warn(r, "@supplier", "@supplier requires an assessment of supplier %q, but no group assesses it: set assessment.by in %s", s.Name, suppliersName)
	}
	if !slices.ContainsFunc(covered, func(e *broker.Entitlement) bool { return s.Allows(e.Name) }) {
		l.warn(r, "resource", "the ceiling of supplier %q has none of these entitlements, so the permit never applies: add one to its ceiling in %s", s.Name, suppliersName)
	}
}
