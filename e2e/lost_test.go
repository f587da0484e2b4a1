package e2e

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"accessbroker.internal/api"
)

// once asks for a credential as AskAndCollect does, and never a second time: a
// key says which asks are the same.
func once(t *testing.T, c *api.Client, ask api.Ask, key string) (*api.Credential, error) {
	t.Helper()
	body, err := json.Marshal(ask)
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, c.BaseURL+"/v1/credentials", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Idempotency-Key", key)
	r.GetBody = nil // HTTP sends it again by itself where it can
	resp, err := c.HTTP.Do(r)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusCreated {
		problem := &api.Error{Status: resp.StatusCode}
		var said struct{ Code, Detail string }
		if err := json.Unmarshal(text, &said); err != nil {
			t.Fatalf("reading %s: %v", text, err)
		}
		problem.Code, problem.Detail = api.Code(said.Code), said.Detail
		return nil, problem
	}
	got := new(api.Credential)
	return got, json.Unmarshal(text, got)
}

// newest gives the last leases of an entitlement, the newest first.
func (l *lab) newest(t *testing.T, entitlement string) []api.Lease {
	t.Helper()
	out, errs, code := l.cli(l.bin, "leases", "--holder", "*", "--entitlement", entitlement, "--admin-socket", l.dir+"/admin.sock", "-o", "json")
	var page api.LeasePage
	if err := json.Unmarshal([]byte(out), &page); err != nil || code != 0 {
		t.Fatalf("leases: %d %s: %v", code, errs, err)
	}
	return page.Leases
}

// since gives the leases of an entitlement that are newer than one.
func (l *lab) since(t *testing.T, entitlement, last string) []api.Lease {
	t.Helper()
	all := l.newest(t, entitlement)
	for i, lease := range all {
		if lease.ID == last {
			return all[:i]
		}
	}
	return all
}

func (l *lab) last(t *testing.T, entitlement string) string {
	t.Helper()
	if all := l.newest(t, entitlement); len(all) > 0 {
		return all[0].ID
	}
	return ""
}

// brief is a lease that ends soon, so that what is pending until then is over
// within the test.
const brief = api.Duration(15 * time.Second)

// testAnswersLost has each call to Vault meet each fate: who asks gets a clear
// error, may simply ask again, and what nobody got ends. What the broker says
// about it is true before and after.
func testAnswersLost(t *testing.T, l *lab) {
	l.clean(t)
	user, certificate, token := api.Ask{Entitlement: "orders-by-agent", TTL: brief}, api.Ask{Entitlement: "web-by-agent", TTL: brief}, api.Ask{Entitlement: "kv-by-agent", TTL: brief}
	type pending struct{ name, lease string }
	// First, for what is pending afterwards falls due meanwhile.
	for _, f := range []fate{refused, failed, lost} {
		t.Run("ending a user "+string(f), func(t *testing.T) { l.endingMeets(t, "/sys/leases/revoke", user, f) })
		t.Run("ending a token "+string(f), func(t *testing.T) { l.endingMeets(t, "/auth/token/revoke-accessor", token, f) })
	}
	var over []pending
	for _, f := range []fate{refused, failed, lost} {
		for _, call := range []struct {
			name, path string
			ask        api.Ask
			opened     bool // there is a lease when the call is made
		}{
			{"making the token", "/auth/token/create/broker-leases", user, false},
			{"making a user", "/database/creds/orders-ro", user, true},
			{"making a certificate", "/pki/issue/web", certificate, true},
		} {
			t.Run(call.name+" "+string(f), func(t *testing.T) {
				if lease := l.issuingMeets(t, call.path, call.ask, f, call.opened); lease != "" {
					over = append(over, pending{t.Name(), lease})
				}
			})
		}
	}
	eventually(t, "the end of what nobody got", 30*time.Second, func() error {
		if n, left := l.users(t), len(l.vault.leases(t, "database/creds/orders-ro")); n != 0 || left != 0 {
			return fmt.Errorf("%d users, %d leases of Vault's", n, left)
		}
		return nil
	})
	for _, p := range over {
		eventually(t, "the end of the lease of "+p.name, 30*time.Second, func() error {
			got, err := l.agent.Lease(t.Context(), p.lease)
			if err == nil && got.Status != api.LeaseRevoked {
				err = fmt.Errorf("it is %s, %s", got.Status, got.Revocation)
			}
			if err == nil && got.Revocation != "immediate" && got.EndedAt.Before(got.ExpiresAt) {
				t.Errorf("%s: it ended at %s, %s, before its time, %s", p.name, got.EndedAt, got.Revocation, got.ExpiresAt)
			}
			return err
		})
	}
}

// issuingMeets has a call that makes something meet a fate as often as it is
// tried. It gives the lease of which nobody knows yet what became of it.
func (l *lab) issuingMeets(t *testing.T, path string, ask api.Ask, f fate, opened bool) (unknown string) {
	t.Helper()
	last, key := l.last(t, ask.Entitlement), rand.Text()
	tries := 3 // what does no harm twice is tried three times
	if opened {
		tries = 1 // and what makes a credential, once
	}
	stop := l.agentVault.meets(path, f, tries)
	_, err := once(t, l.agent, ask, key)
	calls := stop()
	code, status := api.IssuerUnavailable, http.StatusServiceUnavailable
	if f == refused {
		code, status = api.IssuerRefused, http.StatusBadGateway
		tries = 1
	}
	if err := refusedWith(err, code, status); err != nil {
		t.Error(err)
	}
	if calls != tries {
		t.Errorf("the broker called %d times, want %d", calls, tries)
	}
	made := l.since(t, ask.Entitlement, last)
	switch {
	case !opened && len(made) != 0, opened && len(made) != 1:
		t.Errorf("there are %d new leases", len(made))
	case opened && f == refused:
		if made[0].Status != api.LeaseFailed {
			t.Errorf("the lease of what was refused is %s", made[0].Status)
		}
	case opened:
		// What became of it can't be known: it is not said to have ended.
		if unknown = made[0].ID; made[0].Status != api.LeaseRevoking || made[0].Revocation != "pending" {
			t.Errorf("the lease is %s, %s", made[0].Status, made[0].Revocation)
		}
	}
	// Who asked may simply ask again, by the same key too.
	c, err := once(t, l.agent, ask, key)
	if err != nil {
		t.Fatalf("asking again: %v", err)
	}
	if c.Type == "userpass" {
		if err := l.works(c); err != nil {
			t.Error(err)
		}
		if _, err := l.agent.Revoke(t.Context(), c.Lease, "done"); err != nil {
			t.Error(err)
		}
		if err := l.ended(c); err != nil {
			t.Error(err)
		}
	}
	return unknown
}

// endingMeets has a call that ends something meet a fate, once and as often as
// it is tried at once: that is got over, or goes on.
func (l *lab) endingMeets(t *testing.T, path string, ask api.Ask, f fate) {
	t.Helper()
	gone := func(c *api.Credential) error {
		if c.Type == "userpass" {
			return l.ended(c)
		}
		var refusal *vaultRefusal
		if _, err := l.vault.call(c.Secret["token"], "GET", "kv/data/shop", nil); !errors.As(err, &refusal) || refusal.status != http.StatusForbidden {
			return fmt.Errorf("the token still works, or fails for another reason: %v", err)
		}
		return nil
	}
	for _, times := range []int{1, 3} {
		c := l.get(t, ask)
		stop := l.agentVault.meets(path, f, times)
		lease, err := l.agent.Revoke(t.Context(), c.Lease, "done")
		stop()
		if err != nil {
			t.Fatal(err)
		}
		want := [2]string{api.LeaseRevoking, "pending"}
		if times == 1 && f != refused {
			want = [2]string{api.LeaseRevoked, "immediate"} // the second try of the same call told
		}
		if got := [2]string{lease.Status, lease.Revocation}; got != want {
			t.Errorf("after %d calls that were %s, the lease is %v, want %v", times, f, got, want)
		}
		if lease.Revocation == "immediate" {
			if err := gone(c); err != nil {
				t.Error(err)
			}
		}
		l.becomes(t, c.Lease, "revoked", "immediate")
		if err := gone(c); err != nil {
			t.Error(err)
		}
		if lease, err := l.agent.Lease(t.Context(), c.Lease); err != nil || lease.EndedAt.After(lease.ExpiresAt) {
			t.Errorf("it ended at %s, by its time, %s: %v", lease.EndedAt, lease.ExpiresAt, err)
		}
	}
}
