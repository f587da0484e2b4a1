package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/broker/inventory"
	"accessbroker.internal/internal/storetest"
)

// checkSurvey writes the rest of the log to the inventory, and checks that the inventory is
// that of the whole log, decoded record by record.
func checkSurvey(t testing.TB, s *Store) {
	t.Helper()
	ctx := context.Background()
	for range 2 { // the second reads what another process wrote after the last noted record
		if err := s.catchUp(ctx, s.surveying); err != nil {
			t.Errorf("following the log: %v", err)
			return
		}
	}
	got, want := surveyed(t, s), surveyWhole(t, s)
	for name, want := range want {
		if !reflect.DeepEqual(got[name], want) {
			t.Errorf("%s: got  %s\nwant %s", name, got[name], want)
		}
		delete(got, name)
	}
	for name, extra := range got {
		t.Errorf("%s: got %s, want nothing", name, extra)
	}
}

// surveyed returns the rows of the inventory as text.
func surveyed(t testing.TB, s *Store) map[string]string {
	t.Helper()
	rows := map[string]string{}
	for kind, query := range map[string]string{
		"seen": "SELECT id, body FROM identities", "used": "SELECT id || ' ' || entitlement, uses.body FROM uses JOIN identities ON n = identity",
		"total": "SELECT kind || ' ' || name, body FROM use_totals", "column": "SELECT id, kind || ' ' || used FROM identities",
	} {
		err := each(context.Background(), s.readers, query, nil, func(r *sql.Rows) error {
			var name, body string
			err := r.Scan(&name, &body)
			rows[kind+" "+name] = body
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	return rows
}

// surveyWhole returns what surveyed should.
func surveyWhole(t testing.TB, s *Store) map[string]string {
	t.Helper()
	sum := inventory.NewTally()
	err := each(context.Background(), s.readers, "SELECT leaf FROM records ORDER BY id", nil, func(rows *sql.Rows) error {
		var leaf []byte
		if err := rows.Scan(&leaf); err != nil {
			return err
		}
		r, err := audit.Decode(leaf)
		if err == nil {
			sum.AddStored(&r)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	for _, f := range sum.Filed {
		_ = s.View(context.Background(), func(tx broker.Tx) error {
			r, err := broker.Get[*broker.Request](tx, f.Request)
			if err == nil && r.SourceIP.IsValid() {
				sum.Seen[f.Identity].Places.Add(r.SourceIP, f.At)
			}
			return err
		})
	}
	rows := map[string]string{}
	put := func(name string, v any) {
		body, err := json.Marshal(v)
		if err != nil {
			t.Error(err)
		}
		rows[name] = string(body)
	}
	for id, seen := range sum.Seen {
		put("seen "+id, seen)
		rows["column "+id] = fmt.Sprintf("%s %d", seen.Kind, usedAt(seen))
	}
	for key, use := range sum.Uses {
		put("used "+key.Identity+" "+key.Entitlement, use)
	}
	for name, use := range sum.Entitlements {
		put("total entitlement "+name, use)
	}
	for name, use := range sum.Policies {
		put("total policy "+name, use)
	}
	return rows
}

// appendUse appends records of a few identities.
func appendUse(t testing.TB, s *Store, now *time.Time, n int) {
	t.Helper()
	i := newIssuance(t, n%7)
	i.request.ID = broker.NewRequestID(*now)
	i.request.SourceIP = netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", n%50))
	filed := &audit.RequestFacts{ID: i.request.ID.String(), Entitlement: []string{"tickets-api", "orders"}[n%2], Scopes: i.request.Scopes[:1+n%2], TTL: time.Minute, Duration: time.Hour}
	collected := &audit.RequestFacts{ID: filed.ID, Entitlement: filed.Entitlement, Scopes: filed.Scopes}
	caller := &audit.Party{ID: i.lease.Holder, Kind: "agent", Method: []string{"jwt-svid", "x509-svid"}[n%2]}
	permits := &audit.DecisionFacts{Permit: true, Policies: []string{"a", "b", "c"}[n%2 : 1+n%3]}
	lease := &audit.LeaseFacts{ID: i.lease.ID.String(), Scopes: filed.Scopes[:1]}
	switch n % 5 {
	case 0:
		appendRecord(t, s, audit.Record{Kind: audit.RequestCreated, From: i.request.SourceIP, Caller: caller, Request: filed, Decision: permits}, &i.request)
		appendRecord(t, s, audit.Record{Kind: audit.LeaseOpened, Caller: caller, Request: collected, Decision: permits, Lease: lease})
		appendRecord(t, s, audit.Record{Kind: audit.LeaseIssued, Lease: lease})
	case 1:
		appendRecord(t, s, audit.Record{Kind: audit.LeaseIssued, From: i.request.SourceIP, Caller: caller, Request: filed, Decision: permits, Lease: lease}, &i.request)
	case 2:
		appendRecord(t, s, audit.Record{Kind: audit.RequestDenied, From: i.request.SourceIP, Caller: caller, Request: filed, Decision: &audit.DecisionFacts{Code: "denied"}, Count: n % 4}, &i.request)
	case 3:
		appendRecord(t, s, audit.Record{Kind: audit.ApprovalGiven, Caller: &audit.Party{ID: "login/ana", Kind: "person", Method: "session"}, Request: collected, Approval: &audit.ApprovalFacts{Decision: "approve", Groups: []string{"dba"}}})
	case 4:
		appendRecord(t, s, audit.Record{Kind: audit.BlockPlaced, Caller: &audit.Party{ID: "operator", Kind: "operator"}, Block: &audit.BlockFacts{Selector: "holder spiffe://acme.test/x"}})
	}
	*now = now.Add(time.Duration(n%40) * time.Hour)
}

// The inventory is exact however the records are divided into those that are noted in
// memory and those that are read from the log.
func TestInventoryIsExact(t *testing.T) {
	random := seeded(t)
	s := newStore(t)
	now := afterNow
	s.w.now = func() time.Time { return now }
	noted, lost := 0, 0
	for n := range 300 {
		appendUse(t, s, &now, n)
		switch random.IntN(8) {
		case 0:
			noted++
		case 1:
			s.surveying.take() // as if the process had died, or the write had failed
			lost++
		default:
			continue // several at once
		}
		if err := s.catchUp(t.Context(), s.surveying); err != nil {
			t.Fatal(err)
		}
	}
	checkSurvey(t, s)
	if noted == 0 || lost == 0 || len(surveyed(t, s)) < 20 {
		t.Errorf("%d times in memory, %d times from the log, rows %v", noted, lost, slices.Sorted(maps.Keys(surveyed(t, s))))
	}
}

// A database from before the inventory is read from its first record.
func TestInventoryOfAnEarlierVersion(t *testing.T) {
	storetest.OnlySQLite(t, "databases from before PostgreSQL")
	path := filepath.Join(t.TempDir(), "broker.db")
	s := open(t, path)
	now := afterNow
	s.w.now = func() time.Time { return now }
	for n := range 30 {
		appendUse(t, s, &now, n)
	}
	setBack(t, s, 9)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, path)
	checkSurvey(t, s)
	if rows := surveyed(t, s); len(rows) < 10 {
		t.Errorf("got %d rows", len(rows))
	}
}

// More rows than memory notes are read from the log.
func TestInventoryOfManyIdentities(t *testing.T) {
	s := newStore(t)
	for part := range 3 {
		err := s.Update(t.Context(), nil, func(tx broker.Tx) error {
			for n := range maxSurveyRows/2 + 1 {
				entry, err := audit.Record{Kind: audit.SessionOpened, Caller: &audit.Party{ID: fmt.Sprintf("login/p%d-%d", part, n), Kind: "person"}}.Entry()
				if err != nil {
					return err
				}
				tx.Append(entry)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(s.surveying.wake) != 1 {
		t.Error("the loop was not woken")
	}
	if n, most := s.surveying.noted.adds.size(); n > most {
		t.Errorf("noted %d rows, more than %d", n, most)
	}
	checkSurvey(t, s)
}

func TestInventoryIsReadByKey(t *testing.T) {
	s := newStore(t)
	now := afterNow
	s.w.now = func() time.Time { return now }
	for n := range 100 {
		appendUse(t, s, &now, n)
	}
	ctx := t.Context()
	page, err := s.Inventory().Identities(ctx, inventory.Query{After: "spiffe:", Limit: 3})
	if err != nil || len(page) != 3 || page[0].ID != "spiffe://acme.test/agent/a0" || page[0].Kind != broker.KindAgent {
		t.Fatalf("the first page: %+v, %v", page, err)
	}
	if rest, err := s.Inventory().Identities(ctx, inventory.Query{After: page[2].ID, Until: "spiffe://acme.test/agent/a5", Limit: 3}); err != nil || len(rest) != 2 {
		t.Errorf("got %d identities on the next page, want a3 and a4 (%v)", len(rest), err)
	}
	if seen, err := s.Inventory().Seen(ctx, "login/ana"); err != nil || seen == nil || seen.Votes.Get("dba").N != 20 || seen.Methods.Get("session").N != 20 {
		t.Errorf("got %+v, %v", seen, err)
	}
	if seen, err := s.Inventory().Seen(ctx, "login/nobody"); err != nil || seen != nil {
		t.Errorf("an unknown identity: got %+v, %v", seen, err)
	}
	uses, err := s.Inventory().Uses(ctx, "spiffe://acme.test/agent/a1", "spiffe://acme.test/agent/a2", "login/ana")
	if err != nil || len(uses) != 2 || len(uses["spiffe://acme.test/agent/a1"]) != 2 {
		t.Errorf("got the uses %+v, %v", uses, err)
	}
	var users []string
	for after := int64(0); ; {
		list, next, err := s.Inventory().UsesOf(ctx, "orders", after, 2)
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range list {
			users = append(users, u.Identity)
		}
		if after = next; next == 0 {
			break
		}
	}
	if len(users) != 7 {
		t.Errorf("got %d users of orders, want 7: %q", len(users), users)
	}
	policies, err := s.Inventory().PolicyUses(ctx)
	if err != nil || policies["a"] == nil || policies["a"].Issued.N == 0 || policies["a"].Days == nil {
		t.Errorf("got the policies %+v, %v", policies, err)
	}
	entitlements, err := s.Inventory().EntitlementUses(ctx)
	if err != nil || entitlements["orders"] == nil || entitlements["orders"].Scopes.Get("tickets:comment").Issued.N == 0 {
		t.Errorf("got the entitlements %+v, %v", entitlements, err)
	}
	if n, behind, err := s.Inventory().Surveyed(ctx); err != nil || n != 8 || behind != 0 {
		t.Errorf("got %d identities and %d records behind, want 8 and 0 (%v)", n, behind, err)
	}
}
