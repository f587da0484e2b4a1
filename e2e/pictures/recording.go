package pictures

import (
	"bytes"
	_ "embed"
	"fmt"
	"regexp"
	"strings"
	"text/template"
	"time"
	"unicode/utf8"
)

// The measures of a recording, in pixels.
const (
	cellWidth  = 8.4
	lineHeight = 20
	baseline   = 15 // within a line
	padding    = 16
	titleBar   = 28
)

// The times of a recording: after the command is typed, after each line, before the
// heading of a chapter, and at the end.
const (
	afterCommand = 1500 * time.Millisecond
	afterLine    = 350 * time.Millisecond
	beforeTitle  = 1600 * time.Millisecond
	atEnd        = 6 * time.Second
)

// heading matches the first line of a chapter.
var heading = regexp.MustCompile(`^\d+\. `)

//go:embed recording.svg.tmpl
var recordingText string

var recording = template.Must(template.New("").Parse(recordingText))

// A frame is a moment of a recording. From then on, the terminal shows lines up to Lines.
type frame struct {
	Percent float64 // of the whole time
	Lines   int
}

// Scroll is the distance by which the lines have moved up.
func (f frame) Scroll() int { return max(f.Lines-rows, 0) * lineHeight }

// Curtain is the distance from the top of the terminal to the lines that are still hidden.
func (f frame) Curtain() int { return min(f.Lines, rows) * lineHeight }

// frames returns one frame for each line, and the whole time.
func frames(lines []line) (all []frame, total time.Duration) {
	var starts []time.Duration
	for i, l := range lines {
		if heading.MatchString(l.String()) && i > 0 {
			total += beforeTitle
		}
		starts = append(starts, total)
		total += afterLine
		if i == 0 {
			total += afterCommand
		}
	}
	total += atEnd
	for i, start := range starts {
		all = append(all, frame{100 * start.Seconds() / total.Seconds(), i + 1})
	}
	return all, total
}

// A span is a run of characters at its place in the terminal.
type span struct {
	X, Width    string // in pixels
	Style, Text string
}

// pixels formats the width of a number of columns.
func pixels(columns int) string { return fmt.Sprintf("%.1f", float64(columns)*cellWidth) }

// spans returns the text of a line. Runs of spaces separate spans, so that the columns stay
// aligned in every font.
func spans(l line) (all []span) {
	column := 0
	for _, r := range l {
		for _, part := range words.FindAllStringIndex(r.text, -1) {
			text := r.text[part[0]:part[1]]
			before := column + utf8.RuneCountInString(r.text[:part[0]])
			all = append(all, span{pixels(before), pixels(utf8.RuneCountInString(text)), r.style, escape(text)})
		}
		column += utf8.RuneCountInString(r.text)
	}
	return all
}

// words matches words with single spaces between them.
var words = regexp.MustCompile(`\S+( \S+)*`)

// Recording returns an animated SVG: a command is typed in a terminal, and prints lines.
// The animation is CSS alone, because GitHub shows no scripts in pictures.
func Recording(command string, printed []line) ([]byte, error) {
	lines := append([]line{{{"", "$ "}, {"1", command}}}, printed...)
	all, total := frames(lines)
	full := min(rows, len(all)) // from this frame on, the terminal scrolls
	type placed struct {
		Y     int
		Spans []span
	}
	text := make([]placed, len(lines))
	for i, l := range lines {
		text[i] = placed{i*lineHeight + baseline, spans(l)}
	}
	const width, height = columns * cellWidth, rows * lineHeight
	var b bytes.Buffer
	err := recording.Execute(&b, map[string]any{
		"Command": escape(command), "Seconds": total.Seconds(), "Curtain": all[:full], "Scroll": all[full-1:], "Lines": text,
		"ClipWidth": width + padding, "Height": height, "OuterWidth": width + 2*padding, "OuterHeight": height + titleBar + 2*padding,
		"BorderWidth": width + 2*padding - 1, "BorderHeight": height + titleBar + 2*padding - 1,
	})
	return b.Bytes(), err
}

// escape makes a text part of an SVG file.
func escape(text string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(text)
}
