package store

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"slices"
	"time"

	"accessbroker.internal/broker"
)

// Most requests are collected in the call that files them, and nothing happens to their
// leases until they expire. Such a request carries its lease: the column lease of the
// request's row has what does not follow from the request, and there is no row in leases
// and none in live. The two have the same bytes as IDs, so either is found by the other's.
//
// A lease is carried only until it or its request is replaced. The transaction that does
// so moves the lease to a row of its own.
//
// The rows in live of leases that are carried are in memory only (holdings.go). A start
// finds them by reading the requests from since on, which Sweep advances.

// carriedTables adds the column, and the row of since. Requests before since carry no lease
// that is live.
const carriedTables = `
ALTER TABLE requests ADD COLUMN lease BLOB;
CREATE TABLE carried (one INTEGER PRIMARY KEY CHECK (one = 1), since BLOB NOT NULL);
INSERT INTO carried SELECT 1, coalesce(max(id), x'') FROM requests;
`

// carriedFor is the longest lifetime of a lease that is carried. It bounds what a start
// reads: a lease with a longer one would make it read all requests since.
const carriedFor = time.Hour

// opening returns the lease that is opened in the call that files a request, as far as it
// follows from the request.
func opening(r *broker.Request) broker.Lease {
	l := broker.Lease{
		ID: broker.LeaseID(r.ID), Request: r.ID, Status: broker.LeaseActive,
		Holder: r.Requester.ID, Entitlement: r.Entitlement, Scopes: r.Scopes, Parameters: r.Parameters, Details: r.Details,
		Opened: r.Created, Expires: r.FirstExpires, KeyThumbprint: r.KeyThumbprint, Records: r.Records,
		Attested: r.Requester.Attested,
	}
	if d := r.Delegation; d != nil {
		l.Subject, l.Actors, l.Parent = d.Subject.ID, d.Actors, d.Parent
	}
	return l
}

// cut removes from l what follows from its request. It reports whether the request can
// carry the lease.
func cut(r *broker.Request, l *broker.Lease) bool {
	o := opening(r)
	if l.ID != o.ID || l.Request != o.Request || l.Status != o.Status || r.Status != broker.RequestApproved ||
		l.Holder != o.Holder || l.Entitlement != o.Entitlement || !slices.Equal(l.Scopes, o.Scopes) ||
		!maps.Equal(l.Parameters, o.Parameters) || !sameDetails(l.Details, o.Details) ||
		!l.Opened.Equal(o.Opened) || !l.Expires.Equal(o.Expires) || l.KeyThumbprint != o.KeyThumbprint ||
		l.Subject != o.Subject || !slices.Equal(l.Actors, o.Actors) || l.Parent != o.Parent || l.Attested != o.Attested ||
		!l.Due().IsZero() || l.Expires.Sub(l.Opened) > carriedFor || personOf(l.Holder) != nil {
		return false
	}
	l.Request, l.Status, l.Holder, l.Entitlement = broker.RequestID{}, 0, "", ""
	l.Scopes, l.Parameters, l.Details, l.Opened, l.Expires = nil, nil, nil, time.Time{}, time.Time{}
	l.KeyThumbprint, l.Subject, l.Actors, l.Parent, l.Attested = broker.Lease{}.KeyThumbprint, "", nil, broker.LeaseID{}, ""
	return true
}

// sameDetails reports whether two lists are empty or one.
func sameDetails(a, b []broker.Detail) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

// uncut adds to l what follows from its request.
func uncut(r *broker.Request, l *broker.Lease) {
	o := opening(r)
	l.Request, l.Status, l.Holder, l.Entitlement = o.Request, o.Status, o.Holder, o.Entitlement
	l.Scopes, l.Parameters, l.Details, l.Opened, l.Expires = o.Scopes, o.Parameters, o.Details, o.Opened, o.Expires
	l.KeyThumbprint, l.Subject, l.Actors, l.Parent, l.Records, l.Attested = o.KeyThumbprint, o.Subject, o.Actors, o.Parent, o.Records, o.Attested
}

// decodeLease returns a lease from the body of its row, or from the row of the request that
// carries it. lease is nil for a row in leases.
func decodeLease(id broker.LeaseID, body, lease []byte) (*broker.Lease, error) {
	if lease == nil {
		row, err := decodeRow(id, body)
		if err != nil {
			return nil, err
		}
		return row.(*broker.Lease), nil
	}
	row, err := decodeRow(broker.RequestID(id), body)
	if err != nil {
		return nil, err
	}
	l := &broker.Lease{ID: id}
	if err := decodeBody(lease, l); err != nil {
		return nil, fmt.Errorf("reading the lease that the request %v carries: %w", id, err)
	}
	uncut(row.(*broker.Request), l)
	return l, nil
}

// leaseFrom returns the queries for leases, those that are carried included: id, body and
// lease. where is their condition on id; the arguments are numbered, because it is used
// twice.
func leaseFrom(where string) string {
	return "SELECT id, body, NULL AS lease FROM leases WHERE " + where + " UNION ALL SELECT id, body, lease FROM requests WHERE lease IS NOT NULL AND " + where
}

// selectLease selects the body and the column lease of one lease.
const selectLease = "SELECT body, NULL FROM leases WHERE id = ?1 UNION ALL SELECT body, lease FROM requests WHERE id = ?1 AND lease IS NOT NULL"

// scanLease returns the lease of a row of such a query.
func scanLease(rows *sql.Rows) (*broker.Lease, error) {
	var id, body, lease sql.RawBytes
	if err := rows.Scan(&id, &body, &lease); err != nil {
		return nil, err
	}
	key, err := leases.key(id)
	if err != nil {
		return nil, err
	}
	return decodeLease(key.(broker.LeaseID), body, lease)
}

// listLeases reads the leases of a query.
func listLeases(ctx context.Context, q queryer, query string, args ...any) (list []*broker.Lease, err error) {
	err = each(ctx, q, query, args, func(rows *sql.Rows) error {
		l, err := scanLease(rows)
		list = append(list, l)
		return err
	})
	if err != nil {
		return nil, unavailable("listing leases", err)
	}
	return list, nil
}

// carrying is the row of a request that carries a lease.
type carrying struct{ body, lease []byte }

// leaseBody returns the body of the lease as if it had a row of its own.
func (c carrying) leaseBody(id broker.LeaseID) ([]byte, error) {
	l, err := decodeLease(id, c.body, c.lease)
	if err != nil {
		return nil, err
	}
	body, err := encodeBody(l, nil)
	return append(body, recordList(c.body)...), err
}

// carry makes the request, if the transaction has just put a new one, carry the lease. The
// lease is new, too.
func (tx *updateTx) carry(encoded *row, l *broker.Lease) error {
	r := tx.filed
	if r == nil || r.key != broker.Key(broker.RequestID(l.ID)) {
		return nil
	}
	rest := &tx.g.w.scratch.rest
	*rest = *l
	if !cut(&tx.g.w.scratch.filed, rest) {
		return nil
	}
	var err error
	r.lease, err = encodeBody(rest, &tx.g.w.scratch)
	encoded.carried = true
	return err
}

// settle decides which requests carry their leases, once all members of the group have run.
func (g *group) settle() error {
	if err := g.unload(); err != nil {
		return err
	}
	for _, r := range g.order {
		id, ok := r.key.(broker.LeaseID)
		if !ok || !r.carried {
			continue
		}
		// A member after the one that put both may have replaced one of them.
		request := g.rows[broker.RequestID(id)]
		if request == nil || request.lease == nil || bytes.Compare(id[:], g.w.carriedSince) < 0 {
			r.carried = false
		}
	}
	for _, r := range g.order {
		if id, ok := r.key.(broker.RequestID); ok && r.lease != nil {
			if l := g.rows[broker.LeaseID(id)]; l == nil || !l.carried {
				r.lease = nil
			}
		}
	}
	return nil
}

// unload adds the rows of leases that were carried by requests that the group replaces.
func (g *group) unload() error {
	for id, c := range g.carried {
		if g.rows[id] != nil || g.rows[broker.RequestID(id)] == nil {
			continue
		}
		l, err := decodeLease(id, c.body, c.lease)
		if err != nil {
			return err
		}
		r := g.w.scratch.row()
		if err := r.encode(l, &g.w.scratch); err != nil {
			return err
		}
		r.body = append(r.body, recordList(c.body)...)
		g.rows[id], g.order = r, append(g.order, r)
	}
	g.w.scratch.order = g.order
	return nil
}

const (
	insertCarrying = `INSERT INTO requests (id, body, lease) VALUES (?, ?, ?)`
	unloadLease    = "UPDATE requests SET lease = NULL WHERE id = ? AND lease IS NOT NULL"
)

// moveSince advances since to the first live lease that is carried. It runs in a group, so
// memory has all leases that were committed. Those that are committed later and are older
// are not carried.
func (s *Store) moveSince(ctx context.Context, now int64) error {
	var stored []byte
	if err := s.readers.QueryRowContext(ctx, "SELECT since FROM carried").Scan(&stored); err != nil {
		return err
	}
	if first, ok := s.holdings.firstCarried(now); !ok || bytes.Compare(first[:], stored) <= 0 {
		return nil
	}
	return s.exec(ctx, func(ctx context.Context, w *writer) error {
		since, ok := s.holdings.firstCarried(now)
		if !ok || bytes.Compare(since[:], w.carriedSince) <= 0 {
			return nil
		}
		if err := w.exec(ctx, "UPDATE carried SET since = ?", since[:]); err != nil {
			return err
		}
		// If the commit fails, fewer leases are carried than could be.
		w.carriedSince = since[:]
		return nil
	})
}

// firstCarried returns the first live lease that is carried. If none is live, it returns the
// last one that ended, so that a start after a quiet time reads no old requests.
func (h *holdings) firstCarried(now int64) (id broker.LeaseID, ok bool) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if !h.loaded {
		return id, false
	}
	for e := range h.tables[liveTable].all() {
		if e.carried() && e.until > now {
			return e.id, true
		}
	}
	return h.dropped, !h.dropped.IsZero()
}

// loadCarried reads since.
func (w *writer) loadCarried(ctx context.Context) error {
	return w.conn.QueryRowContext(ctx, "SELECT since FROM carried").Scan(&w.carriedSince)
}

// skim returns what memory keeps of a lease that is carried. It decodes no more than that:
// a start reads a million.
func skim(id, body, lease []byte) (e held, holder []byte, k leaseKind, err error) {
	request, err := readCoder(body)
	if err != nil {
		return e, nil, k, err
	}
	if len(id) != len(e.id) || !request.take(requesterTag, length) {
		return e, nil, k, errBody
	}
	identity := coder{reading: true, buf: request.slice(request.uvarint())}
	if identity.take(1, length) {
		holder = identity.slice(identity.uvarint())
	}
	request.text(entitlementTag, &k.entitlement)
	var expires time.Time
	request.time(firstExpiresTag, &expires)
	rest, err := readCoder(lease)
	if err != nil {
		return e, nil, k, err
	}
	rest.text(issuerTag, &k.issuer)
	e = newHeld(broker.LeaseID(id), ceilMillis(expires), broker.RequestID(id), 0, true)
	return e, holder, k, errors.Join(request.err, identity.err, rest.err)
}

// The places of fields in requestFields and leaseFields.
const (
	requesterTag    = 3
	entitlementTag  = 4
	firstExpiresTag = 23
	issuerTag       = 5
)

// fillCarried adds the leases that are carried.
func (h *holdings) fillCarried(ctx context.Context, db *sql.DB) error {
	kinds := make(map[leaseKind]int32, len(h.kinds))
	for id, k := range h.kinds {
		kinds[k] = id
	}
	var since, first, last []byte
	if err := db.QueryRowContext(ctx, firstAndLast("requests")).Scan(&first, &last); err != nil || last == nil {
		return err
	}
	if err := db.QueryRowContext(ctx, "SELECT since FROM carried").Scan(&since); err != nil {
		return err
	}
	if bytes.Compare(since, first) > 0 {
		first = since
	}
	carried, err := readHalves(first, last, func(set *leaseSet, where string, bound []byte) error {
		query := "SELECT id, body, lease FROM requests WHERE lease IS NOT NULL AND id >= ? AND " + where + " ORDER BY id"
		return each(ctx, db, query, []any{first, bound}, func(rows *sql.Rows) error {
			var id, body, lease sql.RawBytes
			if err := rows.Scan(&id, &body, &lease); err != nil {
				return err
			}
			e, holder, k, err := skim(id, body, lease)
			if err != nil {
				return err
			}
			e.group |= uint32(kinds[k])
			set.put(e, maphash.Bytes(h.seed, holder))
			return nil
		})
	})
	h.tables[liveTable] = merged(&h.tables[liveTable], &carried)
	return err
}

// fetchCarried notes the lease of a row that selectIn selected, and returns the body of the
// key's row.
func (g *group) fetchCarried(key broker.Key, body, lease []byte) []byte {
	if lease == nil {
		return body
	}
	if g.carried == nil {
		g.carried = map[broker.LeaseID]carrying{}
	}
	c := carrying{body, lease}
	request, isRequest := key.(broker.RequestID)
	id, isLease := key.(broker.LeaseID)
	if isRequest {
		id = broker.LeaseID(request)
	}
	own, err := c.leaseBody(id)
	if err != nil {
		return damaged // only the member that gets the row fails
	}
	g.carried[id] = c
	if isLease {
		return own
	}
	return body
}

// damaged is a body that cannot be decoded.
var damaged = []byte{0}
