package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/broker/evidence"
)

// checkTallies checks that each bucket has the counts of its records, decoded record by
// record.
func checkTallies(t testing.TB, s *Store) {
	t.Helper()
	for range 2 { // the first one may read only what this process noted
		if err := s.catchUp(context.Background(), s.tallying); err != nil {
			t.Errorf("counting records by their traits: %v", err)
			return
		}
	}
	type bucket [2]int64 // its level and its number
	want, got := map[bucket]evidence.Tally{}, map[bucket]evidence.Tally{}
	err := each(context.Background(), s.readers, "SELECT id, leaf FROM records", nil, func(rows *sql.Rows) error {
		var id int64
		var leaf []byte
		if err := rows.Scan(&id, &leaf); err != nil {
			return err
		}
		r, err := audit.Decode(leaf)
		for _, level := range []int64{fineLevel, coarseLevel} {
			b := bucket{level, id >> level}
			if want[b] == nil {
				want[b] = evidence.Tally{}
			}
			want[b].Add(broker.RecordID(id).Index(), audit.LeafHash(leaf), r.Sample(r.Time))
		}
		return err
	})
	if err != nil {
		t.Errorf("reading the log: %v", err)
	}
	err = each(context.Background(), s.readers, "SELECT level, bucket, body FROM tallies", nil, func(rows *sql.Rows) error {
		var b bucket
		var body []byte
		if err := rows.Scan(&b[0], &b[1], &body); err != nil {
			return err
		}
		var tally evidence.Tally
		err := json.Unmarshal(body, &tally)
		got[b] = tally
		return err
	})
	if err != nil || !reflect.DeepEqual(got, want) {
		for b := range want {
			t.Errorf("bucket %d has %s, want %s (%v)", b, shown(got[b]), shown(want[b]), err)
		}
	}
}

func shown(v any) string {
	text, _ := json.Marshal(v)
	return string(text)
}

// signHead saves a checkpoint over the whole log.
func signHead(t testing.TB, s *Store) {
	t.Helper()
	signer, err := audit.NewSigner(testSecret)
	if err == nil {
		err = saveCheckpoint(t, s, signer)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// appendMany appends n records of different traits in one transaction.
func appendMany(t testing.TB, s *Store, n int) {
	t.Helper()
	callers := []string{"agent", "workload", "person"}
	err := s.Update(t.Context(), nil, func(tx broker.Tx) error {
		for i := range n {
			r := audit.Record{Kind: audit.RequestDenied, Caller: &audit.Party{ID: fmt.Sprint("x/", i), Kind: callers[i%3]}, Decision: &audit.DecisionFacts{Code: "denied"}, Count: i % 5}
			if i%4 == 0 {
				r = audit.Record{Kind: audit.LeaseIssued, Caller: &audit.Party{ID: "x", Kind: callers[i%3], Method: "x509-svid"}, Lease: &audit.LeaseFacts{ID: "lse_x", Expires: afterNow.Add(time.Duration(i) * time.Second)}}
			}
			entry, err := r.Entry()
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

// A report of any period and size has the same bytes from the store's counts and from a
// scan of the whole log.
func TestEvidenceIsThatOfTheLog(t *testing.T) {
	random := seeded(t)
	s := newStore(t)
	now := afterNow
	s.w.now = func() time.Time { return now }
	for range 7 {
		appendMany(t, s, 2000+random.IntN(10_000))
		now = now.Add(time.Hour)
		appendActivity(t, s, &now)
	}
	appendMany(t, s, max(0, 1<<coarseLevel-int(s.Head().Size)))
	signHead(t, s)
	if err := s.catchUp(t.Context(), s.tallying); err != nil {
		t.Fatal(err)
	}
	for n := range 6 {
		from := afterNow.Add(time.Duration(random.IntN(10)-1) * time.Hour)
		q := evidence.Query{From: from, To: from.Add(time.Duration(1+random.IntN(20)) * time.Hour), Size: 1 + random.Int64N(s.Head().Size)}
		switch n {
		case 0:
			q = evidence.Query{From: time.Unix(0, 0).UTC(), To: now.Add(time.Hour)}
		case 1:
			q.To = q.From.Add(time.Second)
		}
		want, basis, err := evidence.NewScan(s.Source()).Tally(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		got, gotBasis, err := s.Tally(t.Context(), q)
		if err != nil || gotBasis != basis || !reflect.DeepEqual(got, want) {
			t.Fatalf("%+v: got %+v %s\nwant %+v %s\n%v", q, gotBasis, shown(got), basis, shown(want), err)
		}
		f := frameworksOf(t)[n%4]
		one, err := evidence.Build(t.Context(), f, s, q)
		if err != nil {
			t.Fatal(err)
		}
		two, err := evidence.Build(t.Context(), f, evidence.NewScan(s.Source()), q)
		if err != nil || shown(one) != shown(two) || string(one.Markdown()) != string(two.Markdown()) {
			t.Fatalf("%s: %v\nstore %s\nscan  %s", f.ID, err, one.Markdown(), two.Markdown())
		}
	}
}

func frameworksOf(t testing.TB) []*evidence.Framework {
	t.Helper()
	list, err := evidence.Frameworks()
	if err != nil || len(list) < 4 {
		t.Fatalf("%d frameworks, %v", len(list), err)
	}
	return list
}

// Later records change nothing in a report of the same size.
func TestEvidenceOfASizeStays(t *testing.T) {
	s := newStore(t)
	now := afterNow
	s.w.now = func() time.Time { return now }
	appendActivity(t, s, &now)
	signHead(t, s)
	q := evidence.Query{From: afterNow.Add(-time.Hour), To: afterNow.Add(240 * time.Hour)}
	f := frameworksOf(t)[0]
	before, err := evidence.Build(t.Context(), f, s, q)
	if err != nil {
		t.Fatal(err)
	}
	appendActivity(t, s, &now)
	unsigned, err := evidence.Build(t.Context(), f, s, q)
	if err != nil || string(unsigned.Markdown()) != string(before.Markdown()) {
		t.Errorf("records without a checkpoint changed the report: %v", err)
	}
	signHead(t, s)
	after, err := evidence.Build(t.Context(), f, s, q)
	if err != nil || after.Log.Size <= before.Log.Size || after.Log.Root == before.Log.Root {
		t.Errorf("later: %+v, %v", after.Log, err)
	}
	q.Size = before.Log.Size
	again, err := evidence.Build(t.Context(), f, s, q)
	if err != nil || string(again.Markdown()) != string(before.Markdown()) {
		t.Errorf("the report of %d records changed: %v", q.Size, err)
	}
	q.Size = s.Head().Size + 1
	if _, err := evidence.Build(t.Context(), f, s, q); !errors.Is(err, broker.ErrInvalidRequest) {
		t.Errorf("a size above the checkpoint: %v", err)
	}
}

// A report that would need many records that are not counted yet is refused, so that it
// is never wrong and never slow.
func TestEvidenceOfAnUncountedLogIsRefused(t *testing.T) {
	s := newStore(t)
	f, q := frameworksOf(t)[0], evidence.Query{From: afterNow.Add(-1000 * time.Hour), To: afterNow.Add(time.Hour)}
	if _, err := evidence.Build(t.Context(), f, s, q); !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("without a checkpoint: %v", err)
	}
	appendMany(t, s, maxTallied+2)
	signHead(t, s)
	s.tallying.write <- struct{}{} // as while a whole log is counted
	_, err := evidence.Build(t.Context(), f, s, q)
	<-s.tallying.write
	if !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("uncounted: %v", err)
	}
	if err := s.catchUp(t.Context(), s.tallying); err != nil {
		t.Fatal(err)
	}
	if _, err := evidence.Build(t.Context(), f, s, q); err != nil {
		t.Errorf("counted: %v", err)
	}
}

// Counts by the traits of another version are deleted, and the log is counted again. Those
// of this version stay.
func TestEvidenceOfOtherTraitsIsCountedAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "broker.db")
	s := open(t, path)
	now := afterNow
	s.w.now = func() time.Time { return now }
	appendActivity(t, s, &now)
	if err := s.catchUp(t.Context(), s.tallying); err != nil {
		t.Fatal(err)
	}
	for _, other := range []bool{false, true} {
		change := "UPDATE tallies SET body = '[]'"
		if other {
			change += "; UPDATE tallied SET traits = traits - 1"
		}
		if _, err := s.w.conn.ExecContext(t.Context(), change); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open(t, path) // the cleanup checks the counts of the last one
		var at int64
		if err := s.w.conn.QueryRowContext(t.Context(), "SELECT record FROM tallied").Scan(&at); err != nil || (at == 0) != other {
			t.Errorf("other traits: %t; counted up to %d, %v", other, at, err)
		}
	}
}
