package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const source = `package sample

func within(n, limit int) bool { return n < limit }

func describe(n, limit int) string {
	if n == 0 || limit == 0 {
		return "none"
	}
	if limit < 0 {
		n++
		return "negative"
	}
	return "some"
}

func unused(n int) bool {
	return n > 1
}
`

func TestMutantsOf(t *testing.T) {
	mutants, err := mutantsOf("sample.go", []byte(source))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range mutants {
		got = append(got, fmt.Sprintf("%d: %s", m.line, m.what))
	}
	want := []string{
		"3: the boolean result is negated",
		"3: < becomes <=",
		"6: the body of this if is removed",
		"6: == becomes !=",
		"6: || becomes &&",
		"6: == becomes !=",
		"9: the body of this if is removed",
		"9: < becomes <=",
		"11: this return is removed",
		"17: the boolean result is negated",
		"17: > becomes >=",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if got := string(mutants[6].apply([]byte(source))); !strings.Contains(got, "\tif (limit < 0) && false {\n") {
		t.Errorf("got %s", got)
	}
	if got := string(mutants[8].apply([]byte(source))); !strings.Contains(got, "\t\tif false { return \"negative\" }\n") {
		t.Errorf("got %s", got)
	}
}

// The tests of the sample check within at its limit but describe only at 0.
const weakTest = `package sample

import "testing"

func TestSample(t *testing.T) {
	if !within(1, 2) || within(2, 2) || describe(0, 5) != "none" {
		t.Fatal("wrong")
	}
}
`

func TestMutateListsSurvivors(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"go.mod": "module sample\n\ngo 1.26\n", "sample.go": source, "sample_test.go": weakTest} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
	t.Setenv("GOFLAGS", "")
	t.Setenv("GOWORK", "off")
	var out strings.Builder
	if err := mutate(t.Context(), options{seed: 1, total: 5 * time.Minute, args: []string{"."}}, &out); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"survived     sample.go:6  == becomes !=", // the limit's: n is 0 already
		"not reached  sample.go:9  the body of this if is removed",
		"not reached  sample.go:9  < becomes <=",
		"not reached  sample.go:11  this return is removed",
		"not reached  sample.go:17  the boolean result is negated",
		"not reached  sample.go:17  > becomes >=",
		"5 killed, 1 survived, 5 not reached, 0 did not compile",
	}
	got := strings.Split(strings.TrimSpace(out.String()), "\n")
	if !slices.Equal(got[1:], want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got[1:], "\n"), strings.Join(want, "\n"))
	}
	if got, err := os.ReadFile("sample.go"); err != nil || string(got) != source {
		t.Errorf("the source was changed: %v\n%s", err, got)
	}
}

func TestMutateRefusesFailingTests(t *testing.T) {
	dir := t.TempDir()
	broken := strings.ReplaceAll(weakTest, "!within", "within")
	for name, text := range map[string]string{"go.mod": "module sample\n\ngo 1.26\n", "sample.go": source, "sample_test.go": broken} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
	t.Setenv("GOWORK", "off")
	err := mutate(t.Context(), options{total: 5 * time.Minute, args: []string{"."}}, &strings.Builder{})
	if err == nil || !strings.Contains(err.Error(), "does not pass its tests") {
		t.Errorf("got %v", err)
	}
}
