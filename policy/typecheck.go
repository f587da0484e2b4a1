package policy

import (
	"maps"
	"slices"

	"github.com/cedar-policy/cedar-go/types"
)

// A typeChecker checks the types of one policy's condition as Cedar's strict
// validation does. It complements the validator of cedar-go for two reasons: it
// closes gaps of that validator, each of which would turn a forbid into a policy
// that never applies; and it knows positions and what to write instead.
//
// It is stricter than Cedar in three points: entities that a policy names, and that
// no decision knows more about than their name, have no attributes and are in
// nothing; literals of different types are never equal; and a forbid must be able to
// apply.
type typeChecker struct {
	*schemaTypes
	environment
	known  *names // for advice
	report func(e *expr, format string, args ...any)
}

// An environment is one combination of types that a policy may be evaluated with.
type environment struct {
	principal, resource types.EntityType
	action              types.EntityUID
	context             typ
}

// environments returns all combinations that a head matches.
func (st *schemaTypes) environments(r *rule) (list []environment) {
	for _, number := range r.actions {
		uid := types.NewEntityUID(typeAction, types.String(actions[number]))
		shape := st.actions[uid]
		for _, p := range shape.principals {
			for _, res := range shape.resources {
				if st.allows(r.principal, p) && st.allows(r.resource, res) {
					list = append(list, environment{p, res, uid, shape.context})
				}
			}
		}
	}
	return list
}

// allows reports whether an entity of the type may satisfy the constraint.
func (st *schemaTypes) allows(c constraint, name types.EntityType) bool {
	switch {
	case c.kind != "" && c.kind != name:
		return false
	case c.eq:
		return c.uid.Type == name
	}
	return c.uid.IsZero() || st.canBeIn(string(name), string(c.uid.Type))
}

// facts holds what a condition has established when it is true: the texts of the
// "has" and "hasTag" that guard optional attributes and tags.
type facts map[string]bool

func (f facts) and(other facts) facts {
	if len(f) == 0 {
		return other
	}
	if len(other) == 0 {
		return f
	}
	sum := maps.Clone(f)
	maps.Copy(sum, other)
	return sum
}

func (f facts) or(other facts) facts {
	common := facts{}
	for k := range f {
		if other[k] {
			common[k] = true
		}
	}
	return common
}

// check returns the type of e and what holds if e is true. known holds what is true
// where e is evaluated.
func (c *typeChecker) check(e *expr, known facts) (typ, facts) {
	t, learned := c.typeOf(e, known)
	e.evaluated = true
	e.maybeTrue = e.maybeTrue || t.kind != falseKind
	return t, learned
}

func (c *typeChecker) typeOf(e *expr, known facts) (typ, facts) {
	switch e.op {
	case opLiteral:
		return c.literal(e.value), nil
	case opVariable:
		return c.variable(e.name), nil
	case "&&":
		return c.and(e, known)
	case "||":
		return c.or(e, known)
	case "if":
		return c.conditional(e, known)
	case "!":
		return c.not(e, known), nil
	case "has":
		return c.has(e, known)
	case "hasTag":
		return c.hasTag(e, known)
	case opAccess:
		return c.access(e, known), nil
	case "getTag":
		return c.getTag(e, known), nil
	}
	operands := make([]typ, len(e.args))
	for i, arg := range e.args {
		operands[i], _ = c.check(arg, known)
	}
	return c.plain(e, operands), nil
}

// plain returns the type of a node whose operands are all evaluated.
func (c *typeChecker) plain(e *expr, operands []typ) typ {
	switch e.op {
	case "==", "!=":
		return c.equality(e, operands[0], operands[1])
	case "<", "<=", ">", ">=":
		c.comparison(e, operands[0], operands[1])
	case "+", "-", "*", opNegate:
		return c.arithmetic(e, operands)
	case "in":
		return c.in(e, operands[0], operands[1])
	case "is":
		return c.is(e, operands[0])
	case "like":
		c.expect(e.args[0], operands[0], stringType)
	case "contains":
		if c.expectSet(e.args[0], operands[0]) && !same(*operands[0].elem, operands[1]) {
			c.mismatch(e.args[1], operands[1], *operands[0].elem, "the set holds values of another type")
		}
	case "containsAll", "containsAny":
		if c.expectSet(e.args[0], operands[0]) && c.expectSet(e.args[1], operands[1]) && !same(operands[0], operands[1]) {
			c.mismatch(element(e.args[1]), *operands[1].elem, *operands[0].elem, "the two sets hold values of different types")
		}
	case "isEmpty":
		c.expectSet(e.args[0], operands[0])
	case opSet:
		return c.set(e, operands)
	case opRecord:
		attrs := make(map[string]attribute, len(operands))
		for i, key := range e.keys {
			attrs[key] = attribute{typ: operands[i]}
		}
		return typ{kind: recordKind, attrs: attrs}
	case opCall:
		return c.call(e, operands)
	}
	return boolType
}

// element returns the first element of a set literal, which errors about the type of
// the elements point at; or e itself.
func element(e *expr) *expr {
	if e.op == opSet && len(e.args) > 0 {
		return e.args[0]
	}
	return e
}

func (c *typeChecker) literal(v types.Value) typ {
	switch v := v.(type) {
	case types.Boolean:
		return constant(bool(v))
	case types.Long:
		return longType
	case types.String:
		return stringType
	case types.EntityUID:
		t := entityType(v.Type)
		t.fixed = v.Type != typeEntitlement && v.Type != typeAction
		return t
	}
	return typ{}
}

func (c *typeChecker) variable(name string) typ {
	switch name {
	case "principal":
		return entityType(c.principal)
	case "resource":
		return entityType(c.resource)
	case "action":
		return entityType(c.action.Type)
	}
	return c.context
}

func (c *typeChecker) and(e *expr, known facts) (typ, facts) {
	left, learned := c.condition(e.args[0], known)
	if left.kind == falseKind {
		return falseType, nil
	}
	right, more := c.condition(e.args[1], known.and(learned))
	switch {
	case right.kind == falseKind:
		return falseType, nil
	case left.kind == trueKind && right.kind == trueKind:
		return trueType, learned.and(more)
	}
	return boolType, learned.and(more)
}

func (c *typeChecker) or(e *expr, known facts) (typ, facts) {
	left, learned := c.condition(e.args[0], known)
	if left.kind == trueKind {
		return trueType, learned
	}
	right, more := c.condition(e.args[1], known)
	switch {
	case right.kind == trueKind:
		return trueType, more
	case left.kind == falseKind:
		return right, more
	case right.kind == falseKind:
		return left, learned
	}
	return boolType, learned.or(more)
}

func (c *typeChecker) conditional(e *expr, known facts) (typ, facts) {
	test, learned := c.condition(e.args[0], known)
	switch test.kind {
	case trueKind:
		t, more := c.check(e.args[1], known.and(learned))
		return t, learned.and(more)
	case falseKind:
		return c.check(e.args[2], known)
	}
	yes, ifYes := c.check(e.args[1], known.and(learned))
	no, ifNo := c.check(e.args[2], known)
	if !same(yes, no) {
		c.mismatch(e.args[2], no, yes, "both branches of an if must have the same type")
		return typ{}, nil
	}
	if yes.kind != no.kind && yes.isBool() {
		yes = boolType
	}
	yes.fixed = yes.fixed || no.fixed
	return yes, learned.and(ifYes).or(ifNo)
}

// condition is check for an expression that must be true or false.
func (c *typeChecker) condition(e *expr, known facts) (typ, facts) {
	t, learned := c.check(e, known)
	if !t.isBool() {
		c.report(e, "%s is %s, but this place needs a condition that is true or false", e.short(), t)
		return typ{}, nil
	}
	return t, learned
}

func (c *typeChecker) not(e *expr, known facts) typ {
	switch t, _ := c.condition(e.args[0], known); t.kind {
	case trueKind:
		return falseType
	case falseKind:
		return trueType
	}
	return boolType
}

// has also learns from attributes that the type does not have, as Cedar does. Such a
// condition is false, so nothing depends on it.
func (c *typeChecker) has(e *expr, known facts) (typ, facts) {
	arg, _ := c.check(e.args[0], known)
	if !arg.is(entityKind) && !arg.is(recordKind) {
		c.report(e, "%s is %s and has no attributes", e.args[0].short(), arg)
		return typ{}, nil
	}
	c.rejectFixed(e.args[0], arg)
	key := e.text()
	a, exists := c.attributes(arg)[e.name]
	switch {
	case arg.kind == unknownKind:
		return typ{}, facts{key: true}
	case !exists:
		return falseType, nil
	case arg.kind == recordKind && !a.optional || known[key]:
		return trueType, facts{key: true}
	}
	return boolType, facts{key: true}
}

func (c *typeChecker) attributes(t typ) map[string]attribute {
	if t.kind == entityKind {
		return c.entities[t.name].attrs
	}
	return t.attrs
}

func (c *typeChecker) access(e *expr, known facts) typ {
	arg, _ := c.check(e.args[0], known)
	if arg.kind == unknownKind {
		return typ{}
	}
	if arg.kind != entityKind && arg.kind != recordKind {
		c.report(e, "%s is %s and has no attributes", e.args[0].short(), arg)
		return typ{}
	}
	c.rejectFixed(e.args[0], arg)
	attrs := c.attributes(arg)
	a, exists := attrs[e.name]
	if !exists {
		c.report(e, "%s has no attribute %q%s", c.owner(e.args[0], arg), e.name, c.adviseAttribute(e, arg, slices.Sorted(maps.Keys(attrs))))
		return typ{}
	}
	if guard := (&expr{op: "has", args: e.args, name: e.name}).text(); a.optional && !known[guard] {
		c.report(e, "%s may be absent: check it first, as in %s && …", e.short(), guard)
	}
	return a.typ
}

func (c *typeChecker) hasTag(e *expr, known facts) (typ, facts) {
	arg, _ := c.check(e.args[0], known)
	key, _ := c.check(e.args[1], known)
	c.expect(e.args[1], key, stringType)
	if !arg.is(entityKind) {
		c.report(e, "%s is %s and has no tags", e.args[0].short(), arg)
		return typ{}, nil
	}
	c.rejectFixed(e.args[0], arg)
	switch fact := e.text(); {
	case arg.kind == entityKind && c.entities[arg.name].tags == nil:
		return falseType, nil
	default: // cedar-go does not know that a repeated test is true
		return boolType, facts{fact: true}
	}
}

func (c *typeChecker) getTag(e *expr, known facts) typ {
	arg, _ := c.check(e.args[0], known)
	key, _ := c.check(e.args[1], known)
	c.expect(e.args[1], key, stringType)
	tags := c.entities[arg.name].tags
	switch {
	case arg.kind == unknownKind:
		return typ{}
	case arg.kind != entityKind || tags == nil:
		c.report(e, "%s is %s and has no tags", e.args[0].short(), arg)
		return typ{}
	}
	c.rejectFixed(e.args[0], arg)
	if guard := (&expr{op: "hasTag", args: e.args}).text(); !known[guard] {
		c.report(e, "the tag may be absent: check it first, as in %s && …", guard)
	}
	return *tags
}
