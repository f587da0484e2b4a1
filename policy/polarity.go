package policy

import (
	"slices"

	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/ast"
)

// groupsExcluded returns the groups of a rule without whose members more might be permitted:
// those that a forbid matches, or that a permit has in "unless" or below a negation, and
// those of which it is not certain.
func groupsExcluded(r *rule) (names []string) {
	if !r.permit && r.principal.uid.Type == typeGroup {
		names = append(names, string(r.principal.uid.ID))
	}
	for _, c := range conditionsOf(r) {
		names = excluded(names, c.Body, bool(c.Condition) == r.permit)
	}
	return names
}

// excludes reports whether a rule refuses something to the members of a group.
func (e *Engine) excludes(group string) bool {
	for _, r := range e.rules {
		if slices.Contains(groupsExcluded(r), group) {
			return true
		}
	}
	return false
}

// excluded appends the groups in an expression that do not only extend what it permits.
// positive means that the expression permits if it is true.
func excluded(names []string, n ast.IsNode, positive bool) []string {
	switch n := n.(type) {
	case ast.NodeTypeAnd:
		return excluded(excluded(names, n.Left, positive), n.Right, positive)
	case ast.NodeTypeOr:
		return excluded(excluded(names, n.Left, positive), n.Right, positive)
	case ast.NodeTypeNot:
		return excluded(names, n.Arg, !positive)
	case ast.NodeTypeIn, ast.NodeTypeIsIn:
		if positive {
			return names
		}
	}
	ast.Inspect(ast.NewNode(n), func(n ast.IsNode) bool {
		if v, ok := n.(ast.NodeValue); ok {
			names = groupsIn(names, v.Value)
		}
		return true
	})
	return names
}

// groupsIn appends the groups that a value is or has.
func groupsIn(names []string, v types.Value) []string {
	switch v := v.(type) {
	case types.EntityUID:
		if v.Type == typeGroup {
			names = append(names, string(v.ID))
		}
	case types.Set:
		for item := range v.All() {
			names = groupsIn(names, item)
		}
	}
	return names
}

// boundsScopes reports whether the conditions of a rule are one "when" that requires, once
// and in every case, that a list with all of these scopes contains those of a request.
func (r *rule) boundsScopes(scopes []string) bool {
	conditions := conditionsOf(r)
	if len(conditions) != 1 || !bool(conditions[0].Condition) {
		return false
	}
	found := 0
	for _, clause := range clauses(conditions[0].Body, true) {
		bound, ok := clause.(ast.NodeTypeContainsAll)
		if !ok {
			continue
		}
		list, isList := bound.Left.(ast.NodeTypeSet)
		field, isField := bound.Right.(ast.NodeTypeAccess)
		if !isList || !isField || field.Value != "scopes" {
			continue
		}
		var listed []string
		for _, item := range list.Elements {
			if v, ok := item.(ast.NodeValue); ok {
				if s, ok := v.Value.(types.String); ok {
					listed = append(listed, string(s))
				}
			}
		}
		if !slices.ContainsFunc(scopes, func(scope string) bool { return !slices.Contains(listed, scope) }) {
			found++
		}
	}
	return found == 1
}
