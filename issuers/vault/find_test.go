package vault

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/broker"
)

// list serves the accessors and the look-ups of the fake's tokens.
func (f *fakeVault) list(t *testing.T) func(w http.ResponseWriter, r *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		switch strings.TrimPrefix(r.URL.Path, "/v1/") {
		case accessorsPath:
			keys := []string{"gone"}
			for _, token := range f.tokens {
				keys = append(keys, token.accessor)
			}
			_ = json.NewEncoder(w).Encode(object{"data": object{"keys": keys}})
		case lookupPath:
			var body struct{ Accessor string }
			if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
				t.Error(err)
			}
			for _, token := range f.tokens {
				if token.accessor == body.Accessor {
					_ = json.NewEncoder(w).Encode(object{"data": object{"meta": token.meta, "expire_time": time.Now().Add(time.Minute).Format(time.RFC3339Nano)}})
					return true
				}
			}
			refuse(w, 403, "1 error occurred: invalid accessor")
		default:
			return false
		}
		return true
	}
}

// Find returns the tokens of this broker's leases through this issuer, and no others: another
// broker may use the same Vault, even with the same token role.
func TestFindReturnsTheBrokersOwnTokens(t *testing.T) {
	f, _ := startFake(t)
	f.with(nil)
	own := newIssuer(t, Config{Address: f.url(), Broker: "https://broker.acme.test"})
	other := newIssuer(t, Config{Address: f.url(), Broker: "https://staging.acme.test"})
	older := newIssuer(t, Config{Address: f.url()})
	var want []string
	for _, v := range []*Issuer{own, other, older, own} {
		l, _, err := issue(v, newOrder(t, Spec{Path: "database/creds/orders-ro"}))
		if err != nil {
			t.Fatal(err)
		}
		if v == own {
			want = append(want, l.ID.String())
		}
	}
	f.with(f.list(t))
	var found []broker.Orphan
	if err := own.Find(t.Context(), broker.Loss{}, func(o broker.Orphan) error {
		found = append(found, o)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, o := range found {
		got = append(got, o.Lease)
		if o.Holder != "spiffe://acme.test/orders" || o.Entitlement != "orders-db-ro" || o.Expires.Before(time.Now()) || o.Target == "" {
			t.Errorf("got %+v", o)
		}
		// Vault notes what was created with a token, and confirms only the end of the token.
		if err := own.Revoke(t.Context(), broker.Lease{Handle: o.Handle, Expires: o.Expires}); !errors.Is(err, broker.ErrQueued) {
			t.Errorf("revoking %s: %v", o.Lease, err)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if len(want) != 2 || !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	found = nil
	if err := own.Find(t.Context(), broker.Loss{}, func(o broker.Orphan) error { found = append(found, o); return nil }); err != nil || len(found) != 0 {
		t.Errorf("after their end: got %v, %v", found, err)
	}
	if err := older.Find(t.Context(), broker.Loss{}, func(o broker.Orphan) error { found = append(found, o); return nil }); err != nil || len(found) != 0 {
		t.Errorf("a broker without a name: got %v, %v", found, err)
	}
}

// A policy that does not allow the search is named, with what it needs. A search that fails
// half-way is an error.
func TestFindReturnsErrors(t *testing.T) {
	f, _ := startFake(t)
	v := newIssuer(t, Config{Address: f.url(), Broker: "https://broker.acme.test"})
	if _, _, err := issue(v, newOrder(t, Spec{Path: "database/creds/orders-ro"})); err != nil {
		t.Fatal(err)
	}
	serve := f.list(t)
	failing := errors.New("the store is full")
	for name, test := range map[string]struct {
		path   string
		status int
		says   string
	}{
		"no list":          {accessorsPath, 403, `give the broker's policy in Vault the capabilities ["list", "sudo"] on "auth/token/accessors"`},
		"no look-up":       {lookupPath, 403, `the capabilities ["update"] on "auth/token/lookup-accessor"`},
		"sealed":           {accessorsPath, 503, "503"},
		"sealed meanwhile": {lookupPath, 503, "503"},
		"a failing store":  {"", 0, failing.Error()},
	} {
		f.with(func(w http.ResponseWriter, r *http.Request) bool {
			if strings.HasSuffix(r.URL.Path, test.path) && test.path != "" {
				refuse(w, test.status, "permission denied")
				return true
			}
			return serve(w, r)
		})
		err := v.Find(t.Context(), broker.Loss{}, func(broker.Orphan) error {
			if test.path == "" {
				return failing
			}
			return nil
		})
		if err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: got %v, want %q", name, err, test.says)
		}
	}
}
