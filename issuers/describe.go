package issuers

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"accessbroker.internal/broker"
)

// What approvers are shown of a credential before it is made. Parameters stand
// in it as they will be sent; what only the lease will say stays a variable.

var (
	_ broker.Describer = (*Token)(nil)
	_ broker.Describer = (*AWS)(nil)
	_ broker.Describer = (*Vault)(nil)
)

// Describe names what takes the token, and the scopes in it.
func (t *Token) Describe(_ *broker.Entitlement, scopes []string, _ map[string]string) string {
	return fmt.Sprintf("a token for %s\nscope: %s", t.audience, strings.Join(scopes, " "))
}

// Describe shows the role and the session policy.
func (*AWS) Describe(e *broker.Entitlement, scopes []string, parameters map[string]string) string {
	spec, ok := e.Spec.(*AWSSpec)
	if !ok {
		return ""
	}
	text := "a session of " + spec.role.RoleARN + "\n"
	for _, arn := range spec.role.ManagedPolicies {
		text += "and of the managed policy " + arn + "\n"
	}
	policy, err := spec.SessionPolicy(scopes, parameters)
	var indented bytes.Buffer
	switch {
	case err != nil:
		return text + "but its session policy can't be made: " + err.Error()
	case policy == awsEverything:
		return text + "with all that the role may"
	case json.Indent(&indented, []byte(policy), "", "  ") != nil:
		return text + policy
	}
	return text + indented.String()
}

// Describe shows the path that the credential comes from, what is written
// there, and the policies of the token that does.
func (*Vault) Describe(e *broker.Entitlement, scopes []string, parameters map[string]string) string {
	spec, ok := e.Spec.(*VaultSpec)
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
