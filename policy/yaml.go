package policy

import (
	"errors"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
)

// yamlProblem converts an error of the YAML library, with its position if it
// has one.
func yamlProblem(src *source, err error) Problem {
	p := Problem{File: src.name, Text: err.Error()}
	var at yaml.Error
	if errors.As(err, &at) {
		p.Text = at.GetMessage()
		if t := at.GetToken(); t != nil {
			p.Line, p.Column = t.Position.Line, t.Position.Column
		}
	}
	return p
}

// listItem is a string in a YAML list. Inside {…}, the YAML library parses
// [slack:dba] as a list with a mapping, although no space follows the colon
// (YAML 1.2.2, section 7.3.3; goccy/go-yaml#832). listItem restores the string.
type listItem string

// UnmarshalYAML implements yaml.NodeUnmarshaler.
func (p *listItem) UnmarshalYAML(node ast.Node) error {
	pair, ok := node.(*ast.MappingValueNode)
	if m, isMapping := node.(*ast.MappingNode); isMapping && len(m.Values) == 1 {
		pair, ok = m.Values[0], true
	}
	if !ok {
		return yaml.NodeToValue(node, (*string)(p))
	}
	key, value := pair.Key.GetToken(), pair.Value.GetToken()
	if value.Position.Line != key.Position.Line || value.Position.Column != key.Position.Column+len(key.Value)+len(":") {
		return yaml.NodeToValue(node, (*string)(p)) // a real mapping: the library returns an error
	}
	*p = listItem(key.Value + ":" + value.Value)
	return nil
}

func toStrings(list []listItem) []string {
	if list == nil {
		return nil
	}
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = string(s)
	}
	return out
}
