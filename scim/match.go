package scim

import (
	"cmp"
	"strings"
	"time"
)

// A lazyList is a multi-valued attribute whose values are made when a filter reads them.
type lazyList func() []any

// target returns the attribute that a comparison reads; nil if the schema does not have
// it. For a complex attribute that is its value (RFC 7644, section 3.4.2.2: emails co).
func (o *operand) target() *attribute {
	switch {
	case o.unknown || o.attr == nil:
		return nil
	case o.sub != nil:
		return o.sub
	case o.attr.kind == kindComplex:
		return o.attr.sub.find("value")
	}
	return o.attr
}

// check refuses a comparison that the type of the attribute does not have (RFC 7644,
// section 3.4.2.2), and prepares its value.
func (f *filter) check() error {
	a := f.attr.target()
	if a == nil {
		return nil
	}
	ordered := f.op == "gt" || f.op == "ge" || f.op == "lt" || f.op == "le"
	if ordered && (a.kind == kindBoolean || a.kind == kindBinary || f.value == nil) {
		return bad(typeInvalidFilter, "%s has no order: %s can't compare it", a.name, f.op)
	}
	s, isText := f.value.(string)
	if a.kind == kindBoolean && isText && (strings.EqualFold(s, "true") || strings.EqualFold(s, "false")) {
		f.value = strings.EqualFold(s, "true")
	}
	if a.kind == kindDateTime && isText && f.op != "co" && f.op != "sw" && f.op != "ew" {
		var err error
		if f.when, err = time.Parse(time.RFC3339Nano, s); err != nil {
			return bad(typeInvalidFilter, "%s is compared with a time such as 2026-01-23T04:56:22Z", a.name)
		}
	}
	return nil
}

// matches reports whether a document meets the filter.
func (f *filter) matches(d Document) bool {
	switch f.op {
	case "and":
		for _, part := range f.parts {
			if !part.matches(d) {
				return false
			}
		}
		return true
	case "or":
		for _, part := range f.parts {
			if part.matches(d) {
				return true
			}
		}
		return false
	case "not":
		return !f.parts[0].matches(d)
	case "[]":
		for _, v := range f.attr.elements(d) {
			if item, ok := v.(Document); ok && f.parts[0].matches(item) {
				return true
			}
		}
		return false
	}
	return f.compare(d)
}

// elements returns the values of the attribute, without looking into them.
func (o *operand) elements(d Document) []any {
	if o.attr == nil || o.unknown {
		return nil
	}
	if o.extension != "" {
		d, _ = d[o.extension].(Document)
	}
	switch v := d[o.attr.name].(type) {
	case nil:
		return nil
	case []any:
		return v
	case lazyList:
		return v()
	default:
		return []any{v}
	}
}

// compare reports whether any value of the attribute meets the comparison.
func (f *filter) compare(d Document) bool {
	values := f.attr.elements(d)
	if f.op == "pr" && f.attr.sub == nil {
		return len(values) > 0
	}
	a, some := f.attr.target(), false
	for _, v := range values {
		if item, ok := v.(Document); ok {
			if a == nil {
				continue
			}
			v = item[a.name]
		}
		if v == nil {
			continue
		}
		if some = true; f.op == "pr" || f.value != nil && f.holds(a, v) {
			return true
		}
	}
	// null means unassigned (RFC 7643, section 2.5).
	return f.value == nil && (f.op == "eq" && !some || f.op == "ne" && some)
}

// holds compares one value.
func (f *filter) holds(a *attribute, v any) bool {
	switch f.op {
	case "eq":
		return f.equal(a, v)
	case "ne":
		return !f.equal(a, v)
	}
	s, isText := v.(string)
	want, wantsText := f.value.(string)
	if !isText || !wantsText {
		return false
	}
	if !f.when.IsZero() {
		return f.ordered(compareTimes(s, f.when))
	}
	if !a.exact {
		s, want = strings.ToLower(s), strings.ToLower(want)
	}
	switch f.op {
	case "co":
		return strings.Contains(s, want)
	case "sw":
		return strings.HasPrefix(s, want)
	case "ew":
		return strings.HasSuffix(s, want)
	}
	return f.ordered(cmp.Compare(s, want))
}

func (f *filter) equal(a *attribute, v any) bool {
	s, isText := v.(string)
	want, wantsText := f.value.(string)
	switch {
	case !isText || !wantsText:
		return v == f.value
	case !f.when.IsZero():
		return compareTimes(s, f.when) == 0
	case a.exact:
		return s == want
	}
	return strings.EqualFold(s, want)
}

func (f *filter) ordered(c int) bool {
	switch f.op {
	case "gt":
		return c > 0
	case "ge":
		return c >= 0
	case "lt":
		return c < 0
	}
	return f.op == "le" && c <= 0
}

func compareTimes(s string, want time.Time) int {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return -1
	}
	return t.Compare(want)
}
