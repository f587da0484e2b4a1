package scrub

import (
	"html"
	"unicode/utf16"
	"unicode/utf8"
)

// depth bounds how often a character can be escaped.
const depth = 3

// maxUnit bounds the bytes of text that stand for one character.
const maxUnit = 96

// A unit is what the text at one place stands for: a byte as it is, or an escape.
type unit struct {
	text [utf8.UTFMax]byte
	n    int // bytes of text
	size int // bytes that stand for it
}

func (u unit) is(c byte) bool { return u.n == 1 && u.text[0] == c }

// introduces has the bytes with which an escape begins.
var introduces = [256]bool{'%': true, '\\': true, '&': true}

func literal(c byte) unit { return unit{text: [utf8.UTFMax]byte{c}, n: 1, size: 1} }

// decode returns what the start of src stands for if the text was escaped level times.
// Text that is no escape stands for itself. It reports as cut that src may end within
// an escape.
func decode(src []byte, level int) (u unit, cut bool) {
	if level == 0 || !introduces[src[0]] {
		return literal(src[0]), false
	}
	u, cut = decode(src, level-1)
	if cut || u.n != 1 || !introduces[u.text[0]] {
		return u, cut
	}
	e := escape{src: src, at: u.size, level: level - 1}
	var text unit
	var ok bool
	switch u.text[0] {
	case '%':
		text, ok = e.percent()
	case '\\':
		text, ok = e.backslash()
	default:
		text, ok = e.entity()
	}
	if e.cut {
		return u, true
	}
	if !ok || e.at > maxUnit {
		return u, false
	}
	text.size = e.at
	return text, false
}

// An escape reads the characters of an escape, each of which can be escaped itself.
type escape struct {
	src   []byte
	at    int
	level int
	cut   bool
}

// next returns the next character. It fails at the end of the text.
func (e *escape) next() (u unit, ok bool) {
	if e.at > maxUnit {
		return u, false
	}
	if e.at >= len(e.src) {
		e.cut = true
		return u, false
	}
	u, cut := decode(e.src[e.at:], e.level)
	if cut {
		e.cut = true
		return u, false
	}
	e.at += u.size
	return u, true
}

// digits reads exactly n digits of a base, as a number.
func (e *escape) digits(n, base int) (v rune, ok bool) {
	for range n {
		u, ok := e.next()
		d := digit(u, base)
		if !ok || d < 0 {
			return 0, false
		}
		v = v*rune(base) + d
	}
	return v, true
}

// number reads digits of a base up to an end, and returns the character after them.
func (e *escape) number(most, base int) (v rune, after unit, ok bool) {
	for n := 0; ; n++ {
		u, ok := e.next()
		if !ok {
			return 0, u, false
		}
		d := digit(u, base)
		if d < 0 {
			return v, u, n > 0
		}
		if v = v*rune(base) + d; n == most || v > utf8.MaxRune {
			return 0, u, false
		}
	}
}

func digit(u unit, base int) rune {
	if u.n != 1 {
		return -1
	}
	d := rune(-1)
	switch c := u.text[0]; {
	case '0' <= c && c <= '9':
		d = rune(c - '0')
	case 'a' <= c|0x20 && c|0x20 <= 'f':
		d = rune(c|0x20-'a') + 10
	}
	if d >= rune(base) {
		return -1
	}
	return d
}

// percent reads %41, and %u0041 as old JavaScript and servers write it.
func (e *escape) percent() (unit, bool) {
	start := e.at
	if u, ok := e.next(); ok && u.is('u') {
		return e.utf16("%u")
	}
	if e.cut {
		return unit{}, false
	}
	e.at = start
	v, ok := e.digits(2, 16)
	return literal(byte(v)), ok
}

// short has the characters that single letters after a backslash stand for.
var short = [256]byte{'a': '\a', 'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t', 'v': '\v'}

// backslash reads the escapes of JSON, and those of other languages and shells.
func (e *escape) backslash() (unit, bool) {
	start := e.at
	u, ok := e.next()
	if !ok || u.n != 1 {
		return u, ok
	}
	switch c := u.text[0]; {
	case c == 'u':
		return e.braces()
	case c == 'U':
		v, ok := e.digits(8, 16)
		return character(v), ok
	case c == 'x':
		v, ok := e.digits(2, 16)
		return literal(byte(v)), ok
	case '0' <= c && c <= '7':
		e.at = start
		v, ok := e.digits(3, 8)
		return literal(byte(v)), ok
	case short[c] != 0:
		return literal(short[c]), true
	case 'a' <= c|0x20 && c|0x20 <= 'z' || '0' <= c && c <= '9':
		return u, false
	}
	return u, true
}

// braces reads what follows \u: four digits, two surrogates, or digits in braces.
func (e *escape) braces() (unit, bool) {
	start := e.at
	if u, ok := e.next(); ok && u.is('{') {
		v, after, ok := e.number(6, 16)
		return character(v), ok && after.is('}')
	}
	if e.cut {
		return unit{}, false
	}
	e.at = start
	return e.utf16(`\u`)
}

// utf16 reads four digits, or two surrogates with the escape between them.
func (e *escape) utf16(between string) (unit, bool) {
	v, ok := e.digits(4, 16)
	if !ok || !utf16.IsSurrogate(v) {
		return character(v), ok
	}
	for i := range len(between) {
		if u, ok := e.next(); !ok || !u.is(between[i]) {
			return unit{}, false
		}
	}
	low, ok := e.digits(4, 16)
	return character(utf16.DecodeRune(v, low)), ok
}

// maxName is the length of the longest name of a character that entity looks up.
const maxName = 24

// entity reads the character references of HTML. As browsers do, it accepts a number
// without a semicolon, and the character after it stays.
func (e *escape) entity() (unit, bool) {
	u, ok := e.next()
	if !ok {
		return u, false
	}
	if u.is('#') {
		return e.reference()
	}
	var name [maxName]byte
	for n := 0; n < maxName && u.n == 1 && isAlnum(u.text[0]); n++ {
		name[n] = u.text[0]
		if u, ok = e.next(); !ok {
			return u, false
		}
		if u.is(';') {
			return named(name[:n+1])
		}
	}
	return u, false
}

func (e *escape) reference() (unit, bool) {
	start, base := e.at, 10
	if u, ok := e.next(); !ok {
		return u, false
	} else if u.is('x') || u.is('X') {
		base = 16
	} else {
		e.at = start
	}
	v, after, ok := e.number(8, base)
	if !ok {
		return after, false
	}
	if !after.is(';') {
		e.at -= after.size
	}
	return character(v), true
}

func isAlnum(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'z'
}

// names are the characters of ASCII that have names in HTML.
var names = func() map[string]byte {
	m := map[string]byte{}
	for _, name := range []string{
		"quot", "amp", "lt", "gt", "apos", "QUOT", "AMP", "LT", "GT", "Tab", "NewLine", "excl", "num", "dollar", "percnt",
		"lpar", "rpar", "ast", "midast", "plus", "comma", "period", "sol", "colon", "semi", "equals", "quest", "commat",
		"lsqb", "lbrack", "bsol", "rsqb", "rbrack", "Hat", "lowbar", "UnderBar", "grave", "DiacriticalGrave",
		"lcub", "lbrace", "verbar", "vert", "VerticalLine", "rcub", "rbrace",
	} {
		m[name] = html.UnescapeString("&" + name + ";")[0]
	}
	return m
}()

func named(name []byte) (unit, bool) {
	if c, ok := names[string(name)]; ok {
		return literal(c), true
	}
	whole := "&" + string(name) + ";"
	text := html.UnescapeString(whole)
	if text == whole || len(text) > utf8.UTFMax {
		return unit{}, false
	}
	u := unit{n: len(text)}
	copy(u.text[:], text)
	return u, true
}

func character(r rune) unit {
	u := unit{}
	u.n = utf8.EncodeRune(u.text[:], r)
	return u
}
