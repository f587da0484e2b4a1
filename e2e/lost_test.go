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

// askOnce requests a credential with one HTTP call. Unlike AskAndCollect, it never
// repeats the call. Calls with the same idempotency key are the same request.
func askOnce(t testing.TB, c *api.Client, ask api.Ask, key string) (*api.Credential, error) {
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
	if c.Token != nil {
		token, err := c.Token(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+token)
	}
	r.GetBody = nil // with it, net/http may repeat the request
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
		var answer struct{ Code, Detail string }
		if err := json.Unmarshal(text, &answer); err != nil {
			t.Fatalf("reading %s: %v", text, err)
		}
		problem.Code, problem.Detail = api.Code(answer.Code), answer.Detail
		return nil, problem
	}
	got := new(api.Credential)
	return got, json.Unmarshal(text, got)
}

// newestLeases returns the latest leases of an entitlement, the newest first.
func (l *lab) newestLeases(t testing.TB, entitlement string) []api.Lease {
	t.Helper()
	out, errs, code := l.cli(l.bin, "leases", "--holder", "*", "--entitlement", entitlement, "--admin-socket", l.dir+"/admin.sock", "-o", "json")
	var page api.LeasePage
	if err := json.Unmarshal([]byte(out), &page); err != nil || code != 0 {
		t.Fatalf("leases: %d %s: %v", code, errs, err)
	}
	return page.Leases
}

// leasesSince returns the leases of an entitlement that are newer than the lease
// last.
func (l *lab) leasesSince(t testing.TB, entitlement, last string) []api.Lease {
	t.Helper()
	all := l.newestLeases(t, entitlement)
	for i, lease := range all {
		if lease.ID == last {
			return all[:i]
		}
	}
	return all
}

// lastLease returns the newest lease of an entitlement, or "" if there is none.
func (l *lab) lastLease(t testing.TB, entitlement string) string {
	t.Helper()
	if all := l.newestLeases(t, entitlement); len(all) > 0 {
		return all[0].ID
	}
	return ""
}

// brief is a TTL that is over within the test, for leases that stay pending until
// they expire.
const brief = api.Duration(15 * time.Second)

// testAnswersLost makes each call to Vault fail in each way. The caller gets a
// clear error and may repeat the request; a credential that no caller got is
// revoked; and the broker reports the truth about the lease at every time.
func testAnswersLost(t *testing.T, l *lab) {
	l.endAll(t)
	user, certificate := api.Ask{Entitlement: "orders-by-agent", TTL: brief}, api.Ask{Entitlement: "web-by-agent", TTL: brief}
	type pending struct{ name, lease string }
	// These leases are long, so that they are revoked and do not expire, however
	// slow the machine is.
	for _, f := range []fault{refused, failed, lost} {
		t.Run("revoking a user "+string(f), func(t *testing.T) {
			l.revokingFails(t, "/sys/leases/revoke", api.Ask{Entitlement: "orders-by-agent"}, f)
		})
		t.Run("revoking a token "+string(f), func(t *testing.T) {
			l.revokingFails(t, "/auth/token/revoke-accessor", api.Ask{Entitlement: "kv-by-agent"}, f)
		})
	}
	var over []pending
	for _, f := range []fault{refused, failed, lost} {
		for _, call := range []struct {
			name, path string
			ask        api.Ask
			opened     bool // the lease is open when the broker makes the call
		}{
			{"creating the token", "/auth/token/create/broker-leases", user, false},
			{"creating a user", "/database/creds/orders-ro", user, true},
			{"creating a certificate", "/pki/issue/web", certificate, true},
		} {
			t.Run(call.name+" "+string(f), func(t *testing.T) {
				if lease := l.issuingFails(t, call.path, call.ask, f, call.opened); lease != "" {
					over = append(over, pending{t.Name(), lease})
				}
			})
		}
	}
	if len(over) != 4 { // two calls with an open lease, each failed and lost
		t.Errorf("%d leases are pending, want 4: %v", len(over), over)
	}
	eventually(t, "the end of the undelivered credentials", 2*time.Minute, func() error {
		if n, left := l.vaultUsers(t), len(l.vault.leases(t, "database/creds/orders-ro")); n != 0 || left != 0 {
			return fmt.Errorf("%d users, %d leases at Vault", n, left)
		}
		return nil
	})
	for _, p := range over {
		eventually(t, "the end of the lease of "+p.name, 2*time.Minute, func() error {
			got, err := l.agent.Lease(t.Context(), p.lease)
			if err == nil && got.Status != api.LeaseRevoked {
				err = fmt.Errorf("got status %s, revocation %s, want revoked", got.Status, got.Revocation)
			}
			if err == nil && got.Revocation != "immediate" && got.EndedAt.Before(got.ExpiresAt) {
				t.Errorf("%s: the lease ended at %s, %s, before it expired at %s", p.name, got.EndedAt, got.Revocation, got.ExpiresAt)
			}
			return err
		})
	}
}

// issuingFails makes a creating call fail each time that the broker makes it. It
// returns the lease whose outcome is unknown, or "".
func (l *lab) issuingFails(t testing.TB, path string, ask api.Ask, f fault, opened bool) (unknown string) {
	t.Helper()
	last, key := l.lastLease(t, ask.Entitlement), rand.Text()
	const tries = 1 // of a call that creates something
	stop := l.vaultProxy.fail(path, f, tries)
	_, err := askOnce(t, l.agent, ask, key)
	calls := stop()
	code, status := api.IssuerUnavailable, http.StatusServiceUnavailable
	if f == refused {
		code, status = api.IssuerRefused, http.StatusBadGateway
	}
	if err := wantRefusal(err, code, status); err != nil {
		t.Error(err)
	}
	if calls != tries {
		t.Errorf("the broker called %d times, want %d", calls, tries)
	}
	made := l.leasesSince(t, ask.Entitlement, last)
	switch {
	case !opened && len(made) != 0, opened && len(made) != 1:
		t.Errorf("there are %d new leases", len(made))
	case opened && f == refused:
		if made[0].Status != api.LeaseFailed {
			t.Errorf("the lease of a refused call is %s", made[0].Status)
		}
	case opened:
		// The outcome is unknown, so the broker must not report that the lease ended.
		if unknown = made[0].ID; made[0].Status != api.LeaseRevoking || made[0].Revocation != "pending" {
			t.Errorf("the lease is %s, %s", made[0].Status, made[0].Revocation)
		}
	}
	// The caller may repeat the request, even with the same key.
	c, err := askOnce(t, l.agent, ask, key)
	if err != nil {
		t.Fatalf("repeating the request: %v", err)
	}
	if c.Type == "userpass" {
		if err := l.works(c); err != nil {
			t.Error(err)
		}
		if _, err := l.agent.Revoke(t.Context(), c.Lease, "done"); err != nil {
			t.Error(err)
		}
		if err := l.rejected(c); err != nil {
			t.Error(err)
		}
	}
	return unknown
}

// revokingFails makes a revoking call fail, first once and then for all immediate
// attempts of the broker. The broker retries until it succeeds.
func (l *lab) revokingFails(t testing.TB, path string, ask api.Ask, f fault) {
	t.Helper()
	gone := func(c *api.Credential) error {
		if c.Type == "userpass" {
			return l.rejected(c)
		}
		var refusal *vaultRefusal
		if _, err := l.vault.call(c.Secret["token"], "GET", "kv/data/shop", nil); !errors.As(err, &refusal) || refusal.status != http.StatusForbidden {
			return fmt.Errorf("the token still works, or fails for another reason: %v", err)
		}
		return nil
	}
	for _, times := range []int{1, 3} {
		c := l.issue(t, ask)
		stop := l.vaultProxy.fail(path, f, times)
		lease, err := l.agent.Revoke(t.Context(), c.Lease, "done")
		stop()
		if err != nil {
			t.Fatal(err)
		}
		want := [2]string{api.LeaseRevoking, "pending"}
		if times == 1 && f != refused {
			want = [2]string{api.LeaseRevoked, "immediate"} // the second try of the call succeeded
		}
		if got := [2]string{lease.Status, lease.Revocation}; got != want {
			t.Errorf("after %d calls that were %s, the lease is %v, want %v", times, f, got, want)
		}
		if lease.Revocation == "immediate" {
			if err := gone(c); err != nil {
				t.Error(err)
			}
		}
		l.waitStatus(t, c.Lease, "revoked", "immediate")
		if err := gone(c); err != nil {
			t.Error(err)
		}
		if lease, err := l.agent.Lease(t.Context(), c.Lease); err != nil || lease.EndedAt.After(lease.ExpiresAt) {
			t.Errorf("the lease ended at %s, after it expired at %s: %v", lease.EndedAt, lease.ExpiresAt, err)
		}
	}
}
