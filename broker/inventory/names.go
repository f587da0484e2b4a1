package inventory

import (
	"encoding/json"
	"iter"
	"maps"
	"slices"
	"strings"
)

// Names are values by name, sorted by name. Most have one or two entries, which take a
// fraction of the memory of a map. The JSON is an object.
type Names[V any] []named[V]

type named[V any] struct {
	name  string
	value V
}

// Get returns the value of a name; the zero value if there is none.
func (n Names[V]) Get(name string) (v V) {
	if i, known := n.find(name); known {
		v = n[i].value
	}
	return v
}

// All returns the names and their values.
func (n Names[V]) All() iter.Seq2[string, V] {
	return func(yield func(string, V) bool) {
		for _, e := range n {
			if !yield(e.name, e.value) {
				return
			}
		}
	}
}

// Names returns the names.
func (n Names[V]) Names() []string {
	list := make([]string, len(n))
	for i, e := range n {
		list[i] = e.name
	}
	return list
}

// at returns the value of a name, which it adds if there are fewer than most names, or
// that of Others.
func (n *Names[V]) at(name string, most int) *V {
	i, known := n.find(name)
	if !known && len(*n) >= most {
		name = Others
		i, known = n.find(name)
	}
	if !known {
		*n = slices.Insert(*n, i, named[V]{name: name})
	}
	return &(*n)[i].value
}

func (n Names[V]) find(name string) (int, bool) {
	return slices.BinarySearchFunc(n, name, func(e named[V], name string) int { return strings.Compare(e.name, name) })
}

// UnmarshalJSON implements json.Unmarshaler.
func (n *Names[V]) UnmarshalJSON(text []byte) error {
	var m map[string]V
	if err := json.Unmarshal(text, &m); err != nil {
		return err
	}
	*n = make(Names[V], 0, len(m))
	for _, name := range slices.Sorted(maps.Keys(m)) {
		*n = append(*n, named[V]{name, m[name]})
	}
	return nil
}
