// Package handoff passes a credential to a child process: in files of a private folder in
// memory, or in environment variables. It also has the formats in which tools read
// credentials from files.
package handoff

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/api"
)

// An Environment is the difference between the environment of this process and that of a
// child with a credential.
type Environment struct {
	Set    [][2]string // name and value
	Remove []string    // by which tools would find another credential
}

// Of returns the child's environment: the inherited one with the difference, and without
// the variables of this program.
func (e Environment) Of(inherited []string) []string {
	gone := map[string]bool{}
	for _, name := range e.Remove {
		gone[name] = true
	}
	for _, kv := range e.Set {
		gone[kv[0]] = true
	}
	var env []string
	for _, kv := range inherited {
		name, _, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(name, "BROKER_") && !gone[name] {
			env = append(env, kv)
		}
	}
	for _, kv := range e.Set {
		env = append(env, kv[0]+"="+kv[1])
	}
	return env
}

// InVariables returns the environment of a child that finds the credential in the
// variables that the tools of its type read. The credential can't be renewed there, and
// every process of the same user can read it in /proc/PID/environ.
func InVariables(c *api.Credential) Environment {
	e := Environment{Set: about(c), Remove: displaced[c.Type]}
	for _, v := range fieldVariables(c) {
		e.Set = append(e.Set, [2]string{v.name, c.Secret[v.field]})
	}
	return e
}

// InChosenVariables is like InVariables for variables that the caller has chosen.
func InChosenVariables(c *api.Credential, chosen []Variable) (Environment, error) {
	e := Environment{Set: about(c), Remove: displaced[c.Type]}
	for _, v := range chosen {
		value, ok := c.Secret[v.field]
		if !ok {
			return Environment{}, fmt.Errorf("the credential has no field %q for %s; it has %s", v.field, v.name, strings.Join(Fields(c), ", "))
		}
		e.Set = append(e.Set, [2]string{v.name, value})
	}
	return e, nil
}

// InFile returns the environment of a child that finds the credential in the file alone.
// Other credentials of the environment remain: the child decides which tools use the file.
func InFile(c *api.Credential, path string) Environment {
	return Environment{Set: append(aboutLease(c), [2]string{"BROKER_CREDENTIAL_FILE", path})}
}

// A Variable is an environment variable that has a field of a credential.
type Variable struct{ name, field string }

var variableForm = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// ParseVariable parses NAME=FIELD.
func ParseVariable(text string) (Variable, error) {
	name, field, ok := strings.Cut(text, "=")
	if !ok || field == "" || !variableForm.MatchString(name) {
		return Variable{}, errors.New("write the name of a variable, an equals sign and a field of the credential, such as GH_TOKEN=token")
	}
	return Variable{name, field}, nil
}

// Fields returns the names of a credential's fields, sorted.
func Fields(c *api.Credential) []string { return slices.Sorted(maps.Keys(c.Secret)) }

// aboutLease returns the variables about the lease, which are no secret.
func aboutLease(c *api.Credential) [][2]string {
	return [][2]string{{"BROKER_LEASE", c.Lease}, {"BROKER_EXPIRES_AT", c.ExpiresAt.UTC().Format(time.RFC3339)}}
}

// about returns the variables that are no secret.
func about(c *api.Credential) [][2]string {
	out := aboutLease(c)
	if c.Confirm != nil && c.Confirm.KeyThumbprint != "" {
		out = append(out, [2]string{"BROKER_TOKEN_TYPE", "DPoP"})
	}
	if c.Membership != nil {
		out = append(out, [2]string{"BROKER_SYSTEM", c.Membership.System}, [2]string{"BROKER_GROUP", c.Membership.Group})
	}
	return out
}

// standard lists the variables of each type of credential that has its own.
var standard = map[string][]Variable{
	"bearer":      {{"BROKER_ACCESS_TOKEN", "token"}},
	"aws":         {{"AWS_ACCESS_KEY_ID", "access_key_id"}, {"AWS_SECRET_ACCESS_KEY", "secret_access_key"}, {"AWS_SESSION_TOKEN", "session_token"}},
	"userpass":    {{"PGUSER", "username"}, {"PGPASSWORD", "password"}, {"BROKER_USERNAME", "username"}, {"BROKER_PASSWORD", "password"}},
	"certificate": {{"BROKER_CERTIFICATE", "certificate"}, {"BROKER_PRIVATE_KEY", "private_key"}, {"BROKER_CHAIN", "chain"}},
	"vault":       {{"VAULT_TOKEN", "token"}},
}

// fieldVariables returns the variables of the fields that the credential has.
func fieldVariables(c *api.Credential) []Variable {
	if c.Membership != nil {
		return nil
	}
	all, known := standard[c.Type]
	if !known {
		for _, field := range Fields(c) {
			all = append(all, Variable{"BROKER_" + VariableName(field), field})
		}
	}
	return slices.DeleteFunc(slices.Clone(all), func(v Variable) bool {
		_, ok := c.Secret[v.field]
		return !ok
	})
}

// displaced lists, by type of credential, the variables by which tools find another
// one. A tool would use the other credential, or a mixture of both. Variables that
// locate a system, such as PGHOST, AWS_REGION and VAULT_ADDR, are not among them.
var displaced = map[string][]string{
	"aws": { // AWS SDKs and Tools Reference Guide, "Environment variables", and older names
		"AWS_ACCESS_KEY_ID", "AWS_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_SECRET_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN",
		"AWS_CREDENTIAL_EXPIRATION", "AWS_PROFILE", "AWS_DEFAULT_PROFILE",
		"AWS_ROLE_ARN", "AWS_ROLE_SESSION_NAME", "AWS_WEB_IDENTITY_TOKEN_FILE",
		"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI",
		"AWS_CONTAINER_AUTHORIZATION_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
	},
	"userpass": {"PGUSER", "PGPASSWORD", "PGPASSFILE"},
	"vault":    {"VAULT_TOKEN", "BAO_TOKEN"}, // OpenBao prefers its own name
}

// VariableName converts the name of a field or an entitlement to the name of an
// environment variable.
func VariableName(field string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z' || r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, field)
}
