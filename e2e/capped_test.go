package e2e

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
)

// testCappedTokens lets Vault shorten the tokens of leases, as an operator may by the
// token role or by the mount of tokens. Holders are told when their credential really
// ends.
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

// testOwnTokenUsedUp lets the broker's own token end in the middle of a call: with its
// last use, Vault answers "parent token lookup failed" to the creation of a token, and
// it no longer knows the token afterwards. No caller notices.
func testOwnTokenUsedUp(t *testing.T, l *lab) {
	role := l.vault.must(t, "GET", "auth/jwt/role/broker", nil).Data
	uses := func(n int) {
		role["token_num_uses"] = n
		l.vault.must(t, "POST", "auth/jwt/role/broker", role)
	}
	defer uses(0)
	uses(3)
	l.vault.must(t, "POST", "sys/leases/revoke-prefix/auth/jwt", fields{"sync": true})
	for range 8 { // each third call is the last use of its token
		c := l.issue(t, orders)
		if err := l.works(c); err != nil {
			t.Fatal(err)
		}
	}
	once := l.vault.must(t, "POST", "auth/token/create", fields{"policies": []string{"broker"}, "no_parent": true, "num_uses": 1}).Auth.ClientToken
	_, err := l.vault.call(once, "POST", "auth/token/create/broker-leases", fields{"policies": []string{"orders-db-ro"}})
	var refusal *vaultRefusal
	if !errors.As(err, &refusal) || refusal.status != http.StatusBadRequest || !strings.Contains(refusal.Error(), "parent token lookup failed") {
		t.Errorf("Vault answers %v to the last use of a token, so this test shows nothing", err)
	}
	l.endAll(t)
}
