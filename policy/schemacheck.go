package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/ast"

	"accessbroker.internal/broker"
)

// checkSchema checks that the policy fits the schema: its names, and the types of
// its condition in every environment that its head matches. An ill-typed condition
// fails when it is evaluated, and Cedar skips a policy that fails, so a forbid would
// no longer forbid.
//
// The broker's own type checker runs first, because it knows positions and what to
// write instead. The validator of cedar-go is the second opinion.
func (l *ruleLoader) checkSchema(r *rule, tree *ast.Policy) {
	before := len(*l.problems)
	binder := binder{tokens: l.tokens}
	condition := binder.conditions(tree.Conditions)
	l.checkHeadNames(r, tree)
	if condition != nil {
		l.checkNames(r, condition)
	}
	if len(*l.problems) > before {
		return
	}
	list := l.schema.environments(r)
	if len(list) == 0 {
		l.report(r, "no request matches the head: "+l.adviseHead(r), "principal")
		return
	}
	if condition != nil {
		l.checkTypes(r, condition, list)
	}
	if len(*l.problems) > before {
		return
	}
	r.mentions = mentions(nil, condition)
	addContextReads(l.reads, condition)
	if err := l.validate(tree); err != nil {
		l.report(r, "does not match the schema: "+strings.ReplaceAll(err.Error(), "\n", "; "))
	}
}

// checkTypes checks the condition in every environment. One mistake leads to one
// problem, whatever the number of environments.
func (l *ruleLoader) checkTypes(r *rule, condition *expr, list []environment) {
	type key struct {
		at   int
		text string
	}
	reported := map[key]bool{}
	report := func(e *expr, format string, args ...any) {
		k := key{e.at, fmt.Sprintf(format, args...)}
		if !reported[k] {
			reported[k] = true
			l.reportAt(r, k.at, k.text)
		}
	}
	for _, env := range list {
		checker := typeChecker{l.schema.schemaTypes, env, l.known, report}
		checker.condition(condition, nil)
	}
	if len(reported) > 0 {
		return
	}
	dead := condition.dead(nil)
	switch {
	case condition.maybeTrue:
		for _, e := range dead {
			r.dead = append(r.dead, deadClause{e.at, e.short() + " is false for every request that the head matches" + l.schema.adviseDead(e, list)})
		}
	case len(dead) > 0:
		l.reportAt(r, dead[0].at, dead[0].short()+" is false for every request that the head matches, so the policy never applies"+l.schema.adviseDead(dead[0], list))
	default:
		l.reportAt(r, condition.at, "the conditions are false for every request that the head matches, so the policy never applies: correct or remove it")
	}
}

// A deadClause is a part of a condition that is never true.
type deadClause struct {
	at   int
	text string
}

// dead appends the innermost parts of a condition that are evaluated in some
// environment and true in none.
func (e *expr) dead(list []*expr) []*expr {
	for _, a := range e.args {
		list = a.dead(list)
	}
	if e.evaluated && !e.maybeTrue && slices.Contains([]string{"is", "in", "has", "hasTag", "==", "!="}, e.op) {
		list = append(list, e)
	}
	return list
}

// adviseDead returns the attribute that the author of a "has" may have meant.
func (st *schemaTypes) adviseDead(e *expr, list []environment) string {
	if e.op != "has" {
		return ""
	}
	var names []string
	for _, env := range list {
		c := typeChecker{st, env, nil, func(*expr, string, ...any) {}}
		t, _ := c.check(e.args[0], nil)
		for name := range c.attributes(t) {
			names = append(names, name)
		}
	}
	return broker.DidYouMean(broker.Nearest(e.name, names))
}

// validate validates the policy with cedar-go. If that fails, it tries again with the
// same policy in the form that Cedar defines it to have: one condition, "is … in" as
// two tests, and a comparison of action as a test for membership. cedar-go does not
// know that guards carry over from one form to the other.
func (l *ruleLoader) validate(tree *ast.Policy) error {
	err := l.schema.validator.Policy("", tree)
	if err == nil {
		return nil
	}
	if l.schema.validator.Policy("", normalized(tree)) == nil {
		return nil
	}
	return err
}

// checkHeadNames reports entity types and actions of the head that the schema does
// not have.
func (l *ruleLoader) checkHeadNames(r *rule, tree *ast.Policy) {
	for _, c := range []constraint{r.principal, r.resource} {
		for _, name := range []types.EntityType{c.kind, c.uid.Type} {
			if name == "" {
				continue
			}
			if text := l.schema.unknownType(string(name)); text != "" {
				l.report(r, text, "is "+string(name), string(name)+"::", string(name))
			}
		}
	}
	for _, uid := range actionsNamed(tree.Action) {
		if text := l.schema.unknownAction(uid); text != "" {
			l.report(r, text, literalText(uid), "action")
		}
	}
}

// actionsNamed returns the actions in a head.
func actionsNamed(n ast.IsActionScopeNode) []types.EntityUID {
	switch s := n.(type) {
	case ast.ScopeTypeEq:
		return []types.EntityUID{s.Entity}
	case ast.ScopeTypeIn:
		return []types.EntityUID{s.Entity}
	case ast.ScopeTypeInSet:
		return s.Entities
	}
	return nil
}

// checkNames reports entity types and actions of a condition that the schema does not
// have, also in parts that are never evaluated.
func (l *ruleLoader) checkNames(r *rule, e *expr) {
	text := ""
	switch uid, isEntity := e.value.(types.EntityUID); {
	case e.op == "is":
		text = l.schema.unknownType(e.name)
	case isEntity && uid.Type == typeAction:
		text = l.schema.unknownAction(uid)
	case isEntity:
		text = l.schema.unknownType(string(uid.Type))
	}
	if text != "" {
		l.reportAt(r, e.at, text)
	}
	for _, a := range e.args {
		l.checkNames(r, a)
	}
}

func (st *schemaTypes) unknownType(name string) string {
	if _, ok := st.entities[name]; ok {
		return ""
	}
	if near := broker.Nearest(name, st.names); near != "" {
		return fmt.Sprintf("unknown entity type %q: did you mean %s?", name, near)
	}
	return fmt.Sprintf("unknown entity type %q: use one of %s", name, strings.Join(st.names, ", "))
}

func (st *schemaTypes) unknownAction(uid types.EntityUID) string {
	if _, ok := st.actions[uid]; ok {
		return ""
	}
	var names []string
	for _, a := range actions {
		names = append(names, string(a))
	}
	if near := broker.Nearest(string(uid.ID), names); near != "" {
		return fmt.Sprintf("unknown action %s: did you mean Action::%q?", literalText(uid), near)
	}
	return fmt.Sprintf("unknown action %s: use one of %s", literalText(uid), strings.Join(names, ", "))
}

// adviseHead returns which principals and resources the actions of a head have.
func (l *ruleLoader) adviseHead(r *rule) string {
	var list []string
	for _, number := range r.actions {
		if a := l.schema.actions[types.NewEntityUID(typeAction, types.String(actions[number]))]; a.principals != nil {
			list = append(list, fmt.Sprintf("%q applies to %s as principal and %s as resource", actions[number], joinTypes(a.principals), joinTypes(a.resources)))
		}
	}
	if r.anyAction || len(list) == 0 || len(list) > 3 {
		return "no action has such a principal and such a resource"
	}
	return strings.Join(list, "; ")
}

func joinTypes(list []types.EntityType) string {
	names := make([]string, len(list))
	for i, t := range list {
		names[i] = string(t)
	}
	return strings.Join(names, ", ")
}

// reportAt adds a problem of the rule at an offset of its source.
func (l *ruleLoader) reportAt(r *rule, offset int, text string) {
	line, column := r.position(offset)
	l.problems.add(Problem{File: r.name, Line: line, Column: column, Policy: r.id, Text: text})
}
