package policy

import (
	"fmt"
	"strings"
	"testing"
	"testing/fstest"
)

func TestBlankComments(t *testing.T) {
	t.Parallel()
	tests := []struct{ text, want string }{
		{"permit // @max_ttl\n(a)", "permit            \n(a)"},
		{"// one\n// two\nx", "      \n      \nx"},
		{`"http://x" // y`, `"http://x"     `},
		{`"a\"// b" // c`, `"a\"// b"     `},
		{`"a\\" // b`, `"a\\"     `},
		{"a / b", "a / b"},
		{"a /", "a /"},
		{"", ""},
	}
	for _, test := range tests {
		if got := string(blankComments([]byte(test.text))); got != test.want {
			t.Errorf("%q: got %q, want %q", test.text, got, test.want)
		}
	}
}

func TestSpanFindsNeedleOutsideComments(t *testing.T) {
	t.Parallel()
	src, err := readSource(fstest.MapFS{"a.cedar": {Data: []byte("// @max_ttl\n\"ä\" @max_ttl(\"x\")")}}, "a.cedar")
	if err != nil {
		t.Fatal(err)
	}
	line, column := span{src, 0, len(src.text)}.at("@deny", "@max_ttl")
	if line != 2 || column != 5 {
		t.Errorf("got %d:%d, want 2:5", line, column)
	}
	if line, column := (span{src, 12, len(src.text)}).at("@deny"); line != 2 || column != 1 {
		t.Errorf("without needle: got %d:%d, want 2:1", line, column)
	}
}

func TestProblemsAreSortedAndLimited(t *testing.T) {
	t.Parallel()
	var ps problems
	for i := range 103 {
		ps.add(Problem{File: "b.cedar", Line: 200 - i, Column: 1, Text: fmt.Sprint("problem ", i)})
	}
	ps.add(Problem{File: "b.cedar", Line: 98, Column: 9, Text: "second column"})
	ps.add(Problem{File: "a.cedar", Text: "first file"})
	lines := strings.Split(ps.err().Error(), "\n")
	if len(lines) != 101 || lines[0] != "a.cedar: first file" || lines[1] != "b.cedar:98:1: problem 102" ||
		lines[2] != "b.cedar:98:9: second column" || lines[100] != "and 5 more problems" {
		t.Errorf("got %d lines:\n%s", len(lines), strings.Join(lines, "\n"))
	}
	if err := (problems{}).err(); err != nil {
		t.Errorf("without problems: got %v", err)
	}
}

func TestDigests(t *testing.T) {
	t.Parallel()
	files, revision := digests(map[string][]byte{"b": []byte("x"), "a": nil})
	// sha256sum of "x", of the empty text, and of the three lines that digests
	// hashes. Stored revisions depend on this format.
	const want = "29a53be6310286525ac47c802b30e2ddf9a174fddbbce7456656e4f6a6815bbc"
	if files["b"].String() != "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881" || len(files) != 2 {
		t.Errorf("got files %v", files)
	}
	if revision.String() != want {
		t.Errorf("got revision %s, want %s", revision, want)
	}
}
