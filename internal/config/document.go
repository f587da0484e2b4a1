package config

import (
	"fmt"
	"os"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"

	"accessbroker.internal/internal/strictyaml"
)

// A document is the operator's file with its syntax tree, so that every error can name
// a position.
type document struct {
	path string
	root ast.Node
	file file

	unsettled []*strictyaml.Error // values without the form of their fields, not rejected yet

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
	roots, err := strictyaml.Parse(text)
	if err != nil {
		return nil, d.yamlError(err)
	}
	if len(roots) != 1 || roots[0] == nil {
		return nil, fmt.Errorf("%s: the file must have exactly one YAML document", path)
	}
	d.root, d.unsettled = strictyaml.Settle(roots[0], reflect.TypeFor[file]())
	d.decode()
	return d, nil
}

// yamlError adds the path of the file to an error with a position in it.
func (d *document) yamlError(err error) error { return fmt.Errorf("%s:%w", d.path, err) }

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
	if (*duration)(d).UnmarshalYAML(node) != nil {
		return &yaml.SyntaxError{Message: `a delay is a number of whole seconds, such as "0s", "5s" or "1m"`, Token: node.GetToken()}
	}
	return nil
}

// neverNil returns a copy that is never nil: the digest of the rules covers the
// catalogue, and must not depend on whether the file has an empty list or none.
func neverNil(list []string) []string { return append([]string{}, list...) }
