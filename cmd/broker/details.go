package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
)

// A detailsFlag is authorization_details as JSON.
type detailsFlag []api.AuthorizationDetail

// String returns "", because there is no default.
func (detailsFlag) String() string { return "" }

// Type returns the name of the value in help.
func (detailsFlag) Type() string { return "json" }

// Set reads one element, or an array of elements.
func (d *detailsFlag) Set(text string) error {
	var list []api.AuthorizationDetail
	if trimmed := strings.TrimSpace(text); strings.HasPrefix(trimmed, "{") {
		text = "[" + trimmed + "]"
	}
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return errors.New(`write an element such as {"type": "ticket", "actions": ["read"], "identifier": "TCK-1"}, or an array of them`)
	}
	for _, one := range list {
		if len(one.Unknown) > 0 {
			return fmt.Errorf("there is no field %q", one.Unknown[0])
		}
	}
	*d = append(*d, list...)
	return nil
}

// fine returns the elements as policy decides them.
func (d detailsFlag) fine() (list []broker.Detail) {
	for _, a := range d {
		one := broker.Detail{Type: a.Type, Actions: a.Actions, Locations: a.Locations, DataTypes: a.DataTypes, Privileges: a.Privileges, Identifier: a.Identifier, Tool: a.Tool}
		for name, b := range a.Arguments {
			bound := broker.ArgumentBound{Name: name, Values: b.Enum, MaxLength: b.MaxLength, MaxItems: b.MaxItems}
			if b.Items != nil {
				bound.Values, bound.MaxLength = b.Items.Enum, b.Items.MaxLength
			}
			if b.Minimum != nil && b.Maximum != nil {
				bound.Number, bound.Min, bound.Max = true, *b.Minimum, *b.Maximum
			}
			one.Arguments = append(one.Arguments, bound)
		}
		list = append(list, one)
	}
	return list
}
