package service_test

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
	"accessbroker.internal/internal/brokertest"
	"accessbroker.internal/internal/config"
	"accessbroker.internal/internal/devworld"
	"accessbroker.internal/store"
)

func readiness(t *testing.T, metrics net.Listener) (int, map[string]string) {
	t.Helper()
	resp, err := http.Get("http://" + metrics.Addr().String() + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var r api.Readiness
	if err := json.NewDecoder(resp.Body).Decode(&r); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, r.NotReady
}

var ticketsRead = api.Ask{Entitlement: "tickets-api", Scopes: []string{"tickets:read"}, Justification: "to see"}

// Without a Workload API, the broker starts and can end leases, but no workload can
// authenticate. Once the Workload API is available, the broker serves workloads.
func TestStartWithoutWorkloadAPI(t *testing.T) {
	w := brokertest.NewWorld(t)
	lease := w.Lease(ticketsRead)
	var logged bytes.Buffer
	listeners, stop := w.Start(&logged)
	ctx, operator := t.Context(), w.Operator()

	status, missing := readiness(t, listeners[1])
	if status != http.StatusServiceUnavailable || !strings.Contains(missing["trust"], "the agent does not respond") {
		t.Errorf("readyz: %d, %v", status, missing)
	}
	insecure := &tls.Config{InsecureSkipVerify: true} //nolint:gosec // any certificate counts
	if c, err := tls.Dial("tcp", w.Broker, insecure); err == nil {
		_ = c.Close()
		t.Error("the listener has a certificate, and the broker has no SVID")
	}
	if l, err := operator.Revoke(ctx, lease.String(), "INC-1"); err != nil || l.Status != "revoked" {
		t.Errorf("revoking a lease: got %+v, %v", l, err)
	}
	everybody := api.Selector{TrustDomain: devworld.TrustDomain}
	if _, err := operator.Kill(ctx, api.Kill{Selector: everybody, Reason: "INC-1", Force: true}); err != nil {
		t.Errorf("the kill switch: got %v", err)
	}
	if blocks, err := operator.Blocks(ctx); err != nil || len(blocks) != 1 {
		t.Errorf("blocks: %v, %v", blocks, err)
	}
	if err := operator.Lift(ctx, api.BlockChange{Selector: everybody, Reason: "over"}); err != nil {
		t.Errorf("lifting the block: got %v", err)
	}

	w.StartIdentities()
	brokertest.Eventually(t, "ready", func() bool { status, missing = readiness(t, listeners[1]); return status == http.StatusOK })
	c, _, err := w.Agent().AskAndCollect(ctx, ticketsRead)
	if err != nil || c.Lease == "" {
		t.Errorf("the agent's request: got %v", err)
	}
	stop()
	if text := logged.String(); strings.Count(text, "waiting for the Workload API") != 1 || !strings.Contains(text, w.Socket("broker")) {
		t.Errorf("got log\n%s\nwant one line about waiting", text)
	}
}

// An SVID of another trust domain fails the start, because waiting would not help.
func TestStartRefusesForeignSVID(t *testing.T) {
	w := brokertest.NewWorld(t)
	w.MoveTrustDomain("other.test")
	w.StartIdentities()
	if _, err := w.Open(io.Discard, nil); err == nil || !strings.Contains(err.Error(), "but trust_domain is other.test") {
		t.Errorf("got %v", err)
	}
}

// An issuer with unended leases must stay in the file. It may be retired.
func TestStartRefusesRemovedIssuer(t *testing.T) {
	w := brokertest.NewWorld(t)
	lease := w.Lease(ticketsRead)
	w.StartIdentities()
	tickets := "tickets: {token: {audience: https://tickets.acme.test, resource_servers: [spiffe://acme.test/tickets]}}"
	other := "other: {token: {audience: https://other.acme.test}}"
	w.Edit(tickets, other)
	w.EditAll("issuer: tickets", "issuer: other")
	_, err := w.Open(io.Discard, nil)
	if err == nil || !strings.Contains(err.Error(), `issuer "tickets" was removed, but 1 of its leases of "tickets-api" have not ended`) || !strings.Contains(err.Error(), "retired: true") {
		t.Fatalf("without the issuer: got %v", err)
	}

	retired := strings.TrimSuffix(tickets, "}") + ", retired: true}"
	w.Edit(other, retired+"\n  "+other)
	w.EditAll("issuer: other", "issuer: tickets")
	_, err = config.Load(w.ConfigFile(), nil)
	if err == nil || !strings.Contains(err.Error(), `"tickets" is retired`) {
		t.Errorf("an entitlement of the retired issuer: got %v", err)
	}
	w.EditAll("issuer: tickets", "issuer: other")
	_, stop := w.Start(io.Discard)
	c, _, err := w.Agent().AskAndCollect(t.Context(), ticketsRead)
	if err != nil {
		t.Fatal(err)
	}
	if l, err := w.Operator().Lease(t.Context(), c.Lease); err != nil || l.Issuer != "other" {
		t.Errorf("a new request: got lease %+v, %v", l, err)
	}
	if l, err := w.Operator().Revoke(t.Context(), lease.String(), "over"); err != nil || l.Status != "revoked" || l.Issuer != "tickets" {
		t.Errorf("revoking the retired issuer's lease: got %+v, %v", l, err)
	}
	stop()

	// Without unended leases, the issuer can be removed.
	w.Edit(retired, "")
	_, stop = w.Start(io.Discard)
	stop()
}

// An issuer cannot end the leases of an earlier one with the same name.
func TestStartRefusesReplacedIssuer(t *testing.T) {
	w := brokertest.NewWorld(t)
	w.Edit("issuers:\n", "issuers:\n  vault: {vault: {address: https://vault.test:8200, auth: {jwt: {role: broker}}, token_role: leases}}\n")
	for name, c := range map[string]struct {
		issuer, handle string
		ends           time.Duration
		want           bool
	}{
		"another address": {"vault", `{"accessor":"a","made":"token","at":"0123456789abcdef"}`, time.Hour, true},
		"another kind":    {"tickets", `{"accessor":"a","made":"token","at":"0123456789abcdef"}`, time.Hour, true},
		"expired":         {"vault", `{"accessor":"a","made":"token","at":"0123456789abcdef"}`, -time.Minute, false},
		"not revocable":   {"vault", "", time.Hour, false},
		"the same Vault":  {"vault", "own", time.Hour, false},
	} {
		t.Run(name, func(t *testing.T) {
			v, err := w.Open(io.Discard, nil)
			if err != nil {
				t.Fatal(err)
			}
			now := time.Now()
			l := &broker.Lease{
				ID: broker.NewLeaseID(now), Status: broker.LeaseActive, Revocation: broker.RevokedImmediate, Holder: "spiffe://acme.test/a",
				Issuer: c.issuer, Entitlement: "orders", Opened: now, Expires: now.Add(c.ends), Handle: []byte(c.handle),
			}
			if c.handle == "own" {
				at := sha256.Sum256([]byte("https://vault.test:8200\n"))
				l.Handle = fmt.Appendf(nil, `{"accessor":"a","made":"token","at":"%x"}`, at[:8])
			}
			w.Forge(v.Store(), l)
			if err := v.Close(); err != nil {
				t.Fatal(err)
			}
			v, err = w.Open(io.Discard, nil)
			if got := err != nil; got != c.want || got && (!strings.Contains(err.Error(), l.ID.String()) || !strings.Contains(err.Error(), "give the new one another name")) {
				t.Errorf("got %v", err)
			}
			if err == nil {
				if err := v.Close(); err != nil {
					t.Fatal(err)
				}
			}
			db, err := store.Open(t.Context(), store.Config{URL: w.Database()})
			if err != nil {
				t.Fatal(err)
			}
			l.Status = broker.LeaseRevoked
			w.Forge(db, l)
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}
