package config

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"

	"accessbroker.internal/broker"
	"accessbroker.internal/internal/strictyaml"
)

// decode decodes the tree into the file. The YAML library stops at the first unknown key
// or bad value, but an operator wants to see all of them. So decode removes each one
// from the tree, notes it, and decodes the rest.
func (d *document) decode() {
	d.prune("", d.root, reflect.TypeFor[file]())
	if err := strictyaml.Decode(d.root, &d.file); err != nil {
		d.reject("", d.yamlError(err))
	}
}

// reject notes a key whose value cannot be decoded. The key "" is the whole file.
func (d *document) reject(key string, err error) {
	d.errs = append(d.errs, err)
	d.rejected = append(d.rejected, key)
}

// isRejected reports whether a key, or one above or below it, was rejected.
func (d *document) isRejected(key string) bool {
	return slices.ContainsFunc(d.rejected, func(r string) bool { return within(r, key) || within(key, r) })
}

// impliedByRejection reports whether a mistake at a key may only be the consequence of a
// rejected one: the key is below it, or directly above it.
func (d *document) impliedByRejection(key string) bool {
	return slices.ContainsFunc(d.rejected, func(r string) bool {
		return within(key, r) || within(r, key) && !strings.Contains(r[len(key):][1:], "/")
	})
}

// within reports whether a key is other, or is below it.
func within(key, other string) bool {
	return key == other || other == "" || strings.HasPrefix(key, other+"/")
}

func below(key, name string) string { return strings.TrimPrefix(key+"/"+name, "/") }

var unmarshaler = reflect.TypeFor[yaml.NodeUnmarshaler]()

// prune reports whether a node can be decoded as a type. It removes and rejects all
// parts below the node that cannot be decoded.
func (d *document) prune(key string, node ast.Node, t reflect.Type) bool {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if d.rejectUnsettled(func(k string) bool { return k == key }) {
		return false
	}
	mapping, isMapping := node.(*ast.MappingNode)
	list, isList := node.(*ast.SequenceNode)
	switch whole := reflect.PointerTo(t).Implements(unmarshaler); {
	case isMapping && !whole && (t.Kind() == reflect.Struct || t.Kind() == reflect.Map):
		mapping.Values = slices.DeleteFunc(mapping.Values, func(v *ast.MappingValueNode) bool { return !d.pruneEntry(key, v, t) })
		return true
	case isList && !whole && t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Struct:
		all := true
		for i, item := range list.Values {
			all = d.prune(below(key, fmt.Sprint(i)), item, t.Elem()) && all
		}
		if !all { // removing an item would renumber the others
			d.rejected = append(d.rejected, key)
		}
		return all
	}
	if d.rejectUnsettled(func(k string) bool { return within(k, key) }) {
		return false
	}
	if err := strictyaml.Decode(node, reflect.New(t).Interface()); err != nil {
		d.reject(key, d.yamlError(err))
		return false
	}
	return true
}

// rejectUnsettled rejects the selected keys whose values do not have the form of their
// fields, and reports whether there is one.
func (d *document) rejectUnsettled(selected func(key string) bool) (some bool) {
	d.unsettled = slices.DeleteFunc(d.unsettled, func(e *strictyaml.Error) bool {
		if !selected(e.Key) {
			return false
		}
		d.reject(e.Key, d.yamlError(e))
		some = true
		return true
	})
	return some
}

// pruneEntry is prune for an entry of a mapping, whose type is a struct or a map.
func (d *document) pruneEntry(key string, v *ast.MappingValueNode, t reflect.Type) bool {
	name := v.Key.GetToken().Value
	if t.Kind() == reflect.Map {
		return d.prune(below(key, name), v.Value, t.Elem())
	}
	fields := fieldsOf(t)
	if field, known := fields[name]; known {
		return d.prune(below(key, name), v.Value, field)
	}
	names := slices.Sorted(maps.Keys(fields))
	advice := "; known keys: " + strings.Join(names, ", ")
	if near := broker.Nearest(name, names); near != "" {
		name, advice = near, broker.DidYouMean(near)
	}
	at := v.Key.GetToken()
	d.reject(below(key, name), fmt.Errorf("%s:%d:%d: unknown key %q%s", d.path, at.Position.Line, at.Position.Column, at.Value, advice))
	return false
}

// fieldsOf returns the types of a struct's fields, by key.
func fieldsOf(t reflect.Type) map[string]reflect.Type {
	fields := map[string]reflect.Type{}
	for f := range t.Fields() {
		if name := f.Tag.Get("yaml"); name != "" {
			fields[name] = f.Type
		}
	}
	return fields
}
