package campaign

import (
	"cmp"
	"slices"
	"strings"

	"accessbroker.internal/broker"
)

// An assigner chooses the reviewers of permissions by one set of rules. It remembers what
// many permissions have in common. It is not safe for concurrent use.
type assigner struct {
	m     *Manager
	rules *broker.Rules
	plan  *broker.CampaignPlan

	labels   []broker.WorkloadLabels // sorted by path
	groups   map[string]*subjectGroup
	able     map[string][]string // see reviewers
	owners   map[string][]string // the people accountable for what is at a path
	eligible map[string]bool     // of a group for a list of subjects
}

// A subjectGroup is a group whose members use a permission.
type subjectGroup struct {
	people map[string]bool // with all accounts
	paths  []string
}

func (m *Manager) assigner(rules *broker.Rules, plan *broker.CampaignPlan) *assigner {
	return &assigner{
		m: m, rules: rules, plan: plan,
		labels: slices.SortedFunc(slices.Values(rules.Labels), func(a, b broker.WorkloadLabels) int { return cmp.Compare(a.Under, b.Under) }),
		groups: map[string]*subjectGroup{}, able: map[string][]string{}, owners: map[string][]string{}, eligible: map[string]bool{},
	}
}

// assign returns who reviews a permission: the first reviewer of the plan who is eligible,
// or the fallback group.
func (a *assigner) assign(p *broker.Permission) (r broker.Reviewer, fallback bool) {
	for _, rule := range a.plan.Reviewers {
		if r := a.reviewer(rule, p); r != (broker.Reviewer{}) && a.isEligible(r, p) {
			return r, false
		}
	}
	return broker.Reviewer{Group: a.plan.Fallback}, true
}

// hasReviewer reports whether someone may review the permission, be it in the fallback group.
func (a *assigner) hasReviewer(p *broker.Permission) bool {
	r, fallback := a.assign(p)
	return !fallback || a.isEligible(r, p)
}

// reviewer returns the reviewer that a rule of the plan names for a permission; zero: none.
// An entitlement's owner reviews a permit only if it owns everything that the permit covers.
func (a *assigner) reviewer(rule string, p *broker.Permission) broker.Reviewer {
	switch rule {
	case broker.ReviewerOwner:
		if len(p.Owners) == 1 && p.Owners[0] != "" {
			return broker.Reviewer{Group: p.Owners[0]}
		}
		return broker.Reviewer{}
	case broker.ReviewerManager:
		if people := p.Subjects.People; len(people) == 1 {
			return broker.Reviewer{Person: a.m.cfg.ManagerOf(people[0])}
		}
		return broker.Reviewer{}
	}
	return broker.Reviewer{Group: rule}
}

// isEligible reports whether someone may review the permission as this reviewer. The members
// by claims of a group cannot be counted, so such a group counts as eligible, unless the
// group itself is under review.
func (a *assigner) isEligible(r broker.Reviewer, p *broker.Permission) bool {
	if r.Person != "" {
		return !a.m.cfg.Ended(r.Person) && !a.isSubject(r.Person, p)
	}
	g, ok := a.rules.Groups[r.Group]
	if !ok || slices.Contains(p.Subjects.Groups, r.Group) {
		return false
	}
	if g.Claimed {
		return true
	}
	// Many permissions have the same subjects.
	key := r.Group + "\n" + strings.Join(p.Subjects.Suppliers, " ") + "\n" + strings.Join(p.Subjects.People, " ") + "\n" + strings.Join(p.Subjects.Groups, " ") + "\n" + strings.Join(p.Subjects.Paths, " ")
	known, ok := a.eligible[key]
	if !ok {
		known = slices.ContainsFunc(a.reviewers(r.Group), func(person string) bool { return !a.isSubject(person, p) })
		if len(a.eligible) < maxRemembered {
			a.eligible[key] = known
		}
	}
	return known
}

// reviewers returns the listed members of a group who can decide: they have not left, and
// their membership is not suspended.
func (a *assigner) reviewers(group string) []string {
	if known, ok := a.able[group]; ok {
		return known
	}
	able := slices.DeleteFunc(slices.Clone(a.rules.Groups[group].Members), func(person string) bool {
		listed, _ := a.rules.Policy.Groups(named(person))
		return a.m.cfg.Ended(person) || !slices.Contains(listed, group)
	})
	a.able[group] = able
	return able
}

// maxRemembered bounds each map of an assigner.
const maxRemembered = 100_000

// isSubject reports whether a person, with any account, uses the permission or is accountable
// for a workload that does.
func (a *assigner) isSubject(person string, p *broker.Permission) bool {
	if a.rules.People.Contains(p.Subjects.People, person) || a.isOfSupplier(named(person), p) {
		return true
	}
	for _, name := range p.Subjects.Groups {
		g := a.group(name)
		if g.people[person] || slices.ContainsFunc(g.paths, func(path string) bool { return a.rules.People.Contains(a.accountable(path), person) }) {
			return true
		}
	}
	return slices.ContainsFunc(p.Subjects.Paths, func(path string) bool { return a.rules.People.Contains(a.accountable(path), person) })
}

// isOfSupplier reports whether the identity belongs to a supplier under review.
func (a *assigner) isOfSupplier(who broker.Identity, p *broker.Permission) bool {
	return len(p.Subjects.Suppliers) > 0 && slices.ContainsFunc(a.rules.Suppliers.Of(who), func(name string) bool { return slices.Contains(p.Subjects.Suppliers, name) })
}

// named returns the identity of a person who is only known by name.
func named(id string) broker.Identity {
	provider, _, _ := strings.Cut(id, "/")
	return broker.Identity{ID: id, Kind: broker.KindPerson, Person: &broker.Person{Provider: provider}}
}

// group returns the listed members of a group.
func (a *assigner) group(name string) *subjectGroup {
	if known := a.groups[name]; known != nil {
		return known
	}
	g := &subjectGroup{people: map[string]bool{}}
	for _, person := range a.rules.People.Expand(a.rules.Groups[name].Members) {
		g.people[person] = true
	}
	if a.rules.Permissions != nil {
		for p := range a.rules.Permissions.All(broker.CampaignScope{Groups: []string{name}}, broker.PermissionMember) {
			g.paths = append(g.paths, p.Subjects.Paths...)
		}
	}
	a.groups[name] = g
	return g
}

// accountable returns the people accountable for the workloads at a path and below it.
func (a *assigner) accountable(path string) []string {
	if known, ok := a.owners[path]; ok {
		return known
	}
	var people []string
	if labels, ok := a.labelsOf(path); ok {
		people = append(people, labels.Accountable...)
	}
	from, _ := slices.BinarySearchFunc(a.labels, path+"/", func(l broker.WorkloadLabels, below string) int { return cmp.Compare(l.Under, below) })
	for _, l := range a.labels[from:] {
		if !strings.HasPrefix(l.Under, path+"/") {
			break
		}
		people = append(people, l.Accountable...)
	}
	slices.Sort(people)
	people = slices.Compact(people)
	if len(a.owners) < maxRemembered {
		a.owners[path] = people
	}
	return people
}

// labelsOf returns the labels with the longest path that covers a SPIFFE ID.
func (a *assigner) labelsOf(id string) (broker.WorkloadLabels, bool) {
	for _, path := range append(broker.SPIFFEPaths(id), "spiffe://"+broker.TrustDomainOf(id)) {
		if i, ok := slices.BinarySearchFunc(a.labels, path, func(l broker.WorkloadLabels, path string) int { return cmp.Compare(l.Under, path) }); ok {
			return a.labels[i], true
		}
	}
	return broker.WorkloadLabels{}, false
}

// conflict reports whether the caller may never review the permission. Unlike assign, it
// knows the groups that the caller's login provider claims.
func (a *assigner) conflict(who broker.Identity, p *broker.Permission) bool {
	for _, account := range append([]string{who.ID}, who.Accounts...) {
		if a.isSubject(account, p) {
			return true
		}
	}
	if a.isOfSupplier(who, p) {
		return true
	}
	return slices.ContainsFunc(a.rules.ConflictGroups(who), func(g string) bool { return slices.Contains(p.Subjects.Groups, g) })
}

// reviews reports whether the caller is the reviewer, and whether that follows from the
// caller's claims.
func (a *assigner) reviews(who broker.Identity, r broker.Reviewer) (ok, claimed bool) {
	if r.Person != "" {
		return a.rules.People.Same(who.ID, r.Person), false
	}
	listed, byClaim := a.rules.Policy.Groups(who)
	return slices.Contains(listed, r.Group) || slices.Contains(byClaim, r.Group), !slices.Contains(listed, r.Group)
}
