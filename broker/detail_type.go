package broker

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// A DetailType is a type of authorization_details that an entitlement declares. It is
// immutable. An element has each field that the type declares.
type DetailType struct {
	Description string
	Actions     []string        // that elements may name, sorted, as are the following; empty: elements have no actions
	Locations   []string        `json:",omitempty"`
	DataTypes   []string        `json:",omitempty"`
	Privileges  []string        `json:",omitempty"`
	Identifier  *regexp.Regexp  `json:",omitempty"` // anchored; nil: elements have no identifier
	Tools       map[string]Tool `json:",omitempty"` // by name; empty: elements name no tool
}

// A Tool is a tool that elements of a type may name.
type Tool struct {
	Description string
	Arguments   map[string]Argument
}

// An Argument is the widest bound of a tool's argument.
type Argument struct {
	ArgumentBound
	Pattern     *regexp.Regexp `json:",omitempty"` // anchored; each text matches it; nil: any
	Description string
}

// CheckDetails returns the details in their one form, or refuses those that the entitlement
// does not declare. Nothing is ignored: an element that the broker does not understand could
// be meant to narrow the token.
func (e *Entitlement) CheckDetails(asked []Detail) ([]Detail, error) {
	if len(asked) == 0 {
		return nil, nil
	}
	if len(asked) > MaxDetails {
		return nil, badDetail("at most %d elements", MaxDetails)
	}
	details := make([]Detail, len(asked))
	for i := range asked {
		known, ok := e.Details[asked[i].Type]
		if !ok {
			return nil, badDetail("element %d: there is no such type; the types of %s are: %s", i+1, e.Name, cmp.Or(strings.Join(slices.Sorted(maps.Keys(e.Details)), ", "), "none"))
		}
		var err error
		if details[i], err = known.check(&asked[i]); err != nil {
			return nil, badDetail("element %d (%s): %v", i+1, asked[i].Type, err)
		}
		for j := range i {
			if EqualDetails(details[j:j+1], details[i:i+1]) {
				return nil, badDetail("element %d repeats element %d", i+1, j+1)
			}
		}
	}
	if size := len(AppendDetails(nil, details)); size > MaxAllDetails {
		return nil, badDetail("the elements are longer than %d bytes in total", MaxAllDetails)
	}
	return details, nil
}

func badDetail(format string, args ...any) error {
	return refuse(ErrInvalidDetails, "authorization_details: "+fmt.Sprintf(format, args...))
}

// check returns the element in its one form, or an error if the type does not allow it.
func (t *DetailType) check(asked *Detail) (d Detail, err error) {
	d = Detail{Type: asked.Type, Identifier: asked.Identifier, Tool: asked.Tool}
	for _, f := range []struct {
		name       string
		from, most []string
		to         *[]string
	}{
		{"actions", asked.Actions, t.Actions, &d.Actions}, {"locations", asked.Locations, t.Locations, &d.Locations},
		{"datatypes", asked.DataTypes, t.DataTypes, &d.DataTypes}, {"privileges", asked.Privileges, t.Privileges, &d.Privileges},
	} {
		if *f.to, err = checkItems(f.name, f.from, f.most); err != nil {
			return d, err
		}
	}
	if err := t.checkIdentifier(d.Identifier); err != nil {
		return d, err
	}
	d.Arguments, err = t.checkTool(asked)
	return d, err
}

// checkItems returns a list sorted. It is not empty if the type declares the list: an absent
// list grants nothing, and must never mean everything.
func checkItems(name string, asked, most []string) ([]string, error) {
	switch {
	case len(most) == 0 && len(asked) == 0:
		return nil, nil
	case len(most) == 0:
		return nil, fmt.Errorf("the type has no %s", name)
	case len(asked) == 0:
		return nil, fmt.Errorf("name at least one of %s: %s", name, strings.Join(most, ", "))
	}
	sorted := slices.Sorted(slices.Values(asked))
	for i, item := range sorted {
		if i > 0 && item == sorted[i-1] {
			return nil, fmt.Errorf("%s: an item is repeated", name)
		}
		if _, known := slices.BinarySearch(most, item); !known {
			return nil, fmt.Errorf("%s: there is no such item; the items are: %s", name, strings.Join(most, ", "))
		}
	}
	return sorted, nil
}

// checkIdentifier checks the one resource that an element names. Identifiers are ASCII: a
// letter of another script could look like one of them.
func (t *DetailType) checkIdentifier(id string) error {
	switch {
	case t.Identifier == nil && id == "":
		return nil
	case t.Identifier == nil:
		return fmt.Errorf("the type has no identifier")
	case id == "":
		return fmt.Errorf("identifier is missing: name one resource")
	case len(id) > MaxIdentifier || strings.ContainsFunc(id, func(r rune) bool { return r <= ' ' || r > '~' }):
		return fmt.Errorf("identifier must have 1 to %d printable ASCII characters without spaces", MaxIdentifier)
	case !t.Identifier.MatchString(id):
		return fmt.Errorf("identifier does not match %s", t.Identifier)
	}
	return nil
}

// checkTool returns the bounds of the arguments of a tool.
func (t *DetailType) checkTool(asked *Detail) (bounds []ArgumentBound, err error) {
	tool, known := t.Tools[asked.Tool]
	switch {
	case len(t.Tools) == 0 && asked.Tool == "" && len(asked.Arguments) == 0:
		return nil, nil
	case len(t.Tools) == 0:
		return nil, fmt.Errorf("the type has no tools")
	case !known:
		return nil, fmt.Errorf("name one tool of: %s", strings.Join(slices.Sorted(maps.Keys(t.Tools)), ", "))
	}
	for _, a := range asked.Arguments {
		most, ok := tool.Arguments[a.Name]
		if !ok {
			return nil, fmt.Errorf("tool %s has no such argument; the arguments are: %s", asked.Tool, cmp.Or(strings.Join(slices.Sorted(maps.Keys(tool.Arguments)), ", "), "none"))
		}
		bound, err := most.check(&a)
		if err != nil {
			return nil, fmt.Errorf("argument %s: %w", a.Name, err)
		}
		bounds = append(bounds, bound)
	}
	slices.SortFunc(bounds, func(a, b ArgumentBound) int { return strings.Compare(a.Name, b.Name) })
	for i := range bounds {
		if i > 0 && bounds[i].Name == bounds[i-1].Name {
			return nil, fmt.Errorf("argument %s is repeated", bounds[i].Name)
		}
	}
	return bounds, nil
}

// check returns a bound in its one form, or an error if it allows more than the declared one.
func (most *Argument) check(asked *ArgumentBound) (ArgumentBound, error) {
	a := *asked
	if len(a.Values) > MaxDetailItems {
		return a, fmt.Errorf("at most %d values", MaxDetailItems)
	}
	a.Values = slices.Sorted(slices.Values(asked.Values))
	for i, v := range a.Values {
		switch {
		case i > 0 && a.Values[i-1] == v:
			return a, fmt.Errorf("a value is repeated")
		case len(v) > MaxDetailText:
			return a, fmt.Errorf("a value is longer than %d bytes", MaxDetailText)
		case CheckLine(ErrInvalidDetails, "a value", v, MaxDetailText) != nil:
			return a, fmt.Errorf("a value is not one line of plain text")
		case most.Pattern != nil && !most.Pattern.MatchString(v):
			return a, fmt.Errorf("a value does not match %s", most.Pattern)
		}
	}
	if a.Number && a.Min > a.Max {
		return a, fmt.Errorf("minimum is above maximum")
	}
	if !a.within(&most.ArgumentBound) {
		return a, fmt.Errorf("it is %s at most", most.Words())
	}
	return a, nil
}

// characters counts the characters of a text, as JSON Schema does.
func characters(s string) int { return utf8.RuneCountInString(s) }
