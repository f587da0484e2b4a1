package policy

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/cedar-policy/cedar-go/types"

	"accessbroker.internal/broker"
)

// A vocabulary is the closed set of values that a field may have according to the
// operator's file.
type vocabulary struct {
	owner string // who or what has the field: "none of the permit's principals"
	noun  string // "team"
	names []string
	fix   string // what to do if no name is similar
}

// checkLiterals warns of literals that a field never has. A forbid with such a literal
// lets through what it should stop. It does not judge fields whose values the
// operator's file does not limit, such as tickets.
func (l *linter) checkLiterals(r *rule) {
	unknownTags := map[mention]bool{}
	for _, m := range r.mentions {
		key := mention{field: m.field, only: m.only, tag: m.tag}
		text := ""
		switch {
		case m.tag == "":
			text = l.judge(r, m)
		case unknownTags[key]:
		case !l.tagExists(r, m):
			unknownTags[key] = true
			text = l.judgeTag(r, m)
		case m.value != nil:
			text = l.judgeTagValue(r, m)
		}
		if text != "" {
			line, column := r.position(m.at)
			l.problems.add(Problem{File: r.name, Line: line, Column: column, Policy: r.id, Text: text})
		}
	}
}

// judge returns a warning if the field never has the literal, or "".
func (l *linter) judge(r *rule, m mention) string {
	uid, isEntity := m.value.(types.EntityUID)
	text := literalName(m.value)
	switch {
	case m.field == "principal" && isEntity && uid.Type == typeGroup:
		return l.judgeGroup(r, text)
	case m.field == "resource" && isEntity:
		return l.judgeResource(r, uid)
	case m.field == "principal.id" || m.field == "resource.requester":
		return l.judgeID(r, m, text)
	}
	v, closed := l.vocabulary(r, m)
	if !closed || v.has(text, m.pattern) {
		return ""
	}
	if m.pattern != nil {
		return fmt.Sprintf("%s has a %s like %s: correct the pattern", v.owner, v.noun, text)
	}
	anywhere, _ := l.vocabulary(&rule{}, m)
	return fmt.Sprintf("%s has the %s %q%s", v.owner, v.noun, text, v.advise(text, anywhere.names))
}

// has reports whether a name is the text or matches the pattern.
func (v vocabulary) has(text string, pattern *types.Pattern) bool {
	if pattern == nil {
		return slices.Contains(v.names, text)
	}
	return slices.ContainsFunc(v.names, func(name string) bool { return pattern.Match(types.String(name)) })
}

// advise returns the end of a message: what to write instead. A text that exists elsewhere is not misspelt.
func (v vocabulary) advise(text string, elsewhere []string) string {
	if slices.Contains(elsewhere, text) {
		return ": correct it or the policy's head"
	}
	return cmp.Or(broker.DidYouMean(broker.Nearest(text, v.names)), ": "+v.fix)
}

// literalName returns the text of a string or the name of an entity.
func literalName(v types.Value) string {
	switch v := v.(type) {
	case types.String:
		return string(v)
	case types.EntityUID:
		return string(v.ID)
	}
	return ""
}

// vocabulary returns the values that a field may have where the rule applies, and
// whether the operator's file limits them.
func (l *linter) vocabulary(r *rule, m mention) (v vocabulary, closed bool) {
	switch m.field {
	case "principal.team":
		return vocabulary{r.noneOf("principals"), "team", teamsOf(l.labelsFor(r)), "correct it or set the team in attest.workloads"}, true
	case "principal.purpose":
		return vocabulary{r.noneOf("principals"), "purpose", textsOf(l.labelsFor(r), func(m *broker.WorkloadLabels) string { return m.Purpose }), "correct it or set the purpose in attest.workloads"}, true
	case "principal.model":
		return vocabulary{r.noneOf("principals"), "model", textsOf(l.labelsFor(r), func(m *broker.WorkloadLabels) string { return m.Model }), "correct it or set the model in attest.workloads"}, true
	case "principal.accountable":
		return vocabulary{r.noneOf("principals"), "accountable person", accountableOf(l.labelsFor(r)), "correct it or list the person under accountable in attest.workloads"}, true
	case "principal.trust_domain":
		return vocabulary{r.noneOf("principals"), "trust domain", l.domainsFor(r), l.adviseDomain(r)}, true
	case "principal.attested":
		return vocabulary{r.noneOf("principals"), "attestation", []string{string(broker.AttestedOIDC), string(broker.AttestedSPIFFE)}, "write spiffe or oidc"}, true
	case "principal.provider":
		return vocabulary{r.noneOf("principals"), "provider", l.in.Providers, "correct it or configure it in attest.people"}, len(l.in.Providers) > 0
	case "resource.team":
		return vocabulary{r.noneOf("requesters"), "team", teamsOf(l.known.labels.Labels), "correct it or set the team in attest.workloads"}, true
	case "resource.accountable":
		return vocabulary{r.noneOf("requesters"), "accountable person", accountableOf(l.known.labels.Labels), "correct it or list the person under accountable in attest.workloads"}, true
	}
	if strings.HasPrefix(m.field, "context.detail.") {
		return l.detailVocabulary(r, m)
	}
	return l.catalogueVocabulary(r, m)
}

// catalogueVocabulary is vocabulary for the fields of entitlements.
func (l *linter) catalogueVocabulary(r *rule, m mention) (v vocabulary, closed bool) {
	v = vocabulary{owner: r.noneOf("entitlements"), fix: "correct it"}
	if m.only != "" {
		v.owner = fmt.Sprintf("entitlement %q never", m.only)
	}
	var pick func(*broker.Entitlement) []string
	switch m.field {
	case "resource.scopes", "context.scopes":
		v.noun, pick = "scope", func(e *broker.Entitlement) []string { return e.Scopes }
	case "resource.issuer":
		v.noun, pick = "issuer", func(e *broker.Entitlement) []string { return []string{e.Issuer} }
	case "resource.owner":
		v.noun, pick = "owner", func(e *broker.Entitlement) []string { return []string{e.Owner} }
	default:
		return v, false
	}
	found := set{}
	for _, e := range l.entitlementsFor(r, m) {
		for _, name := range pick(e) {
			found[name] = true
		}
	}
	v.names = slices.Sorted(maps.Keys(found))
	return v, true
}

// noneOf starts a warning about something that no principal or entitlement has to
// which the policy applies.
func (r *rule) noneOf(what string) string {
	return fmt.Sprintf("none of the %s's %s", r.effect(), what)
}

// labelsFor returns the labels that the principals of a rule may have. A permit for
// every principal applies to those of the home domain only; see appliesTo.
func (l *linter) labelsFor(r *rule) []broker.WorkloadLabels {
	known, cached := l.labels[r.principal]
	if !cached {
		known = l.labelsIn(r.principal)
		l.labels[r.principal] = known
	}
	if r.appliesTo(true) {
		return known
	}
	return slices.DeleteFunc(slices.Clone(known), func(labels broker.WorkloadLabels) bool {
		return broker.TrustDomainOf(labels.Under) != l.known.home
	})
}

func teamsOf(all []broker.WorkloadLabels) []string {
	return textsOf(all, func(m *broker.WorkloadLabels) string { return m.Team })
}

// textsOf returns one text of each label that has it, sorted.
func textsOf(all []broker.WorkloadLabels, text func(*broker.WorkloadLabels) string) (texts []string) {
	for i := range all {
		if t := text(&all[i]); t != "" {
			texts = append(texts, t)
		}
	}
	slices.Sort(texts)
	return slices.Compact(texts)
}

func accountableOf(all []broker.WorkloadLabels) (people []string) {
	for _, labels := range all {
		people = append(people, labels.Accountable...)
	}
	slices.Sort(people)
	return slices.Compact(people)
}

// domainsFor returns the trust domains of the principals of a rule.
func (l *linter) domainsFor(r *rule) []string {
	switch {
	case !r.principal.uid.IsZero():
		return l.domainsOf(r.principal.uid)
	case r.permit:
		return []string{l.known.home}
	}
	return l.in.TrustDomains
}

func (l *linter) adviseDomain(r *rule) string {
	if r.permit && r.principal.uid.IsZero() {
		return "a permit applies to another domain only if its head names the domain, a path in it or a group"
	}
	return "correct it or list it in attest.trust_domains"
}

// entitlementsFor returns the entitlements of a rule, or of the requests that it
// applies to.
func (l *linter) entitlementsFor(r *rule, m mention) []*broker.Entitlement {
	if m.only != "" {
		return []*broker.Entitlement{l.in.Catalogue[m.only]} // checkEntity knows that it exists
	}
	c := r.resource
	if c.kind == typeRequest {
		c.kind = "" // a request is in its entitlement and its system
	}
	return l.coverages.of(c).entitlements
}

// judgeID warns of an ID that no caller can have. The set of callers is open, so only
// the form, the trust domain, the provider and the head's place are known.
func (l *linter) judgeID(r *rule, m mention, id string) string {
	who, head := "principals", r.principal
	if m.field == "resource.requester" {
		who, head = "requesters", constraint{}
	}
	err := l.checkID(id, head)
	if m.pattern != nil {
		err = l.checkIDPattern(id)
	}
	if err == nil {
		return ""
	}
	what := fmt.Sprintf("the id %q", id)
	if m.pattern != nil {
		what = "an id like " + id
	}
	return fmt.Sprintf("%s can have %s: %v", r.noneOf(who), what, err)
}

// checkID checks the ID of a caller that the head matches.
func (l *linter) checkID(id string, head constraint) error {
	kind := cmp.Or(head.kind, eqType(head))
	if !strings.HasPrefix(id, spiffeScheme) {
		if kind == typeAgent || kind == typeWorkload || l.placeOf(head) != "" {
			return errors.New("the policy's head matches only workloads, whose ids are SPIFFE IDs")
		}
		return l.known.checkPerson(id)
	}
	if kind == typePerson {
		return errors.New("the policy's head matches only people, whose ids are <provider>/<subject>")
	}
	if err := l.known.checkAnyWorkload(id); err != nil {
		return err
	}
	if place := l.placeOf(head); place != "" && !below(id, place) {
		return fmt.Errorf("the policy's head matches only ids in %s", place)
	}
	return nil
}

// placeOf returns the SPIFFE ID of the path, trust domain or workload that a head names.
func (l *linter) placeOf(head constraint) string {
	switch head.uid.Type {
	case typePath, typeWorkload, typeAgent:
		return string(head.uid.ID)
	case typeTrustDomain:
		return spiffeScheme + string(head.uid.ID)
	}
	return ""
}

// checkIDPattern checks the trust domain or the provider with which a pattern in
// Cedar's notation starts.
func (l *linter) checkIDPattern(pattern string) error {
	prefix, _, _ := strings.Cut(strings.Trim(pattern, `"`), "*")
	rest, isWorkload := strings.CutPrefix(prefix, spiffeScheme)
	first, _, complete := strings.Cut(rest, "/")
	switch {
	case !complete || strings.Contains(prefix, `\`):
		return nil
	case isWorkload:
		return l.known.checkDomain(first)
	}
	return l.known.checkProvider(first)
}

// judgeGroup warns of a group without members of the kind that the head requires.
func (l *linter) judgeGroup(r *rule, name string) string {
	g := l.groups[name]
	switch kind := r.principal.kind; {
	case g == nil || len(g.Members)+len(g.Claims)+len(g.Workloads) == 0: // checkGroups warns of an empty one
	case kind == typePerson && len(g.Members)+len(g.Claims) == 0:
		return fmt.Sprintf("%s can be in group %q, which has no people: add members or claims", r.noneOf("principals"), name)
	case (kind == typeAgent || kind == typeWorkload) && len(g.Workloads) == 0:
		return fmt.Sprintf("%s can be in group %q, which has no workloads: add workloads", r.noneOf("principals"), name)
	}
	return ""
}

// judgeResource warns of an entitlement or system that the head leaves out.
func (l *linter) judgeResource(r *rule, uid types.EntityUID) string {
	covered := l.entitlementsFor(r, mention{})
	isNamed := func(e *broker.Entitlement) bool { return slices.Contains(resourceUIDs(e), uid) }
	if slices.ContainsFunc(covered, isNamed) || uid.Type != typeEntitlement && uid.Type != typeSystem {
		return ""
	}
	return fmt.Sprintf("the policy's head leaves out %s: correct it or the head", literalText(uid))
}

// tagExists reports whether an entitlement of the rule has the label or the parameter.
func (l *linter) tagExists(r *rule, m mention) bool {
	return slices.ContainsFunc(l.entitlementsFor(r, m), func(e *broker.Entitlement) bool {
		return slices.Contains(tagKeys(e, m.field), m.tag)
	})
}

func tagKeys(e *broker.Entitlement, field string) []string {
	switch {
	case field == fieldParameters:
		return slices.Collect(maps.Keys(e.Parameters))
	case strings.HasPrefix(field, fieldArguments):
		return argumentNames(e)
	}
	return slices.Collect(maps.Keys(e.Labels))
}

// judgeTag warns of a label or parameter that no entitlement of the rule has.
func (l *linter) judgeTag(r *rule, m mention) string {
	v := vocabulary{owner: r.noneOf("entitlements"), noun: "label", fix: "correct it or add the label to an entitlement"}
	switch {
	case m.field == fieldParameters:
		v.noun, v.fix = "parameter", "correct it or add the parameter to an entitlement"
	case strings.HasPrefix(m.field, fieldArguments):
		v.noun, v.fix = "argument", "correct it or add the argument to a tool in authorization_details of an entitlement"
	}
	if m.only != "" {
		v.owner = fmt.Sprintf("entitlement %q never", m.only)
	}
	names := func(list []*broker.Entitlement) []string {
		found := set{}
		for _, e := range list {
			for _, key := range tagKeys(e, m.field) {
				found[key] = true
			}
		}
		return slices.Sorted(maps.Keys(found))
	}
	v.names = names(l.entitlementsFor(r, m))
	return fmt.Sprintf("%s has the %s %q%s", v.owner, v.noun, m.tag, v.advise(m.tag, names(l.coverages.all)))
}

// judgeTagValue warns of a value that no label has or that no parameter accepts.
func (l *linter) judgeTagValue(r *rule, m mention) string {
	text := literalName(m.value)
	if strings.HasPrefix(m.field, fieldArguments) {
		return "" // an argument may have any value within its bound
	}
	if m.field == fieldParameters {
		return l.judgeParameter(r, m, text)
	}
	v := vocabulary{owner: r.noneOf("entitlements"), fix: "correct it"}
	if m.only != "" {
		v.owner = fmt.Sprintf("entitlement %q never", m.only)
	}
	for _, e := range l.entitlementsFor(r, m) {
		if value, ok := e.Labels[m.tag]; ok {
			v.names = append(v.names, value)
		}
	}
	slices.Sort(v.names)
	switch {
	case v.has(text, m.pattern):
		return ""
	case m.pattern != nil:
		return fmt.Sprintf("%s has the label %q with a value like %s: correct the pattern", v.owner, m.tag, text)
	}
	var everywhere []string
	for _, e := range l.coverages.all {
		everywhere = append(everywhere, e.Labels[m.tag])
	}
	return fmt.Sprintf("%s has the label %q with the value %q%s", v.owner, m.tag, text, v.advise(text, everywhere))
}

// judgeParameter warns of a value that the parameter's pattern and length exclude.
func (l *linter) judgeParameter(r *rule, m mention, text string) string {
	if m.pattern != nil {
		return "" // whether two patterns have a text in common is not known
	}
	accepts := func(e *broker.Entitlement) bool {
		p, ok := e.Parameters[m.tag]
		return ok && (p.Pattern == nil || p.Pattern.MatchString(text)) && len(text) <= cmp.Or(p.MaxLength, broker.MaxParameter)
	}
	if slices.ContainsFunc(l.entitlementsFor(r, m), accepts) {
		return ""
	}
	return fmt.Sprintf("%s accepts %q as the parameter %q: correct it or the parameter's pattern", r.noneOf("entitlements"), text, m.tag)
}
