package scim

import (
	"encoding/base64"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// A Document has the attributes of a resource by their names as the schema spells them.
// Values are strings, booleans, Documents for complex attributes, and lists of these.
// Attributes of an extension are in a Document under its URN.
type Document map[string]any

// Bounds of a document.
const (
	maxText     = 1024     // bytes of a string
	maxBinary   = 16 << 10 // bytes of a binary value, in base64
	maxValues   = 100      // of a multi-valued attribute
	maxDocument = 48 << 10 // bytes as JSON
)

// coerce returns the value of an attribute in the form of its definition; nil if the
// value means that the attribute is unassigned (RFC 7643, section 2.5).
//
// It accepts what clients are known to send instead: booleans as strings, one value for a
// list, a list of one for a single value, and a bare string for a complex attribute.
func (a *attribute) coerce(value any) (any, error) {
	if !a.multi {
		if list, ok := value.([]any); ok {
			switch {
			case len(list) == 0:
				return nil, nil
			case len(list) > 1:
				return nil, bad(typeInvalidValue, "%s has one value, not %d", a.name, len(list))
			}
			value = list[0]
		}
		return a.one(value)
	}
	list, ok := value.([]any)
	if !ok {
		list = []any{value}
	}
	if len(list) > maxValues {
		return nil, bad(typeInvalidValue, "%s has %d values: at most %d are accepted", a.name, len(list), maxValues)
	}
	var out []any
	for _, item := range list {
		v, err := a.one(item)
		if err != nil {
			return nil, err
		}
		if v != nil && !slices.ContainsFunc(out, func(other any) bool { return reflect.DeepEqual(other, v) }) {
			out = append(out, v)
		}
	}
	if len(out) == 0 {
		return nil, nil
	}
	return out, nil
}

// one coerces a single value.
func (a *attribute) one(value any) (any, error) {
	if value == nil {
		return nil, nil
	}
	if a.kind == kindComplex {
		return a.complex(value)
	}
	if wrapped, ok := value.(map[string]any); ok { // {"value": "x"}, of older clients
		if value = wrapped["value"]; value == nil {
			return nil, bad(typeInvalidValue, "%s is not an object", a.name)
		}
	}
	s, isText := value.(string)
	switch b, isBool := value.(bool); {
	case a.kind == kindBoolean && isBool:
		return b, nil
	case a.kind == kindBoolean && isText && strings.EqualFold(s, "true"):
		return true, nil
	case a.kind == kindBoolean && isText && strings.EqualFold(s, "false"):
		return false, nil
	case a.kind == kindBoolean:
		return nil, bad(typeInvalidValue, "%s is true or false", a.name)
	case !isText:
		return nil, bad(typeInvalidValue, "%s is a string", a.name)
	}
	if s == "" {
		return nil, nil
	}
	return s, a.checkText(s)
}

func (a *attribute) checkText(s string) error {
	most := maxText
	if a.kind == kindBinary {
		most = maxBinary
	}
	switch {
	case len(s) > most:
		return bad(typeInvalidValue, "%s is longer than %d bytes", a.name, most)
	case !utf8.ValidString(s), strings.ContainsFunc(s, func(r rune) bool { return unicode.IsControl(r) && r != '\n' && r != '\r' && r != '\t' }):
		return bad(typeInvalidValue, "%s is not plain text", a.name)
	}
	if a.kind == kindBinary {
		if _, err := base64.StdEncoding.DecodeString(s); err != nil {
			return bad(typeInvalidValue, "%s is not base64 (RFC 4648, section 4)", a.name)
		}
	}
	if a.kind == kindDateTime {
		if _, err := time.Parse(time.RFC3339Nano, s); err != nil {
			return bad(typeInvalidValue, "%s is not a time such as 2026-01-23T04:56:22Z", a.name)
		}
	}
	return nil
}

func (a *attribute) complex(value any) (any, error) {
	if s, ok := value.(string); ok && a.sub.find("value") != nil {
		value = map[string]any{"value": s}
	}
	object, ok := value.(map[string]any)
	if !ok {
		return nil, bad(typeInvalidValue, "%s is an object", a.name)
	}
	d, err := a.sub.pick(object)
	if err != nil || len(d) == 0 {
		return nil, err
	}
	return d, nil
}

// pick returns the known attributes of an object that a client may write. It refuses
// two spellings of one name, because readers could disagree on which one counts.
func (list attributes) pick(object map[string]any) (Document, error) {
	d := Document{}
	seen := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(object)) {
		a := list.find(name)
		if a == nil {
			continue
		}
		if seen[a.name] {
			return nil, bad(typeInvalidSyntax, "%s appears twice", a.name)
		}
		seen[a.name] = true
		if a.readOnly() {
			continue
		}
		v, err := a.coerce(object[name])
		if err != nil {
			return nil, err
		}
		if v != nil {
			d[a.name] = v
		}
	}
	return d, nil
}

// clone returns a deep copy.
func (d Document) clone() Document {
	out := make(Document, len(d))
	for name, v := range d {
		out[name] = cloneValue(v)
	}
	return out
}

func cloneValue(v any) any {
	switch v := v.(type) {
	case Document:
		return v.clone()
	case []any:
		out := make([]any, len(v))
		for i, item := range v {
			out[i] = cloneValue(item)
		}
		return out
	}
	return v
}

// tidy removes empty parts, which mean unassigned.
func (d Document) tidy() {
	for name, v := range d {
		if v = tidied(v); v == nil {
			delete(d, name)
		} else {
			d[name] = v
		}
	}
}

func tidied(v any) any {
	switch v := v.(type) {
	case Document:
		if v.tidy(); len(v) == 0 {
			return nil
		}
	case []any:
		var out []any
		for _, item := range v {
			if item = tidied(item); item != nil {
				out = append(out, item)
			}
		}
		if len(out) == 0 {
			return nil
		}
		return out
	}
	return v
}
