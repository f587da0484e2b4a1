package store

import (
	"bytes"
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// A search reads the log backwards. Times are found by bisection, because they never go
// back, and records by their kind in the table events. Everything else is decided record
// by record, within a bound.

const (
	maxSearched = 8192 // records that one call reads
	searchBatch = 256
)

// Search returns the records of the current log that a query selects.
func (s *Store) Search(ctx context.Context, q broker.RecordQuery) (page broker.RecordPage, err error) {
	if err := s.catchUpNow(ctx, s.counting); err != nil {
		return page, err
	}
	err = s.View(ctx, func(tx broker.Tx) (err error) {
		page, err = tx.(*viewTx).search(q)
		return err
	})
	return page, err
}

// A searching is a search that runs.
type searching struct {
	v      *viewTx
	q      broker.RecordQuery
	text   string // q.Text in lower case
	epoch  int64
	low    int64 // the first index that may be selected
	high   int64 // the index after the last
	seen   int
	page   broker.RecordPage
	record []byte // q.Party as in a record, in quotation marks
}

func (v *viewTx) search(q broker.RecordQuery) (broker.RecordPage, error) {
	head, _, _, err := scanHead(v.tx.QueryRowContext(v.ctx, selectHead))
	if err != nil {
		return broker.RecordPage{}, unavailable("reading the head of the log", err)
	}
	s := &searching{v: v, q: q, text: strings.ToLower(q.Text), epoch: head.Epoch, high: head.Size, record: audit.AppendString(nil, q.Party)}
	if err := s.bound(); err != nil {
		return broker.RecordPage{}, err
	}
	for s.low < s.high {
		ids, exhausted, err := s.candidates()
		if err == nil {
			err = s.consider(ids)
		}
		switch {
		case errors.Is(err, errPageFull):
			return s.page, nil
		case err != nil:
			return broker.RecordPage{}, err
		case exhausted:
			s.high = s.low
		}
	}
	s.page.Next = 0
	return s.page, nil
}

// bound sets the range of indexes by the times of the query and the page.
func (s *searching) bound() (err error) {
	size := s.high
	if !s.q.From.IsZero() {
		if s.low, err = s.v.indexAt(s.epoch, s.q.From, size); err != nil {
			return err
		}
	}
	if !s.q.To.IsZero() {
		if s.high, err = s.v.indexAt(s.epoch, s.q.To, size); err != nil {
			return err
		}
	}
	if s.q.Before > 0 {
		s.high = min(s.high, s.q.Before)
	}
	return nil
}

// indexAt returns the index of the first record at t or later, among the first size
// records of a log.
func (v *viewTx) indexAt(epoch int64, t time.Time, size int64) (int64, error) {
	var failed error
	i := sort.Search(int(size), func(i int) bool {
		var leaf []byte
		err := v.tx.QueryRowContext(v.ctx, "SELECT leaf FROM records WHERE id = ?", recordID(epoch, int64(i))).Scan(&leaf)
		var o audit.Outline
		if err == nil {
			o, err = audit.Glance(leaf)
		}
		failed = cmp.Or(failed, err)
		return !o.Time.Before(t)
	})
	if failed != nil {
		return 0, unavailable("searching the log by time", failed)
	}
	return int64(i), nil
}

// candidates returns the next ids to consider, the newest first. exhausted reports
// whether there are no more.
func (s *searching) candidates() (ids []int64, exhausted bool, err error) {
	counted := int64(0) // records after it are not in events
	if len(s.q.Kinds) > 0 && !slices.ContainsFunc(s.q.Kinds, func(k audit.Kind) bool { return !indexed(k) }) {
		if err := s.v.tx.QueryRowContext(s.v.ctx, "SELECT record FROM counted").Scan(&counted); err != nil {
			return nil, false, unavailable("reading the position of the counts", err)
		}
	}
	first, after := recordID(s.epoch, s.low), recordID(s.epoch, s.high)
	if counted < after-1 { // read the log itself
		for id := after - 1; id >= max(first, counted+1) && len(ids) < searchBatch; id-- {
			ids = append(ids, id)
		}
		return ids, false, nil
	}
	for _, kind := range s.q.Kinds {
		query := "SELECT record FROM events WHERE kind = ? AND record >= ? AND record < ? ORDER BY record DESC LIMIT ?"
		err := each(s.v.ctx, s.v.tx, query, []any{string(kind), first, after, searchBatch}, func(rows *sql.Rows) error {
			var id int64
			err := rows.Scan(&id)
			ids = append(ids, id)
			return err
		})
		if err != nil {
			return nil, false, unavailable("searching the log by kind", err)
		}
	}
	slices.SortFunc(ids, func(a, b int64) int { return cmp.Compare(b, a) })
	return ids[:min(len(ids), searchBatch)], len(ids) < searchBatch, nil
}

// A candidate is a record that may be selected.
type candidate struct {
	audit.Item
	outline audit.Outline
}

// consider adds those of the records that the query selects to the page. It returns
// errPageFull when the page is full or the bound is reached.
func (s *searching) consider(ids []int64) error {
	list, err := s.read(ids)
	if err != nil {
		return err
	}
	about, err := s.parties(list)
	if err != nil {
		return err
	}
	for _, c := range list {
		s.seen++
		s.high = c.Index
		s.page.SearchedTo, s.page.SearchedAt, s.page.Next = c.Index, c.outline.Time, c.Index
		selected, err := s.selects(&c, about)
		if err != nil {
			return fmt.Errorf("record %d: %w", c.Index, err)
		}
		if selected {
			s.page.Items = append(s.page.Items, c.Item)
		}
		if s.high > s.low && (len(s.page.Items) == s.q.Limit || s.seen == maxSearched) {
			return errPageFull
		}
	}
	return nil
}

// read reads records and leaves out those of other kinds.
func (s *searching) read(ids []int64) (list []candidate, err error) {
	if len(ids) == 0 {
		return nil, nil
	}
	query := "SELECT id, leaf, openings FROM records WHERE id >= ? AND id <= ? ORDER BY id DESC"
	args := []any{ids[len(ids)-1], ids[0]}
	if ids[0]-ids[len(ids)-1] >= int64(len(ids)) { // they have gaps
		query = "SELECT id, leaf, openings FROM records WHERE id IN (" + strings.Repeat("?, ", len(ids)-1) + "?) ORDER BY id DESC"
		args = args[:0]
		for _, id := range ids {
			args = append(args, id)
		}
	}
	err = each(s.v.ctx, s.v.tx, query, args, func(rows *sql.Rows) error {
		var c candidate
		var id int64
		if err := rows.Scan(&id, &c.Leaf, &c.Openings); err != nil {
			return err
		}
		c.Index = broker.RecordID(id).Index()
		if c.outline, err = audit.Glance(c.Leaf); err != nil {
			return fmt.Errorf("record %d: %w", c.Index, err)
		}
		list = append(list, c)
		return nil
	})
	if err != nil {
		return nil, unavailable("searching the log", err)
	}
	return list, nil
}

// parties are the holders and entitlements of leases, and the requesters of requests,
// which some records do not name.
type parties struct {
	leases   map[broker.LeaseID]*broker.Lease
	requests map[broker.RequestID]string
}

// parties reads what the records themselves do not name, if the query needs it.
func (s *searching) parties(list []candidate) (p parties, err error) {
	if s.q.Party == "" && s.q.Entitlement == "" {
		return p, nil
	}
	p.requests = map[broker.RequestID]string{}
	var leases []broker.LeaseID
	for i := range list {
		switch c := &list[i]; {
		case !s.wantsKind(c.outline.Kind) || s.q.Party != "" && bytes.Contains(c.Leaf, s.record):
		case c.outline.Lease != nil && c.outline.Request == nil:
			leases = append(leases, c.lease())
		case c.outline.Request != nil && c.outline.Lease == nil && s.q.Party != "" && !byRequester(c.outline.Kind):
			row, err := broker.Get[*broker.Request](s.v, c.request())
			switch {
			case err == nil:
				p.requests[row.ID] = row.Requester.ID
			case !errors.Is(err, broker.ErrNotFound):
				return p, err
			}
		}
	}
	p.leases, err = s.v.leasesOf(leases)
	return p, err
}

// byRequester reports whether the caller of all records of a kind is the requester, so
// that the request's row says no more.
func byRequester(kind audit.Kind) bool {
	return kind == audit.RequestCreated || kind == audit.RequestWithdrawn || kind == audit.CollectRefused
}

// lease returns the id in the record's facts about a lease; zero: none.
func (c *candidate) lease() broker.LeaseID {
	id, _ := broker.ParseLeaseID(idIn(c.outline.Lease))
	return id
}

// request returns the id in the record's facts about a request; zero: none.
func (c *candidate) request() broker.RequestID {
	id, _ := broker.ParseRequestID(idIn(c.outline.Request))
	return id
}

// idIn returns the id in the canonical facts about a request or lease. A canonical
// string has no bare quotation mark, so no other value looks like this member.
func idIn(facts []byte) string {
	_, after, _ := bytes.Cut(facts, []byte(`"id":"`))
	id, _, _ := bytes.Cut(after, []byte(`"`))
	return string(id)
}

func (s *searching) wantsKind(kind audit.Kind) bool {
	return len(s.q.Kinds) == 0 || slices.Contains(s.q.Kinds, kind)
}

// selects reports whether the query selects a record. It decodes the record only if its
// bytes do not rule it out.
func (s *searching) selects(c *candidate, about parties) (bool, error) {
	if !s.wantsKind(c.outline.Kind) {
		return false, nil
	}
	if found, err := s.contains(c); !found || err != nil {
		return false, err
	}
	if s.q.Party == "" && s.q.Entitlement == "" {
		return true, nil
	}
	lease, requester := about.leases[c.lease()], about.requests[c.request()]
	if lease == nil && requester == "" && !bytes.Contains(c.Leaf, []byte(cmp.Or(s.q.Party, s.q.Entitlement))) && !bytes.Contains(c.Leaf, []byte(`\`)) {
		return false, nil // a text without a backslash is in the record as it is
	}
	r, err := audit.Decode(c.Leaf)
	if err != nil {
		return false, err
	}
	return s.concerns(&r, lease) && s.involves(&r, lease, requester), nil
}

// concerns reports whether a record is about the entitlement of the query.
func (s *searching) concerns(r *audit.Record, lease *broker.Lease) bool {
	switch {
	case s.q.Entitlement == "":
		return true
	case r.Request != nil && r.Request.Entitlement != "":
		return r.Request.Entitlement == s.q.Entitlement
	case r.Block != nil:
		return r.Block.Selector == "entitlement "+s.q.Entitlement
	}
	return lease != nil && lease.Entitlement == s.q.Entitlement
}

// involves reports whether a record was caused by the party of the query, or is about it.
func (s *searching) involves(r *audit.Record, lease *broker.Lease, requester string) bool {
	who := s.q.Party
	if who == "" || who == requester || lease != nil && lease.Holder == who {
		return true
	}
	for _, p := range []*audit.Party{r.Caller, r.Subject} {
		if p != nil && (p.ID == who || slices.Contains(p.Accounts, who) || slices.Contains(p.Actors, who)) {
			return true
		}
	}
	if r.Block != nil {
		_, name, _ := strings.Cut(r.Block.Selector, " ")
		return name == who
	}
	return r.Request != nil && slices.Contains(r.Request.Accountable, who)
}

// contains reports whether the record or a text next to it contains the text of the
// query. Texts that were erased are not found.
func (s *searching) contains(c *candidate) (bool, error) {
	if s.text == "" || strings.Contains(strings.ToLower(string(c.Leaf)), s.text) {
		return true, nil
	}
	if len(c.Openings) == 0 {
		return false, nil
	}
	openings, err := audit.DecodeOpenings(c.Openings)
	if err != nil {
		return false, err
	}
	for _, o := range openings {
		if strings.Contains(strings.ToLower(o.Text), s.text) {
			return true, nil
		}
	}
	return false, nil
}
