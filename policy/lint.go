package policy

import (
	"cmp"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/ast"

	"accessbroker.internal/broker"
)

// Warnings tell what loads and can hardly be meant: entitlements that nobody
// can ask for, permits that can never be met. All of it fails closed, so it
// does not keep a set from loading; above all, not one whose group just lost a
// member who must no longer approve.
func (e *Engine) Warnings() []string { return slices.Clone(e.warnings) }

// A linter collects warnings on an engine.
type linter struct {
	*Engine
	problems problems
}

func lint(e *Engine, dir folder) []string {
	l := &linter{Engine: e}
	l.files(dir)
	l.catalogueEntries()
	l.emptyGroups()
	l.domains()
	forbids := l.unconditionalForbids()
	for _, r := range l.sorted() {
		if !r.permit {
			continue
		}
		l.kinds(r)
		l.shadowed(r, forbids)
		if slices.Contains(r.actions, actionNumber(broker.ActionRequest)) {
			reached := reach(l.in.Catalogue, r.what)
			l.scopes(r, reached)
			l.bounds(r, reached)
			l.approvals(r, reached)
			l.teams(r)
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

func (l *linter) warn(r *rule, needle, format string, args ...any) {
	line, column := r.at(needle)
	l.problems.add(Problem{File: r.name, Line: line, Column: column, Policy: r.id, Text: fmt.Sprintf(format, args...)})
}

func (l *linter) files(dir folder) {
	for _, name := range dir.ignored {
		text := fmt.Sprintf("ignored: only *.cedar, %s and *%s mean anything here", groupsName, scenarioSuffix)
		if path.Base(name) == groupsName {
			text = "ignored: groups.yaml is read from the top of the folder only"
		}
		l.problems.add(Problem{File: name, Text: text})
	}
	if len(l.rules) == 0 {
		l.problems.add(Problem{File: ".", Text: "there is no policy, so everything is denied"})
	}
}

// catalogueEntries warns of entitlements that can't be had.
func (l *linter) catalogueEntries() {
	reached := set{}
	for _, r := range l.rules {
		if r.permit && slices.Contains(r.actions, actionNumber(broker.ActionRequest)) {
			for _, e := range reach(l.in.Catalogue, r.what) {
				reached[e.Name] = true
			}
		}
	}
	for name, e := range l.in.Catalogue {
		if !reached[name] {
			l.problems.add(Problem{File: "entitlements." + name, Text: "no permit is about it, so nobody can ask for it"})
		}
		if e.MaxTTL > 0 && e.MaxTTL < e.MinTTL {
			l.problems.add(Problem{File: "entitlements." + name, Text: fmt.Sprintf(
				"max_ttl %s is shorter than the shortest credential of its issuer, %s: it can never be collected", broker.Short(e.MaxTTL), broker.Short(e.MinTTL))})
		}
		if e.Shares != "" {
			l.problems.add(Problem{File: "entitlements." + name, Text: l.shared(e)})
		}
	}
}

// shared says whom revoking a credential of an entitlement hits as well.
func (l *linter) shared(e *broker.Entitlement) string {
	others := ""
	for _, name := range slices.Sorted(maps.Keys(l.in.Catalogue)) {
		if name != e.Name && l.in.Catalogue[name].Shares == e.Shares {
			others += ", " + name
		}
	}
	if others != "" {
		others = ", of " + others[2:] + " too"
	}
	return fmt.Sprintf("revoking one of its credentials ends all others of %s that were made before%s", e.Shares, others)
}

func (l *linter) emptyGroups() {
	for name, g := range l.groups {
		if g.closed() && len(g.Members)+len(g.Workloads) == 0 {
			l.problems.add(Problem{File: groupsName, Text: fmt.Sprintf("group %q: nobody is in it: list members, claims or workloads", name)})
		}
	}
}

// domains warns of federated domains that may authenticate and nothing more.
func (l *linter) domains() {
	named := set{l.known.home: true}
	for _, r := range l.rules {
		if !r.permit {
			continue
		}
		for _, d := range l.domainsOf(r.who.uid) {
			named[d] = true
		}
	}
	for _, d := range l.in.TrustDomains {
		if !named[d] {
			l.problems.add(Problem{File: "attest.trust_domains", Text: fmt.Sprintf(
				"%q: no permit names it in its head, so its workloads may authenticate and do nothing", d)})
		}
	}
}

// domainsOf gives the trust domains that a permit with this principal is for.
func (l *linter) domainsOf(uid types.EntityUID) []string {
	switch uid.Type {
	case typeTrustDomain:
		return []string{string(uid.ID)}
	case typeGroup:
		var all []string
		for _, w := range l.groups[string(uid.ID)].Workloads {
			all = append(all, domainOf(w))
		}
		return all
	case typePath, typeWorkload, typeAgent:
		return []string{domainOf(string(uid.ID))}
	}
	return nil
}

// reach gives the entitlements that a policy's resource may be, by name.
func reach(c broker.Catalogue, what scope) []*broker.Entitlement {
	if what.kind != "" && what.kind != typeEntitlement {
		return nil
	}
	var reached []*broker.Entitlement
	switch what.uid.Type {
	case typeEntitlement:
		return []*broker.Entitlement{c[string(what.uid.ID)]}
	case typeSystem:
		for _, e := range c {
			if e.System == string(what.uid.ID) {
				reached = append(reached, e)
			}
		}
	case "":
		reached = slices.Collect(maps.Values(c))
	}
	slices.SortFunc(reached, func(a, b *broker.Entitlement) int { return cmp.Compare(a.Name, b.Name) })
	return reached
}

// bounds warns where a permit gives less time than the issuer's shortest
// credential takes.
func (l *linter) bounds(r *rule, reached []*broker.Entitlement) {
	const tooShort = "%s %s is shorter than the shortest credential of entitlement %q, %s: it can never be collected"
	for _, e := range reached {
		if r.MaxTTL > 0 && r.MaxTTL < e.MinTTL {
			l.warn(r, "@max_ttl", tooShort, "@max_ttl", broker.Short(r.MaxTTL), e.Name, broker.Short(e.MinTTL))
		}
		if r.MaxDuration > 0 && r.MaxDuration < e.MinTTL {
			l.warn(r, "@max_duration", tooShort, "@max_duration", broker.Short(r.MaxDuration), e.Name, broker.Short(e.MinTTL))
		}
	}
}

// approvals warns where more people must approve than there are. Groups that
// a provider may add people to are taken to be large enough; of those that it
// alone fills, nobody here can tell.
func (l *linter) approvals(r *rule, reached []*broker.Entitlement) {
	told := set{}
	for _, need := range r.Approvals {
		for _, name := range l.approvers(need.Group, reached) {
			g := l.groups[name]
			if g != nil && !g.closed() && len(g.Members) == 0 && !told[name] {
				told[name] = true
				l.warn(r, "@approval", "@approval asks group %q, whom only a provider's claims fill: if nobody is in it, requests wait until they lapse", name)
			}
			if g == nil || !g.closed() || len(g.Members) >= need.Count || told[name] {
				continue
			}
			told[name] = true
			l.warn(r, "@approval", "@approval wants %d of group %q, which has %d: it can never be approved", need.Count, name, len(g.Members))
		}
	}
}

func (l *linter) approvers(term string, reached []*broker.Entitlement) []string {
	if term != groupOwner {
		return []string{term}
	}
	var owners []string
	for _, e := range reached {
		owners = append(owners, e.Owner)
	}
	return owners
}

// teams warns where a permit excludes a team that is no group: of whoever has no
// other, nobody can tell who is outside of it, and what they ask for is refused.
func (l *linter) teams(r *rule) {
	if !r.ExcludeTeam {
		return
	}
	const refused = "so nobody can tell who is outside of it, and what they ask for is refused"
	marks, told := l.marksOf(r.who), set{}
	if len(marks) == 0 {
		l.warn(r, "@exclude_team", "@exclude_team: nobody whom it is for has a team (attest.workloads), %s", refused)
	}
	for _, m := range marks {
		switch {
		case told[m.Team] || l.groups[m.Team] != nil:
		case m.Team == "":
			l.warn(r, "@exclude_team", "@exclude_team: what is under %q has no team (attest.workloads), %s", m.Under, refused)
		default:
			l.warn(r, "@exclude_team", "@exclude_team: the team %q of what is under %q (attest.workloads) is no group of %s, %s", m.Team, m.Under, groupsName, refused)
		}
		told[m.Team] = true
	}
}

// marksOf gives the marks that workloads in a scope may carry.
func (l *linter) marksOf(who scope) (marks []broker.Mark) {
	var places []string // SPIFFE IDs, or trust domains; "" is everywhere
	switch id := string(who.uid.ID); who.uid.Type {
	case typePath, typeWorkload, typeAgent:
		places = []string{id}
	case typeTrustDomain:
		places = []string{spiffeScheme + id}
	case typeGroup:
		places = l.groups[id].Workloads
	case "":
		places = []string{""}
	}
	one := who.uid.Type == typeWorkload || who.uid.Type == typeAgent
	for _, m := range l.in.Marks {
		carried := func(place string) bool {
			switch {
			case place == "":
				return true
			case !one && broker.Mark{Under: place}.Covers(m.Under): // it is on some of what is there
				return true
			}
			return m.Covers(place) && !l.hidden(m, place) // or on all of it
		}
		if (who.kind == "" || who.kind == principalType(m.Kind)) && slices.ContainsFunc(places, carried) {
			marks = append(marks, m)
		}
	}
	return marks
}

// hidden says whether a longer mark than m is on a place.
func (l *linter) hidden(m broker.Mark, place string) bool {
	return slices.ContainsFunc(l.in.Marks, func(other broker.Mark) bool {
		return len(other.Under) > len(m.Under) && other.Covers(place)
	})
}

// scopes warns of scopes that no entitlement in reach has: Cedar takes them
// for any strings, so a typo is a permit that never applies.
func (l *linter) scopes(r *rule, reached []*broker.Entitlement) {
	known := set{}
	for _, e := range reached {
		maps.Copy(known, newSet(e.Scopes))
	}
	for _, c := range (*ast.Policy)(r.policy.AST()).Conditions {
		for _, s := range scopesNamed(c.Body) {
			if !known[s] {
				l.warn(r, fmt.Sprintf("%q", s), "no entitlement that it is about has the scope %q", s)
			}
		}
	}
}

// scopesNamed gives the strings that a condition compares context.scopes with.
func scopesNamed(body ast.IsNode) (found []string) {
	ast.Inspect(ast.NewNode(body), func(n ast.IsNode) bool {
		var pair ast.BinaryNode
		switch n := n.(type) {
		case ast.NodeTypeContains:
			pair = n.BinaryNode
		case ast.NodeTypeContainsAll:
			pair = n.BinaryNode
		case ast.NodeTypeContainsAny:
			pair = n.BinaryNode
		case ast.NodeTypeEquals:
			pair = n.BinaryNode
		default:
			return true
		}
		if isContextScopes(pair.Left) {
			found = append(found, stringsIn(pair.Right)...)
		} else if isContextScopes(pair.Right) {
			found = append(found, stringsIn(pair.Left)...)
		}
		return true
	})
	return found
}

func isContextScopes(n ast.IsNode) bool {
	access, ok := n.(ast.NodeTypeAccess)
	if !ok || access.Value != "scopes" {
		return false
	}
	variable, ok := access.Arg.(ast.NodeTypeVariable)
	return ok && variable.Name == "context"
}

func stringsIn(n ast.IsNode) (found []string) {
	ast.Inspect(ast.NewNode(n), func(n ast.IsNode) bool {
		if v, ok := n.(ast.NodeValue); ok {
			if s, ok := v.Value.(types.String); ok {
				found = append(found, string(s))
			}
		}
		return true
	})
	return found
}

// kinds warns of permits for agents where no agents are, and for workloads
// where all are agents.
func (l *linter) kinds(r *rule) {
	if r.who.kind != typeAgent && r.who.kind != typeWorkload {
		return
	}
	under := ""
	switch r.who.uid.Type {
	case typePath:
		under = string(r.who.uid.ID)
	case typeTrustDomain:
		under = spiffeScheme + string(r.who.uid.ID)
	case "":
	default:
		return
	}
	if !l.kindUnder(under, r.who.kind) {
		l.warn(r, "principal", "nothing there is marked as %s (attest.workloads): it never applies", strings.ToLower(string(r.who.kind)))
	}
}

// kindUnder says whether identities of the kind may be at or below a SPIFFE
// ID; "" is everywhere.
func (l *linter) kindUnder(under string, kind types.EntityType) bool {
	if under == "" && kind == typeWorkload {
		return true
	}
	if under != "" && principalType(l.known.marks.Mark(broker.Identity{ID: under, Kind: broker.KindWorkload}).Kind) == kind {
		return true
	}
	return slices.ContainsFunc(l.in.Marks, func(m broker.Mark) bool {
		return principalType(m.Kind) == kind && (under == "" || broker.Mark{Under: under}.Covers(m.Under))
	})
}

func (l *linter) unconditionalForbids() (forbids []*rule) {
	for _, r := range l.sorted() {
		if !r.permit && len((*ast.Policy)(r.policy.AST()).Conditions) == 0 {
			forbids = append(forbids, r)
		}
	}
	return forbids
}

// shadowed warns of permits that a forbid takes away whole.
func (l *linter) shadowed(r *rule, forbids []*rule) {
	for _, f := range forbids {
		actions := !slices.ContainsFunc(r.actions, func(a int) bool { return !slices.Contains(f.actions, a) })
		if actions && l.covers(f.who, r.who) && l.covers(f.what, r.what) {
			l.warn(r, "permit", "forbid %q takes away all that it permits", f.id)
		}
	}
}

// covers says whether whatever is in scope b is in scope a. It errs towards no.
func (l *linter) covers(a, b scope) bool {
	if kind := cmp.Or(b.kind, eqType(b)); a.kind != "" && a.kind != kind {
		return false
	}
	if a.uid.IsZero() || a.uid == b.uid && (!a.eq || b.eq) {
		return true
	}
	if a.eq || b.uid.IsZero() {
		return false
	}
	return slices.Contains(l.ancestors(b.uid), a.uid)
}

func eqType(s scope) types.EntityType {
	if s.eq {
		return s.uid.Type
	}
	return ""
}

// ancestors gives what an entity named in a head is certainly in.
func (l *linter) ancestors(uid types.EntityUID) []types.EntityUID {
	id := string(uid.ID)
	switch uid.Type {
	case typePath, typeWorkload, typeAgent:
		uids := []types.EntityUID{types.NewEntityUID(typeTrustDomain, types.String(domainOf(id)))}
		for _, p := range broker.SPIFFEPaths(id) {
			uids = append(uids, types.NewEntityUID(typePath, types.String(p)))
		}
		return uids
	case typeEntitlement:
		return resourceUIDs(l.in.Catalogue[id])
	}
	return nil
}
