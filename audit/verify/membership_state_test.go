package verify

import (
	"strings"
	"testing"

	"accessbroker.internal/audit"
)

// A membershipStep is a record about a membership: its kind, lease and change.
type membershipStep struct {
	kind          audit.Kind
	lease, change string
	want          string // part of the problem; empty: none
}

func TestMembershipsAreConsistent(t *testing.T) {
	t.Parallel()
	const claimed, released, abandoned, accepted = audit.MembershipClaimed, audit.MembershipReleased, audit.LeaseAbandoned, audit.MembershipAccepted
	for name, steps := range map[string][]membershipStep{
		"made and removed": {{claimed, "a", "added", ""}, {released, "a", "removed", ""}, {claimed, "b", "added", ""}, {released, "b", "absent", ""}},
		"shared":           {{claimed, "a", "added", ""}, {claimed, "b", "shared", ""}, {released, "a", "shared", ""}, {released, "b", "removed", ""}},
		"existing":         {{claimed, "a", "existing", ""}, {claimed, "b", "existing", ""}, {released, "a", "existing", ""}, {released, "b", "existing", ""}},
		"group gone":       {{claimed, "a", "added", ""}, {released, "a", "gone", ""}},
		"restored":         {{claimed, "a", "existing", ""}, {claimed, "b", "added", ""}, {released, "a", "shared", ""}, {released, "b", "removed", ""}},
		"abandoned":        {{claimed, "a", "added", ""}, {abandoned, "a", "", ""}, {claimed, "b", "shared", ""}, {released, "b", "removed", ""}},
		"accepted":         {{claimed, "a", "added", ""}, {accepted, "", "existing", ""}, {released, "a", "existing", ""}},

		"removed what was there":   {{claimed, "a", "existing", ""}, {released, "a", "removed", "did not make"}},
		"removed too early":        {{claimed, "a", "added", ""}, {claimed, "b", "shared", ""}, {released, "a", "removed", "another lease"}},
		"left behind":              {{claimed, "a", "added", ""}, {released, "a", "existing", "leaves it behind"}},
		"kept for no one":          {{claimed, "a", "added", ""}, {released, "a", "shared", "no other lease"}},
		"shared with no one":       {{claimed, "a", "shared", "for no other lease"}},
		"its own called existing":  {{claimed, "a", "added", ""}, {claimed, "b", "existing", "made the membership itself"}},
		"released twice":           {{claimed, "a", "added", ""}, {released, "a", "removed", ""}, {released, "a", "removed", "does not rely"}},
		"released without a claim": {{released, "a", "removed", "does not rely"}},
		"claimed twice":            {{claimed, "a", "added", ""}, {claimed, "a", "shared", "already"}},
		"an unknown change":        {{claimed, "a", "stolen", "none of a claim"}},
		"no lease":                 {{claimed, "", "added", "names no lease"}},
	} {
		s := newMembershipState(maxRemembered)
		for i, step := range steps {
			r := &audit.Record{Kind: step.kind, Membership: &audit.MembershipFacts{ID: audit.Digest{1}, Change: step.change}}
			if step.lease != "" {
				r.Lease = &audit.LeaseFacts{ID: step.lease}
			}
			if got := s.check(r); (got == "") != (step.want == "") || !strings.Contains(got, step.want) {
				t.Errorf("%s, step %d: got %q, want %q", name, i, got, step.want)
			}
		}
	}
}

// A log that continues an earlier one, and a verifier that forgot, know too little to
// object.
func TestForgottenMembershipsAreNoProblem(t *testing.T) {
	t.Parallel()
	step := func(s *membershipState, kind audit.Kind, id byte, lease, change string) string {
		return s.check(&audit.Record{Kind: kind, Lease: &audit.LeaseFacts{ID: lease}, Membership: &audit.MembershipFacts{ID: audit.Digest{id}, Change: change}})
	}
	s := newMembershipState(maxRemembered)
	s.check(&audit.Record{Kind: audit.LogOpened, Log: &audit.LogFacts{Previous: "an earlier log"}})
	if got := step(s, audit.MembershipReleased, 1, "a", "removed"); got != "" {
		t.Errorf("after an earlier log: %s", got)
	}
	s = newMembershipState(2)
	for n, lease := range []string{"a", "b", "c"} {
		step(s, audit.MembershipClaimed, byte(n+1), lease, "added")
	}
	for n, lease := range []string{"a", "b", "c"} {
		if got := step(s, audit.MembershipReleased, byte(n+1), lease, "removed"); got != "" {
			t.Errorf("lease %s: %s", lease, got)
		}
	}
	if len(s.memberships)+len(s.claims) != 0 {
		t.Errorf("%d memberships and %d claims are left", len(s.memberships), len(s.claims))
	}
}
