package broker

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"accessbroker.internal/audit"
)

// A Detail is one element of authorization_details (RFC 9396, section 2): what a token is
// good for, in the terms of a type that its entitlement declares. What an element does not
// name is not granted: it has every field that its type declares, and no other.
type Detail struct {
	Type       string
	Actions    []string // sorted, as are the following
	Locations  []string
	DataTypes  []string
	Privileges []string
	Identifier string
	Tool       string
	Arguments  []ArgumentBound // of the tool, sorted by name; an argument that is not here must not be passed
}

// An ArgumentBound is what may be passed as one argument of a tool: a text, a whole number
// or a list of texts.
type ArgumentBound struct {
	Name      string
	Values    []string // the only texts, sorted; empty: any text up to MaxLength
	MaxLength int      // of a text, in characters; zero: see Values
	Number    bool
	Min, Max  int // of a number
	MaxItems  int // of a list, whose items are bounded like a text; zero: it is no list
}

// ParametersType is the type of an element of authorization_details with the parameters of an
// entitlement.
const ParametersType = "urn:access-broker:parameters"

// Bounds of details.
const (
	MaxDetails       = 16
	MaxAllDetails    = 4096 // bytes of their canonical JSON
	MaxDetailItems   = 32   // of a list, and arguments of a tool
	MaxDetailText    = 256  // bytes of an item
	MaxIdentifier    = 512  // bytes
	MaxArgumentText  = 4096 // characters of a free text
	MaxArgumentItems = 1000
	MaxNumber        = 1<<53 - 1
)

// Within reports whether the detail grants nothing that the parent does not grant. It is
// reflexive and transitive.
func (d *Detail) Within(parent *Detail) bool {
	return d.Type == parent.Type && d.Identifier == parent.Identifier && d.Tool == parent.Tool &&
		subset(d.Actions, parent.Actions) && subset(d.Locations, parent.Locations) &&
		subset(d.DataTypes, parent.DataTypes) && subset(d.Privileges, parent.Privileges) &&
		!slices.ContainsFunc(d.Arguments, func(a ArgumentBound) bool {
			i, found := parent.argument(a.Name)
			return !found || !a.within(&parent.Arguments[i])
		})
}

func (d *Detail) argument(name string) (int, bool) {
	return slices.BinarySearchFunc(d.Arguments, name, func(a ArgumentBound, name string) int { return strings.Compare(a.Name, name) })
}

// subset reports whether every item of a is in b. Both are sorted.
func subset(a, b []string) bool {
	return !slices.ContainsFunc(a, func(item string) bool {
		_, found := slices.BinarySearch(b, item)
		return !found
	})
}

// within reports whether the bound allows nothing that the parent does not allow.
func (a *ArgumentBound) within(parent *ArgumentBound) bool {
	switch {
	case a.Number != parent.Number || (a.MaxItems > 0) != (parent.MaxItems > 0):
		return false
	case a.Number:
		return a.Min >= parent.Min && a.Max <= parent.Max
	case a.MaxItems > parent.MaxItems:
		return false
	case len(parent.Values) > 0:
		return len(a.Values) > 0 && subset(a.Values, parent.Values)
	case len(a.Values) > 0:
		return !slices.ContainsFunc(a.Values, func(v string) bool { return characters(v) > parent.MaxLength })
	}
	return a.MaxLength <= parent.MaxLength
}

// Longest returns the length of the longest text that the bound allows, in characters.
func (a *ArgumentBound) Longest() int {
	longest := a.MaxLength
	for _, v := range a.Values {
		longest = max(longest, characters(v))
	}
	return longest
}

// DetailsWithin reports whether details grant nothing that those of a parent do not grant.
// Without details, a grant has the whole power of its scopes: it is the widest.
func DetailsWithin(details, parent []Detail) bool {
	if len(parent) == 0 {
		return true
	}
	return len(details) > 0 && !slices.ContainsFunc(details, func(d Detail) bool {
		return !slices.ContainsFunc(parent, func(p Detail) bool { return d.Within(&p) })
	})
}

// AppendDetails appends details as canonical JSON (RFC 8785), in the form in which tokens,
// introspections and answers carry them.
func AppendDetails(b []byte, details []Detail) []byte {
	b = append(b, '[')
	for i := range details {
		b = details[i].append(comma(b, i))
	}
	return append(b, ']')
}

func comma(b []byte, i int) []byte {
	if i > 0 {
		b = append(b, ',')
	}
	return b
}

// append appends the element without its braces' neighbours; its keys are sorted.
func (d *Detail) append(b []byte) []byte {
	b = append(b, '{')
	b = appendList(b, "actions", d.Actions)
	if len(d.Arguments) > 0 {
		b = append(b, `"arguments":{`...)
		for i := range d.Arguments {
			b = d.Arguments[i].append(comma(b, i))
		}
		b = append(b, `},`...)
	}
	b = appendList(b, "datatypes", d.DataTypes)
	b = appendText(b, "identifier", d.Identifier)
	b = appendList(b, "locations", d.Locations)
	b = appendList(b, "privileges", d.Privileges)
	b = appendText(b, "tool", d.Tool)
	b = append(b, `"type":`...)
	return append(audit.AppendString(b, d.Type), '}')
}

// append appends the bound as a member, in the words of JSON Schema.
func (a *ArgumentBound) append(b []byte) []byte {
	b = append(audit.AppendString(b, a.Name), ':', '{')
	switch {
	case a.Number:
		b = strconv.AppendInt(append(b, `"maximum":`...), int64(a.Max), 10)
		b = strconv.AppendInt(append(b, `,"minimum":`...), int64(a.Min), 10)
	case a.MaxItems > 0:
		b = append(a.appendText(append(b, `"items":{`...)), '}')
		b = strconv.AppendInt(append(b, `,"maxItems":`...), int64(a.MaxItems), 10)
	default:
		b = a.appendText(b)
	}
	return append(b, '}')
}

// appendText appends the bound of a text, or of the items of a list.
func (a *ArgumentBound) appendText(b []byte) []byte {
	if len(a.Values) > 0 {
		b = appendList(b, "enum", a.Values)
		return b[:len(b)-1] // no comma
	}
	return strconv.AppendInt(append(b, `"maxLength":`...), int64(a.MaxLength), 10)
}

func appendList(b []byte, name string, list []string) []byte {
	if len(list) == 0 {
		return b
	}
	b = append(audit.AppendString(b, name), ':', '[')
	for i, item := range list {
		b = audit.AppendString(comma(b, i), item)
	}
	return append(b, ']', ',')
}

func appendText(b []byte, name, text string) []byte {
	if text == "" {
		return b
	}
	return append(audit.AppendString(append(audit.AppendString(b, name), ':'), text), ',')
}

// EqualDetails reports whether two lists of checked details are the same.
func EqualDetails(a, b []Detail) bool {
	return len(a) == len(b) && (len(a) == 0 || string(AppendDetails(nil, a)) == string(AppendDetails(nil, b)))
}

// String returns the element in words: "ticket TCK-1: close, read at https://tickets.acme.test".
// The identifier and the values of arguments are texts of the requester.
func (d *Detail) String() string {
	text := strings.TrimSpace(d.Type + " " + d.Identifier)
	var parts []string
	if len(d.Actions) > 0 {
		parts = append(parts, strings.Join(d.Actions, ", "))
	}
	for _, list := range []struct {
		word  string
		items []string
	}{{"of", d.DataTypes}, {"at", d.Locations}, {"as", d.Privileges}} {
		if len(list.items) > 0 {
			parts = append(parts, list.word+" "+strings.Join(list.items, ", "))
		}
	}
	if d.Tool != "" {
		parts = append(parts, "tool "+d.Tool)
	}
	if len(parts) > 0 {
		text += ": " + strings.Join(parts, " ")
	}
	for i, a := range d.Arguments {
		word := "; "
		if i == 0 {
			word = " with "
		}
		text += word + a.Name + " " + a.Words()
	}
	return text
}

// Words returns what the bound allows, in words.
func (a *ArgumentBound) Words() string {
	text := fmt.Sprintf("of at most %d characters", a.MaxLength)
	if len(a.Values) > 0 {
		quoted := make([]string, len(a.Values))
		for i, v := range a.Values {
			quoted[i] = strconv.Quote(v)
		}
		text = strings.Join(quoted, " or ")
	}
	switch {
	case a.Number:
		return fmt.Sprintf("from %d to %d", a.Min, a.Max)
	case a.MaxItems > 0:
		return fmt.Sprintf("with at most %d items: %s", a.MaxItems, text)
	}
	return text
}

// SortDetails returns details in the form in which requests have them, to compare the two.
func SortDetails(details []Detail) []Detail {
	sorted := slices.Clone(details)
	for i := range sorted {
		d := &sorted[i]
		for _, list := range []*[]string{&d.Actions, &d.Locations, &d.DataTypes, &d.Privileges} {
			*list = slices.Sorted(slices.Values(*list))
		}
		d.Arguments = slices.Clone(d.Arguments)
		for j := range d.Arguments {
			d.Arguments[j].Values = slices.Sorted(slices.Values(d.Arguments[j].Values))
		}
		slices.SortFunc(d.Arguments, func(a, b ArgumentBound) int { return strings.Compare(a.Name, b.Name) })
	}
	return sorted
}
