package policy

import (
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/broker"
)

func TestParseAnnotation(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, value string
		want        string // the result of describe, or "!" and a part of the error
	}{
		{"id", "agents-read-2", ""},
		{"id", strings.Repeat("a", 64), ""},
		{"reason", strings.Repeat("a", 500), ""},
		{"ticket", strings.Repeat("a", 200), "ticket: ^(?:" + strings.Repeat("a", 200) + ")$"},
		{"approval", "12 of dba, 8 of security", "approval: 12 of dba; approval: 8 of security"},
		{"approval", "12 of dba, 9 of security", "!add up to more than 20"},
		{"limit", "1000000 per 1s", "limit: 1000000 per 1s (p)"},
		{"limit", "1000001 per 1s", "!from 1 to 1000000"},
		{"max_active", "1000000", "max_active: 1000000 (p)"},
		{"max_active", "1000001", "!from 1 to 1000000"},
		{"max_ttl", "720h", "max_ttl: 720h"},
		{"max_ttl", "1s", "max_ttl: 1s"},
		{"deny", "20", "deny: 20"},
		{"deny", "21", "!from 1 to 20"},
		{"escalate", "4m to d, 3m to c, 2m to b, 1m to a", "escalate: 4m to d; escalate: 3m to c; escalate: 2m to b; escalate: 1m to a"},
		{"escalate", "1m to a, 2m to b, 3m to c, 4m to d, 5m to e", "!more than 4 steps"},
		{"id", "", "!an id has 1 to 64"},
		{"id", "Agents", "!an id has 1 to 64"},
		{"id", "-a", "!an id has 1 to 64"},
		{"id", strings.Repeat("a", 65), "!an id has 1 to 64"},
		{"reason", "why, in words", ""},
		{"reason", "", "!a reason is one line"},
		{"reason", "two\nlines", "!a reason is one line"},
		{"reason", strings.Repeat("a", 501), "!a reason is one line"},
		{"approval", "2 of dba", "approval: 2 of dba"},
		{"approval", " 1 of security,2  of dba ", "approval: 2 of dba; approval: 1 of security"},
		{"approval", "1 of owner, 1 of manager", "approval: 1 of manager; approval: 1 of owner"},
		{"approval", "", "!write a count and a group"},
		{"approval", "2 dba", "!write a count and a group"},
		{"approval", "0 of dba", "!write a whole number from 1 to 20"},
		{"approval", "-1 of dba", "!write a whole number"},
		{"approval", "+1 of dba", "!write a whole number"},
		{"approval", "01 of dba", "!write a whole number"},
		{"approval", "21 of dba", "!write a whole number"},
		{"approval", "1 of dba, 2 of dba", "!appears twice"},
		{"approval", "1 of dba or 1 of security", "!write a count and a group"},
		{"approval", "1 of dba,", "!write a count and a group"},
		{"max_ttl", "15m", "max_ttl: 15m"},
		{"max_ttl", "15", "!write a duration"},
		{"max_ttl", "0s", "!write a duration"},
		{"max_ttl", "-1h", "!write a duration"},
		{"max_ttl", "1500ms", "!whole seconds"},
		{"max_ttl", "721h", "!from 1s to 720h"},
		{"max_duration", "8h", "max_duration: 8h"},
		{"max_duration", "8 hours", "!write a duration"},
		{"justification", "required", "justification: required"},
		{"justification", "", `!write "required"`},
		{"justification", "yes", `!write "required"`},
		{"ticket", "INC-[0-9]+", "ticket: ^(?:INC-[0-9]+)$"},
		{"ticket", "INC|CHG", "ticket: ^(?:INC|CHG)$"},
		{"ticket", "", "!1 to 200 bytes"},
		{"ticket", strings.Repeat("a", 201), "!1 to 200 bytes"},
		{"ticket", "a)|(?:b", "!not a pattern"},
		{"ticket", "(?=a)", "!not a pattern"},
		{"ticket", ".*", "!requires no ticket"},
		{"ticket", "a?", "!requires no ticket"},
		{"limit", "20 per 1h", "limit: 20 per 1h (p)"},
		{"limit", "20/h", "!write a count and a duration"},
		{"limit", "0 per 1h", "!write a whole number"},
		{"limit", "1 per 0s", "!write a duration"},
		{"max_active", "5", "max_active: 5 (p)"},
		{"max_active", "0", "!write a whole number"},
		{"max_active", "five", "!write a whole number"},
		{"aprove", "1 of dba", "!unknown annotation"},
		{"Approval", "1 of dba", "!unknown annotation"},
	}
	for _, test := range tests {
		t.Run(test.name+"("+test.value+")", func(t *testing.T) {
			parsed := annotations{id: "p"}
			err := parsed.parse(test.name, test.value, true)
			if want, bad := strings.CutPrefix(test.want, "!"); bad {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("got error %v, want %q", err, want)
				}
				return
			}
			parsed.setPolicy()
			if got := strings.Join(describe(parsed.Obligations), "; "); err != nil || got != test.want {
				t.Errorf("got %q, %v; want %q", got, err, test.want)
			}
		})
	}
}

func TestForbidAllowsOnlyIDAndReason(t *testing.T) {
	t.Parallel()
	for name, a := range annotationParsers {
		err := new(annotations).parse(name, "required", false)
		if onForbid := err == nil; onForbid != a.onForbid || a.onForbid != (name == "id" || name == "reason") {
			t.Errorf("@%s on a forbid: got error %v", name, err)
		}
	}
}

// FuzzAnnotation searches for annotations that parse without an obligation, or with
// another one than their text states.
func FuzzAnnotation(f *testing.F) {
	for _, seed := range [][2]string{
		{"id", "a-b"}, {"reason", "because"}, {"approval", "2 of dba, 1 of owner"}, {"max_ttl", "15m"}, {"max_duration", "1h30m"},
		{"justification", "required"}, {"ticket", "INC-[0-9]+"}, {"ticket", "(?m)^a$|b"}, {"limit", "20 per 1h"}, {"max_active", "5"}, {"aprove", "1 of dba"},
		{"deny", "2"}, {"exclude_team", "yes"}, {"comment", "required"}, {"silent_denial", "yes"}, {"signed", "required"}, {"lapse_after", "4h"},
		{"escalate", "15m to oncall, 45m to leads"}, {"break_glass", "security"}, {"review_within", "4h"},
		{"ticket_state", "open"}, {"ticket_assignee", "requester, accountable"}, {"change_window", "required"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, name, value string) {
		got := annotations{id: "p"}
		if got.parse(name, value, true) != nil {
			return
		}
		if !got.hasObligations() && name != "id" && name != "reason" {
			t.Fatalf("@%s(%q) parses without an obligation", name, value)
		}
		for _, line := range describe(got.Obligations) {
			if !strings.HasPrefix(line, "review: ") { // no annotation has this form
				checkRoundTrip(t, line)
			}
		}
		for _, pattern := range got.Tickets {
			if regexp.MustCompile(pattern).MatchString("") {
				t.Errorf("@ticket(%q) matches the empty string", value)
			}
		}
		for _, n := range got.Approvals {
			if n.Count < 1 {
				t.Errorf("@approval(%q) requires %d approvers of %s", value, n.Count, n.Group)
			}
		}
	})
}

// checkRoundTrip parses a line of describe and describes the result.
func checkRoundTrip(t *testing.T, line string) {
	t.Helper()
	name, value, _ := strings.Cut(line, ": ")
	if name == "ticket" {
		value = strings.TrimSuffix(strings.TrimPrefix(value, "^(?:"), ")$")
	} else {
		value = strings.TrimSuffix(value, " ()") // the empty id of the policy
	}
	var got annotations
	if err := got.parse(name, value, true); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	if described := describe(got.Obligations); !slices.Equal(described, []string{line}) {
		t.Fatalf("got %q, want %q", described, line)
	}
}

func TestCombineKeepsStrictest(t *testing.T) {
	t.Parallel()
	a := broker.Obligations{
		Approvals: []broker.ApprovalNeed{{Group: "dba", Count: 2}, {Group: "security", Count: 1}}, MaxTTL: time.Hour,
		Tickets: []string{"a"}, Limits: []broker.Limit{{Policy: "p", Count: 1, Per: time.Hour}}, MaxActive: []broker.Limit{{Policy: "p", Count: 3}},
	}
	b := broker.Obligations{
		Approvals: []broker.ApprovalNeed{{Group: "dba", Count: 1}, {Group: "legal", Count: 1}}, MaxTTL: time.Minute, MaxDuration: time.Hour,
		Justification: true, Tickets: []string{"a", "b"}, Limits: []broker.Limit{{Policy: "q", Count: 9, Per: time.Hour}},
	}
	want := []string{
		"approval: 2 of dba", "approval: 1 of legal", "approval: 1 of security", "max_ttl: 1m", "max_duration: 1h", "justification: required",
		"ticket: a", "ticket: b", "limit: 1 per 1h (p)", "limit: 9 per 1h (q)", "max_active: 3 (p)",
	}
	if got := describe(a.And(b)); !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
	if got := describe(broker.Obligations{}.And(a)); !slices.Equal(got, describe(a)) {
		t.Errorf("combining nothing and a: got %q, want %q", got, describe(a))
	}
}

// All decisions share the obligations of a rule.
func TestCombineDoesNotChangeArguments(t *testing.T) {
	t.Parallel()
	a := broker.Obligations{Approvals: []broker.ApprovalNeed{{Group: "dba", Count: 1}}, Tickets: []string{"a"}, Limits: []broker.Limit{{Policy: "p"}}}
	got := broker.Obligations{}.And(a).And(broker.Obligations{Approvals: []broker.ApprovalNeed{{Group: "dba", Count: 2}}})
	got.Approvals[0].Group, got.Tickets[0], got.Limits[0].Policy = "x", "x", "x"
	if a.Approvals[0] != (broker.ApprovalNeed{Group: "dba", Count: 1}) || a.Tickets[0] != "a" || a.Limits[0].Policy != "p" {
		t.Errorf("the argument changed to %+v", a)
	}
}

func TestResolveOwner(t *testing.T) {
	t.Parallel()
	needs := []broker.ApprovalNeed{{Group: "dba", Count: 1}, {Group: "owner", Count: 2}}
	got, err := resolveOwner(needs, "dba")
	if err != nil || !slices.Equal(got, []broker.ApprovalNeed{{Group: "dba", Count: 2}}) {
		t.Errorf("got %v, %v", got, err)
	}
	if needs[1].Group != "owner" {
		t.Error("resolveOwner changed its argument")
	}
	if _, err := resolveOwner(needs, ""); err == nil {
		t.Error("got no error without an owner")
	}
}

func TestCombineAndDescribeEveryObligation(t *testing.T) {
	t.Parallel()
	a := broker.Obligations{
		Approvals: []broker.ApprovalNeed{{Group: "dba", Count: 1}}, Denials: 3, LapseAfter: time.Hour, Tickets: []string{"b"},
		Escalations: []broker.Escalation{{After: time.Hour, Group: "leads"}, {After: time.Minute, Group: "oncall"}},
		Review:      []broker.ApprovalNeed{{Group: "security", Count: 1}}, ReviewWithin: 4 * time.Hour,
	}
	b := broker.Obligations{
		Denials: 2, ExcludeTeam: true, Comment: true, Signed: true, LapseAfter: 2 * time.Hour, Tickets: []string{"c", "a", "b"},
		Escalations:  []broker.Escalation{{After: time.Minute, Group: "duty"}, {After: time.Minute, Group: "oncall"}},
		ReviewWithin: 24 * time.Hour,
	}
	want := []string{
		"approval: 1 of dba", "deny: 2", "exclude_team: yes", "comment: required", "signed: required", "lapse_after: 1h",
		"escalate: 1m to duty", "escalate: 1m to oncall", "escalate: 1h to leads", "review: 1 of security within 4h",
		"ticket: a", "ticket: b", "ticket: c",
	}
	for name, got := range map[string]broker.Obligations{"a and b": a.And(b), "b and a": b.And(a)} {
		if lines := describe(got); !slices.Equal(lines, want) {
			t.Errorf("%s: got %q\nwant %q", name, lines, want)
		}
	}
}
