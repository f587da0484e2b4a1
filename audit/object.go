package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// An Object builds a JSON object in canonical form (RFC 8785). Members with zero
// values are omitted, as in records. Keys are ASCII and may be set in any order,
// each once. An Object is not safe for concurrent use.
type Object struct {
	members []member
	values  []byte // encoded values of all members, in the order in which they were set
}

type member struct {
	key        string
	start, end int // offsets in values
}

// NewObject returns an empty object.
func NewObject() *Object {
	return &Object{members: make([]member, 0, 12), values: make([]byte, 0, 512)}
}

// objects holds empty objects for reuse: a request is hashed several times on its way.
var objects = sync.Pool{New: func() any { return NewObject() }}

// borrowObject returns an empty object, which its user must return with giveBack.
func borrowObject() *Object { return objects.Get().(*Object) }

// giveBack clears the object, which may have held a caller's text, for reuse.
func (o *Object) giveBack() {
	clear(o.members)
	clear(o.values)
	o.members, o.values = o.members[:0], o.values[:0]
	objects.Put(o)
}

// set adds a member whose value is everything in values from start.
func (o *Object) set(key string, start int) *Object {
	o.members = append(o.members, member{key, start, len(o.values)})
	return o
}

// String sets a member to a string, which must be valid UTF-8.
func (o *Object) String(key, s string) *Object {
	if s == "" {
		return o
	}
	return o.text(key, s)
}

func (o *Object) text(key, s string) *Object {
	start := len(o.values)
	o.values = AppendString(o.values, s)
	return o.set(key, start)
}

// Seconds sets a member to the whole seconds of a duration.
func (o *Object) Seconds(key string, d time.Duration) *Object {
	if d == 0 {
		return o
	}
	start := len(o.values)
	o.values = strconv.AppendInt(o.values, int64(d/time.Second), 10)
	return o.set(key, start)
}

// Hex sets a member to a digest in lower-case hexadecimal.
func (o *Object) Hex(key string, d Digest) *Object {
	if d.IsZero() {
		return o
	}
	start := len(o.values)
	o.values = append(o.values, '"')
	o.values = hex.AppendEncode(o.values, d[:])
	o.values = append(o.values, '"')
	return o.set(key, start)
}

// StringList sets a member to a list of strings, in their given order.
func (o *Object) StringList(key string, list []string) *Object {
	if len(list) == 0 {
		return o
	}
	start := len(o.values)
	for i, s := range list {
		o.values = append(o.values, "[,"[min(i, 1)])
		o.values = AppendString(o.values, s)
	}
	o.values = append(o.values, ']')
	return o.set(key, start)
}

// Object sets a member to an object.
func (o *Object) Object(key string, inner *Object) *Object {
	if len(inner.members) == 0 {
		return o
	}
	start := len(o.values)
	o.values = inner.appendTo(o.values)
	return o.set(key, start)
}

// Bytes returns the encoded object. Setting a key twice is an error of the caller:
// the result is then not canonical.
func (o *Object) Bytes() []byte { return o.appendTo(make([]byte, 0, 512)) }

func (o *Object) appendTo(b []byte) []byte {
	slices.SortFunc(o.members, func(a, b member) int { return strings.Compare(a.key, b.key) })
	b = append(b, '{')
	for i, m := range o.members {
		if i > 0 {
			b = append(b, ',')
		}
		b = AppendString(b, m.key)
		b = append(b, ':')
		b = append(b, o.values[m.start:m.end]...)
	}
	return append(b, '}')
}

// AppendStrings appends a map of strings as an object in canonical form.
func AppendStrings(b []byte, m map[string]string) []byte {
	o := NewObject()
	for key, s := range m {
		o.text(key, s)
	}
	return o.appendTo(b)
}

const hexDigits = "0123456789abcdef"

// AppendString appends a string of valid UTF-8 as RFC 8785, section 3.2.2.2,
// requires: it escapes only quotes, backslashes and control characters.
func AppendString(b []byte, s string) []byte {
	b = append(b, '"')
	start := 0
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		b = append(b, s[start:i]...)
		b = appendEscape(b, c)
		start = i + 1
	}
	b = append(b, s[start:]...)
	return append(b, '"')
}

func appendEscape(b []byte, c byte) []byte {
	switch c {
	case '"', '\\':
		return append(b, '\\', c)
	case '\b':
		return append(b, '\\', 'b')
	case '\t':
		return append(b, '\\', 't')
	case '\n':
		return append(b, '\\', 'n')
	case '\f':
		return append(b, '\\', 'f')
	case '\r':
		return append(b, '\\', 'r')
	}
	return append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
}

// HashObject returns the SHA-256 of an object, prefixed with a domain and a
// newline. The domain separates the hash from every other one.
func HashObject(domain string, o *Object) Digest {
	var text [1024]byte // on the stack; a longer object is appended on the heap
	return sha256.Sum256(o.appendTo(append(append(text[:0], domain...), '\n')))
}
