package checker

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// maxTries is how many runs may miss a planted bug.
const maxTries = 6

// TestMutants runs the checker against brokers with planted bugs. It must find each bug.
func TestMutants(t *testing.T) {
	reader, err := broker()
	if err != nil {
		t.Fatal(err)
	}
	for i, m := range Mutants() {
		t.Run(m.Name, func(t *testing.T) {
			c := m.Config
			c.Binary, c.Reader = filepath.Join(builds, "mutant-"+string(rune('a'+i))), reader
			if err := m.Build(t.Context(), c.Binary); err != nil {
				t.Fatal(err)
			}
			first := seed(t)
			for try := range uint64(maxTries) {
				c.Seed = first + try
				c.Dir = t.TempDir()
				result, err := Run(t.Context(), c)
				if errors.Is(err, ErrNotStarted) {
					t.Log(err) // the broker itself has noticed
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				t.Log(result.Summary())
				if at := slices.IndexFunc(result.Findings, func(f Finding) bool { return slices.Contains(m.Judges, f.Judge) }); at >= 0 {
					t.Logf("found: %s", result.Findings[at])
					return
				}
				t.Logf("seed %d: found only %v", c.Seed, result.Findings)
			}
			t.Errorf("%d runs did not find the bug", maxTries)
		})
	}
}

func TestMutantsNeedTheirText(t *testing.T) {
	m := Mutant{Name: "gone", Edits: []Edit{{"store/group.go", "this text is not in the file", ""}}}
	if err := m.Build(t.Context(), filepath.Join(t.TempDir(), "broker")); err == nil || !strings.Contains(err.Error(), "contains the text to edit 0 times") {
		t.Errorf("got %v, want an error about the text", err)
	}
	m = Mutant{Name: "there", Edits: []Edit{{"store/group.go", "", "package store"}}}
	if err := m.Build(t.Context(), filepath.Join(t.TempDir(), "broker")); err == nil || !strings.Contains(err.Error(), "exists") {
		t.Errorf("got %v, want an error about the file", err)
	}
}
