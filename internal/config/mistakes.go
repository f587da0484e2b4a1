package config

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
)

// Mistakes of form in the operator's file: unknown keys, and values of another
// kind. The YAML library stops at the first, and an operator wants to know of all:
// so each is taken out and noted, and what is left is understood.

// read reads the tree into the file, but for what does not fit.
func (d *document) read() {
	// These mean something in the whole only.
	elsewhere := []ast.NodeType{ast.AnchorType, ast.AliasType, ast.MergeKeyType}
	if !slices.ContainsFunc(elsewhere, func(t ast.NodeType) bool { return len(ast.Filter(t, d.root)) > 0 }) {
		d.fits("", d.root, reflect.TypeFor[file]())
	}
	if err := yaml.NodeToValue(d.root, &d.file, yaml.Strict()); err != nil {
		d.lose("", d.yamlError(err))
	}
}

// lose notes that what stands under a key is lost to a mistake, "" for all of it.
func (d *document) lose(key string, err error) {
	d.errs = append(d.errs, err)
	d.lost = append(d.lost, key)
}

// isLost says whether a key, or what stands above or below it, is lost.
func (d *document) isLost(key string) bool {
	return slices.ContainsFunc(d.lost, func(lost string) bool { return within(lost, key) || within(key, lost) })
}

// follows says whether what is wrong with a key follows from what was lost: it is
// part of that, or lacks it.
func (d *document) follows(key string) bool {
	return slices.ContainsFunc(d.lost, func(lost string) bool {
		return within(key, lost) || within(lost, key) && !strings.Contains(lost[len(key):][1:], "/")
	})
}

// within says whether a key is another, or stands below it.
func within(key, other string) bool {
	return key == other || other == "" || strings.HasPrefix(key, other+"/")
}

func below(key, name string) string { return strings.TrimPrefix(key+"/"+name, "/") }

var readsItself = reflect.TypeFor[yaml.NodeUnmarshaler]()

// fits says whether a node can be read as a type. What does not fit below it is
// taken out.
func (d *document) fits(key string, node ast.Node, t reflect.Type) bool {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	mapping, isMapping := node.(*ast.MappingNode)
	list, isList := node.(*ast.SequenceNode)
	switch whole := reflect.PointerTo(t).Implements(readsItself); {
	case isMapping && !whole && (t.Kind() == reflect.Struct || t.Kind() == reflect.Map):
		mapping.Values = slices.DeleteFunc(mapping.Values, func(v *ast.MappingValueNode) bool { return !d.entryFits(key, v, t) })
		return true
	case isList && !whole && t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Struct:
		all := true
		for i, item := range list.Values {
			all = d.fits(below(key, fmt.Sprint(i)), item, t.Elem()) && all
		}
		if !all { // without one of them, the others would have other numbers
			d.lost = append(d.lost, key)
		}
		return all
	}
	if err := yaml.NodeToValue(node, reflect.New(t).Interface(), yaml.Strict()); err != nil {
		d.lose(key, d.yamlError(err))
		return false
	}
	return true
}

// entryFits says whether an entry of a mapping can be read, as the field of its
// name or as any other of a map.
func (d *document) entryFits(key string, v *ast.MappingValueNode, t reflect.Type) bool {
	name := v.Key.GetToken().Value
	if t.Kind() == reflect.Map {
		return d.fits(below(key, name), v.Value, t.Elem())
	}
	fields := fieldsOf(t)
	if field, known := fields[name]; known {
		return d.fits(below(key, name), v.Value, field)
	}
	names := slices.Sorted(maps.Keys(fields))
	advice := "; there are: " + strings.Join(names, ", ")
	if near := nearest(name, names); near != "" {
		name, advice = near, fmt.Sprintf(": did you mean %q?", near)
	}
	at := v.Key.GetToken()
	d.lose(below(key, name), fmt.Errorf("%s:%d:%d: unknown key %q%s", d.path, at.Position.Line, at.Position.Column, at.Value, advice))
	return false
}

// fieldsOf gives the types of a struct's fields by their keys.
func fieldsOf(t reflect.Type) map[string]reflect.Type {
	fields := map[string]reflect.Type{}
	for f := range t.Fields() {
		if name := f.Tag.Get("yaml"); name != "" {
			fields[name] = f.Type
		}
	}
	return fields
}

// nearest gives the one of the names that a slip of the fingers makes of a name,
// or "".
func nearest(name string, names []string) (near string) {
	least := 3 // slips are fewer
	for _, other := range names {
		if n := slips(name, other); n < least && n < len(other) {
			near, least = other, n
		}
	}
	return near
}

// slips counts the letters that are put in, left out or changed between two words
// (Levenshtein's distance).
func slips(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before := row[0]
		row[0] = i + 1
		for j := range len(b) {
			changed := before
			if a[i] != b[j] {
				changed++
			}
			before = row[j+1]
			row[j+1] = min(changed, row[j]+1, before+1)
		}
	}
	return row[len(b)]
}
