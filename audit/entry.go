package audit

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"time"
)

// An Entry is a record made ready for the log: its canonical bytes, in which
// only the time is still to be set, and the openings of its commitments. It is
// not safe for concurrent use.
type Entry struct {
	kind     Kind
	hashed   []byte // leafPrefix and the leaf: what is hashed
	timeAt   int    // offset of the time's digits in hashed
	openings []byte

	// Index and LeafHash are set by the store once the entry is durable.
	Index    int64
	LeafHash Digest
}

// leafPrefix separates the hashes of leaves from those of nodes (RFC 6962,
// section 2.1).
const leafPrefix = 0

// MaxOpenings bounds what may be kept beside a leaf.
const MaxOpenings = 1 << 18

// Entry encodes the record. It refuses what has no canonical form (invalid
// UTF-8, a duration that is not whole seconds), what is over its bound, and
// openings that do not open a commitment of the record.
func (r Record) Entry() (*Entry, error) {
	c := codec{mode: writing, buf: append(make([]byte, 0, 1024), leafPrefix)}
	if r.Kind == "" {
		return nil, fmt.Errorf("encoding a record: kind: missing")
	}
	c.open()
	r.fields(&c)
	c.close("")
	if c.err != nil {
		return nil, fmt.Errorf("encoding a record: %w", c.err)
	}
	e := &Entry{kind: r.Kind, hashed: c.buf, timeAt: c.timeAt, openings: appendOpenings(nil, r.Openings)}
	switch {
	case len(e.Leaf()) > MaxLeaf:
		return nil, fmt.Errorf("encoding a record: it takes %d bytes, more than the %d that an entry may have", len(e.Leaf()), MaxLeaf)
	case len(e.openings) > MaxOpenings:
		return nil, fmt.Errorf("encoding a record: its texts take %d bytes, more than the %d that are kept", len(e.openings), MaxOpenings)
	}
	if err := r.CheckOpenings(r.Openings); err != nil {
		return nil, fmt.Errorf("encoding a record: %w", err)
	}
	return e, nil
}

// Kind says what the record is about.
func (e *Entry) Kind() Kind { return e.kind }

// Leaf gives the canonical bytes. They are the entry's: don't change them.
func (e *Entry) Leaf() []byte { return e.hashed[1:] }

// Openings gives what is stored beside the leaf; nil: nothing.
func (e *Entry) Openings() []byte { return e.openings }

// SetTime writes the time into the leaf. Years have four digits.
func (e *Entry) SetTime(t time.Time) {
	// Not in place: AppendFormat scribbles past the end of what it returns.
	var text [len(TimeFormat) + 8]byte
	copy(e.hashed[e.timeAt:], t.UTC().AppendFormat(text[:0], TimeFormat))
}

// Hash is the leaf's hash in the tree (RFC 6962, section 2.1).
func (e *Entry) Hash() Digest { return sha256.Sum256(e.hashed) }

// versionSuffix ends every record of a version that this package knows.
var versionSuffix = fmt.Appendf(nil, `"v":%d}`, Version)

// Decode reads the bytes of a leaf. It accepts exactly what Entry writes:
// unknown fields, fields out of order, and any other spelling of the same JSON
// are errors, so that a leaf means one thing to every reader.
func Decode(leaf []byte) (Record, error) {
	if len(leaf) > MaxLeaf {
		return Record{}, fmt.Errorf("decoding a record: %d bytes are more than the %d that an entry may have", len(leaf), MaxLeaf)
	}
	if !bytes.HasSuffix(leaf, versionSuffix) {
		return Record{}, fmt.Errorf("decoding a record: it does not end with %s: damaged, or written by a newer version", versionSuffix)
	}
	var r Record
	c := codec{mode: reading, buf: leaf}
	c.open()
	r.fields(&c)
	c.close("record")
	switch {
	case c.err != nil:
		return Record{}, fmt.Errorf("decoding a record: %w", c.err)
	case c.at != len(leaf):
		return Record{}, fmt.Errorf("decoding a record: %d bytes after its end", len(leaf)-c.at)
	case r.Kind == "":
		return Record{}, fmt.Errorf("decoding a record: kind: missing")
	}
	return r, nil
}
