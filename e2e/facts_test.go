package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
)

// TestFacts ends access because its reason ends, while leases are live at a real Vault.
func TestFacts(t *testing.T) {
	t.Parallel() // it mostly waits
	l := labOf(t)
	f := &contractors{lab: l, etl: copyBinary(t, l.bin, "etl")}
	l.spire.register(t, "/agent/supplier/etl", f.etl)
	f.state(t, "groups.yaml", "procurement: {members: [login/ana]}\n")
	eventually(t, "the supplier's identity", time.Minute, func() error {
		if _, errs, code := l.cli(f.etl, "whoami"); code != 0 {
			return errors.New(errs)
		}
		return nil
	})
	t.Run("contract ends", func(t *testing.T) { testContractEnds(t, f) })
	t.Run("contract ends early", func(t *testing.T) { testContractEndsEarly(t, f) })
	t.Run("owner leaves", func(t *testing.T) { testOwnerLeaves(t, f) })
}

// contractors is a lab with a workload of a supplier.
type contractors struct {
	*lab
	etl string // the binary of the workload
}

const supplierFile = `acme-data:
  sponsor: procurement
  contract: {start: 2026-01-01, end: "%s"}
  paths: [spiffe://acme.test/agent/supplier]
  ceiling: [orders-db-ro, tickets-api, kv-token]
`

// state writes a file beside the policies until the test ends, and reloads the rules.
func (f *contractors) state(t testing.TB, name, text string) {
	t.Helper()
	path := filepath.Join(f.dir, "policies", name)
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		t.Cleanup(func() {
			_ = os.Remove(path)
			f.reload(t)
		})
	}
	f.write(t, "policies/"+name, text)
	f.reload(t)
}

func (f *contractors) reload(t testing.TB) {
	t.Helper()
	if out, errs, code := f.cli(f.bin, "reload", "--admin-socket", f.dir+"/admin.sock"); code != 0 {
		t.Fatalf("reload: %d %s%s", code, out, errs)
	}
}

// contract states when the contract of the supplier ends.
func (f *contractors) contract(t testing.TB, ends time.Time) {
	t.Helper()
	f.state(t, "suppliers.yaml", fmt.Sprintf(supplierFile, ends.UTC().Format(time.RFC3339)))
}

// request returns a credential of the supplier's workload.
func (f *contractors) request(t testing.TB, args ...string) *api.Credential {
	t.Helper()
	out, errs, code := f.cli(f.etl, append([]string{"request", "--why", "nightly load", "-o", "json"}, args...)...)
	var c api.Credential
	if err := json.Unmarshal([]byte(out), &c); err != nil || code != 0 {
		t.Fatalf("request %s: %d %v %s", args, code, err, errs)
	}
	return &c
}

// wantEnded waits until PostgreSQL rejects a credential, and checks its lease and records.
func (f *contractors) wantEnded(t testing.TB, c *api.Credential, fact string, hows ...string) {
	t.Helper()
	eventually(t, "PostgreSQL to reject the credential", 15*time.Second, func() error { return f.rejected(c) })
	eventually(t, "the record of the end", 15*time.Second, func() error {
		records := f.records(t, "--kind", "lease.revoked", "--about", c.Lease, "-o", "json")
		for _, how := range hows {
			if strings.Contains(records, `"how":"`+how+`"`) && strings.Contains(records, `"revocation":"immediate"`) && (how == "expired" || strings.Contains(records, `"fact":"`+fact+`"`)) {
				return nil
			}
		}
		return fmt.Errorf("got the records %s", records)
	})
}

// wantRefused checks that the supplier's workload gets nothing more.
func (f *contractors) wantRefused(t testing.TB, why string) {
	t.Helper()
	if out, errs, exit := f.cli(f.etl, "request", "tickets-api", "--scope", "tickets:read", "--why", "more"); exit != 3 || !strings.Contains(errs, why) {
		t.Errorf("a request after the end: %d %s%s", exit, out, errs)
	}
}

// testContractEnds lets the known end of a contract come, while a database user works. No
// one does anything.
func testContractEnds(t *testing.T, f *contractors) {
	var c *api.Credential
	var ends time.Time
	for wait := 15 * time.Second; ; wait *= 2 { // a slow machine needs a later end
		ends = time.Now().Add(wait).Truncate(time.Second)
		f.contract(t, ends)
		c = f.request(t, "orders-db-ro", "--ttl", "10m")
		if err := f.works(c); err == nil {
			break
		} else if time.Now().Before(ends) || wait > 2*time.Minute {
			t.Fatal(err)
		}
	}
	if c.ExpiresAt.After(ends) {
		t.Errorf("the credential is valid until %s, the contract ends at %s", c.ExpiresAt, ends)
	}
	eventually(t, "the end of the contract", 5*time.Minute, func() error {
		if left := time.Until(ends); left > 0 {
			return fmt.Errorf("it has %s to go", left)
		}
		return nil
	})
	f.wantEnded(t, c, "supplier acme-data", "expired", "fact_ended")
	f.wantRefused(t, "the contract of supplier \"acme-data\" ended at")
	eventually(t, "the record of the contract's end", 15*time.Second, func() error {
		if records := f.records(t, "--kind", "fact.ended", "-o", "json"); !strings.Contains(records, `"subject":"supplier acme-data"`) {
			return fmt.Errorf("got %s", records)
		}
		return nil
	})
}

// testContractEndsEarly ends a contract that had long to go, while several credentials
// work. Those of others are not affected.
func testContractEndsEarly(t *testing.T, f *contractors) {
	f.contract(t, time.Now().Add(30*24*time.Hour))
	var list []*api.Credential
	for range 3 {
		list = append(list, f.request(t, "orders-db-ro", "--ttl", "10m"))
	}
	token := f.request(t, "kv-token", "--scope", "kv:read", "--ttl", "10m")
	own := f.issue(t, orders)
	for _, c := range append([]*api.Credential{own}, list...) {
		if err := f.works(c); err != nil {
			t.Fatal(err)
		}
	}
	f.contract(t, time.Now().Add(-time.Second))
	for _, c := range list {
		f.wantEnded(t, c, "supplier acme-data", "fact_ended")
	}
	eventually(t, "Vault to reject the token", 15*time.Second, func() error {
		if _, err := f.vault.call(token.Secret["token"], "GET", "kv/data/shop", nil); err == nil {
			return errors.New("it still works")
		}
		return nil
	})
	f.wantRefused(t, "the contract of supplier \"acme-data\" ended at")
	if err := f.works(own); err != nil {
		t.Errorf("a credential of others: %v", err)
	}
	f.endAll(t)
}

// testOwnerLeaves ends the person who is accountable for all agents: they are orphans, and
// get nothing more until someone else is.
func testOwnerLeaves(t *testing.T, f *contractors) {
	f.contract(t, time.Now().Add(30*24*time.Hour))
	if err := f.works(f.issue(t, orders)); err != nil {
		t.Fatal(err)
	}
	f.state(t, "people.yaml", "login/ana: {ends: \""+time.Now().Add(-time.Second).UTC().Format(time.RFC3339)+"\"}\n")
	_, _, err := f.agent.AskAndCollect(t.Context(), orders)
	if err := wantRefusal(err, api.FactEnded, http.StatusForbidden); err != nil {
		t.Error(err)
	}
	f.wantRefused(t, "everyone accountable for this workload has left")
	f.endAll(t)
}

// testSessionEndsWithContract issues a session of a real STS, which no one can revoke, under
// a contract that ends soon. The session ends with the contract, although the requester
// wanted more. The STS's clock is then moved ahead, as far as its clients tolerate.
func testSessionEndsWithContract(t *testing.T, c *cloud) {
	reload := func() {
		if out, errs, code := c.cli(c.bin, "reload", "--admin-socket", c.dir+"/admin.sock"); code != 0 {
			t.Fatalf("reload: %d %s%s", code, out, errs)
		}
	}
	contract := func(ends time.Time) {
		c.write(t, "policies/suppliers.yaml", fmt.Sprintf("acme-data:\n  sponsor: procurement\n  contract: {end: %q}\n  paths: [spiffe://acme.test/agent/reports]\n  ceiling: [reports]\n", ends.UTC().Format(time.RFC3339)))
		reload()
	}
	ends := time.Now().Add(16 * time.Minute).Truncate(time.Second)
	c.write(t, "policies/groups.yaml", "procurement: {members: [login/ana]}\n")
	contract(ends)
	t.Cleanup(func() {
		_ = os.Remove(filepath.Join(c.dir, "policies", "suppliers.yaml"))
		_ = os.Remove(filepath.Join(c.dir, "policies", "groups.yaml"))
		reload()
	})
	ask := []string{"request", "reports", "--scope", "read", "--param", "prefix=acme", "--why", "x", "-o", "json"}
	out, errs, code := c.run(append(ask, "--ttl", "1h")...)
	var got api.Credential
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != 0 {
		t.Fatalf("request: %d %s: %v", code, errs, err)
	}
	if got.ExpiresAt.After(ends) {
		t.Errorf("the session is valid until %s, the contract ends at %s", got.ExpiresAt, ends)
	}
	session := awsCredential{AccessKeyID: got.Secret["access_key_id"], SecretAccessKey: got.Secret["secret_access_key"], SessionToken: got.Secret["session_token"]}
	if text, err := c.minio.get(t, session, "reports", "acme/q1"); err != nil || text != "secret of acme/q1" {
		t.Fatalf("what the scope allows: %q, %v", text, err)
	}
	// STS makes no session that is shorter than 15 minutes, so none is issued that would
	// outlive a contract.
	contract(time.Now().Add(10 * time.Minute))
	if out, errs, code := c.run(append(ask, "--ttl", "15m")...); code == 0 {
		t.Errorf("a session was issued that outlives the contract: %s%s", out, errs)
	}
	t.Cleanup(func() {
		c.minio.stop()
		c.minio.clock = 0
		c.minio.start(t)
	})
	c.minio.stop()
	c.minio.clock = clock(14*time.Minute + 30*time.Second) // S3 refuses requests that are off by 15 minutes (RequestTimeTooSkewed)
	c.minio.start(t)
	if text, err := c.minio.get(t, session, "reports", "acme/q1"); err != nil || text != "secret of acme/q1" {
		t.Fatalf("before the end, by the STS's clock: %q, %v", text, err)
	}
	eventually(t, "the end of the session", 3*time.Minute, func() error {
		text, err := c.minio.get(t, session, "reports", "acme/q1")
		if err == nil {
			return fmt.Errorf("it reads %q", text)
		}
		return nil
	})
	if now := time.Now().Add(time.Duration(c.minio.clock)); now.Before(got.ExpiresAt.Add(-3 * time.Second)) {
		t.Errorf("the session ended at %s by the STS's clock, before its time %s", now, got.ExpiresAt)
	}
}
