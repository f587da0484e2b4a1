package api

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// An AuthorizationDetail is an element of authorization_details (RFC 9396, section 2): the
// parameters of the entitlement, or a fine grant of a type that the entitlement declares. What
// a fine grant does not name is not granted.
type AuthorizationDetail struct {
	Type       string            `json:"type"` // of a fine grant; for parameters, the entitlement or ParametersDetail
	Parameters map[string]string `json:"parameters,omitempty"`

	Actions    []string                 `json:"actions,omitempty"`
	Locations  []string                 `json:"locations,omitempty"`
	DataTypes  []string                 `json:"datatypes,omitempty"`
	Privileges []string                 `json:"privileges,omitempty"`
	Identifier string                   `json:"identifier,omitempty"`
	Tool       string                   `json:"tool,omitempty"`
	Arguments  map[string]ArgumentBound `json:"arguments,omitempty"` // what may be passed to the tool, by argument

	// Unknown are the members of a decoded element that this version does not know, sorted.
	Unknown []string `json:"-"`
}

// An ArgumentBound is what may be passed as one argument, in the words of JSON Schema: enum
// or maxLength of a text, minimum and maximum of a whole number, maxItems and items of a list
// of texts.
type ArgumentBound struct {
	TextBound
	Minimum  *int       `json:"minimum,omitempty"`
	Maximum  *int       `json:"maximum,omitempty"`
	MaxItems int        `json:"maxItems,omitempty"`
	Items    *ListBound `json:"items,omitempty"`

	Unknown []string `json:"-"` // see AuthorizationDetail
}

// A TextBound has the only texts, or the greatest length of any text in characters.
type TextBound struct {
	Enum      []string `json:"enum,omitempty"`
	MaxLength int      `json:"maxLength,omitempty"`
}

// A ListBound bounds the items of a list.
type ListBound struct {
	TextBound
	Unknown []string `json:"-"` // see AuthorizationDetail
}

// UnmarshalJSON implements json.Unmarshaler. Members whose names differ from those of the
// fields by their case are unknown, unlike for encoding/json.
func (d *AuthorizationDetail) UnmarshalJSON(text []byte) error {
	type plain AuthorizationDetail
	known, unknown, err := members(text, "type", "parameters", "actions", "locations", "datatypes", "privileges", "identifier", "tool", "arguments")
	if err == nil {
		err = json.Unmarshal(known, (*plain)(d))
	}
	d.Unknown = unknown
	return err
}

// UnmarshalJSON implements json.Unmarshaler.
func (b *ArgumentBound) UnmarshalJSON(text []byte) error {
	type plain ArgumentBound
	known, unknown, err := members(text, "enum", "maxLength", "minimum", "maximum", "maxItems", "items")
	if err == nil {
		err = json.Unmarshal(known, (*plain)(b))
	}
	b.Unknown = unknown
	return err
}

// UnmarshalJSON implements json.Unmarshaler.
func (b *ListBound) UnmarshalJSON(text []byte) error {
	known, unknown, err := members(text, "enum", "maxLength")
	if err == nil {
		err = json.Unmarshal(known, &b.TextBound)
	}
	b.Unknown = unknown
	return err
}

// members returns the object with the known members alone, and the names of the others.
func members(text []byte, names ...string) (known []byte, unknown []string, err error) {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(text, &all); err != nil {
		return nil, nil, err
	}
	for name := range all {
		if !slices.Contains(names, name) {
			unknown = append(unknown, name)
			delete(all, name)
		}
	}
	slices.Sort(unknown)
	if known, err = json.Marshal(all); err != nil {
		err = fmt.Errorf("encoding the known members: %w", err)
	}
	return known, unknown, err
}

// Words returns the element in words: "ticket TCK-1: close, read at https://tickets.acme.test".
// The identifier and the values of arguments are texts of the requester.
func (d *AuthorizationDetail) Words() string {
	text := strings.TrimSpace(d.Type + " " + d.Identifier)
	var parts []string
	for _, list := range []struct {
		word  string
		items []string
	}{{"", d.Actions}, {"of ", d.DataTypes}, {"at ", d.Locations}, {"as ", d.Privileges}} {
		if len(list.items) > 0 {
			parts = append(parts, list.word+strings.Join(list.items, ", "))
		}
	}
	words := strings.Join(parts, " ")
	if d.Tool != "" {
		words = strings.TrimPrefix(words+", tool "+d.Tool, ", ")
	}
	if words != "" {
		text += ": " + words
	}
	word := " with "
	for _, name := range slices.Sorted(maps.Keys(d.Arguments)) {
		a := d.Arguments[name]
		text, word = text+word+name+" "+a.words(), "; "
	}
	return text
}

func (b *ArgumentBound) words() string {
	switch {
	case b.Minimum != nil && b.Maximum != nil:
		return fmt.Sprintf("from %d to %d", *b.Minimum, *b.Maximum)
	case b.Items != nil:
		return fmt.Sprintf("with at most %d items: %s", b.MaxItems, b.Items.words())
	}
	return b.TextBound.words()
}

func (b *TextBound) words() string {
	if len(b.Enum) == 0 {
		return fmt.Sprintf("of at most %d characters", b.MaxLength)
	}
	quoted := make([]string, len(b.Enum))
	for i, v := range b.Enum {
		quoted[i] = strconv.Quote(v)
	}
	return strings.Join(quoted, " or ")
}
