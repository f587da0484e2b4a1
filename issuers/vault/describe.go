package vault

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"accessbroker.internal/broker"
)

var _ broker.Describer = (*Issuer)(nil)

// Describe shows the path and the data with the request's parameters, and the
// policies of the lease's token. Variables of the lease stay as they are.
func (*Issuer) Describe(e *broker.Entitlement, scopes []string, parameters map[string]string) string {
	spec, ok := e.Spec.(*Spec)
	if !ok {
		return ""
	}
	verb := "read"
	if spec.Data != nil {
		verb = "write"
	}
	lines := []string{verb + " " + filled(spec.Path, parameters)}
	for _, key := range slices.Sorted(maps.Keys(spec.Data)) {
		lines = append(lines, fmt.Sprintf("  %s = %s", key, filled(spec.Data[key], parameters)))
	}
	policies := spec.policies(&broker.Lease{Scopes: scopes})
	return strings.Join(append(lines, "Vault policies: "+strings.Join(policies, ", ")), "\n")
}

// filled returns a template with the parameters filled in. The further lines of
// a value are marked, so that a requester can't forge a line of the description.
func filled(template string, parameters map[string]string) string {
	return reference.ReplaceAllStringFunc(template, func(ref string) string {
		if value, ok := parameters[ref[2:len(ref)-1]]; ok {
			return strings.ReplaceAll(value, "\n", "\n    | ")
		}
		return ref
	})
}
