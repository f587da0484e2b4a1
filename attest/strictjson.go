package attest

import (
	"bytes"
	"encoding/json"
	"errors"
	"strconv"
	"time"
	"unicode/utf8"
)

// Errors of members. They must not quote the input, which may be a secret.
var (
	errNotObject = errors.New("is not a JSON object")
	errDuplicate = errors.New("has a member twice (RFC 7519, section 4)")
	errTooDeep   = errors.New("is nested too deeply")
	errNumber    = errors.New("has a number that is too large for a JSON parser (RFC 8259, section 6)")
	errSurrogate = errors.New("has an escape of half a character (RFC 8259, section 8.2)")
)

// maxDepth limits the nesting of claims.
const maxDepth = 16

// A member is a member of a JSON object. Its value is valid JSON.
type member struct {
	name  string
	value []byte
}

// members returns the members of the JSON object raw. It rejects what parsers read
// differently, at every depth: duplicate members, text that is not UTF-8, halves of
// surrogate pairs, and numbers that overflow.
func members(raw []byte) ([]member, error) {
	if !utf8.Valid(raw) || !json.Valid(raw) {
		return nil, errNotObject
	}
	if hasLoneSurrogate(raw) {
		return nil, errSurrogate
	}
	value := (&cursor{raw}).value()
	if value[0] != '{' {
		return nil, errNotObject
	}
	return object(value, maxDepth)
}

// object returns the members of an object, which is valid JSON.
func object(raw []byte, depth int) ([]member, error) {
	if depth == 0 {
		return nil, errTooDeep
	}
	list := make([]member, 0, 8)
	for c := inside(raw); c.more(); {
		name := text(c.value())
		m := member{name, c.value()}
		if err := strict(m.value, depth-1); err != nil {
			return nil, err
		}
		list = append(list, m)
	}
	if !distinct(list) {
		return nil, errDuplicate
	}
	return list, nil
}

// strict returns an error if the value raw, which is valid JSON, is ambiguous.
func strict(raw []byte, depth int) error {
	if depth == 0 {
		return errTooDeep
	}
	switch raw[0] {
	case '{':
		_, err := object(raw, depth)
		return err
	case '[':
		for c := inside(raw); c.more(); {
			if err := strict(c.value(), depth-1); err != nil {
				return err
			}
		}
	case '-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9':
		if _, err := strconv.ParseFloat(string(raw), 64); err != nil {
			return errNumber
		}
	}
	return nil
}

// distinct reports whether all members have different names. Comparing each pair is
// fast for few members. An attacker may send many, so those go into a map.
func distinct(list []member) bool {
	if len(list) > 16 {
		seen := make(map[string]bool, len(list))
		for _, m := range list {
			seen[m.name] = true
		}
		return len(seen) == len(list)
	}
	for i, m := range list {
		for _, before := range list[:i] {
			if m.name == before.name {
				return false
			}
		}
	}
	return true
}

// A cursor moves over valid JSON.
type cursor struct{ rest []byte }

// inside returns a cursor at the first name or value inside an object or a list.
func inside(raw []byte) *cursor { return &cursor{raw[1 : len(raw)-1]} }

// more reports whether another name or value follows.
func (c *cursor) more() bool {
	c.rest = bytes.TrimLeft(c.rest, " \t\r\n,:")
	return len(c.rest) > 0
}

// value returns the next name or value and moves past it.
func (c *cursor) value() []byte {
	c.more()
	n := length(c.rest)
	value := c.rest[:n]
	c.rest = c.rest[n:]
	return value
}

// length returns the length of the value at the start of raw.
func length(raw []byte) int {
	depth := 0
	for i := 0; i < len(raw); i++ {
		switch raw[i] {
		case '"':
			i += stringLength(raw[i:]) - 1
		case '{', '[':
			depth++
			continue
		case '}', ']':
			depth--
		default:
			if depth > 0 {
				continue
			}
			if n := bytes.IndexAny(raw, " \t\r\n,:"); n >= 0 {
				return n
			}
			return len(raw)
		}
		if depth == 0 {
			return i + 1
		}
	}
	return len(raw)
}

// stringLength returns the length of the string at the start of raw, with its
// quotation marks.
func stringLength(raw []byte) int {
	for i := 1; i < len(raw); i++ {
		switch raw[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return len(raw)
}

// hasLoneSurrogate reports whether a string in raw has an escape of one half of a
// surrogate pair without the other. Parsers replace it, keep it or refuse it.
func hasLoneSurrogate(raw []byte) bool {
	for {
		i := bytes.IndexByte(raw, '\\')
		if i < 0 {
			return false
		}
		first, rest := unit(raw[i:])
		raw = rest
		switch first & 0xfc00 {
		case 0xdc00:
			return true
		case 0xd800:
			second, rest := unit(raw)
			if second&0xfc00 != 0xdc00 {
				return true
			}
			raw = rest
		}
	}
}

// unit returns the UTF-16 code unit of the escape \uXXXX at the start of raw, or 0,
// and what follows the escape.
func unit(raw []byte) (code uint64, rest []byte) {
	if len(raw) < 2 || raw[0] != '\\' {
		return 0, raw
	}
	if raw[1] != 'u' || len(raw) < 6 {
		return 0, raw[2:]
	}
	code, _ = strconv.ParseUint(string(raw[2:6]), 16, 16)
	return code, raw[6:]
}

// text returns the value of a JSON string, or "" for any other JSON.
func text(raw []byte) string {
	if len(raw) == 0 || raw[0] != '"' {
		return ""
	}
	if bytes.IndexByte(raw, '\\') < 0 {
		return string(raw[1 : len(raw)-1])
	}
	var s string
	if json.Unmarshal(raw, &s) != nil {
		return ""
	}
	return s
}

// maxDate is the largest NumericDate, in the year 36812. No calculation with it
// overflows.
const maxDate = 1 << 40

var errNotDate = errors.New("not a time in seconds since 1970 (RFC 7519, section 2)")

// numericDate parses a NumericDate (RFC 7519, section 2), which may have a fraction.
func numericDate(raw []byte) (time.Time, error) {
	if len(raw) == 0 || raw[0] < '0' || raw[0] > '9' || !json.Valid(raw) {
		return time.Time{}, errNotDate
	}
	n, err := strconv.ParseFloat(string(raw), 64)
	if err != nil || n > maxDate {
		return time.Time{}, errNotDate
	}
	whole := int64(n)
	return time.Unix(whole, int64((n-float64(whole))*1e9)), nil
}
