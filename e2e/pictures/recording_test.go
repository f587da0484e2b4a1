package pictures

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

func TestCaptureReadsColours(t *testing.T) {
	got, err := Capture(exec.Command("printf", `\033[1m1. A title\033[0m\n\n\033[32mpermit\033[0m     a <b> & c\nlast`))
	if err != nil {
		t.Fatal(err)
	}
	want := []line{{{"1", "1. A title"}}, nil, {{"32", "permit"}, {"", "     a <b> & c"}}, {{"", "last"}}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestCaptureRefusesWhatItCantShow(t *testing.T) {
	for name, cmd := range map[string]*exec.Cmd{
		"a moved cursor":   exec.Command("printf", `\033[2J`),
		"a tab":            exec.Command("printf", `a\tb\n`),
		"a failed command": exec.Command("sh", "-c", "echo fine; exit 3"),
	} {
		if got, err := Capture(cmd); err == nil {
			t.Errorf("%s: got %q, want an error", name, got)
		}
	}
}

// A recording is valid XML without scripts, shows every line, and scrolls to the end.
func TestRecording(t *testing.T) {
	var lines []line
	for i := range 60 {
		lines = append(lines, line{{"32", "permit"}, {"", fmt.Sprintf("     line %d <&>", i)}})
	}
	picture, err := Recording("broker demo", lines)
	if err != nil {
		t.Fatal(err)
	}
	texts := 0
	for d := xml.NewDecoder(strings.NewReader(string(picture))); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if start, ok := token.(xml.StartElement); ok {
			switch start.Name.Local {
			case "script", "foreignObject", "image", "a":
				t.Errorf("got an element %s", start.Name.Local)
			case "text":
				texts++
			}
		}
	}
	if texts != 61 {
		t.Errorf("got %d lines of text, want the command and 60 lines", texts)
	}
	steps := regexp.MustCompile(`translateY\((-?\d+)px\)`).FindAllStringSubmatch(string(picture), -1)
	if got, want := steps[len(steps)/2-1:], fmt.Sprint((61-rows)*lineHeight); !strings.Contains(fmt.Sprint(got), "-"+want) {
		t.Errorf("got steps %v, want a scroll by %s at the end", got, want)
	}
	if !strings.Contains(string(picture), "line 59 &lt;&amp;&gt;") {
		t.Error("the last line is missing or not escaped")
	}
}

// The columns of a table stay aligned in a font of another width.
func TestSpansKeepColumns(t *testing.T) {
	got := spans(line{{"32", "permit"}, {"", "     GET /tickets   200"}})
	want := []span{{pixels(0), pixels(6), "32", "permit"}, {pixels(11), pixels(12), "", "GET /tickets"}, {pixels(26), pixels(3), "", "200"}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
