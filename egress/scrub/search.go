package scrub

import (
	"bytes"
	"slices"
)

// search finds all occurrences in the text, and the places at which one may begin that
// reaches beyond the text.
func (c *scan) search() {
	c.literals()
	c.tail(len(c.text.b))
	for _, introducer := range []byte(`%\&`) {
		c.eachByte(introducer, c.escape)
	}
	if !c.s.index.wraps {
		return
	}
	line := minLine
	if c.text.whole {
		line = 0
	}
	for _, b := range []byte("\r\n \t") {
		c.eachByte(b, func(at int) int {
			c.broken(at)
			return line + 1 // a line has no such byte
		})
	}
}

// eachByte calls a function at each place with a byte. The function returns how far the
// search can move on.
func (c *scan) eachByte(b byte, do func(at int) int) {
	for at := 0; at < len(c.text.b); {
		n := bytes.IndexByte(c.text.b[at:], b)
		if n < 0 {
			return
		}
		at += n
		at += do(at)
	}
}

// literals finds the occurrences whose window has no escape.
func (c *scan) literals() {
	x, b := c.s.index, c.text.b
	skips, shift := x.skips, (32-x.skipBits)&31
	for end := x.window; end <= len(b); {
		h := block(b[end-4 : end])
		if skip := int(skips[hash(h)>>shift]); skip > 0 {
			end += skip
			continue
		}
		start := end - x.window
		for i := x.windows.first(h); i > 0; {
			p := &x.windows.list[i-1]
			i = p.next
			if n := &c.s.needles[p.needle]; p.key == h && equal(b[start:], n.text[:x.window]) {
				c.try(n, x.window, end, start)
			}
		}
		end++
	}
}

// tail finds the places less than a window before end from which the bytes up to end
// start a needle. What comes at end is not known.
func (c *scan) tail(end int) {
	x, b := c.s.index, c.text.b[:end]
	for at := max(end-x.window+1, 0); at < end; at++ {
		if c.startsNeedle(b[at:]) {
			c.hold = min(c.hold, at)
			if c.last && end-at >= MinLength {
				c.mask(span{at, len(c.text.b)})
			}
			return
		}
	}
}

// startsNeedle reports whether a text is the start of a needle.
func (c *scan) startsNeedle(b []byte) bool {
	x := c.s.index
	if len(b) < 4 {
		return x.startsShort(b) && slices.ContainsFunc(c.s.needles, func(n needle) bool { return equal(b, n.text[:len(b)]) })
	}
	h := block(b)
	for i := x.starts.first(h); i > 0; {
		p := &x.starts.list[i-1]
		i = p.next
		if n := &c.s.needles[p.needle]; p.key == h && equal(b, n.text[:len(b)]) {
			return true
		}
	}
	return false
}

// escape finds the occurrences whose first escape is at a place.
func (c *scan) escape(at int) int {
	src := c.text.b[at:]
	if skip := c.plain(at); skip > 0 {
		return skip
	}
	u := literal(src[0])
	for level := range depth {
		next, cut := decodeOnce(src, u, level)
		if cut {
			c.hold = min(c.hold, at)
			c.tail(at)
			return 1
		}
		if next.size == u.size {
			return 1
		}
		u = next
		if u.breaks() {
			c.broken(at)
		}
		if c.s.index.wanted[fold[u.at(0)]] {
			c.before(at, fold[u.at(0)], false)
			c.begins(at, u)
		}
		if !u.introduces() {
			return 1
		}
	}
	return 1
}

// manySlashes is longer than the longest row of backslashes that stands for another
// character.
const manySlashes = `\\\\\\\\` + `\\\\\\\\`

// plain returns how far the search can move on from a byte that begins no escape of a
// byte of any needle, or 0 if it does not see that at once.
func (c *scan) plain(at int) int {
	src, wanted := c.text.b[at:], &c.s.index.wanted
	if len(src) < 2 {
		return 0
	}
	switch next := src[1]; src[0] {
	case '%':
		if hexadecimal[next] == 0 && next != 'u' {
			return 1
		}
	case '&':
		if next != '#' && !isAlnum(next) {
			return 1
		}
	case '\\':
		if next == '\\' {
			return c.backslashes(src)
		}
		if !isAlnum(next) && !introduces[next] && !isBreak[next] && !wanted[next] {
			return 2
		}
		if isBreak[short[next]] && (at == 0 || !encodes[c.text.b[at-1]] && !introduces[c.text.b[at-1]]) && !wanted[short[next]] {
			return 2
		}
	}
	return 0
}

// backslashes returns how many of the backslashes at the start of a text are escaped
// backslashes however often they are decoded, if no secret has one.
func (c *scan) backslashes(src []byte) (skip int) {
	if c.s.index.wanted['\\'] {
		return 0
	}
	for len(src)-skip >= len(manySlashes) && string(src[skip:skip+len(manySlashes)]) == manySlashes {
		skip++
	}
	return skip
}

// broken finds the occurrences in base64 whose first line break is at a place.
func (c *scan) broken(at int) {
	if !c.text.full(at) {
		return
	}
	next, cut := c.text.afterBreak(at)
	if cut {
		c.tail(at)
	}
	if cut || next == at {
		return
	}
	for level := range depth + 1 {
		u, cut := decode(c.text.b[next:], level)
		if cut {
			c.tail(at)
			return
		}
		c.before(at, fold[u.at(0)], true)
		if !u.introduces() {
			return
		}
	}
}

// before tries the needles in which the bytes before a place are followed by a byte that
// the escape or the line break at the place leads to.
func (c *scan) before(at int, b byte, wrapped bool) {
	t := c.text.b
	if at >= 1 {
		c.pieces(at, pair(secondByte, fold[t[at-1]], b), wrapped)
	}
	if at >= 2 {
		c.pieces(at, triple(fold[t[at-2]], fold[t[at-1]], b), wrapped)
	}
}

// pieces tries the needles that have a key in their window.
func (c *scan) pieces(at int, key uint32, wrapped bool) {
	x := c.s.index
	for i := x.pieces.first(key); i > 0; {
		p := &x.pieces.list[i-1]
		i = p.next
		if p.key != key {
			continue
		}
		n, k := &c.s.needles[p.needle], int(p.k)
		if start := at - k; start >= 0 && (n.wrapped || !wrapped) && equal(c.text.b[start:], n.text[:k]) {
			c.try(n, k, at, start)
		}
	}
}

// begins tries the needles that begin with the escape at a place.
func (c *scan) begins(at int, u unit) {
	next := at + u.size
	if u.n > 1 {
		c.pieces(at, pair(firstByte, fold[u.at(0)], fold[u.at(1)]), false)
		return
	}
	if next >= len(c.text.b) {
		if c.startsNeedle([]byte{u.at(0)}) {
			c.hold = min(c.hold, at)
		}
		return
	}
	src := c.text.b[next:]
	for v, level := literal(src[0]), 0; ; level++ {
		if v.breaks() {
			c.all(at, next)
		}
		c.pieces(at, pair(firstByte, fold[u.at(0)], fold[v.at(0)]), false)
		if level == depth || !v.introduces() {
			return
		}
		after, cut := decodeOnce(src, v, level)
		if cut {
			c.hold = min(c.hold, at)
			return
		}
		if after.size == v.size {
			return
		}
		v = after
	}
}

// all tries all needles at a place at which an escape is followed by a line break.
func (c *scan) all(at, next int) {
	if !c.text.full(next) {
		return
	}
	for i := range c.s.needles {
		c.try(&c.s.needles[i], 0, at, at)
	}
}
