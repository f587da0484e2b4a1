package policy

import (
	"cmp"
	"slices"

	"accessbroker.internal/broker"
)

// A coverage is what a constraint on the resource matches in the catalogue.
type coverage struct {
	entitlements []*broker.Entitlement // by name
	owners       []string              // groups, sorted
	ownerless    []string              // entitlements without an owner, sorted
}

// coverages holds the coverage of every constraint that policies have. Thousands of
// policies may have the same one, and it may match the whole catalogue.
type coverages struct {
	catalogue broker.Catalogue
	all       []*broker.Entitlement // by name
	systems   map[string][]*broker.Entitlement
	known     map[constraint]*coverage
}

func newCoverages(c broker.Catalogue) *coverages {
	cs := &coverages{catalogue: c, systems: map[string][]*broker.Entitlement{}, known: map[constraint]*coverage{}}
	for _, e := range c {
		cs.all = append(cs.all, e)
	}
	slices.SortFunc(cs.all, func(a, b *broker.Entitlement) int { return cmp.Compare(a.Name, b.Name) })
	for _, e := range cs.all {
		cs.systems[e.System] = append(cs.systems[e.System], e)
	}
	return cs
}

// of returns the coverage of a constraint.
func (cs *coverages) of(resource constraint) *coverage {
	if known := cs.known[resource]; known != nil {
		return known
	}
	c := &coverage{entitlements: cs.matches(resource)}
	for _, e := range c.entitlements {
		if e.Owner == "" {
			c.ownerless = append(c.ownerless, e.Name)
		} else {
			c.owners = append(c.owners, e.Owner)
		}
	}
	slices.Sort(c.owners)
	c.owners = slices.Compact(c.owners)
	cs.known[resource] = c
	return c
}

func (cs *coverages) matches(resource constraint) []*broker.Entitlement {
	id := string(resource.uid.ID)
	switch {
	case resource.kind != "" && resource.kind != typeEntitlement:
	case resource.uid.IsZero():
		return cs.all
	case resource.uid.Type == typeSystem && id != "":
		return cs.systems[id]
	case resource.uid.Type == typeEntitlement && cs.catalogue[id] != nil:
		return []*broker.Entitlement{cs.catalogue[id]}
	}
	return nil
}
