package broker

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/audit"
)

// A Supplier is another organization whose workloads or people may get access, as
// suppliers.yaml describes it. It is immutable.
type Supplier struct {
	Name         string // the key in suppliers.yaml
	Title        string // for people; empty: the name
	Sponsor      string // an internal group, or a person, "<provider>/<subject>"
	Starts, Ends time.Time
	TrustDomains []string        // whose workloads are the supplier's
	Paths        []string        // SPIFFE IDs; each covers itself and everything below it
	Providers    []string        // identity providers of its people
	Groups       []ProviderGroup // groups of its people at a provider
	Ceiling      []string        // sorted: the entitlements that it may ever have
	Assessors    string          // the group that assesses the risk; empty: no one
	Signed       bool            // an assessment needs a passkey signature
	Questions    []string        // of the risk assessment
	Extenders    string          // the group that approves an extension of the contract
	Digest       audit.Digest    // of all of the above
}

// MaxQuestions is the highest number of questions of a risk assessment.
const MaxQuestions = 40

// A ProviderGroup is a group as a provider of identities names it, in a claim or by SCIM.
type ProviderGroup struct{ Provider, Group string }

// DisplayName returns the supplier's title, or its name.
func (s *Supplier) DisplayName() string { return cmp.Or(s.Title, s.Name) }

// Allows reports whether the entitlement is below the supplier's ceiling.
func (s *Supplier) Allows(entitlement string) bool {
	_, found := slices.BinarySearch(s.Ceiling, entitlement)
	return found
}

// Live reports whether the contract is in force at now: from its start until its end,
// which is not part of it.
func (s *Supplier) Live(now time.Time) bool { return !now.Before(s.Starts) && now.Before(s.Ends) }

// SponsorGroup returns the sponsoring group; empty if the sponsor is a person.
func (s *Supplier) SponsorGroup() string {
	if strings.Contains(s.Sponsor, "/") {
		return ""
	}
	return s.Sponsor
}

// Suppliers find the suppliers of an identity. The zero value has none. They are
// immutable.
type Suppliers struct {
	byName     map[string]*Supplier
	byPath     map[string]*Supplier // also by the ID of a trust domain, "spiffe://supplier.test"
	byProvider map[string]*Supplier
	byGroup    map[ProviderGroup]*Supplier
	below      map[string]*Supplier // by each path above one of byPath
	groupsAt   map[string]*Supplier // by the provider of one of byGroup
}

// NewSuppliers returns an empty set, to which Add adds.
func NewSuppliers() Suppliers {
	named := func() map[string]*Supplier { return map[string]*Supplier{} }
	return Suppliers{named(), named(), named(), map[ProviderGroup]*Supplier{}, named(), named()}
}

// Add adds a supplier. It returns an error for each name that belongs to another supplier
// already, with that name: an identity of two suppliers would have two contracts, and no
// one could tell which of them ends its access.
func (s Suppliers) Add(new *Supplier) map[string]error {
	clashes := map[string]error{}
	taken := func(what, name string, by *Supplier) {
		if by != nil && by != new {
			clashes[name] = fmt.Errorf("%s %q belongs to supplier %q already: an identity has one supplier", what, name, by.Name)
		}
	}
	for _, path := range new.paths() {
		taken("path", path, cmp.Or(s.above(path), s.below[path]))
		s.byPath[path] = new
		for _, above := range prefixes(path)[1:] {
			s.below[above] = new
		}
	}
	for _, provider := range new.Providers {
		taken("provider", provider, cmp.Or(s.byProvider[provider], s.groupsAt[provider]))
		s.byProvider[provider] = new
	}
	for _, g := range new.Groups {
		taken("group", g.Group, cmp.Or(s.byGroup[g], s.byProvider[g.Provider]))
		s.byGroup[g], s.groupsAt[g.Provider] = new, new
	}
	s.byName[new.Name] = new
	return clashes
}

// paths returns the supplier's paths and the IDs of its trust domains.
func (s *Supplier) paths() []string {
	all := slices.Clone(s.Paths)
	for _, domain := range s.TrustDomains {
		all = append(all, spiffeScheme+domain)
	}
	return all
}

// prefixes returns a SPIFFE ID and the paths above it, up to its trust domain.
func prefixes(id string) (all []string) {
	for end := len(id); end > len(spiffeScheme); end = strings.LastIndexByte(id[:end], '/') {
		all = append(all, id[:end])
	}
	return all
}

// above returns the supplier that has the SPIFFE ID or a path above it.
func (s Suppliers) above(id string) *Supplier {
	for end := len(id); end > len(spiffeScheme); end = strings.LastIndexByte(id[:end], '/') {
		if found := s.byPath[id[:end]]; found != nil {
			return found
		}
	}
	return nil
}

// Len returns the number of suppliers.
func (s Suppliers) Len() int { return len(s.byName) }

// Named returns the supplier of a name, or nil.
func (s Suppliers) Named(name string) *Supplier { return s.byName[name] }

// All returns the suppliers, sorted by name.
func (s Suppliers) All() []*Supplier {
	all := slices.Collect(maps.Values(s.byName))
	slices.SortFunc(all, func(a, b *Supplier) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

// Of returns the sorted names of the identity's suppliers; nil if it is internal. A
// workload has one supplier at most, but a provider may put a person into groups of
// several: everything that holds for any of them then holds for the person.
func (s Suppliers) Of(who Identity) (names []string) {
	if len(s.byName) == 0 {
		return nil
	}
	if who.Kind != KindPerson {
		if found := s.above(who.ID); found != nil {
			return []string{found.Name}
		}
		return nil
	}
	provider, _, _ := strings.Cut(who.ID, "/")
	if found := s.byProvider[provider]; found != nil {
		names = append(names, found.Name)
	}
	if who.Person != nil {
		for _, g := range who.Person.Groups {
			if found := s.byGroup[ProviderGroup{who.Person.Provider, g}]; found != nil {
				names = append(names, found.Name)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// SupplierOf returns the sorted names of the suppliers of an identity; nil if it is
// internal.
func (r *Rules) SupplierOf(who Identity) []string { return r.Suppliers.Of(who) }

// A PersonEnd is when a person's access ends, and who sponsors it, as people.yaml states.
type PersonEnd struct {
	Ends    time.Time // zero: not stated
	Sponsor string    // a group, or a person; may be empty
}
