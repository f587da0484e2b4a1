package policy_test

import (
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"accessbroker.internal/policy"
)

// A list of scopes that a condition excludes is not the list that a permit is narrowed by:
// to replace it would permit what was excluded.
func TestNarrowingNeverWidens(t *testing.T) {
	t.Parallel()
	for name, condition := range map[string]string{
		"unless":       `when { context.ttl < duration("1h") } unless { ["tickets:close"].containsAll(context.scopes) }`,
		"not":          `when { !["tickets:close"].containsAll(context.scopes) }`,
		"a comparison": `when { ["tickets:close"].containsAll(context.scopes) == false }`,
		"if":           `when { if ["tickets:close"].containsAll(context.scopes) then false else true }`,
	} {
		t.Run(name, func(t *testing.T) {
			folder := fstest.MapFS{"a.cedar": {Data: []byte("@id(\"p\")\npermit (principal is Person, action == Action::\"request\", resource == Entitlement::\"tickets-api\")\n" + condition + ";\n")}, "groups.yaml": {Data: []byte(prunedGroups)}}
			p, err := load(t, folder).Propose(t.Context(), []policy.Prune{{Policy: "p", Keep: []string{"tickets:read"}}})
			if err != nil || len(p.Made) != 1 {
				t.Fatalf("got %+v, %v", p, err)
			}
			permits := applied(t, folder, p).AllPermits()
			if len(permits) != 1 || len(permits[0].Reaches) != 1 || !slices.Equal(permits[0].Reaches[0].Scopes, []string{"tickets:read"}) {
				t.Errorf("the narrowed permit reaches %+v, want tickets:read alone\n%s", permits[0].Reaches, p.Files[0].Hunks)
			}
		})
	}
}

// A member of a group that a permit excludes uses the membership by being refused.
func TestExcludedGroupsAreNotMeasured(t *testing.T) {
	t.Parallel()
	const groups = prunedGroups + "in: {members: [login/ana]}\nout: {members: [login/ben]}\nboth: {members: [login/cleo]}\n"
	for name, condition := range map[string]string{
		"unless":       `when { principal in Group::"in" } unless { principal in Group::"out" }`,
		"not":          `when { principal in Group::"in" && !(principal in Group::"out") }`,
		"a comparison": `when { principal in Group::"in" && (principal in Group::"out") == false }`,
		"a forbid":     `when { principal in Group::"in" }; @id("f") forbid (principal in Group::"out", action, resource)`,
		"its clause":   `when { principal in Group::"in" }; @id("f") forbid (principal, action, resource) when { principal in Group::"out" }`,
	} {
		t.Run(name, func(t *testing.T) {
			folder := fstest.MapFS{
				"a.cedar":     {Data: []byte("@id(\"p\")\npermit (principal is Person, action == Action::\"request\", resource == Entitlement::\"reports\")\n" + condition + ";\n")},
				"groups.yaml": {Data: []byte(groups)},
			}
			if got := load(t, folder).UnmeasuredGroups(); !slices.Contains(got, "out") {
				t.Errorf("got %q, want out: without its members, the permit reaches more people", got)
			}
			changes := []policy.Prune{{Group: "out", Member: "login/ben"}, {Group: "both", Member: "login/cleo"}}
			if p, err := load(t, folder).ProposeDecided(t.Context(), changes); err != nil || len(p.Made) != 1 || len(p.Left) != 1 || !strings.Contains(p.Left[0].Why, "refuses access to members") {
				t.Errorf("got %+v, %v, want the member of out left out: a rule refuses access to the group", p, err)
			}
		})
	}
}
