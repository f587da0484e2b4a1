package screen

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// margin is the width of the column of verdicts.
const margin = 11

// A Teller tells a story in chapters. Its verdicts stand at the left edge, and no line is
// wider than Width.
type Teller struct {
	Out     io.Writer
	Palette Palette
	Chapter int // the number of the last chapter
}

// Open begins the next chapter.
func (t *Teller) Open(title string) {
	t.Chapter++
	fmt.Fprintln(t.Out)
	number := fmt.Sprintf("%d. ", t.Chapter)
	for _, row := range fitted(title, Width-len(number)) {
		fmt.Fprintln(t.Out, t.Palette.Strong(number+row))
		number = strings.Repeat(" ", len(number))
	}
}

// Say tells what happens.
func (t *Teller) Say(format string, args ...any) { t.Note("", format, args...) }

// Note tells what happens, in a few words and a text.
func (t *Teller) Note(words, format string, args ...any) { t.rows(words, words, format, args) }

// Good tells about a success, with a verdict such as "permit".
func (t *Teller) Good(verdict, format string, args ...any) {
	t.rows(verdict, t.Palette.Good(verdict), format, args)
}

// Bad tells about a refusal or failure.
func (t *Teller) Bad(verdict, format string, args ...any) {
	t.rows(verdict, t.Palette.Bad(verdict), format, args)
}

// Waiting tells about something that waits for a person.
func (t *Teller) Waiting(verdict, format string, args ...any) {
	t.rows(verdict, t.Palette.Waiting(verdict), format, args)
}

func (t *Teller) rows(words, coloured, format string, args []any) {
	gap := strings.Repeat(" ", max(margin-utf8.RuneCountInString(words), 1))
	for _, row := range fitted(fmt.Sprintf(format, args...), Width-margin) {
		fmt.Fprintln(t.Out, coloured+gap+row)
		coloured, gap = "", strings.Repeat(" ", margin)
	}
}

// Types shows a command that a person types.
func (t *Teller) Types(command string) {
	prompt := "$ "
	for _, row := range fitted(command, Width-margin-len(prompt)) {
		fmt.Fprintln(t.Out, strings.Repeat(" ", margin)+prompt+t.Palette.Command(row))
		prompt = "  "
	}
}

// Shows shows a line that a command prints.
func (t *Teller) Shows(line string) {
	fmt.Fprintln(t.Out, strings.TrimRight(strings.Repeat(" ", margin)+shorten(strings.TrimRight(line, " \n"), Width-margin), " "))
}

// fitted breaks a text into rows of at most width columns. A text that fits keeps its
// spaces.
func fitted(text string, width int) []string {
	if utf8.RuneCountInString(text) <= width {
		return []string{text}
	}
	rows := Wrap(text, width)
	for i, row := range rows {
		rows[i] = shorten(row, width)
	}
	return rows
}

// shorten replaces the middle of the longest word of a line that is too wide, such as a
// key, with a mark. If that is not enough, it truncates the line.
func shorten(line string, width int) string {
	over := utf8.RuneCountInString(line) - width
	if over <= 0 {
		return line
	}
	const mark = "…"
	var longest []rune
	for _, word := range strings.Fields(line) {
		if utf8.RuneCountInString(word) > len(longest) {
			longest = []rune(word)
		}
	}
	keep := len(longest) - over - 1
	if keep < 2 {
		return string([]rune(line)[:width-1]) + mark
	}
	short := string(longest[:keep-keep/2]) + mark + string(longest[len(longest)-keep/2:])
	return strings.Replace(line, string(longest), short, 1)
}
