package vault

import (
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// A Spec describes how to create the credentials of an entitlement. It must not change
// after Check.
//
// Path and the values of Data may contain parameters of the entitlement, and
// variables of the lease: ${holder} (SPIFFE ID), ${ttl} (time left, "540s"),
// ${lease}, ${request} and ${entitlement}.
type Spec struct {
	Path          string              // without v1/; TokenPath hands out the lease's own token
	Data          map[string]string   // is written to Path; nil: Path is read
	Policies      []string            // of the lease's token
	ScopePolicies map[string][]string // added for each scope of the lease
	Type          string              // required type of the secret; empty: derived from its fields
	Wrap          bool                // the holder gets a wrapping token
	Permanent     bool                // the secret never ends; ephemeral: false in the operator's file
	AtExpiry      bool                // the secret can't be revoked; revocation: at_expiry in the operator's file
}

// TokenPath is the path by which a holder gets the lease's own token, with the
// policies of the entitlement.
const TokenPath = "auth/token/create"

// secretTypes are the types that a secret can have, sorted.
var secretTypes = []string{"aws", "certificate", "data", "userpass", "vault"}

var (
	vaultPath   = regexp.MustCompile(`^[A-Za-z0-9._@$\{\}-]+(/[A-Za-z0-9._@$\{\}-]+)+$`)
	vaultPolicy = regexp.MustCompile(`^[A-Za-z0-9._/-]{1,128}$`)
	reference   = regexp.MustCompile(`\$\{([a-z0-9._-]*)\}`)
	pathValue   = regexp.MustCompile(`^[A-Za-z0-9@=:_-][A-Za-z0-9._@=:-]*$`)
)

// signVerbatim is a path of the PKI engine that copies usages, extensions and
// the whole subject from the CSR, which the requester writes without approval.
const signVerbatim = "sign-verbatim"

// Check calls bad for each mistake in the spec, with the key in the operator's
// file and a sentence that says what to do.
func (s *Spec) Check(e *broker.Entitlement, bad func(key, format string, args ...any)) {
	s.checkPath(bad)
	s.checkReferences("path", s.Path, e, bad)
	for _, name := range slices.Sorted(maps.Keys(s.Data)) {
		s.checkReferences("data/"+name, s.Data[name], e, bad)
	}
	s.checkUse(e, bad)
	if s.Wrap && s.endsAtExpiry() && !s.setsTTL() {
		bad("wrap", `this credential ends only at its expiry, which the broker can't see in a wrapped answer: write ttl: "${ttl}" in data`)
	}
	if e.MaxTTL < s.MinTTL() {
		bad("path", "AWS makes no session shorter than %s: max_ttl can't be shorter", broker.FormatDuration(stsMinTTL))
	}
	if s.Type != "" && !slices.Contains(secretTypes, s.Type) {
		bad("type", "choose one of %s, or leave it out", strings.Join(secretTypes, ", "))
	}
	s.checkPolicies(e, bad)
}

func (s *Spec) checkPath(bad func(key, format string, args ...any)) {
	if !vaultPath.MatchString(s.Path) || strings.Contains(s.Path, "..") || strings.HasPrefix(s.Path, "v1/") {
		bad("path", "give the path as in Vault's API documentation, without v1/: database/creds/orders-ro")
	}
	if slices.Contains(strings.Split(s.Path, "/")[1:], signVerbatim) {
		bad("path", "%s copies whatever a CSR says into the certificate, and approvers don't see that: use sign with a role", signVerbatim)
	}
	if s.Path == TokenPath && (s.Data != nil || s.Wrap || s.Permanent || s.AtExpiry) {
		bad("path", "%s hands out a token with the policies of the entitlement; only policies go with it", TokenPath)
	}
}

func (s *Spec) checkPolicies(e *broker.Entitlement, bad func(key, format string, args ...any)) {
	all := slices.Clone(s.Policies)
	for _, scope := range e.Scopes {
		if len(s.ScopePolicies[scope]) == 0 {
			bad("policies", "the scope %q changes nothing: write it as %s: {policies: [NAME]}", scope, scope)
		}
		all = append(all, s.ScopePolicies[scope]...)
	}
	if len(all) == 0 {
		bad("policies", "name the Vault policies that allow this path, and nothing else")
	}
	for _, p := range all {
		if !vaultPolicy.MatchString(p) || p == "root" {
			bad("policies", "%q is not a policy that a lease's token may have", p)
		}
	}
}

// checkReferences requires that every reference in a template exists. A parameter
// inside a longer text must be required: without a value it would leave a different
// text.
func (s *Spec) checkReferences(key, text string, e *broker.Entitlement, bad func(key, format string, args ...any)) {
	for _, m := range reference.FindAllStringSubmatch(text, -1) {
		p, known := e.Parameters[m[1]]
		switch {
		case slices.Contains(leaseVariables, m[1]):
		case !known:
			bad(key, "there is no parameter %q; there are %s", m[1], strings.Join(append(slices.Sorted(maps.Keys(e.Parameters)), leaseVariables...), ", "))
		case !p.Required && text != m[0]:
			bad(key, "the parameter %q is only part of this text: make it required", m[1])
		}
	}
	if strings.Contains(reference.ReplaceAllString(text, ""), "${") {
		bad(key, "write a reference as ${name}")
	}
}

// checkUse requires that every parameter binds the credential: policy and
// approvers decide on its value.
func (s *Spec) checkUse(e *broker.Entitlement, bad func(key, format string, args ...any)) {
	all := s.Path + strings.Join(slices.Collect(maps.Values(s.Data)), "")
	for _, name := range slices.Sorted(maps.Keys(e.Parameters)) {
		if !strings.Contains(all, "${"+name+"}") {
			bad("path", "the parameter %q does not bind the credential: write ${%s} in path or data, or remove the parameter", name, name)
		}
	}
}

// Revocation returns the revocation that approvers are shown, before Vault's
// answer is known. A credential with a worse one is refused.
func (s *Spec) Revocation() broker.Revocation {
	switch {
	case s.Permanent:
		return broker.RevokedNever
	case s.static():
		return broker.RevokedAtRotation
	case s.Wrap || s.endsAtExpiry():
		return broker.RevokedAtExpiry
	}
	return broker.RevokedImmediate
}

// endsAtExpiry reports whether, judging by the spec, the credential ends only at
// its expiry.
func (s *Spec) endsAtExpiry() bool { return s.signs() || s.AtExpiry || s.sessions() }

// static reports whether the path is that of a static role (database, LDAP),
// whose password is valid until Vault rotates it.
func (s *Spec) static() bool {
	return strings.Contains(s.Path, "/static-creds/") || strings.Contains(s.Path, "/static-cred/")
}

// signs reports whether the path creates certificates (PKI, SSH). They have a lease
// only if their role sets generate_lease.
func (s *Spec) signs() bool {
	return slices.ContainsFunc(strings.Split(s.Path, "/")[1:], func(segment string) bool {
		return segment == "issue" || segment == "sign"
	})
}

// sessions reports whether the path creates sessions of AWS STS.
func (s *Spec) sessions() bool { return strings.Contains(s.Path, "/sts/") }

// MinTTL returns the shortest TTL that the path can make; zero means no bound.
func (s *Spec) MinTTL() time.Duration {
	if s.sessions() {
		return stsMinTTL
	}
	return 0
}

// Digest returns the digest of the whole spec, for broker.Entitlement.Effect.
func (s *Spec) Digest() audit.Digest {
	kind := "read"
	if s.Data != nil {
		kind = "write"
	}
	data, scopes := audit.NewObject(), audit.NewObject()
	for name, text := range s.Data {
		data.String(name, text)
	}
	for scope, policies := range s.ScopePolicies {
		scopes.StringList(scope, policies)
	}
	return audit.HashObject("accessbroker/vault/v1", audit.NewObject().
		Object("data", data).
		String("kind", kind).
		String("lasting", yes(s.Permanent)).
		String("path", s.Path).
		StringList("policies", s.Policies).
		Object("scopes", scopes).
		String("timed", yes(s.AtExpiry)).
		String("type", s.Type).
		String("wrap", yes(s.Wrap)))
}

func yes(set bool) string {
	if set {
		return "yes"
	}
	return ""
}
