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
	"accessbroker.internal/broker"
)

// A Provider is an OpenID provider with which people log in.
type Provider struct {
	Name, Issuer, ClientID, SecretFile, CAFile string
	GroupsClaim, ManagerClaim                  string
	EndsClaim, SponsorClaim                    string
	Scopes                                     []string // nil: the usual ones

	Delegation attest.DelegationConfig
}

func (c *checker) attest() {
	f := &c.d.file.Attest
	c.people(f.People)
	c.aliases(c.d.file.People.Aliases)
	c.sessions(c.d.file.Server.Sessions)
	c.ticket(string(c.d.file.Server.TicketURL))
	if c.cfg.Audiences = neverNil(f.Audiences); len(c.cfg.Audiences) == 0 {
		c.cfg.Audiences = []string{c.cfg.ExternalURL.String()}
	}
	if c.d.isRejected("attest/trust_domain") || c.d.isRejected("attest/trust_domains") {
		return
	}
	c.cfg.TrustDomain = f.TrustDomain
	c.cfg.TrustDomains = f.TrustDomains
	if err := broker.CheckTrustDomain(f.TrustDomain); err != nil {
		c.report("attest/trust_domain", "%v; write the broker's own trust domain, such as acme.test", err)
	}
	if len(f.TrustDomains) == 0 {
		c.cfg.TrustDomains = []string{f.TrustDomain}
	}
	for i, td := range f.TrustDomains {
		if err := broker.CheckTrustDomain(td); err != nil {
			c.report(fmt.Sprintf("attest/trust_domains/%d", i), "%v", err)
		}
	}
	if !slices.Contains(c.cfg.TrustDomains, f.TrustDomain) && broker.CheckTrustDomain(f.TrustDomain) == nil {
		c.report("attest/trust_domains", "must also list the broker's own trust domain, %q", f.TrustDomain)
	}
	c.trust(f)
	c.oidcWorkloads()
	c.accountability(f)
	for i, m := range f.Workloads {
		c.workload(fmt.Sprintf("attest/workloads/%d", i), m)
	}
}

// longestOrphanGrace bounds orphan_grace.
const longestOrphanGrace = 90 * 24 * time.Hour

// defaultOrphanGrace is how long a workload that is not an agent gets credentials after
// its last accountable person ended: services must not stop over a weekend.
const defaultOrphanGrace = 72 * time.Hour

// accountability checks who is responsible for workloads: the own trust domains, and
// what happens without accountable people.
func (c *checker) accountability(f *attestFile) {
	for i, domain := range f.InternalDomains {
		key := fmt.Sprintf("attest/internal_domains/%d", i)
		switch {
		case domain == f.TrustDomain:
			c.report(key, "%q is the broker's own trust domain, which is internal anyway: remove it", domain)
		case !slices.Contains(c.cfg.AllDomains(), domain):
			c.report(key, "%q is not in attest.trust_domains%s", domain,
				cmp.Or(broker.DidYouMean(broker.Nearest(domain, c.cfg.AllDomains())), ": list it there, or remove it"))
		}
	}
	c.cfg.InternalDomains = f.InternalDomains
	c.cfg.OrphanGrace = map[broker.Kind]time.Duration{broker.KindAgent: 0, broker.KindWorkload: defaultOrphanGrace}
	for kind, grace := range map[broker.Kind]*delay{broker.KindAgent: f.OrphanGrace.Agents, broker.KindWorkload: f.OrphanGrace.Workloads} {
		if grace != nil {
			c.cfg.OrphanGrace[kind] = time.Duration(*grace)
		}
	}
	for key, grace := range map[string]time.Duration{"agents": c.cfg.OrphanGrace[broker.KindAgent], "workloads": c.cfg.OrphanGrace[broker.KindWorkload]} {
		if grace < 0 || grace > longestOrphanGrace {
			c.report("attest/orphan_grace/"+key, "must be 0s to %s: it is how long a workload gets credentials after its last accountable person ended", broker.FormatDuration(longestOrphanGrace))
		}
	}
}

// noWorkloadAPI reports whether the file has no Workload API.
func (c *checker) noWorkloadAPI() bool {
	return c.d.file.Attest.WorkloadAPI == "" && !c.d.isRejected("attest/workload_api")
}

// trust checks the source of trust bundles.
func (c *checker) trust(f *attestFile) {
	switch {
	case f.WorkloadAPI == "" && len(f.Bundles) == 0 && len(f.OIDCWorkloads) > 0:
		c.cfg.WithoutSVIDs = true
		if len(f.TrustDomains) > 0 {
			c.report("attest/trust_domains", "no workload of a trust domain can prove its SVID without workload_api or bundles: add one of them, or remove this key")
		}
		return
	case f.WorkloadAPI == "" && len(f.Bundles) == 0:
		c.report("attest", "the broker needs trust bundles: write workload_api: unix:///path/to/agent.sock, or bundles: {%s: FILE}, or oidc_workloads if no workload has an SVID", f.TrustDomain)
	case f.WorkloadAPI != "" && len(f.Bundles) > 0:
		c.report("attest/bundles", "write workload_api or bundles, not both")
	case f.WorkloadAPI != "":
		if err := attest.CheckWorkloadAPI(string(f.WorkloadAPI)); err != nil {
			c.report("attest/workload_api", "%v", err)
		}
	}
	if strings.HasPrefix(string(f.WorkloadAPI), "unix:") {
		c.socketLength("attest/workload_api", string(f.WorkloadAPI))
	}
	c.cfg.WorkloadAPI = string(f.WorkloadAPI)
	if c.cfg.BundleMaxAge = time.Duration(f.BundleMaxAge); f.BundleMaxAge != 0 && (c.cfg.BundleMaxAge < time.Minute || c.cfg.BundleMaxAge > longestBundleAge) {
		c.report("attest/bundle_max_age", "must be 1m to %s: it is how long a bundle stays trusted while it cannot be read", broker.FormatDuration(longestBundleAge))
	}
	c.cfg.Bundles = map[string]string{}
	for td, path := range f.Bundles {
		if !slices.Contains(c.cfg.TrustDomains, td) {
			c.report("attest/bundles/"+td, "the trust domain is not in trust_domains: add it there")
		}
		c.cfg.Bundles[td] = c.path(path)
	}
	for i, td := range c.cfg.TrustDomains {
		if _, ok := f.Bundles[td]; f.WorkloadAPI == "" && !ok && len(f.Bundles) > 0 {
			c.report(fmt.Sprintf("attest/trust_domains/%d", i), "bundles has no file for %s: add one", td)
		}
	}
}

// longestBundleAge bounds bundle_max_age.
const longestBundleAge = 7 * 24 * time.Hour

// bundles reads the files of bundles. A key that the broker leaves out is a warning,
// because the others work.
func (c *checker) bundles() {
	for _, td := range slices.Sorted(maps.Keys(c.cfg.Bundles)) {
		if broker.CheckTrustDomain(td) != nil {
			continue // reported already
		}
		warnings, err := attest.ReadBundle(td, c.cfg.Bundles[td])
		if err != nil {
			c.report("attest/bundles/"+td, "%v", err)
		}
		for _, text := range warnings {
			c.warn("attest/bundles/"+td, "the bundle of %s: %s", td, text)
		}
	}
}

func (c *checker) workload(key string, m workloadFile) {
	kind := broker.Kind(cmp.Or(m.Kind, string(broker.KindWorkload)))
	if kind != broker.KindWorkload && kind != broker.KindAgent {
		c.report(key+"/kind", "choose workload or agent")
	}
	c.listedID(key+"/under", string(m.Under))
	if slices.ContainsFunc(c.cfg.Labels, func(other broker.WorkloadLabels) bool { return other.Under == string(m.Under) }) {
		c.report(key+"/under", "%s is listed twice: remove one of the entries", m.Under)
	}
	labels := broker.WorkloadLabels{Under: string(m.Under), Kind: kind, Team: m.Team, Accountable: m.Accountable}
	c.marks(key, &m, &labels)
	c.cfg.Labels = append(c.cfg.Labels, labels)
}

// listedID checks a SPIFFE ID, or a prefix of one that ends at a segment. Its trust domain
// must be listed.
func (c *checker) listedID(key, id string) {
	domain, _, err := broker.ParseSPIFFEID(id)
	switch {
	case err != nil:
		c.report(key, "%v: write a SPIFFE ID, or a prefix of one that ends at a segment, such as spiffe://%s/agent", err, c.cfg.TrustDomain)
	case slices.ContainsFunc(c.wrong, func(key string) bool { return strings.HasPrefix(key, "attest/trust_domain") }): // this mistake may follow from it
	case len(c.cfg.TrustDomains) > 0 && !slices.Contains(c.cfg.AllDomains(), domain):
		c.report(key, "%q is not in attest.trust_domains%s", domain,
			cmp.Or(broker.DidYouMean(broker.Nearest(domain, c.cfg.AllDomains())), ": list it there, or correct the name"))
	}
}

// people checks the OpenID providers.
func (c *checker) people(list map[string]personFile) {
	for _, name := range slices.Sorted(maps.Keys(list)) {
		f := list[name]
		at := "attest/people/" + name
		if err := broker.CheckProvider(name); err != nil {
			c.report(at, "%v", err)
		}
		u, err := url.Parse(string(f.Issuer))
		if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Scheme != "https" && !isLoopback(u) {
			c.report(at+"/issuer", "write the provider's issuer, an https URL, exactly as in its tokens")
		}
		if f.ClientID == "" || slices.Contains(f.DelegationAudiences, f.ClientID) {
			c.report(at+"/client_id", "write the client ID that the provider has for the broker; delegation_audiences are other clients")
		}
		if f.ClientSecretFile == "" {
			c.report(at+"/client_secret_file", "write the file of the client secret")
		} else {
			c.secret(at+"/client_secret_file", f.ClientSecretFile)
		}
		c.roots(at+"/ca_file", f.CAFile)
		var scopes []string // nil: the usual ones; an empty list: none
		if f.Scopes != nil {
			scopes = neverNil(f.Scopes)
		}
		c.cfg.Providers = append(c.cfg.Providers, Provider{
			Name: name, Issuer: string(f.Issuer), ClientID: f.ClientID, SecretFile: c.path(f.ClientSecretFile),
			GroupsClaim: f.GroupsClaim, ManagerClaim: f.ManagerClaim, EndsClaim: f.EndsClaim, SponsorClaim: f.SponsorClaim, CAFile: c.path(f.CAFile), Scopes: scopes,
			Delegation: attest.DelegationConfig{IDJAGs: f.Delegation.IDJAG, Audiences: f.DelegationAudiences, Clients: f.Delegation.Clients, Tenant: f.Delegation.Tenant},
		})
	}
}

// aliases checks the accounts of people who have several.
func (c *checker) aliases(list [][]string) {
	providers := c.cfg.ProviderNames()
	for i, accounts := range list {
		at := fmt.Sprintf("people/aliases/%d", i)
		c.cfg.Aliases = append(c.cfg.Aliases, neverNil(accounts))
		// The lists before this one are right, or reported.
		if _, err := broker.NewPeople(c.cfg.Aliases[i:]); err != nil {
			c.report(at, "%v", err)
		}
		for j, account := range accounts {
			provider, _, err := broker.ParsePerson(account)
			if err == nil && !slices.Contains(providers, provider) {
				c.report(fmt.Sprintf("%s/%d", at, j), "there is no provider %q in attest.people%s", provider, broker.DidYouMean(broker.Nearest(provider, providers)))
			}
			if slices.ContainsFunc(c.cfg.Aliases[:i], func(other []string) bool { return slices.Contains(other, account) }) {
				c.report(fmt.Sprintf("%s/%d", at, j), "%q is also an account of another person: an account belongs to one person", account)
			}
		}
	}
}

// isLoopback reports whether a URL is plain HTTP to this machine.
func isLoopback(u *url.URL) bool {
	return u.Scheme == "http" && (u.Hostname() == "localhost" || u.Hostname() == "127.0.0.1" || u.Hostname() == "::1")
}
