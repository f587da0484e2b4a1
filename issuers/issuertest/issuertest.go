// Package issuertest checks issuers against the contract of broker.Issuer, and has
// the shared helpers of their tests.
package issuertest

import (
	"bytes"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/internal/storetest/tables"
	"accessbroker.internal/store"
)

// Noon is the time at which tests without a clock of their own take place.
var Noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// Lease returns an open lease of 10 minutes from now on.
func Lease(now time.Time) broker.Lease {
	return broker.Lease{
		ID: broker.NewLeaseID(now), Request: broker.NewRequestID(now), Holder: "spiffe://acme.test/agent/triage",
		Entitlement: "tickets-api", Issuer: "tickets", Scopes: []string{"tickets:comment", "tickets:read"},
		Opened: now, Expires: now.Add(10 * time.Minute).Truncate(time.Second),
	}
}

// Store returns a new SQLite store with an open log.
func Store(t testing.TB) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{URL: tables.URL(t, filepath.Join(t.TempDir(), "broker.db")), Reserve: 1 << 16, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("closing the store: %v", err)
		}
	})
	origin := audit.NewOrigin("broker.acme.test")
	_, public, err := audit.NewLogKey(origin)
	if err != nil {
		t.Fatal(err)
	}
	first, err := audit.Record{Kind: audit.LogOpened, Log: &audit.LogFacts{Origin: origin}}.Entry()
	if err != nil {
		t.Fatal(err)
	}
	key := &broker.SigningKey{ID: broker.SigningKeyID{Purpose: "log", ID: "1"}, Algorithm: "EdDSA"}
	if err := s.OpenLog(t.Context(), origin, public, key, first); err != nil {
		t.Fatal(err)
	}
	return s
}

// Sealer returns a sealer with one key for each seed. The first one seals.
func Sealer(t testing.TB, seeds ...byte) *broker.Sealer {
	t.Helper()
	var keys [][]byte
	for _, seed := range seeds {
		keys = append(keys, bytes.Repeat([]byte{seed}, broker.SealKeySize))
	}
	s, err := broker.NewSealer(keys...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Conform checks an issuer against the contract of broker.Issuer, with one
// credential for lease l under entitlement e.
func Conform(t *testing.T, issuer broker.Issuer, l broker.Lease, e *broker.Entitlement) {
	t.Helper()
	prepared, err := issuer.Prepare(t.Context(), broker.Order{Lease: l, Entitlement: e})
	if err != nil {
		t.Fatalf("Prepare: %v", err)
	}
	l.Handle = prepared.Handle
	for name, value := range prepared.Key.Reveal() {
		if bytes.Contains(l.Handle, []byte(value)) {
			t.Errorf("Prepare's handle contains the key's %s", name)
		}
	}
	c, handle, err := issuer.Issue(t.Context(), broker.Order{Lease: l, Entitlement: e, Key: prepared.Key})
	if err != nil {
		t.Fatalf("Issue: %v", err)
	}
	if handle != nil {
		l.Handle = handle
	}
	checkCredential(t, c, l)
	if owner, ok := issuer.(broker.Owner); !ok || !owner.Owns(l) {
		t.Errorf("the issuer does not own its lease with the handle %q", l.Handle)
	}
	if d, ok := issuer.(broker.Describer); !ok || e != nil && d.Describe(e, l.Scopes, l.Parameters) == "" {
		t.Error("the issuer does not describe the credential to approvers")
	}
	for range 2 { // the answer to the first call may have been lost
		if err := issuer.Revoke(t.Context(), l); err != nil && !errors.Is(err, broker.ErrNotRevocable) && !errors.Is(err, broker.ErrQueued) {
			t.Errorf("Revoke: %v", err)
		}
	}
}

// checkCredential checks an issued credential and the lease with its final
// handle.
func checkCredential(t *testing.T, c broker.Credential, l broker.Lease) {
	t.Helper()
	if c.Expires.After(l.Expires) || c.Expires.IsZero() || c.Type == "" || c.Hash.IsZero() {
		t.Errorf("issued %+v for a lease that expires at %s", c, l.Expires)
	}
	fields := c.Secret.Reveal()
	if c.Type == broker.CredentialMembership {
		if c.Joined == nil || c.Joined.System == "" || c.Joined.Group == "" || len(fields) > 0 {
			t.Errorf("a membership has a system, a group and no secret, got %+v", c)
		}
		return
	}
	if len(fields) == 0 {
		t.Error("the credential is empty")
	}
	for name, value := range fields {
		if len(value) > 8 && bytes.Contains(l.Handle, []byte(value)) {
			t.Errorf("the handle contains the secret's %s", name)
		}
	}
}
