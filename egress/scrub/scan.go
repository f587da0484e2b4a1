package scrub

import "slices"

// A span is a part of a text.
type span struct{ from, to int }

// A scan searches a text for needles.
type scan struct {
	s    *Scrubber
	text text
	last bool // nothing follows the text
	// partial means that the text may begin within a secret. It is false after the first
	// bytes were passed on.
	partial bool
	spans   []span // what to mask
	hold    int    // the first place from which an occurrence may reach beyond the text
	m       match

	masked bool // something was
}

// run searches a text and returns the number of bytes that can be passed on: no
// occurrence begins in them and ends beyond the text. At the end of the text, all bytes
// can be passed on, and the start of a secret is masked.
func (c *scan) run(b []byte) int {
	c.text.b = b
	c.hold = len(b)
	if !c.s.scrubs() {
		return c.hold
	}
	c.search()
	if c.partial && len(b) > 0 {
		c.rest()
	}
	if c.last {
		return len(b)
	}
	return c.hold
}

// rest searches the start of the text for the rest of a secret.
func (c *scan) rest() {
	for i := range c.s.needles {
		n := &c.s.needles[i]
		for k := 1; k <= len(n.text)-MinLength; k++ {
			if b := c.text.b[0]; introduces[b] || fold[b] == n.text[k] {
				c.try(n, k, 0, 0)
			}
		}
	}
}

// try follows a needle from its k-th byte. The occurrence starts at start, and the bytes
// from there are those of the needle before k.
func (c *scan) try(n *needle, k, at, start int) {
	c.m.start(&c.text, n, k, at)
	c.m.run()
	end := c.m.end
	if c.m.cut {
		c.hold = min(c.hold, start)
		if c.last && c.m.reached-k+at-start >= MinLength {
			end = len(c.text.b)
		}
	}
	if end > 0 {
		c.mask(span{start, end})
	}
}

// mask adds a span. Spans that follow each other become one.
func (c *scan) mask(s span) {
	if n := len(c.spans); n > 0 {
		if last := &c.spans[n-1]; s.from <= last.to && last.from <= s.to {
			*last = span{min(last.from, s.from), max(last.to, s.to)}
			return
		}
	}
	c.spans = append(c.spans, s)
}

// maskedTo reports whether the bytes before a place are to be masked.
func (c *scan) maskedTo(at int) bool {
	return slices.ContainsFunc(c.spans, func(s span) bool { return s.to == at && s.from < at })
}

// hide masks the first n bytes of the text as the scan found, and keeps what is to be
// masked after them. Line breaks stay.
func (c *scan) hide(n int) {
	kept := c.spans[:0]
	for _, s := range c.spans {
		for i := s.from; i < min(s.to, n); i++ {
			if b := &c.text.b[i]; *b != '\n' && *b != '\r' {
				*b, c.masked = '*', true
			}
		}
		if s.to > n {
			kept = append(kept, span{max(s.from, n) - n, s.to - n})
		}
	}
	c.spans = kept
}

// advance moves the scan n bytes on, before they are masked.
func (c *scan) advance(n int) {
	if n > 0 {
		c.partial = false
	}
	run := 0
	for run < n && run < minLine {
		if !inLine[c.text.b[n-1-run]] {
			break
		}
		run++
	}
	if run == n {
		run += c.text.run
	}
	c.text.run = min(run, minLine)
}
