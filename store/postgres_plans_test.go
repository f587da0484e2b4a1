package store

import (
	"context"
	"database/sql"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/internal/storetest"
)

// large are tables that grow with the history or with the number of callers, and what fills
// them.
var large = map[string]string{
	"requests": `INSERT INTO requests (id, body, lapses, person) SELECT decode(lpad(to_hex(g), 32, '0'), 'hex'), '\x00', CASE WHEN g % 200 = 0 THEN g END, CASE WHEN g % 20 = 0 THEN 'login/' || g % 999 END FROM generate_series(1, 400000) g`,
	"leases":   `INSERT INTO leases (id, body, due) SELECT decode(lpad(to_hex(g), 32, '0'), 'hex'), '\x00', CASE WHEN g % 200 = 0 THEN g END FROM generate_series(1, 400000) g`,
	"records":  `INSERT INTO records (id, leaf, hashes) SELECT (2::bigint << 40) + g, '\x00', '\x00' FROM generate_series(1, 400000) g`,
	"events":   `INSERT INTO events (kind, record) SELECT 'kind' || g % 30, (2::bigint << 40) + g FROM generate_series(1, 400000) g`,
	"notices":  `INSERT INTO notices (id, body, due, channel, urgent, requester) SELECT decode(lpad(to_hex(g), 32, '0'), 'hex'), '\x00', CASE WHEN g % 3 > 0 THEN g END, 'c' || g % 9, g % 2, CASE WHEN g % 2 = 0 THEN 'r' || g END FROM generate_series(1, 400000) g`,
	"rests":    `INSERT INTO rests (subject, request, until) SELECT decode(lpad(to_hex(g % 999), 32, '0'), 'hex'), decode(lpad(to_hex(g), 32, '0'), 'hex'), g FROM generate_series(1, 400000) g`,

	"idempotency": `INSERT INTO idempotency (id, body, expires) SELECT decode(lpad(to_hex(g), 64, '0'), 'hex'), '\x00', g FROM generate_series(1, 400000) g`,
	"sessions":    `INSERT INTO sessions (id, body, expires) SELECT decode(lpad(to_hex(g), 64, '0'), 'hex'), '\x00', g FROM generate_series(1, 400000) g`,
	"used":        `INSERT INTO used (at, id) SELECT g, decode(lpad(to_hex(g), 64, '0'), 'hex') FROM generate_series(1, 400000) g`,
}

// whole are the starts of queries that read a whole table on purpose, and why.
var whole = map[string]string{
	"SELECT at, id FROM used ORDER BY at": "the first group with a proof reads what was used",
	`SELECT channel, requester FROM notices INDEXED BY notices_requester WHERE due IS NOT NULL AND requester IS NOT NULL
		GROUP BY channel, requester HAVING count(*) > ? ORDER BY count(*) DESC LIMIT ?`: "backlogs count all notices that wait",
}

// exercise calls what lists, counts and sweeps, so that the driver remembers its queries.
func exercise(t *testing.T, s *Store) {
	t.Helper()
	ctx := t.Context()
	for n := range 3 {
		i := newIssuance(t, n)
		if err := i.store(ctx, s); err != nil {
			t.Fatal(err)
		}
	}
	works(t, s)
	err := s.View(ctx, func(tx broker.Tx) error {
		for _, q := range []broker.RequestQuery{
			{}, {Status: broker.RequestPending}, {Requester: "login/ana"}, {Requester: "spiffe://acme.test/agent/a1"},
			{RestsOn: broker.StandingKey{Kind: "supplier", Name: "acme"}}, {RestsOn: broker.StandingKey{Kind: "supplier", Name: "acme"}, Below: true},
		} {
			q.Now, q.Limit = testNow, 50
			if _, _, err := tx.Requests(q); err != nil {
				return fmt.Errorf("%+v: %w", q, err)
			}
		}
		for _, q := range []broker.LeaseQuery{
			{}, {Due: true}, {Due: true, Issuer: "tickets"}, {Live: true}, {Live: true, Holder: "spiffe://acme.test/agent/a1"}, {Live: true, Under: "spiffe://acme.test/agent"},
			{Live: true, TrustDomain: "acme.test"}, {Outliving: true}, {Outliving: true, Under: "spiffe://acme.test/agent"}, {Holder: "login/ana"},
		} {
			q.Now, q.Limit = testNow, 50
			if _, _, err := tx.Leases(q); err != nil {
				return fmt.Errorf("%+v: %w", q, err)
			}
		}
		for _, q := range []broker.NoticeQuery{{Channel: "c1", Now: testNow, Limit: 10}, {Channel: "c1", Requester: "r", Now: testNow, Limit: 10}} {
			if _, err := tx.Notices(q); err != nil {
				return err
			}
		}
		if _, err := tx.NoticeChannels(); err != nil {
			return err
		}
		_, err := tx.Backlogs(10, 10)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]func() error{
		"sweep":   func() error { _, err := s.Sweep(ctx, testNow); return err },
		"pending": func() error { _, err := s.CountPending(ctx, testNow); return err },
		"lists":   func() error { _, err := s.StatusLists(ctx, testNow, 10); return err },
		"search": func() error {
			_, err := s.Search(ctx, broker.RecordQuery{Kinds: []audit.Kind{audit.RequestCreated}, Limit: 10})
			return err
		},
		"activity": func() error { _, err := s.Activity(ctx, testNow.Add(-time.Hour), testNow); return err },
	} {
		if err := f(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
}

var (
	limits = regexp.MustCompile(`LIMIT \$\d+(?: OFFSET \$\d+)?`)
	scans  = regexp.MustCompile(`Seq Scan on (\w+)`)
	sorts  = regexp.MustCompile(`(?m)^\s*(?:->\s+)?Sort\s.*rows=(\d+)`)
)

// No query that lists, counts or sweeps reads or sorts a whole large table, as the planner
// has it for any argument.
func TestPlansOnPostgreSQL(t *testing.T) {
	storetest.OnlyPostgres(t)
	s := newStore(t)
	remembered.mu.Lock()
	before := remembered.known
	remembered.known = nil
	remembered.mu.Unlock()
	exercise(t, s)
	remembered.mu.RLock()
	queries := remembered.known
	remembered.mu.RUnlock()
	remembered.mu.Lock()
	remembered.known = before
	remembered.mu.Unlock()

	// No store is open on the filled database: its bodies are none.
	db := connectPostgres(t, postgresAt(t, testURL(t, "plans")))
	db.SetMaxOpenConns(1)
	for _, fill := range large {
		mustExec(t, db, fill)
	}
	mustExec(t, db, "ANALYZE")
	mustExec(t, db, "SET plan_cache_mode = force_generic_plan")
	read := 0
	for query, translated := range queries {
		// The driver does not prepare a query with a limit, so the planner knows it.
		text := limits.ReplaceAllString(translated, "LIMIT 500")
		if verb, _, _ := strings.Cut(strings.TrimLeft(text, " ("), " "); !slices.Contains([]string{"SELECT", "DELETE", "UPDATE", "WITH"}, verb) {
			continue
		}
		plan, err := planOf(t.Context(), db, text)
		if err != nil {
			t.Errorf("%s: %v", query, err)
			continue
		}
		read++
		if why := whole[query]; why != "" {
			continue
		}
		for _, scan := range scans.FindAllStringSubmatch(plan, -1) {
			if large[scan[1]] != "" {
				t.Errorf("%s\nreads all of %s:\n%s", query, scan[1], plan)
			}
		}
		for _, sort := range sorts.FindAllStringSubmatch(plan, -1) {
			if len(sort[1]) > 5 {
				t.Errorf("%s\nsorts %s rows:\n%s", query, sort[1], plan)
			}
		}
	}
	if read < 20 {
		t.Errorf("read %d plans, want those of all lists", read)
	}
	t.Logf("%d plans", read)
}

// planOf returns the plan of a query for any argument.
func planOf(ctx context.Context, db *sql.DB, text string) (string, error) {
	highest := 0
	for _, m := range regexp.MustCompile(`\$(\d+)`).FindAllStringSubmatch(text, -1) {
		var n int
		if _, err := fmt.Sscan(m[1], &n); err != nil {
			return "", err
		}
		highest = max(highest, n)
	}
	conn, err := db.Conn(ctx)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	args := ""
	if highest > 0 {
		args = "(" + strings.TrimSuffix(strings.Repeat("NULL, ", highest), ", ") + ")"
	}
	var lines []string
	err = conn.Raw(func(c any) error {
		p := c.(*postgresConn).Conn().PgConn()
		if err := p.Exec(ctx, "PREPARE planned AS "+text).Close(); err != nil {
			return err
		}
		results, err := p.Exec(ctx, "EXPLAIN EXECUTE planned"+args).ReadAll()
		for _, r := range results {
			for _, row := range r.Rows {
				lines = append(lines, string(row[0]))
			}
		}
		if end := p.Exec(ctx, "DEALLOCATE planned").Close(); err == nil {
			err = end
		}
		return err
	})
	return strings.Join(lines, "\n"), err
}

// postgresAt returns a parsed URL.
func postgresAt(t *testing.T, url string) *postgresURL {
	t.Helper()
	u, err := parsePostgresURL(url)
	if err != nil {
		t.Fatal(err)
	}
	return u
}
