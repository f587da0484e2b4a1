package accessbroker

import (
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"
)

// linked matches the pictures of a document.
var linked = regexp.MustCompile(`(?:!\[[^\]]*\]\(|<img [^>]*src="|<source [^>]*srcset=")([^)"]+\.(?:svg|png|gif))`)

// Every picture of the README and of docs is in the repository, and every picture there is
// in a document. Pictures are small. An SVG has a title for screen readers, and no
// script, because GitHub would not run it.
func TestPicturesOfDocuments(t *testing.T) {
	const largest = 200 << 10
	shown := map[string]bool{}
	documents, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, document := range append(documents, "README.md") {
		text, err := os.ReadFile(document)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range linked.FindAllStringSubmatch(string(text), -1) {
			picture := path.Join(path.Dir(document), m[1])
			shown[picture] = true
			content, err := os.ReadFile(picture)
			if err != nil || len(content) == 0 || len(content) > largest {
				t.Errorf("%s: the picture %s has %d bytes: %v", document, picture, len(content), err)
			}
			if vector := string(content); strings.HasSuffix(picture, ".svg") && (!strings.Contains(vector, "<title") || strings.Contains(vector, "<script")) {
				t.Errorf("%s: want a title and no script", picture)
			}
		}
	}
	pictures, err := filepath.Glob("docs/pictures/*")
	if err != nil || len(pictures) < 3 {
		t.Fatalf("got pictures %q, %v", pictures, err)
	}
	for _, picture := range pictures {
		if !shown[picture] {
			t.Errorf("no document shows %s", picture)
		}
	}
}

// The prose of the README fits in a terminal.
func TestReadmeFits(t *testing.T) {
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	code, prose := false, 0
	for i, line := range strings.Split(string(text), "\n") {
		if strings.HasPrefix(line, "```") {
			code = !code
		}
		if code || strings.HasPrefix(line, "    ") || strings.HasPrefix(line, "|") || strings.HasPrefix(line, "<") || strings.HasPrefix(line, "![") {
			continue
		}
		if prose++; utf8.RuneCountInString(line) > 80 {
			t.Errorf("line %d: got %d columns, want at most 80: %s", i+1, utf8.RuneCountInString(line), line)
		}
	}
	if prose < 40 {
		t.Errorf("got %d lines of prose", prose)
	}
}
