package store

import (
	"bytes"
	"cmp"
	"context"
	"database/sql"
	"errors"
	"slices"
	"strings"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// View implements broker.Store.
func (s *Store) View(ctx context.Context, f func(broker.Tx) error) (err error) {
	if err := s.rewound(); err != nil {
		return err
	}
	tx, err := s.readers.BeginTx(ctx, nil)
	if err != nil {
		return unavailable("reading", err)
	}
	defer func() { _ = tx.Rollback() }() // the view wrote nothing
	return f(&viewTx{ctx, s, tx})
}

// viewTx reads one snapshot of the database.
type viewTx struct {
	ctx context.Context
	s   *Store
	tx  *sql.Tx
}

// Get implements broker.Tx.
func (v *viewTx) Get(key broker.Key) (broker.Row, error) {
	t, id, err := locate(key)
	if err != nil {
		return nil, err
	}
	var body, lease []byte
	dest := []any{&body, &lease}
	switch t {
	case leases:
	case spent:
		return nil, errUsed
	default:
		dest = dest[:1]
	}
	err = v.tx.StmtContext(v.ctx, v.s.gets[t]).QueryRowContext(v.ctx, id).Scan(dest...)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, broker.ErrNotFound
	}
	if err != nil {
		return nil, unavailable("reading "+tables[t].name, err)
	}
	if id, ok := key.(broker.LeaseID); ok {
		return decodeLease(id, body, lease)
	}
	return decodeRow(key, body)
}

// Put panics: a View writes nothing.
func (v *viewTx) Put(broker.Row) { panic("store: a View writes nothing") }

// Append panics: a View writes nothing.
func (v *viewTx) Append(*audit.Entry) { panic("store: a View writes nothing") }

// maxScan bounds the rows that one call of Requests or Leases reads.
const maxScan = 10_000

// Requests implements broker.Tx. Pending requests and those of people have an index; for
// all others it reads back from the newest.
func (v *viewTx) Requests(q broker.RequestQuery) ([]*broker.Request, broker.RequestID, error) {
	l := listing[*broker.Request]{
		query:  "SELECT id, body FROM requests WHERE id < ? ORDER BY id DESC LIMIT ?",
		args:   []any{before(q.Before[:]), maxScan},
		limit:  q.Limit,
		table:  requests,
		has:    []byte(cmp.Or(q.Requester, q.Subject)),
		wanted: func(r *broker.Request) bool { return wantsRequest(&q, r) },
	}
	switch {
	case q.Below:
		id := standingID(q.RestsOn)
		l.query = `SELECT page.request, body FROM (SELECT DISTINCT request FROM rests
			WHERE (subject = ? OR subject > ? AND subject < ?) AND request < ? AND until > ? ORDER BY request DESC LIMIT ?) AS page
			CROSS JOIN requests ON requests.id = page.request /*+ ORDER BY page.request DESC*/`
		l.args = []any{id, append(slices.Clone(id), '/'), append(slices.Clone(id), '/'+1), before(q.Before[:]), q.Now.UnixMilli(), maxScan}
	case q.RestsOn != broker.StandingKey{}:
		l.query = `SELECT rests.request, body FROM rests CROSS JOIN requests ON requests.id = rests.request
			WHERE subject = ? AND rests.request < ? AND until > ? ORDER BY rests.request DESC LIMIT ?`
		l.args = []any{standingID(q.RestsOn), before(q.Before[:]), q.Now.UnixMilli(), maxScan}
	case q.Requester != "" && personOf(q.Requester) != nil:
		l.query = `SELECT page.id, body FROM (SELECT id FROM requests INDEXED BY requests_person
			WHERE person = ? AND id < ? ORDER BY id DESC LIMIT ?) AS page CROSS JOIN requests ON requests.id = page.id /*+ ORDER BY page.id DESC*/`
		l.args = []any{q.Requester, before(q.Before[:]), maxScan}
	case q.Status == broker.RequestPending:
		// CROSS JOIN keeps SQLite from reordering the join: it sorts the ids alone,
		// and not the bodies.
		l.query = `SELECT page.id, body FROM (SELECT id FROM requests INDEXED BY requests_pending
			WHERE lapses > ? AND id < ? ORDER BY id DESC LIMIT ?) AS page CROSS JOIN requests ON requests.id = page.id /*+ ORDER BY page.id DESC*/`
		l.args = []any{q.Now.UnixMilli(), before(q.Before[:]), maxScan}
	}
	page, next, err := l.read(v)
	return page, broker.RequestID(next), err
}

func wantsRequest(q *broker.RequestQuery, r *broker.Request) bool {
	return (q.Requester == "" || r.Requester.ID == q.Requester) &&
		(q.Entitlement == "" || r.Entitlement == q.Entitlement) &&
		(q.Subject == "" || r.Delegation != nil && r.Delegation.Subject.ID == q.Subject) &&
		(q.Team == "" || r.Requester.Team == q.Team) &&
		(q.Status == 0 || r.State(q.Now) == q.Status) &&
		(q.Match == nil || q.Match(r))
}

// Leases implements broker.Tx. Due leases have an index. Live and outliving leases
// are found in memory or, by their path or trust domain, in their tables and in the
// requests that carry live leases, which a call may read whole. For all others it reads
// back from the newest.
func (v *viewTx) Leases(q broker.LeaseQuery) ([]*broker.Lease, broker.LeaseID, error) {
	if inMemory(&q) && v.s.loadHoldings(v.ctx) == nil {
		return v.held(q)
	}
	l := listing[*broker.Lease]{
		query:  selectLeasesBack,
		args:   []any{before(q.Before[:]), maxScan},
		limit:  q.Limit,
		table:  leases,
		has:    []byte(q.Holder),
		wanted: func(lease *broker.Lease) bool { return wantsLease(&q, lease) },
	}
	switch {
	case q.Due && q.Issuer != "":
		l.query = `SELECT leases.id, body, NULL FROM leases INDEXED BY leases_due CROSS JOIN live ON live.id = leases.id
			WHERE due <= ? AND kind IN (SELECT id FROM kinds WHERE issuer = ?) ORDER BY due LIMIT ? OFFSET ?`
		l.args = []any{q.Now.UnixMilli(), q.Issuer, maxScan, q.Skip}
	case q.Due:
		l.query = "SELECT id, body, NULL FROM leases INDEXED BY leases_due WHERE due <= ? ORDER BY due LIMIT ? OFFSET ?"
		l.args = []any{q.Now.UnixMilli(), maxScan, q.Skip}
	case q.Live:
		l.query, l.args = indexQuery("live", &q)
		carried, args := carriedQuery(&q)
		l.query, l.args = l.query+" UNION ALL "+carried, append(l.args, args...)
	case q.Outliving:
		l.query, l.args = indexQuery("lingering", &q)
	}
	if q.Live || q.Outliving {
		l.query, l.args = l.query+" ORDER BY 1 DESC LIMIT ?", append(l.args, maxScan)
	}
	page, next, err := l.read(v)
	if q.Due {
		next = [16]byte{} // the caller deals with due leases, and then they are no longer due: there is no next page
	}
	return page, broker.LeaseID(next), err
}

// selectLeasesBack reads leases from the newest. It also reads the requests without a
// lease, so that a call reads a bounded number of rows; they have no body. A lease and
// its request without one, which may have the same id, come in any order: see listing.read.
// PostgreSQL sorts both tables unless each part has a limit.
const selectLeasesBack = `/*+(*/SELECT id, body, NULL FROM leases WHERE id < ?1 /*+ORDER BY id DESC LIMIT ?2)*/
	UNION ALL /*+(*/SELECT id, CASE WHEN lease IS NOT NULL THEN body END, lease FROM requests WHERE id < ?1 /*+ORDER BY id DESC LIMIT ?2)*/ ORDER BY 1 DESC LIMIT ?2`

// carriedQuery selects candidates for wantsLease by the live leases that requests carry.
// The holder is the requester, whose ID is at the beginning of the body.
func carriedQuery(q *broker.LeaseQuery) (query string, args []any) {
	query = "SELECT id, body, lease FROM requests WHERE lease IS NOT NULL AND id < ? AND id >= (SELECT since FROM carried)"
	args = []any{before(q.Before[:])}
	name := cmp.Or(q.Holder, q.Under)
	if name == "" && q.TrustDomain != "" {
		name = "spiffe://" + q.TrustDomain
	}
	if name != "" {
		const most = 32 // bytes before it
		query, args = query+" AND instr(substr(body, 1, ?), ?) > 0", append(args, len(name)+most, []byte(name))
	}
	return query, args
}

// indexQuery selects candidates for wantsLease by the table live or lingering.
func indexQuery(table string, q *broker.LeaseQuery) (query string, args []any) {
	query = "SELECT n.id, body, NULL FROM " + table + " AS n CROSS JOIN leases ON leases.id = n.id WHERE n.id < ? AND until > ?"
	args = []any{before(q.Before[:]), q.Now.UnixMilli()}
	and := func(condition string, values ...any) {
		query += " AND " + condition
		args = append(args, values...)
	}
	if q.Holder != "" {
		and("holder = ?", q.Holder) // with Under or TrustDomain
	}
	if q.Under != "" {
		and("(holder = ? OR holder >= ? AND holder < ?)", q.Under, q.Under+"/", q.Under+"0") // '0' follows '/'
	}
	if q.TrustDomain != "" {
		and("holder >= ? AND holder < ?", "spiffe://"+q.TrustDomain, "spiffe://"+q.TrustDomain+"0")
	}
	if q.Entitlement != "" {
		and("kind IN (SELECT id FROM kinds WHERE entitlement = ?)", q.Entitlement)
	}
	if q.Issuer != "" {
		and("kind IN (SELECT id FROM kinds WHERE issuer = ?)", q.Issuer)
	}
	if !q.Request.IsZero() {
		and("request = ?", q.Request[:])
	}
	return query, args
}

func wantsLease(q *broker.LeaseQuery, l *broker.Lease) bool {
	return (q.Holder == "" || l.Holder == q.Holder) &&
		(q.Under == "" || l.Holder == q.Under || strings.HasPrefix(l.Holder, q.Under+"/")) &&
		(q.TrustDomain == "" || l.Holder == "spiffe://"+q.TrustDomain || strings.HasPrefix(l.Holder, "spiffe://"+q.TrustDomain+"/")) &&
		(q.Entitlement == "" || l.Entitlement == q.Entitlement) &&
		(q.Issuer == "" || l.Issuer == q.Issuer) &&
		(q.Request.IsZero() || l.Request == q.Request) &&
		(!q.Live || l.Live(q.Now)) &&
		(!q.Outliving || l.OutlivesEnd(q.Now)) &&
		(!q.Due || isDue(l, q))
}

func isDue(l *broker.Lease, q *broker.LeaseQuery) bool {
	due := l.Due()
	return !due.IsZero() && !due.After(q.Now)
}

// before returns the upper bound of a page: the id, or one above all ids if it is
// zero.
func before(id []byte) []byte {
	if [16]byte(id) == ([16]byte{}) {
		return []byte("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")
	}
	return id
}

// A listing reads one page.
type listing[R broker.Row] struct {
	query  string
	args   []any
	limit  int // of the page; zero means maxScan
	table  table
	has    []byte // a text that every wanted body has; it is cheaper to find than a row is to decode
	wanted func(R) bool
}

// read returns the rows of the page. If there may be more rows, next is the last
// id that it read, and zero otherwise.
func (l *listing[R]) read(v *viewTx) (page []R, next [16]byte, err error) {
	scanned, empty := 0, false // empty: the last row had no body
	var earlier [16]byte       // the id before the last one
	err = each(v.ctx, v.tx, l.query, l.args, func(rows *sql.Rows) error {
		id, row, err := l.scan(rows)
		if err != nil {
			return err
		}
		scanned++
		earlier, next = next, id
		if empty = row == nil; empty {
			return nil
		}
		if r := row.(R); l.wanted(r) {
			if page = append(page, r); len(page) == l.limit {
				return errPageFull
			}
		}
		return nil
	})
	if errors.Is(err, errPageFull) {
		return page, next, nil
	}
	if err != nil {
		return nil, [16]byte{}, unavailable("listing", err)
	}
	switch {
	case scanned < maxScan:
		next = [16]byte{}
	case empty:
		next = earlier // a lease with the same id may follow: the next page begins with it
	}
	return page, next, nil
}

// scan returns the id of a row, and the row unless its body shows that it is not wanted.
func (l *listing[R]) scan(rows *sql.Rows) (at [16]byte, row broker.Row, err error) {
	var id, body, lease sql.RawBytes
	dest := []any{&id, &body, &lease}
	if l.table != leases {
		dest = dest[:2]
	}
	if err := rows.Scan(dest...); err != nil {
		return at, nil, err
	}
	key, err := l.table.key(id)
	if err != nil {
		return at, nil, err
	}
	at = [16]byte(id)
	if body == nil || !bytes.Contains(body, l.has) {
		return at, nil, nil
	}
	if l.table == leases {
		row, err = decodeLease(key.(broker.LeaseID), body, lease)
	} else {
		row, err = decodeRow(key, body)
	}
	return at, row, err
}

var errPageFull = errors.New("the page is full")

// Notices implements broker.Tx.
func (v *viewTx) Notices(q broker.NoticeQuery) (list []*broker.Notice, err error) {
	if q.Requester != "" {
		query := "SELECT id, body FROM notices INDEXED BY notices_requester WHERE due IS NOT NULL AND channel = ? AND requester = ? ORDER BY id LIMIT ?"
		return all[*broker.Notice](v, notices, query, q.Channel, q.Requester, q.Limit)
	}
	query := "SELECT id, body FROM notices INDEXED BY notices_channel WHERE channel = ? AND urgent = ? AND due <= ? ORDER BY due LIMIT ?"
	return all[*broker.Notice](v, notices, query, q.Channel, q.Urgent, q.Now.UnixMilli(), q.Limit)
}

// NoticeChannels implements broker.Tx. It skips from one channel to the next
// and does not read their notices.
func (v *viewTx) NoticeChannels() (names []string, err error) {
	query := "SELECT channel FROM notices INDEXED BY notices_channel WHERE due IS NOT NULL AND channel > ? ORDER BY channel LIMIT 1"
	for last := ""; len(names) < maxScan; names = append(names, last) {
		err := v.tx.QueryRowContext(v.ctx, query, last).Scan(&last)
		if errors.Is(err, sql.ErrNoRows) {
			break
		}
		if err != nil {
			return nil, unavailable("listing the channels of notices", err)
		}
	}
	return names, nil
}

// Backlogs implements broker.Tx.
func (v *viewTx) Backlogs(most, limit int) (list []broker.Backlog, err error) {
	query := `SELECT channel, requester FROM notices INDEXED BY notices_requester WHERE due IS NOT NULL AND requester IS NOT NULL
		GROUP BY channel, requester HAVING count(*) > ? ORDER BY count(*) DESC LIMIT ?`
	err = each(v.ctx, v.tx, query, []any{most, limit}, func(rows *sql.Rows) error {
		var c broker.Backlog
		err := rows.Scan(&c.Channel, &c.Requester)
		list = append(list, c)
		return err
	})
	if err != nil {
		return nil, unavailable("counting notices", err)
	}
	return list, nil
}

// Reviews implements broker.Tx.
func (v *viewTx) Reviews() ([]*broker.Reviews, error) {
	return all[*broker.Reviews](v, openReviews, "SELECT id, body FROM reviews LIMIT ?", maxScan)
}

// all reads the rows of a query.
func all[R broker.Row](v *viewTx, t table, query string, args ...any) ([]R, error) {
	return listRows[R](v.ctx, v.tx, t, query, args...)
}
