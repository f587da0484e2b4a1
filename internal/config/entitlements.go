package config

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/issuers/aws"
	"accessbroker.internal/issuers/token"
	"accessbroker.internal/issuers/vault"
)

func (c *checker) entitlements() {
	c.cfg.Catalogue = broker.Catalogue{}
	if len(c.d.file.Entitlements) == 0 {
		c.report("entitlements", "write at least one entitlement")
	}
	longest := time.Duration(0)
	for _, name := range slices.Sorted(maps.Keys(c.d.file.Entitlements)) {
		e := c.entitlement("entitlements/"+name, name, c.d.file.Entitlements[name])
		c.cfg.Catalogue[name] = e
		if !e.Persists { // a token
			longest = max(longest, min(e.MaxTTL, longestTTL))
		}
	}
	c.overlaps()
	s := c.cfg.Signing
	if err := token.CheckRotation(s.RotateEvery, s.PublishAhead, longest); err != nil {
		c.report("server/signing", "%v", err)
	}
}

func (c *checker) entitlement(key, name string, f entitlementFile) *broker.Entitlement {
	c.name(key, name)
	issuer, known := c.cfg.Issuers[f.Issuer]
	switch {
	case len(c.cfg.Issuers) == 0:
		c.report(key+"/issuer", "there is no issuer %q: configure it in issuers", f.Issuer)
	case !known:
		c.report(key+"/issuer", "there is no issuer %q: choose from %s", f.Issuer, strings.Join(slices.Sorted(maps.Keys(c.cfg.Issuers)), ", "))
	case issuer.Retired:
		c.report(key+"/issuer", "%q is retired and issues no credentials: choose another issuer", f.Issuer)
	}
	usual := usualTTL(issuer, f)
	e := &broker.Entitlement{
		Name: name, Issuer: f.Issuer, Description: c.text(key+"/description", f.Description), Owner: f.Owner, System: f.System, Labels: f.Labels,
		Scopes: c.scopes(key+"/scopes", f.Scopes.names), ScopeTexts: c.scopeTexts(key+"/scopes", f.Scopes.adds), DefaultScopes: neverNil(f.DefaultScopes),
		MaxTTL:        time.Duration(cmp.Or(f.MaxTTL, duration(usual))),
		CollectWithin: time.Duration(cmp.Or(f.CollectWithin, duration(defaultCollectWithin))),
		StatusList:    f.StatusList,
		Revocation:    broker.RevokedAtExpiry,
	}
	var err error
	e.DefaultTTL = cmp.Or(time.Duration(f.DefaultTTL), min(usual, e.MaxTTL))
	if most := longestOf(issuer); e.MaxTTL > most {
		c.report(key+"/max_ttl", "must be at most %s", broker.FormatDuration(most))
	}
	if e.DefaultTTL > e.MaxTTL && !c.d.isRejected(key+"/max_ttl") {
		c.report(key+"/default_ttl", "must not be longer than max_ttl, %s", broker.FormatDuration(e.MaxTTL))
	}
	if e.CollectWithin > broker.MaxDuration {
		c.report(key+"/collect_within", "must be at most %s", broker.FormatDuration(broker.MaxDuration))
	}
	if e.Binding, err = broker.ParseBinding(cmp.Or(f.Binding, "none")); err != nil {
		c.report(key+"/binding", "choose none, mtls, dpop or \"dpop or mtls\"")
	}
	for i, s := range e.DefaultScopes {
		if !slices.Contains(e.Scopes, s) && !c.d.isRejected(key+"/scopes") {
			c.report(fmt.Sprintf("%s/default_scopes/%d", key, i), "%q is not one of the scopes", s)
		}
	}
	e.Egress = c.egress(key+"/egress", f.Egress, issuer, e)
	e.Parameters = c.parameters(key+"/parameters", f.Parameters)
	if issuer.hasKind() && !slices.ContainsFunc([]string{"/scopes", "/parameters", "/vault", "/aws", "/scim", "/ldap"}, func(part string) bool { return c.d.isRejected(key + part) }) {
		c.spec(key, issuer, f, e)
	}
	e.Details = c.details(key+"/authorization_details", f.Details, e)
	if e.DefaultTTL < e.MinTTL && e.MaxTTL >= e.MinTTL {
		c.report(key+"/default_ttl", "must be at least %s, the shortest lifetime that the issuer supports", broker.FormatDuration(e.MinTTL))
	} else if usual == defaultSessionTTL && !issuer.Joins() && e.DefaultTTL < shortSession {
		c.warn(key+"/default_ttl", "AWS SDKs refresh credentials with less than 15m left, so with %s they request one for almost every call: write default_ttl: 1h", broker.FormatDuration(e.DefaultTTL))
	}
	return e
}

// shortSession is the lifetime below which AWS SDKs find a session too short: botocore
// refreshes it for each call while less than 15 minutes are left.
const shortSession = 20 * time.Minute

// longestOf returns the longest lifetime of an issuer's credentials. A membership is no
// bearer of rights that could leak.
func longestOf(issuer Issuer) time.Duration {
	if issuer.Joins() {
		return broker.MaxDuration
	}
	return longestTTL
}

// usualTTL returns the lifetime of a credential for which the file has none.
func usualTTL(issuer Issuer, f entitlementFile) time.Duration {
	if issuer.AWS != nil || issuer.Joins() || issuer.Vault != nil && f.Vault != nil && (&vault.Spec{Path: f.Vault.Path}).MinTTL() > 0 {
		return defaultSessionTTL
	}
	return defaultTTL
}

func (c *checker) scopes(key string, list []string) []string {
	if len(list) > broker.MaxScopes {
		c.report(key, "must be at most %d", broker.MaxScopes)
	}
	sorted := slices.Sorted(slices.Values(list))
	for i, s := range list {
		if s == "" || len(s) > broker.MaxScopeLength || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == '\\' }) {
			c.report(fmt.Sprintf("%s/%d", key, i), "%q is not a scope: use printable ASCII without spaces, quotes and backslashes (RFC 6749, section 3.3)", s)
		}
	}
	if len(slices.Compact(slices.Clone(sorted))) != len(sorted) {
		c.report(key, "a scope is listed twice: remove one")
	}
	return sorted
}

// scopeTexts returns the descriptions of scopes. They are not part of the effect: a changed
// word does not affect approvals.
func (c *checker) scopeTexts(key string, list map[string]scopeFile) map[string]string {
	var out map[string]string
	for _, name := range slices.Sorted(maps.Keys(list)) {
		if text := c.text(key+"/"+name+"/description", list[name].Description); text != "" {
			if out == nil {
				out = map[string]string{}
			}
			out[name] = text
		}
	}
	return out
}

func (c *checker) parameters(key string, list map[string]parameterFile) map[string]broker.Parameter {
	if len(list) == 0 {
		return nil
	}
	if len(list) > broker.MaxParameters {
		c.report(key, "must be at most %d", broker.MaxParameters)
	}
	out := map[string]broker.Parameter{}
	for _, name := range slices.Sorted(maps.Keys(list)) {
		at, f := key+"/"+name, list[name]
		c.name(at, name)
		// The pattern must compile without the group, too: "a)|(?:.*" would close it.
		// Without the group, "^a|b$" would accept "b and more".
		pattern, err := regexp.Compile(f.Pattern)
		if err == nil {
			pattern, err = regexp.Compile("^(?:" + f.Pattern + ")$")
		}
		if err != nil || f.Pattern == "" {
			c.report(at+"/pattern", "write a regular expression (RE2) that the whole value must match, such as \"[a-z0-9-]{1,40}\"")
		}
		most := broker.MaxParameter
		if f.Lines {
			most = broker.MaxLines
		}
		if f.MaxLength < 0 || f.MaxLength > most {
			c.report(at+"/max_length", "must be between 1 and %d bytes", most)
			f.MaxLength = 0 // issuers compute with the longest value
		}
		out[name] = broker.Parameter{Pattern: pattern, MaxLength: cmp.Or(f.MaxLength, defaultParameterMax), Lines: f.Lines, Required: f.Required, Description: c.text(at+"/description", f.Description)}
	}
	return out
}

// overlaps reports entitlements whose tokens a resource server could not tell apart.
func (c *checker) overlaps() {
	names := slices.Sorted(maps.Keys(c.cfg.Catalogue))
	for i, a := range names {
		for _, b := range names[i+1:] {
			one, other := c.cfg.Catalogue[a], c.cfg.Catalogue[b]
			if one.Audience == "" || one.Audience != other.Audience {
				continue
			}
			shared := slices.IndexFunc(one.Scopes, func(s string) bool { return slices.Contains(other.Scopes, s) })
			if shared >= 0 {
				c.report("entitlements/"+b+"/scopes", "%s has the scope %q for the same audience, %s, so resource servers could not tell their tokens apart: rename the scope, or use another issuer", a, one.Scopes[shared], one.Audience)
			} else if len(one.Scopes) == 0 && len(other.Scopes) == 0 {
				c.report("entitlements/"+b, "%s has the same audience, and neither has scopes, so resource servers could not tell their tokens apart: add scopes, or use another issuer", a)
			}
		}
	}
}

// spec compiles the entitlement for its issuer, and computes the digest of its effect.
// When the digest changes, earlier approvals no longer apply.
func (c *checker) spec(key string, issuer Issuer, f entitlementFile, e *broker.Entitlement) {
	effect := audit.NewObject().String("entitlement", e.Name).String("issuer", e.Issuer).String("binding", e.Binding.String())
	if issuer.Vault == nil && f.Vault != nil {
		c.report(key+"/vault", "issuer %q is not a Vault: remove this key", e.Issuer)
	}
	if issuer.AWS == nil && f.AWS != nil {
		c.report(key+"/aws", "issuer %q is not AWS: remove this key", e.Issuer)
	}
	if issuer.SCIM == nil && f.SCIM != nil {
		c.report(key+"/scim", "issuer %q is not a SCIM server: remove this key", e.Issuer)
	}
	if issuer.LDAP == nil && f.LDAP != nil {
		c.report(key+"/ldap", "issuer %q is not an LDAP directory: remove this key", e.Issuer)
	}
	if issuer.Token == nil && e.Binding != broker.BindingNone {
		c.report(key+"/binding", "only the broker's own tokens can be bound: choose none")
	}
	if issuer.Token == nil && e.StatusList {
		c.report(key+"/status_list", "only the broker's own tokens can be in a status list: remove this key")
	}
	for _, name := range slices.Sorted(maps.Keys(f.Scopes.adds)) {
		adds, at := f.Scopes.adds[name], key+"/scopes/"+name
		if issuer.Vault == nil && adds.Policies != nil {
			c.report(at+"/policies", "issuer %q is not a Vault: remove this key", e.Issuer)
		}
		if issuer.AWS == nil && (adds.Actions != nil || adds.Resources != nil) {
			c.report(at+"/actions", "issuer %q is not AWS: remove this key", e.Issuer)
		}
	}
	switch {
	case issuer.Token != nil:
		e.Audience, e.Introspectors = issuer.Token.Audience, issuer.Token.ResourceServers
		effect.String("kind", "token").String("audience", e.Audience)
	case issuer.Vault != nil:
		spec := c.vaultSpec(key, f, e)
		e.Spec, e.Revocation, e.MinTTL = spec, spec.Revocation(), spec.MinTTL()
		effect.String("kind", "vault").Hex("spec", spec.Digest())
	case issuer.AWS != nil:
		spec := c.awsSpec(key, issuer.AWS, f, e)
		e.Spec, e.MinTTL, e.Shares = spec, aws.MinTTL, spec.Shares()
		effect.String("kind", "aws").Hex("spec", spec.Digest())
	case issuer.Joins():
		c.membershipSpec(key, issuer, f, e, effect)
	}
	if e.Egress != nil {
		effect.Hex("egress", e.Egress.Digest())
	}
	e.Effect = audit.HashObject("accessbroker/effect/v1", effect)
}

func (c *checker) vaultSpec(key string, f entitlementFile, e *broker.Entitlement) *vault.Spec {
	if f.Vault == nil {
		c.report(key+"/vault", "write what to request from the Vault, such as {path: database/creds/orders-ro}")
		return &vault.Spec{}
	}
	v := f.Vault
	spec := &vault.Spec{Path: v.Path, Policies: v.Policies, Type: v.Type, Wrap: v.Wrap, Permanent: v.Ephemeral != nil && !*v.Ephemeral, AtExpiry: v.Revocation != ""}
	if v.Revocation != "" && v.Revocation != string(broker.RevokedAtExpiry) {
		c.report(key+"/vault/revocation", "write %s if the credential only ends with time, such as a session of AWS STS; otherwise remove this key", broker.RevokedAtExpiry)
	}
	if spec.Policies == nil && len(e.Scopes) == 0 {
		spec.Policies = []string{e.Name}
	}
	if v.Data != nil {
		spec.Data = map[string]string{}
	}
	for name, text := range v.Data {
		spec.Data[name] = string(text)
	}
	if f.Scopes.adds != nil {
		spec.ScopePolicies = map[string][]string{}
	}
	for name, adds := range f.Scopes.adds {
		spec.ScopePolicies[name] = adds.Policies
	}
	spec.Check(e, func(at, format string, args ...any) { c.report(key+"/vault/"+at, format, args...) })
	return spec
}

func (c *checker) awsSpec(key string, cfg *aws.Config, f entitlementFile, e *broker.Entitlement) *aws.Spec {
	if f.AWS == nil {
		c.report(key+"/aws", "write the role, such as {role_arn: arn:aws:iam::123456789012:role/reports}")
		return &aws.Spec{}
	}
	if f.Scopes.adds == nil && len(f.Scopes.names) > 0 {
		c.report(key+"/scopes", "write what each scope allows: %s: {actions: [s3:GetObject], resources: [ARN]}", f.Scopes.names[0])
		return &aws.Spec{}
	}
	role := aws.Role{
		RoleARN: string(f.AWS.RoleARN), FullRole: f.AWS.FullRole, ManagedPolicies: neverNil(f.AWS.ManagedPolicies),
		ExternalID: string(f.AWS.ExternalID), Chain: f.AWS.Chain, Revoke: aws.Deny(f.AWS.RevokeSessions), Scopes: map[string]aws.Scope{},
	}
	all := ""
	for name, adds := range f.Scopes.adds {
		role.Scopes[name] = aws.Scope{Actions: neverNil(adds.Actions), Resources: neverNil(adds.Resources)}
		all += strings.Join(role.Scopes[name].Resources, " ")
	}
	for _, name := range slices.Sorted(maps.Keys(e.Parameters)) {
		if !strings.Contains(all, "${"+name+"}") {
			c.report(key+"/parameters/"+name, "the parameter has no effect: write ${%s} in the resources of a scope, or remove it", name)
		}
	}
	return cfg.Compile(role, e, func(at, format string, args ...any) { c.report(key+"/"+at, format, args...) })
}
