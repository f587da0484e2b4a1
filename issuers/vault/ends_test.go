package vault

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"accessbroker.internal/broker"
)

// A Vault that shortens the token of a lease ends the credential with the token. The
// holder sees the earliest end of all, and never an end that is not certain.
func TestCredentialEndsNoLaterThanItsToken(t *testing.T) {
	ttl := map[string]string{"ttl": "${ttl}"}
	names := map[string]string{"ttl": "${ttl}", "uri_sans": "${holder}"}
	const lease = 10 * time.Minute
	for name, test := range map[string]struct {
		spec Spec
		cap  int           // of the token's TTL, in seconds
		want time.Duration // 0: the credential is refused
	}{
		"token":                     {Spec{Path: TokenPath}, 60, time.Minute},
		"token, not capped":         {Spec{Path: TokenPath}, 0, lease},
		"database":                  {Spec{Path: "database/creds/orders-ro"}, 30, 30 * time.Second},
		"database, shorter lease":   {Spec{Path: "database/creds/orders-ro"}, 90, time.Minute},
		"database, at expiry":       {Spec{Path: "database/creds/orders-ro", AtExpiry: true}, 30, 30 * time.Second},
		"cloud key":                 {Spec{Path: "gcp/roleset/reader/key"}, 45, 45 * time.Second},
		"application":               {Spec{Path: "azure/creds/reader"}, 45, 45 * time.Second},
		"AWS user":                  {Spec{Path: "aws/creds/user"}, 45, 45 * time.Second},
		"message queue user":        {Spec{Path: "rabbitmq/creds/shop"}, 45, 45 * time.Second},
		"wrapped user":              {Spec{Path: "database/creds/orders-ro", Wrap: true}, 45, 45 * time.Second},
		"leased certificate":        {Spec{Path: "pki/issue/leased", Data: names}, 45, 45 * time.Second},
		"certificate without lease": {Spec{Path: "pki/issue/web", Data: names}, 45, lease},
		"SSH":                       {Spec{Path: "ssh/sign/ops", Data: map[string]string{"ttl": "${ttl}", "valid_principals": "deploy"}}, 45, lease},
		"static role":               {Spec{Path: "database/static-creds/orders"}, 45, 90 * time.Second},
		"Google Cloud token":        {Spec{Path: "gcp/roleset/reader/token", AtExpiry: true}, 45, 500 * time.Second},
		"Kubernetes":                {Spec{Path: "kubernetes/creds/deployer", Data: ttl, AtExpiry: true}, 0, 590 * time.Second},
		"Kubernetes, capped":        {Spec{Path: "kubernetes/creds/deployer", Data: ttl, AtExpiry: true}, 45, 0},
		"Kubernetes, capped lease":  {Spec{Path: "kubernetes/creds/capped", Data: ttl, AtExpiry: true}, 0, 0},
		"at expiry, capped":         {Spec{Path: "rabbitmq/creds/shop", AtExpiry: true}, 45, 0},
		"wrapped certificate":       {Spec{Path: "pki/issue/web", Data: names, Wrap: true}, 45, 0},
		"end in a time":             {Spec{Path: "plugin/creds/time"}, 0, 70 * time.Second},
		"end in seconds since 1970": {Spec{Path: "plugin/creds/seconds"}, 0, 70 * time.Second},
		"end in a duration":         {Spec{Path: "plugin/creds/duration"}, 0, 70 * time.Second},
		"end in text":               {Spec{Path: "plugin/creds/text"}, 0, 70 * time.Second},
		"ended already":             {Spec{Path: "plugin/creds/over"}, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			f, v := startFake(t)
			f.cap = test.cap
			o := newOrder(t, test.spec)
			start := time.Now()
			l, c, err := issue(v, o)
			if test.want == 0 {
				if !errors.Is(err, broker.ErrIssuerRefused) || !strings.Contains(err.Error(), "broker-leases") || !strings.Contains(err.Error(), o.Entitlement.Name) {
					t.Errorf("got %v, want a refusal that names the token role and the entitlement", err)
				}
				if err := v.Revoke(t.Context(), l); err != nil && !errors.Is(err, broker.ErrNotRevocable) && !errors.Is(err, broker.ErrQueued) {
					t.Errorf("revoking what was refused: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if latest := time.Now().Add(test.want); c.Expires.After(latest) || c.Expires.After(o.Lease.Expires) {
				t.Errorf("expires at %s, which is later than %s", c.Expires, latest)
			}
			if earliest := start.Add(test.want - 2*time.Second); c.Expires.Before(earliest) {
				t.Errorf("expires at %s, which is earlier than %s", c.Expires, earliest)
			}
		})
	}
}

// stated answers as engines of others do that state an end in their fields.
func (f *fakeVault) stated(path string) object {
	end := time.Now().Add(70 * time.Second)
	data := object{"username": "u", "password": "of a plugin"}
	switch path {
	case "plugin/creds/time":
		data["expires_at"] = end.UTC().Format(time.RFC3339)
	case "plugin/creds/seconds":
		data["expiration"] = end.Unix()
	case "plugin/creds/duration":
		data["ttl"] = 70
	case "plugin/creds/text":
		data["expires_in"] = "70"
	case "plugin/creds/over":
		data["not_after"] = time.Now().Add(-time.Minute).Unix()
	}
	return data
}

// A token role must neither lengthen a token nor create one without an end. The token
// is revoked.
func TestPrepareRefusesTokenThatOutlivesItsLease(t *testing.T) {
	for name, test := range map[string]struct {
		auth object
		want string
	}{
		"never expires": {object{"lease_duration": 0, "orphan": true}, "never expire"},
		"longer":        {object{"lease_duration": 3600, "orphan": true}, "would outlive"},
		"child":         {object{"lease_duration": 600, "orphan": false}, "orphan=true"},
		"batch":         {object{"lease_duration": 600, "orphan": true, "accessor": ""}, "token_type=service"},
	} {
		t.Run(name, func(t *testing.T) {
			f, v := startFake(t)
			var revoked atomic.Int64
			f.with(func(w http.ResponseWriter, r *http.Request) bool {
				switch {
				case strings.Contains(r.URL.Path, "token/create"):
					auth := object{"client_token": "hvs.made", "accessor": "made"}
					for k, v := range test.auth {
						auth[k] = v
					}
					if err := json.NewEncoder(w).Encode(object{"auth": auth}); err != nil {
						t.Error(err)
					}
				case strings.Contains(r.URL.Path, "revoke-accessor"):
					revoked.Add(1)
					w.WriteHeader(http.StatusNoContent)
				default:
					return false
				}
				return true
			})
			_, err := v.Prepare(t.Context(), newOrder(t, Spec{Path: "database/creds/orders-ro"}))
			if !errors.Is(err, broker.ErrIssuerRefused) || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), `"broker-leases"`) {
				t.Errorf("got %v, want a refusal with %q", err, test.want)
			}
			if n := revoked.Load(); name != "batch" && n != 1 {
				t.Errorf("the token was revoked %d times, want once", n)
			}
		})
	}
}

// The password of a static role that is due to be rotated is valid for no time that
// anyone can tell.
func TestStaticRoleThatIsDueIsNotIssued(t *testing.T) {
	f, v := startFake(t)
	f.with(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "static-creds") {
			return false
		}
		fmt.Fprint(w, `{"data": {"username": "static", "password": "old", "ttl": 0}}`)
		return true
	})
	_, _, err := issue(v, newOrder(t, Spec{Path: "database/static-creds/orders"}))
	var refusal *broker.Refusal
	if !errors.Is(err, broker.ErrIssuerUnavailable) || !errors.As(err, &refusal) || refusal.Retry != rotationTime {
		t.Errorf("got %v, want %v with a time to retry", err, broker.ErrIssuerUnavailable)
	}
}
