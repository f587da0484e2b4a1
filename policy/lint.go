package policy

import (
	"cmp"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/ast"

	"accessbroker.internal/broker"
)

// Warnings returns likely mistakes in a set of policies that loads, such as
// entitlements without a permit and approvals that can never be complete. They
// do not stop the set from loading, because they all deny access. Above all, a
// set must load if a group has just lost the member who must no longer approve.
func (e *Engine) Warnings() []string { return slices.Clone(e.warnings) }

// A linter collects warnings about an engine.
type linter struct {
	*Engine
	coverages *coverages
	forbids   *index                                 // those without conditions
	labels    map[constraint][]broker.WorkloadLabels // that principals may have
	problems  problems
}

func lint(e *Engine, dir folder, cover *coverages) []string {
	l := &linter{Engine: e, coverages: cover, labels: map[constraint][]broker.WorkloadLabels{}}
	l.forbids = newIndex(l.unconditionalForbids())
	l.checkFiles(dir)
	l.checkCatalogue()
	l.checkGroups()
	l.checkAccounts()
	l.checkDomains()
	l.checkAccountable()
	l.checkSuppliers()
	l.checkCeilings()
	for _, r := range l.sorted() {
		for _, d := range r.dead {
			line, column := r.position(d.at)
			l.problems.add(Problem{File: r.name, Line: line, Column: column, Policy: r.id, Text: d.text})
		}
		l.checkLiterals(r)
		if r.permit {
			l.checkPermit(r)
		}
	}
	_ = l.problems.err() // sorts
	warnings := make([]string, len(l.problems))
	for i, p := range l.problems {
		warnings[i] = p.Error()
	}
	return warnings
}

func (e *Engine) sorted() []*rule {
	return slices.SortedFunc(maps.Values(e.rules), byID)
}

// checkAccountable warns of accountable people when no provider is configured: none of
// them can log in.
func (l *linter) checkAccountable() {
	if len(l.in.Providers) > 0 {
		return // every person's provider was checked
	}
	for _, m := range l.in.Labels {
		if len(m.Accountable) > 0 {
			l.problems.add(Problem{File: "attest.workloads", Text: fmt.Sprintf(
				"under %q: %s can't log in: no provider is configured in attest.people", m.Under, strings.Join(m.Accountable, ", "))})
		}
	}
}

func (l *linter) warn(r *rule, needle, format string, args ...any) {
	line, column := r.at(needle)
	l.problems.add(Problem{File: r.name, Line: line, Column: column, Policy: r.id, Text: fmt.Sprintf(format, args...)})
}

// checkFiles warns of files that the loader ignores, such as a policy with a typo in
// its suffix, and of a folder without policies.
func (l *linter) checkFiles(dir folder) {
	for _, name := range dir.ignored {
		text := fmt.Sprintf("ignored: a policy folder holds *%s, %s, %s, %s, *%s and *.md: rename or move this file", cedarSuffix, groupsName, suppliersName, peopleName, scenarioSuffix)
		if base := path.Base(name); base == groupsName || base == suppliersName || base == peopleName {
			text = fmt.Sprintf("ignored: move %s to the top of the policy folder", base)
		}
		l.problems.add(Problem{File: name, Text: text})
	}
	if len(l.rules) == 0 {
		l.problems.add(Problem{File: ".", Text: "no policy, so every request is denied: add a *" + cedarSuffix + " file with a permit"})
	}
}

// checkCatalogue warns of entitlements without a permit and of entitlements
// whose credentials can never be issued or share their revocation.
func (l *linter) checkCatalogue() {
	heads := map[constraint]bool{}
	for _, r := range l.rules {
		if r.permit && slices.Contains(r.actions, actionNumber(broker.ActionRequest)) {
			heads[r.resource] = true
		}
	}
	permitted := set{}
	for head := range heads {
		for _, e := range l.coverages.of(head).entitlements {
			permitted[e.Name] = true
		}
	}
	sharers := l.sharers()
	for name, e := range l.in.Catalogue {
		warn := func(text string) { l.problems.add(Problem{File: "entitlements." + name, Text: text}) }
		if !permitted[name] {
			warn(`no permit covers it, so every request for it is denied: add a permit for Action::"request"`)
		}
		if e.MaxTTL > 0 && e.MaxTTL < e.MinTTL {
			warn(fmt.Sprintf("max_ttl %s is below the issuer's minimum of %s, so no credential can be issued: raise max_ttl",
				broker.FormatDuration(e.MaxTTL), broker.FormatDuration(e.MinTTL)))
		}
		if e.Shares != "" {
			warn(sharedRevocation(e, sharers[e.Shares]))
		}
	}
}

// sharers returns the sorted names of the entitlements that share a revocation.
func (l *linter) sharers() map[string][]string {
	names := map[string][]string{}
	for _, e := range l.coverages.all {
		names[e.Shares] = append(names[e.Shares], e.Name)
	}
	return names
}

// sharedRevocation describes which other credentials the revocation of one
// credential of e revokes.
func sharedRevocation(e *broker.Entitlement, sharers []string) string {
	others := slices.DeleteFunc(slices.Clone(sharers), func(name string) bool { return name == e.Name })
	text := "revoking one credential also revokes all earlier credentials of " + e.Shares
	if len(others) > 0 {
		text += ", including those of " + strings.Join(others, ", ")
	}
	return text
}

// checkGroups warns of groups that can't have members.
func (l *linter) checkGroups() {
	for name, g := range l.groups {
		if g.fullyListed() && len(g.Members)+len(g.Workloads) == 0 {
			l.problems.add(Problem{File: groupsName, Text: fmt.Sprintf("group %q is empty: add members, claims or workloads", name)})
		}
	}
}

// checkDomains warns of federated domains that no permit names. See
// rule.appliesTo.
func (l *linter) checkDomains() {
	named := set{l.known.home: true}
	for _, r := range l.rules {
		if !r.permit {
			continue
		}
		for _, d := range l.domainsOf(r.principal.uid) {
			named[d] = true
		}
	}
	for _, d := range l.in.TrustDomains {
		if !named[d] {
			l.problems.add(Problem{File: "attest.trust_domains", Text: fmt.Sprintf(
				"no permit names %q in its head, so its workloads can authenticate but every request is denied: add a permit or remove the domain", d)})
		}
	}
}

// domainsOf returns the trust domains of the principals that a head with uid
// matches.
func (l *linter) domainsOf(uid types.EntityUID) []string {
	switch uid.Type {
	case typeTrustDomain:
		return []string{string(uid.ID)}
	case typeGroup:
		var all []string
		for _, w := range l.groups[string(uid.ID)].Workloads {
			all = append(all, broker.TrustDomainOf(w))
		}
		return all
	case typePath, typeWorkload, typeAgent:
		return []string{broker.TrustDomainOf(string(uid.ID))}
	case typeSupplier:
		var all []string
		for _, place := range l.placesOf(uid) {
			all = append(all, broker.TrustDomainOf(place))
		}
		return all
	}
	return nil
}

// checkPermit checks one permit. Obligations matter for the action
// "request" only.
func (l *linter) checkPermit(r *rule) {
	l.checkKind(r)
	l.checkForbidden(r)
	if !slices.Contains(r.actions, actionNumber(broker.ActionRequest)) {
		return
	}
	covered := l.coverages.of(r.resource)
	l.checkBounds(r, covered.entitlements)
	l.checkQuorums(r, covered.owners)
	l.checkTeams(r)
	l.checkAssessed(r, covered.entitlements)
	l.checkBinding(r, covered.entitlements)
}

// checkBounds warns of permits that allow less time than the issuer's minimum.
func (l *linter) checkBounds(r *rule, entitlements []*broker.Entitlement) {
	l.checkBound(r, "@max_ttl", r.MaxTTL, entitlements)
	l.checkBound(r, "@max_duration", r.MaxDuration, entitlements)
}

// checkBound leads to one warning, although the bound may be too short for the whole
// catalogue.
func (l *linter) checkBound(r *rule, name string, bound time.Duration, entitlements []*broker.Entitlement) {
	var tooShort []string
	var least time.Duration
	for _, e := range entitlements {
		if bound > 0 && bound < e.MinTTL {
			tooShort = append(tooShort, e.Name)
			least = max(least, e.MinTTL)
		}
	}
	if len(tooShort) > 0 {
		l.warn(r, name, "%s %s is below the minimum of %s for %s, so no credential can be issued: raise it",
			name, broker.FormatDuration(bound), broker.FormatDuration(least), quoteList("entitlement", tooShort))
	}
}

// checkQuorums warns of groups with fewer members than approvals. It assumes
// that a group with claims and at least one member is large enough, and warns
// of groups that claims alone fill, because they may be empty.
func (l *linter) checkQuorums(r *rule, owners []string) {
	warned := set{}
	for _, need := range r.Approvals {
		for _, name := range approverGroups(need.Group, owners) {
			g := l.groups[name]
			switch {
			case g == nil || warned[name]: // nil: "manager"
			case !g.fullyListed() && len(g.Members) == 0:
				warned[name] = true
				l.warn(r, "@approval", "@approval names group %q, whose only members come from claims: if the group is empty, requests wait until they lapse", name)
			case g.fullyListed() && l.countPeople(g.Members) < need.Count:
				warned[name] = true
				l.warn(r, "@approval", "@approval requires %d of group %q, which has only %d, so no request can be approved: add members or lower the count",
					need.Count, name, l.countPeople(g.Members))
			}
		}
	}
}

// approverGroups returns the groups that a group name in @approval stands for.
func approverGroups(name string, owners []string) []string {
	if name == groupOwner {
		return owners
	}
	return []string{name}
}

// checkTeams warns of @exclude_team for workloads whose team is not a group. The
// broker refuses their requests, because it can't tell who is in the team.
func (l *linter) checkTeams(r *rule) {
	if !r.ExcludeTeam {
		return
	}
	const fix = "so their requests are refused: set their team in attest.workloads to a group of " + groupsName
	all, warned := l.labelsIn(r.principal), set{}
	if len(all) == 0 {
		l.warn(r, "@exclude_team", "@exclude_team: none of the permit's principals has a team, %s", fix)
	}
	for _, labels := range all {
		switch {
		case warned[labels.Team] || l.groups[labels.Team] != nil:
		case labels.Team == "":
			l.warn(r, "@exclude_team", "@exclude_team: workloads under %q have no team, %s", labels.Under, fix)
		default:
			l.warn(r, "@exclude_team", "@exclude_team: the team %q of workloads under %q is not a group, %s", labels.Team, labels.Under, fix)
		}
		warned[labels.Team] = true
	}
}

// labelsIn returns the labels that principals matching the constraint may have: those
// below the places that it names, and those with the longest path above each place.
// People have none, so a constraint on them returns nothing.
func (l *linter) labelsIn(principal constraint) (found []broker.WorkloadLabels) {
	var places []string // SPIFFE IDs of paths or trust domains; "" is everywhere
	switch id := string(principal.uid.ID); principal.uid.Type {
	case typePath, typeWorkload, typeAgent:
		places = []string{id}
	case typeTrustDomain:
		places = []string{spiffeScheme + id}
	case typeGroup:
		places = l.groups[id].Workloads
	case typeSupplier:
		places = l.placesOf(principal.uid)
	case "":
		places = []string{""}
	}
	single := principal.uid.Type == typeWorkload || principal.uid.Type == typeAgent
	covering := set{} // the labels that apply at the places themselves
	for _, place := range places {
		if at, ok := l.known.labels.LabelsOf(place); ok {
			covering[at.Under] = true
		}
	}
	for _, labels := range l.known.labels.Labels {
		inside := func(place string) bool { return place == "" || !single && below(labels.Under, place) }
		if principal.kind != "" && principal.kind != principalType(labels.Kind) {
			continue
		}
		if covering[labels.Under] || slices.ContainsFunc(places, inside) {
			found = append(found, labels)
		}
	}
	return found
}

// below reports whether the SPIFFE ID id is place or below it.
func below(id, place string) bool { return broker.WorkloadLabels{Under: place}.Covers(id) }

// checkKind warns of permits for agents at a path without agents, and of permits
// for workloads at a path with agents only.
func (l *linter) checkKind(r *rule) {
	if r.principal.kind != typeAgent && r.principal.kind != typeWorkload {
		return
	}
	place := ""
	switch r.principal.uid.Type {
	case typePath:
		place = string(r.principal.uid.ID)
	case typeTrustDomain:
		place = spiffeScheme + string(r.principal.uid.ID)
	case "":
	default:
		return
	}
	if !l.hasKind(place, r.principal.kind) {
		kind := strings.ToLower(string(r.principal.kind))
		l.warn(r, "principal", "no principal there has kind %s, so the permit never applies: set kind: %s in attest.workloads or correct the head", kind, kind)
	}
}

// hasKind reports whether identities of the kind may exist at a SPIFFE ID or
// below it; "" is everywhere.
func (l *linter) hasKind(place string, kind types.EntityType) bool {
	if place == "" && kind == typeWorkload {
		return true
	}
	if place != "" && principalType(l.known.labels.WithLabels(broker.Identity{ID: place, Kind: broker.KindWorkload}).Kind) == kind {
		return true
	}
	return slices.ContainsFunc(l.in.Labels, func(labels broker.WorkloadLabels) bool {
		return principalType(labels.Kind) == kind && (place == "" || below(labels.Under, place))
	})
}

// unconditionalForbids returns the forbids without when and unless. Only these
// certainly apply to everything that their heads match.
func (l *linter) unconditionalForbids() map[cedar.PolicyID]*rule {
	forbids := map[cedar.PolicyID]*rule{}
	for id, r := range l.rules {
		if !r.permit && len((*ast.Policy)(r.policy.AST()).Conditions) == 0 {
			forbids[id] = r
		}
	}
	return forbids
}

// checkForbidden warns of permits that an unconditional forbid makes useless. Such a
// forbid names the same entities as the permit, or ancestors of them, so the index
// finds it.
func (l *linter) checkForbidden(r *rule) {
	found := l.forbids.find(r.actions[0], l.withAncestors(r.principal.uid), l.withAncestors(r.resource.uid), false)
	slices.SortFunc(found, byID)
	for _, f := range found {
		actions := !slices.ContainsFunc(r.actions, func(a int) bool { return !slices.Contains(f.actions, a) })
		if actions && l.includes(f.principal, r.principal) && l.includes(f.resource, r.resource) {
			l.warn(r, "permit", "forbid %q forbids everything that this policy permits: remove one of them", f.id)
			return
		}
	}
}

func (l *linter) withAncestors(uid types.EntityUID) []types.EntityUID {
	if uid.IsZero() {
		return nil
	}
	return append([]types.EntityUID{uid}, l.ancestors(uid)...)
}

// includes reports whether every entity that matches b matches a. It may report
// false although they do.
func (l *linter) includes(a, b constraint) bool {
	// "is" in a: b must have the same type, by "is" or by the entity that it names.
	if kind := cmp.Or(b.kind, eqType(b)); a.kind != "" && a.kind != kind {
		return false
	}
	if a.uid.IsZero() || a.uid == b.uid && (!a.eq || b.eq) {
		return true
	}
	// a names another entity than b. It includes b only if it is an ancestor of b's.
	if a.eq || b.uid.IsZero() {
		return false
	}
	return slices.Contains(l.ancestors(b.uid), a.uid)
}

func eqType(c constraint) types.EntityType {
	if c.eq {
		return c.uid.Type
	}
	return ""
}

// ancestors returns entities that contain the entity uid in every case. It leaves out
// groups, whose members change without a change of the policies.
func (l *linter) ancestors(uid types.EntityUID) []types.EntityUID {
	id := string(uid.ID)
	switch uid.Type {
	case typePath, typeWorkload, typeAgent:
		uids := []types.EntityUID{types.NewEntityUID(typeTrustDomain, types.String(broker.TrustDomainOf(id)))}
		for _, p := range broker.SPIFFEPaths(id) {
			uids = append(uids, types.NewEntityUID(typePath, types.String(p)))
		}
		return uids
	case typeEntitlement:
		return resourceUIDs(l.in.Catalogue[id])
	}
	return nil
}
