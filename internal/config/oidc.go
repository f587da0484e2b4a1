package config

import (
	"cmp"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/attest"
	"accessbroker.internal/attest/mapping"
	"accessbroker.internal/broker"
)

// A WorkloadIssuer is an issuer of OIDC tokens of workloads, which need no SVID.
type WorkloadIssuer struct {
	Name, Issuer, Audience, TrustDomain   string
	JWKSURI, JWKSFile, CAFile, BearerFile string
	Algorithms                            []string
	MaxLifetime                           time.Duration
	Reusable                              bool // a token may be used for several credentials
	Rules                                 []*mapping.Compiled
}

// Limits of the lifetimes of tokens of workloads, from iat to exp. Those of Azure are valid
// for a day and five minutes.
const (
	defaultTokenLifetime = time.Hour
	longestTokenLifetime = 25 * time.Hour
)

// OIDCDomains returns the trust domains whose workloads have OIDC tokens and no SVIDs, sorted.
func (c *Config) OIDCDomains() (list []string) {
	for _, i := range c.WorkloadIssuers {
		if !slices.Contains(c.TrustDomains, i.TrustDomain) {
			list = append(list, i.TrustDomain)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// AllDomains returns the trust domains of all workloads that may authenticate.
func (c *Config) AllDomains() []string { return slices.Concat(c.TrustDomains, c.OIDCDomains()) }

// oidcWorkloads checks the issuers of OIDC tokens of workloads.
func (c *checker) oidcWorkloads() {
	for _, name := range slices.Sorted(maps.Keys(c.d.file.Attest.OIDCWorkloads)) {
		at := "attest/oidc_workloads/" + name
		c.name(at, name)
		f := c.d.file.Attest.OIDCWorkloads[name]
		i := c.workloadIssuer(at, name, &f)
		for _, other := range c.cfg.WorkloadIssuers {
			if other.Issuer == i.Issuer {
				c.report(at+"/issuer", "%s has the same issuer: write the rules of both under one name", other.Name)
			}
			c.overlap(at, &other, &i)
		}
		c.cfg.WorkloadIssuers = append(c.cfg.WorkloadIssuers, i)
	}
}

func (c *checker) workloadIssuer(at, name string, f *workloadIssuerFile) WorkloadIssuer {
	i := WorkloadIssuer{
		Name: name, Issuer: f.Issuer, Audience: f.Audience, TrustDomain: f.TrustDomain, JWKSURI: f.JWKSURI, JWKSFile: c.path(f.JWKSFile),
		CAFile: c.path(f.CAFile), BearerFile: c.path(f.TokenFile), Algorithms: f.Algorithms, Reusable: f.OneTime != nil && !*f.OneTime,
		MaxLifetime: cmp.Or(time.Duration(f.MaxLifetime), defaultTokenLifetime),
	}
	if err := attest.CheckWorkloadIssuer(f.Issuer); err != nil {
		c.report(at+"/issuer", "%v", err)
	}
	if i.MaxLifetime > longestTokenLifetime {
		c.report(at+"/max_lifetime", "must be at most %s: it is how long a token may be valid", broker.FormatDuration(longestTokenLifetime))
	}
	if i.Audience == "" && c.cfg.ExternalURL != nil {
		i.Audience = c.cfg.ExternalURL.String()
	}
	c.workloadAudience(at+"/audience", i.Audience)
	c.workloadAlgorithms(at+"/algorithms", &i)
	c.workloadKeys(at, f)
	c.workloadDomain(at, f)
	c.mappingRules(at+"/rules", f, &i)
	c.reusable(at, f)
	return i
}

// workloadAudience checks that no other kind of token has the audience: it says what a token
// is for.
func (c *checker) workloadAudience(key, audience string) {
	if audience == "" || len(audience) > maxDelegationText {
		c.report(key, "write the audience of the broker's tokens, at most %d bytes", maxDelegationText)
	}
	if c.cfg.ExternalURL != nil && audience == c.cfg.ExternalURL.String()+"/mcp" {
		c.report(key, "%q is the audience of access tokens for the MCP endpoint: write another one, such as %s", audience, c.cfg.ExternalURL)
	}
	for _, p := range c.cfg.Providers {
		if audience == p.ClientID || slices.Contains(p.Delegation.Audiences, audience) {
			c.report(key, "%q is an audience of tokens of people, under attest.people.%s: write another one", audience, p.Name)
		}
	}
}

func (c *checker) workloadAlgorithms(key string, i *WorkloadIssuer) {
	known := attest.WorkloadAlgorithms()
	if len(i.Algorithms) == 0 {
		i.Algorithms = known
		return
	}
	for n, alg := range i.Algorithms {
		if !slices.Contains(known, alg) {
			c.report(fmt.Sprintf("%s/%d", key, n), "%q: choose from %s", alg, strings.Join(known, ", "))
		}
	}
}

// workloadKeys checks where the issuer's keys come from.
func (c *checker) workloadKeys(at string, f *workloadIssuerFile) {
	if f.JWKSFile != "" {
		for key, value := range map[string]string{"jwks_uri": f.JWKSURI, "ca_file": f.CAFile, "bearer_token_file": f.TokenFile} {
			if value != "" {
				c.report(at+"/"+key, "has no effect next to jwks_file: remove one of them")
			}
		}
	}
	if f.JWKSURI != "" {
		if u, err := url.Parse(f.JWKSURI); err != nil || u.Host == "" || u.User != nil || u.Fragment != "" || u.Scheme != "https" && !isLoopback(u) {
			c.report(at+"/jwks_uri", "write the https URL of the issuer's keys")
		}
	}
	c.roots(at+"/ca_file", f.CAFile)
	if f.TokenFile != "" {
		c.secret(at+"/bearer_token_file", f.TokenFile)
	}
}

// workloadDomain checks the trust domain of the IDs. An issuer can make up any ID in it, so
// that it must not be one of SVIDs unless the operator says so.
func (c *checker) workloadDomain(at string, f *workloadIssuerFile) {
	key := at + "/trust_domain"
	if err := broker.CheckTrustDomain(f.TrustDomain); err != nil {
		c.report(key, "%v; write a trust domain for the workloads of this issuer, such as ci.%s", err, cmp.Or(c.d.file.Attest.TrustDomain, "acme.test"))
		return
	}
	listed := slices.Contains(c.cfg.TrustDomains, f.TrustDomain)
	switch {
	case listed && !f.Shared:
		c.report(key, "workloads of %s have SVIDs, and a rule could give a token the ID of one: write another trust domain, such as ci.%s, or shared_trust_domain: true if that is intended", f.TrustDomain, f.TrustDomain)
	case !listed && f.Shared:
		c.report(at+"/shared_trust_domain", "no workload of %s has an SVID: remove the key, or list the trust domain in attest.trust_domains", f.TrustDomain)
	}
}

// mappingRules compiles the rules.
func (c *checker) mappingRules(key string, f *workloadIssuerFile, i *WorkloadIssuer) {
	if len(f.Rules) == 0 || len(f.Rules) > mapping.MaxRules {
		c.report(key, "write 1 to %d rules, which map claims to SPIFFE IDs", mapping.MaxRules)
	}
	known := platformOf(f.Issuer, f.Rules)
	for n, rule := range f.Rules {
		at := fmt.Sprintf("%s/%d", key, n)
		rule = c.knownRule(at, known, rule)
		compiled, err := mapping.Compile(mapping.Rule{Claims: rule.Claims, SPIFFEID: rule.SPIFFEID})
		if err != nil {
			c.report(at, "%v", err)
			continue
		}
		if compiled.TrustDomain() != f.TrustDomain {
			c.report(at+"/spiffe_id", "the SPIFFE ID must be in the trust domain of the issuer's workloads, %s", f.TrustDomain)
		}
		i.Rules = append(i.Rules, compiled)
	}
}

// reusable warns of tokens that their platform means to be used until they expire.
func (c *checker) reusable(key string, f *workloadIssuerFile) {
	kubernetes := func(r mappingRuleFile) bool { _, ok := r.Claims["kubernetes.io"]; return ok }
	if f.OneTime == nil && slices.ContainsFunc(f.Rules, kubernetes) {
		c.warn(key, "a pod uses its token until it expires, and with one_time, the default, gets one credential with it: write one_time: false, or one_time: true if that is intended")
	}
}

// overlap warns of an ID that two issuers can prove.
func (c *checker) overlap(at string, a, b *WorkloadIssuer) {
	for n, rule := range b.Rules {
		if slices.ContainsFunc(a.Rules, rule.Overlaps) {
			c.warn(fmt.Sprintf("%s/rules/%d/spiffe_id", at, n), "a rule of %s may make the same SPIFFE ID, so that either issuer can prove it: if they are not one system, put a different segment into each, such as the issuer's name", a.Name)
			return
		}
	}
}
