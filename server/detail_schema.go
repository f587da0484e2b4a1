package server

import (
	"encoding/json"
	"maps"
	"slices"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
)

// detailTypes returns the types of authorization_details of all entitlements (RFC 9396,
// section 10). GET /v1/entitlements describes their fields to those who may use them.
func (s *Server) detailTypes() []string {
	all := map[string]bool{}
	for _, e := range s.cfg.Broker.Rules().Catalogue {
		for name := range e.Details {
			all[name] = true
		}
	}
	return append([]string{api.ParametersDetail}, slices.Sorted(maps.Keys(all))...)
}

// A schema is a JSON Schema (draft 2020-12), as far as elements need one.
type schema struct {
	Type        string             `json:"type,omitempty"`
	Description string             `json:"description,omitempty"`
	Const       string             `json:"const,omitempty"`
	Enum        []string           `json:"enum,omitempty"`
	Pattern     string             `json:"pattern,omitempty"`
	Minimum     *int               `json:"minimum,omitempty"`
	Maximum     *int               `json:"maximum,omitempty"`
	MaxItems    int                `json:"maxItems,omitempty"`
	MinItems    int                `json:"minItems,omitempty"`
	Unique      bool               `json:"uniqueItems,omitempty"`
	Items       *schema            `json:"items,omitempty"`
	Properties  map[string]*schema `json:"properties,omitempty"`
	Required    []string           `json:"required,omitempty"`
	Closed      *bool              `json:"additionalProperties,omitempty"`
	OneOf       []*schema          `json:"oneOf,omitempty"`
}

// detailSchemas returns a JSON Schema of the elements of each type of an entitlement.
func detailSchemas(e *broker.Entitlement) map[string]json.RawMessage {
	if len(e.Details) == 0 {
		return nil
	}
	all := make(map[string]json.RawMessage, len(e.Details))
	for name, t := range e.Details {
		text, err := json.Marshal(elementSchema(name, t))
		if err == nil { // strings and numbers always have an encoding
			all[name] = text
		}
	}
	return all
}

func object(description string, properties map[string]*schema, required ...string) *schema {
	slices.Sort(required)
	return &schema{Type: "object", Description: description, Properties: properties, Required: required, Closed: new(bool)}
}

// elementSchema describes an element: it has each field that its type declares.
func elementSchema(name string, t *broker.DetailType) *schema {
	properties := map[string]*schema{"type": {Const: name}}
	for field, items := range map[string][]string{"actions": t.Actions, "locations": t.Locations, "datatypes": t.DataTypes, "privileges": t.Privileges} {
		if len(items) > 0 {
			properties[field] = &schema{Type: "array", MinItems: 1, Unique: true, Items: &schema{Enum: items}}
		}
	}
	if t.Identifier != nil {
		properties["identifier"] = &schema{Type: "string", Pattern: t.Identifier.String()}
	}
	whole := object(t.Description, properties, slices.Collect(maps.Keys(properties))...)
	if len(t.Tools) == 0 {
		return whole
	}
	// Each tool has arguments of its own.
	for _, tool := range slices.Sorted(maps.Keys(t.Tools)) {
		one := maps.Clone(properties)
		one["tool"] = &schema{Const: tool}
		required := append(slices.Clone(whole.Required), "tool")
		if arguments := t.Tools[tool].Arguments; len(arguments) > 0 {
			one["arguments"] = argumentsSchema(arguments)
		}
		whole.OneOf = append(whole.OneOf, object(t.Tools[tool].Description, one, required...))
	}
	return &schema{Description: t.Description, OneOf: whole.OneOf}
}

func argumentsSchema(arguments map[string]broker.Argument) *schema {
	properties := map[string]*schema{}
	for name, a := range arguments {
		properties[name] = boundSchema(&a)
	}
	return object("What may be passed. An argument that is not here must not be passed.", properties)
}

// boundSchema describes the bounds that an element may state for an argument.
func boundSchema(a *broker.Argument) *schema {
	switch {
	case a.Number:
		number := &schema{Type: "integer", Minimum: &a.Min, Maximum: &a.Max}
		return object(a.Description, map[string]*schema{"minimum": number, "maximum": number}, "minimum", "maximum")
	case a.MaxItems > 0:
		least := 1
		most := &schema{Type: "integer", Minimum: &least, Maximum: &a.MaxItems}
		return object(a.Description, map[string]*schema{"maxItems": most, "items": textSchema(a, "")}, "items", "maxItems")
	}
	return textSchema(a, a.Description)
}

// textSchema describes the bound of a text: some texts, or any up to a length.
func textSchema(a *broker.Argument, description string) *schema {
	text := &schema{Type: "string", Enum: a.Values}
	if a.Pattern != nil {
		text.Pattern = a.Pattern.String()
	}
	values := object(description, map[string]*schema{"enum": {Type: "array", MinItems: 1, MaxItems: broker.MaxDetailItems, Unique: true, Items: text}}, "enum")
	if len(a.Values) > 0 {
		return values
	}
	least := 1
	length := object(description, map[string]*schema{"maxLength": {Type: "integer", Minimum: &least, Maximum: &a.MaxLength}}, "maxLength")
	return &schema{OneOf: []*schema{values, length}}
}
