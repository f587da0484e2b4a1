package verify

import (
	"errors"
	"strconv"
	"strings"
	"unicode/utf8"
)

// This file reads JSON that every parser reads alike (RFC 7493). encoding/json takes the last
// of several members with the same name, ignores the case of names and replaces bad text, so
// two readers of one token could disagree on what it states.

var errJSON = errors.New("not strict JSON")

const (
	maxDepth   = 16
	manyFields = 8 // from which a map finds repeated names
)

// A value is a JSON value.
type value struct {
	kind   byte   // one of { [ " 0 t f n
	text   string // of a string: decoded; of a number: as written
	list   []value
	fields []field
	raw    []byte // as written
}

type field struct {
	name  string
	value value
}

// parseObject reads an object.
func parseObject(b []byte) (value, error) {
	if !utf8.Valid(b) {
		return value{}, errJSON
	}
	p := parser{b: b}
	p.space()
	v, err := p.value(maxDepth)
	if err != nil {
		return value{}, err
	}
	if p.space(); p.i != len(b) || v.kind != '{' {
		return value{}, errJSON
	}
	return v, nil
}

// get returns a member of an object. Names are compared exactly.
func (v *value) get(name string) (value, bool) {
	for i := range v.fields {
		if v.fields[i].name == name {
			return v.fields[i].value, true
		}
	}
	return value{}, false
}

// textOf returns a member that is a string; "" if there is none.
func (v *value) textOf(name string) string {
	m, ok := v.get(name)
	if !ok || m.kind != '"' {
		return ""
	}
	return m.text
}

// optionalText is textOf, but a member of another type is an error.
func (v *value) optionalText(name string) (string, error) {
	m, ok := v.get(name)
	if ok && m.kind != '"' {
		return "", errJSON
	}
	return m.text, nil
}

// number returns a member that is a number. A NumericDate may have a fraction (RFC 7519,
// section 2), which is cut off.
func (v *value) number(name string) (n int64, ok bool) {
	m, ok := v.get(name)
	if !ok || m.kind != '0' {
		return 0, false
	}
	if n, err := strconv.ParseInt(m.text, 10, 64); err == nil {
		return n, -maxNumber < n && n < maxNumber
	}
	f, err := strconv.ParseFloat(m.text, 64)
	if err != nil || f <= -maxNumber || f >= maxNumber {
		return 0, false
	}
	return int64(f), true
}

// maxNumber is the first integer that a double can't tell from the next one.
const maxNumber = 1 << 53

type parser struct {
	b []byte
	i int
}

func (p *parser) peek() byte {
	if p.i < len(p.b) {
		return p.b[p.i]
	}
	return 0
}

func (p *parser) space() {
	for p.i < len(p.b) && strings.IndexByte(" \t\r\n", p.b[p.i]) >= 0 {
		p.i++
	}
}

// take skips c and the space after it, if c is next.
func (p *parser) take(c byte) bool {
	if p.peek() != c {
		return false
	}
	p.i++
	p.space()
	return true
}

func (p *parser) value(depth int) (v value, err error) {
	if depth == 0 {
		return v, errJSON
	}
	from := p.i
	switch c := p.peek(); {
	case c == '{':
		v.kind, err = '{', p.object(&v, depth)
	case c == '[':
		v.kind, err = '[', p.array(&v, depth)
	case c == '"':
		v.kind = '"'
		v.text, err = p.string()
	case c == '-' || '0' <= c && c <= '9':
		v.kind = '0'
		v.text, err = p.number()
	default:
		v.kind, err = c, p.word(c)
	}
	v.raw = p.b[from:p.i]
	return v, err
}

func (p *parser) word(c byte) error {
	for _, word := range []string{"true", "false", "null"} {
		if c == word[0] && strings.HasPrefix(string(p.b[p.i:min(len(p.b), p.i+len(word))]), word) {
			p.i += len(word)
			return nil
		}
	}
	return errJSON
}

func (p *parser) object(v *value, depth int) error {
	p.i++
	p.space()
	if p.peek() == '}' {
		p.i++
		return nil
	}
	var names map[string]bool
	for {
		if p.peek() != '"' {
			return errJSON
		}
		name, err := p.string()
		if err != nil {
			return err
		}
		if names, err = repeated(v.fields, names, name); err != nil {
			return err
		}
		p.space()
		if !p.take(':') {
			return errJSON
		}
		member, err := p.value(depth - 1)
		if err != nil {
			return err
		}
		v.fields = append(v.fields, field{name, member})
		p.space()
		if p.take(',') {
			continue
		}
		if p.peek() != '}' {
			return errJSON
		}
		p.i++
		return nil
	}
}

// repeated returns an error if a member of the name was read before.
func repeated(before []field, names map[string]bool, name string) (map[string]bool, error) {
	if names == nil {
		for i := range before {
			if before[i].name == name {
				return nil, errJSON
			}
		}
		if len(before) < manyFields {
			return nil, nil
		}
		names = make(map[string]bool, 2*manyFields)
		for i := range before {
			names[before[i].name] = true
		}
	}
	if names[name] {
		return nil, errJSON
	}
	names[name] = true
	return names, nil
}

func (p *parser) array(v *value, depth int) error {
	p.i++
	p.space()
	if p.peek() == ']' {
		p.i++
		return nil
	}
	for {
		element, err := p.value(depth - 1)
		if err != nil {
			return err
		}
		v.list = append(v.list, element)
		p.space()
		if p.take(',') {
			continue
		}
		if p.peek() != ']' {
			return errJSON
		}
		p.i++
		return nil
	}
}

func (p *parser) number() (string, error) {
	from := p.i
	if p.peek() == '-' {
		p.i++
	}
	if p.peek() == '0' {
		p.i++
	} else if !p.digits() {
		return "", errJSON
	}
	if p.peek() == '.' {
		p.i++
		if !p.digits() {
			return "", errJSON
		}
	}
	if c := p.peek(); c == 'e' || c == 'E' {
		p.i++
		if c := p.peek(); c == '+' || c == '-' {
			p.i++
		}
		if !p.digits() {
			return "", errJSON
		}
	}
	return string(p.b[from:p.i]), nil
}

func (p *parser) digits() bool {
	from := p.i
	for c := p.peek(); '0' <= c && c <= '9'; c = p.peek() {
		p.i++
	}
	return p.i > from
}

func (p *parser) string() (string, error) {
	p.i++
	from := p.i
	for p.i < len(p.b) {
		switch c := p.b[p.i]; {
		case c == '"':
			text := string(p.b[from:p.i])
			p.i++
			return text, nil
		case c == '\\':
			return p.escaped(append([]byte(nil), p.b[from:p.i]...))
		case c < ' ':
			return "", errJSON
		}
		p.i++
	}
	return "", errJSON
}

// escaped reads the rest of a string with escapes.
func (p *parser) escaped(text []byte) (string, error) {
	for p.i < len(p.b) {
		c := p.b[p.i]
		p.i++
		switch {
		case c == '"':
			return string(text), nil
		case c < ' ':
			return "", errJSON
		case c != '\\':
			text = append(text, c)
			continue
		}
		c = p.peek()
		p.i++
		if i := strings.IndexByte(`"\/bfnrt`, c); i >= 0 && c != 0 {
			text = append(text, "\"\\/\b\f\n\r\t"[i])
			continue
		}
		r, ok := rune(0), false
		if c == 'u' {
			r, ok = p.unicode()
		}
		if !ok {
			return "", errJSON
		}
		text = utf8.AppendRune(text, r)
	}
	return "", errJSON
}

// unicode reads four hexadecimal digits, and a second escape if they are the first half of a
// pair. Half a pair is an error.
func (p *parser) unicode() (rune, bool) {
	first, ok := p.hex()
	if !ok || 0xdc00 <= first && first <= 0xdfff {
		return 0, false
	}
	if first < 0xd800 || first > 0xdbff {
		return first, true
	}
	if p.i+1 >= len(p.b) || p.b[p.i] != '\\' || p.b[p.i+1] != 'u' {
		return 0, false
	}
	p.i += 2
	second, ok := p.hex()
	return (first-0xd800)<<10 | (second - 0xdc00) + 0x10000, ok && 0xdc00 <= second && second <= 0xdfff
}

func (p *parser) hex() (rune, bool) {
	if p.i+4 > len(p.b) {
		return 0, false
	}
	n, err := strconv.ParseUint(string(p.b[p.i:p.i+4]), 16, 16)
	p.i += 4
	return rune(n), err == nil
}
