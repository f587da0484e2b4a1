package evidence

import (
	"slices"
	"testing"

	"accessbroker.internal/audit"
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

// noEvidence are the kinds of records that prove nothing about a control by themselves.
var noEvidence = []audit.Kind{
	audit.LogOpened,
	audit.RecoveryStarted, // the end counts
	audit.MembershipAccepted,
	audit.ExtensionRequested,                                              // the decision counts
	audit.CampaignAssigned, audit.CampaignDropped, audit.CampaignReminded, // steps of a campaign
	audit.CampaignEscalated, audit.CampaignRestoring,
	audit.RetentionPruned, // storage
}

// Every kind of record is evidence for something, or is listed above.
func TestEveryKindIsEvidence(t *testing.T) {
	m, err := embedded()
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range audit.Kinds() {
		counted := false
		for _, f := range m.figures {
			for _, s := range f.Count {
				counted = counted || slices.Contains(s.Kind, string(kind))
			}
		}
		if counted == slices.Contains(noEvidence, kind) {
			t.Errorf("%s: counted by a figure: %t", kind, counted)
		}
	}
}

// Mistakes in a selector are found when the files are read.
func TestSelectorsAreChecked(t *testing.T) {
	for name, s := range map[string]Selector{
		"no kind":          {Outcome: []string{"denied"}},
		"unknown kind":     {Kind: []string{"lease.borrowed"}},
		"unknown trait":    {Kind: []string{"lease.issued"}, With: []string{"glass"}},
		"unknown lifetime": {Kind: []string{"lease.issued"}, Lifetime: []string{"2h"}},
	} {
		if s.check() == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if s := (Selector{Kind: []string{"lease.issued"}, Without: []string{"break_glass"}, Lifetime: []string{audit.Longer}}); s.check() != nil {
		t.Errorf("got %v", s.check())
	}
}

// A record fits a selector if each of its lists has the record's value.
func TestFits(t *testing.T) {
	traits := audit.Traits{Kind: audit.LeaseRevoked, Caller: "person", Outcome: "revoked", Signed: true}
	for name, one := range map[string]struct {
		s    Selector
		want bool
	}{
		"kind":              {Selector{Kind: []string{"lease.issued", "lease.revoked"}}, true},
		"another kind":      {Selector{Kind: []string{"lease.issued"}}, false},
		"all lists":         {Selector{Kind: []string{"lease.revoked"}, Outcome: []string{"expired", "revoked"}, With: []string{"signed"}, Without: []string{"ticket"}}, true},
		"one list does not": {Selector{Kind: []string{"lease.revoked"}, Outcome: []string{"expired"}}, false},
		"absent value":      {Selector{Kind: []string{"lease.revoked"}, Cause: []string{"ended"}}, false},
		"missing flag":      {Selector{Kind: []string{"lease.revoked"}, With: []string{"ticket"}}, false},
		"excluded flag":     {Selector{Kind: []string{"lease.revoked"}, Without: []string{"signed"}}, false},
	} {
		if got := one.s.Fits(&traits); got != one.want {
			t.Errorf("%s: got %t", name, got)
		}
	}
}
