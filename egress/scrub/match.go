package scrub

import "encoding/binary"

// minLine is the number of characters of base64 that come before a line break within
// base64. Encoders break lines after 64 or 76. The bound keeps a line of prose from
// being held back until the next line arrives.
const minLine = 16

// A text is what a scan searches.
type text struct {
	b     []byte
	run   int  // characters of base64 before b
	whole bool // nothing waits for the next line, so that lines can be short, as in a folded header
}

// full reports whether a line of base64 may end at a place.
func (t *text) full(at int) bool {
	if t.whole {
		return true
	}
	if at >= minLine && (below(t.b[at-8:], '%') || below(t.b[at-16:], '%')) {
		return false
	}
	for n := range minLine {
		i := at - 1 - n
		if i < 0 {
			return n+t.run >= minLine
		}
		if !inLine[t.b[i]] {
			return false
		}
	}
	return true
}

// below reports whether one of the first eight bytes is below a byte.
func below(b []byte, c byte) bool {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	x := binary.LittleEndian.Uint64(b)
	return (x-ones*uint64(c))&^x&highs != 0
}

// maxIndent bounds the blanks after a line break within base64, as YAML has them.
const maxIndent = 32

// isBreak has the bytes of a line break within base64. Where a header was folded, only
// blanks are left of it.
var isBreak = [256]bool{'\r': true, '\n': true, ' ': true, '\t': true}

func (u unit) breaks() bool { return u.n == 1 && isBreak[byte(u.text)] }

// afterBreak returns the place after the line break at a place, which can be escaped, and
// after the blanks that follow it. It returns the place itself if there is no break. An
// empty line is no break.
func (t *text) afterBreak(at int) (next int, cut bool) {
	next = at
	broken := false
	for range maxIndent {
		if next >= len(t.b) {
			return next, true
		}
		u, cut := decode(t.b[next:], depth)
		if cut {
			return next, true
		}
		if !u.breaks() || broken && u.is('\n') {
			break
		}
		broken = broken || u.is('\n')
		next += u.size
	}
	return next, false
}

// A state is a place in a needle, and the place in the text up to which it was found.
type state struct{ k, at int }

// maxStates bounds the readings of a text that a match follows at the same time. Only a
// secret with characters that begin escapes can be read in more than one way.
const maxStates = 32

// A match follows one needle through a text, in each way in which the text can be read.
type match struct {
	t      *text
	n      *needle
	states [maxStates]state
	len    int

	end     int // the end of the longest occurrence, or 0
	cut     bool
	reached int // the most bytes of the needle that were found up to the end of the text
}

func (m *match) start(t *text, n *needle, k, at int) {
	m.t, m.n, m.len, m.end, m.cut, m.reached = t, n, 0, 0, false, 0
	m.push(k, at)
}

func (m *match) push(k, at int) {
	for _, s := range m.states[:m.len] {
		if s.k == k && s.at == at {
			return
		}
	}
	if m.len < maxStates {
		m.states[m.len] = state{k, at}
		m.len++
	}
}

// pop removes the state that is the furthest behind in the needle.
func (m *match) pop() state {
	first := 0
	for i := 1; i < m.len; i++ {
		if m.states[i].k < m.states[first].k {
			first = i
		}
	}
	s := m.states[first]
	m.len--
	m.states[first] = m.states[m.len]
	return s
}

// run follows the needle to its end, or to the end of the text.
func (m *match) run() {
	for m.len > 0 {
		s := m.pop()
		s = m.literals(s)
		switch {
		case s.k == len(m.n.text):
			m.end = max(m.end, s.at)
		case s.at >= len(m.t.b):
			m.ends(s.k)
		default:
			m.branch(s)
		}
	}
}

// ends notes that the text ends within the needle.
func (m *match) ends(k int) {
	m.cut = true
	m.reached = max(m.reached, k)
}

// literals follows the needle while the text cannot be read in another way.
func (m *match) literals(s state) state {
	want, b := m.n.text, m.t.b
	for s.k < len(want) && s.at < len(b) && !introduces[b[s.at]] && fold[b[s.at]] == want[s.k] {
		s.k++
		s.at++
	}
	return s
}

// branch follows each way in which the text at one place can be read.
func (m *match) branch(s state) {
	c := m.t.b[s.at]
	if !introduces[c] {
		if isBreak[c] {
			m.wrap(s)
		}
		return
	}
	src := m.t.b[s.at:]
	for u, level := literal(c), 0; ; level++ {
		if m.fits(u, s.k) {
			m.push(s.k+u.n, s.at+u.size)
		}
		if u.breaks() {
			m.wrap(s)
		}
		if level == depth || !u.introduces() {
			return
		}
		next, cut := decodeOnce(src, u, level)
		if cut {
			m.ends(s.k)
			return
		}
		if next.size == u.size {
			return
		}
		u = next
	}
}

func (m *match) fits(u unit, k int) bool {
	want := m.n.text[k:]
	if u.n > len(want) {
		return false
	}
	for i := range u.n {
		if fold[u.at(i)] != want[i] {
			return false
		}
	}
	return true
}

// wrap follows the needle after a line break.
func (m *match) wrap(s state) {
	if !m.n.wrapped || s.k == 0 || !m.t.full(s.at) {
		return
	}
	next, cut := m.t.afterBreak(s.at)
	if cut {
		m.ends(s.k)
	} else if next > s.at {
		m.push(s.k, next)
	}
}
