package ui

import (
	"fmt"
	"strings"
	"time"
)

// An Axis is a timeline that a page draws: bars over time, one row below another. Positions
// are in percent of the width, so that the drawing fits a phone without a script.
type Axis struct {
	Begin, End time.Time
	Now        time.Time // drawn as a line if it is on the axis
	Rows       []AxisRow
}

// An AxisRow is a line of text with its bars below it.
type AxisRow struct {
	Text string
	Bars []AxisBar
}

// An AxisBar lasts from From to To. If both are equal, it is a point.
type AxisBar struct {
	Kind     string // waited, granted, alive, lingering, ended
	From, To time.Time
}

// Sizes of a drawing, in pixels.
const (
	axisText = 16 // from the top of a row to the base line of its text
	axisBar  = 22 // to the top of its bars
	axisThin = 10 // the height of a bar
	axisRow  = 44
	axisFoot = 24 // below the rows, for the ticks
)

// narrowest is the width of the shortest bar, in percent.
const narrowest = 0.6

// at returns the position of a time in percent.
func (a *Axis) at(t time.Time) float64 {
	whole := a.End.Sub(a.Begin)
	if whole <= 0 {
		return 0
	}
	return min(max(100*float64(t.Sub(a.Begin))/float64(whole), 0), 100)
}

// percent writes a position so that equal drawings have equal bytes.
func percent(p float64) string { return fmt.Sprintf("%.2f%%", p) }

// A drawnBar is a bar with its place.
type drawnBar struct {
	Kind, X, Width string
	Y, Height      int
	Point          bool
}

// Middle returns the middle of the bar's height.
func (b drawnBar) Middle() int { return b.Y + b.Height/2 }

// A drawnRow is a row with its place.
type drawnRow struct {
	Text string
	Y    int
	Bars []drawnBar
}

// Drawn returns the rows with their places. The part of a bar that lies ahead of the
// present has a kind of its own.
func (a *Axis) Drawn() (rows []drawnRow) {
	for i, r := range a.Rows {
		row := drawnRow{Text: r.Text, Y: i*axisRow + axisText}
		for _, b := range r.Bars {
			past, ahead := b.To, b.To
			if a.Now.Before(b.To) {
				past, ahead = later(b.From, a.Now), b.To
			}
			if b.From.Equal(b.To) || past.After(b.From) {
				row.Bars = append(row.Bars, a.draw(b.Kind, b.From, past, i*axisRow+axisBar))
			}
			if ahead.After(past) {
				row.Bars = append(row.Bars, a.draw(b.Kind+" ahead", past, ahead, i*axisRow+axisBar))
			}
		}
		rows = append(rows, row)
	}
	return rows
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// draw places a bar. The shortest ones are wide enough to be seen.
func (a *Axis) draw(kind string, from, to time.Time, y int) drawnBar {
	x := a.at(from)
	width := max(a.at(to)-x, narrowest)
	return drawnBar{Kind: kind, X: percent(min(x, 100-narrowest)), Width: percent(width), Y: y, Height: axisThin, Point: from.Equal(to)}
}

// Height returns the height of the drawing.
func (a *Axis) Height() int { return len(a.Rows)*axisRow + axisFoot }

// Foot returns where the rows end and the ticks begin.
func (a *Axis) Foot() int { return len(a.Rows) * axisRow }

// Label returns where the base line of the tick's labels is.
func (a *Axis) Label() int { return a.Height() - 6 }

// NowAt returns the position of the present; empty if it is not on the axis.
func (a *Axis) NowAt() string {
	if !a.Now.After(a.Begin) || !a.Now.Before(a.End) {
		return ""
	}
	return percent(a.at(a.Now))
}

// Alternative describes the drawing in words.
func (a *Axis) Alternative() string {
	var texts []string
	for _, r := range a.Rows {
		texts = append(texts, r.Text)
	}
	return strings.Join(texts, "; ")
}

// A tick is a labelled time of an axis.
type tick struct{ X, Text, Anchor string }

// steps are the distances of ticks, which people can read.
var steps = []time.Duration{
	time.Second, 2 * time.Second, 5 * time.Second, 15 * time.Second, 30 * time.Second,
	time.Minute, 2 * time.Minute, 5 * time.Minute, 10 * time.Minute, 15 * time.Minute, 30 * time.Minute,
	time.Hour, 2 * time.Hour, 3 * time.Hour, 6 * time.Hour, 12 * time.Hour,
	24 * time.Hour, 48 * time.Hour, 7 * 24 * time.Hour, 14 * 24 * time.Hour, 28 * 24 * time.Hour,
}

// maxTicks is how many labels fit on a phone.
const maxTicks = 4

// Ticks returns the labelled times.
func (a *Axis) Ticks() (ticks []tick) {
	whole := a.End.Sub(a.Begin)
	step := steps[len(steps)-1]
	for _, s := range steps {
		if whole/s <= maxTicks {
			step = s
			break
		}
	}
	form := "15:04"
	switch {
	case step < time.Minute:
		form = "15:04:05"
	case step >= 24*time.Hour:
		form = "Jan 2"
	}
	for t := a.Begin.UTC().Truncate(step); !t.After(a.End) && len(ticks) < 4*maxTicks; t = t.Add(step) {
		if t.Before(a.Begin) {
			continue
		}
		anchor := "middle"
		switch at := a.at(t); {
		case at < 8:
			anchor = "start"
		case at > 92:
			anchor = "end"
		}
		text := t.Format(form)
		if t.Equal(t.Truncate(24 * time.Hour)) {
			text = t.Format("Jan 2") // a new day
		}
		ticks = append(ticks, tick{percent(a.at(t)), text, anchor})
	}
	return ticks
}
