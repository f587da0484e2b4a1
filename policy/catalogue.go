package policy

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"

	"accessbroker.internal/broker"
)

// The rendering of the catalogue and of what makes an identity. It is kept
// beside the log under its digest, so its form is fixed: keys in the order of
// these structs, map keys sorted, durations in seconds. A new field is added
// with omitempty, so that old catalogues keep their digests.
type (
	entitlementText struct {
		Name          string                   `json:"name"`
		Issuer        string                   `json:"issuer"`
		Description   string                   `json:"description,omitempty"`
		Scopes        []string                 `json:"scopes,omitempty"`
		DefaultScopes []string                 `json:"default_scopes,omitempty"`
		DefaultTTL    int64                    `json:"default_ttl,omitempty"`
		MaxTTL        int64                    `json:"max_ttl,omitempty"`
		MinTTL        int64                    `json:"min_ttl,omitempty"`
		CollectWithin int64                    `json:"collect_within,omitempty"`
		Owner         string                   `json:"owner,omitempty"`
		System        string                   `json:"system,omitempty"`
		Labels        map[string]string        `json:"labels,omitempty"`
		Parameters    map[string]parameterText `json:"parameters,omitempty"`
		Binding       broker.Binding           `json:"binding,omitempty"`
		Revocation    broker.Revocation        `json:"revocation,omitempty"`
		Audience      string                   `json:"audience,omitempty"`
		Introspectors []string                 `json:"introspectors,omitempty"`
		Effect        string                   `json:"effect"`
	}
	parameterText struct {
		Pattern     string `json:"pattern,omitempty"`
		MaxLength   int    `json:"max_length,omitempty"`
		Required    bool   `json:"required,omitempty"`
		Description string `json:"description,omitempty"`
	}
	identitiesText struct {
		HomeDomain   string     `json:"home_domain"`
		TrustDomains []string   `json:"trust_domains"`
		Providers    []string   `json:"providers,omitempty"`
		Workloads    []markText `json:"workloads,omitempty"`
	}
	markText struct {
		Under       string      `json:"under"`
		Kind        broker.Kind `json:"kind"`
		Team        string      `json:"team,omitempty"`
		Accountable []string    `json:"accountable,omitempty"`
	}
)

func renderCatalogue(c broker.Catalogue) ([]byte, error) {
	text := make(map[string]entitlementText, len(c))
	for name, e := range c {
		text[name] = renderEntitlement(e)
	}
	return render(text)
}

func renderEntitlement(e *broker.Entitlement) entitlementText {
	parameters := make(map[string]parameterText, len(e.Parameters))
	for name, p := range e.Parameters {
		text := parameterText{MaxLength: p.MaxLength, Required: p.Required, Description: p.Description}
		if p.Pattern != nil {
			text.Pattern = p.Pattern.String()
		}
		parameters[name] = text
	}
	return entitlementText{
		Name: e.Name, Issuer: e.Issuer, Description: e.Description, Scopes: e.Scopes, DefaultScopes: e.DefaultScopes,
		DefaultTTL: int64(e.DefaultTTL.Seconds()), MaxTTL: int64(e.MaxTTL.Seconds()), MinTTL: int64(e.MinTTL.Seconds()),
		CollectWithin: int64(e.CollectWithin.Seconds()), Owner: e.Owner, System: e.System, Labels: e.Labels,
		Parameters: parameters, Binding: e.Binding, Revocation: e.Revocation, Audience: e.Audience,
		Introspectors: e.Introspectors, Effect: hex.EncodeToString(e.Effect[:]),
	}
}

// renderIdentities sorts what has no order of its own.
func renderIdentities(in Inputs) ([]byte, error) {
	text := identitiesText{
		HomeDomain:   in.HomeDomain,
		TrustDomains: slices.Sorted(slices.Values(in.TrustDomains)),
		Providers:    slices.Sorted(slices.Values(in.Providers)),
	}
	for _, m := range in.Marks {
		text.Workloads = append(text.Workloads, markText{m.Under, m.Kind, m.Team, m.Accountable})
	}
	return render(text)
}

// render indents, so that two versions can be compared line by line.
func render(v any) ([]byte, error) {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("rendering %T: %w", v, err)
	}
	return append(text, '\n'), nil
}

// checkCatalogue reports what the catalogue names and does not exist.
func checkCatalogue(c broker.Catalogue, known *names, ps *problems) {
	for name, e := range c {
		if e.Name != name {
			ps.add(Problem{File: catalogueName, Text: fmt.Sprintf("entitlement %q is named %q", name, e.Name)})
		}
		if e.Owner == "" {
			continue
		}
		if err := known.group(e.Owner); err != nil {
			ps.add(Problem{File: catalogueName, Text: fmt.Sprintf("entitlement %q: owner: %v", name, err)})
		}
	}
}
