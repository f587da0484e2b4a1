package policy

import (
	"slices"
	"strings"

	"accessbroker.internal/broker"
)

// checkCeilings warns of what permits permit above the ceilings of all their principals: it
// is never granted.
func (l *linter) checkCeilings() {
	if !slices.ContainsFunc(l.known.labels.Labels, func(m broker.WorkloadLabels) bool { return m.Ceiling != nil }) {
		return
	}
	granted := map[string]*broker.Permit{}
	for _, p := range l.AllPermits() {
		granted[p.ID] = p
	}
	for _, r := range l.sorted() {
		if permit := granted[r.id]; permit != nil && l.labelled(r.principal) {
			l.checkCeiling(r, permit)
		}
	}
}

// labelled reports whether all principals that the constraint matches have labels.
func (l *linter) labelled(principal constraint) bool {
	var places []string
	switch id := string(principal.uid.ID); principal.uid.Type {
	case typePath, typeWorkload, typeAgent:
		places = []string{id}
	case typeTrustDomain:
		places = []string{spiffeScheme + id}
	case typeGroup:
		if g := l.groups[id]; len(g.Members)+len(g.Claims) == 0 {
			places = g.Workloads
		}
	}
	return len(places) > 0 && !slices.ContainsFunc(places, func(place string) bool {
		_, ok := l.known.labels.LabelsOf(place)
		return !ok
	})
}

// checkCeiling warns of what the permit permits to none of its principals.
func (l *linter) checkCeiling(r *rule, permit *broker.Permit) {
	all := l.labelsIn(r.principal)
	allowed := func(entitlement string, scopes ...string) bool {
		return slices.ContainsFunc(all, func(m broker.WorkloadLabels) bool { return m.Ceiling.Allows(entitlement, scopes...) })
	}
	if len(all) == 0 {
		return
	}
	for _, reach := range permit.Reaches {
		above := slices.DeleteFunc(slices.Clone(reach.Scopes), func(scope string) bool { return allowed(reach.Entitlement, scope) })
		switch {
		case len(above) == 0 && (len(reach.Scopes) > 0 || allowed(reach.Entitlement)):
		case len(above) == len(reach.Scopes):
			l.warn(r, "resource", "%s is above the ceiling of its principals in attest.workloads, so the permit never grants it: raise the ceiling or narrow the permit", reach.Entitlement)
		default:
			l.warn(r, "resource", "%s of %s is above the ceiling of its principals in attest.workloads, so the permit never grants it: raise the ceiling or narrow the permit",
				strings.Join(above, " "), reach.Entitlement)
		}
	}
}
