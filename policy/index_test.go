package policy

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"

	"accessbroker.internal/broker"
)

// world returns inputs with few names, so that random policies and queries often
// match.
func world() Inputs {
	c := broker.Catalogue{}
	for i := range 4 {
		name := fmt.Sprintf("e%d", i)
		c[name] = &broker.Entitlement{Name: name, Scopes: []string{"a", "b"}, MaxTTL: time.Hour, Owner: "g0"}
		if i > 0 {
			c[name].System = fmt.Sprintf("s%d", i%2)
		}
	}
	return Inputs{
		Catalogue: c, HomeDomain: "home.test", TrustDomains: []string{"home.test", "far.test"}, Providers: []string{"login"},
		Labels: []broker.WorkloadLabels{{Under: "spiffe://home.test/b", Kind: broker.KindAgent, Team: "t"}, {Under: "spiffe://far.test/b", Kind: broker.KindAgent}},
	}
}

const worldGroups = `
g0: {members: [login/p0, login/p1]}
g1: {workloads: [spiffe://home.test/a, spiffe://far.test/b]}
g2: {workloads: [spiffe://far.test], members: [login/p1]}
`

func pick(r *rand.Rand, items ...string) string { return items[r.IntN(len(items))] }

func randomID(r *rand.Rand) string {
	id := "spiffe://" + pick(r, "home.test", "far.test")
	for range 1 + r.IntN(3) {
		id += "/" + pick(r, "a", "b", "c")
	}
	return id
}

func randomPolicy(r *rand.Rand, i int) string {
	path := fmt.Sprintf("Path::%q", randomID(r))
	group := fmt.Sprintf("Group::%q", pick(r, "g0", "g1", "g2"))
	domain := fmt.Sprintf("TrustDomain::%q", pick(r, "home.test", "far.test"))
	self := randomID(r)
	kind := "Workload"
	if strings.HasPrefix(self, "spiffe://home.test/b") || strings.HasPrefix(self, "spiffe://far.test/b") {
		kind = "Agent"
	}
	who := pick(r, "", " is Workload", " is Agent", " is Person", " in "+path, " in "+group, " in "+domain, " is Workload in "+path,
		fmt.Sprintf(" == %s::%q", kind, self), ` == Person::"login/p0"`)
	actions := pick(r, `== Action::"request"`, `== Action::"request"`, `in [Action::"view", Action::"revoke"]`)
	what := pick(r, "", fmt.Sprintf(` in System::"s%d"`, r.IntN(2)), fmt.Sprintf(` == Entitlement::"e%d"`, r.IntN(4)), " is Entitlement")
	when := pick(r, "", `when { context.scopes.contains("a") }`, `unless { context.scopes.contains("b") }`,
		`when { context.ttl.toMilliseconds() * 1600000000000 > 0 }`)
	if !strings.Contains(actions, "request") {
		what = pick(r, "", fmt.Sprintf(` in Entitlement::"e%d"`, r.IntN(4)), ` in System::"s1"`)
		when = pick(r, "", `when { resource.requester == principal.id }`)
	}
	return fmt.Sprintf("@id(\"p%d\") %s (principal%s, action %s, resource%s) %s;\n", i, pick(r, "permit", "permit", "forbid"), who, actions, what, when)
}

func randomQuery(r *rand.Rand, in Inputs) broker.Query {
	rules := broker.Rules{Labels: in.Labels}
	who := broker.Identity{ID: randomID(r), Kind: broker.KindWorkload}
	who.TrustDomain, _, _ = strings.Cut(strings.TrimPrefix(who.ID, "spiffe://"), "/")
	if r.IntN(4) == 0 {
		who = broker.Identity{ID: pick(r, "login/p0", "login/p1", "login/p2"), Kind: broker.KindPerson}
	}
	who = rules.WithLabels(who)
	about := in.Catalogue[fmt.Sprintf("e%d", r.IntN(4))]
	q := broker.Query{Principal: who, Action: broker.ActionRequest, Entitlement: about, TTL: time.Duration(1+r.IntN(2)) * time.Hour}
	q.Scopes = [][]string{{"a"}, {"b"}, {"a", "b"}}[r.IntN(3)]
	if r.IntN(3) == 0 {
		q.Action = broker.Action(pick(r, "view", "revoke"))
		q.Request = &broker.Request{Entitlement: about.Name, Requester: broker.Identity{ID: pick(r, who.ID, "login/p0")}}
	}
	return q
}

// scanAll decides without the index and without the evaluation's entity store: it
// passes all policies and a hierarchy of single parents to Cedar.
func scanAll(e *Engine, ev *evaluation) (cedar.Decision, cedar.Diagnostic) {
	all := cedar.PolicyMap{}
	for id, r := range e.rules {
		if r.appliesTo(ev.foreign) {
			all[id] = r.policy
		}
	}
	entities := types.EntityMap{ev.resource.UID: ev.resource, ev.parameters.UID: ev.parameters}
	for uid, entity := range e.catalogue {
		entities[uid] = entity
	}
	parents := ev.principals[1:]
	for i, uid := range parents { // a chain: each is the only parent of the previous one
		entities[uid] = types.Entity{UID: uid, Parents: types.NewEntityUIDSet(parents[i+1 : min(i+2, len(parents))]...)}
	}
	principal := ev.principal
	principal.Parents = types.NewEntityUIDSet(parents[:min(1, len(parents))]...)
	entities[principal.UID] = principal
	return cedar.Authorize(all, entities, ev.request)
}

func diagnosed(d cedar.Diagnostic) (ids []string) {
	for _, r := range d.Reasons {
		ids = append(ids, "applies: "+string(r.PolicyID))
	}
	for _, r := range d.Errors {
		ids = append(ids, "errs: "+string(r.PolicyID))
	}
	slices.Sort(ids)
	return ids
}

func TestIndexedDecisionEqualsFullScan(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	seen := map[string]int{}
	for seed := range uint64(40) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			var cedarText strings.Builder
			for i := range 5 + r.IntN(60) {
				cedarText.WriteString(randomPolicy(r, i))
			}
			in := world()
			in.FS = fstest.MapFS{"a.cedar": {Data: []byte(cedarText.String())}, "groups.yaml": {Data: []byte(worldGroups)}}
			e, err := Load(in)
			if err != nil {
				t.Fatal(err)
			}
			for range 200 {
				compareWithScan(t, e, randomQuery(r, in), now, seen)
			}
		})
	}
	for _, outcome := range []string{"permit", "deny", "errors", "forbidden"} {
		if seen[outcome] < 50 {
			t.Errorf("outcome %q: got only %d times, want at least 50", outcome, seen[outcome])
		}
	}
}

func compareWithScan(t *testing.T, e *Engine, q broker.Query, now time.Time, seen map[string]int) {
	t.Helper()
	ev, err := e.newEvaluation(q, now)
	if err != nil {
		t.Fatalf("%+v: %v", q, err)
	}
	wantEffect, want := scanAll(e, ev)
	effect, got := cedar.Authorize(e.index.find(ev.action, ev.principals, ev.resources, ev.foreign), ev, ev.request)
	if effect != wantEffect || !slices.Equal(diagnosed(got), diagnosed(want)) {
		t.Fatalf("%s %s on %v: index %v %q, scan %v %q", q.Principal.ID, q.Action, ev.resources, effect, diagnosed(got), wantEffect, diagnosed(want))
	}
	d, err := e.Decide(context.Background(), q, now)
	if (err != nil) != (len(want.Errors) > 0) {
		t.Fatalf("Decide returns error %v, the scan %v", err, want.Errors)
	}
	if permit := wantEffect == cedar.Allow && len(want.Errors) == 0; d.Permit != permit {
		t.Fatalf("got permit %v, want %v", d.Permit, permit)
	}
	switch {
	case len(want.Errors) > 0:
		seen["errors"]++
	case d.Permit:
		seen["permit"]++
	case len(d.Policies) > 0:
		seen["forbidden"]++
	default:
		seen["deny"]++
	}
}

// The number of candidates does not grow with the number of policies.
func TestIndexFindsFewCandidates(t *testing.T) {
	t.Parallel()
	for _, policies := range []int{10, 1000} {
		e, q := company(t, policies)
		ev, err := e.newEvaluation(q, time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC))
		if err != nil {
			t.Fatal(err)
		}
		if found := e.index.find(ev.action, ev.principals, ev.resources, ev.foreign); len(found) == 0 || len(found) > 5 {
			t.Errorf("%d policies: got %d candidates, want 1 to 5", policies, len(found))
		}
	}
}

// BenchmarkDecide measures a decision among policies like those of a company: each
// permit names one team's path and one entitlement, and one forbid covers all.
func BenchmarkDecide(b *testing.B) {
	for _, policies := range []int{10, 1000, 10000} {
		b.Run(fmt.Sprint(policies), func(b *testing.B) {
			e, q := company(b, policies)
			now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
			b.ReportAllocs()
			for b.Loop() {
				d, err := e.Decide(context.Background(), q, now)
				if err != nil || !d.Permit {
					b.Fatalf("%+v, %v", d, err)
				}
			}
		})
	}
}

func company(tb testing.TB, policies int) (*Engine, broker.Query) {
	tb.Helper()
	in := Inputs{Catalogue: broker.Catalogue{}, HomeDomain: "acme.test", TrustDomains: []string{"acme.test"}}
	for i := range max(policies/10, 1) {
		name := fmt.Sprintf("entitlement-%d", i)
		in.Catalogue[name] = &broker.Entitlement{Name: name, System: fmt.Sprintf("system-%d", i/10), Scopes: []string{"close", "comment", "read"},
			Owner: "owners", Labels: map[string]string{"env": "prod"}, MaxTTL: time.Hour}
	}
	var text strings.Builder
	text.WriteString(`@id("office") forbid (principal, action == Action::"request", resource)
		when { resource.hasTag("env") && resource.getTag("env") == "prod" && context has source_ip && !context.source_ip.isInRange(ip("10.0.0.0/8")) };`)
	for i := range policies - 1 {
		fmt.Fprintf(&text, "@id(\"p%d\")\n@max_ttl(\"10m\")\npermit (principal in Path::\"spiffe://acme.test/team-%d\", action == Action::\"request\", resource == Entitlement::\"entitlement-%d\")\n"+
			"when { [\"read\", \"comment\"].containsAll(context.scopes) };\n", i, i/3, i%len(in.Catalogue))
	}
	in.FS = fstest.MapFS{"a.cedar": {Data: []byte(text.String())}, "groups.yaml": {Data: []byte("owners: {workloads: [spiffe://acme.test/owners]}\n")}}
	e, err := Load(in)
	if err != nil {
		tb.Fatal(err)
	}
	id := "spiffe://acme.test/team-1/service/worker"
	return e, broker.Query{
		Principal: broker.Identity{ID: id, Kind: broker.KindWorkload, TrustDomain: "acme.test"}, Action: broker.ActionRequest,
		Entitlement: in.Catalogue[fmt.Sprintf("entitlement-%d", 3%len(in.Catalogue))], Scopes: []string{"read"}, TTL: 5 * time.Minute, Duration: time.Hour,
	}
}

// BenchmarkLoad measures a reload of 10,000 policies. In each shape, another check
// meets the whole catalogue, all forbids, all labels or all warnings for every policy.
func BenchmarkLoad(b *testing.B) {
	e, _ := company(b, 10000)
	shapes := map[string]func(in *Inputs, text *strings.Builder, i int){
		"every entitlement": func(_ *Inputs, text *strings.Builder, i int) {
			fmt.Fprintf(text, "@id(\"p%d\") @approval(\"1 of owner\") @max_ttl(\"10m\") permit (principal in Path::\"spiffe://acme.test/team-%d\", action == Action::\"request\", resource);\n", i, i)
		},
		"forbids": func(_ *Inputs, text *strings.Builder, i int) {
			effect := []string{"permit", "forbid"}[i%2]
			fmt.Fprintf(text, "@id(\"p%d\") %s (principal in Path::\"spiffe://acme.test/team-%d\", action == Action::\"request\", resource == Entitlement::\"entitlement-%d\");\n", i, effect, i, i%1000)
		},
		"warnings": func(_ *Inputs, text *strings.Builder, i int) {
			fmt.Fprintf(text, "@id(\"p%d\") permit (principal in Path::\"spiffe://acme.test/team-%d\", action == Action::\"request\", resource)\nwhen { context.scopes.contains(\"reed\") };\n", i, i)
		},
		"labels": func(in *Inputs, text *strings.Builder, i int) {
			if i%10 == 0 {
				in.Labels = append(in.Labels, broker.WorkloadLabels{Under: fmt.Sprintf("spiffe://acme.test/team-%d", i), Kind: broker.KindAgent, Team: "owners"})
			}
			fmt.Fprintf(text, "@id(\"p%d\") @approval(\"1 of owner\") @exclude_team(\"yes\") permit (principal is Agent in Path::\"spiffe://acme.test/team-%d\", action == Action::\"request\", resource == Entitlement::\"entitlement-%d\");\n", i, i, i%1000)
		},
	}
	run := func(name string, in Inputs) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if loaded, err := Load(in); err != nil || loaded.Len() != 10000 {
					b.Fatal(err)
				}
			}
		})
	}
	run("teams", e.in)
	for _, name := range slices.Sorted(maps.Keys(shapes)) {
		in := e.in
		var text strings.Builder
		for i := range 10000 {
			shapes[name](&in, &text, i)
		}
		in.FS = fstest.MapFS{"a.cedar": {Data: []byte(text.String())}, "groups.yaml": {Data: []byte("owners: {members: [login/ana]}\n")}}
		run(name, in)
	}
}
