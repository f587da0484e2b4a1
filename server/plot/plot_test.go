package plot

import (
	"fmt"
	"math"
	"strconv"
	"testing"
)

var two = []Series{{"Granted", "go"}, {"Denied", "danger"}}

// checkBounds checks that all of a chart is inside its view box, and that bars of one
// column do not overlap.
func checkBounds(t *testing.T, c Chart) {
	t.Helper()
	parse := func(s string) float64 {
		v, err := strconv.ParseFloat(s, 64)
		if err != nil || math.IsNaN(v) || math.IsInf(v, 0) {
			t.Fatalf("%q is not a length", s)
		}
		return v
	}
	lowest := map[string]float64{}
	for _, b := range c.Bars {
		x, y, w, h := parse(b.X), parse(b.Y), parse(b.Width), parse(b.Height)
		if x < left || y < top-1 || x+w > width || y+h > bottom+0.02 || w <= 0 || h <= 0 {
			t.Errorf("the bar %+v is outside", b)
		}
		if below, drawn := lowest[b.X]; drawn && y+h > below+0.8 {
			t.Errorf("the bar %+v covers the one below it, at %f", b, below)
		}
		lowest[b.X] = y
	}
	for _, m := range c.Ticks {
		if at := parse(m.At); at < left || at > width {
			t.Errorf("the tick %+v is outside", m)
		}
	}
	for _, m := range c.Rows {
		if at := parse(m.At); at < top || at > bottom {
			t.Errorf("the row %+v is outside", m)
		}
	}
	if len(c.Rows) < 2 || len(c.Rows) > 6 {
		t.Errorf("got the rows %+v", c.Rows)
	}
}

func TestStackedStaysInside(t *testing.T) {
	for name, columns := range map[string][]Column{
		"nothing":         nil,
		"zeros":           {{Label: "a", Values: []int{0, 0}}, {Label: "b"}},
		"one point":       {{Label: "a", Tick: "a", Values: []int{1, 0}}},
		"one large":       {{Label: "a", Values: []int{1, 1_000_000}}, {Label: "b", Values: []int{1, 1}}},
		"too few values":  {{Label: "a", Values: []int{3}}},
		"too many values": {{Label: "a", Values: []int{3, 4, 5}}},
		"negative values": {{Label: "a", Values: []int{-3, 4}}},
		"overflow":        {{Label: "a", Values: []int{math.MaxInt, math.MaxInt}}, {Label: "b", Values: []int{math.MaxInt, 1}}},
	} {
		t.Run(name, func(t *testing.T) {
			c := Stacked("x", "Title", "Summary", two, columns)
			checkBounds(t, c)
			if wantEmpty := name == "nothing" || name == "zeros"; c.Empty != wantEmpty {
				t.Errorf("empty: %t", c.Empty)
			}
			for _, column := range c.Columns {
				if len(column.Values) != len(two) {
					t.Errorf("the table has %d values for %d series", len(column.Values), len(two))
				}
			}
		})
	}
}

func TestStackedOfManyColumnsShowsTheLast(t *testing.T) {
	var columns []Column
	for i := range 1000 {
		columns = append(columns, Column{Label: fmt.Sprint(i), Values: []int{i, 1}})
	}
	c := Stacked("x", "Title", "Summary", two, columns)
	checkBounds(t, c)
	if len(c.Columns) != most || c.Columns[most-1].Label != "999" || len(c.Bars) != 2*most {
		t.Errorf("got %d columns and %d bars, the last is %+v", len(c.Columns), len(c.Bars), c.Columns[len(c.Columns)-1])
	}
}

func TestStackedAddsUp(t *testing.T) {
	c := Stacked("x", "Title", "Summary", two, []Column{{Label: "a", Values: []int{1, 2}}, {Label: "b", Values: []int{30, 40}}})
	if c.Series[0].Sum != 31 || c.Series[1].Sum != 42 {
		t.Errorf("got %+v", c.Series)
	}
	if c.Bars[0].Class != "go" || c.Bars[1].Class != "danger" || c.Bars[2].Height != "52.5" {
		t.Errorf("got %+v", c.Bars)
	}
}

func TestAxis(t *testing.T) {
	for highest, want := range map[int][2]int{0: {1, 1}, 1: {1, 1}, 5: {5, 1}, 6: {6, 2}, 11: {15, 5}, 26: {30, 10}, 99: {100, 20}, 1234: {1500, 500}, 2_500_001: {3_000_000, 1_000_000}} {
		scale, step := axis(highest)
		if scale != want[0] || step != want[1] {
			t.Errorf("axis(%d) = %d, %d, want %d", highest, scale, step, want)
		}
	}
	for v, want := range map[int]string{0: "0", 999: "999", 1000: "1k", 1500: "1.5k", 2_000_000: "2M", 3_000_000_000: "3G"} {
		if got := short(v); got != want {
			t.Errorf("short(%d) = %q, want %q", v, got, want)
		}
	}
}
