package policy

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cedar-policy/cedar-go/types"

	"accessbroker.internal/broker"
)

// argumentsUID is the same for all requests, because policies can't name it.
var argumentsUID = types.NewEntityUID(typeArguments, "of the tool")

// withDetail returns the context with the only element of authorization_details. decideEach
// decides each element by itself.
func (ev *evaluation) withDetail(context types.Record, details []broker.Detail) (types.Record, error) {
	if len(details) > 1 {
		return context, errors.New("the query has several elements of authorization_details")
	}
	d := &details[0]
	ev.arguments = types.Entity{UID: argumentsUID, Tags: argumentTags(d.Arguments)}
	detail := types.RecordMap{
		"type": types.String(d.Type), "actions": stringSet(d.Actions), "locations": stringSet(d.Locations),
		"datatypes": stringSet(d.DataTypes), "privileges": stringSet(d.Privileges), "arguments": argumentsUID,
	}
	if d.Identifier != "" {
		detail["identifier"] = types.String(d.Identifier)
	}
	if d.Tool != "" {
		detail["tool"] = types.String(d.Tool)
	}
	m := types.RecordMap{"detail": types.NewRecord(detail)}
	for name, value := range context.All() {
		m[name] = value
	}
	return types.NewRecord(m), nil
}

func argumentTags(bounds []broker.ArgumentBound) types.Record {
	m := types.RecordMap{}
	for _, a := range bounds {
		bound := types.RecordMap{
			"max_length": types.Long(a.Longest()), "minimum": types.Long(a.Min), "maximum": types.Long(a.Max), "max_items": types.Long(a.MaxItems),
		}
		if len(a.Values) > 0 { // an empty set is in every set
			bound["values"] = stringSet(a.Values)
		}
		m[types.String(a.Name)] = types.NewRecord(bound)
	}
	return types.NewRecord(m)
}

// decideEach decides a request for each element of its authorization_details. The first
// denial denies. Policies and obligations of all decisions add up.
func (e *Engine) decideEach(q broker.Query, now time.Time) (sum broker.Decision, err error) {
	details := q.Details
	for i := range details {
		q.Details = details[i : i+1]
		d, err := e.decideOne(q, now)
		if err != nil || !d.Permit {
			return d, err
		}
		if i == 0 {
			sum = d
			continue
		}
		sum.Policies = slices.Compact(slices.Sorted(slices.Values(slices.Concat(sum.Policies, d.Policies))))
		for _, reason := range d.Reasons {
			if !slices.Contains(sum.Reasons, reason) {
				sum.Reasons = append(slices.Clip(sum.Reasons), reason)
			}
		}
		sum.Obligations = sum.Obligations.And(d.Obligations)
	}
	// A permit for several elements has one limit, not several.
	sum.Obligations.Limits, sum.Obligations.MaxActive = distinct(sum.Obligations.Limits), distinct(sum.Obligations.MaxActive)
	return sum, nil
}

// distinct returns each limit once, sorted by policy.
func distinct(limits []broker.Limit) []broker.Limit {
	if len(limits) < 2 {
		return limits
	}
	sorted := slices.SortedFunc(slices.Values(limits), func(a, b broker.Limit) int {
		return cmp.Or(cmp.Compare(a.Policy, b.Policy), cmp.Compare(a.Count, b.Count), cmp.Compare(a.Per, b.Per))
	})
	return slices.Compact(sorted)
}

// explained returns the query with the one element that an explanation is about: the first
// that is denied, otherwise the first one. element is empty if the query has only one.
func (e *Engine) explained(q broker.Query, now time.Time) (one broker.Query, element string) {
	if len(q.Details) < 2 {
		return q, ""
	}
	shown := 0
	for i := range q.Details {
		one := q
		one.Details = q.Details[i : i+1]
		if d, err := e.decideOne(one, now); err != nil || !d.Permit {
			shown = i
			break
		}
	}
	element = fmt.Sprintf("element %d of %d: %s", shown+1, len(q.Details), &q.Details[shown])
	q.Details = q.Details[shown : shown+1]
	return q, element
}

// detailVocabulary returns the values that a field of context.detail may have.
func (l *linter) detailVocabulary(r *rule, m mention) (v vocabulary, closed bool) {
	v = vocabulary{owner: r.noneOf("entitlements"), fix: "correct it or declare it in authorization_details of an entitlement"}
	var pick func(name string, t *broker.DetailType) []string
	switch m.field {
	case "context.detail.type":
		v.noun, pick = "type of details", func(name string, _ *broker.DetailType) []string { return []string{name} }
	case "context.detail.actions":
		v.noun, pick = "action", func(_ string, t *broker.DetailType) []string { return t.Actions }
	case "context.detail.locations":
		v.noun, pick = "location", func(_ string, t *broker.DetailType) []string { return t.Locations }
	case "context.detail.datatypes":
		v.noun, pick = "datatype", func(_ string, t *broker.DetailType) []string { return t.DataTypes }
	case "context.detail.privileges":
		v.noun, pick = "privilege", func(_ string, t *broker.DetailType) []string { return t.Privileges }
	case "context.detail.tool":
		v.noun, pick = "tool", func(_ string, t *broker.DetailType) []string { return sortedKeys(t.Tools) }
	default:
		return v, false
	}
	found := set{}
	for _, known := range l.entitlementsFor(r, m) {
		for name, t := range known.Details {
			for _, text := range pick(name, t) {
				found[text] = true
			}
		}
	}
	v.names = sortedKeys(found)
	return v, true
}

// argumentNames returns the names of the arguments of all tools of an entitlement.
func argumentNames(e *broker.Entitlement) (names []string) {
	for _, t := range e.Details {
		for _, tool := range t.Tools {
			names = append(names, sortedKeys(tool.Arguments)...)
		}
	}
	return names
}
