package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/ast"

	"accessbroker.internal/broker"
)

// A rule is one compiled policy with its parsed annotations.
type rule struct {
	annotations
	span
	policy    *cedar.Policy
	permit    bool
	actions   []int // numbers of the actions that the head names; all of them if it names none
	anyAction bool  // the head names no action
	principal constraint
	resource  constraint
	lasting   bool // see isLasting
	dead      []deadClause
	mentions  []mention
}

// A constraint is the requirement of a policy's head on the principal or the
// resource. The zero constraint matches every entity.
type constraint struct {
	kind types.EntityType // "is": only entities of this type
	uid  types.EntityUID  // "==" or "in"; zero: neither
	eq   bool             // "=="
}

func newConstraint(n ast.IsScopeNode) constraint {
	switch s := n.(type) {
	case ast.ScopeTypeEq:
		return constraint{uid: s.Entity, eq: true}
	case ast.ScopeTypeIn:
		return constraint{uid: s.Entity}
	case ast.ScopeTypeIs:
		return constraint{kind: s.Type}
	case ast.ScopeTypeIsIn:
		return constraint{kind: s.Type, uid: s.Entity}
	}
	return constraint{}
}

// matches reports whether the entity uid satisfies the constraint. The ancestors
// include uid itself.
func (c constraint) matches(uid types.EntityUID, ancestors []types.EntityUID) bool {
	switch {
	case c.kind != "" && c.kind != uid.Type:
		return false
	case c.uid.IsZero():
		return true
	case c.eq:
		return c.uid == uid
	}
	return slices.Contains(ancestors, c.uid)
}

// appliesTo reports whether the rule may apply to an identity of a federated
// domain, or one without an SVID. Forbids always may. Permits may only if the head names the
// domain, a path in it or a group that lists the identity: a permit for every principal,
// or for every workload, is meant for the workloads of the home domain that have SVIDs.
func (r *rule) appliesTo(foreign bool) bool {
	return !foreign || !r.permit || !r.principal.uid.IsZero()
}

// headActions returns the numbers of the actions in a head. Each appears once, so
// that the index does not file the rule twice under one action.
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

// A ruleLoader parses sources into rules and collects the problems.
type ruleLoader struct {
	known     *names
	coverages *coverages
	schema    *cedarSchema
	problems  *problems
	rules     map[cedar.PolicyID]*rule
	reads     map[string]bool // see Engine
	tokens    []token         // of the policy that is checked
}

// load parses a source. A policy ends where the next one begins: cedar-go has no
// end positions. After a syntax error it loads no policy of the source.
func (l *ruleLoader) load(src *source) {
	if deep := checkNesting(src); deep != nil {
		l.reportText(src, deep)
		return
	}
	list, err := cedar.NewPolicyListFromBytes(src.name, src.text)
	if err != nil {
		l.problems.add(parseProblem(src, err))
		return
	}
	text, from := string(src.text), 0
	for i, p := range list {
		end := len(text)
		if i+1 < len(list) {
			end = list[i+1].Position().Offset
		}
		if l.tokenize(src, text, from, end) {
			l.add(p, span{src, p.Position().Offset, end})
		}
		from = end
	}
	if from < len(text) {
		l.tokenize(src, text, from, len(text))
	}
}

// tokenize reads the tokens of a part of the source. It reports text that is not Cedar,
// and returns false if there is any.
func (l *ruleLoader) tokenize(src *source, text string, from, to int) bool {
	tokens, problem := tokenize(l.tokens[:0], text, from, to)
	l.tokens = tokens
	if problem == nil && len(tokens) > maxTokens {
		problem = &lexProblem{tokens[0].at, fmt.Sprintf("the policy has %d words and signs, more than %d: split it", len(tokens), maxTokens)}
	}
	if problem != nil {
		l.reportText(src, problem)
	}
	return problem == nil
}

func (l *ruleLoader) reportText(src *source, problem *lexProblem) {
	line, column := src.position(problem.at)
	l.problems.add(Problem{File: src.name, Line: line, Column: column, Text: problem.text})
}

// add checks one policy and adds it to the rules if it has no problem. It
// reports every problem, not only the first.
func (l *ruleLoader) add(p *cedar.Policy, at span) {
	tree := (*ast.Policy)(p.AST())
	r := &rule{span: at, policy: p, permit: p.Effect() == cedar.Permit, principal: newConstraint(tree.Principal), resource: newConstraint(tree.Resource)}
	r.actions, r.anyAction = headActions(tree.Action)
	before := len(*l.problems)
	l.parseAnnotations(r, tree)
	l.checkEntities(r, tree)
	l.checkSchema(r, tree)
	l.checkHead(r)
	l.checkGroups(r)
	if err := l.known.checkTerms(r.TicketTerms); err != nil {
		l.report(r, err.Error(), "@ticket_", "@change_window")
	}
	if err := r.complete(); err != nil {
		l.report(r, err.Error(), "@")
	}
	if len(*l.problems) > before {
		return
	}
	l.rules[cedar.PolicyID(r.id)] = r
}

// isLasting reports whether no other time, address or claims of a person's provider
// would end a denial by the forbid r. That is so unless its conditions read the
// context or name a group that claims fill, directly or as the owner of an
// entitlement. The head does not matter: more groups can only make a forbid match,
// not stop it from matching.
func (e *Engine) isLasting(r *rule) bool {
	claimed := func(name string) bool { return e.groups[name] != nil && !e.groups[name].fullyListed() }
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
	lasting := !r.permit
	for _, c := range (*ast.Policy)(r.policy.AST()).Conditions {
		ast.Inspect(ast.NewNode(c.Body), func(n ast.IsNode) bool {
			lasting = lasting && !varies(n)
			return lasting
		})
	}
	return lasting
}

// report adds a problem of the rule at the first of needles that the policy
// contains.
func (l *ruleLoader) report(r *rule, text string, needles ...string) {
	line, column := r.at(needles...)
	l.problems.add(Problem{File: r.name, Line: line, Column: column, Policy: r.id, Text: text})
}

// parseAnnotations parses the annotations and requires a unique id. Cedar would
// number policies without an id by position, so that an insertion would rename
// those in the audit log.
func (l *ruleLoader) parseAnnotations(r *rule, tree *ast.Policy) {
	for _, a := range tree.Annotations { // the id first, so that every problem can name it
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
		l.report(r, `the policy has no id: add one, such as @id("agents-read-tickets")`)
	}
	if other := l.rules[cedar.PolicyID(r.id)]; other != nil {
		line, _ := other.at()
		l.report(r, fmt.Sprintf("the policy at %s:%d has the same id: choose an id that is unique in the folder", other.name, line), "@id")
	}
}

// checkEntities reports every entity that the policy names and that does not
// exist. Cedar would accept the name, and the policy would never match.
func (l *ruleLoader) checkEntities(r *rule, tree *ast.Policy) {
	check := func(uid types.EntityUID) {
		if uid.IsZero() {
			return
		}
		if err := l.known.checkEntity(uid); err != nil {
			l.report(r, err.Error(), uid.String(), fmt.Sprintf("%q", uid.ID))
		}
	}
	check(r.principal.uid)
	check(r.resource.uid)
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

// checkHead rejects permits that allow more than their author is likely to mean: all
// actions, including those on the broker; "approve", which @approval governs; and
// obligations on actions for which the broker does not enforce them.
func (l *ruleLoader) checkHead(r *rule) {
	if !r.permit {
		return
	}
	request, approve := actionNumber(broker.ActionRequest), actionNumber(broker.ActionApprove)
	switch {
	case r.anyAction:
		l.report(r, `a permit must name its actions: write action == Action::"request"`, "action")
	case slices.Contains(r.actions, approve):
		l.report(r, `policies can only forbid "approve": name the approvers in @approval on the permit for Action::"request"`, `"approve"`)
	case !slices.Equal(r.actions, []int{request}) && r.hasObligations():
		l.report(r, `only a permit for Action::"request" alone may have obligations: write a separate permit for the other actions`, "action")
	}
}

// checkGroups reports groups in @approval, @break_glass and @escalate that do
// not exist.
func (l *ruleLoader) checkGroups(r *rule) {
	for _, step := range r.Escalations {
		if err := l.known.checkGroup(step.Group); err != nil {
			l.report(r, "@escalate: "+err.Error(), "@escalate")
		}
	}
	if r.breakGlass != "" {
		if err := l.known.checkGroup(r.breakGlass); err != nil {
			l.report(r, "@break_glass: "+err.Error(), "@break_glass")
		}
	}
	for _, need := range r.Approvals {
		switch need.Group {
		case groupManager:
		case groupOwner:
			l.checkOwners(r)
		default:
			if err := l.known.checkGroup(need.Group); err != nil {
				l.report(r, "@approval: "+err.Error(), "@approval")
			}
		}
	}
}

// checkOwners reports the entitlements that the permit covers and that have no
// owner to approve.
func (l *ruleLoader) checkOwners(r *rule) {
	without := l.coverages.of(r.resource).ownerless
	if len(without) == 0 {
		return
	}
	l.report(r, fmt.Sprintf("@approval requires the owner, but %s has no owner: set owner in the catalogue, or name other entitlements in the policy's head",
		quoteList("entitlement", without)), "@approval")
}

// quoteList returns `entitlement "a"`, or `each of the entitlements "a", "b"
// and 3 more`.
func quoteList(what string, items []string) string {
	const most = 3
	if len(items) == 1 {
		return fmt.Sprintf("%s %q", what, items[0])
	}
	quoted := make([]string, 0, most)
	for _, i := range items[:min(most, len(items))] {
		quoted = append(quoted, fmt.Sprintf("%q", i))
	}
	text := "each of the " + what + "s " + strings.Join(quoted, ", ")
	if more := len(items) - most; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}
