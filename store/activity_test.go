package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"math"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/broker/activity"
	"accessbroker.internal/internal/storetest"
)

// afterNow is later than the records of a log that was just opened, and an hour begins.
var afterNow = time.Now().Add(48 * time.Hour).Truncate(time.Hour)

// checkCounts counts the rest of the log and checks that the counts and the index of
// records are those of the whole log, decoded record by record.
func checkCounts(t testing.TB, s *Store) {
	t.Helper()
	ctx := context.Background()
	if err := s.catchUp(ctx, s.counting); err != nil {
		t.Errorf("counting: %v", err)
		return
	}
	want, events := countWhole(t, s)
	r, err := s.Activity(ctx, time.Unix(0, 0), time.Now())
	if err != nil || r.Uncounted != 0 {
		t.Errorf("reading the counts: %v, %d records are not counted", err, r.Uncounted)
		return
	}
	if !reflect.DeepEqual(r.Hours, want) {
		t.Errorf("counted %s\nwant %s", describe(r.Hours), describe(want))
	}
	var got []event
	err = each(ctx, s.readers, "SELECT kind, record FROM events ORDER BY record", nil, func(rows *sql.Rows) error {
		var e event
		err := rows.Scan(&e.kind, &e.record)
		got = append(got, e)
		return err
	})
	if err != nil || !slices.Equal(got, events) {
		t.Errorf("the index has %v, want %v (%v)", got, events, err)
	}
}

// An event is a record in the index.
type event struct {
	kind   audit.Kind
	record int64
}

// countWhole counts all logs of the database in the obvious way.
func countWhole(t testing.TB, s *Store) (hours activity.Hours, events []event) {
	t.Helper()
	hours = activity.Hours{}
	err := each(context.Background(), s.readers, "SELECT id, leaf FROM records ORDER BY id", nil, func(rows *sql.Rows) error {
		var id int64
		var leaf []byte
		if err := rows.Scan(&id, &leaf); err != nil {
			return err
		}
		r, err := audit.Decode(leaf)
		if err != nil {
			return err
		}
		var asked time.Time
		if lease, ok := activity.ConfirmedLease(&r); ok {
			l, err := s.Lease(context.Background(), lease)
			if err != nil {
				return err
			}
			asked = l.EndAsked
		}
		hours.Add(&r, asked)
		if r.Kind != audit.LeaseIssued {
			events = append(events, event{r.Kind, id})
		}
		return nil
	})
	if err != nil {
		t.Errorf("reading the log: %v", err)
	}
	return hours, events
}

func describe(h activity.Hours) (text string) {
	for _, hour := range slices.Sorted(maps.Keys(h)) {
		text += fmt.Sprintf("\n%d: %+v", hour, *h[hour])
	}
	return text
}

// appendRecord appends a record with rows.
func appendRecord(t testing.TB, s *Store, r audit.Record, rows ...broker.Row) {
	t.Helper()
	entry, err := r.Entry()
	if err != nil {
		t.Fatal(err)
	}
	var reads []broker.Key
	for _, row := range rows {
		reads = append(reads, row.Key())
	}
	err = s.Update(context.Background(), reads, func(tx broker.Tx) error {
		for _, row := range rows {
			tx.Put(row)
		}
		tx.Append(entry)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// The counts are exact however the records are divided into those that are noted in
// memory and those that are read from the log.
func TestActivityIsExact(t *testing.T) {
	random := seeded(t)
	s := newStore(t)
	now := afterNow
	s.w.now = func() time.Time { return now }
	noted, lost := 0, 0
	for range 40 {
		appendActivity(t, s, &now)
		switch random.IntN(3) {
		case 0:
			noted++
		case 1:
			s.counting.take() // as if the process had died, or the write had failed
			lost++
		case 2:
			continue // two at once
		}
		if err := s.catchUp(t.Context(), s.counting); err != nil {
			t.Fatal(err)
		}
		want, _ := countWhole(t, s)
		r, err := s.Activity(t.Context(), time.Unix(0, 0), now)
		if err != nil || r.Uncounted != 0 || !reflect.DeepEqual(r.Hours, want) {
			t.Fatalf("%v, %d not counted\ngot %s\nwant %s", err, r.Uncounted, describe(r.Hours), describe(want))
		}
	}
	if noted == 0 || lost == 0 {
		t.Errorf("%d times in memory, %d times from the log", noted, lost)
	}
}

// Records that were read from the log while they were noted are counted once.
func TestActivityNotedWhileRead(t *testing.T) {
	s := newStore(t)
	now := afterNow
	s.w.now = func() time.Time { return now }
	appendActivity(t, s, &now)
	noted := s.counting.take()
	if err := s.catchUp(t.Context(), s.counting); err != nil { // reads all from the log
		t.Fatal(err)
	}
	s.counting.noted = noted
	appendActivity(t, s, &now)
	if s.counting.noted != noted || noted.last <= noted.after {
		t.Fatalf("the span %+v was not continued", noted)
	}
	if err := s.catchUp(t.Context(), s.counting); err != nil { // the cleanup checks the counts
		t.Fatal(err)
	}
}

// A span that was counted already adds nothing.
func TestActivityCountsASpanOnce(t *testing.T) {
	s := newStore(t)
	now := afterNow
	s.w.now = func() time.Time { return now }
	appendActivity(t, s, &now)
	batches := 0
	for {
		b := &span{}
		err := s.View(t.Context(), func(tx broker.Tx) (err error) {
			b, err = tx.(*viewTx).unread(s.counting, math.MaxInt64, 3)
			return err
		})
		if err == nil && b.n == 0 {
			break
		}
		if err == nil {
			err = s.View(t.Context(), func(tx broker.Tx) error { return b.adds.complete(tx.(*viewTx)) })
		}
		for range 2 {
			if err == nil {
				err = s.exec(t.Context(), func(ctx context.Context, w *writer) error { return w.addSpan(ctx, s.counting, b) })
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		batches++
	}
	s.counting.take()
	if batches < 5 {
		t.Errorf("the log was counted in %d batches", batches)
	}
}

// A log that is longer than a batch, and more records than memory notes, are counted.
func TestActivityOfManyRecords(t *testing.T) {
	s := newStore(t)
	for range 3 {
		err := s.Update(t.Context(), nil, func(tx broker.Tx) error {
			for range maxNoted/2 + 1 {
				entry, err := audit.Record{Kind: audit.SessionOpened}.Entry()
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
	if s.counting.noted == nil || len(s.counting.noted.adds.(*hourTally).rest) > maxNoted+followBatch*4 {
		t.Errorf("noted %+v", s.counting.noted)
	}
}

// appendActivity appends records of three hours.
func appendActivity(t testing.TB, s *Store, now *time.Time) {
	t.Helper()
	ask := func(lapses time.Time) *broker.Request {
		i := newIssuance(t, 1)
		r := i.request
		r.ID, r.Created, r.Status, r.Lapses = broker.NewRequestID(*now), *now, broker.RequestPending, lapses
		facts := &audit.RequestFacts{ID: r.ID.String(), Entitlement: r.Entitlement, TTL: r.TTL, Duration: r.Duration, LapsesAt: lapses}
		appendRecord(t, s, audit.Record{Kind: audit.RequestCreated, Caller: &audit.Party{ID: r.Requester.ID}, Request: facts, Decision: &audit.DecisionFacts{Permit: true, Approvals: []string{"1 of dba"}}}, &r)
		return &r
	}
	vote := func(kind audit.Kind, r *broker.Request, person, decision string) {
		appendRecord(t, s, audit.Record{Kind: kind, Caller: &audit.Party{ID: person, Kind: "person"}, Request: &audit.RequestFacts{ID: r.ID.String()}, Approval: &audit.ApprovalFacts{Decision: decision}})
	}
	first, second := ask(now.Add(time.Hour)), ask(now.Add(30*time.Minute))
	ask(now.Add(20 * time.Minute)) // lapses
	for n := range 5 {
		i := newIssuance(t, n)
		if err := i.store(context.Background(), s); err != nil {
			t.Fatal(err)
		}
	}
	*now = now.Add(7 * time.Minute)
	vote(audit.ApprovalGiven, first, "login/ana", "approve")
	vote(audit.RequestApproved, first, "login/ben", "approve")
	*now = now.Add(time.Hour)
	vote(audit.RequestDenied, second, "login/ben", "deny")
	appendRecord(t, s, audit.Record{Kind: audit.RequestDenied, Request: &audit.RequestFacts{ID: first.ID.String(), TTL: time.Minute}, Decision: &audit.DecisionFacts{Code: "denied"}, Count: 12})
	appendRecord(t, s, audit.Record{Kind: audit.CollectRefused, Caller: &audit.Party{ID: first.Requester.ID}, Request: &audit.RequestFacts{ID: first.ID.String()}, Decision: &audit.DecisionFacts{Code: "limit"}})
	appendRecord(t, s, audit.Record{Kind: audit.BlockPlaced, Block: &audit.BlockFacts{Selector: "holder spiffe://acme.test/x"}})
	*now = now.Add(time.Hour)
	i := newIssuance(t, 9)
	l := i.lease
	l.Status, l.EndAsked, l.EndHow, l.Ended = broker.LeaseRevoked, now.Add(-42*time.Second), broker.EndRevoked, *now
	l.Revocation = broker.RevokedImmediate
	appendRecord(t, s, audit.Record{Kind: audit.LeaseRevoked, Lease: &audit.LeaseFacts{ID: l.ID.String(), Revocation: "immediate"}, End: &audit.EndFacts{How: broker.EndRevoked}}, &l)
	appendRecord(t, s, audit.Record{Kind: audit.SessionOpened, Caller: &audit.Party{ID: "login/ana", Kind: "person"}})
}

// A request that no one decides lapses without a record, and is counted by its row.
func TestActivityCountsLapsedAndWaiting(t *testing.T) {
	s := newStore(t)
	now := afterNow
	s.w.now = func() time.Time { return now }
	appendActivity(t, s, &now)
	for after, want := range map[time.Duration][2]int{0: {0, 3}, 25 * time.Minute: {1, 2}, 3 * time.Hour: {3, 0}} {
		r, err := s.Activity(t.Context(), afterNow, afterNow.Add(after))
		if err != nil {
			t.Fatal(err)
		}
		lapsed := 0
		for _, n := range r.Lapsed {
			lapsed += n
		}
		if got := [2]int{lapsed, int(r.Waiting)}; got != want {
			t.Errorf("after %s: got %d lapsed and %d waiting, want %d", after, got[0], got[1], want)
		}
	}
}

// Every step of the commit that counts fails once, and succeeds once with its answer
// lost. The cleanup of the test checks the counts.
func TestActivitySurvivesFailedCommits(t *testing.T) {
	struck := 0
	for _, step := range commitSteps {
		for _, happens := range []bool{false, true} {
			s := newStore(t)
			now := afterNow
			s.w.now = func() time.Time { return now }
			appendActivity(t, s, &now)
			s.w.fault = func(at string, f func() error) error {
				if at != step {
					return f()
				}
				struck++
				if happens {
					return errors.Join(f(), errFault)
				}
				return errFault
			}
			err := s.catchUp(t.Context(), s.counting)
			s.w.fault = nil
			if done := step == "commit" && happens; (err == nil) != done {
				t.Errorf("%s failed, after it happened: %t: the caller got %v", step, happens, err)
			}
			checkCounts(t, s)
		}
	}
	if struck < 2*len(commitSteps) {
		t.Errorf("struck %d times", struck)
	}
}

// A database from before the counts is counted from its first record, over all its logs.
func TestActivityOfAnEarlierVersion(t *testing.T) {
	storetest.OnlySQLite(t, "databases from before PostgreSQL")
	path := filepath.Join(t.TempDir(), "broker.db")
	s := open(t, path)
	now := afterNow
	s.w.now = func() time.Time { return now }
	appendActivity(t, s, &now)
	key := &broker.SigningKey{ID: broker.SigningKeyID{Purpose: "log", ID: "next"}, Algorithm: "Ed25519", Sealed: []byte("sealed")}
	first, err := audit.Record{Kind: audit.LogOpened, Log: &audit.LogFacts{Origin: "next"}}.Entry()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.NewEpoch(t.Context(), "next", testPublic, key, first, nil, nil); err != nil {
		t.Fatal(err)
	}
	appendActivity(t, s, &now)
	setBack(t, s, 7)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	checkCounts(t, open(t, path))
}
