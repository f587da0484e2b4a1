package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
)

const tableID = "req_06h2920pjho019jpakq552025s"

func tableOf(width int, lines ...string) string {
	var out bytes.Buffer
	t := &table{out: &out, width: width, now: time.Date(2026, 11, 28, 23, 0, 0, 0, time.UTC)}
	for _, line := range lines {
		fmt.Fprintln(t, line)
	}
	if err := t.Flush(); err != nil {
		return err.Error()
	}
	return out.String()
}

func TestTableFits(t *testing.T) {
	header := "REQUEST\tSTATUS\tENTITLEMENT\tSCOPES\tREQUESTER\tCREATED"
	row := func(status, scopes, requester, created string) string {
		return strings.Join([]string{tableID, status, "tickets-api", scopes, requester, created}, "\t")
	}
	one, two := "spiffe://acme.test/agent/triage", "spiffe://acme.test/agent/report"
	today, before := "2026-11-28 22:40:28Z", "2026-11-27 22:40:28Z"
	for name, test := range map[string]struct {
		lines []string
		want  []string
	}{
		"one requester": {
			[]string{header, row("pending", "tickets:close", one, today), row("approved", "tickets:read", one, before)},
			[]string{"requester: " + one, tableID, "tickets:close", "22:40:28Z", "2026-11-27"},
		},
		"two requesters": {
			[]string{header, row("pending", "tickets:close", one, today), row("approved", "tickets:read", two, before)},
			[]string{tableID, "…", "triage", "22:40:28Z"},
		},
		"wide text": {
			[]string{"A\tB\tC", "a\t" + strings.Repeat("é", 200) + "\tc"},
			[]string{"é…  c"},
		},
		"many columns": {
			[]string{strings.Repeat("COLUMN\t", 9) + "X", strings.Repeat("something long\t", 9) + "x"},
			[]string{"somet…"},
		},
		"next page": {
			[]string{header, row("pending", "tickets:close", one, today), "more: --cursor " + strings.Repeat("c", 70)},
			[]string{"\nmore: --cursor " + strings.Repeat("c", 70) + "\n"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := tableOf(80, test.lines...)
			for line := range strings.Lines(got) {
				if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > 80 && !strings.HasPrefix(line, "more:") {
					t.Errorf("a line has %d columns: %s", n, line)
				}
			}
			for _, want := range test.want {
				if !strings.Contains(got, want) {
					t.Errorf("%q is not in\n%s", want, got)
				}
			}
			if wide := tableOf(0, test.lines...); strings.Contains(wide, "…") || !strings.Contains(wide, strings.Split(test.lines[1], "\t")[1]) {
				t.Errorf("a table that is not on a terminal was shortened:\n%s", wide)
			}
		})
	}
}

// The help of every command fits a terminal of 80 columns.
func TestHelpFitsTerminal(t *testing.T) {
	commands := []*cobra.Command{(&app{}).root()}
	for i := 0; i < len(commands); i++ {
		c := commands[i]
		commands = append(commands, c.Commands()...)
		for line := range strings.Lines(c.Short + "\n" + c.Long) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > 80 {
				t.Errorf("%s: a line has %d columns: %s", c.CommandPath(), n, line)
			}
		}
	}
	if len(commands) < 20 {
		t.Errorf("got %d commands, want all", len(commands))
	}
}
