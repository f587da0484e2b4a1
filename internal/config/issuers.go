package config

import (
	"cmp"
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"accessbroker.internal/broker"
	"accessbroker.internal/issuers/aws"
)

// An Issuer has exactly one kind.
type Issuer struct {
	Token     *TokenIssuer
	Vault     *VaultIssuer
	AWS       *aws.Config // without Keys and Roots
	AWSCAFile string
	SCIM      *SCIMIssuer
	LDAP      *LDAPIssuer
	Retired   bool
}

// hasKind reports whether the file has the issuer's kind.
func (s Issuer) hasKind() bool {
	return s.Token != nil || s.Vault != nil || s.AWS != nil || s.Joins()
}

// Joins reports whether the issuer makes memberships.
func (s Issuer) Joins() bool { return s.SCIM != nil || s.LDAP != nil }

// A TokenIssuer is the broker's own signer.
type TokenIssuer struct {
	Audience        string
	ResourceServers []string // SPIFFE IDs that may introspect the tokens
}

// A VaultIssuer is a HashiCorp Vault or an OpenBao. The broker logs in with one of JWT, Cert
// and TokenFile. If all are empty, the address is an agent that does it.
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
		c.report("issuers", "write at least one issuer, such as tickets: {token: {audience: https://tickets.acme.test}}")
	}
	for _, name := range slices.Sorted(maps.Keys(c.d.file.Issuers)) {
		key, f := "issuers/"+name, c.d.file.Issuers[name]
		c.name(key, name)
		s := Issuer{Retired: f.Retired}
		switch f.kinds() {
		case "token":
			s.Token = c.tokenIssuer(key+"/token", f.Token)
		case "vault":
			s.Vault = c.vaultIssuer(key+"/vault", f.Vault)
		case "aws":
			s.AWS, s.AWSCAFile = c.awsIssuer(key+"/aws", f.AWS), c.path(f.AWS.CAFile)
		case "scim":
			s.SCIM = c.scimIssuer(key+"/scim", f.SCIM)
		case "ldap":
			s.LDAP = c.ldapIssuer(key+"/ldap", f.LDAP)
		default:
			c.report(key, "write exactly one kind: token: {audience: URL}, vault: {address: URL, …}, aws: {region: NAME, …}, scim: {url: URL, …} or ldap: {url: URL, …}")
		}
		c.cfg.Issuers[name] = s
	}
	c.reservedAudiences()
}

// kinds returns the kinds of an issuer in the file, which must be one.
func (f issuerFile) kinds() string {
	var kinds []string
	for kind, is := range map[string]bool{"token": f.Token != nil, "vault": f.Vault != nil, "aws": f.AWS != nil, "scim": f.SCIM != nil, "ldap": f.LDAP != nil} {
		if is {
			kinds = append(kinds, kind)
		}
	}
	return strings.Join(kinds, " ")
}

// reservedAudiences reports issuers of tokens with the audience of the broker's assertions
// to AWS. With such a token, a workload could assume roles without the broker.
func (c *checker) reservedAudiences() {
	for _, name := range slices.Sorted(maps.Keys(c.cfg.Issuers)) {
		for other, s := range c.cfg.Issuers {
			token := c.cfg.Issuers[name].Token
			if token != nil && s.AWS != nil && (token.Audience == s.AWS.Audience() || token.Audience == aws.DefaultAudience) {
				c.report("issuers/"+name+"/token/audience", "%s is the audience of the broker's own assertions to AWS (issuer %s), so a workload with such a token could assume roles: choose another audience", token.Audience, other)
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
		cfg.AssumeRole = &aws.AssumeRole{CredentialsFile: c.path(r.CredentialsFile), Profile: r.Profile}
	}
	cfg.Check(func(at, format string, args ...any) { c.report(key+"/"+at, format, args...) })
	return cfg
}

func (c *checker) tokenIssuer(key string, f *tokenFile) *TokenIssuer {
	u, err := url.Parse(string(f.Audience))
	if err != nil || !u.IsAbs() || u.Fragment != "" {
		c.report(key+"/audience", "write the absolute URI of the API that accepts the tokens")
	}
	t := &TokenIssuer{Audience: string(f.Audience), ResourceServers: neverNil(f.ResourceServers)}
	for i, id := range t.ResourceServers {
		at := fmt.Sprintf("%s/resource_servers/%d", key, i)
		if _, _, err := broker.ParseWorkloadID(id); err != nil {
			c.report(at, "%v: write the SPIFFE ID of a server that may introspect the tokens", err)
			continue
		}
		c.listedID(at, id)
	}
	return t
}

// mountForm is the form of the path of a mount, and of a token role. It excludes empty
// segments and dots, which could lead to another path.
var mountForm = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*$`)

func (c *checker) vaultIssuer(key string, f *vaultFile) *VaultIssuer {
	u, err := url.Parse(string(f.Address))
	loopback := err == nil && f.Auth.Agent && (u.Hostname() == "localhost" || u.Hostname() == "127.0.0.1" || u.Hostname() == "::1")
	if err != nil || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.Scheme != "https" && (u.Scheme != "http" || !loopback) {
		c.report(key+"/address", "write the Vault's URL, such as https://vault.acme.test:8200; http is only for an agent on this machine")
	}
	if !mountForm.MatchString(f.TokenRole) || strings.Contains(f.TokenRole, "/") {
		c.report(key+"/token_role", "write the token role that creates the tokens of leases: see docs/vault.md")
	}
	s := &VaultIssuer{
		Address: string(f.Address), Namespace: f.Namespace, TokenRole: f.TokenRole, CAFile: c.path(f.CAFile),
		JWT: c.vaultLogin(key+"/auth/jwt", f.Auth.JWT, "jwt"), Cert: c.vaultLogin(key+"/auth/cert", f.Auth.Cert, "cert"),
		TokenFile: c.path(f.Auth.TokenFile),
	}
	if s.JWT != nil {
		s.JWT.Audience = cmp.Or(s.JWT.Audience, s.Address)
	} else if s.Cert != nil && s.Cert.Audience != "" {
		c.report(key+"/auth/cert/audience", "only a JWT-SVID has an audience: remove this key")
	}
	if (s.JWT != nil || s.Cert != nil) && c.noWorkloadAPI() {
		c.report(key+"/auth", "the broker's own SVID comes from attest.workload_api: write that too, or use token_file")
	}
	ways := 0
	for _, given := range []bool{s.JWT != nil, s.Cert != nil, s.TokenFile != "", f.Auth.Agent} {
		if given {
			ways++
		}
	}
	if ways != 1 {
		c.report(key+"/auth", "write exactly one way to log in: jwt: {role: NAME}, cert: {role: NAME}, token_file: FILE or agent: true")
	}
	return s
}

func (c *checker) vaultLogin(key string, f *vaultLoginFile, mount string) *VaultLogin {
	if f == nil {
		return nil
	}
	login := &VaultLogin{Role: f.Role, Mount: cmp.Or(f.Mount, mount), Audience: string(f.Audience)}
	if login.Role == "" {
		c.report(key+"/role", "write the role that the Vault has for the broker")
	}
	if !mountForm.MatchString(login.Mount) {
		c.report(key+"/mount", "write the path where the auth method is mounted, such as %s", mount)
	}
	return login
}
