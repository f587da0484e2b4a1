package config

import (
	"cmp"
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/issuers/aws"
	"accessbroker.internal/issuers/vault"
)

// An Issuer is one issuer of the file: of exactly one kind.
type Issuer struct {
	Token     *TokenIssuer
	Vault     *VaultIssuer
	AWS       *aws.Config // without keys and roots
	AWSCAFile string
	Retired   bool
}

// hasKind reports whether the file names the issuer's kind.
func (s Issuer) hasKind() bool { return s.Token != nil || s.Vault != nil || s.AWS != nil }

// A TokenIssuer is the broker's own signer.
type TokenIssuer struct {
	Audience        string
	ResourceServers []string // SPIFFE IDs that may introspect the tokens
}

// A VaultIssuer is a HashiCorp Vault or an OpenBao. It logs in by exactly one of
// JWT, Cert and TokenFile, or not at all: by an agent that does it.
type VaultIssuer struct {
	Address, Namespace, TokenRole, CAFile string
	JWT, Cert                             *VaultLogin
	TokenFile                             string
}

// A VaultLogin is a role at an auth method.
type VaultLogin struct{ Mount, Role, Audience string }

func (c *checker) issuers() {
	c.cfg.Issuers = map[string]Issuer{}
	if len(c.d.file.Issuers) == 0 {
		c.bad("issuers", "name at least one, such as tickets: {token: {audience: https://tickets.acme.test}}")
	}
	for _, name := range slices.Sorted(maps.Keys(c.d.file.Issuers)) {
		key, f := "issuers/"+name, c.d.file.Issuers[name]
		c.name(key, name)
		s := Issuer{Retired: f.Retired}
		switch {
		case f.Token != nil && f.Vault == nil && f.AWS == nil:
			s.Token = c.tokenIssuer(key+"/token", f.Token)
		case f.Vault != nil && f.Token == nil && f.AWS == nil:
			s.Vault = c.vaultIssuer(key+"/vault", f.Vault)
		case f.AWS != nil && f.Token == nil && f.Vault == nil:
			s.AWS, s.AWSCAFile = c.awsIssuer(key+"/aws", f.AWS), c.file(f.AWS.CAFile)
		default:
			c.bad(key, "say what kind it is, and only one: token: {audience: URL}, vault: {address: URL, …} or aws: {region: NAME, …}")
		}
		c.cfg.Issuers[name] = s
	}
	c.reserved()
}

// reserved keeps the audiences of assertions out of reach: whoever could get a
// token for one could assume roles without the broker.
func (c *checker) reserved() {
	for _, name := range slices.Sorted(maps.Keys(c.cfg.Issuers)) {
		for other, s := range c.cfg.Issuers {
			token := c.cfg.Issuers[name].Token
			if token != nil && s.AWS != nil && (token.Audience == s.AWS.Audience() || token.Audience == aws.DefaultAudience) {
				c.bad("issuers/"+name+"/token/audience", "%s is what AWS knows the broker itself by (issuer %s): a workload with such a token could assume roles", token.Audience, other)
			}
		}
	}
}

func (c *checker) awsIssuer(key string, f *awsFile) *aws.Config {
	cfg := &aws.Config{Region: f.Region, Endpoint: string(f.Endpoint), Revoker: string(f.Revoker)}
	if w := f.Auth.WebIdentity; w != nil {
		cfg.WebIdentity = &aws.WebIdentity{Issuer: c.cfg.ExternalURL.String(), Audience: string(w.Audience), Algorithm: c.cfg.Signing.Algorithm}
	}
	if r := f.Auth.AssumeRole; r != nil {
		cfg.AssumeRole = &aws.AssumeRole{CredentialsFile: c.file(r.CredentialsFile), Profile: r.Profile}
	}
	cfg.Check(func(at, format string, args ...any) { c.bad(key+"/"+at, format, args...) })
	return cfg
}

func (c *checker) tokenIssuer(key string, f *tokenFile) *TokenIssuer {
	u, err := url.Parse(string(f.Audience))
	if err != nil || !u.IsAbs() || u.Fragment != "" {
		c.bad(key+"/audience", "give the absolute URI of the API that the tokens are for")
	}
	t := &TokenIssuer{Audience: string(f.Audience), ResourceServers: toStrings(f.ResourceServers)}
	for i, id := range t.ResourceServers {
		if !strings.HasPrefix(id, "spiffe://") {
			c.bad(fmt.Sprintf("%s/resource_servers/%d", key, i), "give the SPIFFE ID of a server that may introspect these tokens")
		}
	}
	return t
}

// mountForm is that of a mount or of a token role: one segment or more, and
// nothing that would lead elsewhere.
var mountForm = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*$`)

func (c *checker) vaultIssuer(key string, f *vaultFile) *VaultIssuer {
	u, err := url.Parse(string(f.Address))
	loopback := err == nil && f.Auth.Agent && (u.Hostname() == "localhost" || u.Hostname() == "127.0.0.1" || u.Hostname() == "::1")
	if err != nil || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.Scheme != "https" && (u.Scheme != "http" || !loopback) {
		c.bad(key+"/address", "give the Vault's URL, such as https://vault.acme.test:8200; http is for an agent on this machine only")
	}
	if !mountForm.MatchString(f.TokenRole) || strings.Contains(f.TokenRole, "/") {
		c.bad(key+"/token_role", "name the token role by which the tokens of leases are made: see docs/vault.md")
	}
	s := &VaultIssuer{
		Address: string(f.Address), Namespace: f.Namespace, TokenRole: f.TokenRole, CAFile: c.file(f.CAFile),
		JWT: c.vaultLogin(key+"/auth/jwt", f.Auth.JWT, "jwt"), Cert: c.vaultLogin(key+"/auth/cert", f.Auth.Cert, "cert"),
		TokenFile: c.file(f.Auth.TokenFile),
	}
	if s.JWT != nil {
		s.JWT.Audience = cmp.Or(s.JWT.Audience, s.Address)
	} else if s.Cert != nil && s.Cert.Audience != "" {
		c.bad(key+"/auth/cert/audience", "only a JWT-SVID has an audience")
	}
	if (s.JWT != nil || s.Cert != nil) && c.noWorkloadAPI() {
		c.bad(key+"/auth", "the broker's own SVID comes from attest.workload_api: name it, or give a token_file")
	}
	ways := 0
	for _, given := range []bool{s.JWT != nil, s.Cert != nil, s.TokenFile != "", f.Auth.Agent} {
		if given {
			ways++
		}
	}
	if ways != 1 {
		c.bad(key+"/auth", "say how the broker logs in, and only one way: jwt: {role: NAME}, cert: {role: NAME}, token_file: FILE or agent: true")
	}
	return s
}

func (c *checker) vaultLogin(key string, f *vaultLoginFile, mount string) *VaultLogin {
	if f == nil {
		return nil
	}
	login := &VaultLogin{Role: f.Role, Mount: cmp.Or(f.Mount, mount), Audience: string(f.Audience)}
	if login.Role == "" {
		c.bad(key+"/role", "name the role that the Vault knows the broker by")
	}
	if !mountForm.MatchString(login.Mount) {
		c.bad(key+"/mount", "give the path where the method is mounted, such as %s", mount)
	}
	return login
}

// spec works out what the entitlement says to its issuer, and the digest of
// all of that: if it changes, what was approved before is not what would be
// given now.
func (c *checker) spec(key string, issuer Issuer, f entitlementFile, e *broker.Entitlement) {
	effect := audit.NewObject().String("entitlement", e.Name).String("issuer", e.Issuer).String("binding", string(e.Binding))
	if issuer.Vault == nil && f.Vault != nil {
		c.bad(key+"/vault", "its issuer, %q, is no Vault", e.Issuer)
	}
	if issuer.AWS == nil && f.AWS != nil {
		c.bad(key+"/aws", "its issuer, %q, is not AWS", e.Issuer)
	}
	if issuer.Token == nil && e.Binding != broker.BindingNone {
		c.bad(key+"/binding", "only the broker's own tokens can be bound")
	}
	for _, name := range slices.Sorted(maps.Keys(f.Scopes.adds)) {
		adds, at := f.Scopes.adds[name], key+"/scopes/"+name
		if issuer.Vault == nil && adds.Policies != nil {
			c.bad(at+"/policies", "its issuer, %q, is no Vault", e.Issuer)
		}
		if issuer.AWS == nil && (adds.Actions != nil || adds.Resources != nil) {
			c.bad(at+"/actions", "its issuer, %q, is not AWS", e.Issuer)
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
	}
	e.Effect = audit.HashObject("accessbroker/effect/v1", effect)
}

// longestText bounds what an operator writes of a thing, in bytes: it stands
// in lists, beside the thing's name.
const longestText = 300

// text checks what the operator writes for people to read, on pages and on
// terminals.
func (c *checker) text(key, text string) string {
	text = strings.TrimSpace(text)
	if len(text) > longestText || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		c.bad(key, "one line of at most %d bytes, for people to read", longestText)
	}
	return text
}

// scopeTexts are what scopes mean. They are for people, and no part of what is
// compiled: who changes a word of them changes nothing that was approved.
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

func (c *checker) vaultSpec(key string, f entitlementFile, e *broker.Entitlement) *vault.Spec {
	if f.Vault == nil {
		c.bad(key+"/vault", "say what the Vault is asked for, such as {path: database/creds/orders-ro}")
		return &vault.Spec{}
	}
	v := f.Vault
	spec := &vault.Spec{Path: v.Path, Policies: v.Policies, Type: v.Type, Wrap: v.Wrap, Permanent: v.Ephemeral != nil && !*v.Ephemeral, AtExpiry: v.Revocation != ""}
	if v.Revocation != "" && v.Revocation != string(broker.RevokedAtExpiry) {
		c.bad(key+"/vault/revocation", "say %s of what only time ends, such as sessions of AWS STS, or leave it out", broker.RevokedAtExpiry)
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
	spec.Check(e, func(at, format string, args ...any) { c.bad(key+"/vault/"+at, format, args...) })
	return spec
}

func (c *checker) awsSpec(key string, cfg *aws.Config, f entitlementFile, e *broker.Entitlement) *aws.Spec {
	if f.AWS == nil {
		c.bad(key+"/aws", "say which role it is, such as {role_arn: arn:aws:iam::123456789012:role/reports}")
		return &aws.Spec{}
	}
	if f.Scopes.adds == nil && len(f.Scopes.names) > 0 {
		c.bad(key+"/scopes", "say what each scope allows: %s: {actions: [s3:GetObject], resources: [ARN]}", f.Scopes.names[0])
		return &aws.Spec{}
	}
	role := aws.Role{
		RoleARN: string(f.AWS.RoleARN), FullRole: f.AWS.FullRole, ManagedPolicies: toStrings(f.AWS.ManagedPolicies),
		ExternalID: string(f.AWS.ExternalID), Chain: f.AWS.Chain, Revoke: aws.Deny(f.AWS.RevokeSessions), Scopes: map[string]aws.Scope{},
	}
	all := ""
	for name, adds := range f.Scopes.adds {
		role.Scopes[name] = aws.Scope{Actions: toStrings(adds.Actions), Resources: toStrings(adds.Resources)}
		all += strings.Join(role.Scopes[name].Resources, " ")
	}
	for _, name := range slices.Sorted(maps.Keys(e.Parameters)) {
		if !strings.Contains(all, "${"+name+"}") {
			c.bad(key+"/parameters/"+name, "it binds nothing: write ${%s} in the resources of a scope, or take it away", name)
		}
	}
	return cfg.Compile(role, e, func(at, format string, args ...any) { c.bad(key+"/"+at, format, args...) })
}
