package evidence

import (
	"slices"
	"testing"
)

// The ids and titles are those of the frameworks.
func TestFrameworksAreComplete(t *testing.T) {
	want := map[string][]string{
		"nist-csf-1.1":   {"PR.AC-1", "PR.AC-3", "PR.AC-4", "PR.AC-6", "PR.AC-7"},
		"nist-csf-2.0":   {"PR.AA-01", "PR.AA-02", "PR.AA-03", "PR.AA-04", "PR.AA-05", "PR.AA-06", "GV.SC-07", "GV.SC-10"},
		"owasp-asi-2026": {"ASI01", "ASI02", "ASI03", "ASI04", "ASI05", "ASI06", "ASI07", "ASI08", "ASI09", "ASI10"},
		"owasp-nhi-2025": {"NHI1:2025", "NHI2:2025", "NHI3:2025", "NHI4:2025", "NHI5:2025", "NHI6:2025", "NHI7:2025", "NHI8:2025", "NHI9:2025", "NHI10:2025"},
	}
	list, err := Frameworks()
	if err != nil || len(list) != len(want) {
		t.Fatalf("%d frameworks, %v", len(list), err)
	}
	used := map[string]bool{}
	for _, f := range list {
		var ids []string
		for _, c := range f.Controls {
			ids = append(ids, c.ID)
			for _, name := range slices.Concat(c.Figures, c.Exceptions) {
				used[name] = true
			}
			if len(c.Outside) == 0 {
				t.Errorf("%s %s does not state what is out of scope", f.ID, c.ID)
			}
		}
		if !slices.Equal(ids, want[f.ID]) || f.Title == "" || f.Revision == "" || f.Source == "" {
			t.Errorf("%s: got %q, %+v", f.ID, ids, f)
		}
	}
	m, err := embedded()
	if err != nil {
		t.Fatal(err)
	}
	for name := range m.figures {
		if !used[name] {
			t.Errorf("no framework uses the figure %s", name)
		}
	}
}
