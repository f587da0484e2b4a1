package policy

import (
	"github.com/cedar-policy/cedar-go/types"
)

// A mention is a literal of a condition and the attribute or tag that it is compared
// with. For Cedar such a literal may be any text, so a policy with a misspelt one loads
// and never applies. The linter knows which texts the operator's file makes possible.
type mention struct {
	field   string         // such as principal.team, context.scopes or resource
	only    string         // the entitlement whose attribute it is, if not the resource
	tag     string         // the key, if field has tags
	value   types.Value    // nil: the condition tests only whether the tag exists
	pattern *types.Pattern // of "like"
	at      int
}

// Fields with tags.
const (
	fieldLabels     = "resource.labels"
	fieldParameters = "context.parameters"
	fieldArguments  = "context.detail.arguments"
)

// mentions appends what the condition e mentions.
func mentions(list []mention, e *expr) []mention {
	if e == nil {
		return list
	}
	switch e.op {
	case "==", "!=", "contains", "containsAll", "containsAny":
		list = compared(compared(list, e.args[0], e.args[1]), e.args[1], e.args[0])
	case "in":
		list = compared(list, e.args[0], e.args[1])
	case "like":
		if m, ok := fieldOf(e.args[0]); ok {
			m.pattern, m.value, m.at = e.pattern, types.String(e.name), e.at
			list = append(list, m)
		}
	case "hasTag", "getTag":
		if m, ok := tagOf(e); ok {
			list = append(list, m)
		}
	}
	for _, a := range e.args {
		list = mentions(list, a)
	}
	return list
}

// compared appends the literals of other if owner is a field.
func compared(list []mention, owner, other *expr) []mention {
	m, ok := fieldOf(owner)
	if !ok {
		return list
	}
	for _, literal := range literalsOf(nil, other) {
		m.value, m.at = literal.value, literal.at
		list = append(list, m)
	}
	return list
}

// literalsOf appends the literals that e may be or contain.
func literalsOf(list []*expr, e *expr) []*expr {
	switch e.op {
	case opLiteral:
		return append(list, e)
	case opSet:
		for _, item := range e.args {
			list = literalsOf(list, item)
		}
	case "if":
		return literalsOf(literalsOf(list, e.args[1]), e.args[2])
	}
	return list
}

// fieldOf returns the field that e reads.
func fieldOf(e *expr) (m mention, ok bool) {
	switch e.op {
	case opVariable:
		return mention{field: e.name}, e.name != "action"
	case opAccess:
		m, ok = fieldOf(e.args[0])
		if !ok {
			m.only, ok = entitlementOf(e.args[0])
			m.field = "resource"
		}
		m.field += "." + e.name
		return m, ok
	case "getTag":
		return tagOf(e)
	}
	return mention{}, false
}

// tagOf returns the tag that "hasTag" or "getTag" reads, if its key is a literal.
func tagOf(e *expr) (m mention, ok bool) {
	key, isText := e.args[1].value.(types.String)
	if e.args[1].op != opLiteral || !isText {
		return mention{}, false
	}
	m = mention{tag: string(key), at: e.args[1].at}
	owner, ok := fieldOf(e.args[0])
	switch {
	case !ok:
		m.field = fieldLabels
		m.only, ok = entitlementOf(e.args[0])
	case owner.field == "resource":
		m.field = fieldLabels
	default:
		m.field = owner.field
	}
	return m, ok
}

// entitlementOf returns the name of the entitlement that e is, if e is a literal.
func entitlementOf(e *expr) (name string, ok bool) {
	uid, isEntity := e.value.(types.EntityUID)
	return string(uid.ID), e.op == opLiteral && isEntity && uid.Type == typeEntitlement
}
