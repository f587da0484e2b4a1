package store

import (
	"errors"
	"fmt"
	"slices"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// updateTx is the transaction of one member. It reads the member's own rows
// first, then those of the members before it, then those of the database.
type updateTx struct {
	g       *group
	reads   []broker.Key
	rows    []*row
	entries []*audit.Entry
	err     error      // from Put
	filed   *row       // the request that was put last, if it is new; nil: none
	execs   []deferred // statements of the store itself
}

// Get implements broker.Tx.
func (tx *updateTx) Get(key broker.Key) (broker.Row, error) {
	for _, r := range tx.rows {
		if r.key == key {
			return decodeRow(key, r.body)
		}
	}
	if !slices.Contains(tx.reads, key) {
		return nil, fmt.Errorf("reading the row %v: the Update did not name it in reads", key)
	}
	body := tx.g.body(key)
	if body == nil {
		return nil, tx.missing(key)
	}
	return decodeRow(key, body)
}

var errForgotten = errors.New("memory was forgotten meanwhile")

// missing returns why there is no row. Memory has all standings, unless it was forgotten since
// they were loaded.
func (tx *updateTx) missing(key broker.Key) error {
	if standing, ok := key.(broker.StandingKey); ok {
		if _, loaded := tx.g.s.standings.get(standing); !loaded {
			return unavailable("reading a standing", errForgotten)
		}
	}
	return broker.ErrNotFound
}

// body returns the body of a row as the group would leave it; nil if there is no
// such row.
func (g *group) body(key broker.Key) []byte {
	if r := g.rows[key]; r != nil {
		return r.body
	}
	switch k := key.(type) {
	case broker.BlockKey:
		return g.w.blocks[k]
	case broker.RevisionKey:
		if g.w.revision != nil {
			return g.w.revision
		}
	case broker.StandingKey:
		body, _ := g.s.standings.get(k)
		return body
	case broker.SpentKey:
		return g.w.used.body(k)
	}
	return g.fetched[key]
}

// Put implements broker.Tx. It encodes the row, so the caller may change it
// afterwards.
func (tx *updateTx) Put(r broker.Row) {
	encoded := tx.g.w.scratch.row()
	if err := encoded.encode(r, &tx.g.w.scratch); err != nil {
		tx.err = errors.Join(tx.err, err)
		return
	}
	replaced := tx.g.body(encoded.key)
	encoded.keepRecords(replaced)
	switch r := r.(type) {
	case *broker.Request:
		if tx.filed = nil; replaced == nil {
			tx.filed, tx.g.w.scratch.filed = encoded, *r
		}
	case *broker.Lease:
		if replaced == nil {
			tx.err = errors.Join(tx.err, tx.carry(encoded, r))
		}
	}
	for i := range tx.rows {
		if tx.rows[i].key == encoded.key {
			tx.rows[i] = encoded
			return
		}
	}
	tx.rows = append(tx.rows, encoded)
}

// Append implements broker.Tx.
func (tx *updateTx) Append(e *audit.Entry) { tx.entries = append(tx.entries, e) }

var errListing = errors.New("rows can be listed only in a View")

// Requests implements broker.Tx.
func (tx *updateTx) Requests(broker.RequestQuery) ([]*broker.Request, broker.RequestID, error) {
	return nil, broker.RequestID{}, errListing
}

// Notices implements broker.Tx.
func (tx *updateTx) Notices(broker.NoticeQuery) ([]*broker.Notice, error) { return nil, errListing }

// NoticeChannels implements broker.Tx.
func (tx *updateTx) NoticeChannels() ([]string, error) { return nil, errListing }

// Backlogs implements broker.Tx.
func (tx *updateTx) Backlogs(int, int) ([]broker.Backlog, error) { return nil, errListing }

// Reviews implements broker.Tx.
func (tx *updateTx) Reviews() ([]*broker.Reviews, error) { return nil, errListing }

// Leases implements broker.Tx.
func (tx *updateTx) Leases(broker.LeaseQuery) ([]*broker.Lease, broker.LeaseID, error) {
	return nil, broker.LeaseID{}, errListing
}
