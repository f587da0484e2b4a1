package ui

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"accessbroker.internal/internal/visible"
)

// Text of requesters, approvers and providers. The parts "quoted" and "inline" show
// it: it can't leave its box, imitate the page, or hide characters.

// Limits of a quoted text before a reader opens the rest.
const (
	quotedLines = 6
	quotedRunes = 400
	briefRunes  = 160 // in lists
	briefBytes  = 800 // in lists: escaped characters take many
)

// A run is a part of a text. An escaped run names one character that a browser would
// hide, or that would change the order of others.
type run struct {
	Text    string
	Escaped bool
}

// A quotation is a text as a page shows it.
type quotation struct {
	Start []run  // the beginning, without runs of blank lines
	Whole []run  // nil if Start is everything
	Size  string // of the whole text, in words
}

// quote divides a text into what a page shows at once and the rest.
func quote(text string) quotation {
	text = strings.ReplaceAll(text, "\r\n", "\n")
	start, cut := shorten(withoutBlankLines(text), quotedLines, quotedRunes)
	q := quotation{Start: runsOf(start)}
	if cut || start != strings.TrimSpace(text) {
		q.Whole = runsOf(text)
		q.Size = fmt.Sprintf("%s, %s", counted(strings.Count(text, "\n")+1, "line"), counted(utf8.RuneCountInString(text), "character"))
	}
	return q
}

func counted(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// withoutBlankLines removes the lines that show nothing.
func withoutBlankLines(text string) string {
	var lines []string
	for line := range strings.SplitSeq(text, "\n") {
		if strings.TrimSpace(line) != "" {
			lines = append(lines, line)
		}
	}
	return strings.TrimSpace(strings.Join(lines, "\n"))
}

// shorten returns the beginning of a text, and whether it left something out.
func shorten(text string, lines, runes int) (string, bool) {
	seen, breaks := 0, 0
	for i, r := range text {
		if r == '\n' {
			breaks++
		}
		if seen == runes || breaks == lines {
			return strings.TrimRightFunc(text[:i], unicode.IsSpace) + "…", true
		}
		seen++
	}
	return text, false
}

// inline returns a whole text in one line.
func inline(text string) []run { return runsOf(strings.Join(strings.Fields(text), " ")) }

// brief returns the beginning of a text in one line, for lists.
func brief(text string) []run {
	start, _ := shorten(strings.Join(strings.Fields(text), " "), 1, briefRunes)
	return bounded(runsOf(start), briefBytes)
}

// bounded returns the runs that fit into a number of bytes of a page.
func bounded(runs []run, most int) []run {
	for i, r := range runs {
		if most -= len(r.Text); r.Escaped {
			most -= len(`<span class="escaped"></span>`)
		}
		if most < 0 {
			return append(runs[:i:i], run{Text: "…"})
		}
	}
	return runs
}

// runsOf names the characters of a text that a browser would not show as they are.
func runsOf(text string) (runs []run) {
	var plain strings.Builder
	flush := func() {
		if plain.Len() > 0 {
			runs = append(runs, run{Text: plain.String()})
			plain.Reset()
		}
	}
	marks, before := 0, rune(0)
	for _, r := range text {
		if unicode.Is(unicode.M, r) {
			marks++
		} else {
			marks = 0
		}
		if r == '\n' || r == '\t' || visible.Rune(r, before) && marks <= maxMarks {
			plain.WriteRune(r)
		} else {
			flush()
			runs = append(runs, run{Text: fmt.Sprintf("U+%04X", r), Escaped: true})
		}
		before = r
	}
	flush()
	return runs
}

// maxMarks is how many combining marks a letter may have. More of them grow into the
// lines above and below.
const maxMarks = 4
