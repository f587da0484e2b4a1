// Package screen writes text for people at a terminal: in colour where colour is wanted,
// and wrapped to the width of a terminal.
package screen

import (
	"io"
	"os"
	"strings"
	"unicode/utf8"
)

// Width is the number of columns that text for people fits in.
const Width = 80

// A Palette colours text. The zero Palette leaves text unchanged.
type Palette struct{ colour bool }

// PaletteFor returns the palette for the output w. It colours text on a terminal, unless
// the user has set NO_COLOR (https://no-color.org) or the terminal is dumb.
func PaletteFor(w io.Writer, getenv func(string) string) Palette {
	return Palette{IsTerminal(w) && getenv("NO_COLOR") == "" && getenv("TERM") != "dumb"}
}

// Good colours text about a success.
func (p Palette) Good(text string) string { return p.with("32", text) }

// Bad colours text about a refusal or failure.
func (p Palette) Bad(text string) string { return p.with("31", text) }

// Waiting colours text about something that waits for a person.
func (p Palette) Waiting(text string) string { return p.with("33", text) }

// Command colours a command to type or an address to open.
func (p Palette) Command(text string) string { return p.with("36", text) }

// Strong makes text bold.
func (p Palette) Strong(text string) string { return p.with("1", text) }

// with wraps text in an escape sequence of ECMA-48, section 8.3.117. Terminals map these
// few colours to their own theme, dark or light.
func (p Palette) with(code, text string) string {
	if !p.colour || text == "" {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// IsTerminal reports whether w is a terminal.
func IsTerminal(w any) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull) // also a character device
	return err != nil || !os.SameFile(info, null)
}

// Wrap breaks a text at spaces and keeps its indentation. It does not break words
// longer than width, because people copy identifiers and addresses.
func Wrap(text string, width int) (rows []string) {
	indent := text[:len(text)-len(strings.TrimLeft(text, " "))]
	row := ""
	for _, word := range strings.Fields(text) {
		switch {
		case row == "":
			row = indent + word
		case utf8.RuneCountInString(row)+1+utf8.RuneCountInString(word) > width:
			rows = append(rows, row)
			row = indent + word
		default:
			row += " " + word
		}
	}
	if row != "" {
		rows = append(rows, row)
	}
	return rows
}
