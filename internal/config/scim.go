package config

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/broker/directory"
	"accessbroker.internal/scim"
)

// scimFile is a directory that provisions the people of one provider.
type scimFile struct {
	Provider   string   `yaml:"provider"`
	Subject    string   `yaml:"subject"` // the attribute of users with the sub at the provider
	Groups     string   `yaml:"groups"`  // the attribute of groups that claims in groups.yaml name
	Manager    string   `yaml:"manager"` // the attribute of users by which others name their manager
	Clients    []string `yaml:"clients"` // SPIFFE IDs
	Unknown    string   `yaml:"unknown"` // people whom the source does not know: refuse or claims
	StaleAfter duration `yaml:"stale_after"`
	OnStale    string   `yaml:"on_stale"`
}

// A SCIMSource is a directory of the operator's file.
type SCIMSource struct {
	directory.Source
	Subject    string // the path of an attribute
	Clients    []string
	StaleAfter time.Duration
	OnStale    broker.OnStale
}

// scim checks the directories.
func (c *checker) scim() {
	list := c.d.file.SCIM
	for _, name := range slices.Sorted(maps.Keys(list)) {
		f := list[name]
		at := "scim/" + name
		if err := broker.CheckProvider(name); err != nil { // it is part of the names of facts
			c.report(at, "%q is not a valid name: use at most 32 lower-case letters, digits and dashes, and begin with a letter", name)
		}
		s := SCIMSource{
			Source: directory.Source{
				Name: name, Provider: f.Provider, Groups: cmp.Or(f.Groups, directory.GroupName),
				Manager: cmp.Or(f.Manager, directory.ManagerID), Open: f.Unknown == "claims",
			},
			Subject: f.Subject, Clients: f.Clients, StaleAfter: time.Duration(f.StaleAfter), OnStale: broker.OnStale(cmp.Or(f.OnStale, string(broker.OnStaleEnd))),
		}
		c.scimProvider(at, f.Provider)
		if _, err := scim.ParseSubject(f.Subject); err != nil {
			c.report(at+"/subject", "write the attribute of users that has the person's sub at the provider, such as externalId: %v", err)
		}
		c.oneOf(at+"/groups", s.Groups, directory.GroupName, directory.GroupExternalID)
		c.oneOf(at+"/manager", s.Manager, directory.ManagerID, directory.ManagerUserName, directory.ManagerExternalID)
		c.oneOf(at+"/unknown", cmp.Or(f.Unknown, "refuse"), "refuse", "claims")
		c.oneOf(at+"/on_stale", string(s.OnStale), string(broker.OnStaleEnd), string(broker.OnStaleHold))
		if f.StaleAfter != 0 && s.StaleAfter < time.Minute {
			c.report(at+"/stale_after", "must be at least 1m: it is how long the client may be silent")
		}
		if f.StaleAfter == 0 && !c.d.isRejected(at+"/stale_after") {
			c.warn(at, "without stale_after, the last state of this source counts for ever if its client stops: write stale_after if the client calls regularly (Entra ID: every 40 minutes)")
		}
		c.scimClients(at, f.Clients)
		c.cfg.SCIM = append(c.cfg.SCIM, s)
	}
}

// scimProvider checks the provider of a source. A provider has at most one.
func (c *checker) scimProvider(at, provider string) {
	providers := c.cfg.ProviderNames()
	switch {
	case provider == "":
		c.report(at+"/provider", "write the name of the provider in attest.people whose people this source provisions")
	case !slices.Contains(providers, provider):
		c.report(at+"/provider", "the provider %q is not in attest.people%s", provider, broker.DidYouMean(broker.Nearest(provider, providers)))
	case slices.ContainsFunc(c.cfg.SCIM, func(other SCIMSource) bool { return other.Provider == provider }):
		c.report(at+"/provider", "another source provisions the people of %q: a provider has one source", provider)
	}
}

// scimClients checks the workloads that may provision. Each provisions one source.
func (c *checker) scimClients(at string, clients []string) {
	for i, id := range clients {
		key := fmt.Sprintf("%s/clients/%d", at, i)
		if _, _, err := broker.ParseWorkloadID(id); err != nil {
			c.report(key, "%v", err)
			continue
		}
		c.listedID(key, id)
		if slices.ContainsFunc(c.cfg.SCIM, func(other SCIMSource) bool { return slices.Contains(other.Clients, id) }) || slices.Contains(clients[:i], id) {
			c.report(key, "%s is a client of two sources, or is listed twice: a client provisions one source", id)
		}
	}
}

// oneOf reports a value that is not one of the choices.
func (c *checker) oneOf(key, value string, choices ...string) {
	if !slices.Contains(choices, value) {
		c.report(key, "choose %s", strings.Join(choices, " or "))
	}
}
