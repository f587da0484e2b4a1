// Package strictjson reads JSON that every parser reads alike. It refuses what
// RFC 8259 leaves to the parser and I-JSON (RFC 7493, section 2) forbids: repeated
// names, text that is not Unicode, numbers beyond the range of a double, and data
// before or after the value.
//
// encoding/json accepts all of them: it takes the last of several members with the
// same name, ignores the case of names, and replaces bad text by U+FFFD.
package strictjson

import (
	"encoding/json"
	"errors"
	"strconv"
	"unicode/utf8"
)

// Errors. They do not quote the input, which may be a secret. Their texts complete
// a sentence that begins with the name of the document.
var (
	ErrSyntax    = errors.New("is not valid JSON")
	ErrNotObject = errors.New("is not a JSON object")
	ErrDuplicate = errors.New("has a member twice")
	ErrDepth     = errors.New("is nested too deeply")
	ErrText      = errors.New("has text that is not Unicode")
	ErrNumber    = errors.New("has a number that is too large")
)

// Check returns an error unless b is exactly one JSON value, nested at most depth
// deep. It accepts white space around the value, and no byte order mark.
func Check(b []byte, depth int) error {
	if !utf8.Valid(b) {
		return ErrText
	}
	s := scanner{b: b}
	s.space()
	if err := s.value(depth); err != nil {
		return err
	}
	return s.end()
}

// A Member is a member of an object. Its value is strict JSON.
type Member struct {
	Name  string
	Value json.RawMessage
}

// Members is Check for an object. It returns the members in order; their values alias
// b.
func Members(b []byte, depth int) ([]Member, error) {
	return outermost(scanner{b: b}, depth)
}

// Object is Members by name.
func Object(b []byte, depth int) (map[string]json.RawMessage, error) {
	return byName(outermost(scanner{b: b}, depth))
}

// Outline is Object for a document whose parts are checked later, one by one. It
// checks only the syntax of the values: a part that is not strict does not spoil
// the others.
func Outline(b []byte, depth int) (map[string]json.RawMessage, error) {
	return byName(outermost(scanner{b: b, outline: true}, depth))
}

func outermost(s scanner, depth int) ([]Member, error) {
	if !utf8.Valid(s.b) {
		return nil, ErrText
	}
	if s.space(); s.peek() != '{' {
		return nil, ErrNotObject
	}
	list := make([]Member, 0, 8)
	if err := s.object(depth, &list); err != nil {
		return nil, err
	}
	return list, s.end()
}

func byName(list []Member, err error) (map[string]json.RawMessage, error) {
	if err != nil {
		return nil, err
	}
	members := make(map[string]json.RawMessage, len(list))
	for _, m := range list {
		members[m.Name] = m.Value
	}
	return members, nil
}

// Elements returns the elements of a list, which is strict JSON. ok is false for any
// other JSON.
func Elements(raw []byte) (list []json.RawMessage, ok bool) {
	if len(raw) == 0 || raw[0] != '[' {
		return nil, false
	}
	return list, json.Unmarshal(raw, &list) == nil
}

// Text returns the value of a JSON string, which is strict JSON. ok is false for any
// other JSON.
func Text(raw []byte) (text string, ok bool) {
	if len(raw) == 0 || raw[0] != '"' {
		return "", false
	}
	s := scanner{b: raw}
	text, err := s.text()
	return text, err == nil && s.i == len(raw)
}

// A scanner checks UTF-8 text from the offset i.
type scanner struct {
	b       []byte
	i       int
	outline bool // check only the syntax of values
	inside  bool // of a value of an outline
}

func (s *scanner) peek() byte {
	if s.i < len(s.b) {
		return s.b[s.i]
	}
	return 0
}

func (s *scanner) space() {
	for s.i < len(s.b) && (s.b[s.i] == ' ' || s.b[s.i] == '\t' || s.b[s.i] == '\r' || s.b[s.i] == '\n') {
		s.i++
	}
}

// take skips c and the white space after it. It reports whether c was there.
func (s *scanner) take(c byte) bool {
	if s.peek() != c {
		return false
	}
	s.i++
	s.space()
	return true
}

func (s *scanner) end() error {
	if s.space(); s.i != len(s.b) {
		return ErrSyntax
	}
	return nil
}

func (s *scanner) value(depth int) error {
	switch c := s.peek(); {
	case c == '{':
		return s.object(depth, nil)
	case c == '[':
		return s.array(depth)
	case c == '"':
		_, err := s.text()
		return err
	case c == '-' || '0' <= c && c <= '9':
		return s.number()
	}
	for _, word := range []string{"true", "false", "null"} {
		if len(s.b)-s.i >= len(word) && string(s.b[s.i:s.i+len(word)]) == word {
			s.i += len(word)
			return nil
		}
	}
	return ErrSyntax
}

// object checks an object and appends its members to list, unless list is nil.
func (s *scanner) object(depth int, list *[]Member) error {
	if depth == 0 {
		return ErrDepth
	}
	s.take('{')
	if s.peek() == '}' {
		s.i++
		return nil
	}
	var seen names
	for {
		name, err := s.text()
		if err != nil {
			return err
		}
		if !seen.add(name) && !s.inside {
			return ErrDuplicate
		}
		if s.space(); !s.take(':') {
			return ErrSyntax
		}
		from, outermost := s.i, !s.inside
		s.inside = s.outline
		if err := s.value(depth - 1); err != nil {
			return err
		}
		s.inside = s.inside && !outermost
		if list != nil {
			*list = append(*list, Member{name, s.b[from:s.i:s.i]})
		}
		if s.space(); s.peek() == '}' {
			s.i++
			return nil
		}
		if !s.take(',') {
			return ErrSyntax
		}
	}
}

func (s *scanner) array(depth int) error {
	if depth == 0 {
		return ErrDepth
	}
	s.take('[')
	if s.peek() == ']' {
		s.i++
		return nil
	}
	for {
		if err := s.value(depth - 1); err != nil {
			return err
		}
		if s.space(); s.peek() == ']' {
			s.i++
			return nil
		}
		if !s.take(',') {
			return ErrSyntax
		}
	}
}

// text checks a string and returns its value.
func (s *scanner) text() (string, error) {
	if s.peek() != '"' {
		return "", ErrSyntax
	}
	from, escaped := s.i, false
	for s.i++; s.i < len(s.b); s.i++ {
		switch c := s.b[s.i]; {
		case c == '"':
			s.i++
			if !escaped {
				return string(s.b[from+1 : s.i-1]), nil
			}
			var value string
			if json.Unmarshal(s.b[from:s.i], &value) != nil {
				return "", ErrSyntax
			}
			return value, nil
		case c < ' ':
			return "", ErrSyntax
		case c == '\\':
			escaped = true
			if err := s.escape(); err != nil {
				return "", err
			}
		}
	}
	return "", ErrSyntax
}

// escape checks an escape and leaves i at its last byte. A surrogate must be the
// first half of a pair: a lone one is no Unicode text (RFC 8259, section 8.2).
func (s *scanner) escape() error {
	s.i++
	switch s.peek() {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return nil
	case 'u':
	default:
		return ErrSyntax
	}
	unit, ok := s.hex(s.i + 1)
	if !ok {
		return ErrSyntax
	}
	s.i += 4
	if unit < 0xd800 || unit > 0xdfff {
		return nil
	}
	low, ok := s.hex(s.i + 3)
	if s.inside {
		return nil
	}
	if unit > 0xdbff || !ok || s.b[s.i+1] != '\\' || s.b[s.i+2] != 'u' || low < 0xdc00 || low > 0xdfff {
		return ErrText
	}
	s.i += 6
	return nil
}

// hex returns the four hexadecimal digits at an offset.
func (s *scanner) hex(at int) (n rune, ok bool) {
	if at+4 > len(s.b) {
		return 0, false
	}
	for _, c := range s.b[at : at+4] {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		n = n<<4 | rune(c)
	}
	return n, true
}

// number checks a number: no leading zero, no plus sign (RFC 8259, section 6).
func (s *scanner) number() error {
	from := s.i
	if s.peek() == '-' {
		s.i++
	}
	if s.peek() == '0' {
		s.i++
	} else if !s.digits() {
		return ErrSyntax
	}
	if s.peek() == '.' {
		s.i++
		if !s.digits() {
			return ErrSyntax
		}
	}
	if c := s.peek(); c == 'e' || c == 'E' {
		s.i++
		if c := s.peek(); c == '+' || c == '-' {
			s.i++
		}
		if !s.digits() {
			return ErrSyntax
		}
	} else if s.i-from < 300 {
		return nil // at most 1e300
	}
	// Parsers read a number beyond the range of a double as infinity, or refuse it (RFC
	// 8259, section 6).
	if _, err := strconv.ParseFloat(string(s.b[from:s.i]), 64); err != nil && !s.inside {
		return ErrNumber
	}
	return nil
}

// digits skips digits and reports whether there was one.
func (s *scanner) digits() bool {
	from := s.i
	for c := s.peek(); '0' <= c && c <= '9'; c = s.peek() {
		s.i++
	}
	return s.i > from
}

// names is a set of an object's names. Most objects have few, for which a list is
// faster than a map.
type names struct {
	few  [8]string
	n    int
	many map[string]bool
}

// add adds a name and reports whether it is new.
func (s *names) add(name string) bool {
	for _, other := range s.few[:s.n] {
		if other == name {
			return false
		}
	}
	if s.n < len(s.few) {
		s.few[s.n] = name
		s.n++
		return true
	}
	if s.many[name] {
		return false
	}
	if s.many == nil {
		s.many = map[string]bool{}
	}
	s.many[name] = true
	return true
}
