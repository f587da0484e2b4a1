package scim

import (
	"fmt"
	"slices"
	"strings"
)

// A Subject is the attribute of users that has the sub of the person at the OpenID
// provider.
type Subject struct{ path path }

// ParseSubject parses the path of an attribute, such as "externalId" or
// "emails[primary eq true].value".
func ParseSubject(text string) (Subject, error) {
	p, err := userType.parsePath(text)
	if err != nil {
		return Subject{}, fmt.Errorf("%q is not the path of an attribute of users: write one such as externalId or userName", text)
	}
	last := p.attr
	if p.sub != nil {
		last = p.sub
	}
	if last == nil || p.readOnly() || last.kind != kindString && last.kind != kindReference || p.attr.multi && p.filter == nil && p.sub == nil {
		return Subject{}, fmt.Errorf("%q does not have one text that the client sets: write a path such as externalId or userName", text)
	}
	return Subject{p}, nil
}

// of returns the sub of a user; empty if the user has none.
func (s Subject) of(d Document) (string, error) {
	var found []string
	for _, v := range s.values(d) {
		if text, _ := v.(string); text != "" && !slices.Contains(found, text) {
			found = append(found, text)
		}
	}
	switch len(found) {
	case 0:
		return "", nil
	case 1:
		if strings.ContainsFunc(found[0], func(r rune) bool { return r <= ' ' || r > '~' }) || len(found[0]) > 255 {
			return "", bad(typeInvalidValue, "the attribute that names the person must be 1 to 255 visible ASCII characters")
		}
		return found[0], nil
	}
	return "", bad(typeInvalidValue, "the attribute that names the person has more than one value")
}

func (s Subject) values(d Document) []any {
	if s.path.schema != userSchema {
		d, _ = d[s.path.schema.id].(Document)
	}
	v := d[s.path.attr.name]
	list, ok := v.([]any)
	if !ok {
		list = []any{v}
	}
	if s.path.sub == nil {
		return list
	}
	var out []any
	for _, item := range list {
		part, ok := item.(Document)
		if ok && (s.path.filter == nil || s.path.filter.matches(part)) {
			out = append(out, part[s.path.sub.name])
		}
	}
	return out
}
