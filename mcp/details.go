package mcp

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/google/jsonschema-go/jsonschema"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
)

// Fine grants (RFC 9396) have the form of /v1. A model learns the types of an entitlement
// from list_access, as JSON Schema and in words.

type detail = api.AuthorizationDetail

// A DetailType is a type of fine grants that an entitlement takes.
type DetailType struct {
	Schema *jsonschema.Schema `json:"schema" jsonschema:"the JSON Schema of an element of authorization_details"`
	Quotes []Quote            `json:"quotes,omitempty"`
}

// detailHints describe the fields of an element.
var detailHints = map[string]string{
	"type":       "the name of the type, exactly as list_access has it",
	"parameters": "only for the type " + api.ParametersDetail + ": the parameters of the entitlement. Prefer the argument parameters",
	"actions":    "what may be done, and nothing else",
	"locations":  "where",
	"datatypes":  "on which kinds of data",
	"privileges": "in which role",
	"identifier": "the one resource",
	"tool":       "the one tool",
	"arguments":  "what may be passed to the tool, by argument: enum or maxLength for a text, minimum and maximum for a whole number, or maxItems and items for a list of texts. An argument that is not here must not be passed",
}

// detailSchema is the schema of an element of any type.
func detailSchema() *jsonschema.Schema {
	s, err := jsonschema.ForType(reflect.TypeFor[detail](), &jsonschema.ForOptions{})
	if err != nil {
		panic(err) // a type of package api without a schema: no tool works
	}
	for name, property := range s.Properties {
		property.Description = detailHints[name]
		if property.Items != nil {
			property.MaxItems = new(int)
			*property.MaxItems = broker.MaxDetailItems
		}
	}
	return s
}

// known refuses elements with a member that the broker does not know. The member may be
// meant to narrow the grant, and the client's encoding would drop it.
func known(list []detail) ([]detail, error) {
	wrong := func(i int, what string) error {
		return &fault{Code: api.InvalidDetails, What: fmt.Sprintf("Element %d of authorization_details: %s.", i+1, what), Next: next[api.InvalidDetails]}
	}
	if len(list) > broker.MaxDetails {
		return nil, wrong(broker.MaxDetails, fmt.Sprintf("there are at most %d elements", broker.MaxDetails))
	}
	for i, d := range list {
		if len(d.Unknown) > 0 {
			return nil, wrong(i, fmt.Sprintf("there is no field %.60q", quoted(d.Unknown[0])))
		}
		for _, name := range slices.Sorted(maps.Keys(d.Arguments)) {
			b := d.Arguments[name]
			unknown := b.Unknown
			if b.Items != nil {
				unknown = append(unknown, b.Items.Unknown...)
			}
			if len(unknown) > 0 {
				return nil, wrong(i, fmt.Sprintf("the bound of argument %.60q has no field %.60q", quoted(name), quoted(unknown[0])))
			}
		}
	}
	return list, nil
}

// detailTypes returns the types of an offer. The operator's descriptions are not part of
// the schemas but quotations next to them.
func detailTypes(offered map[string]json.RawMessage) map[string]DetailType {
	var types map[string]DetailType
	for name, text := range offered {
		schema := new(jsonschema.Schema)
		if json.Unmarshal(text, schema) != nil {
			continue // a broker of another version: its errors name what it expects
		}
		if types == nil {
			types = map[string]DetailType{}
		}
		types[name] = DetailType{schema, descriptions(nil, "operator", schema)}
	}
	return types
}

// descriptions moves the descriptions of a schema into quotations.
func descriptions(list []Quote, from string, s *jsonschema.Schema) []Quote {
	if s == nil {
		return list
	}
	if tool := constant(s.Properties["tool"]); tool != "" {
		from = "operator, of tool " + tool
	}
	if s.Description != "" && s.Description != argumentsRule {
		list = quote(list, from, s.Description)
	}
	s.Description = ""
	for _, name := range slices.Sorted(maps.Keys(s.Properties)) {
		below := from
		if name == "arguments" {
			below += ", argument "
		} else if strings.HasSuffix(from, ", argument ") {
			below += name
		}
		list = descriptions(list, below, s.Properties[name])
	}
	for _, one := range s.OneOf {
		list = descriptions(list, from, one)
	}
	return list
}

// argumentsRule is a sentence of the broker in its schemas, which the description of
// request_access has.
const argumentsRule = "What may be passed. An argument that is not here must not be passed."

func constant(s *jsonschema.Schema) string {
	if s == nil || s.Const == nil {
		return ""
	}
	text, _ := (*s.Const).(string)
	return text
}

// typeInWords describes the elements of a type in one line.
func typeInWords(name string, s *jsonschema.Schema) string {
	fields := []string{"type " + strconv.Quote(quoted(name))}
	variants, common := s.OneOf, s
	if len(variants) > 0 {
		common = variants[0]
	}
	for _, field := range []string{"actions", "locations", "datatypes", "privileges"} {
		if p := common.Properties[field]; p != nil && p.Items != nil {
			fields = append(fields, field+" from "+values(p.Items.Enum))
		}
	}
	if p := common.Properties["identifier"]; p != nil {
		fields = append(fields, "identifier matching "+quoted(p.Pattern))
	}
	var tools []string
	for _, v := range variants {
		text := quoted(constant(v.Properties["tool"]))
		if a := v.Properties["arguments"]; a != nil {
			var bounds []string
			for _, argument := range slices.Sorted(maps.Keys(a.Properties)) {
				bounds = append(bounds, quoted(argument)+": "+boundInWords(a.Properties[argument]))
			}
			text += " with arguments {" + strings.Join(bounds, "; ") + "}"
		}
		tools = append(tools, text)
	}
	if len(tools) > 0 {
		fields = append(fields, "tool, one of: "+strings.Join(tools, ", or "))
	}
	return "authorization_details: each element has all of " + strings.Join(fields, "; ")
}

// boundInWords describes the widest bound of an argument.
func boundInWords(s *jsonschema.Schema) string {
	if len(s.OneOf) > 0 { // some texts, or any up to a length
		var kinds []string
		for _, one := range s.OneOf {
			kinds = append(kinds, boundInWords(one))
		}
		return strings.Join(kinds, " or ")
	}
	switch p := s.Properties; {
	case p["minimum"] != nil:
		return "minimum and maximum within " + number(p["minimum"].Minimum) + " to " + number(p["minimum"].Maximum)
	case p["maxItems"] != nil && p["items"] != nil:
		return "maxItems up to " + number(p["maxItems"].Maximum) + " and items with " + boundInWords(p["items"])
	case p["maxLength"] != nil:
		return "maxLength up to " + number(p["maxLength"].Maximum)
	case p["enum"] != nil && p["enum"].Items != nil:
		if texts := p["enum"].Items; len(texts.Enum) > 0 {
			return "enum from " + values(texts.Enum)
		} else if texts.Pattern != "" {
			return "enum of texts matching " + quoted(texts.Pattern)
		}
		return "enum of texts"
	}
	return "as the schema describes"
}

func number(n *float64) string {
	if n == nil {
		return "any"
	}
	return strconv.FormatFloat(*n, 'f', -1, 64)
}

func values(list []any) string {
	texts := make([]string, len(list))
	for i, v := range list {
		texts[i] = strconv.Quote(quoted(fmt.Sprint(v)))
	}
	return cmp.Or(strings.Join(texts, ", "), "none")
}
