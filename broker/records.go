package broker

import (
	"context"
	"slices"
	"time"

	"accessbroker.internal/audit"
)

// A RecordID names a record of the log: an index, and the log that it counts
// in. A database may have several logs, one after the other, each with indexes
// from 0: the number of a log, its epoch, is above the index.
//
// Requests and leases list the ids of the records that were appended by the
// transactions that put them. The store keeps the list; what a caller has in it
// is not stored. The list is complete or empty: a row that was first put without
// a record, as by versions that kept no lists, never gets one.
type RecordID int64

// indexBits is the binary logarithm of how many records a log can have.
const indexBits = 40

// NewRecordID returns the id of the record with that index of a log.
func NewRecordID(epoch, index int64) RecordID { return RecordID(epoch<<indexBits | index) }

// Epoch returns the number of the record's log; the first is 1.
func (id RecordID) Epoch() int64 { return int64(id) >> indexBits }

// Index returns the record's place in its log, from 0.
func (id RecordID) Index() int64 { return int64(id) & (1<<indexBits - 1) }

// MaxListed bounds the list of a request and of a lease: once it has that many records,
// further refusals to collect, and further calls, are in the log and no longer in the list.
const MaxListed = 100

// RecordsOf returns the ids of the records of a request and of its leases, in
// the order of the log, to those who may see the request. whole is false if the
// list may leave records out: those of rows without a list, those of leases
// past the first page, and refusals and calls past MaxListed.
func (b *Broker) RecordsOf(ctx context.Context, caller Caller, id RequestID) (ids []RecordID, whole bool, err error) {
	r, err := b.Request(ctx, caller, id)
	if err != nil {
		return nil, false, err
	}
	leases, more, err := b.requestLeases(ctx, r, caller.At)
	if err != nil {
		return nil, false, err
	}
	ids = slices.Clone(r.Records)
	whole = len(r.Records) > 0 && len(r.Records) < MaxListed && !more
	for _, l := range leases {
		ids = append(ids, l.Records...)
		whole = whole && len(l.Records) > 0 && len(l.Records) < MaxListed
	}
	slices.Sort(ids)
	return slices.Compact(ids), whole, nil
}

// listRefusal puts a request as it is, so that it lists the record of the
// transaction. A request that was never stored has no list.
func listRefusal(tx Tx, id RequestID) error {
	r, err := Get[*Request](tx, id)
	if err == nil && len(r.Records) < MaxListed {
		tx.Put(r)
	}
	return ignoreNotFound(err)
}

// A RecordQuery selects records of the current log; zero fields select all. Package
// server uses it for auditors only: policy permits them to read the whole log.
type RecordQuery struct {
	Kinds       []audit.Kind
	From, To    time.Time // from From until just before To
	Entitlement string
	Party       string // an identity that caused the record, or that its request, lease or block is about
	Text        string // in the record, or in a text that is stored next to it; in any case
	Before      int64  // page: only records with a lower index; zero: from the newest
	Limit       int
}

// A RecordPage is a page of records, the newest first. A search reads a bounded number
// of records, so a page may be short or empty before the end of the log.
type RecordPage struct {
	Items      []audit.Item
	Next       int64     // Before of the next page; zero: the search is complete
	SearchedTo int64     // the oldest record that this page considered
	SearchedAt time.Time // its time; zero: the page considered none
}
