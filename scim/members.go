package scim

import (
	"strings"
)

// A MemberChange is the effect of a request on the members of a group. Members are not
// part of the group's document, so that adding one to a large group costs little.
type MemberChange struct {
	Clear       bool            // all earlier members leave, except those of Add
	Add, Remove map[string]bool // ids

	// current returns the members before the request.
	current func() []string
	steps   int // comparisons of members with filters
}

// Bounds of one request.
const (
	maxMembers = 20_000    // named ids
	maxSteps   = 2_000_000 // comparisons of members with filters
)

func newMemberChange(current func() []string) *MemberChange {
	return &MemberChange{Add: map[string]bool{}, Remove: map[string]bool{}, current: current}
}

func (m *MemberChange) apply(o operation, target path) error {
	switch {
	case target.sub != nil:
		return bad(typeMutability, "a part of a member can't be changed: remove the member and add another")
	case target.filter != nil && o.op != "remove":
		return bad(typeInvalidPath, "members are added by members, with a list as value")
	case target.filter != nil:
		return m.removeMatching(target.filter)
	case o.op == "remove" && (!o.hasValue || o.value == nil):
		m.clear()
		return nil
	}
	ids, err := memberIDs(o.value)
	if err != nil {
		return err
	}
	switch o.op {
	case "remove":
		for _, id := range ids {
			m.remove(id)
		}
		return nil
	case "replace":
		m.clear()
	}
	for _, id := range ids {
		m.Add[id] = true
		delete(m.Remove, id)
	}
	if len(m.Add)+len(m.Remove) > maxMembers {
		return bad(typeTooMany, "one request changes at most %d members", maxMembers)
	}
	return nil
}

func (m *MemberChange) clear() {
	m.Clear = true
	clear(m.Add)
	clear(m.Remove)
}

func (m *MemberChange) remove(id string) {
	delete(m.Add, id)
	if !m.Clear {
		m.Remove[id] = true
	}
}

// removeMatching removes the members that a filter selects. The usual filter names one.
func (m *MemberChange) removeMatching(f *filter) error {
	if id, ok := f.value.(string); ok && f.op == "eq" && f.attr.attr != nil && f.attr.attr.name == "value" {
		m.remove(id)
		return nil
	}
	var all []string
	if !m.Clear {
		all = m.current()
	}
	for id := range m.Add {
		all = append(all, id)
	}
	if m.steps += len(all) * (1 + f.size()); m.steps > maxSteps {
		return bad(typeTooMany, "the filters of this request compare too many members: remove members by their value")
	}
	for _, id := range all {
		if f.matches(memberOf(id)) {
			m.remove(id)
		}
	}
	return nil
}

// size returns the number of comparisons.
func (f *filter) size() int {
	n := 1
	for _, part := range f.parts {
		n += part.size()
	}
	return n
}

// memberOf returns a member as filters see it.
func memberOf(id string) Document {
	return Document{"value": id, "type": "User"}
}

// memberIDs returns the ids in a list of members, in any of the forms that clients send:
// {"value": id}, or the id itself.
func memberIDs(value any) (ids []string, err error) {
	list, ok := value.([]any)
	if !ok && value != nil {
		list = []any{value}
	}
	if len(list) > maxMembers {
		return nil, bad(typeTooMany, "one request names at most %d members", maxMembers)
	}
	for _, item := range list {
		id, err := memberID(item)
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, nil
}

func memberID(item any) (string, error) {
	if id, ok := item.(string); ok && id != "" && len(id) <= maxText {
		return id, nil
	}
	object, ok := item.(map[string]any)
	if !ok {
		return "", bad(typeInvalidValue, "a member is an object with a value")
	}
	value, _, err := member(object, "value")
	if err != nil {
		return "", err
	}
	kind, _, err := member(object, "type")
	if err != nil {
		return "", err
	}
	id, _ := value.(string)
	switch name, _ := kind.(string); {
	case id == "" || len(id) > maxText:
		return "", bad(typeInvalidValue, "a member needs a value, the id of a user")
	case name != "" && !strings.EqualFold(name, "User"):
		return "", bad(typeInvalidValue, "a member must be a user: groups are not accepted as members")
	}
	return id, nil
}

// result returns the members after the change, for tests and small groups.
func (m *MemberChange) result() map[string]bool {
	after := map[string]bool{}
	if !m.Clear {
		for _, id := range m.current() {
			after[id] = true
		}
	}
	for id := range m.Remove {
		delete(after, id)
	}
	for id := range m.Add {
		after[id] = true
	}
	return after
}
