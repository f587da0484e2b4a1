package config

import (
	"fmt"
	"maps"
	"regexp"
	"slices"

	"accessbroker.internal/broker"
)

type detailTypeFile struct {
	Description string              `yaml:"description"`
	Actions     []string            `yaml:"actions"`
	Locations   []string            `yaml:"locations"`
	DataTypes   []string            `yaml:"datatypes"`
	Privileges  []string            `yaml:"privileges"`
	Identifier  string              `yaml:"identifier"` // a pattern
	Tools       map[string]toolFile `yaml:"tools"`
}

type toolFile struct {
	Description string                  `yaml:"description"`
	Arguments   map[string]argumentFile `yaml:"arguments"`
}

type argumentFile struct {
	Description string   `yaml:"description"`
	Enum        []string `yaml:"enum"`
	Pattern     string   `yaml:"pattern"`
	MaxLength   int      `yaml:"max_length"`
	Minimum     *int     `yaml:"minimum"`
	Maximum     *int     `yaml:"maximum"`
	MaxItems    int      `yaml:"max_items"` // a list of such texts
}

var detailTypeForm = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9._:/-]{0,127}$`)

// details checks the types of authorization_details of an entitlement.
func (c *checker) details(key string, list map[string]detailTypeFile, e *broker.Entitlement) map[string]*broker.DetailType {
	if len(list) == 0 {
		return nil
	}
	if e.Audience == "" {
		c.report(key, "fine grants need the broker's own tokens, because no other credential can carry them: remove this key")
	}
	if len(list) > broker.MaxDetailItems {
		c.report(key, "must be at most %d types", broker.MaxDetailItems)
	}
	out := map[string]*broker.DetailType{}
	for _, name := range slices.Sorted(maps.Keys(list)) {
		at := key + "/" + name
		if !detailTypeForm.MatchString(name) || name == broker.ParametersType || name == e.Name {
			c.report(at, "can't name a type: use 1 to 128 of A-Z, a-z, 0-9 and .-_:/, start with a letter, and leave the name of the entitlement and %s to its parameters", broker.ParametersType)
		}
		out[name] = c.detailType(at, list[name])
	}
	return out
}

func (c *checker) detailType(key string, f detailTypeFile) *broker.DetailType {
	t := &broker.DetailType{
		Description: c.text(key+"/description", f.Description),
		Actions:     c.detailItems(key+"/actions", f.Actions), Locations: c.detailItems(key+"/locations", f.Locations),
		DataTypes: c.detailItems(key+"/datatypes", f.DataTypes), Privileges: c.detailItems(key+"/privileges", f.Privileges),
	}
	if len(t.Actions)+len(t.Locations)+len(t.DataTypes)+len(t.Privileges)+len(f.Identifier)+len(f.Tools) == 0 {
		c.report(key, "the type has no fields: declare actions, locations, datatypes, privileges, identifier or tools")
	}
	if f.Identifier != "" {
		t.Identifier = c.wholePattern(key+"/identifier", f.Identifier)
	}
	if len(f.Tools) > broker.MaxDetailItems {
		c.report(key+"/tools", "must be at most %d", broker.MaxDetailItems)
	}
	for _, name := range slices.Sorted(maps.Keys(f.Tools)) {
		if t.Tools == nil {
			t.Tools = map[string]broker.Tool{}
		}
		t.Tools[name] = c.tool(key+"/tools/"+name, name, f.Tools[name])
	}
	return t
}

func (c *checker) tool(key, name string, f toolFile) broker.Tool {
	c.name(key, name)
	if len(f.Arguments) > broker.MaxDetailItems {
		c.report(key+"/arguments", "must be at most %d", broker.MaxDetailItems)
	}
	tool := broker.Tool{Description: c.text(key+"/description", f.Description), Arguments: map[string]broker.Argument{}}
	for _, name := range slices.Sorted(maps.Keys(f.Arguments)) {
		at := key + "/arguments/" + name
		c.name(at, name)
		a := c.argument(at, f.Arguments[name])
		a.Name = name
		tool.Arguments[name] = a
	}
	return tool
}

// argument checks the widest bound of an argument. It states exactly one kind.
func (c *checker) argument(key string, f argumentFile) (a broker.Argument) {
	a.Description = c.text(key+"/description", f.Description)
	text := len(f.Enum) > 0 || f.Pattern != "" || f.MaxLength != 0
	number := f.Minimum != nil || f.Maximum != nil
	switch {
	case number && (text || f.MaxItems != 0 || f.Minimum == nil || f.Maximum == nil),
		!number && !text, len(f.Enum) > 0 && (f.Pattern != "" || f.MaxLength != 0), f.Pattern != "" && f.MaxLength == 0:
		c.report(key, "write enum for some texts, max_length (with or without pattern) for any text, or minimum and maximum for a whole number; max_items makes it a list of texts")
		return a
	case number:
		a.Number, a.Min, a.Max = true, *f.Minimum, *f.Maximum
		if a.Min > a.Max || a.Min < -broker.MaxNumber || a.Max > broker.MaxNumber {
			c.report(key, "minimum must not exceed maximum, and both must be within 2^53-1 of zero")
		}
		return a
	}
	if f.MaxLength < 0 || f.MaxLength > broker.MaxArgumentText {
		c.report(key+"/max_length", "must be 1 to %d characters", broker.MaxArgumentText)
	}
	if f.MaxItems < 0 || f.MaxItems > broker.MaxArgumentItems {
		c.report(key+"/max_items", "must be 1 to %d", broker.MaxArgumentItems)
	}
	if f.Pattern != "" {
		a.Pattern = c.wholePattern(key+"/pattern", f.Pattern)
	}
	a.Values, a.MaxLength, a.MaxItems = c.detailItems(key+"/enum", f.Enum), f.MaxLength, f.MaxItems
	return a
}

// detailItems returns a list of short lines, sorted.
func (c *checker) detailItems(key string, list []string) []string {
	if len(list) > broker.MaxDetailItems {
		c.report(key, "must be at most %d items", broker.MaxDetailItems)
	}
	sorted := slices.Sorted(slices.Values(list))
	for i, item := range sorted {
		if item == "" || broker.CheckLine(broker.ErrInvalidDetails, "an item", item, broker.MaxDetailText) != nil {
			c.report(key, "an item must be one line of 1 to %d bytes", broker.MaxDetailText)
			break
		}
		if i > 0 && sorted[i-1] == item {
			c.report(key, "%s is repeated: remove one", fmt.Sprintf("%q", item))
		}
	}
	return sorted
}

// wholePattern compiles a pattern that a whole value must match. It must compile without the
// group, too: "a)|(?:.*" would close it.
func (c *checker) wholePattern(key, text string) *regexp.Regexp {
	pattern, err := regexp.Compile(text)
	if err == nil {
		pattern, err = regexp.Compile("^(?:" + text + ")$")
	}
	if err != nil {
		c.report(key, "write a regular expression (RE2) that the whole value must match, such as \"[A-Z]{1,5}-[0-9]{1,9}\"")
	}
	return pattern
}
