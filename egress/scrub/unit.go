package scrub

import (
	"bytes"
	"encoding/binary"
	"html"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// depth bounds how often a character can be escaped.
const depth = 3

// maxUnit bounds the bytes of text that stand for one character.
const maxUnit = 96

// A unit is what the text at one place stands for: a byte as it is, or an escape. It fits
// into registers.
type unit struct {
	text uint32 // UTF-8; the first byte is the lowest
	n    int    // bytes of text
	size int    // bytes that stand for it
}

func (u unit) at(i int) byte  { return byte(u.text >> (8 * i)) }
func (u unit) is(c byte) bool { return u.n == 1 && u.text == uint32(c) }

// introduces reports whether an escape can begin with a unit.
func (u unit) introduces() bool { return u.n == 1 && introduces[byte(u.text)] }

// introduces has the bytes with which an escape begins.
var introduces = [256]bool{'%': true, '\\': true, '&': true}

func literal(c byte) unit { return unit{text: uint32(c), n: 1, size: 1} }

// decode returns what the start of src stands for if the text was escaped level times.
// Text that is no escape stands for itself. It reports as cut that src may end within
// an escape.
func decode(src []byte, level int) (u unit, cut bool) {
	u = literal(src[0])
	for l := 1; l <= level && u.introduces(); l++ {
		next, cut := decodeOnce(src, u, l-1)
		if cut || next.size == u.size {
			return next, cut
		}
		u = next
	}
	return u, false
}

// decodeOnce returns what an introducer stands for, whose own level of escapes is below.
// It returns the introducer if no escape follows. In text that was escaped more than
// once, the introducer was escaped each time, so that an introducer that was not begins
// no escape of a higher level.
func decodeOnce(src []byte, introducer unit, below int) (u unit, cut bool) {
	if below == 0 && len(src) >= rawEscape {
		if u, known := decodeRaw(src, introducer); known {
			return u, false
		}
		if src[0] == '&' {
			if u, ok := rawName(src); ok {
				return u, false
			}
		}
	}
	e := escape{src: src, at: introducer.size, level: below}
	var ok bool
	switch introducer.at(0) {
	case '%':
		u, ok = e.percent()
	case '\\':
		u, ok = e.backslash()
	default:
		u, ok = e.entity()
	}
	if e.cut || !ok || e.at > maxUnit {
		return introducer, e.cut
	}
	u.size = e.at
	return u, false
}

// rawEscape is the length of the longest escape that decodeRaw knows.
const rawEscape = len(`\u0041`)

// hexadecimal has the values of hexadecimal digits plus one.
var hexadecimal = func() (t [256]uint8) {
	for c := range t {
		if d := digit(literal(byte(c)), 16); d >= 0 {
			t[c] = uint8(d) + 1
		}
	}
	return t
}()

// decodeRaw decodes the escapes that are frequent, without the reading of escaped escapes.
// It returns the introducer if no escape follows.
func decodeRaw(src []byte, introducer unit) (u unit, known bool) {
	src = src[:rawEscape]
	c := src[1]
	switch src[0] {
	case '%':
		high, low := hexadecimal[c], hexadecimal[src[2]]
		if high != 0 && low != 0 {
			return unit{text: uint32((high-1)<<4 | (low - 1)), n: 1, size: 3}, true
		}
		return introducer, c != 'u'
	case '\\':
		switch {
		case c == 'u' && src[2] == '0' && src[3] == '0':
			high, low := hexadecimal[src[4]], hexadecimal[src[5]]
			if 0 < high && high <= 8 && low != 0 { // ASCII
				return unit{text: uint32((high-1)<<4 | (low - 1)), n: 1, size: 6}, true
			}
		case short[c] != 0:
			return unit{text: uint32(short[c]), n: 1, size: 2}, true
		case !isAlnum(c):
			return unit{text: uint32(c), n: 1, size: 2}, true
		}
	default:
		if c != '#' && !isAlnum(c) {
			return introducer, true
		}
	}
	return u, false
}

// rawName returns the character that a name in HTML stands for, if the text has no
// escapes in the name.
func rawName(src []byte) (u unit, ok bool) {
	end := bytes.IndexByte(src[:min(len(src), maxName+2)], ';')
	if end < 0 {
		return u, false
	}
	u, ok = names[string(src[1:end])]
	u.size = end + 1
	return u, ok
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
	if c := e.src[e.at]; e.level == 0 || !introduces[c] {
		e.at++
		return literal(c), true
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
	switch c := u.at(0); {
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
	switch c := u.at(0); {
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
	for n := 0; n < maxName && u.n == 1 && isAlnum(u.at(0)); n++ {
		name[n] = u.at(0)
		if u, ok = e.next(); !ok {
			return u, false
		}
		if u.is(';') {
			u, ok = names[string(name[:n+1])]
			return u, ok
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

// names are the characters of ASCII and Latin-1 that have names in HTML.
var names = func() map[string]unit {
	m := map[string]unit{}
	for name := range strings.FieldsSeq(`quot amp lt gt apos QUOT AMP LT GT Tab NewLine excl num dollar percnt lpar rpar
		ast midast plus comma period sol colon semi equals quest commat lsqb lbrack bsol rsqb rbrack Hat lowbar UnderBar
		grave DiacriticalGrave lcub lbrace verbar vert VerticalLine rcub rbrace
		nbsp iexcl cent pound curren yen brvbar sect uml copy ordf laquo not shy reg macr deg plusmn sup2 sup3 acute
		micro para middot cedil sup1 ordm raquo frac14 frac12 frac34 iquest Agrave Aacute Acirc Atilde Auml Aring AElig
		Ccedil Egrave Eacute Ecirc Euml Igrave Iacute Icirc Iuml ETH Ntilde Ograve Oacute Ocirc Otilde Ouml times Oslash
		Ugrave Uacute Ucirc Uuml Yacute THORN szlig agrave aacute acirc atilde auml aring aelig ccedil egrave eacute
		ecirc euml igrave iacute icirc iuml eth ntilde ograve oacute ocirc otilde ouml divide oslash ugrave uacute
		ucirc uuml yacute thorn yuml euro`) {
		r, _ := utf8.DecodeRuneInString(html.UnescapeString("&" + name + ";"))
		m[name] = character(r)
	}
	return m
}()

func character(r rune) unit {
	var b [utf8.UTFMax]byte
	n := utf8.EncodeRune(b[:], r)
	return unit{text: binary.LittleEndian.Uint32(b[:]), n: n}
}
