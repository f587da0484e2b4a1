package policy

import (
	"strings"

	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/ast"
)

// An expr is a node of a condition with its position, which cedar-go's tree does
// not have. The type checker works on it.
type expr struct {
	op    string // the operator or method as Cedar writes it, or one of the names below
	at    int    // offset of the token that errors point at
	args  []*expr
	name  string      // of a variable, an attribute, an entity type or a function
	keys  []string    // of a record, one for each argument
	value types.Value // of a literal

	pattern *types.Pattern // of "like"

	evaluated bool // in some environment
	maybeTrue bool // in some environment
}

// Names of nodes that no operator names.
const (
	opLiteral  = "literal"
	opVariable = "variable"
	opAccess   = "."
	opCall     = "call" // of an extension function or method
	opRecord   = "record"
	opSet      = "set"
	opNegate   = "negate"
)

// A binder converts conditions and finds the token of every node. cedar-go keeps
// the order of the text, so that each token is the next one with its text.
type binder struct {
	tokens []token
	next   int
}

// take returns the position of the next token with this kind and text and moves
// behind it. An empty text matches every token of the kind.
func (b *binder) take(kind tokenKind, text string) int {
	for i := b.next; i < len(b.tokens); i++ {
		if t := b.tokens[i]; t.kind == kind && (text == "" || t.text == text) {
			b.next = i + 1
			return t.at
		}
	}
	return b.tokens[min(b.next, len(b.tokens)-1)].at
}

// conditions returns one expression that is true if all conditions hold. Cedar
// defines the clauses of a policy as such a conjunction, so that a guard in one
// clause protects the next. It returns nil if there is no clause.
func (b *binder) conditions(list []ast.ConditionType) *expr {
	var all *expr
	for _, c := range list {
		at := b.take(identToken, keyword(c))
		e := b.expr(c.Body)
		if c.Condition == ast.ConditionUnless {
			e = &expr{op: "!", at: at, args: []*expr{e}}
		}
		if all != nil {
			e = &expr{op: "&&", at: at, args: []*expr{all, e}}
		}
		all = e
	}
	return all
}

func keyword(c ast.ConditionType) string {
	if c.Condition == ast.ConditionUnless {
		return "unless"
	}
	return "when"
}

// expr converts a node and its operands.
func (b *binder) expr(n ast.IsNode) *expr {
	if op, pair, ok := infix(n); ok {
		left := b.expr(pair.Left)
		if e := b.chainedHas(left, pair.Right); e != nil && op == "&&" {
			return e
		}
		at := b.take(operatorKind(op), op)
		return &expr{op: op, at: at, args: []*expr{left, b.expr(pair.Right)}}
	}
	switch n := n.(type) {
	case ast.NodeValue:
		return b.literal(n.Value)
	case ast.NodeTypeVariable:
		return &expr{op: opVariable, name: string(n.Name), at: b.take(identToken, string(n.Name))}
	case ast.NodeTypeNot:
		return b.prefix("!", "!", n.Arg)
	case ast.NodeTypeNegate:
		return b.prefix(opNegate, "-", n.Arg)
	case ast.NodeTypeIsEmpty:
		arg := b.expr(n.Arg)
		return &expr{op: "isEmpty", at: b.take(identToken, "isEmpty"), args: []*expr{arg}}
	case ast.NodeTypeAccess:
		arg := b.expr(n.Arg)
		return &expr{op: opAccess, at: b.takeAttribute(), args: []*expr{arg}, name: string(n.Value)}
	case ast.NodeTypeHas:
		arg := b.expr(n.Arg)
		b.take(identToken, "has")
		return &expr{op: "has", at: b.takeAttribute(), args: []*expr{arg}, name: string(n.Value)}
	case ast.NodeTypeLike:
		arg := b.expr(n.Arg)
		at := b.take(identToken, "like")
		b.take(stringToken, "")
		return &expr{op: "like", at: at, args: []*expr{arg}, name: string(n.Value.MarshalCedar()), pattern: &n.Value}
	case ast.NodeTypeIs:
		return b.is(n)
	case ast.NodeTypeIsIn: // Cedar defines it as this conjunction
		is := b.is(n.NodeTypeIs)
		at := b.take(identToken, "in")
		in := &expr{op: "in", at: at, args: []*expr{is.args[0], b.expr(n.Entity)}}
		return &expr{op: "&&", at: at, args: []*expr{is, in}}
	case ast.NodeTypeIfThenElse:
		at := b.take(identToken, "if")
		return &expr{op: "if", at: at, args: []*expr{b.expr(n.If), b.expr(n.Then), b.expr(n.Else)}}
	}
	return b.list(n)
}

// list converts the nodes with any number of operands.
func (b *binder) list(n ast.IsNode) *expr {
	e := &expr{}
	switch n := n.(type) {
	case ast.NodeTypeSet:
		e.op, e.at = opSet, b.take(operatorToken, "[")
		for _, item := range n.Elements {
			e.args = append(e.args, b.expr(item))
		}
	case ast.NodeTypeRecord:
		e.op, e.at = opRecord, b.take(operatorToken, "{")
		for _, item := range n.Elements {
			b.takeAttribute()
			e.keys = append(e.keys, string(item.Key))
			e.args = append(e.args, b.expr(item.Value))
		}
	case ast.NodeTypeExtensionCall:
		e.op, e.name = opCall, string(n.Name)
		method := extensionCalls[e.name].method
		if !method {
			e.at = b.take(identToken, e.name)
		}
		for i, arg := range n.Args {
			e.args = append(e.args, b.expr(arg))
			if method && i == 0 {
				e.at = b.take(identToken, e.name)
			}
		}
	}
	return e
}

func (b *binder) prefix(op, text string, arg ast.IsNode) *expr {
	return &expr{op: op, at: b.take(operatorToken, text), args: []*expr{b.expr(arg)}}
}

func (b *binder) is(n ast.NodeTypeIs) *expr {
	left := b.expr(n.Left)
	b.take(identToken, "is")
	return &expr{op: "is", at: b.takePath(string(n.EntityType)), args: []*expr{left}, name: string(n.EntityType)}
}

func (b *binder) literal(v types.Value) *expr {
	e := &expr{op: opLiteral, value: v}
	switch v := v.(type) {
	case types.Boolean:
		e.at = b.take(identToken, v.String())
	case types.Long:
		e.at = b.take(integerToken, "")
	case types.String:
		e.at = b.take(stringToken, "")
	case types.EntityUID:
		e.at = b.takePath(string(v.Type))
		b.take(stringToken, "")
	}
	return e
}

// takePath takes a path such as Action or Namespace::Type and returns the position
// of its first name.
func (b *binder) takePath(path string) int {
	first, rest, more := strings.Cut(path, "::")
	at := b.take(identToken, first)
	for more {
		first, rest, more = strings.Cut(rest, "::")
		b.take(identToken, first)
	}
	return at
}

// takeAttribute takes the name of an attribute, which is an identifier or a string.
// The next of the two is the name, because only ".", "[", "has", "{" or "," precede
// it.
func (b *binder) takeAttribute() int {
	for i := b.next; i < len(b.tokens); i++ {
		if t := b.tokens[i]; t.kind == identToken || t.kind == stringToken {
			b.next = i + 1
			return t.at
		}
	}
	return b.take(identToken, "")
}

// chainedHas returns the expression for "x has a.b", which cedar-go parses as
// "x has a && x.a has b", or nil if right is not such a second part. Only the part
// ".b" has tokens of its own.
func (b *binder) chainedHas(left *expr, right ast.IsNode) *expr {
	has, ok := right.(ast.NodeTypeHas)
	if !ok || b.next >= len(b.tokens) || b.tokens[b.next].text != "." {
		return nil
	}
	before := left
	if left.op == "&&" {
		before = left.args[1]
	}
	if before.op != "has" {
		return nil
	}
	value := &expr{op: opAccess, at: before.at, args: before.args, name: before.name}
	e := &expr{op: "has", at: b.takeAttribute(), args: []*expr{value}, name: string(has.Value)}
	return &expr{op: "&&", at: e.at, args: []*expr{left, e}}
}

func operatorKind(op string) tokenKind {
	if isIdentByte(op[0]) {
		return identToken
	}
	return operatorToken
}

// infix returns the operator or method of a node with two operands.
func infix(n ast.IsNode) (op string, pair ast.BinaryNode, ok bool) {
	switch n := n.(type) {
	case ast.NodeTypeAnd:
		return "&&", n.BinaryNode, true
	case ast.NodeTypeOr:
		return "||", n.BinaryNode, true
	case ast.NodeTypeEquals:
		return "==", n.BinaryNode, true
	case ast.NodeTypeNotEquals:
		return "!=", n.BinaryNode, true
	case ast.NodeTypeLessThan:
		return "<", n.BinaryNode, true
	case ast.NodeTypeLessThanOrEqual:
		return "<=", n.BinaryNode, true
	case ast.NodeTypeGreaterThan:
		return ">", n.BinaryNode, true
	case ast.NodeTypeGreaterThanOrEqual:
		return ">=", n.BinaryNode, true
	case ast.NodeTypeAdd:
		return "+", n.BinaryNode, true
	case ast.NodeTypeSub:
		return "-", n.BinaryNode, true
	case ast.NodeTypeMult:
		return "*", n.BinaryNode, true
	case ast.NodeTypeIn:
		return "in", n.BinaryNode, true
	case ast.NodeTypeContains:
		return "contains", n.BinaryNode, true
	case ast.NodeTypeContainsAll:
		return "containsAll", n.BinaryNode, true
	case ast.NodeTypeContainsAny:
		return "containsAny", n.BinaryNode, true
	case ast.NodeTypeHasTag:
		return "hasTag", n.BinaryNode, true
	case ast.NodeTypeGetTag:
		return "getTag", n.BinaryNode, true
	}
	return "", ast.BinaryNode{}, false
}
