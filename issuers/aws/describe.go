package aws

import (
	"bytes"
	"encoding/json"

	"accessbroker.internal/broker"
)

var _ broker.Describer = (*Issuer)(nil)

// Describe shows the role, its managed policies and the session policy.
func (*Issuer) Describe(e *broker.Entitlement, scopes []string, parameters map[string]string) string {
	spec, ok := e.Spec.(*Spec)
	if !ok {
		return ""
	}
	text := "a session of " + spec.role.RoleARN + "\n"
	for _, arn := range spec.role.ManagedPolicies {
		text += "with the managed policy " + arn + "\n"
	}
	policy, err := spec.SessionPolicy(scopes, parameters)
	var indented bytes.Buffer
	switch {
	case err != nil:
		return text + "no session policy can be made: " + err.Error()
	case policy == everything:
		return text + "with everything that the role may do"
	case json.Indent(&indented, []byte(policy), "", "  ") != nil:
		return text + policy
	}
	return text + indented.String()
}
