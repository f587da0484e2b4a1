package policy_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/policy"
)

func suspend(t *testing.T, e *policy.Engine, list ...broker.Suspension) *policy.Engine {
	t.Helper()
	for i := range list {
		list[i].Key, list[i].Campaign, list[i].Since = list[i].PermissionKey.String(), "cmp_1", noon
	}
	s, err := e.Suspend(list)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func unreviewed(kind broker.PermissionKind, name string) broker.Suspension {
	return broker.Suspension{PermissionKey: broker.PermissionKey{Kind: kind, Name: name}, Cause: broker.SuspendedUnreviewed}
}

func TestSuspendedPermitNoLongerPermits(t *testing.T) {
	t.Parallel()
	e := loadText(t, `@id("p") permit (principal, action == Action::"request", resource);`)
	q := query(triage, "tickets-api", "tickets:read")
	if d := decide(t, e, q); !d.Permit {
		t.Fatalf("before: %+v", d)
	}
	s := suspend(t, e, unreviewed(broker.PermissionPermit, "p"))
	d := decide(t, s, q)
	if d.Permit || d.Revision != s.Revision() || s.Revision() == e.Revision() {
		t.Errorf("suspended: %+v under revision %s", d, s.Revision())
	}
	if len(d.Reasons) != 1 || !strings.Contains(d.Reasons[0], "is suspended since 2026-11-23: no one reviewed it in the access review cmp_1") || strings.Contains(d.Reasons[0], `"p"`) {
		t.Errorf("got reasons %q", d.Reasons)
	}
	if x := s.Explain(context.Background(), q, noon); x.Permit || x.Policies[0].Applies || !strings.Contains(x.String(), "permit p (a.cedar:1) does not apply: permit p is suspended since") {
		t.Errorf("got the explanation\n%s", x)
	}
	// The engine before is not changed, and lifting the suspension restores its revision.
	if again := suspend(t, s); again.Revision() != e.Revision() || !decide(t, again, q).Permit || !decide(t, e, q).Permit {
		t.Error("without suspensions, the revision or the decision differs from before")
	}
	if s.Rules().Base != e.Revision() {
		t.Error("the base revision changed with the suspension")
	}
}

// Old decisions can be made again: the contents of a revision have its suspensions.
func TestSuspensionsAreReadFromTheContentsOfARevision(t *testing.T) {
	t.Parallel()
	e := loadText(t, `@id("p") permit (principal, action == Action::"request", resource);`)
	narrowed := broker.Suspension{PermissionKey: broker.PermissionKey{Kind: broker.PermissionPermit, Name: "p"}, Cause: broker.SuspendedNarrowed, Left: []string{"tickets:read"}, Item: 3}
	s := suspend(t, e, narrowed, unreviewed(broker.PermissionMember, "dba login/cleo"))
	list, err := policy.ParseSuspensions(s.Contents())
	if err != nil || len(list) != 2 {
		t.Fatalf("got %+v, %v", list, err)
	}
	again, err := e.Suspend(list)
	if err != nil || again.Revision() != s.Revision() {
		t.Errorf("got revision %s, want %s (%v)", again.Revision(), s.Revision(), err)
	}
	if list, err := policy.ParseSuspensions(e.Contents()); list != nil || err != nil {
		t.Errorf("a revision without suspensions: %+v, %v", list, err)
	}
}

func TestNarrowedPermitPermitsOnlyWhatIsLeft(t *testing.T) {
	t.Parallel()
	e := loadText(t, `@id("p") permit (principal, action == Action::"request", resource);`)
	s := suspend(t, e, broker.Suspension{PermissionKey: broker.PermissionKey{Kind: broker.PermissionPermit, Name: "p"}, Cause: broker.SuspendedNarrowed, Left: []string{"tickets:read"}})
	for scopes, want := range map[string]bool{"tickets:read": true, "tickets:close": false, "tickets:read tickets:close": false} {
		if d := decide(t, s, query(triage, "tickets-api", strings.Fields(scopes)...)); d.Permit != want {
			t.Errorf("%s: got %+v, want permit %v", scopes, d, want)
		}
	}
}

// Suspending a membership must never permit anything: a forbid on the group still applies,
// and so does a permit for those who are not in it.
func TestSuspendedMembershipOnlyTakesAway(t *testing.T) {
	t.Parallel()
	ana := broker.Query{
		Principal: broker.Identity{ID: "login/ana", Kind: broker.KindPerson, Person: &broker.Person{Provider: "login"}}, Action: broker.ActionRequest,
		Entitlement: catalogue()["tickets-api"], Scopes: []string{"tickets:read"}, TTL: time.Minute, Duration: time.Hour,
	}
	for name, test := range map[string]struct {
		cedar         string
		before, after bool
	}{
		"a permit for the group":       {`@id("p") permit (principal in Group::"support", action == Action::"request", resource);`, true, false},
		"a permit for all people":      {`@id("p") permit (principal is Person, action == Action::"request", resource);`, true, true},
		"a forbid on the group":        {`@id("p") permit (principal is Person, action == Action::"request", resource); @id("f") forbid (principal in Group::"support", action, resource);`, false, false},
		"a permit for all others":      {`@id("p") permit (principal is Person, action == Action::"request", resource) unless { principal in Group::"support" };`, false, false},
		"a permit for another group":   {`@id("p") permit (principal in Group::"dba", action == Action::"request", resource);`, false, false},
		"a forbid on those outside it": {`@id("p") permit (principal is Person, action == Action::"request", resource); @id("f") forbid (principal, action, resource) unless { principal in Group::"support" };`, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			e := loadText(t, test.cedar)
			if d := decide(t, e, ana); d.Permit != test.before {
				t.Fatalf("before: %+v, want %v", d, test.before)
			}
			s := suspend(t, e, unreviewed(broker.PermissionMember, "support login/ana"))
			if d := decide(t, s, ana); d.Permit != test.after {
				t.Errorf("after: %+v, want %v", d, test.after)
			}
			if listed, _ := s.Groups(ana.Principal); slices.Contains(listed, "support") {
				t.Error("the person still votes for the group")
			}
			if rules := s.Rules(); !slices.Contains(rules.ConflictGroups(ana.Principal), "support") || slices.Contains(rules.GroupsOfPerson(ana.Principal), "support") {
				t.Error("the suspension lifts the conflict of interest of the group")
			}
		})
	}
	e := loadText(t, `@id("p") permit (principal in Group::"support", action == Action::"request", resource);`)
	s := suspend(t, e, unreviewed(broker.PermissionMember, "support login/ana"))
	if d := decide(t, s, ana); len(d.Reasons) != 1 || !strings.HasPrefix(d.Reasons[0], "a group membership is suspended") {
		t.Errorf("got reasons %q", d.Reasons)
	}
}

// An agent whose mark is suspended is refused. Without its mark it would be a plain workload,
// for which a policy may permit more.
func TestSuspendedMarkRefusesItsWorkloads(t *testing.T) {
	t.Parallel()
	e := loadText(t, `@id("p") permit (principal, action == Action::"request", resource);`)
	s := suspend(t, e, unreviewed(broker.PermissionMark, "spiffe://acme.test/agent"))
	if d := decide(t, s, query(triage, "tickets-api", "tickets:read")); d.Permit || len(d.Reasons) != 1 {
		t.Errorf("below the mark: %+v", d)
	}
	if d := decide(t, s, query(billing, "tickets-api", "tickets:read")); !d.Permit {
		t.Errorf("elsewhere: %+v", d)
	}
	if x := s.Explain(context.Background(), query(triage, "tickets-api", "tickets:read"), noon); len(x.Suspended) != 1 {
		t.Errorf("got the explanation %+v", x)
	}
}

func TestSuspendedCeilingLeavesTheSupplierNothing(t *testing.T) {
	t.Parallel()
	e := load(t, fstest.MapFS{
		"a.cedar":        {Data: []byte(`@id("p") permit (principal in Supplier::"data", action == Action::"request", resource);`)},
		"groups.yaml":    {Data: []byte(groupsText)},
		"suppliers.yaml": {Data: []byte("data: {sponsor: dba, contract: {start: 2026-01-01, end: 2027-01-01}, trust_domains: [supplier.test], ceiling: [tickets-api, orders-db-ro]}\n")},
	})
	q := query("spiffe://supplier.test/sync", "tickets-api", "tickets:read")
	if d := decide(t, e, q); !d.Permit {
		t.Fatalf("before: %+v", d)
	}
	if d := decide(t, suspend(t, e, unreviewed(broker.PermissionSupplier, "data")), q); d.Permit || len(d.Reasons) != 1 {
		t.Errorf("suspended: %+v", d)
	}
	left := broker.Suspension{PermissionKey: broker.PermissionKey{Kind: broker.PermissionSupplier, Name: "data"}, Cause: broker.SuspendedNarrowed, Left: []string{"orders-db-ro"}}
	if d := decide(t, suspend(t, e, left), q); d.Permit {
		t.Errorf("narrowed to another entitlement: %+v", d)
	}
}

func TestPermissionsOfTheRules(t *testing.T) {
	t.Parallel()
	e := load(t, fstest.MapFS{
		"a.cedar": {Data: []byte(`
			@id("b") permit (principal in Group::"dba", action == Action::"request", resource == Entitlement::"tickets-api"); // after
			@id("a") permit (principal, action == Action::"request", resource == Entitlement::"tickets-api") when { principal in Path::"spiffe://acme.test/agent" };
			@id("f") forbid (principal, action, resource);`)},
		"groups.yaml": {Data: []byte("dba: {members: [login/cleo], claims: [{provider: login, group: dbas}], workloads: [spiffe://acme.test/batch]}\nsupport: {members: [login/ana]}\n")},
	})
	all := broker.CampaignScope{Permits: []string{"all"}, Marks: []string{"all"}, Groups: []string{"dba"}}
	var got []string
	for _, kind := range []broker.PermissionKind{broker.PermissionPermit, broker.PermissionMark, broker.PermissionMember} {
		for p := range e.All(all, kind) {
			got = append(got, p.String())
			found, ok := e.Find(p.PermissionKey)
			if !ok || found.Digest() != p.Digest() {
				t.Errorf("%s: Find returns another permission", p)
			}
		}
	}
	want := []string{"permit a", "permit b", "mark spiffe://acme.test/agent", "member dba claim:login:dbas", "member dba login/cleo", "member dba spiffe://acme.test/batch"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	b, _ := e.Find(broker.PermissionKey{Kind: broker.PermissionPermit, Name: "b"})
	if !slices.Equal(b.Subjects.Groups, []string{"dba"}) || b.Content != `@id("b") permit (principal in Group::"dba", action == Action::"request", resource == Entitlement::"tickets-api");` {
		t.Errorf("got %+v", b)
	}
	if a, _ := e.Find(broker.PermissionKey{Kind: broker.PermissionPermit, Name: "a"}); !slices.Equal(a.Subjects.Paths, []string{"spiffe://acme.test/agent"}) || a.PeersAll != 1 {
		t.Errorf("got %+v", a)
	}
	if _, ok := e.Find(broker.PermissionKey{Kind: broker.PermissionPermit, Name: "f"}); ok {
		t.Error("a forbid is a permission")
	}
}

func TestReviewsYAML(t *testing.T) {
	t.Parallel()
	files := func(reviews string) fstest.MapFS {
		return fstest.MapFS{"groups.yaml": {Data: []byte(groupsText)}, "reviews.yaml": {Data: []byte(reviews)},
			"a.cedar": {Data: []byte(`@id("p") permit (principal, action == Action::"request", resource);`)}}
	}
	e := load(t, files(`
quarterly:
  description: All agents
  scope: {permits: [p], marks: [all], groups: [dba], grants_longer_than: 24h}
  reviewers: [owner, manager, support]
  fallback: dba
  schedule: {first: 2026-01-15, every: 90d}
  deadline: 14d
  remind: [2d, 7d]
  escalate: [{before: 1d, to: support}]
  signed: required
`))
	const day = 24 * time.Hour
	p := e.Rules().Campaigns["quarterly"]
	if p == nil || p.Deadline != 14*day || !slices.Equal(p.Remind, []time.Duration{7 * day, 2 * day}) || p.RunBy != "dba" || !p.Signed || p.Every != 90*day || p.Scope.GrantsLongerThan != day {
		t.Fatalf("got %+v", p)
	}
	for text, want := range map[string]string{
		"q: {scope: {permits: [all]}, deadline: 1d}":                                                            "fallback is missing",
		"q: {scope: {permits: [all]}, fallback: dba}":                                                           "deadline",
		"q: {scope: {permits: [all]}, fallback: dbas, deadline: 1d}":                                            `group "dbas" does not exist: did you mean "dba"?`,
		"q: {scope: {}, fallback: dba, deadline: 1d}":                                                           "scope selects nothing",
		"q: {scope: {permits: [q]}, fallback: dba, deadline: 1d}":                                               `permit "q" does not exist`,
		"q: {scope: {permits: [all, p]}, fallback: dba, deadline: 1d}":                                          "all includes the other names",
		"q: {scope: {suppliers: [x]}, fallback: dba, deadline: 1d}":                                             `supplier "x" does not exist`,
		"q: {scope: {marks: [acme.test]}, fallback: dba, deadline: 1d}":                                         "spiffe://",
		"q: {scope: {permits: [all]}, fallback: dba, deadline: 1d, remind: [2d]}":                               "before the deadline",
		"q: {scope: {permits: [all]}, fallback: dba, deadline: 14d, schedule: {first: 2026-01-15, every: 14d}}": "must end before the next one starts",
		"q: {scope: {permits: [all]}, fallback: dba, deadline: 14d, schedule: {first: 2026-13-15, every: 90d}}": "write a date",
		"q: {scope: {permits: [all]}, fallback: dba, deadline: 14d, signed: yes}":                               "signed",
		"q: {scope: {permits: [all]}, fallback: dba, deadline: 14d, reviewer: owner}":                           "unknown key",
		"Q: {scope: {permits: [all]}, fallback: dba, deadline: 14d}":                                            "can't name a campaign",
		"q: {scope: {permits: [all]}, fallback: dba, deadline: 14}":                                             "write a time",
		"q: {scope: {permits: [all]}, fallback: dba, deadline: 14d, escalate: [{before: 1d, to: managers}]}":    `group "managers" does not exist`,
		"q: {scope: {permits: [all]}, fallback: dba, deadline: 14d, reviewers: [owners]}":                       `group "owners" does not exist`,
		"- quarterly": "must be a mapping",
	} {
		if _, err := policy.Load(inputs(files(text))); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "reviews.yaml:1:") {
			t.Errorf("%s\ngot error %v, want %q", text, err, want)
		}
	}
}
