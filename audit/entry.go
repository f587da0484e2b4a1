package audit

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// An Entry is an encoded record: its canonical bytes, in which only the time can
// still change, and the openings of its commitments. It is not safe for
// concurrent use.
type Entry struct {
	kind     Kind
	hashed   []byte // leafPrefix followed by the leaf
	timeAt   int    // offset of the digits of the time in hashed
	openings []byte
	files    bool // see Files
	glass    bool
	record   Record

	// The store sets Index and LeafHash once the entry is durable.
	Index    int64
	LeafHash Digest
}

// leafPrefix separates leaf hashes from node hashes (RFC 6962, section 2.1).
const leafPrefix = 0

// MaxOpenings is the maximum size of the encoded openings of a record in bytes.
const MaxOpenings = 1 << 18

// Entry encodes the record. It returns an error for a value without a canonical
// form (invalid UTF-8, a duration with fractions of a second), a value over its
// bound, and an opening that does not match a commitment of the record.
func (r Record) Entry() (*Entry, error) {
	if r.Kind == "" {
		return nil, fmt.Errorf("encoding a record: kind: missing")
	}
	e := entries.Get().(*Entry)
	c := codec{mode: writing, buf: append(e.hashed[:0], leafPrefix)}
	c.open()
	r.fields(&c)
	c.close("")
	if c.err != nil {
		return nil, fmt.Errorf("encoding a record: %w", c.err)
	}
	*e = Entry{kind: r.Kind, hashed: c.buf, timeAt: c.timeAt, openings: appendOpenings(nil, r.Openings), record: r}
	if r.Request != nil {
		e.files, e.glass = r.Request.TTL > 0, r.Request.BreakGlass
	}
	switch {
	case len(e.Leaf()) > MaxLeaf:
		return nil, fmt.Errorf("encoding a record: its %d bytes exceed the limit of %d", len(e.Leaf()), MaxLeaf)
	case len(e.openings) > MaxOpenings:
		return nil, fmt.Errorf("encoding a record: the %d bytes of its texts exceed the limit of %d", len(e.openings), MaxOpenings)
	}
	if err := r.CheckOpenings(r.Openings); err != nil {
		return nil, fmt.Errorf("encoding a record: %w", err)
	}
	return e, nil
}

// entries are unused ones, with room for a usual leaf.
var entries = sync.Pool{New: func() any { return &Entry{hashed: make([]byte, 0, 1024)} }}

// maxPooled is the size of the largest leaf whose memory is used again.
const maxPooled = 4096

// Release lets a later Entry use the memory of this one. The caller must not use the
// entry any more, and the store must have finished with it.
func (e *Entry) Release() {
	if cap(e.hashed) <= maxPooled {
		*e = Entry{hashed: e.hashed[:0]}
		entries.Put(e)
	}
}

// Kind returns the kind of the record.
func (e *Entry) Kind() Kind { return e.kind }

// Files reports whether the record has all terms of a request, because its transaction
// files the request, and whether that is a break-glass request.
func (e *Entry) Files() (files, breakGlass bool) { return e.files, e.glass }

// Record returns the encoded record without its time. It is valid until Release, and the
// caller must not change it.
func (e *Entry) Record() *Record { return &e.record }

// Leaf returns the canonical bytes, which are valid until Release. The caller must not
// change them.
func (e *Entry) Leaf() []byte { return e.hashed[1:] }

// Openings returns the encoded openings, which are stored next to the leaf, or
// nil if there are none.
func (e *Entry) Openings() []byte { return e.openings }

// SetTime writes the time into the leaf. The year must have four digits.
func (e *Entry) SetTime(t time.Time) {
	// AppendFormat may write past the end of its result, so it can't write into
	// the leaf directly.
	var text [len(TimeFormat) + 8]byte
	copy(e.hashed[e.timeAt:], t.UTC().AppendFormat(text[:0], TimeFormat))
}

// Hash returns the hash of the leaf in the tree (RFC 6962, section 2.1).
func (e *Entry) Hash() Digest { return sha256.Sum256(e.hashed) }

// LeafHash returns the hash of a leaf in the tree (RFC 6962, section 2.1).
func LeafHash(leaf []byte) Digest { return Digest(tlog.RecordHash(leaf)) }

// versionSuffix ends every record of the version that this package reads.
var versionSuffix = fmt.Appendf(nil, `"v":%d}`, Version)

// Decode decodes a leaf. It accepts exactly what Entry writes: unknown fields,
// fields out of order and every other encoding of the same JSON are errors, so
// that all readers agree on the meaning of a leaf. It does not check the bounds of
// single values.
func Decode(leaf []byte) (Record, error) {
	if len(leaf) > MaxLeaf {
		return Record{}, fmt.Errorf("decoding a record: its %d bytes exceed the limit of %d", len(leaf), MaxLeaf)
	}
	if !bytes.HasSuffix(leaf, versionSuffix) {
		return Record{}, fmt.Errorf("decoding a record: it does not end with %s; it is damaged or from a newer version", versionSuffix)
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
		return Record{}, fmt.Errorf("decoding a record: %d bytes follow its end", len(leaf)-c.at)
	case r.Kind == "":
		return Record{}, fmt.Errorf("decoding a record: kind: missing")
	}
	return r, nil
}
