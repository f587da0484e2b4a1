package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"maps"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/issuers"
)

// issuerSettings are those of one issuer: of one kind, or of one that is
// retired.
type issuerSettings struct {
	token   *tokenSettings
	vault   *vaultSettings
	retired bool
}

type tokenSettings struct {
	audience        string
	resourceServers []string
}

type vaultSettings struct {
	address, namespace, tokenRole, caFile string
	jwt, cert                             *vaultLoginFile
	tokenFile                             string
}

func (c *checker) issuers() {
	c.s.issuers = map[string]issuerSettings{}
	if len(c.d.file.Issuers) == 0 {
		c.bad("issuers", "name at least one, such as tickets: {token: {audience: https://tickets.acme.test}}")
	}
	for _, name := range slices.Sorted(maps.Keys(c.d.file.Issuers)) {
		key, f := "issuers/"+name, c.d.file.Issuers[name]
		c.name(key, name)
		s := issuerSettings{retired: f.Retired}
		switch {
		case f.Token != nil && f.Vault == nil:
			s.token = c.tokenIssuer(key+"/token", f.Token)
		case f.Vault != nil && f.Token == nil:
			s.vault = c.vaultIssuer(key+"/vault", f.Vault)
		default:
			c.bad(key, "say what kind it is, and only one: token: {audience: URL} or vault: {address: URL, …}")
		}
		c.s.issuers[name] = s
	}
}

func (c *checker) tokenIssuer(key string, f *tokenFile) *tokenSettings {
	u, err := url.Parse(string(f.Audience))
	if err != nil || !u.IsAbs() || u.Fragment != "" {
		c.bad(key+"/audience", "give the absolute URI of the API that the tokens are for")
	}
	t := &tokenSettings{audience: string(f.Audience), resourceServers: toStrings(f.ResourceServers)}
	for i, id := range t.resourceServers {
		if !strings.HasPrefix(id, "spiffe://") {
			c.bad(fmt.Sprintf("%s/resource_servers/%d", key, i), "give the SPIFFE ID of a server that may introspect these tokens")
		}
	}
	return t
}

// mountForm is that of a mount or of a token role: one segment or more, and
// nothing that would lead elsewhere.
var mountForm = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*$`)

func (c *checker) vaultIssuer(key string, f *vaultFile) *vaultSettings {
	u, err := url.Parse(string(f.Address))
	loopback := err == nil && f.Auth.Agent && (u.Hostname() == "localhost" || u.Hostname() == "127.0.0.1" || u.Hostname() == "::1")
	if err != nil || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.Scheme != "https" && (u.Scheme != "http" || !loopback) {
		c.bad(key+"/address", "give the Vault's URL, such as https://vault.acme.test:8200; http is for an agent on this machine only")
	}
	if !mountForm.MatchString(f.TokenRole) || strings.Contains(f.TokenRole, "/") {
		c.bad(key+"/token_role", "name the token role by which the tokens of leases are made: see docs/vault.md")
	}
	s := &vaultSettings{
		address: string(f.Address), namespace: f.Namespace, tokenRole: f.TokenRole, caFile: c.file(f.CAFile),
		jwt: c.vaultLogin(key+"/auth/jwt", f.Auth.JWT, "jwt"), cert: c.vaultLogin(key+"/auth/cert", f.Auth.Cert, "cert"),
		tokenFile: c.file(f.Auth.TokenFile),
	}
	if s.jwt != nil {
		s.jwt.Audience = plain(cmp.Or(string(s.jwt.Audience), s.address))
	} else if s.cert != nil && s.cert.Audience != "" {
		c.bad(key+"/auth/cert/audience", "only a JWT-SVID has an audience")
	}
	if (s.jwt != nil || s.cert != nil) && c.d.file.Attest.WorkloadAPI == "" {
		c.bad(key+"/auth", "the broker's own SVID comes from attest.workload_api: name it, or give a token_file")
	}
	ways := 0
	for _, given := range []bool{s.jwt != nil, s.cert != nil, s.tokenFile != "", f.Auth.Agent} {
		if given {
			ways++
		}
	}
	if ways != 1 {
		c.bad(key+"/auth", "say how the broker logs in, and only one way: jwt: {role: NAME}, cert: {role: NAME}, token_file: FILE or agent: true")
	}
	return s
}

func (c *checker) vaultLogin(key string, f *vaultLoginFile, mount string) *vaultLoginFile {
	if f == nil {
		return nil
	}
	login := &vaultLoginFile{Role: f.Role, Mount: cmp.Or(f.Mount, mount), Audience: f.Audience}
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
func (c *checker) spec(key string, issuer issuerSettings, f entitlementFile, e *broker.Entitlement) {
	effect := audit.NewObject().String("entitlement", e.Name).String("issuer", e.Issuer).String("binding", string(e.Binding))
	if issuer.vault == nil {
		if f.Vault != nil {
			c.bad(key+"/vault", "its issuer, %q, is no Vault", e.Issuer)
		}
		if f.Scopes.adds != nil {
			c.bad(key+"/scopes", "the scopes of tokens are names alone: [read, write]")
		}
	}
	switch {
	case issuer.token != nil:
		e.Audience, e.Introspectors = issuer.token.audience, issuer.token.resourceServers
		effect.String("kind", "token").String("audience", e.Audience)
	case issuer.vault != nil:
		spec := c.vaultSpec(key, f, e)
		e.Spec, e.Revocation = spec, spec.Revocation()
		effect.String("kind", "vault").Hex("spec", spec.Digest())
	}
	e.Effect = audit.HashObject("accessbroker/effect/v1", effect)
}

func (c *checker) vaultSpec(key string, f entitlementFile, e *broker.Entitlement) *issuers.VaultSpec {
	if f.Vault == nil {
		c.bad(key+"/vault", "say what the Vault is asked for, such as {path: database/creds/orders-ro}")
		return &issuers.VaultSpec{}
	}
	if e.Binding != broker.BindingNone {
		c.bad(key+"/binding", "only the broker's own tokens can be bound")
	}
	v := f.Vault
	spec := &issuers.VaultSpec{Path: v.Path, Policies: v.Policies, Type: v.Type, Wrap: v.Wrap, Lasting: v.Ephemeral != nil && !*v.Ephemeral}
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

// makeIssuers makes every issuer that the settings name, the retired ones too:
// what they made has to be ended.
func (v *service) makeIssuers() (map[string]broker.Issuer, error) {
	list := map[string]broker.Issuer{}
	for name, s := range v.settings.issuers {
		switch {
		case s.token != nil:
			list[name] = issuers.NewToken(v.settings.externalURL.String(), s.token.audience, v.keys)
		case s.vault != nil:
			vault, err := v.makeVault(name, s.vault)
			if err != nil {
				return nil, fmt.Errorf("issuer %s: %w", name, err)
			}
			list[name] = vault
			v.loops = append(v.loops, vault.Run)
		}
	}
	return list, nil
}

func (v *service) makeVault(name string, s *vaultSettings) (*issuers.Vault, error) {
	cfg := issuers.VaultConfig{
		Name: name, Address: s.address, Namespace: s.namespace, TokenRole: s.tokenRole, Log: v.log,
		TLS: &tls.Config{MinVersion: tls.VersionTLS12},
	}
	if s.tokenFile != "" {
		cfg.Login.Token = func() (string, error) { return readToken(s.tokenFile) }
	}
	if s.caFile != "" {
		text, err := os.ReadFile(s.caFile)
		if err != nil {
			return nil, fmt.Errorf("reading the Vault's CA: %w", err)
		}
		cfg.TLS.RootCAs = x509.NewCertPool()
		if !cfg.TLS.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("%s holds no certificate", s.caFile)
		}
	}
	if s.jwt != nil {
		cfg.Login.JWT = &issuers.VaultJWT{Mount: s.jwt.Mount, Role: s.jwt.Role, Audience: string(s.jwt.Audience), SVID: v.ownJWTSVID}
	}
	if s.cert != nil {
		cfg.Login.Cert = &issuers.VaultCert{Mount: s.cert.Mount, Role: s.cert.Role}
		cfg.TLS.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return v.trust.GetCertificate(nil) }
	}
	return issuers.NewVault(cfg)
}

// ownJWTSVID gets the broker's own JWT-SVID.
func (v *service) ownJWTSVID(ctx context.Context, audience string) (string, error) {
	token, _, err := v.trust.FetchJWTSVID(ctx, audience)
	return token, err
}
