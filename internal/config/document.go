package config

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// A document is the operator's file with its syntax tree, so that every error can name
// a position.
type document struct {
	path string
	root ast.Node
	file file

	errs     []error  // one for each rejected key
	rejected []string // keys whose values could not be decoded, and are not in file
}

const maxFile = 4 << 20

func readDocument(path string) (*document, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the operator's file: %w", err)
	}
	return parseDocument(path, text)
}

func parseDocument(path string, text []byte) (*document, error) {
	d := &document{path: path}
	if len(text) > maxFile {
		return nil, fmt.Errorf("%s: the file is larger than %d bytes", path, maxFile)
	}
	tree, err := parser.ParseBytes(text, 0)
	if err != nil {
		return nil, d.yamlError(err)
	}
	if len(tree.Docs) != 1 || tree.Docs[0].Body == nil {
		return nil, fmt.Errorf("%s: the file must have exactly one YAML document", path)
	}
	d.root = tree.Docs[0].Body
	d.decode()
	return d, nil
}

// yamlError adds the position to an error of the YAML library, and replaces texts that
// name Go types.
func (d *document) yamlError(err error) error {
	var at yaml.Error
	if !errors.As(err, &at) || at.GetToken() == nil {
		return fmt.Errorf("%s: %w", d.path, err)
	}
	text := at.GetMessage()
	if strings.Contains(text, "Go struct field") || strings.Contains(text, "Go value") || strings.Contains(text, " of type ") {
		text = "this key needs another type of value: see docs/operator.md"
	}
	text = strings.Replace(text, "unknown field", "unknown key", 1)
	position := at.GetToken().Position
	return fmt.Errorf("%s:%d:%d: %s", d.path, position.Line, position.Column, text)
}

// errorf returns an error about a key such as "entitlements/reports/issuer", with the
// position of the key. If the file does not have the key, the position is that of the
// nearest key above it.
func (d *document) errorf(key, format string, args ...any) error {
	line, column := 1, 1
	node := d.root
	for _, name := range strings.Split(key, "/") {
		next, at := child(node, name)
		if at == nil {
			break
		}
		node, line, column = next, at.line, at.column
	}
	return fmt.Errorf("%s:%d:%d: %s: %s", d.path, line, column, strings.ReplaceAll(key, "/", "."), fmt.Sprintf(format, args...))
}

type position struct{ line, column int }

// child returns the value under a key or index, and the position of the key. It returns
// nil if there is none.
func child(node ast.Node, name string) (ast.Node, *position) {
	switch n := node.(type) {
	case *ast.MappingNode:
		for _, v := range n.Values {
			if next, at := child(v, name); at != nil {
				return next, at
			}
		}
	case *ast.MappingValueNode:
		if t := n.Key.GetToken(); t.Value == name {
			return n.Value, &position{t.Position.Line, t.Position.Column}
		}
	case *ast.SequenceNode:
		if i, err := strconv.Atoi(name); err == nil && i < len(n.Values) {
			t := n.Values[i].GetToken()
			return n.Values[i], &position{t.Position.Line, t.Position.Column}
		}
	}
	return nil, nil
}

// duration is a Go duration, such as "15m".
type duration time.Duration

// UnmarshalYAML implements yaml.NodeUnmarshaler.
func (d *duration) UnmarshalYAML(node ast.Node) error {
	parsed, err := time.ParseDuration(node.GetToken().Value)
	if err != nil || parsed <= 0 || parsed%time.Second != 0 {
		return &yaml.SyntaxError{Message: `a duration is a positive number of whole seconds, such as "90s", "15m" or "1h30m"`, Token: node.GetToken()}
	}
	*d = duration(parsed)
	return nil
}

// A delay is a duration that may be zero.
type delay time.Duration

// UnmarshalYAML implements yaml.NodeUnmarshaler.
func (d *delay) UnmarshalYAML(node ast.Node) error {
	if text := node.GetToken().Value; text == "0s" || text == "0" {
		return nil
	}
	return (*duration)(d).UnmarshalYAML(node)
}

// plain is a string that may contain colons. In a flow mapping, the YAML library reads
// [tickets:read] as a list of a mapping, although no space follows the colon (YAML 1.2.2,
// section 7.3.3; goccy/go-yaml#832). Decoding a plain restores the string.
type plain string

// UnmarshalYAML implements yaml.NodeUnmarshaler.
func (p *plain) UnmarshalYAML(node ast.Node) error {
	text, ok := rejoin(node)
	if !ok {
		return yaml.NodeToValue(node, (*string)(p))
	}
	*p = plain(text)
	return nil
}

// rejoin returns the text of a scalar that the library split at its colons. It reports
// false for any other node.
func rejoin(node ast.Node) (string, bool) {
	pair, ok := node.(*ast.MappingValueNode)
	if m, isMapping := node.(*ast.MappingNode); isMapping && len(m.Values) == 1 {
		pair, ok = m.Values[0], true
	}
	if !ok {
		return "", false
	}
	key, value := pair.Key.GetToken(), pair.Value.GetToken()
	rest, split := rejoin(pair.Value)
	if !split {
		rest = value.Value
	} else if p, isPair := pair.Value.(*ast.MappingValueNode); isPair {
		value = p.Key.GetToken()
	}
	if value.Position.Line != key.Position.Line || value.Position.Column != key.Position.Column+len(key.Value)+len(":") {
		return "", false // a real mapping, which the library refuses
	}
	return key.Value + ":" + rest, true
}

func toStrings(list []plain) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = string(s)
	}
	return out
}
