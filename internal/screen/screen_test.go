package screen

import (
	"os"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestPaletteIsPlainWithoutTerminal(t *testing.T) {
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = read.Close(); _ = write.Close() })
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = null.Close() })
	unset := func(string) string { return "" }
	for name, p := range map[string]Palette{
		"zero": {}, "pipe": PaletteFor(write, unset), "null device": PaletteFor(null, unset), "builder": PaletteFor(new(strings.Builder), nil),
	} {
		if got := p.Good("permit") + p.Strong("1."); got != "permit1." {
			t.Errorf("%s: got %q, want no escape sequences", name, got)
		}
	}
}

func TestPaletteColours(t *testing.T) {
	p := Palette{colour: true}
	got := []string{p.Good("a"), p.Bad("b"), p.Waiting("c"), p.Command("d"), p.Strong("e"), p.Good("")}
	want := []string{"\x1b[32ma\x1b[0m", "\x1b[31mb\x1b[0m", "\x1b[33mc\x1b[0m", "\x1b[36md\x1b[0m", "\x1b[1me\x1b[0m", ""}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestTellerKeepsVerdictsAtTheLeftEdge(t *testing.T) {
	var out strings.Builder
	teller := &Teller{Out: &out}
	teller.Open("An agent asks")
	teller.Say("The agent has a reason.")
	teller.Good("permit", "by the policy %s", "agents-read")
	teller.Bad("unauthorized", "record 3")
	teller.Note("asks", "tickets-api")
	teller.Waiting("pending", "%s", "one approval of the support team is missing, so that the request waits")
	teller.Types("broker approve req_1")
	teller.Shows("status  approved")
	teller.Shows("")
	teller.Open("It is done")
	const want = `
1. An agent asks
           The agent has a reason.
permit     by the policy agents-read
unauthorized record 3
asks       tickets-api
pending    one approval of the support team is missing, so that the request
           waits
           $ broker approve req_1
           status  approved


2. It is done
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

func TestTellerFitsTerminal(t *testing.T) {
	var out strings.Builder
	teller := &Teller{Out: &out}
	key := strings.Repeat("ä", 100)
	for _, text := range []string{key, "the key " + key + " is long", strings.Repeat("word ", 60), strings.Repeat("wörter/", 20), "  " + strings.Repeat("x ", 90)} {
		teller.Open(text)
		teller.Say("%s", text)
		teller.Good("permit", "%s", text)
		teller.Types("broker audit verify --key " + text)
		teller.Shows(text)
	}
	lines := 0
	for line := range strings.Lines(out.String()) {
		if lines++; utf8.RuneCountInString(strings.TrimSuffix(line, "\n")) > Width {
			t.Errorf("got %d columns, want at most %d: %s", utf8.RuneCountInString(line), Width, line)
		}
	}
	if lines < 30 {
		t.Errorf("got %d lines", lines)
	}
	if !strings.Contains(out.String(), "the key "+strings.Repeat("ä", 5)) || !strings.Contains(out.String(), "ä…ä") {
		t.Errorf("got %s\nwant a key without its middle", out.String())
	}
}
