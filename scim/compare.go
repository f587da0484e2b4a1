package scim

import (
	"fmt"
	"maps"
	"slices"
)

// Patch applies a PATCH to the JSON of a resource of a type ("User" or "Group") as the
// endpoints do, without the store. Programs that compare implementations use it.
func Patch(resource string, document, patch []byte) ([]byte, error) {
	t, err := typeOf(resource)
	if err != nil {
		return nil, err
	}
	d, err := Decode(document)
	if err != nil {
		return nil, err
	}
	ops, err := parsePatch(patch)
	if err != nil {
		return nil, err
	}
	p := patcher{resource: t, doc: d}
	if t == groupType {
		before, err := memberIDs(plain(d["members"]))
		if err != nil {
			return nil, err
		}
		delete(d, "members")
		p.members = newMemberChange(func() []string { return before })
	}
	if err := p.patch(ops); err != nil {
		return nil, err
	}
	if p.members != nil {
		var list []any
		for _, id := range slices.Sorted(maps.Keys(p.members.result())) {
			list = append(list, Document{"value": id})
		}
		if list != nil {
			d["members"] = list
		}
	}
	return d.Encode(), nil
}

// plain returns a value with maps instead of Documents.
func plain(v any) any {
	list, ok := v.([]any)
	if !ok {
		return v
	}
	var out []any
	for _, item := range list {
		if d, ok := item.(Document); ok {
			item = map[string]any(d)
		}
		out = append(out, item)
	}
	return out
}

// Match reports whether the JSON of a resource meets a filter, as lists evaluate it.
func Match(resource, expression string, document []byte) (bool, error) {
	t, err := typeOf(resource)
	if err != nil {
		return false, err
	}
	f, err := t.parseFilter(expression)
	if err != nil {
		return false, err
	}
	d, err := Decode(document)
	if err != nil {
		return false, err
	}
	return f.matches(d), nil
}

func typeOf(name string) (*resourceType, error) {
	for _, t := range []*resourceType{userType, groupType} {
		if t.name == name {
			return t, nil
		}
	}
	return nil, fmt.Errorf("there is no resource type %q", name)
}
