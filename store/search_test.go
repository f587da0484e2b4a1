package store

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// searchAll follows the pages of a search to its end.
func searchAll(t testing.TB, s *Store, q broker.RecordQuery) (found []int64, pages int) {
	t.Helper()
	for {
		page, err := s.Search(context.Background(), q)
		if err != nil {
			t.Fatalf("%+v: %v", q, err)
		}
		for _, item := range page.Items {
			found = append(found, item.Index)
		}
		if len(page.Items) > q.Limit {
			t.Errorf("%+v: a page has %d records", q, len(page.Items))
		}
		pages++
		if page.Next == 0 {
			return found, pages
		}
		if q.Before != 0 && page.Next >= q.Before || page.SearchedTo != page.Next || page.SearchedAt.IsZero() {
			t.Fatalf("%+v: the next page is before %d, searched to %d at %s", q, page.Next, page.SearchedTo, page.SearchedAt)
		}
		q.Before = page.Next
	}
}

// wanted selects the records of a query in the obvious way. requester and holder come
// from the rows.
func wanted(t testing.TB, s *Store, q broker.RecordQuery) (found []int64) {
	t.Helper()
	for index := s.Head().Size - 1; index >= 0; index-- {
		item, err := s.Record(context.Background(), index)
		if err != nil {
			t.Fatal(err)
		}
		r, err := audit.Decode(item.Leaf)
		if err != nil {
			t.Fatal(err)
		}
		parties, entitlement := []string{}, ""
		for _, p := range []*audit.Party{r.Caller, r.Subject} {
			if p != nil {
				parties = append(append(append(parties, p.ID), p.Accounts...), p.Actors...)
			}
		}
		if r.Request != nil {
			entitlement = r.Request.Entitlement
			parties = append(parties, r.Request.Accountable...)
			if id, err := broker.ParseRequestID(r.Request.ID); err == nil && r.Lease == nil {
				if row, err := get(t, s, id); err == nil {
					parties = append(parties, row.(*broker.Request).Requester.ID)
				}
			}
		}
		if r.Lease != nil && r.Request == nil {
			if id, err := broker.ParseLeaseID(r.Lease.ID); err == nil {
				if row, err := get(t, s, id); err == nil {
					parties, entitlement = append(parties, row.(*broker.Lease).Holder), row.(*broker.Lease).Entitlement
				}
			}
		}
		if r.Block != nil {
			kind, name, _ := strings.Cut(r.Block.Selector, " ")
			if parties = append(parties, name); kind == "entitlement" {
				entitlement = name
			}
		}
		texts := strings.ToLower(string(item.Leaf))
		if opened, err := audit.DecodeOpenings(item.Openings); err == nil && len(item.Openings) > 0 {
			for _, o := range opened {
				texts += "\n" + strings.ToLower(o.Text)
			}
		}
		if (len(q.Kinds) == 0 || slices.Contains(q.Kinds, r.Kind)) && (q.Party == "" || slices.Contains(parties, q.Party)) &&
			(q.Entitlement == "" || entitlement == q.Entitlement) && strings.Contains(texts, strings.ToLower(q.Text)) &&
			(q.From.IsZero() || !r.Time.Before(q.From)) && (q.To.IsZero() || r.Time.Before(q.To)) {
			found = append(found, index)
		}
	}
	return found
}

// Every search finds, over all its pages, exactly the records that a look at each record
// finds, whether their kinds are in the index yet or not.
func TestSearchFindsWhatIsThere(t *testing.T) {
	random := seeded(t)
	s := newStore(t)
	now := afterNow
	s.w.now = func() time.Time { return now }
	for range 12 {
		appendActivity(t, s, &now)
		reason := audit.Opening{Salt: audit.NewSalt(), Text: "The till is on FIRE"}
		appendRecord(t, s, audit.Record{Kind: audit.BlockPlaced, Caller: &audit.Party{ID: "login/dan"}, Openings: map[string]audit.Opening{"reason": reason},
			Block: &audit.BlockFacts{Selector: "entitlement tickets-api", Reason: reason.Commitment()}})
		appendRecord(t, s, audit.Record{Kind: audit.SessionOpened, Caller: &audit.Party{ID: `login/"eve\`, Accounts: []string{"login/ana"}}})
	}
	if err := s.catchUp(t.Context(), s.counting); err != nil {
		t.Fatal(err)
	}
	appendActivity(t, s, &now)
	pick := func(list ...string) string { return list[random.IntN(len(list))] }
	hits, pages := 0, 0
	for range 400 {
		q := broker.RecordQuery{
			Party:       pick("", "", "login/ana", "login/ben", "login/dan", `login/"eve\`, "spiffe://acme.test/agent/a1", "spiffe://acme.test/agent/a9", "spiffe://acme.test/x"),
			Entitlement: pick("", "", "", "tickets-api", "tickets"), Text: pick("", "", "", "is on fire", "TICKETS", "nothing like this", `\`), Limit: 1 + random.IntN(60),
		}
		for range random.IntN(4) {
			q.Kinds = append(q.Kinds, audit.Kinds()[random.IntN(len(audit.Kinds()))])
		}
		if random.IntN(2) == 0 {
			q.From = afterNow.Add(time.Duration(random.IntN(40)) * time.Hour)
			q.To = q.From.Add(time.Duration(random.IntN(300)) * time.Minute)
		}
		if random.IntN(4) == 0 {
			s.counting.take() // the index is behind
		}
		got, n := searchAll(t, s, q)
		if want := wanted(t, s, q); !slices.Equal(got, want) {
			t.Errorf("%+v: found %v, want %v", q, got, want)
		}
		hits, pages = hits+len(got), pages+n
	}
	if hits < 500 || pages < 410 { // one page at least for each search
		t.Errorf("only %d records on %d pages were found", hits, pages)
	}
}

// A search stops at its bound and states how far it got. A text that was erased is not
// found.
func TestSearchIsBounded(t *testing.T) {
	s := newStore(t)
	secret := audit.Opening{Salt: audit.NewSalt(), Text: "erase me"}
	appendRecord(t, s, audit.Record{Kind: audit.BlockPlaced, Block: &audit.BlockFacts{Selector: "issuer x", Reason: secret.Commitment()}, Openings: map[string]audit.Opening{"reason": secret}})
	for range 2 {
		err := s.Update(t.Context(), nil, func(tx broker.Tx) error {
			for range maxSearched {
				entry, err := audit.Record{Kind: audit.LeaseIssued, Caller: &audit.Party{ID: "login/ana"}}.Entry()
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
	size := s.Head().Size
	page, err := s.Search(t.Context(), broker.RecordQuery{Text: "erase me", Limit: 10})
	if err != nil || len(page.Items) != 0 || page.Next != size-maxSearched || page.SearchedTo != page.Next {
		t.Errorf("got %d records, next %d, searched to %d, %v; want none, and %d", len(page.Items), page.Next, page.SearchedTo, err, size-maxSearched)
	}
	if found, pages := searchAll(t, s, broker.RecordQuery{Text: "erase me", Limit: 10}); !slices.Equal(found, []int64{1}) || pages != 3 {
		t.Errorf("found %v on %d pages", found, pages)
	}
	// By its kind, it is found at once.
	if page, err = s.Search(t.Context(), broker.RecordQuery{Kinds: []audit.Kind{audit.BlockPlaced}, Limit: 10}); err != nil || len(page.Items) != 1 || page.Next != 0 {
		t.Errorf("by kind: got %+v, %v", page, err)
	}
	if _, err := s.w.conn.ExecContext(t.Context(), "UPDATE records SET openings = NULL"); err != nil {
		t.Fatal(err)
	}
	if found, _ := searchAll(t, s, broker.RecordQuery{Text: "erase me", Limit: 10}); len(found) != 0 {
		t.Errorf("an erased text was found in %v", found)
	}
}

// BenchmarkMillionRecords searches a log of a million records, and reads its counts. The
// target is 100 ms.
func BenchmarkMillionRecords(b *testing.B) {
	s := open(b, filepath.Join(b.TempDir(), "broker.db"))
	random := rand.New(rand.NewPCG(1, 2))
	now := afterNow
	s.w.now = func() time.Time { return now }
	const n, batch = 1_000_000, 1000
	for from := 0; from < n; from += batch {
		now = now.Add(time.Hour / 2) // three weeks
		appendMixed(b, s, random, from, batch)
	}
	start := time.Now()
	if err := s.catchUp(b.Context(), s.counting); err != nil {
		b.Fatal(err)
	}
	b.Logf("counted the rest in %s", time.Since(start))
	ago := func(hours int) time.Time { return now.Add(-time.Duration(hours) * time.Hour) }
	for name, q := range map[string]broker.RecordQuery{
		"newest":            {},
		"kill-of-last-week": {Kinds: []audit.Kind{audit.BlockPlaced}},
		"logins":            {Kinds: []audit.Kind{audit.SessionOpened}, Party: "login/p3"},
		"rare-holder":       {Party: "spiffe://acme.test/agent/none"},
		"entitlement":       {Entitlement: "unknown"},
		"text":              {Text: "no such text"},
		"hour-of-last-week": {From: ago(200), To: ago(199), Party: "spiffe://acme.test/agent/a7"},
	} {
		b.Run(name, func(b *testing.B) {
			q.Limit = 50
			var page broker.RecordPage
			for b.Loop() {
				var err error
				if page, err = s.Search(b.Context(), q); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms/page")
			b.ReportMetric(float64(len(page.Items)), "records/page")
		})
	}
	b.Run("activity", func(b *testing.B) {
		for b.Loop() {
			if _, err := s.Activity(b.Context(), ago(30*24), now); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms/page")
	})
}

// appendMixed appends issuances, with a few records of other kinds among them.
func appendMixed(b *testing.B, s *Store, random *rand.Rand, from, n int) {
	err := s.Update(b.Context(), nil, func(tx broker.Tx) error {
		for i := range n {
			issued := newIssuance(b, random.IntN(1000))
			switch {
			case i == 0 && from%300_000 == 0:
				issued.entry, _ = audit.Record{Kind: audit.BlockPlaced, Caller: &audit.Party{ID: "login/p1"}, Block: &audit.BlockFacts{Selector: "issuer x"}}.Entry()
			case i%200 == 0:
				issued.entry, _ = audit.Record{Kind: audit.SessionOpened, Caller: &audit.Party{ID: fmt.Sprint("login/p", random.IntN(50))}}.Entry()
			}
			tx.Append(issued.entry)
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
}
