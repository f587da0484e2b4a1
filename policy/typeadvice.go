package policy

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/cedar-policy/cedar-go/types"

	"accessbroker.internal/broker"
)

// text returns the expression in Cedar. Equal expressions have equal texts.
func (e *expr) text() string {
	arg := func(i int) string { return e.args[i].text() }
	switch e.op {
	case opVariable:
		return e.name
	case opLiteral:
		return literalText(e.value)
	case opAccess:
		return arg(0) + attributeText(e.name)
	case "has":
		return arg(0) + " has " + strings.Trim(strings.TrimPrefix(attributeText(e.name), "."), "[]")
	case "hasTag", "getTag", "contains", "containsAll", "containsAny":
		return arg(0) + "." + e.op + "(" + arg(1) + ")"
	case "isEmpty":
		return arg(0) + ".isEmpty()"
	case "is":
		return arg(0) + " is " + e.name
	case "like":
		return arg(0) + " like " + e.name
	case "!":
		return "!" + arg(0)
	case opNegate:
		return "-" + arg(0)
	case "if":
		return "if " + arg(0) + " then " + arg(1) + " else " + arg(2)
	case opSet:
		return "[" + e.argTexts(0) + "]"
	case opRecord:
		return "{" + strings.Join(e.keys, ", ") + ": " + e.argTexts(0) + "}"
	case opCall:
		if extensionCalls[e.name].method && len(e.args) > 0 {
			return arg(0) + "." + e.name + "(" + e.argTexts(1) + ")"
		}
		return e.name + "(" + e.argTexts(0) + ")"
	}
	return "(" + arg(0) + " " + e.op + " " + arg(1) + ")"
}

func (e *expr) argTexts(from int) string {
	var texts []string
	for _, a := range e.args[from:] {
		texts = append(texts, a.text())
	}
	return strings.Join(texts, ", ")
}

// short returns the expression for an error text.
func (e *expr) short() string {
	const most = 60
	text := e.text()
	if _, _, isInfix := strings.Cut(text, " "+e.op+" "); isInfix && text[0] == '(' {
		text = text[1 : len(text)-1]
	}
	if runes := []rune(text); len(runes) > most {
		return string(runes[:most-1]) + "…"
	}
	return text
}

func literalText(v types.Value) string {
	switch v := v.(type) {
	case types.String:
		return strconv.Quote(string(v))
	case types.EntityUID:
		return fmt.Sprintf("%s::%q", v.Type, v.ID)
	}
	return v.String()
}

// attributeText returns ".name", or ["a name"] if the name is not an identifier.
func attributeText(name string) string {
	if name == "" || isDigit(name[0]) || prefixLen(name, isIdentByte) < len(name) {
		return fmt.Sprintf("[%q]", name)
	}
	return "." + name
}

// owner names what an attribute belongs to.
func (c *typeChecker) owner(e *expr, t typ) string {
	switch {
	case e.op == opVariable && e.name == "context":
		return "the context of " + literalText(c.action)
	case t.kind == entityKind:
		return "entity type " + t.name
	}
	return e.short()
}

// adviseAttribute returns what to write instead of an attribute that does not exist.
func (c *typeChecker) adviseAttribute(e *expr, owner typ, names []string) string {
	near := broker.Nearest(e.name, names)
	switch {
	case near != "":
		return broker.DidYouMean(near)
	case owner.kind == entityKind && c.entities[owner.name].tags != nil:
		return c.adviseTag(e, owner)
	case owner.kind == entityKind && e.args[0].op == opVariable && c.hasElsewhere(e.args[0].name, e.name):
		return fmt.Sprintf(": other types have it; check the type first, as in %s is …", e.args[0].name)
	case len(names) == 0:
		return ""
	}
	return "; it has " + strings.Join(names, ", ")
}

// adviseTag returns how to read a tag that the author wrote as an attribute, and that no
// entitlement has it.
func (c *typeChecker) adviseTag(e *expr, owner typ) string {
	known, what := c.known.tags[types.EntityType(owner.name)], "label"
	switch owner.name {
	case string(typeParameters):
		what = "parameter"
	case string(typeArguments):
		what = "argument"
	}
	name, missing := e.name, ""
	if !known[e.name] {
		missing = fmt.Sprintf("; no entitlement has the %s %q", what, e.name)
		if near := broker.Nearest(e.name, slices.Sorted(maps.Keys(known))); near != "" {
			name, missing = near, missing+broker.DidYouMean(near)
		}
	}
	of := e.args[0].short()
	return fmt.Sprintf(": a %s is a tag, as in %s.hasTag(%q) && %s.getTag(%q)%s", what, of, name, of, name, missing)
}

// hasElsewhere reports whether the attribute exists on another type that the variable
// may have.
func (c *typeChecker) hasElsewhere(variable, attribute string) bool {
	for _, a := range c.actions {
		list := a.principals
		if variable == "resource" {
			list = a.resources
		}
		for _, name := range list {
			if _, ok := c.entities[string(name)].attrs[attribute]; ok {
				return true
			}
		}
	}
	return false
}

// mismatch reports an operand of the wrong type, and the literal to write instead.
func (c *typeChecker) mismatch(e *expr, got, want typ, why string) {
	text := fmt.Sprintf("%s is %s, but this place needs %s", e.short(), got, want)
	if why != "" {
		text += ", because " + why
	}
	c.report(e, "%s%s", text, adviseLiteral(e, want))
}

// different reports two operands of different types. It points at the one that is a
// literal, because that one is likely to be wrong.
func (c *typeChecker) different(l, r *expr, left, right typ, what string) {
	wrong, want := r, left
	if l.op == opLiteral && r.op != opLiteral {
		wrong, want = l, right
	}
	advice := adviseLiteral(wrong, want)
	if advice == "" {
		advice = adviseTimes(l, r, left, right)
	}
	c.report(wrong, "%s is %s and %s is %s, so they %s%s", l.short(), left, r.short(), right, what, advice)
}

// adviseLiteral returns the literal of the wanted type that the author of a literal
// may have meant.
func adviseLiteral(e *expr, want typ) string {
	if e.op != opLiteral {
		return ""
	}
	text, isText := e.value.(types.String)
	number, isNumber := e.value.(types.Long)
	s := string(text)
	switch {
	case want.kind == extensionKind && isText:
		constructor := strings.TrimSuffix(want.name, "addr")
		if validExtension(constructor, s) {
			return fmt.Sprintf(": write %s(%q)", constructor, s)
		}
		return ": write " + exampleOf(constructor)
	case want.isExtension("duration") && isNumber:
		return adviseDuration(int64(number))
	case want.kind == extensionKind:
		return ": write " + exampleOf(strings.TrimSuffix(want.name, "addr"))
	case want.kind == longKind && isText && strconv.Itoa(atoi(s)) == s, want.isBool() && (s == "true" || s == "false"):
		return ": write " + s + " without quotes"
	case want.kind == stringKind && isNumber:
		return fmt.Sprintf(": write %q", strconv.FormatInt(int64(number), 10))
	case want.kind == entityKind && isText:
		return fmt.Sprintf(": write %s::%q", want.name, s)
	case want.kind == setKind:
		return fmt.Sprintf(": write [%s]", e.short())
	}
	return ""
}

func atoi(s string) int {
	n, _ := strconv.Atoi(s)
	return n
}

// adviseDuration returns the duration for a number. An author who writes 900 means
// seconds; a small number may have any unit.
func adviseDuration(n int64) string {
	if n < 60 {
		n = max(n, 1)
		return fmt.Sprintf(`: write a duration with its unit, such as duration("%ds"), duration("%dm") or duration("%dh")`, n, n, n)
	}
	return fmt.Sprintf(": write duration(%q) for %d seconds", cedarDuration(n), n)
}

// cedarDuration returns seconds in the notation of Cedar, such as 1h30m.
func cedarDuration(seconds int64) string {
	var b strings.Builder
	for _, unit := range []struct {
		seconds int64
		name    string
	}{{86400, "d"}, {3600, "h"}, {60, "m"}, {1, "s"}} {
		if n := seconds / unit.seconds; n > 0 {
			fmt.Fprintf(&b, "%d%s", n, unit.name)
		}
		seconds %= unit.seconds
	}
	return b.String()
}

// adviseTimes returns how to compare a datetime with a duration.
func adviseTimes(l, r *expr, left, right typ) string {
	at := l
	switch {
	case left.isExtension("datetime") && right.isExtension("duration"):
	case left.isExtension("duration") && right.isExtension("datetime"):
		at = r
	default:
		return ""
	}
	return fmt.Sprintf(`: compare %s with a datetime, or %s.toTime() with a duration`, at.short(), at.short())
}

// exampleOf returns a call of a constructor.
func exampleOf(constructor string) string {
	return map[string]string{
		"ip": `ip("10.0.0.0/8")`, "decimal": `decimal("1.5")`,
		"datetime": `datetime("2026-01-31T12:00:00Z")`, "duration": `duration("15m")`,
	}[constructor]
}
