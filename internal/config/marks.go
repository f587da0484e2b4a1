package config

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"

	"accessbroker.internal/broker"
)

// ceilingFile is a list of scopes, or "all".
type ceilingFile struct {
	scopes []string
	all    string
}

// YAMLForm implements strictyaml.Former.
func (ceilingFile) YAMLForm(isList bool) any {
	if isList {
		return []string(nil)
	}
	return ""
}

// UnmarshalYAML implements yaml.NodeUnmarshaler.
func (f *ceilingFile) UnmarshalYAML(node ast.Node) error {
	if _, isList := node.(*ast.SequenceNode); isList {
		return yaml.NodeToValue(node, &f.scopes, yaml.Strict())
	}
	return yaml.NodeToValue(node, &f.all, yaml.Strict())
}

// marks reads the texts and the bounds of a path's labels.
func (c *checker) marks(key string, m *workloadFile, labels *broker.WorkloadLabels) {
	labels.Purpose = c.shortText(key+"/purpose", m.Purpose, broker.MaxPurpose)
	labels.Model = c.shortText(key+"/model", m.Model, broker.MaxModel)
	if m.Ends != "" {
		labels.Ends = c.end(key+"/ends", m.Ends)
	}
	if m.Ceiling == nil {
		return
	}
	labels.Ceiling = &broker.Ceiling{Parts: []broker.CeilingPart{}}
	for _, name := range slices.Sorted(maps.Keys(*m.Ceiling)) {
		labels.Ceiling.Parts = append(labels.Ceiling.Parts, broker.CeilingPart{Entitlement: name, Scopes: c.ceilingScopes(key+"/ceiling/"+name, (*m.Ceiling)[name])})
	}
}

// ceilingScopes returns the scopes of a part of a ceiling; nil for all. An empty list is a
// mistake: it would be taken for either all or nothing.
func (c *checker) ceilingScopes(key string, f ceilingFile) []string {
	switch {
	case f.all == "all":
		return nil
	case f.all != "" || len(f.scopes) == 0:
		c.report(key, "write all, or a list of at least one scope; remove the entitlement to allow nothing of it")
		return nil
	}
	sorted := slices.Sorted(slices.Values(f.scopes))
	if len(slices.Compact(slices.Clone(sorted))) < len(sorted) {
		c.report(key, "a scope is repeated: remove one")
	}
	return slices.Compact(sorted)
}

// shortText is text with a bound of its own, for a text in rows and pages.
func (c *checker) shortText(key, text string, most int) string {
	text = c.text(key, text)
	if len(text) > most && len(text) <= longestText {
		c.report(key, "must be at most %d bytes", most)
	}
	return text
}

// end reads when something ends: a day, which is the last one, or a time.
func (c *checker) end(key, text string) time.Time {
	at, err := time.Parse(time.RFC3339, text)
	if err == nil {
		at = at.UTC().Truncate(time.Second)
	} else if at, err = time.Parse(time.DateOnly, text); err == nil {
		at = at.AddDate(0, 0, 1)
	}
	if err != nil || at.Year() < 1970 || at.Year() > 2200 {
		c.report(key, "%s: write the last day, such as 2026-12-31, or a time, such as 2026-12-31T18:00:00Z, from 1970 to 2200", fmt.Sprintf("%q", text))
		return time.Time{}
	}
	return at
}
