package policy

import (
	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/ast"
)

// normalized returns the policy with one condition that is equivalent to all of its
// clauses. It is only validated, never evaluated.
func normalized(p *ast.Policy) *ast.Policy {
	if len(p.Conditions) == 0 {
		return p
	}
	var all ast.Node
	for i, c := range p.Conditions {
		n := normalizedNode(c.Body)
		if c.Condition == ast.ConditionUnless {
			n = ast.Not(n)
		}
		if i > 0 {
			n = all.And(n)
		}
		all = n
	}
	clone := *p
	clone.Conditions = []ast.ConditionType{{Condition: ast.ConditionWhen, Body: all.AsIsNode()}}
	return &clone
}

// normalizedNode rewrites a node and its operands.
func normalizedNode(n ast.IsNode) ast.Node {
	if op, pair, ok := infix(n); ok {
		return normalizedPair(op, pair)
	}
	switch n := n.(type) {
	case ast.NodeTypeNot:
		return ast.Not(normalizedNode(n.Arg))
	case ast.NodeTypeNegate:
		return ast.Negate(normalizedNode(n.Arg))
	case ast.NodeTypeIsEmpty:
		return normalizedNode(n.Arg).IsEmpty()
	case ast.NodeTypeAccess:
		return normalizedNode(n.Arg).Access(n.Value)
	case ast.NodeTypeHas:
		return normalizedNode(n.Arg).Has(n.Value)
	case ast.NodeTypeLike:
		return normalizedNode(n.Arg).Like(n.Value)
	case ast.NodeTypeIs:
		return normalizedNode(n.Left).Is(n.EntityType)
	case ast.NodeTypeIsIn:
		left := normalizedNode(n.Left)
		return left.Is(n.EntityType).And(left.In(normalizedNode(n.Entity)))
	case ast.NodeTypeIfThenElse:
		return ast.IfThenElse(normalizedNode(n.If), normalizedNode(n.Then), normalizedNode(n.Else))
	case ast.NodeTypeSet:
		return ast.Set(normalizedNodes(n.Elements)...)
	case ast.NodeTypeRecord:
		var pairs ast.Pairs
		for _, e := range n.Elements {
			pairs = append(pairs, ast.Pair{Key: e.Key, Value: normalizedNode(e.Value)})
		}
		return ast.Record(pairs)
	case ast.NodeTypeExtensionCall:
		return ast.NewExtensionCall(n.Name, normalizedNodes(n.Args)...)
	}
	return ast.NewNode(n)
}

func normalizedNodes(list []ast.IsNode) []ast.Node {
	nodes := make([]ast.Node, len(list))
	for i, n := range list {
		nodes[i] = normalizedNode(n)
	}
	return nodes
}

// normalizedPair rewrites a node with two operands. The schema has no groups of
// actions, so action == a and action in a are equal; cedar-go knows only the value of
// the second.
func normalizedPair(op string, pair ast.BinaryNode) ast.Node {
	left, right := normalizedNode(pair.Left), normalizedNode(pair.Right)
	switch {
	case op == "==" && isAction(pair.Left) && isAction(pair.Right):
		return left.In(right)
	case op == "!=" && isAction(pair.Left) && isAction(pair.Right):
		return ast.Not(left.In(right))
	}
	return infixNodes[op](left, right)
}

// infixNodes makes the nodes of the operators that infix returns.
var infixNodes = map[string]func(left, right ast.Node) ast.Node{
	"&&": ast.Node.And, "||": ast.Node.Or, "==": ast.Node.Equal, "!=": ast.Node.NotEqual,
	"<": ast.Node.LessThan, "<=": ast.Node.LessThanOrEqual, ">": ast.Node.GreaterThan, ">=": ast.Node.GreaterThanOrEqual,
	"+": ast.Node.Add, "-": ast.Node.Subtract, "*": ast.Node.Multiply, "in": ast.Node.In,
	"contains": ast.Node.Contains, "containsAll": ast.Node.ContainsAll, "containsAny": ast.Node.ContainsAny,
	"hasTag": ast.Node.HasTag, "getTag": ast.Node.GetTag,
}

// isAction reports whether n is the variable action or the name of an action.
func isAction(n ast.IsNode) bool {
	switch n := n.(type) {
	case ast.NodeTypeVariable:
		return n.Name == "action"
	case ast.NodeValue:
		uid, ok := n.Value.(types.EntityUID)
		return ok && uid.Type == typeAction
	}
	return false
}
