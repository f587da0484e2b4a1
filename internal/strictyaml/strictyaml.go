// Package strictyaml reads the operator's YAML files: the configuration, groups.yaml
// and scenarios. YAML turns plain scalars into numbers, truth values and null, and Go's
// decoder turns those into texts again, but into other ones: 0777 becomes "511". This
// package keeps a text as the file has it, and rejects every value that does not have
// the form of its field. Each error has a position and states what to write.
package strictyaml

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// An Error is a mistake in a file.
type Error struct {
	Key          string // such as "entitlements/reports/aws/external_id"; "" is the whole file
	Line, Column int    // from 1; zero: unknown
	Text         string
}

func (e *Error) Error() string { return fmt.Sprintf("%d:%d: %s", e.Line, e.Column, e.Message()) }

// Message returns the text with the key.
func (e *Error) Message() string {
	if e.Key == "" {
		return e.Text
	}
	return strings.ReplaceAll(e.Key, "/", ".") + ": " + e.Text
}

// WithoutMark returns a text without the byte order mark with which some editors start a
// UTF-8 file (RFC 3629, section 6). Positions in errors do not count the mark.
func WithoutMark(text []byte) []byte { return bytes.TrimPrefix(text, []byte("\ufeff")) }

// Parse returns the roots of the documents in a text; the root of an empty document
// is nil. Anchors, aliases and merge keys are resolved, as YAML 1.1 defines merging: an
// explicit key wins over a merged one.
func Parse(text []byte) ([]ast.Node, error) {
	text = WithoutMark(text)
	file, err := parser.ParseBytes(text, 0)
	if err != nil {
		return nil, explain(err, text)
	}
	roots := make([]ast.Node, len(file.Docs))
	for i, doc := range file.Docs {
		if doc.Body == nil {
			continue
		}
		r := resolver{anchors: map[string]ast.Node{}, open: map[string]bool{}}
		if roots[i], err = r.resolve(doc.Body); err != nil {
			return nil, err
		}
	}
	return roots, nil
}

// Decode decodes a node into a value, after Settle. The root of an empty document
// leaves the value as it is.
func Decode(node ast.Node, into any) error {
	if node == nil {
		return nil
	}
	if err := yaml.NodeToValue(node, into, yaml.Strict()); err != nil {
		return explainDecoding(err)
	}
	return nil
}

// splitName finds a name with a colon in a flow mapping, such as {tickets:read: {}} or
// {tickets:read}. The parser reads the part before the first colon as the key. A flow
// mapping may begin on an earlier line.
var splitName = regexp.MustCompile(`(?:^|[{,])\s*([A-Za-z0-9_./-]+:[A-Za-z0-9_./-]+(?::[A-Za-z0-9_./-]+)*)\s*(?:[:,}]|$)`)

// explain converts an error of the parser: it adds the position and says what to write.
func explain(err error, text []byte) error {
	var at yaml.Error
	if !errors.As(err, &at) || at.GetToken() == nil {
		return &Error{Line: 1, Column: 1, Text: inWords(err.Error())}
	}
	message, position := inWords(at.GetMessage()), at.GetToken().Position
	inFlow := strings.Contains(at.GetMessage(), "'}' must be specified") || strings.Contains(at.GetMessage(), "already defined")
	lines := bytes.Split(text, []byte("\n"))
	if n := position.Line; n >= 1 && n <= len(lines) && inFlow {
		if m := splitName.FindSubmatch(lines[n-1]); m != nil {
			message += fmt.Sprintf("; quote the name with a colon: %q", m[1])
		}
	}
	return &Error{Line: position.Line, Column: position.Column, Text: message}
}

// explainDecoding converts an error of the decoder. A SyntaxError comes from a type that
// decodes itself, and has the words of the product. Settle reports most other mistakes.
func explainDecoding(err error) error {
	var (
		at      yaml.Error
		own     *yaml.SyntaxError
		unknown *yaml.UnknownFieldError
		large   *yaml.OverflowError
		message = "this key needs another type of value: see docs/operator.md"
	)
	if !errors.As(err, &at) || at.GetToken() == nil {
		return &Error{Line: 1, Column: 1, Text: message}
	}
	switch {
	case errors.As(err, &own):
		message = own.Message
	case errors.As(err, &unknown):
		message = strings.Replace(unknown.Message, "unknown field", "unknown key", 1)
	case errors.As(err, &large):
		message = "the number is too large"
	}
	position := at.GetToken().Position
	return &Error{Line: position.Line, Column: position.Column, Text: message}
}

func errorAt(node ast.Node, format string, args ...any) *Error {
	position := node.GetToken().Position
	return &Error{Line: position.Line, Column: position.Column, Text: fmt.Sprintf(format, args...)}
}
