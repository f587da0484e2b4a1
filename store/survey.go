package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/broker/inventory"
)

// Three tables are the inventory's projection of the log (package inventory): identities,
// uses (an identity's use of an entitlement), and use_totals (the use of a policy, or of an
// entitlement by all identities). The file follow.go explains how they follow the log.
//
// A row of an identity that works changes all the time, and identities are in no order. So
// the rows are written every 10 seconds, or when many are waiting, and not with each commit.

const inventoryTables = `
CREATE TABLE surveyed (one INTEGER PRIMARY KEY CHECK (one = 1), record INTEGER NOT NULL);
INSERT INTO surveyed VALUES (1, 0);
CREATE TABLE identities (n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, used INTEGER NOT NULL, body BLOB NOT NULL);
CREATE TABLE uses (identity INTEGER NOT NULL, entitlement TEXT NOT NULL, body BLOB NOT NULL, PRIMARY KEY (identity, entitlement)) WITHOUT ROWID;
CREATE INDEX uses_entitlement ON uses (entitlement, identity);
CREATE TABLE use_totals (kind TEXT NOT NULL, name TEXT NOT NULL, body BLOB NOT NULL, PRIMARY KEY (kind, name)) WITHOUT ROWID;
`

// The kinds of use_totals.
const (
	totalEntitlement = "entitlement"
	totalPolicy      = "policy"
)

const (
	surveyEvery   = 10 * time.Second
	maxSurveyRows = 16384 // of a tally in memory, of about 1 KB each
)

// newSurveying returns the projection of the inventory.
func newSurveying() *projection {
	return &projection{
		table: "surveyed", doing: "counting what identities use: the inventory is behind", every: surveyEvery,
		wake: make(chan struct{}, 1), write: make(chan struct{}, 1), empty: func() addition { return &surveyTally{Tally: inventory.NewTally()} },
	}
}

// A surveyTally is what a range of records adds to the inventory.
type surveyTally struct {
	*inventory.Tally
	numbers map[string]int64 // of identities
	rows    []surveyRow      // to write
}

// A surveyRow is a statement that writes a row.
type surveyRow struct {
	query string
	args  []any
}

func (t *surveyTally) note(_ int64, e *audit.Entry, at time.Time) { t.Add(e.Record(), at) }

func (t *surveyTally) read(_ int64, leaf []byte) error {
	r, err := audit.Decode(leaf)
	if err == nil {
		t.AddStored(&r)
	}
	return err
}

func (t *surveyTally) size() (now, most int) { return t.Rows(), maxSurveyRows }

// complete adds what the tables have already. The rows of identities and uses are read
// here, and not in the transaction that writes them: only the holder of the projection's
// token changes them, and the position shows if another process did.
func (t *surveyTally) complete(v *viewTx) error {
	for _, part := range []func(*viewTx) error{t.places, t.identities, t.uses, t.totals} {
		if err := part(v); err != nil {
			return unavailable("reading the inventory", err)
		}
	}
	return nil
}

func (t *surveyTally) write(ctx context.Context, w *writer) error {
	for _, r := range t.rows {
		if err := w.exec(ctx, r.query, r.args...); err != nil {
			return fmt.Errorf("writing the inventory: %w", err)
		}
	}
	return nil
}

func (t *surveyTally) put(query string, args ...any) { t.rows = append(t.rows, surveyRow{query, args}) }

// surveyBatch is how many rows one query reads.
const surveyBatch = 64

// places adds where requests came from.
func (t *surveyTally) places(v *viewTx) error {
	for filed := t.Filed; len(filed) > 0; {
		batch := filed[:min(len(filed), surveyBatch)]
		filed = filed[len(batch):]
		args := make([]any, len(batch))
		for i := range batch {
			args[i] = batch[i].Request[:]
		}
		rows, err := all[*broker.Request](v, requests, requests.selectIn(idAmong(len(args))), args...)
		if err != nil {
			return err
		}
		from := make(map[broker.RequestID]netip.Addr, len(rows))
		for _, r := range rows {
			from[r.ID] = r.SourceIP
		}
		for _, f := range batch {
			if source := from[f.Request]; source.IsValid() {
				t.Seen[f.Identity].Places.Add(source, f.At)
			}
		}
	}
	return nil
}

func (t *surveyTally) identities(v *viewTx) error {
	t.numbers = make(map[string]int64, len(t.Seen))
	var args []any
	for id := range t.Seen {
		args = append(args, id)
	}
	before := make(map[string]*inventory.Seen, len(t.Seen))
	err := eachBatch(v, "SELECT n, id, body FROM identities WHERE id IN (", "?", ")", 1, args, func(rows *sql.Rows) error {
		n, seen, err := scanSeen(rows)
		if err == nil {
			t.numbers[seen.ID], before[seen.ID] = n, seen
		}
		return err
	})
	if err != nil {
		return err
	}
	var next int64
	if err := v.tx.QueryRowContext(v.ctx, "SELECT coalesce(max(n), 0) + 1 FROM identities").Scan(&next); err != nil {
		return err
	}
	for id, now := range t.Seen {
		sum := before[id]
		if sum == nil {
			sum, t.numbers[id] = now, next
			next++
		} else {
			sum.Merge(now)
		}
		t.put(`INSERT INTO identities (n, id, kind, used, body) VALUES (?, ?, ?, ?, ?)
			ON CONFLICT (n) DO UPDATE SET kind = excluded.kind, used = excluded.used, body = excluded.body`, t.numbers[id], id, string(sum.Kind), usedAt(sum), sum.AppendJSON(nil))
	}
	return nil
}

// usedAt returns when the last credential was issued, in milliseconds; 0: never.
func usedAt(s *inventory.Seen) int64 {
	if s.Issued.IsZero() {
		return 0
	}
	return s.Issued.Last.UnixMilli()
}

func scanSeen(rows *sql.Rows) (n int64, s *inventory.Seen, err error) {
	s = &inventory.Seen{}
	var body sql.RawBytes
	if err := rows.Scan(&n, &s.ID, &body); err != nil {
		return 0, nil, err
	}
	return n, s, json.Unmarshal(body, s)
}

func (t *surveyTally) uses(v *viewTx) error {
	type key struct {
		identity    int64
		entitlement string
	}
	sums := make(map[key]*inventory.Use, len(t.Uses))
	var args []any
	for k := range t.Uses {
		args = append(args, t.numbers[k.Identity], k.Entitlement)
	}
	err := eachBatch(v, "WITH k (identity, entitlement) AS (VALUES ", "(?, ?)", ") SELECT identity, entitlement, body FROM k CROSS JOIN uses USING (identity, entitlement)", 2, args, func(rows *sql.Rows) error {
		var k key
		use := &inventory.Use{}
		var body sql.RawBytes
		if err := rows.Scan(&k.identity, &k.entitlement, &body); err != nil {
			return err
		}
		sums[k] = use
		return json.Unmarshal(body, use)
	})
	if err != nil {
		return err
	}
	for k, now := range t.Uses {
		n := t.numbers[k.Identity]
		body := mergedUse(sums[key{n, k.Entitlement}], now)
		t.put("INSERT INTO uses (identity, entitlement, body) VALUES (?, ?, ?) ON CONFLICT (identity, entitlement) DO UPDATE SET body = excluded.body", n, k.Entitlement, body)
	}
	return nil
}

// mergedUse returns the body of a row with what a tally adds.
func mergedUse(sum, now *inventory.Use) []byte {
	if sum == nil {
		return now.AppendJSON(nil)
	}
	sum.Merge(now)
	return sum.AppendJSON(nil)
}

func (t *surveyTally) totals(v *viewTx) error {
	for kind, changed := range map[string]map[string]*inventory.Use{totalEntitlement: t.Entitlements, totalPolicy: t.Policies} {
		if len(changed) == 0 {
			continue
		}
		sums, err := v.useTotals(kind)
		if err != nil {
			return err
		}
		for name, now := range changed {
			body := mergedUse(sums[name], now)
			t.put("INSERT INTO use_totals (kind, name, body) VALUES (?, ?, ?) ON CONFLICT (kind, name) DO UPDATE SET body = excluded.body", kind, name, body)
		}
	}
	return nil
}

// useTotals reads all totals of a kind.
func (v *viewTx) useTotals(kind string) (map[string]*inventory.Use, error) {
	totals := map[string]*inventory.Use{}
	err := each(v.ctx, v.tx, "SELECT name, body FROM use_totals WHERE kind = ?", []any{kind}, func(rows *sql.Rows) error {
		var name string
		var body sql.RawBytes
		if err := rows.Scan(&name, &body); err != nil {
			return err
		}
		totals[name] = &inventory.Use{}
		return json.Unmarshal(body, totals[name])
	})
	return totals, err
}

// eachBatch calls f for the rows of a query with a list of keys, each of width arguments. It
// reads surveyBatch keys at a time.
func eachBatch(v *viewTx, start, key, end string, width int, args []any, f func(*sql.Rows) error) error {
	for len(args) > 0 {
		batch := args[:min(len(args), surveyBatch*width)]
		args = args[len(batch):]
		query := start + key + strings.Repeat(", "+key, len(batch)/width-1) + end
		if err := each(v.ctx, v.tx, query, batch, f); err != nil {
			return err
		}
	}
	return nil
}
