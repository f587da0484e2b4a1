package ui

import (
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// A theme maps custom properties to colours.
type theme map[string]string

var (
	property = regexp.MustCompile(`--([a-z-]+):\s*(#[0-9a-f]{3,6});`)
	rule     = regexp.MustCompile(`([^{}]+)\{([^{}]*)\}`)
	painted  = regexp.MustCompile(`(?:^|[;{\s])(color|background):\s*([^;]+)`)
	filled   = regexp.MustCompile(`(?:^|[;{\s])fill:\s*var\(--([a-z-]+)\)`)
	comments = regexp.MustCompile(`(?s)/\*.*?\*/`)
)

// themes reads the style sheet: the light theme, the dark theme's changes to it,
// and the remaining rules.
func themes(t *testing.T) (both map[string]theme, rest string) {
	t.Helper()
	text, err := files.ReadFile("static/style.css")
	if err != nil {
		t.Fatal(err)
	}
	css := comments.ReplaceAllString(string(text), "")
	first, after, found := strings.Cut(css, "@media (prefers-color-scheme: dark)")
	second, rest, ends := strings.Cut(after, "\n}\n")
	if !found || !ends {
		t.Fatal("the style sheet must begin with the light theme and the changes of the dark theme")
	}
	light, dark := theme{}, theme{}
	for _, m := range property.FindAllStringSubmatch(first, -1) {
		light[m[1]], dark[m[1]] = m[2], m[2]
	}
	for _, m := range property.FindAllStringSubmatch(second, -1) {
		dark[m[1]] = m[2]
	}
	if len(light) < 10 || maps.Equal(light, dark) {
		t.Fatalf("the themes are %v and %v", light, dark)
	}
	return map[string]theme{"light": light, "dark": dark}, rest
}

// luminance returns the relative luminance of an sRGB colour (WCAG 2.2).
func luminance(t *testing.T, hex string) float64 {
	t.Helper()
	digits := strings.TrimPrefix(hex, "#")
	if len(digits) == 3 {
		digits = string([]byte{digits[0], digits[0], digits[1], digits[1], digits[2], digits[2]})
	}
	n, err := strconv.ParseUint(digits, 16, 32)
	if err != nil || len(digits) != 6 {
		t.Fatalf("%q is not a colour", hex)
	}
	channel := func(shift int) float64 {
		c := float64(n>>shift&0xff) / 255
		if c <= 0.04045 {
			return c / 12.92
		}
		return math.Pow((c+0.055)/1.055, 2.4)
	}
	return 0.2126*channel(16) + 0.7152*channel(8) + 0.0722*channel(0)
}

// contrast returns the contrast ratio of two colours, 1 to 21 (WCAG 2.2).
func contrast(t *testing.T, one, other string) float64 {
	t.Helper()
	a, b := luminance(t, one), luminance(t, other)
	return (max(a, b) + 0.05) / (min(a, b) + 0.05)
}

func TestContrastIsComputed(t *testing.T) {
	for pair, want := range map[[2]string]float64{{"#fff", "#000"}: 21, {"#777777", "#fff"}: 4.48, {"#767676", "#ffffff"}: 4.54, {"#abc", "#abc"}: 1} {
		if got := contrast(t, pair[0], pair[1]); math.Abs(got-want) > 0.01 {
			t.Errorf("%v: %.2f, want %.2f", pair, got, want)
		}
	}
}

// surfaces are the backgrounds of text whose rule sets none: the page, a card,
// and code or a note in either.
var surfaces = []string{"paper", "card", "code"}

// TestContrast checks that every text is legible in both themes (WCAG 2.2 AA,
// 1.4.3), and that controls and the focus are visible (1.4.11).
func TestContrast(t *testing.T) {
	both, rest := themes(t)
	const text, control = 4.5, 3
	want := map[[2]string]float64{}
	demand := func(colour, on string, least float64) {
		want[[2]string{colour, on}] = max(want[[2]string{colour, on}], least)
	}
	for _, m := range rule.FindAllStringSubmatch(rest, -1) {
		selector, colour, on := strings.TrimSpace(m[1]), "", ""
		for _, p := range painted.FindAllStringSubmatch(m[2], -1) {
			value := strings.TrimSpace(p[2])
			name, isVar := strings.CutPrefix(value, "var(--")
			if !isVar && value != "inherit" && value != "transparent" {
				t.Errorf("%s has the colour %s: name it and define it in both themes", selector, value)
			}
			if name = strings.TrimSuffix(name, ")"); !isVar {
				name = ""
			}
			if p[1] == "color" {
				colour = name
			} else {
				on = name
			}
		}
		for _, fill := range filled.FindAllStringSubmatch(m[2], -1) {
			switch selector {
			case ".track": // the empty part of a bar; a text states the length
			case ".chart text":
				demand(fill[1], "card", text)
			default: // an area of a chart
				demand(fill[1], "card", control)
				demand(fill[1], "paper", control)
			}
		}
		switch {
		case colour != "" && on != "":
			demand(colour, on, text)
		case on != "":
			demand("ink", on, text)
			demand("accent", on, text) // a link in it
		case colour != "":
			for _, s := range surfaces {
				demand(colour, s, text)
			}
		}
	}
	for _, s := range []string{"go-soft", "danger-soft", "warn-soft"} {
		demand("accent", s, text) // a link in it
	}
	for _, s := range surfaces {
		demand("accent", s, text) // also the outline of the focused element
		demand("soft", s, control)
	}
	if len(want) < 18 {
		t.Fatalf("got only %d pairs of colours from the style sheet", len(want))
	}
	for name, th := range both {
		for _, pair := range slices.SortedFunc(maps.Keys(want), func(a, b [2]string) int { return strings.Compare(a[0]+a[1], b[0]+b[1]) }) {
			colour, on := th[pair[0]], th[pair[1]]
			if colour == "" || on == "" {
				t.Errorf("%s: the theme lacks the colour %q or %q", name, pair[0], pair[1])
				continue
			}
			if got := contrast(t, colour, on); got < want[pair] {
				t.Errorf("%s: %s on %s has a contrast of %.2f, less than %.1f", name, pair[0], pair[1], got, want[pair])
			}
		}
	}
}
