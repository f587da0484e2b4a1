package store

import (
	"errors"
	"fmt"
	"slices"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// updateTx is one member's view of its group: what it put itself, over what
// the members before it put, over what the database has.
type updateTx struct {
	g       *group
	reads   []broker.Key
	rows    []row
	entries []*audit.Entry
	err     error // of a Put
}

// Get implements broker.Tx.
func (tx *updateTx) Get(key broker.Key) (broker.Row, error) {
	for i := range tx.rows {
		if tx.rows[i].key == key {
			return decodeRow(key, tx.rows[i].body)
		}
	}
	if !slices.Contains(tx.reads, key) {
		return nil, fmt.Errorf("reading the row %v: it was not named when the update began", key)
	}
	body := tx.g.body(key)
	if body == nil {
		return nil, broker.ErrNotFound
	}
	return decodeRow(key, body)
}

// body gives what the group knows of a row; nil: there is none.
func (g *group) body(key broker.Key) []byte {
	if r := g.rows[key]; r != nil {
		return r.body
	}
	if block, ok := key.(broker.BlockKey); ok {
		return g.w.blocks[block]
	}
	return g.fetched[key]
}

// Put implements broker.Tx. The row is encoded here, so that the caller may go
// on changing it.
func (tx *updateTx) Put(r broker.Row) {
	encoded, err := encodeRow(r)
	if err != nil {
		tx.err = errors.Join(tx.err, err)
		return
	}
	encoded.keepRecords(tx.g.body(encoded.key))
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

var errListing = errors.New("rows are listed in a View only")

// Requests implements broker.Tx.
func (tx *updateTx) Requests(broker.RequestQuery) ([]*broker.Request, broker.RequestID, error) {
	return nil, broker.RequestID{}, errListing
}

// Notices implements broker.Tx.
func (tx *updateTx) Notices(broker.NoticeQuery) ([]*broker.Notice, error) { return nil, errListing }

// NoticeChannels implements broker.Tx.
func (tx *updateTx) NoticeChannels() ([]string, error) { return nil, errListing }

// Crowds implements broker.Tx.
func (tx *updateTx) Crowds(int, int) ([]broker.Crowd, error) { return nil, errListing }

// Reviews implements broker.Tx.
func (tx *updateTx) Reviews() ([]*broker.Reviews, error) { return nil, errListing }

// Leases implements broker.Tx.
func (tx *updateTx) Leases(broker.LeaseQuery) ([]*broker.Lease, broker.LeaseID, error) {
	return nil, broker.LeaseID{}, errListing
}
