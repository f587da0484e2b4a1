// Package check verifies the invariants of a whole broker at the end of a test: the
// log verifies, each lease has its records, and no log line contains a secret.
package check

import (
	"context"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/audit/verify"
	"accessbroker.internal/broker"
	"accessbroker.internal/store"
)

// reserve is smaller than the store's default, because it is written to disk.
const reserve = 1 << 16

// Options describe the store to check.
type Options struct {
	Key string // the log's public key; empty: the log's own key counts

	// Except are leases that the test wrote itself, without records.
	Except []broker.LeaseID

	// EarlyPasskeys means that passkeys counted at once. The verifier must object to
	// their enrolment.
	EarlyPasskeys bool
}

// Database checks the store of a broker that has ended.
func Database(t testing.TB, url string, o Options) {
	t.Helper()
	db, err := store.Open(context.Background(), store.Config{URL: url, Reserve: reserve})
	if err != nil {
		t.Errorf("opening the store for the check: %v", err)
		return
	}
	Store(t, db, o)
	if err := db.Close(); err != nil {
		t.Error(err)
	}
}

// Store is Database for an open store.
func Store(t testing.TB, db *store.Store, o Options) {
	t.Helper()
	ctx := context.Background() // the test's own has ended
	records := Records(t, db)
	enrolled := slices.ContainsFunc(records, func(r audit.Record) bool { return r.Kind == audit.PasskeyEnrolled })
	switch _, err := verify.Verify(ctx, db.Source(), verify.Options{Key: o.Key}); {
	case o.EarlyPasskeys && enrolled:
		if err == nil || !strings.Contains(err.Error(), "the passkey counts earlier") {
			t.Errorf("verifying the log: got %v, want an objection to early passkeys", err)
		}
	case err != nil:
		t.Errorf("the log does not verify: %v", err)
	}
	leases(ctx, t, db, records, o.Except)
}

// leases checks that an active lease has the record of its credential. Any other
// lease has at least the record that opened it.
func leases(ctx context.Context, t testing.TB, db *store.Store, records []audit.Record, except []broker.LeaseID) {
	t.Helper()
	opened, issued := map[string]bool{}, map[string]bool{}
	for _, id := range except {
		issued[id.String()] = true
	}
	for _, r := range records {
		if r.Lease == nil {
			continue
		}
		opened[r.Lease.ID] = opened[r.Lease.ID] || r.Kind == audit.LeaseOpened
		issued[r.Lease.ID] = issued[r.Lease.ID] || r.Kind == audit.LeaseIssued
	}
	for q := (broker.LeaseQuery{Now: time.Now(), Limit: 500}); ; {
		var page []*broker.Lease
		var next broker.LeaseID
		err := db.View(ctx, func(tx broker.Tx) (err error) {
			page, next, err = tx.Leases(q)
			return err
		})
		if err != nil {
			t.Errorf("reading the leases: %v", err)
			return
		}
		for _, l := range page {
			id := l.ID.String()
			if len(l.Records) > 0 && l.Records[0].Epoch() != db.Head().Epoch {
				continue // its records are in an earlier log
			}
			if !issued[id] && (l.Status == broker.LeaseActive || !opened[id]) {
				t.Errorf("lease %s (status %d) has no record in the log", id, l.Status)
			}
		}
		if q.Before = next; next.IsZero() {
			return
		}
	}
}

// Records returns all records of the log.
func Records(t testing.TB, db *store.Store) (all []audit.Record) {
	t.Helper()
	for item, err := range db.Source().Items(context.Background()) {
		if err != nil {
			t.Errorf("reading the log: %v", err)
			return all
		}
		r, err := audit.Decode(item.Leaf)
		if err != nil {
			t.Errorf("decoding record %d: %v", item.Index, err)
			return all
		}
		all = append(all, r)
	}
	return all
}

// Secrets checks that no line of a broker's output contains a secret.
func Secrets(t testing.TB, output string, secrets []string) {
	t.Helper()
	for _, secret := range secrets {
		if secret != "" && strings.Contains(output, secret) {
			t.Errorf("the broker's output contains a secret: %.20s…", secret)
		}
	}
}

// compactJWT is the start of a token or JWT-SVID in its compact form.
var compactJWT = regexp.MustCompile(`eyJ[\w-]{8,}\.eyJ[\w-]{8,}`)

// Tokens checks that a broker's output contains no JWT.
func Tokens(t testing.TB, output string) {
	t.Helper()
	if found := compactJWT.FindString(output); found != "" {
		t.Errorf("the broker's output contains a token: %.20s…", found)
	}
}

// OpenLog opens the log of a new store with a key that signs nothing.
func OpenLog(t testing.TB, s *store.Store, now time.Time) {
	t.Helper()
	origin := audit.NewOrigin("broker.acme.test")
	_, public, err := audit.NewLogKey(origin)
	if err != nil {
		t.Fatal(err)
	}
	first, err := audit.Record{Kind: audit.LogOpened, Log: &audit.LogFacts{Origin: origin}}.Entry()
	if err != nil {
		t.Fatal(err)
	}
	key := &broker.SigningKey{ID: broker.SigningKeyID{Purpose: "log", ID: "1"}, Algorithm: "EdDSA", Published: now, Signs: now}
	if err := s.OpenLog(t.Context(), origin, public, key, first); err != nil {
		t.Fatal(err)
	}
}
