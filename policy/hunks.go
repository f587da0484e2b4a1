package policy

import (
	"bytes"
	"fmt"
	"strings"
)

// hunkContext is how many lines surround a change in a unified diff.
const hunkContext = 3

// A lineChange replaces lines of a file, counted from 0.
type lineChange struct {
	from, to int
	lines    [][]byte
}

// hunks returns the hunks of a unified diff between a text and the text with its cuts.
func hunks(text []byte, cuts []cut) string {
	old := bytes.SplitAfter(text, []byte("\n"))
	if len(old[len(old)-1]) == 0 {
		old = old[:len(old)-1]
	}
	changes := lineChanges(text, old, cuts)
	var b strings.Builder
	shift := 0 // of the new line numbers
	for len(changes) > 0 {
		n := 1
		for n < len(changes) && changes[n].from-changes[n-1].to <= 2*hunkContext {
			n++
		}
		shift += writeHunk(&b, old, changes[:n], shift)
		changes = changes[n:]
	}
	return b.String()
}

// lineChanges returns which lines the cuts change. Cuts on one line are one change.
func lineChanges(text []byte, old [][]byte, cuts []cut) (changes []lineChange) {
	starts := make([]int, len(old)+1)
	for i, line := range old {
		starts[i+1] = starts[i] + len(line)
	}
	lineOf := func(at int) int {
		i := 0
		for i < len(old)-1 && starts[i+1] <= at {
			i++
		}
		return i
	}
	for i := 0; i < len(cuts); {
		from, to := lineOf(cuts[i].from), lineOf(max(cuts[i].to-1, cuts[i].from))+1
		j := i + 1
		for j < len(cuts) && lineOf(cuts[j].from) < to {
			to = max(to, lineOf(max(cuts[j].to-1, cuts[j].from))+1)
			j++
		}
		var shifted []cut
		for _, c := range cuts[i:j] {
			shifted = append(shifted, cut{c.from - starts[from], c.to - starts[from], c.insert})
		}
		replaced := cutText(text[starts[from]:starts[to]], shifted)
		change := lineChange{from: from, to: to}
		if len(replaced) > 0 {
			change.lines = bytes.SplitAfter(replaced, []byte("\n"))
			if len(change.lines[len(change.lines)-1]) == 0 {
				change.lines = change.lines[:len(change.lines)-1]
			}
		}
		if change.trim(old); change.from < change.to || len(change.lines) > 0 {
			changes = append(changes, change)
		}
		i = j
	}
	return changes
}

// trim leaves out lines that stay as they are.
func (c *lineChange) trim(old [][]byte) {
	for c.from < c.to && len(c.lines) > 0 && bytes.Equal(old[c.from], c.lines[0]) {
		c.from, c.lines = c.from+1, c.lines[1:]
	}
	for c.from < c.to && len(c.lines) > 0 && bytes.Equal(old[c.to-1], c.lines[len(c.lines)-1]) {
		c.to, c.lines = c.to-1, c.lines[:len(c.lines)-1]
	}
}

// writeHunk writes one hunk. It returns by how much the hunk shifts the lines after it.
func writeHunk(b *strings.Builder, old [][]byte, changes []lineChange, shift int) (shifts int) {
	first, last := changes[0], changes[len(changes)-1]
	from, to := max(first.from-hunkContext, 0), min(last.to+hunkContext, len(old))
	for _, c := range changes {
		shifts += len(c.lines) - (c.to - c.from)
	}
	fmt.Fprintf(b, "@@ -%s +%s @@\n", hunkRange(from, to-from), hunkRange(from+shift, to-from+shifts))
	write := func(sign byte, line []byte) {
		b.WriteByte(sign)
		b.Write(line)
		if !bytes.HasSuffix(line, []byte("\n")) {
			b.WriteString("\n\\ No newline at end of file\n")
		}
	}
	at := from
	for _, c := range changes {
		for ; at < c.from; at++ {
			write(' ', old[at])
		}
		for ; at < c.to; at++ {
			write('-', old[at])
		}
		for _, line := range c.lines {
			write('+', line)
		}
	}
	for ; at < to; at++ {
		write(' ', old[at])
	}
	return shifts
}

// hunkRange returns a range of lines. An empty one is after its line.
func hunkRange(from, n int) string {
	if n == 0 {
		return fmt.Sprintf("%d,0", from)
	}
	return fmt.Sprintf("%d,%d", from+1, n)
}
