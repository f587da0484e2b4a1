package config

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// OAuth configures the clients of the token endpoint.
type OAuth struct {
	RequireClientID bool                // of callers with an X.509-SVID
	Clients         map[string][]string // SPIFFE IDs of a client identifier, and with "/*" at the end all below them
}

// oauth checks the client identifiers. The trust domains of workloads are known by then.
func (c *checker) oauth() {
	f := &c.d.file.Server.OAuth
	c.cfg.OAuth = OAuth{RequireClientID: f.RequireClientID, Clients: f.Clients}
	for _, client := range slices.Sorted(maps.Keys(f.Clients)) {
		at := "server/oauth/clients/" + client
		switch {
		case client == "" || len(client) > maxDelegationText:
			c.report("server/oauth/clients", "write a client ID of at most %d bytes", maxDelegationText)
		case strings.HasPrefix(client, "spiffe:"):
			c.report(at, "a SPIFFE ID stands for itself: write another client ID")
		case len(f.Clients[client]) == 0:
			c.report(at, "write the SPIFFE IDs of the client")
		}
		for i, id := range f.Clients[client] {
			c.listedID(fmt.Sprintf("%s/%d", at, i), strings.TrimSuffix(id, "/*"))
			if slices.Contains(f.Clients[client][:i], id) {
				c.report(fmt.Sprintf("%s/%d", at, i), "%s is listed twice", id)
			}
		}
	}
}
