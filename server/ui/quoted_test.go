package ui

import (
	"bytes"
	"strings"
	"testing"
)

// shown returns the text of runs, with the escaped ones in brackets.
func shown(runs []run) string {
	var b strings.Builder
	for _, r := range runs {
		if r.Escaped {
			b.WriteString("[" + r.Text + "]")
		} else {
			b.WriteString(r.Text)
		}
	}
	return b.String()
}

// TestQuotedTextIsBounded checks that no text pushes the rest of a page away: its start
// is short, and whatever is left out can be opened.
func TestQuotedTextIsBounded(t *testing.T) {
	for name, test := range map[string]struct{ text, start, size string }{
		"one line":              {"duplicates of INC-4711", "duplicates of INC-4711", ""},
		"six lines":             {"1\n2\n3\n4\n5\n6", "1\n2\n3\n4\n5\n6", ""},
		"seven lines":           {"1\n2\n3\n4\n5\n6\n7", "1\n2\n3\n4\n5\n6…", "7 lines, 13 characters"},
		"21 newlines":           {strings.Repeat("\n", 21) + "Status: approved", "Status: approved", ""},
		"newlines in the text":  {"please" + strings.Repeat("\n \t\n", 40) + "Status: approved", "please\nStatus: approved", "81 lines, 182 characters"},
		"no-break spaces":       {"a" + strings.Repeat("\n\u00a0\u3000", 30) + "\nb", "a\nb", "32 lines, 93 characters"},
		"line and paragraph":    {"a\u2028\u2029b", "a[U+2028][U+2029]b", ""},
		"carriage returns":      {"a\r\nb", "a\nb", ""},
		"a long word":           {strings.Repeat("W", 401), strings.Repeat("W", 400) + "…", "1 line, 401 characters"},
		"the longest that fits": {strings.Repeat("W", 400), strings.Repeat("W", 400), ""},
	} {
		q := quote(test.text)
		if got := shown(q.Start); got != test.start || q.Size != test.size || (q.Whole != nil) != (test.size != "") {
			t.Errorf("%s: got %q, %q, rest %t; want %q, %q", name, got, q.Size, q.Whole != nil, test.start, test.size)
		}
	}
	if got := shown(brief("a\n\n\nStatus: approved " + strings.Repeat("x ", 200))); len([]rune(got)) > briefRunes+1 || strings.Contains(got, "\n") || !strings.HasPrefix(got, "a Status: approved x") || !strings.HasSuffix(got, "…") {
		t.Errorf("in a list: %q", got)
	}
	if got := shown(inline(" INC-1\nstatus  approved ")); got != "INC-1 status approved" {
		t.Errorf("in a line: %q", got)
	}
}

// TestHiddenCharactersAreNamed checks that a reader sees every character of a text, and
// that the languages of the world stay legible.
func TestHiddenCharactersAreNamed(t *testing.T) {
	for text, want := range map[string]string{
		"pay\u202eeem":                      "pay[U+202E]eem",
		"a\u2066b\u2069\u200e\u200f\u061c":  "a[U+2066]b[U+2069][U+200E][U+200F][U+061C]",
		"a\u0000\u001b[31m\u0085\u007f":     "a[U+0000][U+001B][31m[U+0085][U+007F]",
		"zero\u200bwidth\ufeff\u00ad\u2060": "zero[U+200B]width[U+FEFF][U+00AD][U+2060]",
		"ad\u200dmin":                       "ad[U+200D]min",
		"\u200dx":                           "[U+200D]x",
		"\u3164\u2800\u115f":                "[U+3164][U+2800][U+115F]",
		"hidden\U000e0041\U000e0101":        "hidden[U+E0041][U+E0101]",
		"private\ue000 broken\xff":          "private[U+E000] broken[U+FFFD]",
		"e\u0301 a\u0300\u0301\u0302\u0303": "e\u0301 a\u0300\u0301\u0302\u0303",
		"Z" + strings.Repeat("\u0335", 6):   "Z" + strings.Repeat("\u0335", 4) + "[U+0335][U+0335]",
		"\u05d0\u05d9\u05e9\u05d5\u05e8":    "\u05d0\u05d9\u05e9\u05d5\u05e8",
		"\u0645\u06cc\u200c\u062e":          "\u0645\u06cc\u200c\u062e",
		"\u0915\u094d\u200d\u0937":          "\u0915\u094d\u200d\u0937",
		"\U0001f468\u200d\U0001f469\ufe0f":  "\U0001f468\u200d\U0001f469\ufe0f",
		"日本語\tñ\n€":                         "日本語\tñ\n€",
	} {
		if got := shown(runsOf(text)); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}

// TestQuotedPart checks that markup in a text stays text, and that the author is named
// outside the text.
func TestQuotedPart(t *testing.T) {
	var b bytes.Buffer
	text := "</blockquote></figure><form method=post><button>Approve</button>\u202e" + strings.Repeat("\nx", 20)
	if err := loaded().templates["request"].ExecuteTemplate(&b, "quoted", map[string]any{"By": "the requester", "Text": text}); err != nil {
		t.Fatal(err)
	}
	page := b.String()
	for what, want := range map[string]string{
		"one figure": "<figure", "the author": "<figcaption>Written by the requester, not verified</figcaption>", "the escaped markup": "&lt;/figure&gt;",
		"the named character": `<span class="escaped">U&#43;202E</span>`, "the rest": "<summary>Show all<span class=\"hidden\"> written by the requester</span> <span class=\"quiet\">(21 lines,",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("%s: no %q in\n%s", what, want, page)
		}
	}
	if strings.Contains(page, "<form") || strings.Count(page, "</figure>") != 1 || strings.ContainsRune(page, '\u202e') {
		t.Errorf("the text leaves its box:\n%s", page)
	}
}
