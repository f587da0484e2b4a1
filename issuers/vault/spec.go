package vault

import (
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// A Spec is what an entitlement says to a Vault. It is not changed once
// it was checked.
//
// Path and the values of Data may name parameters of the entitlement, and
// these of the lease: ${holder} (SPIFFE ID), ${ttl} (what is left, "540s"),
// ${lease}, ${request} and ${entitlement}.
type Spec struct {
	Path          string              // without the leading v1/; TokenPath hands out the lease's own token
	Data          map[string]string   // what is written; nil: the path is read
	Policies      []string            // of the lease's own token: what makes the credential, and nothing else
	ScopePolicies map[string][]string // beside them, for each scope of the lease
	Type          string              // of the secret, if its shape is not to be trusted; see secretTypes
	Wrap          bool                // the holder gets a wrapping token instead
	Lasting       bool                // what is read there doesn't end: ephemeral: false
	Timed         bool                // only time ends what is made there: revocation: at_expiry
}

// TokenPath is the path by which a holder gets the lease's own token, with the
// policies of the entitlement.
const TokenPath = "auth/token/create"

// secretTypes are the types a Vault's answer may have, with the fields that
// each must have.
var secretTypes = map[string][]string{
	"userpass":    {"username", "password"},
	"certificate": {"certificate"},
	"aws":         {"access_key_id", "secret_access_key"},
	"vault":       {"token"},
	"data":        nil,
}

var (
	vaultPath   = regexp.MustCompile(`^[A-Za-z0-9._@$\{\}-]+(/[A-Za-z0-9._@$\{\}-]+)+$`)
	vaultPolicy = regexp.MustCompile(`^[A-Za-z0-9._/-]{1,128}$`)
	reference   = regexp.MustCompile(`\$\{([a-z0-9._-]*)\}`)
	pathValue   = regexp.MustCompile(`^[A-Za-z0-9@=:_-][A-Za-z0-9._@=:-]*$`)
)

// signVerbatim takes usages, extensions and the whole subject from the CSR, which
// is the requester's: nobody decided on those.
const signVerbatim = "sign-verbatim"

var leaseVariables = []string{"holder", "ttl", "lease", "request", "entitlement"}

// Check says what is wrong with the spec, by its key in the operator's file
// and in a sentence.
func (s *Spec) Check(e *broker.Entitlement, bad func(key, format string, args ...any)) {
	if !vaultPath.MatchString(s.Path) || strings.Contains(s.Path, "..") || strings.HasPrefix(s.Path, "v1/") {
		bad("path", "give the path as Vault's API documentation does, without v1/: database/creds/orders-ro")
	}
	if slices.Contains(strings.Split(s.Path, "/")[1:], signVerbatim) {
		bad("path", "%s puts whatever a CSR says into the certificate, unseen by approvers: use sign, and a role", signVerbatim)
	}
	s.checkReferences("path", s.Path, e, bad)
	for _, name := range slices.Sorted(maps.Keys(s.Data)) {
		s.checkReferences("data/"+name, s.Data[name], e, bad)
	}
	s.checkUse(e, bad)
	if s.Path == TokenPath && (s.Data != nil || s.Wrap || s.Lasting || s.Timed) {
		bad("path", "%s hands out a token with the policies of the entitlement; it takes nothing but policies", TokenPath)
	}
	if s.Wrap && s.endsByTime() && !s.asksTime() {
		bad("wrap", `only time ends what is made there, and nobody sees for how long it is: write ttl: "${ttl}" in data`)
	}
	if e.MaxTTL < s.MinTTL() {
		bad("path", "AWS makes no session for less than %s: the max_ttl can't be shorter", broker.Short(stsMinTTL))
	}
	if _, ok := secretTypes[s.Type]; s.Type != "" && !ok {
		bad("type", "choose of %s, or leave it out", strings.Join(slices.Sorted(maps.Keys(secretTypes)), ", "))
	}
	s.checkPolicies(e, bad)
}

func (s *Spec) checkPolicies(e *broker.Entitlement, bad func(key, format string, args ...any)) {
	all := slices.Clone(s.Policies)
	for _, scope := range e.Scopes {
		if len(s.ScopePolicies[scope]) == 0 {
			bad("policies", "the scope %q would change nothing: write it as %s: {policies: [NAME]}", scope, scope)
		}
		all = append(all, s.ScopePolicies[scope]...)
	}
	if len(all) == 0 {
		bad("policies", "name the Vault policies that let a token do this, and nothing else")
	}
	for _, p := range all {
		if !vaultPolicy.MatchString(p) || p == "root" {
			bad("policies", "%q is not a policy that a lease's token may have", p)
		}
	}
}

// checkReferences wants what a template names to exist. Within a longer text,
// a parameter must be there.
func (s *Spec) checkReferences(key, text string, e *broker.Entitlement, bad func(key, format string, args ...any)) {
	for _, m := range reference.FindAllStringSubmatch(text, -1) {
		p, known := e.Parameters[m[1]]
		switch {
		case slices.Contains(leaseVariables, m[1]):
		case !known:
			bad(key, "there is no parameter %q; there are %s", m[1], strings.Join(append(slices.Sorted(maps.Keys(e.Parameters)), leaseVariables...), ", "))
		case !p.Required && text != m[0]:
			bad(key, "the parameter %q is part of it, so make that required", m[1])
		}
	}
	if strings.Contains(reference.ReplaceAllString(text, ""), "${") {
		bad(key, "a reference is written ${name}")
	}
}

// checkUse wants every parameter to make a difference: policy and people decide
// on it, so the credential must be bound by it.
func (s *Spec) checkUse(e *broker.Entitlement, bad func(key, format string, args ...any)) {
	all := s.Path + strings.Join(slices.Collect(maps.Values(s.Data)), "")
	for _, name := range slices.Sorted(maps.Keys(e.Parameters)) {
		if !strings.Contains(all, "${"+name+"}") {
			bad("path", "the parameter %q binds nothing: write ${%s} in path or data, or take it away", name, name)
		}
	}
}

// Revocation is what ending such a credential can mean before it is known
// what the Vault answers. It never promises too much.
func (s *Spec) Revocation() broker.Revocation {
	switch {
	case s.Lasting:
		return broker.RevokedNever
	case s.static():
		return broker.RevokedAtRotation
	case s.Wrap || s.endsByTime():
		return broker.RevokedAtExpiry
	}
	return broker.RevokedImmediate
}

// endsByTime says whether, as far as the spec tells, only time ends what is made
// there.
func (s *Spec) endsByTime() bool { return s.signs() || s.Timed || s.sessions() }

// static says whether the path is that of a static role (database, LDAP),
// whose password lives until it is rotated.
func (s *Spec) static() bool {
	return strings.Contains(s.Path, "/static-creds/") || strings.Contains(s.Path, "/static-cred/")
}

// signs says whether the path gives certificates (PKI, SSH), which have a
// lease only if their role says generate_lease.
func (s *Spec) signs() bool {
	return slices.ContainsFunc(strings.Split(s.Path, "/")[1:], func(segment string) bool {
		return segment == "issue" || segment == "sign"
	})
}

// Digest is over all that the spec says.
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
		String("lasting", mark(s.Lasting)).
		String("path", s.Path).
		StringList("policies", s.Policies).
		Object("scopes", scopes).
		String("timed", mark(s.Timed)).
		String("type", s.Type).
		String("wrap", mark(s.Wrap)))
}

func mark(set bool) string {
	if set {
		return "yes"
	}
	return ""
}

// policies are those of the token of a lease, sorted.
func (s *Spec) policies(l *broker.Lease) []string {
	all := slices.Clone(s.Policies)
	for _, scope := range l.Scopes {
		all = append(all, s.ScopePolicies[scope]...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// call is what makes the credential, but for its token.
func (s *Spec) call(l *broker.Lease, left time.Duration) (vaultCall, error) {
	if left < time.Second {
		return vaultCall{}, &vaultFault{broker.ErrIssuerRefused, 0, "the Vault's clock is ahead by more than the lease's time"}
	}
	var c vaultCall
	var err error
	ask := left
	if s.sessions() {
		if ask, c.late, err = sessionTime(left); err != nil {
			return vaultCall{}, err
		}
	}
	if c.path, err = s.path(l, ask); err != nil {
		return vaultCall{}, err
	}
	c.method, c.data = http.MethodGet, s.data(l, ask)
	if c.data != nil {
		c.method, c.body = http.MethodPost, c.data
	}
	if s.Wrap {
		c.wrap = left
	}
	return c, nil
}

// path fills in the path. What a requester says is one segment of it, and
// never more: neither "/" nor "..".
func (s *Spec) path(l *broker.Lease, left time.Duration) (string, error) {
	var err error
	filled := reference.ReplaceAllStringFunc(s.Path, func(ref string) string {
		value, given := variable(ref[2:len(ref)-1], l, left)
		if !given || !pathValue.MatchString(value) || strings.Contains(value, "..") || value == signVerbatim {
			err = &broker.Refusal{Err: broker.ErrInvalidParameter, Detail: ref[2:len(ref)-1] + " can't be a part of a path"}
		}
		return value
	})
	return filled, err
}

// data fills in what is written. A parameter that was not given, and that
// would be all of a value, leaves it out.
func (s *Spec) data(l *broker.Lease, left time.Duration) map[string]any {
	if s.Data == nil {
		return nil
	}
	out := map[string]any{}
	for name, text := range s.Data {
		missing := false
		filled := reference.ReplaceAllStringFunc(text, func(ref string) string {
			value, given := variable(ref[2:len(ref)-1], l, left)
			missing = missing || !given
			return value
		})
		if !missing {
			out[name] = filled
		}
	}
	return out
}

func variable(name string, l *broker.Lease, left time.Duration) (value string, given bool) {
	switch name {
	case "holder":
		return l.Holder, true
	case "ttl":
		return fmt.Sprintf("%ds", max(1, int64(left/time.Second))), true
	case "lease":
		return l.ID.String(), true
	case "request":
		return l.Request.String(), true
	case "entitlement":
		return l.Entitlement, true
	}
	value, given = l.Parameters[name]
	return value, given
}

// asksTime says whether the Vault is told how long what it makes may live.
func (s *Spec) asksTime() bool {
	const ttl = "${ttl}"
	for _, text := range s.Data {
		if strings.Contains(text, ttl) {
			return true
		}
	}
	return strings.Contains(s.Path, ttl)
}
