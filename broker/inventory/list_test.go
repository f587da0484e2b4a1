package inventory_test

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/broker/inventory"
	"accessbroker.internal/internal/brokertest/check"
	"accessbroker.internal/internal/storetest/tables"
	"accessbroker.internal/policy"
	"accessbroker.internal/store"
)

const policies = `
@id("agents") permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource == Entitlement::"tickets");
@id("jobs") permit (principal in Group::"jobs", action == Action::"request", resource == Entitlement::"tickets") when { context.scopes == ["s0"] };
@id("sleepers") permit (principal in Group::"sleepers", action == Action::"request", resource == Entitlement::"tickets") when { context.scopes == ["s5"] };
@id("dba") @approval("1 of dba") permit (principal is Person, action == Action::"request", resource == Entitlement::"db");
@id("auditors") permit (principal in Group::"auditors", action == Action::"audit", resource);
`

const groups = `
dba: {members: [login/ana, login/ben, login/gone]}
jobs: {workloads: ["spiffe://acme.test/jobs", "spiffe://acme.test/never"]}
sleepers: {workloads: ["spiffe://acme.test/jobs"]}
auditors: {members: [login/ada]}
`

const people = `
login/late: {ends: 2026-01-01, sponsor: login/ana}
`

// world is a broker with its store and policy.
type world struct {
	t     testing.TB
	store *store.Store
	b     *broker.Broker
	*inventory.Inventory
}

func newWorld(t testing.TB) *world {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{URL: tables.URL(t, filepath.Join(t.TempDir(), "broker.db")), Reserve: 1 << 16, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	check.OpenLog(t, s, time.Now())
	scopes := []string{"s0", "s1", "s2", "s3", "s4", "s5"}
	catalogue := broker.Catalogue{
		"tickets": {Name: "tickets", Issuer: "x", Scopes: scopes, MaxTTL: time.Hour, DefaultTTL: time.Minute, Effect: audit.Digest{1}},
		"db":      {Name: "db", Issuer: "x", MaxTTL: time.Hour, DefaultTTL: time.Minute, Effect: audit.Digest{2}, Owner: "dba"},
	}
	engine, err := policy.Load(policy.Inputs{
		FS: fstest.MapFS{"a.cedar": {Data: []byte(policies)}, "groups.yaml": {Data: []byte(groups)}, "people.yaml": {Data: []byte(people)}}, Catalogue: catalogue,
		HomeDomain: "acme.test", TrustDomains: []string{"acme.test"}, Providers: []string{"login"},
		Labels: []broker.WorkloadLabels{
			{Under: "spiffe://acme.test/agent", Kind: broker.KindAgent, Team: "support", Accountable: []string{"login/ana"}},
			{Under: "spiffe://acme.test/agent/two", Kind: broker.KindAgent, Accountable: []string{"login/ana", "login/gone"}},
			{Under: "spiffe://acme.test/agent/orphan", Kind: broker.KindAgent, Accountable: []string{"login/gone"}},
			{Under: "spiffe://acme.test/agent/free", Kind: broker.KindAgent},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.KeepRules(engine.Contents(), engine.Files()); err != nil {
		t.Fatal(err)
	}
	b, err := broker.New(t.Context(), broker.Config{Store: s, Issuers: map[string]broker.Issuer{}}, engine.Rules(), broker.Caller{At: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	return &world{t, s, b, inventory.New(inventory.Config{Broker: b, Store: s.Inventory(), Places: 3})}
}

// use appends the record of a credential.
func (w *world) use(id string, kind broker.Kind, policy, scope string, from int) {
	w.t.Helper()
	now := time.Now()
	r := audit.Record{
		Kind: audit.LeaseIssued, Caller: &audit.Party{ID: id, Kind: string(kind), Method: "x509-svid"}, From: netip.AddrFrom4([4]byte{192, 0, 2, byte(from)}),
		Request:  &audit.RequestFacts{ID: broker.NewRequestID(now).String(), Entitlement: "tickets", Scopes: []string{scope}, TTL: time.Minute},
		Decision: &audit.DecisionFacts{Permit: true, Policies: []string{policy}}, Lease: &audit.LeaseFacts{ID: broker.NewLeaseID(now).String()},
	}
	w.append(r)
}

func (w *world) append(r audit.Record) {
	w.t.Helper()
	entry, err := r.Entry()
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.store.Update(w.t.Context(), nil, func(tx broker.Tx) error { tx.Append(entry); return nil }); err != nil {
		w.t.Fatal(err)
	}
}

// auditor is a person who may audit, after some time.
func auditor(after time.Duration) broker.Caller {
	now := time.Now().Add(after)
	return broker.Self(broker.Identity{ID: "login/ada", Kind: broker.KindPerson, Person: &broker.Person{Provider: "login"}, Proof: broker.Proof{Method: broker.MethodSession, Expires: now.Add(time.Hour)}}, now)
}

// problems lists the inventory as lines of ids with problems.
func (w *world) problems(after time.Duration, f inventory.Filter) (lines []string) {
	w.t.Helper()
	page, err := w.List(w.t.Context(), auditor(after), f)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, i := range page.Identities {
		line := strings.TrimPrefix(i.ID, "spiffe://acme.test/")
		if i.Mark {
			line += " (mark)"
		}
		for _, p := range i.Problems {
			line += " " + string(p.Code)
		}
		lines = append(lines, line)
	}
	return lines
}

func TestInventoryFindsProblems(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.use("spiffe://acme.test/agent/busy", broker.KindAgent, "agents", "s0", 1)
	for n := range 6 {
		w.use("spiffe://acme.test/agent/wide", broker.KindAgent, "agents", fmt.Sprint("s", n), n)
	}
	w.use("spiffe://acme.test/agent/two/x", broker.KindAgent, "agents", "s0", 1)
	w.use("spiffe://acme.test/agent/orphan/x", broker.KindAgent, "agents", "s0", 1)
	w.use("spiffe://acme.test/agent/free", broker.KindAgent, "agents", "s0", 1)
	w.use("spiffe://acme.test/jobs/nightly", broker.KindWorkload, "jobs", "s0", 1)
	w.append(audit.Record{Kind: audit.SessionOpened, Caller: &audit.Party{ID: "spiffe://acme.test/stranger", Kind: "workload"}})
	gone := broker.Fact{Source: "scim:corp", State: broker.FactEnded, Cause: "account_disabled"}
	if err := w.b.Facts.Report(t.Context(), broker.Caller{At: time.Now()}, broker.StandingKey{Kind: broker.FactPerson, Name: "login/gone"}, gone); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"agent/busy broad", "agent/free no_owner broad", "agent/orphan/x orphan broad", "agent/two/x owner_left broad", "agent/wide many_places", "jobs/nightly", "never (mark) never_used", "stranger",
		"login/ada never_used", "login/ana never_used", "login/ben never_used", "login/gone ended never_used", "login/late ended never_used",
	}
	if got := w.problems(0, inventory.Filter{}); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for name, test := range map[string]struct {
		after time.Duration
		f     inventory.Filter
		want  []string
	}{
		"after 91 days": {91 * 24 * time.Hour, inventory.Filter{Kind: broker.KindWorkload}, []string{"jobs/nightly unused", "never (mark) never_used", "stranger"}},
		"a problem":     {0, inventory.Filter{Problem: "orphan"}, []string{"agent/orphan/x orphan broad"}},
		"words":         {0, inventory.Filter{Words: "SUPPORT busy"}, []string{"agent/busy broad"}},
		"a team":        {0, inventory.Filter{Team: "support"}, []string{"agent/busy broad", "agent/wide many_places"}},
		"people":        {0, inventory.Filter{Kind: broker.KindPerson, Limit: 2}, []string{"login/ada never_used", "login/ana never_used"}},
		"any problem":   {0, inventory.Filter{Problem: inventory.AnyProblem, Kind: broker.KindWorkload}, []string{"never (mark) never_used"}},
	} {
		if got := w.problems(test.after, test.f); !slices.Equal(got, test.want) {
			t.Errorf("%s: got %q, want %q", name, got, test.want)
		}
	}
}

func TestInventoryPagesCoverAllOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var want []string
	for n := range 450 {
		id := fmt.Sprintf("spiffe://acme.test/w/%03d", n*7%450)
		w.append(audit.Record{Kind: audit.SessionClosed, Caller: &audit.Party{ID: id, Kind: "workload"}})
		want = append(want, id)
	}
	var reports []broker.Report
	for n := range 450 {
		name := fmt.Sprintf("login/p%03d", n)
		reports = append(reports, broker.Report{Subject: broker.StandingKey{Kind: broker.FactPerson, Name: name}, Fact: broker.Fact{Source: "scim:corp", State: broker.FactActive}})
		want = append(want, name)
	}
	if err := w.b.Facts.ReportAll(t.Context(), broker.Caller{At: time.Now()}, reports); err != nil {
		t.Fatal(err)
	}
	slices.Sort(want)
	var got []string
	pages := 0
	for f := (inventory.Filter{Limit: 37}); ; pages++ {
		page, err := w.List(t.Context(), auditor(0), f)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range page.Identities {
			if strings.Contains(i.ID, "/w/") || strings.HasPrefix(i.ID, "login/p") {
				got = append(got, i.ID)
			}
		}
		if f.After = page.Next; f.After == "" {
			break
		}
	}
	if !slices.IsSortedFunc(got, func(a, b string) int { return strings.Compare(b[:1], a[:1]) }) {
		t.Error("people are not after workloads")
	}
	slices.Sort(got)
	if !slices.Equal(got, want) || pages < 20 {
		t.Errorf("got %d identities on %d pages, want %d", len(got), pages, len(want))
	}
}

func TestUnusedRules(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.use("spiffe://acme.test/agent/busy", broker.KindAgent, "agents", "s0", 1)
	w.use("spiffe://acme.test/jobs/nightly", broker.KindWorkload, "jobs", "s0", 1)
	w.append(audit.Record{Kind: audit.ApprovalGiven, Caller: &audit.Party{ID: "login/ana", Kind: "person"}, Request: &audit.RequestFacts{ID: "x"}, Approval: &audit.ApprovalFacts{Decision: "approve", Groups: []string{"dba"}}})
	describe := func(after, window time.Duration) string {
		c := auditor(after)
		u, err := w.Unused(t.Context(), c, c.At.Add(-window))
		if err != nil {
			t.Fatal(err)
		}
		var list []string
		for _, p := range u.Permits {
			list = append(list, "permit "+p.ID)
		}
		for _, s := range u.Scopes {
			list = append(list, "scope "+s.Scope+" of "+s.Policy)
		}
		for _, e := range u.Entitlements {
			list = append(list, strings.TrimSpace("entitlement "+e.Entitlement+" "+e.Scope))
		}
		for _, m := range u.Members {
			list = append(list, "member "+m.Member+" of "+m.Group)
		}
		return strings.Join(append(list, "not judged: "+strings.Join(u.Unmeasured, " ")), "\n")
	}
	want := `permit dba
permit sleepers
scope s1 of agents
scope s2 of agents
scope s3 of agents
scope s4 of agents
scope s5 of agents
entitlement db
entitlement tickets s1
entitlement tickets s2
entitlement tickets s3
entitlement tickets s4
entitlement tickets s5
member login/ben of dba
member login/gone of dba
member spiffe://acme.test/never of jobs
member spiffe://acme.test/jobs of sleepers
not judged: auditors`
	if got := describe(0, time.Hour); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if got := describe(91*24*time.Hour, 90*24*time.Hour); !strings.HasPrefix(got, "permit agents\npermit dba\npermit jobs\npermit sleepers\nentitlement db\nentitlement tickets\nmember login/ana of dba") {
		t.Errorf("after 91 days: got\n%s", got)
	}
}

// A permit that the rules did not have at the start of the period is new.
func TestUnusedMarksWhatIsNew(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := auditor(time.Hour)
	for name, since := range map[string]time.Duration{"before the log": 24 * time.Hour, "after its start": 30 * time.Minute} {
		u, err := w.Unused(t.Context(), c, c.At.Add(-since))
		if err != nil || len(u.Permits) != 4 || u.Permits[0].New || u.Members[0].New || u.Entitlements[0].New {
			t.Errorf("%s: got %+v, %v", name, u, err)
		}
	}
	files := map[string][]byte{"a.cedar": []byte("nothing"), "catalogue.json": []byte("{}")}
	digests := map[string]audit.Digest{"a.cedar": {8}, "catalogue.json": {9}}
	if err := w.store.KeepRules(files, digests); err != nil {
		t.Fatal(err)
	}
	w.append(audit.Record{Kind: audit.PolicyLoaded, Rules: &audit.RulesFacts{Files: digests}})
	u, err := w.Unused(t.Context(), c, c.At.Add(-time.Minute))
	if err != nil || len(u.Permits) != 4 || !u.Permits[0].New || !u.Members[0].New || !u.Entitlements[0].New {
		t.Errorf("after other rules: got %+v, %v", u, err)
	}
}
