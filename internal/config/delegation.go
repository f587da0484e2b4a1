package config

import (
	"fmt"
	"maps"
	"slices"

	"accessbroker.internal/broker"
)

// delegation checks which tokens of the providers let callers act on behalf of people.
func (c *checker) delegation() {
	for i := range c.cfg.Providers {
		p := &c.cfg.Providers[i]
		at := "attest/people/" + p.Name
		if c.cfg.ExternalURL != nil {
			p.Delegation.Audience = c.cfg.ExternalURL.String()
		}
		source := slices.IndexFunc(c.cfg.SCIM, func(s SCIMSource) bool { return s.Provider == p.Name && !s.Open })
		p.Delegation.GroupsElsewhere = source >= 0
		c.delegationAudiences(at+"/delegation_audiences", p.Delegation.Audiences)
		c.delegationClients(at+"/delegation/clients", p)
		if !p.Delegation.IDJAGs && len(p.Delegation.Audiences) == 0 {
			if len(p.Delegation.Clients) > 0 || p.Delegation.Tenant != "" {
				c.warn(at+"/delegation", "no token lets anyone act for people: write id_jag: true if the provider issues ID-JAGs, or delegation_audiences")
			}
			continue
		}
		c.delegationProvider(at, p)
	}
}

// delegationProvider checks a provider that has delegation.
func (c *checker) delegationProvider(at string, p *Provider) {
	// A token names its issuer only, so that its person would be that of either provider.
	if slices.ContainsFunc(c.cfg.Providers, func(other Provider) bool { return other.Name != p.Name && other.Issuer == p.Issuer }) {
		c.report(at+"/issuer", "another provider has the same issuer: a token for delegation would name people of both; configure one provider")
	}
	if len(p.Delegation.Clients) == 0 {
		c.warn(at+"/delegation", "without clients, only a caller whose SPIFFE ID is the client_id of the token can act for a person: map client IDs to SPIFFE IDs in delegation.clients")
	}
	if p.GroupsClaim != "" && !p.Delegation.GroupsElsewhere {
		c.warn(at+"/groups_claim", "a token without the claim %q lets no one act for a person: let the provider put it into ID-JAGs and access tokens, even if it is empty, or provision the groups by SCIM", p.GroupsClaim)
	}
}

// maxDelegationText bounds an audience or a client ID, in bytes.
const maxDelegationText = 512

func (c *checker) delegationAudiences(key string, list []string) {
	for i, audience := range list {
		if audience == "" || len(audience) > maxDelegationText || slices.Contains(list[:i], audience) {
			c.report(fmt.Sprintf("%s/%d", key, i), "write an audience of at most %d bytes, once", maxDelegationText)
		}
	}
}

// delegationClients checks which callers are which OAuth clients of the provider.
func (c *checker) delegationClients(key string, p *Provider) {
	for _, client := range slices.Sorted(maps.Keys(p.Delegation.Clients)) {
		at, callers := key+"/"+client, p.Delegation.Clients[client]
		switch {
		case client == "" || len(client) > maxDelegationText:
			c.report(key, "write a client ID of at most %d bytes", maxDelegationText)
		case client == p.ClientID:
			c.report(at, "%q is the broker's own client, with which people log in: no caller acts with its tokens", client)
		case len(callers) == 0:
			c.report(at, "write the SPIFFE IDs of the callers that are this client")
		}
		if _, _, err := broker.ParseWorkloadID(client); err == nil {
			c.report(at, "a SPIFFE ID stands for itself: remove the entry, and let the provider issue tokens with this client_id")
		}
		for i, id := range callers {
			c.listedID(fmt.Sprintf("%s/%d", at, i), id)
			if slices.Contains(callers[:i], id) {
				c.report(fmt.Sprintf("%s/%d", at, i), "%s is listed twice", id)
			}
		}
	}
}
