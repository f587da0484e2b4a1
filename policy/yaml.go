package policy

import (
	"errors"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
)

// yamlProblem gives an error of the YAML library its place.
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

// plain is a string in a list. Within {…}, the YAML library takes [slack:dba]
// for a list of a mapping, although no space follows the colon (YAML 1.2.2,
// section 7.3.3; goccy/go-yaml#832); this puts it together again.
type plain string

// UnmarshalYAML implements yaml.NodeUnmarshaler.
func (p *plain) UnmarshalYAML(node ast.Node) error {
	pair, ok := node.(*ast.MappingValueNode)
	if m, isMapping := node.(*ast.MappingNode); isMapping && len(m.Values) == 1 {
		pair, ok = m.Values[0], true
	}
	if !ok {
		return yaml.NodeToValue(node, (*string)(p))
	}
	key, value := pair.Key.GetToken(), pair.Value.GetToken()
	if value.Position.Line != key.Position.Line || value.Position.Column != key.Position.Column+len(key.Value)+len(":") {
		return yaml.NodeToValue(node, (*string)(p)) // a mapping indeed: let the library refuse it
	}
	*p = plain(key.Value + ":" + value.Value)
	return nil
}

func toStrings(list []plain) []string {
	if list == nil {
		return nil
	}
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = string(s)
	}
	return out
}
