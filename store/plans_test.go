package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// growing are the tables that grow with use.
var growing = []string{"requests", "leases", "records", "live", "lingering", "rests", "events", "tallies", "notices", "review_items", "idempotency", "counters", "asks", "tellings", "standings", "identities", "uses"}

// A seenQuery is a query with its arguments.
type seenQuery struct {
	text string
	args []driver.NamedValue
}

// A recorder notes the queries of its connections.
type recorder struct {
	of   driver.Driver
	name string
	mu   sync.Mutex
	seen map[string]seenQuery
}

func (r *recorder) Driver() driver.Driver { return r.of }

func (r *recorder) Connect(context.Context) (driver.Conn, error) {
	c, err := r.of.Open(r.name)
	return &recordedConn{c, r}, err
}

type recordedConn struct {
	driver.Conn
	r *recorder
}

func (c *recordedConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	c.r.mu.Lock()
	c.r.seen[query] = seenQuery{query, slices.Clone(args)}
	c.r.mu.Unlock()
	return c.Conn.(driver.QueryerContext).QueryContext(ctx, query, args)
}

func (c *recordedConn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	return c.Conn.(driver.ConnBeginTx).BeginTx(ctx, opts)
}

// readEverything runs the queries of lists, inboxes, the reaper, searches and gauges.
func readEverything(t *testing.T, s *Store) {
	t.Helper()
	now := testNow.Add(time.Minute)
	holder := "spiffe://acme.test/agent/a1"
	err := s.View(t.Context(), func(tx broker.Tx) (err error) {
		for _, q := range []broker.RequestQuery{
			{}, {Requester: holder}, {Requester: "login/ana"}, {Status: broker.RequestPending}, {Entitlement: "tickets-api"},
			{RestsOn: broker.StandingKey{Kind: broker.FactAgent, Name: holder}}, {RestsOn: broker.StandingKey{Kind: broker.FactAgent, Name: holder}, Below: true},
		} {
			q.Now, q.Limit = now, 10
			if _, _, err := tx.Requests(q); err != nil {
				return err
			}
		}
		for _, q := range []broker.LeaseQuery{
			{}, {Holder: holder}, {Live: true}, {Live: true, Holder: holder}, {Live: true, Under: "spiffe://acme.test/agent"}, {Live: true, TrustDomain: "acme.test"},
			{Outliving: true}, {Outliving: true, Under: "spiffe://acme.test"}, {Due: true}, {Due: true, Issuer: "tickets"},
		} {
			q.Now, q.Limit = now, 10
			if _, _, err := tx.Leases(q); err != nil {
				return err
			}
		}
		for _, q := range []broker.NoticeQuery{{Channel: "slack:dba", Now: now, Limit: 10}, {Channel: "slack:dba", Requester: holder, Now: now, Limit: 10}} {
			if _, err := tx.Notices(q); err != nil {
				return err
			}
		}
		if _, err := tx.NoticeChannels(); err != nil {
			return err
		}
		for _, q := range []broker.StandingQuery{{Due: true}, {Kind: broker.FactAgent}} {
			q.Now, q.Limit = now, 10
			if _, err := tx.Standings(q); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.CountPending(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	for _, q := range []broker.RecordQuery{{Limit: 10}, {Kinds: []audit.Kind{audit.LeaseRevoked}, Limit: 10}, {Party: holder, Limit: 10}, {From: testNow, To: now, Limit: 10}} {
		if _, err := s.Search(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := NewCampaignRows(s).ReviewItems(t.Context(), broker.ReviewItemQuery{Reviewers: []string{"group dba"}, Limit: 10}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.NewPruner(broker.Retention{Requests: testDay, Leases: testDay, Texts: testDay}, nil).Prune(t.Context(), now); err != nil {
		t.Fatal(err)
	}
}

// fillForPlans stores rows, so that reading an index pays.
func fillForPlans(t *testing.T, s *Store, n int) {
	t.Helper()
	for from := 0; from < n; from += 128 {
		var group []*member
		for k := range 128 {
			i := newIssuance(t, from+k)
			group = append(group, filing(&i))
			own := newIssuance(t, from+k)
			own.lease.Revocation, own.lease.Issuer = broker.RevokedImmediate, "vault" // has a row of its own
			group = append(group, filing(&own))
		}
		together(t, s, group...)
	}
}

// No list, inbox, search or gauge reads a whole table, nor does the reaper or retention.
func TestQueriesStayOnTheirIndexes(t *testing.T) {
	s := newStore(t)
	if s.Shared() {
		t.Skip("TestPlansOnPostgreSQL reads PostgreSQL's plans")
	}
	fillForPlans(t, s, 256)
	pool, err := sql.Open(driverName, dsn(FilePath(s.cfg.URL), "rw", "query_only(1)"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = pool.Close() }()
	r := &recorder{of: pool.Driver(), name: dsn(FilePath(s.cfg.URL), "rw", "query_only(1)"), seen: map[string]seenQuery{}}
	readers := s.readers
	s.readers = sql.OpenDB(r)
	readEverything(t, s)
	_ = s.readers.Close()
	s.readers = readers
	if len(r.seen) < 25 {
		t.Fatalf("saw %d queries", len(r.seen))
	}
	conn, err := r.of.Open(r.name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	found := map[string]bool{}
	scan := regexp.MustCompile(`^SCAN (\w+)`)
	for _, q := range r.seen {
		steps := stepsOf(t, conn, q)
		for _, step := range steps {
			if m := scan.FindStringSubmatch(step); m != nil && slices.Contains(growing, m[1]) {
				t.Errorf("%s\n%s", step, q.text)
			}
		}
		for condition, index := range byIndex {
			if !strings.Contains(q.text, condition) {
				continue
			}
			found[condition] = true
			if !strings.Contains(strings.Join(steps, "\n"), index) {
				t.Errorf("%q\n%s\nwant %s", steps, q.text, index)
			}
		}
	}
	if len(found) != len(byIndex) {
		t.Errorf("queries have the conditions %v, want %d", found, len(byIndex))
	}
}

// byIndex are conditions, and the indexes that a query with them must use: its LIMIT bounds
// only what it returns.
var byIndex = map[string]string{
	"person = ?": "requests_person", "lapses > ?": "requests_pending", "leases INDEXED BY": "leases_due",
	"channel = ? AND urgent": "notices_channel", "channel = ? AND requester": "notices_requester", "reviewer IN": "review_items_reviewer",
	"kind = ? AND record": "SEARCH events USING PRIMARY KEY (kind=?", "subject = ?": "SEARCH rests USING PRIMARY KEY (subject",
}

// stepsOf returns the steps of SQLite's plan of a query.
func stepsOf(t *testing.T, conn driver.Conn, q seenQuery) (steps []string) {
	t.Helper()
	rows, err := conn.(driver.QueryerContext).QueryContext(t.Context(), "EXPLAIN QUERY PLAN "+q.text, q.args)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	values := make([]driver.Value, len(rows.Columns()))
	for rows.Next(values) == nil {
		steps = append(steps, fmt.Sprint(values[len(values)-1]))
	}
	return steps
}
