package aws

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// A Spec is the compiled form of an entitlement at AWS, for
// broker.Entitlement.Spec. It is immutable.
type Spec struct {
	role       Role // without its scopes
	endpoint   string
	scopes     map[string]scope
	parameters map[string]allowance
}

type scope struct {
	actions   []string // sorted
	resources []string // sorted templates
}

// Scopes returns the names of the scopes, sorted.
func (s *Spec) Scopes() []string { return slices.Sorted(maps.Keys(s.scopes)) }

// Digest returns the digest of the whole spec, for broker.Entitlement.Effect.
func (s *Spec) Digest() audit.Digest {
	scopes := audit.NewObject()
	for name, scope := range s.scopes {
		scopes.Object(name, audit.NewObject().StringList("actions", scope.actions).StringList("resources", scope.resources))
	}
	o := audit.NewObject().String("role_arn", s.role.RoleARN).StringList("managed_policies", s.role.ManagedPolicies).
		String("external_id", s.role.ExternalID).String("endpoint", s.endpoint).Object("scopes", scopes)
	for key, set := range map[string]bool{"full_role": s.role.FullRole, "chain": s.role.Chain} {
		if set {
			o.String(key, "true")
		}
	}
	return audit.HashObject("accessbroker/effect/aws/v1", o)
}

// SessionPolicy returns the session policy of these scopes in canonical JSON (RFC
// 8785), with one statement per scope in the order of their names. There always is
// a policy: that of the full role allows everything, so that the role alone limits
// the session.
func (s *Spec) SessionPolicy(scopes []string, parameters map[string]string) (string, error) {
	if s.role.FullRole && len(scopes) == 0 {
		return everything, nil
	}
	if s.role.FullRole || len(scopes) == 0 {
		return "", errScopesChanged
	}
	var statements [][]byte
	for _, name := range sortedSet(scopes) {
		scope, ok := s.scopes[name]
		if !ok {
			return "", errScopesChanged
		}
		var resources []string
		for _, template := range scope.resources {
			r, err := s.fill(template, parameters)
			if err != nil {
				return "", err
			}
			resources = append(resources, r)
		}
		statements = append(statements, statement(scope.actions, sortedSet(resources)))
	}
	policy := policyOf(statements)
	if n := s.length(policy); n > maxPolicy {
		return "", &broker.Refusal{Err: broker.ErrPolicyTooLarge, Detail: fmt.Sprintf("the session policy would have %d characters, and AWS accepts %d: request fewer scopes, or use shorter parameters", n, maxPolicy)}
	}
	return policy, nil
}

var errScopesChanged = refuse("the entitlement's scopes have changed: file a new request")

// everything is the session policy of the full role. A session may do what both its
// role and its session policy allow (IAM User Guide, "Session policies"), so this
// policy removes no permission. A resource-based policy that names the role is not
// limited by it either; one that names the session never is by any.
var everything = policyOf([][]byte{statement([]string{"*"}, []string{"*"})})

func statement(actions, resources []string) []byte {
	return audit.NewObject().StringList("Action", actions).String("Effect", "Allow").StringList("Resource", resources).Bytes()
}

func policyOf(statements [][]byte) string {
	b := []byte(`{"Statement":[`)
	for i, statement := range statements {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, statement...)
	}
	return string(append(b, `],"Version":"2012-10-17"}`...))
}

// length returns the characters that AWS counts: those of the session policy and
// of the managed policies' ARNs. AWS also limits the packed size of both with the
// session tags, which only AWS can compute: see PackedPolicyTooLarge.
func (s *Spec) length(policy string) int {
	return utf8.RuneCountInString(policy) + len(strings.Join(s.role.ManagedPolicies, ""))
}

// longest returns the length of the session policy of all scopes, with every
// parameter as long as it can be.
func (s *Spec) longest(parameters map[string]broker.Parameter) int {
	if s.role.FullRole {
		return s.length(everything)
	}
	var statements [][]byte
	for _, name := range s.Scopes() {
		var resources []string
		for _, template := range s.scopes[name].resources {
			resources = append(resources, reference.ReplaceAllStringFunc(template, func(ref string) string {
				return strings.Repeat("x", maxLength(parameters[ref[2:len(ref)-1]]))
			}))
		}
		statements = append(statements, statement(s.scopes[name].actions, resources))
	}
	return s.length(policyOf(statements))
}

func sortedSet(list []string) []string { return slices.Compact(slices.Sorted(slices.Values(list))) }
