package audit

import (
	"bytes"
	"errors"
	"fmt"
	"time"
)

// An Outline is what a leaf states at its top level. Glance reads it in a fraction of the
// time that Decode takes, for readers that pass over many records.
type Outline struct {
	Kind    Kind
	Time    time.Time
	Request []byte // canonical JSON; nil: none
	Lease   []byte // canonical JSON; nil: none
}

// Files is Entry.Files for the entry of the leaf. A canonical string has no bare quotation
// mark, so a text in the request does not look like one of its keys.
func (o *Outline) Files() (files, breakGlass bool) {
	return bytes.Contains(o.Request, []byte(`"ttl":`)), bytes.Contains(o.Request, []byte(`"break_glass":`))
}

var errOutline = errors.New("it is not a canonical record")

// Glance reads the outline of a leaf that Entry wrote. It does not check the leaf; Decode
// does.
func Glance(leaf []byte) (o Outline, err error) {
	if len(leaf) == 0 || leaf[0] != '{' {
		return o, fmt.Errorf("reading the outline of a record: %w", errOutline)
	}
	var at []byte
	rest := leaf[1:]
	for len(rest) > 0 && rest[0] == '"' {
		key, after := cutValue(rest)
		if len(after) == 0 || after[0] != ':' {
			break
		}
		value, after := cutValue(after[1:])
		switch string(key) {
		case `"kind"`:
			o.Kind = Kind(bytes.Trim(value, `"`))
		case `"lease"`:
			o.Lease = value
		case `"request"`:
			o.Request = value
		case `"time"`:
			at = bytes.Trim(value, `"`)
		}
		if len(after) == 0 || after[0] != ',' {
			break
		}
		rest = after[1:]
	}
	var ok bool
	if o.Time, ok = parseTime(string(at)); !ok || o.Kind == "" {
		return o, fmt.Errorf("reading the outline of a record: %w", errOutline)
	}
	return o, nil
}

// cutValue cuts one JSON value from the start of the text. In canonical JSON nothing
// but commas, colons and brackets is between strings, numbers and words.
func cutValue(text []byte) (value, after []byte) {
	depth := 0
	for i := 0; i < len(text); {
		switch text[i] {
		case '"':
			i += stringLength(text[i:])
		case '{', '[':
			depth++
			i++
			continue
		case '}', ']':
			depth--
			i++
		case ',', ':':
			i++
			continue
		default:
			for i++; i < len(text) && text[i] != ',' && text[i] != '}' && text[i] != ']'; i++ {
			}
		}
		if depth <= 0 {
			return text[:i], text[i:]
		}
	}
	return text, nil
}

// stringLength returns the length of the JSON string that begins the text.
func stringLength(text []byte) int {
	for i := 1; ; {
		n := bytes.IndexByte(text[i:], '"')
		if n < 0 {
			return len(text)
		}
		i += n + 1
		escapes := 0
		for text[i-2-escapes] == '\\' {
			escapes++
		}
		if escapes%2 == 0 { // the quotation mark is not escaped
			return i
		}
	}
}
