package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/ast"
	"github.com/cedar-policy/cedar-go/x/exp/schema/validate"

	"accessbroker.internal/broker"
)

// A rule is one policy, compiled, with what its annotations say.
type rule struct {
	terms
	place
	policy  *cedar.Policy
	permit  bool
	actions []int // numbers of those its head names; an unconstrained head names all
	anyActs bool  // the head names no action
	who     scope
	what    scope
	lasting bool // a forbid that goes on applying to whom it applies to, whatever the moment and the claims
}

// A scope is what the head of a policy says of the principal or the resource.
// The zero scope is unconstrained.
type scope struct {
	kind types.EntityType // "is": only entities of this type
	uid  types.EntityUID  // "==" or "in"; zero: neither
	eq   bool             // "=="
}

func newScope(n ast.IsScopeNode) scope {
	switch s := n.(type) {
	case ast.ScopeTypeEq:
		return scope{uid: s.Entity, eq: true}
	case ast.ScopeTypeIn:
		return scope{uid: s.Entity}
	case ast.ScopeTypeIs:
		return scope{kind: s.Type}
	case ast.ScopeTypeIsIn:
		return scope{kind: s.Type, uid: s.Entity}
	}
	return scope{}
}

// matches says whether an entity of this uid with these ancestors (itself
// among them) is in the scope.
func (s scope) matches(uid types.EntityUID, ancestors []types.EntityUID) bool {
	switch {
	case s.kind != "" && s.kind != uid.Type:
		return false
	case s.uid.IsZero():
		return true
	case s.eq:
		return s.uid == uid
	}
	return slices.Contains(ancestors, s.uid)
}

// appliesTo says whether the rule may decide about an identity of a federated
// domain: forbids always; permits if they name its domain, a path in it or a
// group that lists it. Their being about nobody in particular, or about all
// workloads, does not reach beyond the home domain.
func (r *rule) appliesTo(foreign bool) bool {
	return !foreign || !r.permit || !r.who.uid.IsZero()
}

func headActions(n ast.IsActionScopeNode) (numbers []int, unconstrained bool) {
	var uids []types.EntityUID
	switch s := n.(type) {
	case ast.ScopeTypeEq:
		uids = []types.EntityUID{s.Entity}
	case ast.ScopeTypeIn:
		uids = []types.EntityUID{s.Entity}
	case ast.ScopeTypeInSet:
		uids = s.Entities
	default:
		for i := range actions {
			numbers = append(numbers, i)
		}
		return numbers, true
	}
	for _, uid := range uids {
		if i := actionNumber(broker.Action(uid.ID)); i >= 0 && uid.Type == typeAction && !slices.Contains(numbers, i) {
			numbers = append(numbers, i)
		}
	}
	return numbers, false
}

// A ruleLoader makes rules of sources and reports what is wrong with them.
type ruleLoader struct {
	known     *names
	catalogue broker.Catalogue
	validator *validate.Validator
	problems  *problems
	rules     map[cedar.PolicyID]*rule
}

func (l *ruleLoader) load(src *source) {
	list, err := cedar.NewPolicyListFromBytes(src.name, src.text)
	if err != nil {
		l.problems.add(parseProblem(src, err))
		return
	}
	for i, p := range list {
		end := len(src.text)
		if i+1 < len(list) {
			end = list[i+1].Position().Offset
		}
		l.add(p, place{src, p.Position().Offset, end})
	}
}

// parseProblem finds the place in an error of the Cedar parser, which has it
// only in its text: `parser error: parse error at <input>:3:7 "x": …`.
func parseProblem(src *source, err error) Problem {
	p := Problem{File: src.name, Text: err.Error()}
	_, after, found := strings.Cut(p.Text, "at <input>:")
	if !found {
		return p
	}
	if n, _ := fmt.Sscanf(after, "%d:%d", &p.Line, &p.Column); n == 2 {
		_, rest, _ := strings.Cut(after, " ")
		p.Text = "not Cedar: near " + rest
	}
	return p
}

// add takes in one policy. It reports all that is wrong with it, not only the
// first.
func (l *ruleLoader) add(p *cedar.Policy, at place) {
	tree := (*ast.Policy)(p.AST())
	r := &rule{place: at, policy: p, permit: p.Effect() == cedar.Permit, who: newScope(tree.Principal), what: newScope(tree.Resource)}
	r.actions, r.anyActs = headActions(tree.Action)
	before := len(*l.problems)
	l.annotations(r, tree)
	l.literals(r, tree)
	l.validate(r, tree)
	l.head(r)
	l.approvers(r)
	if err := r.complete(); err != nil {
		l.report(r, err.Error(), "@")
	}
	if len(*l.problems) > before {
		return
	}
	l.rules[cedar.PolicyID(r.id)] = r
}

// lasts says whether a forbid that applies to somebody of whom only the listed
// groups are known still applies when more is known: its conditions speak neither
// of the circumstances nor of a group that a provider's claims fill, in which
// somebody may turn out to be. Its head may: being in more groups lifts no forbid.
func (e *Engine) lasts(r *rule) bool {
	claimed := func(name string) bool { return e.groups[name] != nil && !e.groups[name].closed() }
	varies := func(n ast.IsNode) bool {
		switch n := n.(type) {
		case ast.NodeTypeVariable:
			return n.Name == "context"
		case ast.NodeValue:
			uid, _ := n.Value.(types.EntityUID)
			known := e.in.Catalogue[string(uid.ID)]
			return uid.Type == typeGroup && claimed(string(uid.ID)) ||
				uid.Type == typeEntitlement && known != nil && claimed(known.Owner) // by its attribute
		}
		return false
	}
	lasts := !r.permit
	for _, c := range (*ast.Policy)(r.policy.AST()).Conditions {
		ast.Inspect(ast.NewNode(c.Body), func(n ast.IsNode) bool {
			lasts = lasts && !varies(n)
			return lasts
		})
	}
	return lasts
}

// report adds a problem of the rule, at the first of needles found in it.
func (l *ruleLoader) report(r *rule, text string, needles ...string) {
	line, column := r.at(needles...)
	l.problems.add(Problem{File: r.name, Line: line, Column: column, Policy: r.id, Text: text})
}

func (l *ruleLoader) annotations(r *rule, tree *ast.Policy) {
	for _, a := range tree.Annotations { // the id first, so that all that follows can name it
		if a.Key == "id" {
			_ = r.parse("id", string(a.Value), r.permit) // reported below
		}
	}
	for _, a := range tree.Annotations {
		if err := r.parse(string(a.Key), string(a.Value), r.permit); err != nil {
			l.report(r, fmt.Sprintf("@%s: %v", a.Key, err), "@"+string(a.Key))
		}
	}
	if r.policy.Annotations()["id"] == "" {
		l.report(r, `has no id: give it one, as in @id("agents-read-tickets")`)
	}
	if other := l.rules[cedar.PolicyID(r.id)]; other != nil {
		line, _ := other.at()
		l.report(r, fmt.Sprintf("its id is already that of the policy at %s:%d: ids are unique over all files", other.name, line), "@id")
	}
}

// literals reports every entity that the policy names and that does not exist.
func (l *ruleLoader) literals(r *rule, tree *ast.Policy) {
	check := func(uid types.EntityUID) {
		if uid.IsZero() {
			return
		}
		if err := l.known.entity(uid); err != nil {
			l.report(r, err.Error(), uid.String(), fmt.Sprintf("%q", uid.ID))
		}
	}
	check(r.who.uid)
	check(r.what.uid)
	for _, c := range tree.Conditions {
		ast.Inspect(ast.NewNode(c.Body), func(n ast.IsNode) bool {
			if v, ok := n.(ast.NodeValue); ok {
				if uid, ok := v.Value.(types.EntityUID); ok {
					check(uid)
				}
			}
			return true
		})
	}
}

func (l *ruleLoader) validate(r *rule, tree *ast.Policy) {
	err := l.validator.Policy("", tree)
	if err == nil {
		return
	}
	l.report(r, "does not fit the schema: "+strings.ReplaceAll(err.Error(), "\n", "; "))
}

// head refuses permits that allow more than their author is likely to mean.
func (l *ruleLoader) head(r *rule) {
	if !r.permit {
		return
	}
	request, approve := actionNumber(broker.ActionRequest), actionNumber(broker.ActionApprove)
	switch {
	case r.anyActs:
		l.report(r, `a permit names its actions: write action == Action::"request"`, "action")
	case slices.Contains(r.actions, approve):
		l.report(r, `"approve" can only be forbidden: who may approve is named in the @approval of the permit`, `"approve"`)
	case !slices.Equal(r.actions, []int{request}) && r.demands():
		l.report(r, `obligations are for permits of Action::"request" alone: write a policy of its own for the other actions`, "action")
	}
}

// demands says whether the policy has any obligation.
func (t *terms) demands() bool {
	o := t.Obligations
	return len(o.Approvals)+len(o.Review)+len(o.Tickets)+len(o.Limits)+len(o.MaxActive)+len(o.Escalations)+o.Denials > 0 ||
		o.MaxTTL+o.MaxDuration+o.LapseAfter+o.ReviewWithin > 0 || o.Justification || o.ExcludeTeam || o.Comment || o.Signed
}

// approvers checks that the groups that must approve, review or be told exist.
func (l *ruleLoader) approvers(r *rule) {
	for _, step := range r.Escalations {
		if err := l.known.group(step.Group); err != nil {
			l.report(r, "@escalate: "+err.Error(), "@escalate")
		}
	}
	if r.glass != "" {
		if err := l.known.group(r.glass); err != nil {
			l.report(r, "@break_glass: "+err.Error(), "@break_glass")
		}
	}
	for _, need := range r.Approvals {
		switch need.Group {
		case groupManager:
		case groupOwner:
			l.owned(r)
		default:
			if err := l.known.group(need.Group); err != nil {
				l.report(r, "@approval: "+err.Error(), "@approval")
			}
		}
	}
}

// owned checks that every entitlement that the permit may be about has the
// owner who is to approve.
func (l *ruleLoader) owned(r *rule) {
	var without []string
	for _, e := range reach(l.catalogue, r.what) {
		if e != nil && e.Owner == "" { // nil: no such entitlement, reported already
			without = append(without, e.Name)
		}
	}
	if len(without) == 0 {
		return
	}
	l.report(r, fmt.Sprintf("@approval: the owner must approve, but %s has none: give it an owner, or name the entitlements in the policy's head",
		quoteList("entitlement", without)), "@approval")
}

// quoteList writes `entitlement "a"`, `entitlements "a", "b" and 3 more`.
func quoteList(what string, items []string) string {
	const most = 3
	if len(items) == 1 {
		return fmt.Sprintf("%s %q", what, items[0])
	}
	quoted := make([]string, 0, most)
	for _, i := range items[:min(most, len(items))] {
		quoted = append(quoted, fmt.Sprintf("%q", i))
	}
	text := what + "s " + strings.Join(quoted, ", ")
	if more := len(items) - most; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}
