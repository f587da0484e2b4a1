package audit

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"unicode/utf8"
)

// A codec writes, reads or measures a record by walking the schema. Because one
// walk serves all three, Decode accepts exactly what Entry writes: it reads a
// member only at the place and in the form in which Entry would write it. The
// first error is kept.
type codec struct {
	mode   mode
	buf    []byte // output when writing, input when reading
	at     int    // offset of the next byte to read
	comma  bool   // the current object already has a member
	timeAt int    // offset of the digits of the commit time
	most   int    // maximum size of a record, as measured so far
	err    error
}

type mode uint8

const (
	writing mode = iota
	reading
	measuring
)

func (c *codec) fail(key, format string, args ...any) {
	if c.err == nil {
		c.err = fmt.Errorf("%s: %w", key, fmt.Errorf(format, args...))
	}
}

// member begins a member of the current object. It reports whether the caller
// must write or read the value.
func (c *codec) member(key string, present bool, most int) bool {
	if c.err != nil {
		return false
	}
	switch c.mode {
	case writing:
		if present {
			if c.comma {
				c.buf = append(c.buf, ',')
			}
			c.comma = true
			c.buf = append(append(append(c.buf, '"'), key...), '"', ':')
		}
		return present
	case reading:
		return c.readKey(key)
	default:
		c.most += len(key) + len(`,"":`) + most
		return false
	}
}

func (c *codec) readKey(key string) bool {
	rest := c.buf[c.at:]
	n := 0
	if c.comma {
		n = 1
	}
	if len(rest) < n+len(key)+3 || (c.comma && rest[0] != ',') || rest[n] != '"' ||
		string(rest[n+1:n+1+len(key)]) != key || rest[n+1+len(key)] != '"' || rest[n+2+len(key)] != ':' {
		return false
	}
	c.at += n + len(key) + 3
	c.comma = true
	return true
}

// sub is a member that is itself an object. An object without members is
// omitted.
func sub[T any](c *codec, key string, p **T, fields func(*T, *codec)) {
	start, comma := len(c.buf), c.comma
	if c.mode == measuring {
		*p = new(T)
		c.member(key, true, len("{}"))
		fields(*p, c)
		return
	}
	if !c.member(key, *p != nil, 0) {
		return
	}
	if c.mode == reading {
		*p = new(T)
	}
	c.open()
	first := c.at
	fields(*p, c)
	switch {
	case c.mode == writing && !c.comma:
		c.buf, c.comma = c.buf[:start], comma
		return
	case c.mode == reading && c.at == first:
		c.fail(key, "empty object")
	}
	c.close(key)
}

// open begins an object. close ends it.
func (c *codec) open() {
	c.comma = false
	if c.mode == writing {
		c.buf = append(c.buf, '{')
		return
	}
	c.expect("", '{')
}

func (c *codec) close(key string) {
	c.comma = true
	if c.mode == writing {
		c.buf = append(c.buf, '}')
		return
	}
	c.expect(key, '}')
}

func (c *codec) expect(key string, want byte) {
	if c.err != nil {
		return
	}
	if c.at >= len(c.buf) || c.buf[c.at] != want {
		rest := c.buf[min(c.at, len(c.buf)):]
		c.fail(key, "at byte %d: %q, want %q or the next field of the schema", c.at, rest[:min(len(rest), 24)], want)
		return
	}
	c.at++
}

func (c *codec) text(key string, s *string, most int) {
	if !c.member(key, *s != "", most+len(`""`)) {
		return
	}
	if c.mode == reading {
		if *s = c.readString(key); *s == "" {
			c.fail(key, "empty text")
		}
		return
	}
	start := len(c.buf)
	c.writeString(key, *s)
	if n := len(c.buf) - start - len(`""`); n > most {
		c.fail(key, "%d bytes exceed the limit of %d", n, most)
	}
}

func (c *codec) writeString(key, s string) {
	if !utf8.ValidString(s) {
		c.fail(key, "not valid UTF-8")
		return
	}
	c.buf = AppendString(c.buf, s)
}

// readString accepts a string only in its canonical form.
func (c *codec) readString(key string) string {
	c.expect(key, '"')
	if c.err != nil {
		return ""
	}
	start, escaped, control, ascii := c.at, false, false, true
	for c.at < len(c.buf) && c.buf[c.at] != '"' {
		switch b := c.buf[c.at]; {
		case b == '\\':
			escaped = true
			c.at++
		case b < ' ':
			control = true
		case b >= utf8.RuneSelf:
			ascii = false
		}
		c.at++
	}
	if c.at >= len(c.buf) {
		c.fail(key, "unterminated text")
		return ""
	}
	raw := c.buf[start:c.at]
	c.at++
	if !escaped {
		if control || !ascii && !utf8.Valid(raw) {
			c.fail(key, "not canonical text")
		}
		return string(raw)
	}
	var s string
	quoted := c.buf[start-1 : c.at]
	if json.Unmarshal(quoted, &s) != nil || !bytes.Equal(AppendString(nil, s), quoted) {
		c.fail(key, "not canonical text")
	}
	return s
}

// readOpening reads an opening in the form of appendOpenings.
func (c *codec) readOpening() (o Opening) {
	c.open()
	salt := ""
	if c.member("salt", true, 0) {
		salt = c.readString("salt")
	}
	if len(salt) != hex.EncodedLen(len(o.Salt)) {
		c.fail("salt", "not 16 bytes")
		return o
	}
	if _, err := hex.Decode(o.Salt[:], []byte(salt)); err != nil {
		c.fail("salt", "%w", err)
	}
	if !c.member("text", true, 0) {
		c.fail("text", "missing")
		return o
	}
	o.Text = c.readString("text")
	c.close("opening")
	return o
}
