package store

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/internal/storetest"
)

const testOrigin = "broker.test/log/00000000"

var (
	testSecret, testPublic, _ = audit.NewLogKey(testOrigin)
	testNow                   = time.Date(2026, 11, 3, 12, 0, 0, 0, time.UTC)
)

// testURL returns the URL of the database that stands for a file (package storetest).
func testURL(t testing.TB, path string) string {
	t.Helper()
	return storetest.URL(t, path, func(url string) error {
		s, err := Open(context.Background(), Config{URL: url})
		if err != nil {
			return err
		}
		return s.Close()
	})
}

// open opens a store at the path, and a log if it has none.
func open(t testing.TB, path string) *Store {
	t.Helper()
	_, measured := t.(*testing.B)
	s, err := Open(t.Context(), Config{URL: testURL(t, path), Reserve: 1 << 16, NoSync: !measured})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.loadHoldings(t.Context()); err != nil { // from here on, they follow the commits
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !measured && !s.queue.closed && s.presence.check() == nil {
			checkHoldings(t, s)
			checkCounts(t, s)
			checkSurvey(t, s)
			checkTallies(t, s)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	err = openLog(t.Context(), s)
	if err != nil && !errors.Is(err, ErrLogOpen) {
		t.Fatal(err)
	}
	return s
}

func openLog(ctx context.Context, s *Store) error {
	first, err := audit.Record{Kind: audit.LogOpened, Log: &audit.LogFacts{Origin: testOrigin}}.Entry()
	if err != nil {
		return err
	}
	key := &broker.SigningKey{ID: broker.SigningKeyID{Purpose: "log", ID: testOrigin}, Algorithm: "Ed25519", Sealed: []byte("sealed")}
	return s.OpenLog(ctx, testOrigin, testPublic, key, first)
}

func newStore(t testing.TB) *Store { return open(t, filepath.Join(t.TempDir(), "broker.db")) }

// An issuance is the request, the lease and the record of one token.
type issuance struct {
	request broker.Request
	lease   broker.Lease
	entry   *audit.Entry
}

func newIssuance(t testing.TB, n int) issuance { return newIssuanceAt(t, n, testNow, 10*time.Minute) }

// newIssuanceAt returns an issuance of a time.
func newIssuanceAt(t testing.TB, n int, at time.Time, ttl time.Duration) issuance {
	holder := fmt.Sprintf("spiffe://acme.test/agent/a%d", n%1024)
	r := broker.Request{
		ID: broker.NewRequestID(at), Version: 1, Status: broker.RequestApproved,
		Requester: broker.Identity{ID: holder, TrustDomain: "acme.test", Paths: broker.SPIFFEPaths(holder), Kind: broker.KindAgent,
			Proof: broker.Proof{Method: broker.MethodJWTSVID, SHA256: audit.Digest{1}, Expires: at.Add(time.Hour)}, Team: "support", Accountable: []string{"login/ana"}},
		Entitlement: "tickets-api", Effect: audit.Digest{2}, Scopes: []string{"tickets:comment", "tickets:read"},
		TTL: ttl, Duration: time.Hour,
		Decision: broker.Decision{Permit: true, Policies: []string{"agents-tickets"}, Revision: audit.Digest{4}},
		Created:  at, Approved: at, CollectUntil: at.Add(time.Hour), FirstExpires: at.Add(ttl),
	}
	l := broker.Lease{
		ID: broker.LeaseID(r.ID), Request: r.ID, Status: broker.LeaseActive, Holder: holder, Entitlement: r.Entitlement, Issuer: "tickets",
		Scopes: r.Scopes, Opened: at, Expires: at.Add(ttl), Type: "bearer", Revocation: broker.RevokedAtExpiry,
	}
	r.FirstLease = l.ID
	record := audit.Record{
		Kind:     audit.LeaseIssued,
		Caller:   &audit.Party{ID: holder, Kind: "agent", Method: "jwt-svid", Proof: audit.Digest{1}, Expires: at},
		Request:  &audit.RequestFacts{ID: r.ID.String(), Effect: r.Effect, Entitlement: r.Entitlement, Scopes: r.Scopes, TTL: r.TTL, Duration: r.Duration},
		Decision: &audit.DecisionFacts{Permit: true, Policies: r.Decision.Policies, Revision: r.Decision.Revision},
		Lease:    &audit.LeaseFacts{ID: l.ID.String(), Issuer: l.Issuer, Type: l.Type, Expires: l.Expires, Revocation: string(l.Revocation), Credential: audit.Digest{5}},
	}
	r.Digest = record.Request.Sum(audit.Requester{ID: holder}, record.Decision)
	record.Request.Digest = r.Digest
	entry, err := record.Entry()
	if err != nil {
		t.Fatal(err)
	}
	return issuance{r, l, entry}
}

func (i *issuance) blocks() []broker.Key {
	return []broker.Key{
		broker.BlockKey{Kind: "holder", Name: i.lease.Holder}, broker.BlockKey{Kind: "trust_domain", Name: "acme.test"},
		broker.BlockKey{Kind: "under", Name: i.lease.Holder}, broker.BlockKey{Kind: "under", Name: "spiffe://acme.test/agent"},
		broker.BlockKey{Kind: "entitlement", Name: i.lease.Entitlement}, broker.BlockKey{Kind: "issuer", Name: i.lease.Issuer},
	}
}

// store stores the issuance as the broker does.
func (i *issuance) store(ctx context.Context, s *Store) error {
	keys := i.blocks()
	return s.Update(ctx, keys, func(tx broker.Tx) error {
		for _, key := range keys {
			if _, err := tx.Get(key); !errors.Is(err, broker.ErrNotFound) {
				return fmt.Errorf("%v: %w", key, err)
			}
		}
		tx.Put(&i.request)
		tx.Put(&i.lease)
		tx.Append(i.entry)
		return nil
	})
}
