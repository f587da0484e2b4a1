package e2e

import (
	"testing"
	"time"

	"accessbroker.internal/api"
)

// testCappedTokens lets Vault shorten the tokens of leases, as an operator may by the
// token role or by the mount of tokens. Holders see the real end of their credential.
func testCappedTokens(t *testing.T, l *lab) {
	role := docWrite(t, "auth/token/roles/broker-leases")
	capped := func(more fields) {
		written := fields{"allowed_policies": []string{"orders-db-ro", "web", "kv-read", "ssh", "static", "sessions"}}
		for _, all := range []fields{role, more} {
			for k, v := range all {
				if k != "allowed_policies" {
					written[k] = v
				}
			}
		}
		l.vault.must(t, "POST", "auth/token/roles/broker-leases", written)
	}
	const lifetime = 40 * time.Second
	for name, limit := range map[string]struct{ set, reset func() }{
		"token_explicit_max_ttl": {func() { capped(fields{"token_explicit_max_ttl": "40s"}) }, func() { capped(nil) }},
		"max_lease_ttl": {
			func() {
				l.vault.must(t, "POST", "sys/auth/token/tune", fields{"default_lease_ttl": "40s", "max_lease_ttl": "40s"})
			},
			func() {
				l.vault.must(t, "POST", "sys/auth/token/tune", fields{"default_lease_ttl": "768h", "max_lease_ttl": "768h"})
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			defer limit.reset()
			limit.set()
			for _, ask := range []api.Ask{
				orders, {Entitlement: "kv-token", Scopes: []string{"kv:read"}}, {Entitlement: "leased-certificate"}, {Entitlement: "orders-wrapped"},
			} {
				ask.Justification = "e2e"
				began := time.Now()
				c := l.issue(t, ask)
				if latest := time.Now().Add(lifetime); c.ExpiresAt.After(latest) || c.ExpiresAt.Before(began.Add(lifetime-3*time.Second)) {
					t.Errorf("%s expires at %s, but its token at about %s", ask.Entitlement, c.ExpiresAt, latest)
				}
				if ask.Entitlement == "kv-token" {
					self := l.vault.must(t, "POST", "auth/token/lookup", fields{"token": c.Secret["token"]})
					end, err := time.Parse(time.RFC3339Nano, self.Data["expire_time"].(string))
					if err != nil || c.ExpiresAt.After(end) {
						t.Errorf("the token expires at %s, but Vault says %s: %v", c.ExpiresAt, end, err)
					}
				}
			}
		})
	}
	l.endAll(t)
}

// testOwnTokenGone ends the broker's own token right after a login. No caller notices:
// the broker logs in again.
func testOwnTokenGone(t *testing.T, l *lab) {
	for range 3 {
		c := l.issue(t, orders)
		if err := l.works(c); err != nil {
			t.Fatal(err)
		}
		l.vault.must(t, "POST", "sys/leases/revoke-prefix/auth/jwt", fields{"sync": true})
	}
	l.endAll(t)
}
