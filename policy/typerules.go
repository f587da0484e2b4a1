package policy

import (
	"regexp"

	"github.com/cedar-policy/cedar-go/types"
)

// expect reports an operand that does not have the type. It returns whether it has.
func (c *typeChecker) expect(e *expr, got, want typ) {
	if !same(got, want) {
		c.mismatch(e, got, want, "")
	}
}

// expectSet reports whether the operand is a set of a known type, and an error if it
// is no set.
func (c *typeChecker) expectSet(e *expr, got typ) bool {
	if !got.is(setKind) {
		c.report(e, "%s is %s, but this place needs a set, such as [%s]", e.short(), got, e.short())
	}
	return got.kind == setKind
}

// equality returns the type of == and !=. Entities of different types are never equal,
// and Cedar knows the value of action in every environment. Other operands of
// different types are a mistake.
func (c *typeChecker) equality(e *expr, left, right typ) typ {
	equal := func(value bool) typ { return constant(value == (e.op == "==")) }
	l, r := e.args[0], e.args[1]
	switch {
	case left.kind == entityKind && right.kind == entityKind && left.name != right.name:
		return equal(false)
	case !same(left, right):
		c.different(l, r, left, right, "can't be equal")
		return boolType
	case l.op == opLiteral && r.op == opLiteral:
		return equal(l.value.Equal(r.value))
	}
	if a, b := c.actionOf(l), c.actionOf(r); a != nil && b != nil {
		return equal(*a == *b)
	}
	return boolType
}

// actionOf returns the action that e is in this environment, or nil if e is none.
func (c *typeChecker) actionOf(e *expr) *types.EntityUID {
	if e.op == opVariable && e.name == "action" {
		return &c.action
	}
	if uid, ok := e.value.(types.EntityUID); ok && e.op == opLiteral && uid.Type == typeAction {
		return &uid
	}
	return nil
}

// comparison checks the operands of <, <=, > and >=: two numbers, two datetimes or two
// durations.
func (c *typeChecker) comparison(e *expr, left, right typ) {
	ordered := func(t typ) bool { return t.is(longKind) || t.isExtension("datetime", "duration") }
	switch {
	case ordered(left) && ordered(right):
		if !same(left, right) {
			c.different(e.args[0], e.args[1], left, right, "can't be compared")
		}
	case left.isExtension("decimal") && right.isExtension("decimal"):
		c.report(e, "decimals have no operator %s: use lessThan, lessThanOrEqual, greaterThan or greaterThanOrEqual", e.op)
	case ordered(left) && left.kind != unknownKind:
		c.different(e.args[0], e.args[1], left, right, "can't be compared")
	case ordered(right) && right.kind != unknownKind:
		c.different(e.args[0], e.args[1], left, right, "can't be compared")
	case ordered(left):
		c.report(e.args[1], "%s is %s and has no order: only numbers, datetimes and durations have", e.args[1].short(), right)
	default:
		c.report(e.args[0], "%s is %s and has no order: only numbers, datetimes and durations have", e.args[0].short(), left)
	}
}

func (c *typeChecker) arithmetic(e *expr, operands []typ) typ {
	for i, t := range operands {
		switch {
		case t.is(longKind):
		case t.isExtension("duration"):
			c.report(e.args[i], "%s is a duration, and Cedar calculates only with numbers: write %s.toSeconds()", e.args[i].short(), e.args[i].short())
		case t.isExtension("datetime"):
			c.report(e.args[i], `%s is a datetime, and Cedar calculates only with numbers: write %s.offset(duration("1h")) or .durationSince(…)`, e.args[i].short(), e.args[i].short())
		default:
			c.report(e.args[i], "%s is %s, and Cedar calculates only with numbers", e.args[i].short(), t)
		}
	}
	return longType
}

// in returns false if no entity of the left type can be in one of the right type.
func (c *typeChecker) in(e *expr, left, right typ) typ {
	if !left.is(entityKind) {
		c.report(e.args[0], "%s is %s, and only an entity can be in another: write principal, resource or an attribute that is an entity", e.args[0].short(), left)
		return boolType
	}
	target := right
	if right.kind == setKind {
		target = *right.elem
	}
	if !target.is(entityKind) {
		c.report(e.args[1], "%s is %s, and an entity can only be in entities, such as %s", e.args[1].short(), right, `Group::"dba"`)
		return boolType
	}
	c.rejectFixed(e.args[0], left)
	if left.kind == unknownKind || target.kind == unknownKind {
		return boolType
	}
	if action := c.actionOf(e.args[0]); action != nil {
		return c.actionIn(*action, e.args[1], target)
	}
	if !c.canBeIn(left.name, target.name) {
		return falseType
	}
	return boolType
}

// actionIn returns whether the action is one of those on the right. The schema has no
// groups of actions.
func (c *typeChecker) actionIn(action types.EntityUID, right *expr, target typ) typ {
	if target.name != string(typeAction) {
		return falseType
	}
	list := []*expr{right}
	if right.op == opSet {
		list = right.args
	}
	for _, e := range list {
		switch uid := c.actionOf(e); {
		case uid == nil:
			return boolType
		case *uid == action:
			return trueType
		}
	}
	return falseType
}

func (c *typeChecker) is(e *expr, left typ) typ {
	if !left.is(entityKind) {
		c.report(e.args[0], "%s is %s and not an entity, so it has no entity type", e.args[0].short(), left)
		return boolType
	}
	if left.kind == unknownKind {
		return boolType
	}
	return constant(left.name == e.name)
}

func (c *typeChecker) set(e *expr, operands []typ) typ {
	if len(operands) == 0 {
		c.report(e, "Cedar does not allow an empty set literal: use isEmpty()")
		return typ{}
	}
	elem := operands[0]
	for i, t := range operands {
		if elem.kind == unknownKind {
			elem = t
		}
		if !same(elem, t) {
			c.mismatch(e.args[i], t, elem, "all elements of a set must have the same type")
			return typ{}
		}
	}
	if elem.isBool() && elem.kind != unknownKind {
		elem = boolType
	}
	elem.fixed = false
	return typ{kind: setKind, elem: &elem}
}

// call checks the call of an extension. Constructors take one string literal.
func (c *typeChecker) call(e *expr, operands []typ) typ {
	call, exists := extensionCalls[e.name]
	if !exists {
		c.report(e, "%s is not a function that the broker knows", e.name)
		return typ{}
	}
	if len(operands) != len(call.args) {
		want, got := len(call.args), len(operands)
		if call.method {
			want, got = want-1, got-1
		}
		c.report(e, "%s takes %d arguments, not %d", e.name, want, got)
		return call.result
	}
	for i, t := range operands {
		if !same(t, call.args[i]) {
			c.mismatch(e.args[i], t, call.args[i], "")
		}
	}
	if !call.method {
		c.constructor(e)
	}
	return call.result
}

func (c *typeChecker) constructor(e *expr) {
	if e.args[0].op != opLiteral {
		c.report(e.args[0], "%s takes only a string literal, such as %s", e.name, exampleOf(e.name))
		return
	}
	text, ok := e.args[0].value.(types.String)
	if ok && !validExtension(e.name, string(text)) {
		c.report(e.args[0], "%q is not %s: write, for example, %s", text, extensionCalls[e.name].result, exampleOf(e.name))
	}
}

// decimalForm is Cedar's form of a decimal; cedar-go also accepts a plus sign.
var decimalForm = regexp.MustCompile(`^-?[0-9]+\.[0-9]{1,4}$`)

// validExtension reports whether text is a value of the constructor's type.
func validExtension(constructor, text string) bool {
	var err error
	switch constructor {
	case "ip":
		_, err = types.ParseIPAddr(text)
	case "decimal":
		_, err = types.ParseDecimal(text)
		return err == nil && decimalForm.MatchString(text)
	case "datetime":
		_, err = types.ParseDatetime(text)
	case "duration":
		_, err = types.ParseDuration(text)
	}
	return err == nil
}

// rejectFixed reports an attribute, tag or membership of an entity that the policy
// names. A decision knows the principal, the resource and the entitlements. Of any
// other entity it knows only the name: "in" would be false, even in a forbid, and an
// attribute would be an error.
func (c *typeChecker) rejectFixed(e *expr, t typ) {
	if t.fixed {
		c.report(e, "%s is not the caller, and a decision knows only its name: it is in no group, path or system and has no attributes; write principal or resource", e.short())
	}
}
