package store

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"
)

// A coder encodes the fields of a row, or decodes them. One list of fields
// serves both directions, so they cannot differ.
//
// A body is a version byte and then fields in the order of their tags. A field
// is a header (its tag, and whether a length follows) and a value; zero values
// are left out. A reader skips fields that it does not know, so fields can be
// added without rewriting rows. A tag is never used for anything else again.
type coder struct {
	reading bool
	buf     []byte
	at      int
	err     error
}

// bodyVersion is the first byte of every body.
const bodyVersion = 1

var errBody = errors.New("the row is damaged, or was written by a newer version")

// A field's value is a number, or bytes preceded by their length.
const (
	number = 0
	length = 1
)

// fields encodes or decodes a list of fields, each a pointer to its value. The
// tag of a field is its place in the list, from 1; nil reserves the tag of a
// field that no longer exists.
func (c *coder) fields(list ...any) {
	for i, v := range list {
		tag := uint64(i + 1)
		switch v := v.(type) {
		case nil:
		case *string:
			c.text(tag, v)
		case *[]string:
			c.texts(tag, v)
		case *[]byte:
			c.bytes(tag, v)
		case *bool:
			c.flag(tag, v)
		case *int:
			integer(c, tag, v)
		case *int64:
			c.int64(tag, v)
		case *uint32:
			integer(c, tag, v)
		case *time.Duration:
			c.int64(tag, (*int64)(v))
		case *time.Time:
			c.time(tag, v)
		case *netip.Addr:
			c.address(tag, v)
		case *[16]byte:
			c.array(tag, v[:])
		case *[32]byte:
			c.array(tag, v[:])
		default:
			c.domainField(tag, v)
		}
	}
}

func (c *coder) header(tag, kind uint64) { c.buf = binary.AppendUvarint(c.buf, tag<<1|kind) }

// take reports whether the next field has the tag, and moves past its header.
// It skips the fields before it.
func (c *coder) take(tag, kind uint64) bool {
	for c.err == nil && c.at < len(c.buf) {
		h, n := binary.Uvarint(c.buf[c.at:])
		switch {
		case n <= 0:
			c.err = errBody
		case h == tag<<1|kind:
			c.at += n
			return true
		case h>>1 > tag:
			return false
		default:
			c.at += n
			if size := c.uvarint(); h&1 == length {
				c.slice(size)
			}
		}
	}
	return false
}

func (c *coder) uvarint() uint64 {
	v, n := binary.Uvarint(c.buf[c.at:])
	if n <= 0 {
		c.err = errBody
		return 0
	}
	c.at += n
	return v
}

// slice returns the next n bytes. They alias the body.
func (c *coder) slice(n uint64) []byte {
	if c.err != nil || n > uint64(len(c.buf)-c.at) {
		c.err = errBody
		return nil
	}
	b := c.buf[c.at : c.at+int(n)]
	c.at += int(n)
	return b
}

func (c *coder) put(tag uint64, b []byte) {
	c.header(tag, length)
	c.buf = binary.AppendUvarint(c.buf, uint64(len(b)))
	c.buf = append(c.buf, b...)
}

func (c *coder) text(tag uint64, s *string) {
	if c.reading {
		if c.take(tag, length) {
			*s = string(c.slice(c.uvarint()))
		}
	} else if *s != "" {
		c.putText(tag, *s)
	}
}

func (c *coder) putText(tag uint64, s string) {
	c.header(tag, length)
	c.buf = binary.AppendUvarint(c.buf, uint64(len(s)))
	c.buf = append(c.buf, s...)
}

func (c *coder) bytes(tag uint64, b *[]byte) {
	if c.reading {
		if c.take(tag, length) {
			*b = slices.Clone(c.slice(c.uvarint()))
		}
	} else if len(*b) > 0 {
		c.put(tag, *b)
	}
}

func (c *coder) array(tag uint64, b []byte) {
	if c.reading {
		if c.take(tag, length) && copy(b, c.slice(c.uvarint())) != len(b) {
			c.err = errBody
		}
		return
	}
	for _, x := range b {
		if x != 0 {
			c.put(tag, b)
			return
		}
	}
}

func (c *coder) int64(tag uint64, n *int64) {
	if c.reading {
		if c.take(tag, number) {
			*n = c.varint()
		}
	} else if *n != 0 {
		c.header(tag, number)
		c.buf = binary.AppendVarint(c.buf, *n)
	}
}

// varint reads the zigzag form of binary.AppendVarint.
func (c *coder) varint() int64 {
	v := c.uvarint()
	return int64(v>>1) ^ -int64(v&1)
}

// integer is a field of any other integer type. Encoding only reads the field: rows
// share what decisions have in common.
func integer[T ~int | ~uint8 | ~uint32](c *coder, tag uint64, n *T) {
	v := int64(*n)
	c.int64(tag, &v)
	if c.reading {
		*n = T(v)
	}
}

func (c *coder) flag(tag uint64, b *bool) {
	v := int64(0)
	if *b {
		v = 1
	}
	c.int64(tag, &v)
	if c.reading {
		*b = v != 0
	}
}

// time keeps nanoseconds since 1970 (years 1678 to 2262), and the zero time.
func (c *coder) time(tag uint64, t *time.Time) {
	var n int64
	if !c.reading && !t.IsZero() {
		n = t.UnixNano()
	}
	c.int64(tag, &n)
	if c.reading && n != 0 {
		*t = time.Unix(0, n).UTC()
	}
}

func (c *coder) address(tag uint64, a *netip.Addr) {
	var b []byte
	if !c.reading {
		b, _ = a.AppendBinary(nil) // never fails
	}
	c.bytes(tag, &b)
	if c.reading && len(b) > 0 && a.UnmarshalBinary(b) != nil {
		c.err = errBody
	}
}

func (c *coder) texts(tag uint64, list *[]string) {
	if !c.reading {
		for _, s := range *list {
			c.putText(tag, s)
		}
		return
	}
	for c.take(tag, length) {
		*list = append(*list, string(c.slice(c.uvarint())))
	}
}

// nested is a field whose value has fields itself.
func nested[T any](c *coder, tag uint64, v *T, fields func(*T, *coder)) {
	if c.reading {
		if c.take(tag, length) {
			c.inner(func() { fields(v, c) })
		}
		return
	}
	start := len(c.buf)
	fields(v, c)
	if len(c.buf) > start {
		c.wrap(tag, start)
	}
}

// optional is a nested field that may be nil.
func optional[T any](c *coder, tag uint64, p **T, fields func(*T, *coder)) {
	switch {
	case !c.reading && *p != nil:
		nested(c, tag, *p, fields)
	case c.reading && c.take(tag, length):
		*p = new(T)
		c.inner(func() { fields(*p, c) })
	}
}

// repeated is a nested field for each element of a list.
func repeated[T any](c *coder, tag uint64, list *[]T, fields func(*T, *coder)) {
	if !c.reading {
		for i := range *list {
			start := len(c.buf)
			fields(&(*list)[i], c)
			c.wrap(tag, start)
		}
		return
	}
	for c.take(tag, length) {
		var v T
		c.inner(func() { fields(&v, c) })
		*list = append(*list, v)
	}
}

// mapped is a map as a list of pairs, sorted by key.
func mapped[K cmp.Ordered, V any](c *coder, tag uint64, m *map[K]V) {
	type pair struct {
		key   K
		value V
	}
	var list []pair
	if !c.reading && len(*m) > 0 {
		for _, key := range slices.Sorted(maps.Keys(*m)) {
			list = append(list, pair{key, (*m)[key]})
		}
	}
	repeated(c, tag, &list, func(p *pair, c *coder) { c.fields(&p.key, &p.value) })
	if c.reading && len(list) > 0 {
		*m = make(map[K]V, len(list))
		for _, p := range list {
			(*m)[p.key] = p.value
		}
	}
}

// wrap makes the bytes written since start the value of a field.
func (c *coder) wrap(tag uint64, start int) {
	var head [2 * binary.MaxVarintLen64]byte
	h := binary.AppendUvarint(head[:0], tag<<1|length)
	h = binary.AppendUvarint(h, uint64(len(c.buf)-start))
	c.buf = slices.Insert(c.buf, start, h...)
}

// inner decodes the fields of a value, and reads no further.
func (c *coder) inner(fields func()) {
	value := c.slice(c.uvarint())
	buf, at := c.buf, c.at
	c.buf, c.at = value, 0
	fields()
	c.buf, c.at = buf, at
}

// newCoder returns a coder that encodes.
func newCoder() *coder { return &coder{buf: append(make([]byte, 0, 512), bodyVersion)} }

// readCoder returns a coder that decodes a body.
func readCoder(body []byte) (*coder, error) {
	if len(body) == 0 || body[0] != bodyVersion {
		return nil, errBody
	}
	return &coder{reading: true, buf: body, at: 1}, nil
}

// failure returns the first error of decoding.
func (c *coder) failure() error {
	if c.err != nil {
		return fmt.Errorf("at byte %d: %w", c.at, c.err)
	}
	return nil
}
