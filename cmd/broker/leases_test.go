package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
	"accessbroker.internal/internal/brokertest"
)

// makeStuck moves the agent's lease to an issuer that can't revoke it, and adds two
// active leases like it.
func makeStuck(t *testing.T, w *brokertest.World, id broker.LeaseID) {
	t.Helper()
	v, err := w.Open(io.Discard, nil)
	if err != nil {
		t.Fatal(err)
	}
	var stuck broker.Lease
	err = v.Store().View(t.Context(), func(tx broker.Tx) error {
		row, err := tx.Get(id)
		if err == nil {
			stuck = *row.(*broker.Lease)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	now, at := time.Now(), sha256.Sum256([]byte("https://vault.test:8200\n"))
	one, two := stuck, stuck
	one.ID, two.ID = broker.NewLeaseID(now), broker.NewLeaseID(now)
	stuck.Issuer, stuck.Status, stuck.Revocation = "vault", broker.LeaseRevoking, broker.RevokedPending
	stuck.Handle = fmt.Appendf(nil, `{"accessor":"a","made":"token","at":"%x"}`, at[:8])
	stuck.EndHow, stuck.EndAsked, stuck.NextTry, stuck.LastError = broker.EndReturned, now.Add(-broker.StuckAfter), now.Add(time.Hour), "issuer_unavailable"
	w.Forge(v.Store(), &one, &two, &stuck)
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
}

// gauge reads a metric without labels.
func gauge(t *testing.T, metrics net.Listener, name string) string {
	t.Helper()
	resp, err := http.Get("http://" + metrics.Addr().String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`(?m)^` + name + ` (.+)$`).FindSubmatch(text)
	if found == nil {
		t.Fatalf("no metric %s", name)
	}
	return string(found[1])
}

// A lease whose issuer is gone is stuck in the metrics and in the list of leases until
// an operator abandons it. The log verifies.
func TestStuckLeaseIsAbandoned(t *testing.T) {
	w := brokertest.NewWorld(t)
	w.Edit("issuers:\n", "issuers:\n  vault: {vault: {address: https://vault.test:8200, auth: {jwt: {role: broker}}, token_role: leases}}\n")
	id := w.Lease(api.Ask{Entitlement: "tickets-api", Scopes: []string{"tickets:read"}, Justification: "to see"})
	lease := id.String()
	makeStuck(t, w, id)
	w.StartIdentities()
	listeners, stop := w.Start(io.Discard)
	brokertest.Eventually(t, "a stuck lease in the metrics", func() bool { return gauge(t, listeners[1], "broker_leases_stuck") == "1" })
	if n := gauge(t, listeners[1], "broker_leases_active"); n != "3" {
		t.Errorf("got %s active leases, want 3", n)
	}
	command := func(want int, args ...string) string {
		t.Helper()
		var out, errs bytes.Buffer
		socket := []string{"--admin-socket", w.AdminSocket()}
		if code := run(t.Context(), append(args, socket...), terminal{in: strings.NewReader(""), out: &out, err: &errs, getenv: func(string) string { return "" }}); code != want {
			t.Fatalf("broker %s ended with %d: %s%s", strings.Join(args, " "), code, &out, &errs)
		}
		return out.String() + errs.String()
	}
	shows := func(text, status string) {
		t.Helper()
		if !regexp.MustCompile(`(?m)^` + lease + ` +` + status + ` +tickets-api `).MatchString(text) {
			t.Errorf("the lease is not listed as %s:\n%s", status, text)
		}
	}
	shows(command(exitOK, "leases", "--holder", "*", "--live"), "stuck")
	if text := command(exitFailed, "leases", "abandon", lease); !strings.Contains(text, "give a reason") {
		t.Errorf("without a reason: got %s", text)
	}
	if text := command(exitOK, "leases", "abandon", lease, "--why", "the cluster was deleted"); !regexp.MustCompile(`(?m)^lease +` + lease + "\nstatus +abandoned$").MatchString(text) {
		t.Errorf("abandoned: got %s", text)
	}
	if text := command(exitOK, "leases", "--holder", "*", "--live"); strings.Contains(text, lease) {
		t.Errorf("the abandoned lease is listed as live:\n%s", text)
	}
	shows(command(exitOK, "leases", "--holder", "*"), "abandoned")
	stop()
	var out bytes.Buffer
	if code := run(t.Context(), []string{"audit", "verify", w.Database()}, terminal{out: &out, err: &out, getenv: func(string) string { return "" }}); code != exitOK {
		t.Errorf("broker audit verify ended with %d: %s", code, &out)
	}
}

// A credential that cannot be revoked is shown as ended after its expiry.
func TestRevocationEffect(t *testing.T) {
	noon := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		lease api.Lease
		want  string
	}{
		{api.Lease{Revocation: "immediate", ExpiresAt: noon}, "the credential has stopped working"},
		{api.Lease{Revocation: "at_expiry", ExpiresAt: noon.Add(1)}, "introspection returns inactive; servers that check only the signature accept the token until 2026-11-24 12:00:00Z"},
		{api.Lease{Revocation: "at_expiry", Type: "aws", ExpiresAt: noon.Add(1)}, "not possible; the credential works until 2026-11-24 12:00:00Z"},
		{api.Lease{Revocation: "at_expiry", ExpiresAt: noon}, "the credential expired at 2026-11-24 12:00:00Z"},
		{api.Lease{Revocation: "at_rotation", WorksUntil: noon.Add(1)}, "the credential works until its issuer rotates it at 2026-11-24 12:00:00Z"},
		{api.Lease{Revocation: "at_rotation", WorksUntil: noon}, "the issuer was due to rotate the credential at 2026-11-24 12:00:00Z"},
		{api.Lease{Revocation: "at_rotation"}, "the credential works until its issuer rotates it"},
		{api.Lease{Revocation: "never"}, "not possible"},
	} {
		if got := revocationEffect(&test.lease, noon); got != test.want {
			t.Errorf("%+v: got %q, want %q", test.lease, got, test.want)
		}
	}
}

// The list shows that what policy permits only with authorization_details can be requested.
func TestOffersWithDetails(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	writeOffers(&out, []api.Offer{
		{Entitlement: "whole", NeedsDetails: true, Decision: &api.Decision{}},
		{Entitlement: "scoped", Scopes: []api.ScopeOffer{{Scope: "needs", NeedsDetails: true}, {Scope: "refused"}}},
		{Entitlement: "blocked", Blocked: true, NeedsDetails: true, Decision: &api.Decision{}},
	})
	for _, want := range []string{"whole\t-\twith --detail\t", "scoped\tneeds\twith --detail\t", "scoped\trefused\tno\t", "blocked\t-\tblocked\t"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("got\n%s\nwant %q", &out, want)
		}
	}
}
