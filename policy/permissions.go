package policy

import (
	"cmp"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/ast"

	"accessbroker.internal/broker"
)

var _ broker.Permissions = (*Engine)(nil)

// All implements broker.Permissions.
func (e *Engine) All(scope broker.CampaignScope, kind broker.PermissionKind) iter.Seq[broker.Permission] {
	switch kind {
	case broker.PermissionPermit:
		return e.permits(scope.Permits)
	case broker.PermissionMark:
		return e.marks(scope.Marks)
	case broker.PermissionMember:
		return e.memberPermissions(scope.Groups)
	case broker.PermissionSupplier:
		return e.ceilings(scope.Suppliers)
	}
	return func(func(broker.Permission) bool) {}
}

// Find implements broker.Permissions.
func (e *Engine) Find(key broker.PermissionKey) (broker.Permission, bool) {
	switch key.Kind {
	case broker.PermissionPermit:
		if r := e.rules[cedar.PolicyID(key.Name)]; r != nil && r.permit {
			return e.permit(r), true
		}
	case broker.PermissionMark:
		if i, ok := e.byPath[key.Name]; ok {
			return e.mark(&e.in.Labels[i]), true
		}
	case broker.PermissionSupplier:
		if s := e.suppliers.Named(key.Name); s != nil {
			return e.ceiling(s), true
		}
	case broker.PermissionMember:
		group, member, _ := strings.Cut(key.Name, " ")
		if g := e.groups[group]; g != nil && e.byMember[group][member] {
			return e.member(group, g, member, e.groupOwners(group)), true
		}
	}
	return broker.Permission{}, false
}

// permitIDs returns the ids of the permits.
func permitIDs(rules map[cedar.PolicyID]*rule) set {
	ids := set{}
	for id, r := range rules {
		if r.permit {
			ids[string(id)] = true
		}
	}
	return ids
}

func (e *Engine) permits(scope []string) iter.Seq[broker.Permission] {
	return func(yield func(broker.Permission) bool) {
		if len(scope) == 0 {
			return
		}
		all := slices.Contains(scope, broker.ScopeAll)
		for _, r := range e.sorted() {
			if r.permit && (all || slices.Contains(scope, r.id)) && !yield(e.permit(r)) {
				return
			}
		}
	}
}

// permit returns the permission of a permit.
func (e *Engine) permit(r *rule) broker.Permission {
	p := broker.Permission{
		PermissionKey: broker.PermissionKey{Kind: broker.PermissionPermit, Name: r.id}, File: r.name,
		Content: r.policyText(), Subjects: r.subjects(), Signed: r.Signed,
	}
	for _, name := range p.Subjects.Suppliers {
		if s := e.suppliers.Named(name); s != nil {
			p.Subjects.Paths = append(p.Subjects.Paths, placesOf(s)...)
		}
	}
	cover := e.covers[cedar.PolicyID(r.id)]
	if !slices.Contains(r.actions, actionNumber(broker.ActionRequest)) {
		return p // on requests or on the broker itself: entitlements do not matter
	}
	p.Owners, p.Part = cover.owners, "scope"
	if len(cover.ownerless) > 0 && len(cover.owners) > 0 {
		p.Owners = append(slices.Clone(cover.owners), "") // no group owns all of them
	}
	scopes := set{}
	for _, known := range cover.entitlements[:min(len(cover.entitlements), broker.MaxCovered)] {
		p.Covers = append(p.Covers, known.Name)
		for _, s := range known.Scopes {
			scopes[s] = true
		}
	}
	p.Parts = slices.Sorted(maps.Keys(scopes))
	e.setPeers(&p, r)
	return p
}

// placesOf returns the SPIFFE IDs at which the supplier's workloads are.
func placesOf(s *broker.Supplier) []string {
	places := slices.Clone(s.Paths)
	for _, domain := range s.TrustDomains {
		places = append(places, spiffeScheme+domain)
	}
	return places
}

// setPeers sets other permits with the same resource in the head.
func (e *Engine) setPeers(p *broker.Permission, r *rule) {
	peers := e.byResource[r.resource]
	p.PeersAll = len(peers) - 1
	for _, id := range peers[:min(len(peers), broker.MaxPeers+1)] {
		if id != r.id && len(p.Peers) < broker.MaxPeers {
			p.Peers = append(p.Peers, id)
		}
	}
}

// policyText returns the text of the policy, without what follows it in the file.
func (r *rule) policyText() string {
	end := strings.LastIndexByte(string(r.code[r.from:r.to]), ';')
	return strings.TrimSpace(string(r.text[r.from : r.from+end+1]))
}

// subjects returns the identities that the policy names, in the head or in a condition. A
// condition may also exclude an identity; it may not review the permit either.
func (r *rule) subjects() (s broker.Subjects) {
	add := func(uid types.EntityUID) {
		id := string(uid.ID)
		switch uid.Type {
		case typePerson:
			s.People = append(s.People, id)
		case typeGroup:
			s.Groups = append(s.Groups, id)
		case typeSupplier:
			s.Suppliers = append(s.Suppliers, id)
		case typeWorkload, typeAgent, typePath:
			s.Paths = append(s.Paths, id)
		case typeTrustDomain:
			s.Paths = append(s.Paths, spiffeScheme+id)
		}
	}
	add(r.principal.uid)
	for _, c := range (*ast.Policy)(r.policy.AST()).Conditions {
		ast.Inspect(ast.NewNode(c.Body), func(n ast.IsNode) bool {
			if v, ok := n.(ast.NodeValue); ok {
				if uid, ok := v.Value.(types.EntityUID); ok {
					add(uid)
				}
			}
			return true
		})
	}
	for _, list := range []*[]string{&s.People, &s.Groups, &s.Paths, &s.Suppliers} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	return s
}

func (e *Engine) marks(scope []string) iter.Seq[broker.Permission] {
	return func(yield func(broker.Permission) bool) {
		if len(scope) == 0 {
			return
		}
		all := slices.Contains(scope, broker.ScopeAll)
		list := slices.SortedFunc(slices.Values(e.in.Labels), func(a, b broker.WorkloadLabels) int { return cmp.Compare(a.Under, b.Under) })
		for i := range list {
			selected := all || slices.ContainsFunc(scope, func(path string) bool { return below(list[i].Under, path) })
			if selected && !yield(e.mark(&list[i])) {
				return
			}
		}
	}
}

// mark returns the permission of the operator's labels of a path. Its owner is the team, if
// the team is a group.
func (e *Engine) mark(m *broker.WorkloadLabels) broker.Permission {
	p := broker.Permission{
		PermissionKey: broker.PermissionKey{Kind: broker.PermissionMark, Name: m.Under}, Team: m.Team,
		Content:  markText(m),
		Subjects: broker.Subjects{People: m.Accountable, Paths: []string{m.Under}},
	}
	if e.groups[m.Team] != nil {
		p.Owners = []string{m.Team}
	}
	if m.Team == "" {
		return p
	}
	peers := e.byTeam[m.Team]
	p.PeersAll = len(peers) - 1
	for _, other := range peers[:min(len(peers), broker.MaxPeers+1)] {
		if other != m.Under && len(p.Peers) < broker.MaxPeers {
			p.Peers = append(p.Peers, other)
		}
	}
	return p
}

// markText returns the labels of a path as those who review them read them. What a path does
// not have is left out, so that a review of older labels stays valid.
func markText(m *broker.WorkloadLabels) string {
	var b strings.Builder
	fmt.Fprintf(&b, "under: %s\nkind: %s\nteam: %s\naccountable: %s\n", m.Under, m.Kind, m.Team, strings.Join(m.Accountable, ", "))
	for _, line := range [][2]string{{"purpose", m.Purpose}, {"model", m.Model}} {
		if line[1] != "" {
			fmt.Fprintf(&b, "%s: %s\n", line[0], line[1])
		}
	}
	if m.Ceiling != nil {
		fmt.Fprintf(&b, "ceiling: %s\n", cmp.Or(strings.Join(m.Ceiling.Texts(), ", "), "nothing"))
	}
	if !m.Ends.IsZero() {
		fmt.Fprintf(&b, "ends: %s\n", m.Ends.UTC().Format(time.RFC3339))
	}
	return b.String()
}

// members returns the names of all members of a group.
func (g *group) members() []string {
	names := slices.Concat(g.Members, g.Workloads)
	for _, c := range g.Claims {
		names = append(names, claimName(c))
	}
	slices.Sort(names)
	return names
}

func (e *Engine) memberPermissions(scope []string) iter.Seq[broker.Permission] {
	return func(yield func(broker.Permission) bool) {
		if len(scope) == 0 {
			return
		}
		all := slices.Contains(scope, broker.ScopeAll)
		for _, name := range slices.Sorted(maps.Keys(e.groups)) {
			if !all && !slices.Contains(scope, name) {
				continue
			}
			g, owners := e.groups[name], e.groupOwners(name)
			for _, member := range g.members() {
				if !yield(e.member(name, g, member, owners)) {
					return
				}
			}
		}
	}
}

// member returns the permission of a membership.
func (e *Engine) member(name string, g *group, member string, owners []string) broker.Permission {
	p := broker.Permission{
		PermissionKey: broker.PermissionKey{Kind: broker.PermissionMember, Name: name + " " + member}, File: groupsName, Owners: owners,
		Content: fmt.Sprintf("group: %s\nmember: %s\n", name, member),
	}
	switch {
	case strings.HasPrefix(member, spiffeScheme):
		p.Subjects.Paths = []string{member}
	case strings.HasPrefix(member, "claim:"): // of everyone with the claim
		p.Subjects.Groups = []string{name}
	default:
		p.Subjects.People = []string{member}
	}
	rules := e.byGroup[name]
	for _, r := range rules[:min(len(rules), broker.MaxCovered)] {
		p.Policies = append(p.Policies, r.id)
	}
	p.PeersAll = len(g.Members) + len(g.Workloads) + len(g.Claims) - 1
	for _, list := range [][]string{g.Members, g.Workloads} {
		for _, other := range list[:min(len(list), broker.MaxPeers+1)] {
			if other != member && len(p.Peers) < broker.MaxPeers {
				p.Peers = append(p.Peers, other)
			}
		}
	}
	return p
}

// groupOwners returns the owners of the entitlements that permits let a group request.
func (e *Engine) groupOwners(name string) []string {
	owners := set{}
	for _, r := range e.byGroup[name] {
		if !slices.Contains(r.actions, actionNumber(broker.ActionRequest)) {
			continue // on requests or on the broker itself: entitlements do not matter
		}
		for _, owner := range e.covers[cedar.PolicyID(r.id)].owners {
			owners[owner] = true
		}
	}
	return slices.Sorted(maps.Keys(owners))
}

// peerIndex finds permissions that are similar.
type peerIndex struct {
	byResource map[constraint][]string // ids of permits, sorted
	byTeam     map[string][]string     // paths of marks
	byGroup    map[string][]*rule      // permits by the group in their head
	byPath     map[string]int          // places of the labels
	byMember   map[string]set          // names of members, by group
}

func newPeerIndex(rules []*rule, labels []broker.WorkloadLabels, groups map[string]*group) peerIndex {
	x := peerIndex{map[constraint][]string{}, map[string][]string{}, map[string][]*rule{}, map[string]int{}, map[string]set{}}
	for _, r := range rules {
		if !r.permit {
			continue
		}
		x.byResource[r.resource] = append(x.byResource[r.resource], r.id)
		if uid := r.principal.uid; uid.Type == typeGroup {
			x.byGroup[string(uid.ID)] = append(x.byGroup[string(uid.ID)], r)
		}
	}
	for name, g := range groups {
		x.byMember[name] = newSet(g.members())
	}
	for i, m := range labels {
		x.byPath[m.Under] = i
		x.byTeam[m.Team] = append(x.byTeam[m.Team], m.Under)
	}
	return x
}

func (e *Engine) ceilings(scope []string) iter.Seq[broker.Permission] {
	return func(yield func(broker.Permission) bool) {
		if len(scope) == 0 {
			return
		}
		all := slices.Contains(scope, broker.ScopeAll)
		for _, s := range e.suppliers.All() {
			if (all || slices.Contains(scope, s.Name)) && !yield(e.ceiling(s)) {
				return
			}
		}
	}
}

// ceiling returns the permission of a supplier's ceiling. Its sponsor is accountable for the
// supplier.
func (e *Engine) ceiling(s *broker.Supplier) broker.Permission {
	p := broker.Permission{
		PermissionKey: broker.PermissionKey{Kind: broker.PermissionSupplier, Name: s.Name}, File: suppliersName, Supplier: s.Name,
		Parts: s.Ceiling, Part: "entitlement", Covers: s.Ceiling[:min(len(s.Ceiling), broker.MaxCovered)],
		Content: fmt.Sprintf("supplier: %s\nname: %s\nsponsor: %s\ncontract: from %s until %s\ntrust domains: %s\npaths: %s\nproviders: %s\n", s.Name, s.DisplayName(), s.Sponsor,
			s.Starts.UTC().Format(time.RFC3339), s.Ends.UTC().Format(time.RFC3339), strings.Join(s.TrustDomains, ", "), strings.Join(s.Paths, ", "), strings.Join(s.Providers, ", ")),
		Subjects: broker.Subjects{Suppliers: []string{s.Name}, Paths: placesOf(s)},
	}
	for _, domain := range s.TrustDomains {
		p.Subjects.Paths = append(p.Subjects.Paths, spiffeScheme+domain)
	}
	if group := s.SponsorGroup(); group != "" {
		p.Subjects.Groups = []string{group}
	} else if s.Sponsor != "" {
		p.Subjects.People = []string{s.Sponsor}
	}
	owners := set{}
	for _, name := range s.Ceiling {
		if known := e.in.Catalogue[name]; known != nil {
			owners[known.Owner] = true
		}
	}
	p.Owners = slices.Sorted(maps.Keys(owners))
	return p
}
