package store

import (
	"encoding/binary"

	"accessbroker.internal/broker"
)

// A request and a lease list the records of the log that are about them
// (broker.RecordID). The indexes are known only within a group: when a member
// joins it, after everything that the members before it appended. So the list is
// the last field of a body, and an index is added to it without decoding the row:
// one more field with the same tag.

const (
	recordsTag    = 63 // later fields of these rows have lower tags
	recordsHeader = 1  // bytes of the field's header
)

func (t table) listsRecords() bool { return t == requests || t == leases }

// records decodes the list. It is not encoded with the row: see keepRecords.
func (c *coder) records(list *[]broker.RecordID) {
	for c.reading && c.take(recordsTag, number) {
		*list = append(*list, broker.RecordID(c.varint()))
	}
}

// recordList returns the encoded list of a body.
func recordList(body []byte) []byte {
	c, err := readCoder(body)
	if err != nil || !c.take(recordsTag, number) {
		return nil
	}
	return body[c.at-recordsHeader:]
}

// keepRecords copies the list of the replaced row; replaced is nil for a new row. A
// row that was first put without a record never gets a list, because the list would
// look complete without being so.
func (r *row) keepRecords(replaced []byte) {
	if !r.table.listsRecords() {
		return
	}
	list := recordList(replaced)
	r.lists = replaced == nil || len(list) > 0
	r.body = append(r.body, list...)
}

// addRecords adds n records of a log, from first on, to the row's list.
func (r *row) addRecords(epoch, first int64, n int) {
	if !r.lists {
		return
	}
	for i := range int64(n) {
		r.body = binary.AppendUvarint(r.body, recordsTag<<1|number)
		r.body = binary.AppendVarint(r.body, int64(broker.NewRecordID(epoch, first+i)))
	}
}
