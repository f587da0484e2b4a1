package policy

import "accessbroker.internal/broker"

// A detailText is an element of authorization_details, as scenarios state it.
type detailText struct {
	Type       string               `yaml:"type"`
	Actions    []string             `yaml:"actions"`
	Locations  []string             `yaml:"locations"`
	DataTypes  []string             `yaml:"datatypes"`
	Privileges []string             `yaml:"privileges"`
	Identifier string               `yaml:"identifier"`
	Tool       string               `yaml:"tool"`
	Arguments  map[string]boundText `yaml:"arguments"`
}

type boundText struct {
	Enum      []string `yaml:"enum"`
	MaxLength int      `yaml:"maxLength"`
	Minimum   *int     `yaml:"minimum"`
	Maximum   *int     `yaml:"maximum"`
	MaxItems  int      `yaml:"maxItems"`
	Items     struct {
		Enum      []string `yaml:"enum"`
		MaxLength int      `yaml:"maxLength"`
	} `yaml:"items"`
}

// details converts elements. The entitlement checks them.
func details(texts []detailText) (list []broker.Detail) {
	for _, t := range texts {
		d := broker.Detail{Type: t.Type, Actions: t.Actions, Locations: t.Locations, DataTypes: t.DataTypes, Privileges: t.Privileges, Identifier: t.Identifier, Tool: t.Tool}
		for _, name := range sortedKeys(t.Arguments) {
			d.Arguments = append(d.Arguments, t.Arguments[name].bound(name))
		}
		list = append(list, d)
	}
	return list
}

func (b boundText) bound(name string) broker.ArgumentBound {
	a := broker.ArgumentBound{Name: name, Values: b.Enum, MaxLength: b.MaxLength, MaxItems: b.MaxItems}
	if b.MaxItems > 0 {
		a.Values, a.MaxLength = b.Items.Enum, b.Items.MaxLength
	}
	if b.Minimum != nil && b.Maximum != nil {
		a.Number, a.Min, a.Max = true, *b.Minimum, *b.Maximum
	}
	return a
}
