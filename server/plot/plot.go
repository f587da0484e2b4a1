// Package plot computes the geometry of charts that pages show as inline SVG, without
// scripts. It draws nothing itself: a template of package server/ui writes the elements, so
// that html/template escapes every text. Colours are classes of the style sheet.
//
// Each chart has its data as a table too, for people who do not see it.
package plot

import (
	"fmt"
	"math"
	"strconv"
)

// A Column is a place on the horizontal axis, with a value of each series.
type Column struct {
	Label  string // its whole name, for the table
	Tick   string // its name on the axis; empty: none
	Values []int  // one for each series; missing and negative ones count as 0
}

// A Series is one kind of value. All series of a column are stacked.
type Series struct {
	Name  string
	Class string // of the style sheet
}

// A Chart is the geometry of a stacked bar chart. Lengths are in units of its view box.
type Chart struct {
	ID      string // unique on the page
	Title   string
	Summary string // what the chart shows, in words
	Series  []Total
	Columns []Column
	Bars    []Bar
	Rows    []Mark // the lines of the vertical axis
	Ticks   []Mark // the names on the horizontal axis
	Empty   bool   // all values are 0
}

// A Total is a series with the sum of its values.
type Total struct {
	Series
	Sum int
}

// A Bar is one segment of a column.
type Bar struct{ X, Y, Width, Height, Class string }

// A Mark is a text at a place of an axis.
type Mark struct {
	At, Text string
	Minor    bool // it is left out where there is little room
}

// The size of a chart. Templates use the same numbers: see Chart.Box.
const (
	width  = 340
	height = 170
	left   = 34 // of the numbers of the vertical axis
	top    = 8
	bottom = 148
	most   = 64 // columns; more would be thinner than a line
)

// Box returns the view box.
func (Chart) Box() string { return fmt.Sprintf("0 0 %d %d", width, height) }

// The places of the axes.
func (Chart) Left() int   { return left }
func (Chart) Right() int  { return width }
func (Chart) Bottom() int { return bottom }

// Stacked returns a chart with one bar for each column. It leaves out the first columns
// if there are too many.
func Stacked(id, title, summary string, series []Series, columns []Column) Chart {
	if len(columns) > most {
		columns = columns[len(columns)-most:]
	}
	c := Chart{ID: id, Title: title, Summary: summary, Columns: clean(columns, len(series))}
	highest := 0
	for i, s := range series {
		sum := 0
		for _, column := range c.Columns {
			sum = add(sum, column.Values[i])
		}
		c.Series = append(c.Series, Total{s, sum})
	}
	for _, column := range c.Columns {
		highest = max(highest, column.sum())
	}
	c.Empty = highest == 0
	scale, step := axis(highest)
	for v := 0; v <= scale; v += step {
		c.Rows = append(c.Rows, Mark{At: number(y(v, scale)), Text: short(v)})
	}
	c.draw(series, scale)
	return c
}

// draw places the bars and the ticks.
func (c *Chart) draw(series []Series, scale int) {
	each := float64(width-left) / float64(max(len(c.Columns), 1))
	gap := min(each/4, 3)
	for i, column := range c.Columns {
		x, below := left+float64(i)*each+gap/2, 0
		for j, v := range column.Values {
			if v == 0 {
				continue
			}
			from, to := y(below, scale), y(below+v, scale)
			// A small value among large ones stays visible.
			c.Bars = append(c.Bars, Bar{number(x), number(min(to, from-0.75)), number(each - gap), number(max(from-to, 0.75)), series[j].Class})
			below += v
		}
		if column.Tick != "" {
			c.Ticks = append(c.Ticks, Mark{At: number(x + (each-gap)/2), Text: column.Tick, Minor: len(c.Ticks)%2 == 1})
		}
	}
}

// clean returns the columns with exactly n values that are not negative.
func clean(columns []Column, n int) []Column {
	out := make([]Column, len(columns))
	for i, column := range columns {
		out[i] = Column{column.Label, column.Tick, make([]int, n)}
		for j := range min(n, len(column.Values)) {
			// The bound keeps sums in range, however many columns there are.
			out[i].Values[j] = min(max(column.Values[j], 0), math.MaxInt/(most*64))
		}
	}
	return out
}

func (c *Column) sum() (n int) {
	for _, v := range c.Values {
		n = add(n, v)
	}
	return n
}

func add(a, b int) int {
	if a > math.MaxInt-b {
		return math.MaxInt
	}
	return a + b
}

// axis returns the top of the vertical axis and the distance of its lines: 1, 2 or 5
// times a power of ten, so that there are at most five.
func axis(highest int) (scale, step int) {
	power := 1
	for {
		for _, factor := range []int{1, 2, 5} {
			step = factor * power
			if highest <= 5*step {
				return max((highest+step-1)/step*step, step), step
			}
		}
		power *= 10
	}
}

func y(v, scale int) float64 { return bottom - float64(v)/float64(scale)*(bottom-top) }

// number formats a length.
func number(v float64) string { return strconv.FormatFloat(math.Round(v*100)/100, 'f', -1, 64) }

// short formats a number of the axis.
func short(v int) string {
	for _, unit := range []struct {
		size int
		name string
	}{{1_000_000_000, "G"}, {1_000_000, "M"}, {1000, "k"}} {
		if v >= unit.size {
			return strconv.FormatFloat(float64(v)/float64(unit.size), 'f', -1, 64) + unit.name
		}
	}
	return strconv.Itoa(v)
}
