package policy

import (
	"maps"
	"slices"
	"strings"

	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/schema/resolved"
)

// A kind is the kind of a Cedar type. True and false have kinds of their own,
// because Cedar does not check the operand that such a condition skips.
type kind uint8

const (
	unknownKind kind = iota // after an error; it fits everything
	boolKind
	trueKind
	falseKind
	longKind
	stringKind
	extensionKind
	setKind
	recordKind
	entityKind
)

// A typ is a Cedar type.
type typ struct {
	kind  kind
	name  string               // of an extension or entity type
	elem  *typ                 // of a set
	attrs map[string]attribute // of a record
	fixed bool                 // an entity that the policy names, not one of the request
}

type attribute struct {
	typ      typ
	optional bool
}

var (
	boolType   = typ{kind: boolKind}
	trueType   = typ{kind: trueKind}
	falseType  = typ{kind: falseKind}
	longType   = typ{kind: longKind}
	stringType = typ{kind: stringKind}
)

func extensionType(name string) typ        { return typ{kind: extensionKind, name: name} }
func entityType(name types.EntityType) typ { return typ{kind: entityKind, name: string(name)} }
func (t typ) is(k kind) bool               { return t.kind == k || t.kind == unknownKind }
func (t typ) isBool() bool                 { return t.is(boolKind) || t.kind == trueKind || t.kind == falseKind }
func (t typ) isExtension(names ...string) bool {
	return t.kind == unknownKind || t.kind == extensionKind && slices.Contains(names, t.name)
}

// constant returns the type of a condition with a known value.
func constant(value bool) typ {
	if value {
		return trueType
	}
	return falseType
}

// same reports whether two values of the types can be equal. In strict mode, they
// can only if the types are the same.
func same(a, b typ) bool {
	switch {
	case a.kind == unknownKind || b.kind == unknownKind:
		return true
	case a.isBool():
		return b.isBool()
	case a.kind != b.kind || a.name != b.name:
		return false
	case a.kind == setKind:
		return same(*a.elem, *b.elem)
	case a.kind == recordKind:
		return maps.EqualFunc(a.attrs, b.attrs, func(x, y attribute) bool { return x.optional == y.optional && same(x.typ, y.typ) })
	}
	return true
}

// String returns the type for an error text, with its article.
func (t typ) String() string {
	switch t.kind {
	case boolKind, trueKind, falseKind:
		return "true or false"
	case longKind:
		return "a number"
	case stringKind:
		return "a string"
	case extensionKind:
		if strings.HasPrefix(t.name, "ip") {
			return "an IP address"
		}
		return "a " + t.name
	case setKind:
		return "a set"
	case recordKind:
		return "a record"
	case entityKind:
		if strings.Contains("AEIOU", t.name[:1]) {
			return "an " + t.name
		}
		return "a " + t.name
	}
	return "unknown"
}

// An extensionCall is the signature of an extension function or method. The first
// argument of a method is its receiver.
type extensionCall struct {
	args   []typ
	result typ
	method bool
}

// extensionCalls holds the extensions that Cedar 4 has and cedar-go parses.
var extensionCalls = func() map[string]extensionCall {
	datetime, duration, decimal, ip := extensionType("datetime"), extensionType("duration"), extensionType("decimal"), extensionType("ipaddr")
	calls := map[string]extensionCall{
		"isInRange":     {[]typ{ip, ip}, boolType, true},
		"toDate":        {[]typ{datetime}, datetime, true},
		"toTime":        {[]typ{datetime}, duration, true},
		"offset":        {[]typ{datetime, duration}, datetime, true},
		"durationSince": {[]typ{datetime, datetime}, duration, true},
	}
	for name, result := range map[string]typ{"datetime": datetime, "duration": duration, "decimal": decimal, "ip": ip} {
		calls[name] = extensionCall{[]typ{stringType}, result, false}
	}
	for _, name := range []string{"lessThan", "lessThanOrEqual", "greaterThan", "greaterThanOrEqual"} {
		calls[name] = extensionCall{[]typ{decimal, decimal}, boolType, true}
	}
	for _, name := range []string{"isIpv4", "isIpv6", "isLoopback", "isMulticast"} {
		calls[name] = extensionCall{[]typ{ip}, boolType, true}
	}
	for _, name := range []string{"toDays", "toHours", "toMinutes", "toSeconds", "toMilliseconds"} {
		calls[name] = extensionCall{[]typ{duration}, longType, true}
	}
	return calls
}()

// schemaType converts a type of the schema.
func schemaType(t resolved.IsType) typ {
	switch t := t.(type) {
	case resolved.BoolType:
		return boolType
	case resolved.LongType:
		return longType
	case resolved.StringType:
		return stringType
	case resolved.ExtensionType:
		return extensionType(string(t))
	case resolved.EntityType:
		return entityType(types.EntityType(t))
	case resolved.SetType:
		elem := schemaType(t.Element)
		return typ{kind: setKind, elem: &elem}
	case resolved.RecordType:
		attrs := make(map[string]attribute, len(t))
		for name, a := range t {
			attrs[string(name)] = attribute{schemaType(a.Type), a.Optional}
		}
		return typ{kind: recordKind, attrs: attrs}
	}
	return typ{}
}

// A schemaTypes holds the schema in the form in which the type checker reads it.
type schemaTypes struct {
	entities map[string]entityShape // also the types of actions
	actions  map[types.EntityUID]actionShape
	names    []string // of entity types, sorted, without Action
}

type entityShape struct {
	attrs   map[string]attribute
	tags    *typ
	parents map[string]bool // types of all ancestors, and the type itself
}

type actionShape struct {
	principals, resources []types.EntityType
	context               typ
}

func newSchemaTypes(s *resolved.Schema) *schemaTypes {
	st := &schemaTypes{entities: map[string]entityShape{}, actions: map[types.EntityUID]actionShape{}}
	for name, e := range s.Entities {
		shape := entityShape{attrs: schemaType(e.Shape).attrs, parents: map[string]bool{}}
		if e.Tags != nil {
			tags := schemaType(e.Tags)
			shape.tags = &tags
		}
		addParents(s, name, shape.parents)
		st.entities[string(name)] = shape
	}
	for name := range s.Enums {
		st.entities[string(name)] = entityShape{parents: map[string]bool{string(name): true}}
	}
	st.names = slices.Sorted(maps.Keys(st.entities))
	for uid, a := range s.Actions {
		st.entities[string(uid.Type)] = entityShape{parents: map[string]bool{string(uid.Type): true}}
		if a.AppliesTo != nil {
			st.actions[uid] = actionShape{a.AppliesTo.Principals, a.AppliesTo.Resources, schemaType(a.AppliesTo.Context)}
		}
	}
	return st
}

// addParents adds the type and all types that its entities may be in.
func addParents(s *resolved.Schema, name types.EntityType, parents map[string]bool) {
	if parents[string(name)] {
		return
	}
	parents[string(name)] = true
	for _, p := range s.Entities[name].ParentTypes {
		addParents(s, p, parents)
	}
}

// canBeIn reports whether an entity of one type may be in one of another.
func (st *schemaTypes) canBeIn(child, parent string) bool { return st.entities[child].parents[parent] }
