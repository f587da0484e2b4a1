package store

import "golang.org/x/mod/sumdb/tlog"

// rowTag is the tag of a row in the encoding of a commitNote, after all other fields.
const rowTag = 32

func (n *commitNote) fields(c *coder) {
	leaves := flatten(n.leaves)
	c.fields(&n.before, &n.head.Epoch, &n.head.Size, (*[32]byte)(&n.head.Root), &n.head.Time, &n.blocks, &leaves, &n.since)
	n.leaves = nil
	for ; len(leaves) >= tlog.HashSize; leaves = leaves[tlog.HashSize:] {
		n.leaves = append(n.leaves, tlog.Hash(leaves[:tlog.HashSize]))
	}
}

func flatten(hashes []tlog.Hash) []byte {
	b := make([]byte, 0, len(hashes)*tlog.HashSize)
	for _, h := range hashes {
		b = append(b, h[:]...)
	}
	return b
}

// encode returns the column changes of the feed.
func (n *commitNote) encode() ([]byte, error) {
	c := &coder{buf: []byte{bodyVersion}}
	n.fields(c)
	for _, r := range n.rows {
		one := &coder{}
		r.noteFields(one, n.kinds)
		if one.err != nil {
			return nil, one.err
		}
		c.put(rowTag, one.buf)
	}
	return c.buf, c.err
}

// decode reads the column changes of the feed. The note keeps the bytes.
func (n *commitNote) decode(changes []byte) error {
	c, err := readCoder(changes)
	if err != nil {
		return err
	}
	n.fields(c)
	n.kinds = kindNumbers{}
	for c.take(rowTag, length) {
		r := &row{}
		one := &coder{reading: true, buf: c.slice(c.uvarint())}
		if r.noteFields(one, n.kinds); one.err != nil {
			return one.err
		}
		if r.table == tableCount {
			continue
		}
		if r.key, err = r.table.key(r.id); err != nil {
			return err
		}
		n.rows = append(n.rows, r)
	}
	return c.err
}

// noteFields encodes or decodes what memory needs of a row.
func (r *row) noteFields(c *coder, kinds kindNumbers) {
	number := int64(r.table)
	c.fields(&number, &r.id)
	if number < 0 || number >= int64(tableCount) {
		r.table = tableCount // of a newer version, so memory has nothing of it
		return
	}
	r.table = table(number)
	const first = 3
	switch r.table {
	case blocks, revision, standings:
		c.bytes(first, &r.body)
	case spent:
		c.int64(first, &r.at)
	case leases:
		x := &r.index
		kind := int64(kinds[x.kind])
		request, list, holder := []byte(x.request[:]), []byte(x.listed.List[:]), x.holder
		index := int64(x.listed.Index)
		c.int64(first, &x.liveUntil)
		c.int64(first+1, &x.outlivesUntil)
		c.flag(first+2, &x.revoking)
		c.int64(first+3, &x.stuckFrom)
		c.text(first+4, &x.kind.entitlement)
		c.text(first+5, &x.kind.issuer)
		c.int64(first+6, &kind)
		c.bytes(first+7, &request)
		c.text(first+8, &holder)
		if !x.listed.IsZero() || c.reading {
			c.bytes(first+9, &list)
			c.int64(first+10, &index)
		}
		c.flag(first+11, &x.ended)
		c.flag(first+12, &r.carried)
		if !c.reading {
			return
		}
		if copy(x.request[:], request) != len(x.request) || kind < 0 {
			c.err = errBody
			return
		}
		copy(x.listed.List[:], list)
		x.listed.Index, x.holder = uint32(index), holder
		if kind > 0 { // otherwise the lease has not worked, and is in no table that counts kinds
			kinds[x.kind] = int32(kind)
		}
	}
}
