package ui

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

var begin = time.Date(2026, 11, 29, 23, 50, 3, 0, time.UTC)

func draw(t *testing.T, a *Axis) string {
	t.Helper()
	var b bytes.Buffer
	if err := loaded().templates["request"].ExecuteTemplate(&b, "axis", a); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestAxisPlacesBars checks that lengths are true to the times, that what lies ahead is
// marked, and that short bars stay visible.
func TestAxisPlacesBars(t *testing.T) {
	at := func(minutes int) time.Time { return begin.Add(time.Duration(minutes) * time.Minute) }
	a := &Axis{Begin: begin, End: at(100), Now: at(50), Rows: []AxisRow{
		{"waited <i>", []AxisBar{{"waited", begin, at(25)}}},
		{"granted", []AxisBar{{"granted", at(25), at(75)}}},
		{"blinked", []AxisBar{{"alive", at(30), at(30).Add(time.Second)}}},
		{"ended", []AxisBar{{"ended", at(100), at(100)}}},
	}}
	page := draw(t, a)
	for what, want := range map[string]string{
		"the past":        `<rect class="bar waited" x="0.00%" y="22" width="25.00%" height="10" rx="3"/>`,
		"up to now":       `<rect class="bar granted" x="25.00%" y="66" width="25.00%" height="10" rx="3"/>`,
		"ahead of now":    `<rect class="bar granted ahead" x="50.00%" y="66" width="25.00%" height="10" rx="3"/>`,
		"a short bar":     `<rect class="bar alive" x="30.00%" y="110" width="0.60%" height="10" rx="3"/>`,
		"a point":         `<circle class="bar ended" cx="99.40%" cy="159" r="5"/>`,
		"now":             `<line class="now" x1="50.00%" x2="50.00%" y1="0" y2="176"/>`,
		"the alternative": `role="img" aria-label="Timeline: waited &lt;i&gt;; granted; blinked; ended"`,
		"the date":        "29 November 2026, times in UTC; the dashed line is now",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("%s: no %s in\n%s", what, want, page)
		}
	}
	if strings.Contains(page, " style=") || strings.Contains(page, "<i>") {
		t.Errorf("the drawing needs a style that the content policy refuses, or has markup of a text:\n%s", page)
	}
	a.Now = at(200)
	if page := draw(t, a); strings.Contains(page, "ahead") || strings.Contains(page, `class="now"`) {
		t.Errorf("after the end, something lies ahead:\n%s", page)
	}
}

// TestAxisTicks checks that an axis of any length has a few labels that people can read.
func TestAxisTicks(t *testing.T) {
	for whole, want := range map[time.Duration][]string{
		time.Second:           {"23:50:03", "23:50:04"},
		25 * time.Second:      {"23:50:15"},
		10 * time.Minute:      {"23:55", "Nov 30"},
		90 * time.Minute:      {"Nov 30", "00:30", "01:00"},
		26 * time.Hour:        {"Nov 30", "06:00", "12:00", "18:00", "Dec 1"},
		30 * 24 * time.Hour:   {"Nov 30", "Dec 7", "Dec 14", "Dec 21", "Dec 28"},
		4000 * 24 * time.Hour: nil, // longer than any request: only its number is bounded
	} {
		a := &Axis{Begin: begin, End: begin.Add(whole)}
		var got []string
		for _, tick := range a.Ticks() {
			got = append(got, tick.Text)
		}
		if len(got) == 0 || len(got) > 4*maxTicks || want != nil && strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("%s: got %q, want %q", whole, got, want)
		}
	}
	if a := (&Axis{Begin: begin, End: begin}); len(a.Ticks()) == 0 || a.NowAt() != "" {
		t.Errorf("an empty axis: got the ticks %v", a.Ticks())
	}
}
