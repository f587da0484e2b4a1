package store

import (
	"database/sql"
	"encoding/binary"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// requests returns the walk that deletes requests with the leases that they carry; nil: they
// are kept. A request is kept while a lease of it has a row.
func (p *Pruner) requests(now time.Time) *walk {
	if p.keep.Requests == 0 {
		return nil
	}
	w := &walk{what: audit.PrunedRequests, before: now.Add(-p.keep.Requests), now: now, idSize: len(broker.RequestID{})}
	w.list, w.read = w.listFrom(requests), readFrom(requests)
	w.judge = func(v *viewTx, rows []*prunable) error {
		var over []*broker.Request
		byID := map[broker.RequestID]*prunable{}
		for _, row := range rows {
			r := row.request()
			if r == nil {
				continue
			}
			row.began = r.Created
			if at, is := r.Over(now); is && at.Before(w.before) {
				over, byID[r.ID], row.fate = append(over, r), row, deleteNow
			}
		}
		needed, err := v.neededRequests(over, w.before, now)
		for _, id := range needed {
			if row := byID[id]; row != nil {
				row.fate = keepForLater
			}
		}
		return err
	}
	w.prune = func(tx *updateTx, rows []*prunable) error {
		ids := pruneIDs(rows)
		tx.execIn("DELETE FROM collected WHERE id IN ", ids)
		tx.execIn("DELETE FROM requests WHERE id IN ", ids)
		return nil
	}
	return w
}

// neededRequests returns which of the requests are needed: a lease of theirs has a row or its
// credential may work, or a person is to decide on their grant in an access review.
func (v *viewTx) neededRequests(over []*broker.Request, before, now time.Time) (needed []broker.RequestID, err error) {
	if len(over) == 0 {
		return nil, nil
	}
	working, err := v.s.workingBefore(v, before, now)
	if err != nil {
		return nil, err
	}
	var ids, permissions []any
	of := map[broker.LeaseID]broker.RequestID{} // leases to look for
	granted := map[string]broker.RequestID{}
	for _, r := range over {
		if working[requestHash(r.ID)] {
			needed = append(needed, r.ID)
		}
		if !r.FirstLease.IsZero() {
			of[r.FirstLease] = r.ID
		}
		name := broker.PermissionKey{Kind: broker.PermissionGrant, Name: r.ID.String()}.String()
		ids, permissions, granted[name] = append(ids, r.ID[:]), append(permissions, name), r.ID
	}
	err = eachIn(v, "SELECT id, body FROM collected WHERE id IN ", ids, func(rows *sql.Rows) error {
		var id, body []byte
		if err := rows.Scan(&id, &body); err != nil {
			return err
		}
		row, err := decodeRow(broker.CollectedKey(id), body)
		if err == nil {
			of[row.(*broker.Collected).Last] = broker.RequestID(id)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	var leases []any
	for id := range of {
		leases = append(leases, id[:])
	}
	err = eachIn(v, "SELECT id FROM leases WHERE id IN ", leases, func(rows *sql.Rows) error {
		var id []byte
		err := rows.Scan(&id)
		needed = append(needed, of[broker.LeaseID(id)])
		return err
	})
	if err != nil {
		return nil, err
	}
	err = eachIn(v, "SELECT permission FROM review_items INDEXED BY review_items_permission WHERE reviewer IS NOT NULL AND permission IN ", permissions, func(rows *sql.Rows) error {
		var name string
		err := rows.Scan(&name)
		needed = append(needed, granted[name])
		return err
	})
	return needed, err
}

// workingBefore returns the hashes of the requests of leases from before a time whose
// credentials may still work. They are few, and memory has them in their order.
func (s *Store) workingBefore(v *viewTx, before, now time.Time) (of map[uint32]bool, err error) {
	of = map[uint32]bool{}
	last := broker.LeaseID(append(idAt(before), make([]byte, 8)...))
	err = s.readHoldings(v.ctx, func(h *holdings) {
		for t := range h.tables {
			for e := range h.tables[t].all() {
				if compareIDs(e.id, last) >= 0 {
					break
				}
				if e.until > now.UnixMilli() {
					of[e.request] = true
				}
			}
		}
	})
	return of, err
}

// leases returns the walk that deletes leases with rows of their own; nil: they are kept. A
// lease is kept while its grant runs: the request refers to its leases.
func (p *Pruner) leases(now time.Time) *walk {
	if p.keep.Leases == 0 {
		return nil
	}
	w := &walk{what: audit.PrunedLeases, before: now.Add(-p.keep.Leases), now: now, idSize: len(broker.LeaseID{})}
	w.list, w.read = w.listFrom(leases), readFrom(leases)
	w.judge = func(v *viewTx, rows []*prunable) error {
		of := map[broker.RequestID][]*prunable{}
		for _, row := range rows {
			l := row.leaseRow()
			if l == nil {
				continue
			}
			row.began = l.Opened
			if at, over := l.Over(now); over && at.Before(w.before) {
				row.fate = deleteNow
				of[l.Request] = append(of[l.Request], row)
			}
		}
		running, err := v.notOver(of, now, w.before)
		for _, id := range running {
			for _, row := range of[id] {
				row.fate = keepForLater
			}
		}
		return err
	}
	w.prune = func(tx *updateTx, rows []*prunable) error {
		tx.execIn("DELETE FROM leases WHERE id IN ", pruneIDs(rows))
		return nil
	}
	return w
}

// notOver returns which of the requests exist and were not over before a time.
func (v *viewTx) notOver(of map[broker.RequestID][]*prunable, now, before time.Time) (running []broker.RequestID, err error) {
	var ids []any
	for id := range of {
		ids = append(ids, id[:])
	}
	err = eachIn(v, "SELECT id, body FROM requests WHERE id IN ", ids, func(rows *sql.Rows) error {
		r, err := scanRequest(rows)
		if err != nil {
			return err
		}
		if at, over := r.Over(now); !over || !at.Before(before) {
			running = append(running, r.ID)
		}
		return nil
	})
	return running, err
}

func scanRequest(rows *sql.Rows) (*broker.Request, error) {
	var id, body []byte
	if err := rows.Scan(&id, &body); err != nil {
		return nil, err
	}
	row, err := decodeRow(broker.RequestID(id), body)
	if err != nil {
		return nil, err
	}
	return row.(*broker.Request), nil
}

// listFrom returns the list of a walk over requests or leases.
func (w *walk) listFrom(t table) func(v *viewTx, after []byte, n int) ([]*prunable, error) {
	return func(v *viewTx, after []byte, n int) ([]*prunable, error) {
		query := selectPrunable(t) + "id > ? AND id < ? ORDER BY id LIMIT ?"
		return readPrunable(v, t, query, after, idAt(w.before), n)
	}
}

func readFrom(t table) func(v *viewTx, ids [][]byte) ([]*prunable, error) {
	return func(v *viewTx, ids [][]byte) (list []*prunable, err error) {
		for _, part := range parts(ids) {
			rows, err := readPrunable(v, t, selectPrunable(t)+"id IN "+marks(len(part)), part...)
			if list = append(list, rows...); err != nil {
				return nil, err
			}
		}
		return list, nil
	}
}

func selectPrunable(t table) string {
	if t == requests {
		return "SELECT id, body, lease FROM requests WHERE "
	}
	return "SELECT id, body, NULL FROM " + tables[t].name + " WHERE "
}

func readPrunable(v *viewTx, t table, query string, args ...any) (list []*prunable, err error) {
	err = each(v.ctx, v.tx, query, args, func(rows *sql.Rows) (err error) {
		r := &prunable{}
		if err := rows.Scan(&r.id, &r.body, &r.lease); err != nil {
			return err
		}
		r.key, err = t.key(r.id)
		list = append(list, r)
		return err
	})
	if err != nil {
		return nil, unavailable("reading "+tables[t].name, err)
	}
	return list, nil
}

// request returns the request of a row; nil: the row is gone, or damaged and left for later.
func (r *prunable) request() *broker.Request {
	if r.body == nil {
		return nil
	}
	row, err := decodeRow(r.key, r.body)
	if err != nil {
		return nil
	}
	return row.(*broker.Request)
}

// leaseRow is request for a lease.
func (r *prunable) leaseRow() *broker.Lease {
	if r.body == nil {
		return nil
	}
	row, err := decodeRow(r.key, r.body)
	if err != nil {
		return nil
	}
	return row.(*broker.Lease)
}

func pruneIDs(rows []*prunable) []any {
	ids := make([]any, len(rows))
	for i, r := range rows {
		ids[i] = r.id
	}
	return ids
}

// parts divides ids into lists for one query each, with NULLs at the end.
func parts[T any](ids []T) (lists [][]any) {
	for len(ids) > 0 {
		n := inSize(len(ids))
		list := make([]any, n)
		for i, id := range ids[:min(n, len(ids))] {
			list[i] = id
		}
		lists, ids = append(lists, list), ids[min(n, len(ids)):]
	}
	return lists
}

// eachIn calls f for the rows of a query that ends with a list of values.
func eachIn(v *viewTx, query string, values []any, f func(*sql.Rows) error) error {
	for _, part := range parts(values) {
		if err := each(v.ctx, v.tx, query+marks(len(part)), part, f); err != nil {
			return unavailable("reading what is no longer kept", err)
		}
	}
	return nil
}

// texts returns the walk that erases the texts of records, and of the requests and leases that
// they file; nil: they are kept.
func (p *Pruner) texts(now time.Time) *walk {
	if p.keep.Texts == 0 {
		return nil
	}
	w := &walk{what: audit.PrunedTexts, before: now.Add(-p.keep.Texts), now: now, idSize: 8}
	w.list = func(v *viewTx, after []byte, n int) ([]*prunable, error) {
		first := int64(0)
		if len(after) == 8 {
			first = int64(binary.BigEndian.Uint64(after))
		}
		head := v.s.Head()
		index, err := v.indexAt(head.Epoch, w.before, head.Size)
		if err != nil {
			return nil, err
		}
		return readRecords(v, "id > ? AND id < ? ORDER BY id LIMIT ?", first, recordID(head.Epoch, index), n)
	}
	w.read = func(v *viewTx, ids [][]byte) (list []*prunable, err error) {
		numbers := make([]int64, len(ids))
		for i, id := range ids {
			numbers[i] = int64(binary.BigEndian.Uint64(id))
		}
		for _, part := range parts(numbers) {
			rows, err := readRecords(v, "id IN "+marks(len(part)), part...)
			if list = append(list, rows...); err != nil {
				return nil, err
			}
		}
		return list, nil
	}
	w.judge = w.judgeTexts
	w.prune = eraseTexts
	return w
}

// readRecords reads records with texts. Others have no body.
func readRecords(v *viewTx, where string, args ...any) (list []*prunable, err error) {
	query := "SELECT id, CASE WHEN openings IS NOT NULL THEN leaf END FROM records WHERE " + where
	err = each(v.ctx, v.tx, query, args, func(rows *sql.Rows) error {
		var id int64
		r := &prunable{fate: leaveAlone}
		if err := rows.Scan(&id, &r.body); err != nil {
			return err
		}
		r.id = binary.BigEndian.AppendUint64(nil, uint64(id))
		list = append(list, r)
		return nil
	})
	if err != nil {
		return nil, unavailable("reading records", err)
	}
	return list, nil
}

// judgeTexts lets the texts of a request go once it is over for that long, and all others once
// they are that old.
func (w *walk) judgeTexts(v *viewTx, rows []*prunable) error {
	of := map[broker.RequestID][]*prunable{}
	ofLease := map[broker.LeaseID][]*prunable{}
	for _, row := range rows {
		if row.body == nil {
			continue
		}
		o, err := audit.Glance(row.body)
		if err != nil { // damaged
			row.fate = keepForLater
			continue
		}
		if !o.Time.Before(w.before) { // of an earlier log that ended lately
			row.fate = keepForLater
			continue
		}
		row.began, row.fate = o.Time, deleteNow
		c := candidate{outline: o}
		request, lease := c.request(), c.lease()
		if !lease.IsZero() {
			ofLease[lease] = append(ofLease[lease], row)
			row.erase = append(row.erase, lease)
		}
		if !request.IsZero() {
			of[request] = append(of[request], row)
			row.erase = append(row.erase, request)
		}
	}
	if err := v.requestsOfLeases(ofLease, of); err != nil {
		return err
	}
	running, err := v.notOver(of, w.now, w.before)
	for _, id := range running {
		for _, row := range of[id] {
			row.fate, row.erase = keepForLater, nil
		}
	}
	return err
}

// requestsOfLeases adds records about a lease to those about its request.
func (v *viewTx) requestsOfLeases(ofLease map[broker.LeaseID][]*prunable, of map[broker.RequestID][]*prunable) error {
	var ids []any
	for id, rows := range ofLease {
		ids = append(ids, id[:])
		carrier := broker.RequestID(id) // if the lease is carried
		of[carrier] = append(of[carrier], rows...)
	}
	return eachIn(v, "SELECT id, body FROM leases WHERE id IN ", ids, func(rows *sql.Rows) error {
		var id, body []byte
		if err := rows.Scan(&id, &body); err != nil {
			return err
		}
		l, err := decodeLease(broker.LeaseID(id), body, nil)
		if err == nil {
			of[l.Request] = append(of[l.Request], ofLease[l.ID]...)
		}
		return err
	})
}

// eraseTexts erases the texts of records and of the rows that have them, too. A lease that a
// request carries has its texts from there.
func eraseTexts(tx *updateTx, rows []*prunable) error {
	ids := make([]any, len(rows))
	seen := map[broker.Key]bool{}
	for i, r := range rows {
		ids[i] = int64(binary.BigEndian.Uint64(r.id))
		for _, key := range r.erase {
			if seen[key] {
				continue
			}
			seen[key] = true
			if err := tx.eraseRow(key); err != nil {
				return err
			}
		}
	}
	tx.execIn("UPDATE records SET openings = NULL WHERE id IN ", ids)
	return nil
}

// eraseRow erases the texts of a request or a lease.
func (tx *updateTx) eraseRow(key broker.Key) error {
	body := tx.g.body(key)
	if body == nil {
		return nil
	}
	row, err := decodeRow(key, body)
	if err != nil {
		return nil // it is damaged, and has no text that can be found
	}
	name, id := "requests", []byte(nil)
	switch r := row.(type) {
	case *broker.Request:
		if r.Erased {
			return nil
		}
		r.EraseTexts()
		id = r.ID[:]
	case *broker.Lease:
		if tx.g.carried[r.ID].lease != nil || !r.EraseTexts() {
			return nil
		}
		name, id = "leases", r.ID[:]
	}
	erased, err := encodeBody(row, nil)
	if err != nil {
		return err
	}
	// If another member of the group changes the row after this one, its change stays.
	tx.exec("UPDATE "+name+" SET body = ? WHERE id = ? AND body = ?", append(erased, recordList(body)...), id, body)
	return nil
}
