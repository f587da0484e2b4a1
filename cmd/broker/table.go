package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// A table aligns rows of cells, which are lines with tabs. On a terminal it fits the
// rows into the terminal's width: it shortens times, states a column of one value once,
// and truncates other cells with a mark. It never shortens the id of a request or
// lease, because people copy it. Lines without tabs stay as they are.
type table struct {
	out   io.Writer
	width int // of the terminal; 0: unlimited
	now   time.Time
	lines bytes.Buffer
}

const (
	columnGap  = 2
	leastWidth = 6 // of a truncated cell
	truncated  = "…"
)

func newTable(out io.Writer) *table {
	return &table{out: out, width: terminalWidth(out), now: time.Now()}
}

// terminalWidth returns the number of columns of a terminal, or 0 for anything else.
func terminalWidth(out io.Writer) int {
	f, ok := out.(*os.File)
	if !ok {
		return 0
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	return int(size.Col)
}

// Write implements io.Writer.
func (t *table) Write(p []byte) (int, error) { return t.lines.Write(p) }

// Flush writes the lines so far. The next ones get their own column widths.
func (t *table) Flush() error {
	var rows [][]string
	for line := range strings.Lines(t.lines.String()) {
		rows = append(rows, strings.Split(strings.TrimSuffix(line, "\n"), "\t"))
	}
	t.lines.Reset()
	rows, common := t.fit(rows)
	widths := widthsOf(rows)
	var out bytes.Buffer
	out.WriteString(common)
	for _, row := range rows {
		padding := 0
		for i, cell := range row {
			if cell != "" {
				out.WriteString(strings.Repeat(" ", padding))
				out.WriteString(cell)
				padding = 0
			}
			if i < len(row)-1 {
				padding += widths[i] - utf8.RuneCountInString(cell) + columnGap
			}
		}
		out.WriteByte('\n')
	}
	_, err := t.out.Write(out.Bytes())
	return err
}

// widthsOf returns the width of each column.
func widthsOf(rows [][]string) (widths []int) {
	for _, row := range rows {
		for i, cell := range row {
			if len(row) == 1 {
				continue // a line
			}
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	return widths
}

func (t *table) fits(widths []int) bool {
	total := columnGap * (len(widths) - 1)
	for _, w := range widths {
		total += w
	}
	return t.width == 0 || total <= t.width
}

// fit shortens rows until they fit. common states the columns that it removed.
func (t *table) fit(rows [][]string) (_ [][]string, common string) {
	if t.fits(widthsOf(rows)) {
		return rows, ""
	}
	for _, row := range rows {
		for i := range row {
			row[i] = t.shortTime(row[i])
		}
	}
	if !t.fits(widthsOf(rows)) {
		rows, common = removeCommon(rows)
	}
	widths, fixed := widthsOf(rows), fixedColumns(rows)
	for !t.fits(widths) {
		widest := -1
		for i, w := range widths {
			if !fixed[i] && w > leastWidth && (widest < 0 || w > widths[widest]) {
				widest = i
			}
		}
		if widest < 0 {
			break // nothing is left to shorten
		}
		widths[widest]--
	}
	for _, row := range rows {
		for i := range row {
			if len(row) > 1 {
				row[i] = truncate(row[i], widths[i])
			}
		}
	}
	return rows, common
}

var timeForm = regexp.MustCompile(`^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?Z$`)

// shortTime returns the time of day of a time of today, and the date of any other.
func (t *table) shortTime(cell string) string {
	if !timeForm.MatchString(cell) {
		return cell
	}
	if date, clock, _ := strings.Cut(cell, " "); date == t.now.UTC().Format(time.DateOnly) {
		return clock
	}
	return cell[:len(time.DateOnly)]
}

// removeCommon removes the column of requesters or holders if all rows have the same
// one, and returns a line that states it.
func removeCommon(rows [][]string) (_ [][]string, common string) {
	if len(rows) < 2 {
		return rows, ""
	}
	at := slices.IndexFunc(rows[0], func(name string) bool { return name == "REQUESTER" || name == "HOLDER" })
	if at < 0 {
		return rows, ""
	}
	for _, row := range rows[1:] {
		if len(row) > 1 && row[at] != rows[1][at] {
			return rows, ""
		}
	}
	common = fmt.Sprintf("%s: %s\n", strings.ToLower(rows[0][at]), rows[1][at])
	for i, row := range rows {
		if len(row) > 1 {
			rows[i] = slices.Delete(row, at, at+1)
		}
	}
	return rows, common
}

var shortTimeForm = regexp.MustCompile(`^(\d\d:\d\d:\d\d(\.\d+)?Z|\d{4}-\d\d-\d\d)$`)

// fixedColumns reports, for each column, whether it has ids of requests or leases, or
// times.
func fixedColumns(rows [][]string) map[int]bool {
	fixed := map[int]bool{}
	for _, row := range rows {
		for i, cell := range row {
			if isID("request", cell) || isID("lease", cell) || shortTimeForm.MatchString(cell) {
				fixed[i] = true
			}
		}
	}
	return fixed
}

// truncate shortens a cell. The end of a SPIFFE ID says more than its start.
func truncate(cell string, width int) string {
	runes := []rune(cell)
	switch {
	case len(runes) <= width:
		return cell
	case strings.HasPrefix(cell, "spiffe://"):
		return truncated + string(runes[len(runes)-width+1:])
	}
	return string(runes[:width-1]) + truncated
}
