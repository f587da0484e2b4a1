package vault

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"accessbroker.internal/broker"
)

var _ broker.Describer = (*Issuer)(nil)

// Describe shows the path that the credential comes from, what is written
// there, and the policies of the token that does.
func (*Issuer) Describe(e *broker.Entitlement, scopes []string, parameters map[string]string) string {
	spec, ok := e.Spec.(*Spec)
	if !ok {
		return ""
	}
	known := func(template string) string {
		return reference.ReplaceAllStringFunc(template, func(m string) string {
			if value, ok := parameters[m[2:len(m)-1]]; ok {
				// The requester's lines stay within this one: none passes for ours.
				return strings.ReplaceAll(value, "\n", "\n    | ")
			}
			return m
		})
	}
	verb := "read"
	if spec.Data != nil {
		verb = "write"
	}
	lines := []string{verb + " " + known(spec.Path)}
	for _, key := range slices.Sorted(maps.Keys(spec.Data)) {
		lines = append(lines, fmt.Sprintf("  %s = %s", key, known(spec.Data[key])))
	}
	policies := slices.Clone(spec.Policies)
	for _, s := range scopes {
		policies = append(policies, spec.ScopePolicies[s]...)
	}
	slices.Sort(policies)
	return strings.Join(append(lines, "Vault policies: "+strings.Join(slices.Compact(policies), ", ")), "\n")
}
