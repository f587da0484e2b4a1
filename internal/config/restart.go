package config

import (
	"reflect"
	"time"
)

// NeedsRestart returns the keys whose values differ in fresh and that a reload does
// not replace.
func (c *Config) NeedsRestart(fresh *Config) (changed []string) {
	for _, part := range []struct {
		name       string
		old, fresh any
	}{
		{"server.external_url", c.ExternalURL, fresh.ExternalURL},
		{"server.listeners", c.Listeners, fresh.Listeners},
		{"server.metrics", c.Metrics, fresh.Metrics},
		{"server.admin_socket", c.AdminSocket, fresh.AdminSocket},
		{"server.seal_keys", c.SealKeys, fresh.SealKeys},
		{"server.signing", c.Signing, fresh.Signing},
		{"server.admission", c.Admission, fresh.Admission},
		{"server.checkpoint_file", c.CheckpointFile, fresh.CheckpointFile},
		{"server.log", []any{c.LogFormat, c.LogLevel}, []any{fresh.LogFormat, fresh.LogLevel}},
		{"attest.trust_domain", c.TrustDomain, fresh.TrustDomain},
		{"attest.trust_domains", c.TrustDomains, fresh.TrustDomains},
		{"attest.audiences", c.Audiences, fresh.Audiences},
		{"attest.workload_api", c.WorkloadAPI, fresh.WorkloadAPI},
		{"attest.people", c.Providers, fresh.Providers},
		{"server.sessions", []time.Duration{c.SessionIdle, c.SessionLasts}, []time.Duration{fresh.SessionIdle, fresh.SessionLasts}},
		{"server.ticket_url", c.TicketURL, fresh.TicketURL},
		{"attest.bundles", c.Bundles, fresh.Bundles},
		{"store", c.Store, fresh.Store},
		{"issuers", c.Issuers, fresh.Issuers},
	} {
		if !reflect.DeepEqual(part.old, part.fresh) {
			changed = append(changed, part.name)
		}
	}
	return changed
}
