package strictyaml

import (
	"encoding"
	"fmt"
	"net/netip"
	"reflect"
	"regexp"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"
)

// Settle fits the scalars below a node to the fields of a type, by its yaml tags, and
// returns the node to decode. A scalar in a text field becomes a text with exactly the
// characters that the file has; a value without the form of its field is an error.
// Settle does not report unknown keys: Decode does.
//
// A type that decodes itself (yaml.NodeUnmarshaler) gets its node as it is, unless it is
// a struct with yaml tags or a Former.
func Settle(node ast.Node, t reflect.Type) (ast.Node, []*Error) {
	s := settler{}
	node = s.settle("", node, t)
	return node, s.errs
}

type settler struct{ errs []*Error }

var (
	nodeUnmarshaler = reflect.TypeFor[yaml.NodeUnmarshaler]()
	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()
	former          = reflect.TypeFor[Former]()
)

// A Former is a type that decodes itself from a list or from a mapping. YAMLForm returns
// a value of the type that has the same form.
type Former interface {
	YAMLForm(isList bool) any
}

func (s *settler) fail(key string, node ast.Node, format string, args ...any) ast.Node {
	err := errorAt(node, format, args...)
	err.Key = key
	s.errs = append(s.errs, err)
	return node
}

func below(key, name string) string { return strings.TrimPrefix(key+"/"+name, "/") }

func (s *settler) settle(key string, node ast.Node, t reflect.Type) ast.Node {
	if _, isNull := node.(*ast.NullNode); isNull && t.Kind() == reflect.Pointer && t.Elem().Kind() != reflect.String {
		return s.fail(key, node, "the key has no value: write one, or remove the key")
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	pointer := reflect.PointerTo(t)
	switch fields := fieldsOf(t); {
	case t.Implements(former):
		_, isList := node.(*ast.SequenceNode)
		return s.settle(key, node, reflect.TypeOf(reflect.Zero(t).Interface().(Former).YAMLForm(isList)))
	case len(fields) > 0:
		return s.mapping(key, node, func(name string) (reflect.Type, bool) { f, ok := fields[name]; return f, ok })
	case pointer.Implements(textUnmarshaler):
		return s.parsed(key, s.text(key, node), t)
	case t.Kind() == reflect.String:
		return s.text(key, node)
	case pointer.Implements(nodeUnmarshaler):
		return node
	}
	return s.other(key, node, t)
}

// other settles a node of a type that is no struct and no text.
func (s *settler) other(key string, node ast.Node, t reflect.Type) ast.Node {
	switch t.Kind() {
	case reflect.Map:
		s.keys(key, node)
		return s.mapping(key, node, func(string) (reflect.Type, bool) { return t.Elem(), true })
	case reflect.Slice:
		return s.list(key, node, t.Elem())
	case reflect.Bool:
		return s.scalar(key, node, truthForm, "write true or false, without quotes")
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64, reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return s.scalar(key, node, wholeForm, "write a whole number in decimal digits, without quotes")
	case reflect.Float32, reflect.Float64:
		return s.scalar(key, node, numberForm, "write a number such as 20 or 0.5, without quotes")
	}
	return node
}

var (
	truthForm  = regexp.MustCompile(`^(true|false)$`)
	wholeForm  = regexp.MustCompile(`^-?(0|[1-9][0-9]*)$`)
	numberForm = regexp.MustCompile(`^-?(0|[1-9][0-9]*)(\.[0-9]+)?$`)
)

// scalar requires a plain scalar with a form.
func (s *settler) scalar(key string, node ast.Node, form *regexp.Regexp, advice string) ast.Node {
	value, isScalar := node.(ast.ScalarNode)
	if !isScalar {
		return s.fail(key, node, "%s", advice)
	}
	written := value.GetToken().Value
	if _, isText := node.(*ast.StringNode); isText && value.GetToken().Type == token.StringType && form.MatchString(written) {
		return s.fail(key, node, "%s is too large", written)
	}
	if _, isText := node.(*ast.StringNode); isText || !form.MatchString(written) {
		return s.fail(key, node, "%q: %s", written, advice)
	}
	return node
}

// pairs returns the entries of a mapping.
func pairs(node ast.Node) []*ast.MappingValueNode {
	switch n := node.(type) {
	case *ast.MappingNode:
		return n.Values
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{n}
	}
	return nil
}

// mapping settles the values of a mapping whose types are known.
func (s *settler) mapping(key string, node ast.Node, typeOf func(name string) (reflect.Type, bool)) ast.Node {
	switch node.(type) {
	case nil, *ast.MappingNode, *ast.MappingValueNode, *ast.NullNode, *ast.CommentGroupNode:
	default:
		return s.fail(key, node, "write keys with values here, such as {name: value}")
	}
	for _, v := range pairs(node) {
		if t, known := typeOf(keyText(v)); known {
			v.Value = s.settle(below(key, keyText(v)), v.Value, t)
		}
	}
	return node
}

// list settles the items of a list.
func (s *settler) list(key string, node ast.Node, item reflect.Type) ast.Node {
	switch n := node.(type) {
	case *ast.SequenceNode:
		for i, value := range n.Values {
			n.Values[i] = s.settle(below(key, fmt.Sprint(i)), value, item)
		}
	case nil, *ast.NullNode, *ast.CommentGroupNode:
	case ast.ScalarNode:
		if item.Kind() == reflect.Struct {
			return s.fail(key, node, "write a list of entries, each after a dash")
		}
		return s.fail(key, node, "write a list, such as [%s]", n.GetToken().Value)
	default:
		return s.fail(key, node, "write a list, each item after a dash or in [brackets]")
	}
	return node
}

// keys turns the keys of a mapping into texts.
func (s *settler) keys(key string, node ast.Node) {
	for _, v := range pairs(node) {
		if _, isNull := v.Key.(*ast.NullNode); isNull {
			s.fail(below(key, keyText(v)), v.Key, "the key %s is null in YAML: quote it, or write another name", keyText(v))
			continue
		}
		v.Key = asString(v.Key).(ast.MapKeyNode)
	}
}

// text returns the text of a scalar.
func (s *settler) text(key string, node ast.Node) ast.Node {
	if null, isNull := node.(*ast.NullNode); isNull {
		if null.GetToken().Type == token.ImplicitNullType {
			return s.fail(key, node, "the key has no value: write one, or \"\" if it is empty, or remove the key")
		}
		return s.fail(key, node, "%s is null in YAML and no text: quote it, or remove the key", null.GetToken().Value)
	}
	switch node = asString(node); node.(type) {
	case *ast.MappingNode, *ast.MappingValueNode, *ast.SequenceNode:
		return s.fail(key, node, "write one text here, in quotation marks if it has special characters")
	}
	return node
}

// parsed requires a text that a type can parse.
func (s *settler) parsed(key string, node ast.Node, t reflect.Type) ast.Node {
	text, isText := node.(*ast.StringNode)
	if !isText {
		return node
	}
	err := reflect.New(t).Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(text.Value))
	switch {
	case err == nil:
	case t == reflect.TypeFor[netip.Addr]():
		return s.fail(key, node, "%q is not an IP address: write one such as 192.0.2.1", text.Value)
	default:
		return s.fail(key, node, "%q: %v", text.Value, err)
	}
	return node
}

// asString returns a text with the characters of a scalar; other nodes stay.
func asString(node ast.Node) ast.Node {
	switch n := node.(type) {
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.NullNode, *ast.InfinityNode, *ast.NanNode:
		return ast.String(n.GetToken())
	case *ast.MappingNode, *ast.MappingValueNode:
		if joined, ok := rejoin(n); ok {
			first := pairs(n)[0].Key.GetToken().Clone()
			first.Value = joined
			return ast.String(first)
		}
	}
	return node
}

// Joined returns the text of a scalar that the library split at its colons, for types that
// decode themselves. It reports false for any other node.
func Joined(node ast.Node) (string, bool) { return rejoin(node) }

// rejoin returns the text of a scalar that the library split at its colons. In a flow
// mapping, it reads [tickets:read] as a list of a mapping, although no space follows the
// colon (YAML 1.2.2, section 7.3.3; goccy/go-yaml#832). rejoin reports false for any
// other node.
func rejoin(node ast.Node) (string, bool) {
	list := pairs(node)
	if len(list) != 1 {
		return "", false
	}
	pair := list[0]
	key, value := pair.Key.GetToken(), pair.Value.GetToken()
	rest, split := rejoin(pair.Value)
	if !split {
		rest = value.Value
	} else if p, isPair := pair.Value.(*ast.MappingValueNode); isPair {
		value = p.Key.GetToken()
	}
	if value.Position.Line != key.Position.Line || value.Position.Column != key.Position.Column+len(key.Value)+len(":") {
		return "", false // a real mapping
	}
	return key.Value + ":" + rest, true
}

// fieldsOf returns the types of a struct's fields by key, with those of embedded
// structs.
func fieldsOf(t reflect.Type) map[string]reflect.Type {
	if t.Kind() != reflect.Struct {
		return nil
	}
	fields := map[string]reflect.Type{}
	for f := range t.Fields() {
		switch name := f.Tag.Get("yaml"); {
		case f.Anonymous:
			for name, inner := range fieldsOf(f.Type) {
				fields[name] = inner
			}
		case name != "":
			fields[name] = f.Type
		}
	}
	return fields
}
