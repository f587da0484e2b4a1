package directory

import (
	"bytes"
	"slices"
)

// An index finds the users, or the groups, of a source. Names that must be unique are
// reserved before a change is stored, so that two changes at once can't take one name.
type index[ID ~[16]byte, T any] struct {
	byID   map[ID]T
	byName map[name]ID // also names that are reserved
	names  map[ID][]name
	order  []ID // by creation
}

// A name is what an attribute must not share with another resource.
type name struct {
	attribute uint8
	text      string
}

const (
	nameUser uint8 = iota
	nameExternal
	namePerson
	nameGroup
)

// userNames returns the names of a user. A userName is unique without its case (RFC 7643,
// section 4.1.1).
func userNames(userName, externalID, person string) []name {
	return someNames(name{nameUser, fold(userName)}, name{nameExternal, externalID}, name{namePerson, person})
}

func groupNames(displayName, externalID string) []name {
	return someNames(name{nameGroup, fold(displayName)}, name{nameExternal, externalID})
}

func someNames(list ...name) []name {
	return slices.DeleteFunc(list, func(n name) bool { return n.text == "" })
}

func newIndex[ID ~[16]byte, T any]() index[ID, T] {
	return index[ID, T]{byID: map[ID]T{}, byName: map[name]ID{}, names: map[ID][]name{}}
}

// reserve takes names for a resource. It returns false, and takes none, if another one
// has a name.
func (x *index[ID, T]) reserve(id ID, names []name) bool {
	for _, n := range names {
		if other, taken := x.byName[n]; taken && other != id {
			return false
		}
	}
	for _, n := range names {
		x.byName[n] = id
	}
	return true
}

// release returns the names that were reserved and are not the resource's stored ones.
func (x *index[ID, T]) release(id ID, names []name) {
	for _, n := range names {
		if x.byName[n] == id && !slices.Contains(x.names[id], n) {
			delete(x.byName, n)
		}
	}
}

// put stores a resource with its names.
func (x *index[ID, T]) put(id ID, v T, names ...name) {
	old := x.names[id]
	x.names[id] = names
	x.release(id, old)
	for _, n := range names {
		x.byName[n] = id
	}
	if _, known := x.byID[id]; !known {
		if at, found := x.place(id); !found {
			x.order = slices.Insert(x.order, at, id)
		}
	}
	x.byID[id] = v
}

func (x *index[ID, T]) remove(id ID) {
	old := x.names[id]
	delete(x.names, id)
	x.release(id, old)
	delete(x.byID, id)
	if at, found := x.place(id); found {
		x.order = slices.Delete(x.order, at, at+1)
	}
}

func (x *index[ID, T]) place(id ID) (int, bool) {
	return slices.BinarySearchFunc(x.order, id, func(a, b ID) int { return bytes.Compare(a[:], b[:]) })
}

// find returns the stored resource with a name.
func (x *index[ID, T]) find(n name) (v T, ok bool) {
	if n.text == "" {
		return v, false
	}
	id, ok := x.byName[n]
	if !ok {
		return v, false
	}
	if !slices.Contains(x.names[id], n) { // reserved, not stored
		return v, false
	}
	v, ok = x.byID[id]
	return v, ok
}
