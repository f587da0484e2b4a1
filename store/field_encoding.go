package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

// A codec walks the fields of a row and writes or reads them. One walk for
// both keeps the two the same.
//
// A body is a version byte and then fields in the order of their tags, each a
// header (tag and whether a length follows) and a value; zero values are left
// out. Fields that a reader doesn't know are skipped, so fields can be added
// without rewriting rows; a tag is never used for anything else again.
type codec struct {
	reading bool
	buf     []byte
	at      int
	err     error
}

// bodyVersion is the first byte of every body.
const bodyVersion = 1

var errBody = errors.New("the row is damaged, or was written by a newer version")

// A field's value is a number, or bytes behind their length.
const (
	number = 0
	length = 1
)

func (c *codec) header(tag, kind uint64) { c.buf = binary.AppendUvarint(c.buf, tag<<1|kind) }

// take says whether the next field has the tag, and moves behind its header.
// Fields before it are skipped.
func (c *codec) take(tag, kind uint64) bool {
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

func (c *codec) uvarint() uint64 {
	v, n := binary.Uvarint(c.buf[c.at:])
	if n <= 0 {
		c.err = errBody
		return 0
	}
	c.at += n
	return v
}

// slice gives the next n bytes. They are the body's.
func (c *codec) slice(n uint64) []byte {
	if c.err != nil || n > uint64(len(c.buf)-c.at) {
		c.err = errBody
		return nil
	}
	b := c.buf[c.at : c.at+int(n)]
	c.at += int(n)
	return b
}

func (c *codec) put(tag uint64, b []byte) {
	c.header(tag, length)
	c.buf = binary.AppendUvarint(c.buf, uint64(len(b)))
	c.buf = append(c.buf, b...)
}

func (c *codec) text(tag uint64, s *string) {
	if c.reading {
		if c.take(tag, length) {
			*s = string(c.slice(c.uvarint()))
		}
	} else if *s != "" {
		c.putText(tag, *s)
	}
}

func (c *codec) putText(tag uint64, s string) {
	c.header(tag, length)
	c.buf = binary.AppendUvarint(c.buf, uint64(len(s)))
	c.buf = append(c.buf, s...)
}

func (c *codec) bytes(tag uint64, b *[]byte) {
	if c.reading {
		if c.take(tag, length) {
			*b = slices.Clone(c.slice(c.uvarint()))
		}
	} else if len(*b) > 0 {
		c.put(tag, *b)
	}
}

// array is a field of fixed length: an id, a digest, a salt.
func (c *codec) array(tag uint64, b []byte) {
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

func (c *codec) int64(tag uint64, n *int64) {
	if c.reading {
		if c.take(tag, number) {
			v := c.uvarint()
			*n = int64(v>>1) ^ -int64(v&1) // zigzag, as in encoding/binary
		}
	} else if *n != 0 {
		c.header(tag, number)
		c.buf = binary.AppendVarint(c.buf, *n)
	}
}

func (c *codec) int(tag uint64, n *int) {
	v := int64(*n)
	c.int64(tag, &v)
	*n = int(v)
}

func (c *codec) flag(tag uint64, b *bool) {
	v := int64(0)
	if *b {
		v = 1
	}
	c.int64(tag, &v)
	*b = v != 0
}

func (c *codec) duration(tag uint64, d *time.Duration) { c.int64(tag, (*int64)(d)) }

// time keeps nanoseconds since 1970, so years 1678 to 2262, and the zero time.
func (c *codec) time(tag uint64, t *time.Time) {
	var n int64
	if !c.reading && !t.IsZero() {
		n = t.UnixNano()
	}
	c.int64(tag, &n)
	if c.reading && n != 0 {
		*t = time.Unix(0, n).UTC()
	}
}

func (c *codec) texts(tag uint64, list *[]string) {
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

// sub is a field that has fields itself.
func sub[T any](c *codec, tag uint64, v *T, fields func(*T, *codec)) {
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

// subs is a field for each element of a list.
func subs[T any](c *codec, tag uint64, list *[]T, fields func(*T, *codec)) {
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

// wrap makes what was written since start the value of a field.
func (c *codec) wrap(tag uint64, start int) {
	var head [2 * binary.MaxVarintLen64]byte
	h := binary.AppendUvarint(head[:0], tag<<1|length)
	h = binary.AppendUvarint(h, uint64(len(c.buf)-start))
	c.buf = slices.Insert(c.buf, start, h...)
}

// inner reads the fields of a value, and no further.
func (c *codec) inner(fields func()) {
	value := c.slice(c.uvarint())
	buf, at := c.buf, c.at
	c.buf, c.at = value, 0
	fields()
	c.buf, c.at = buf, at
}

// pairs is a map as a sorted list.
func pairs[V any](c *codec, tag uint64, m *map[string]V, value func(*V, *codec)) {
	type pair struct {
		key   string
		value V
	}
	var list []pair
	if !c.reading && len(*m) > 0 {
		for _, key := range slices.Sorted(maps.Keys(*m)) {
			list = append(list, pair{key, (*m)[key]})
		}
	}
	subs(c, tag, &list, func(p *pair, c *codec) {
		c.text(1, &p.key)
		value(&p.value, c)
	})
	if c.reading && len(list) > 0 {
		*m = make(map[string]V, len(list))
		for _, p := range list {
			(*m)[p.key] = p.value
		}
	}
}

// encode gives the body of a row.
func encode[T any](v *T, fields func(*T, *codec)) []byte {
	c := &codec{buf: append(make([]byte, 0, 512), bodyVersion)}
	fields(v, c)
	return c.buf
}

// decode reads a body into v.
func decode[T any](body []byte, v *T, fields func(*T, *codec)) error {
	if len(body) == 0 || body[0] != bodyVersion {
		return errBody
	}
	c := &codec{reading: true, buf: body, at: 1}
	fields(v, c)
	if c.err != nil {
		return fmt.Errorf("at byte %d: %w", c.at, c.err)
	}
	return nil
}
