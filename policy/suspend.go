package policy

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/cedar-policy/cedar-go/types"

	"accessbroker.internal/broker"
)

// suspensionsName is the name of the suspensions among the contents of a revision. A
// revision without suspensions does not have it.
const suspensionsName = "suspensions.json"

// suspensions are permissions that the rules have and that no longer apply. Disabling one
// never permits anything: a forbid still sees a suspended membership, and a workload with a
// suspended mark is refused instead of losing the mark.
type suspensions struct {
	list      []broker.Suspension // sorted by key
	permits   map[string]*broker.Suspension
	marks     map[string]*broker.Suspension            // by path
	suppliers map[string]*broker.Suspension            // by name
	members   map[string]map[string]*broker.Suspension // by member, then by group
}

func newSuspensions(list []broker.Suspension) suspensions {
	s := suspensions{
		list:    slices.SortedFunc(slices.Values(list), func(a, b broker.Suspension) int { return cmp.Compare(a.Key, b.Key) }),
		permits: map[string]*broker.Suspension{}, marks: map[string]*broker.Suspension{}, suppliers: map[string]*broker.Suspension{}, members: map[string]map[string]*broker.Suspension{},
	}
	for i := range s.list {
		one := &s.list[i]
		switch one.Kind {
		case broker.PermissionPermit:
			s.permits[one.Name] = one
		case broker.PermissionMark:
			s.marks[one.Name] = one
		case broker.PermissionSupplier:
			s.suppliers[one.Name] = one
		case broker.PermissionMember:
			group, member, _ := strings.Cut(one.Name, " ")
			if s.members[member] == nil {
				s.members[member] = map[string]*broker.Suspension{}
			}
			s.members[member][group] = one
		}
	}
	return s
}

// Suspend returns an engine with the same rules in which the permissions of the list no
// longer apply. Its revision covers the list. The list replaces earlier suspensions.
func (e *Engine) Suspend(list []broker.Suspension) (*Engine, error) {
	c := e.compiled
	c.contents = maps.Clone(e.contents)
	delete(c.contents, suspensionsName)
	c.suspended = newSuspensions(list)
	all := e.members
	if e.allMembers != nil {
		all = *e.allMembers
	}
	c.members, c.allMembers = all, nil
	if len(c.suspended.members) > 0 {
		c.members, c.allMembers = all.withoutSuspended(&c.suspended), &all
	}
	if len(list) > 0 {
		text, err := render(c.suspended.list)
		if err != nil {
			return nil, err
		}
		c.contents[suspensionsName] = text
	}
	c.files, c.revision = digests(c.contents)
	return &Engine{compiled: c}, nil
}

// ParseSuspensions reads the suspensions of a revision from its contents, so that an old
// decision can be made again as it was made. It returns none for a revision without any.
func ParseSuspensions(contents map[string][]byte) (list []broker.Suspension, err error) {
	text, ok := contents[suspensionsName]
	if !ok {
		return nil, nil
	}
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, fmt.Errorf("reading %s: %w", suspensionsName, err)
	}
	for i, s := range list {
		kind, name, ok := strings.Cut(s.Key, " ")
		if !ok {
			return nil, fmt.Errorf("reading %s: %q names no permission", suspensionsName, s.Key)
		}
		list[i].PermissionKey = broker.PermissionKey{Kind: broker.PermissionKind(kind), Name: name}
	}
	return list, nil
}

// suspends returns the suspension that keeps the rule from applying to a request for the
// scopes; nil if there is none. Only permits are suspended.
func (s *suspensions) suspends(r *rule, scopes []string) *broker.Suspension {
	one := s.permits[r.id]
	if one == nil || !r.permit {
		return nil
	}
	if len(one.Left) > 0 && !slices.ContainsFunc(scopes, func(scope string) bool { return !slices.Contains(one.Left, scope) }) {
		return nil
	}
	return one
}

// active returns the candidates that are not suspended.
func (s *suspensions) active(found candidates, scopes []string) candidates {
	if len(s.permits) == 0 {
		return found
	}
	return slices.DeleteFunc(found, func(r *rule) bool { return s.suspends(r, scopes) != nil })
}

// suspendedMark returns the suspension of the mark that a workload has; nil if there is
// none.
func (e *Engine) suspendedMark(who *broker.Identity) *broker.Suspension {
	if len(e.suspended.marks) == 0 || who.Kind != broker.KindWorkload && who.Kind != broker.KindAgent {
		return nil
	}
	labels, ok := e.known.labels.LabelsOf(who.ID)
	if !ok {
		return nil
	}
	if one := e.suspended.marks[labels.Under]; one != nil && len(one.Left) == 0 {
		return one
	}
	return nil
}

// membershipsOf returns the suspensions of an identity's memberships.
func (s *suspensions) membershipsOf(who *broker.Identity) (found []*broker.Suspension) {
	if len(s.members) == 0 {
		return nil
	}
	for _, name := range memberNames(who) {
		for _, group := range slices.Sorted(maps.Keys(s.members[name])) {
			found = append(found, s.members[name][group])
		}
	}
	return found
}

// SuspendedGroups returns the groups of which the identity is a suspended member.
func (e *Engine) SuspendedGroups(who broker.Identity) (groups []string) {
	for _, s := range e.suspended.membershipsOf(&who) {
		group, _, _ := strings.Cut(s.Name, " ")
		groups = append(groups, group)
	}
	return groups
}

// memberNames returns the names by which groups.yaml may list the identity.
func memberNames(who *broker.Identity) []string {
	if who.Kind != broker.KindPerson {
		return append(broker.SPIFFEPaths(who.ID), spiffeScheme+broker.TrustDomainOf(who.ID))
	}
	names := []string{who.ID}
	if who.Person != nil {
		for _, g := range who.Person.Groups {
			names = append(names, claimName(claim{who.Person.Provider, g}))
		}
	}
	return names
}

// claimName is the name of a claim as a member of a group.
func claimName(c claim) string { return "claim:" + c.Provider + ":" + c.Group }

// withoutSuspended returns the memberships without those that are suspended. An identity
// that is in the group in two ways keeps the other one.
func (m memberships) withoutSuspended(s *suspensions) memberships {
	left := memberships{maps.Clone(m.listed), maps.Clone(m.claimed)}
	drop := func(uids []types.EntityUID, groups map[string]*broker.Suspension) []types.EntityUID {
		return slices.DeleteFunc(slices.Clone(uids), func(uid types.EntityUID) bool { return groups[string(uid.ID)] != nil })
	}
	for member, groups := range s.members {
		if uids, ok := left.listed[member]; ok {
			left.listed[member] = drop(uids, groups)
		}
	}
	for c, uids := range left.claimed {
		if groups := s.members[claimName(c)]; groups != nil {
			left.claimed[c] = drop(uids, groups)
		}
	}
	return left
}
