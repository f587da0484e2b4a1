package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/e2e/servers"
	"accessbroker.internal/policy"
)

const (
	cedarPolicies = 2400 // of each class
	cedarSets     = 160
	cedarQueries  = 24 // of each set
)

// TestPoliciesMeanWhatCedarMeans compares the broker with Cedar's Rust implementation
// on random policies. The broker loads nothing that Rust refuses, refuses only for its
// documented reasons what Rust accepts, and decides as Rust does, errors included.
// CEDAR_SEED draws other policies.
func TestPoliciesMeanWhatCedarMeans(t *testing.T) {
	t.Parallel()
	seed := uint64(1) // the same policies in every run; another seed draws others
	if text := os.Getenv("CEDAR_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("CEDAR_SEED=%d", seed)
	r := rand.New(rand.NewPCG(seed, 6))
	rust := rustCedar(t)
	loads := compareLoading(t, r, rust)
	compareDecisions(t, r, rust, loads)
}

// cedarWorld returns the inputs of all engines.
func cedarWorld(cedar string) policy.Inputs {
	in := policy.Inputs{
		Catalogue: broker.Catalogue{}, HomeDomain: "home.test", TrustDomains: []string{"home.test"}, Providers: []string{"login"},
		Labels: []broker.WorkloadLabels{{Under: "spiffe://home.test/b", Kind: broker.KindAgent, Team: "t", Accountable: []string{"login/p0"}}},
		FS:     fstest.MapFS{"a.cedar": {Data: []byte(cedar)}, "groups.yaml": {Data: []byte("g0: {members: [login/p0], workloads: [spiffe://home.test/a]}\ng1: {workloads: [spiffe://home.test]}\n")}},
	}
	for i := range 3 {
		name := fmt.Sprint("e", i)
		in.Catalogue[name] = &broker.Entitlement{Name: name, Issuer: "issuer", Scopes: []string{"a", "b"}, MaxTTL: time.Hour}
	}
	in.Catalogue["e0"].Owner, in.Catalogue["e0"].System, in.Catalogue["e0"].Labels = "g0", "s0", map[string]string{"env": "prod"}
	in.Catalogue["e1"].System, in.Catalogue["e1"].Labels = "s1", map[string]string{"env": "a"}
	return in
}

type (
	rustInput struct {
		Schema   string              `json:"schema"`
		Policies []string            `json:"policies"`
		Sets     []map[string]string `json:"sets"`
		Queries  []map[string]any    `json:"queries"`
	}
	rustDecision struct {
		Permit           bool
		Policies, Errors []string
	}
	rustOutput struct {
		Refused   []string
		Decisions []rustDecision
		Version   string
	}
)

// rustCedar returns a function that asks the Rust implementation.
func rustCedar(t *testing.T) func(rustInput) rustOutput {
	t.Helper()
	modules, err := servers.Modules("cedar")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	program, err := os.ReadFile(filepath.Join("clients", "cedar", "cedar.mjs"))
	if err == nil {
		err = errors.Join(os.WriteFile(filepath.Join(dir, "cedar.mjs"), program, 0o600), os.Symlink(modules, filepath.Join(dir, "node_modules")))
	}
	if err != nil {
		t.Fatal(err)
	}
	engine, err := policy.Load(cedarWorld(""))
	if err != nil {
		t.Fatal(err)
	}
	schema := string(engine.Contents()["schema.cedarschema"])
	return func(in rustInput) (out rustOutput) {
		t.Helper()
		in.Schema = schema
		text, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), installed(t, "node"), filepath.Join(dir, "cedar.mjs"))
		cmd.Stdin = bytes.NewReader(text)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		answer, err := cmd.Output()
		if err == nil {
			err = json.Unmarshal(answer, &out)
		}
		if err != nil {
			t.Fatalf("%v\n%s", err, stderr.String())
		}
		return out
	}
}

// documented are the reasons in docs/policy.md for which the broker refuses policies
// that Cedar accepts.
var documented = regexp.MustCompile(`so the policy never applies|no request matches the head|is not the caller, and a decision knows only its name|can't be equal|an? permit must name its actions`)

// compareLoading loads random policies of three classes, and returns those that both
// implementations load, by class.
func compareLoading(t *testing.T, r *rand.Rand, rust func(rustInput) rustOutput) (loaded []string) {
	t.Helper()
	classes := []string{"well-typed", "ill-typed", "damaged"}
	var texts []string
	for _, class := range classes {
		for i := range cedarPolicies {
			g := cedarGenerator{r, 0}
			if class == "ill-typed" {
				g.ill = 0.15
			}
			text := g.policy(fmt.Sprint("p", i))
			if class == "damaged" {
				text = g.damage(text)
			}
			texts = append(texts, text)
		}
	}
	cedar := make([]string, len(texts))
	for i, text := range texts {
		cedar[i] = strings.TrimPrefix(text, "\ufeff") // editors write a byte order mark, and the broker reads the file without it
	}
	out := rust(rustInput{Policies: cedar, Sets: []map[string]string{}, Queries: []map[string]any{}})
	t.Logf("Cedar %s", out.Version)
	both, neither, stricter, wrong := map[string]int{}, map[string]int{}, map[string]int{}, 0
	for i, text := range texts {
		class := classes[i/cedarPolicies]
		_, err := policy.Load(cedarWorld(text))
		switch accepted := out.Refused[i] == ""; {
		case accepted && err == nil:
			both[class]++
			if class == "well-typed" {
				loaded = append(loaded, text)
			}
		case !accepted && err != nil:
			neither[class]++
		case accepted:
			stricter[class]++
			// In the other classes, a part that is never evaluated may be wrong.
			if class == "well-typed" && !documented.MatchString(err.Error()) {
				wrong++
				t.Errorf("%s: the broker refuses what Cedar accepts:\n%s%v", class, text, err)
			}
		default:
			wrong++
			t.Errorf("%s: the broker loads what Cedar refuses:\n%q\n%s", class, text, out.Refused[i])
		}
		if wrong > 20 {
			t.Fatal("too many differences")
		}
	}
	t.Logf("both load %v, both refuse %v, only the broker refuses %v", both, neither, stricter)
	if both["well-typed"] < cedarPolicies/2 || neither["ill-typed"] < cedarPolicies/4 || both["ill-typed"] < cedarPolicies/20 || neither["damaged"] < cedarPolicies/4 || both["damaged"] < cedarPolicies/60 {
		t.Error("a class has too few policies of a kind")
	}
	return loaded
}

// compareDecisions decides random queries with sets of policies.
func compareDecisions(t *testing.T, r *rand.Rand, rust func(rustInput) rustOutput, loaded []string) {
	t.Helper()
	in := rustInput{Policies: []string{}}
	var engines []*policy.Engine
	var queries []broker.Query
	var times []time.Time
	for set := range cedarSets {
		policies, all := map[string]string{}, ""
		for range 6 {
			text := loaded[r.IntN(len(loaded))]
			id := fmt.Sprint("p", len(policies))
			text = regexp.MustCompile(`^@id\("p\d+"\)`).ReplaceAllString(text, fmt.Sprintf("@id(%q)", id))
			policies[id] = text
			all += text
		}
		engine, err := policy.Load(cedarWorld(all))
		if err != nil {
			t.Fatalf("%v\n%s", err, all)
		}
		engines = append(engines, engine)
		in.Sets = append(in.Sets, policies)
		for range cedarQueries {
			q, now := randomCedarQuery(r)
			call := rustQuery(q, now)
			call["set"] = set
			in.Queries, queries, times = append(in.Queries, call), append(queries, q), append(times, now)
		}
	}
	seen := map[string]int{}
	for i, want := range rust(in).Decisions {
		outcome, problem := compareDecision(t, engines[i/cedarQueries], queries[i], times[i], want)
		seen[outcome]++
		if problem != "" {
			call, _ := json.Marshal(in.Queries[i])
			t.Errorf("%s\n%s\n%v", problem, call, in.Sets[i/cedarQueries])
		}
	}
	t.Logf("decisions: %v", seen)
	for outcome, least := range map[string]int{"permit": 100, "deny": 100, "forbid": 100, "error": 3} {
		if seen[outcome] < least {
			t.Errorf("only %d decisions are %s", seen[outcome], outcome)
		}
	}
}

// compareDecision decides with the broker, and returns the kind of the decision and how
// it differs from that of Rust. The broker denies if a policy errs, and permits
// "approve" unless a policy forbids it.
func compareDecision(t *testing.T, e *policy.Engine, q broker.Query, now time.Time, want rustDecision) (outcome, problem string) {
	t.Helper()
	d, err := e.Decide(t.Context(), q, now)
	var erred []string
	if err != nil {
		list, ok := err.(interface{ Unwrap() []error })
		if !ok {
			return "error", fmt.Sprintf("the query is not valid: %v", err)
		}
		for _, one := range list.Unwrap() {
			var p *policy.Problem
			if errors.As(one, &p) {
				erred = append(erred, p.Policy)
			}
		}
	}
	slices.Sort(erred)
	permit := want.Permit && len(want.Errors) == 0
	if q.Action == broker.ActionApprove {
		permit = len(want.Policies) == 0 && len(want.Errors) == 0
	}
	switch {
	case !slices.Equal(erred, want.Errors):
		problem = fmt.Sprintf("the policies that err are %q, in Rust %q", erred, want.Errors)
	case d.Permit != permit:
		problem = fmt.Sprintf("the decision is %v by %q, in Rust %+v", d.Permit, d.Policies, want)
	case len(want.Errors) == 0 && !slices.Equal(d.Policies, want.Policies):
		problem = fmt.Sprintf("the determining policies are %q, in Rust %q", d.Policies, want.Policies)
	}
	switch {
	case len(want.Errors) > 0:
		return "error", problem
	case permit:
		return "permit", problem
	case len(want.Policies) > 0:
		return "forbid", problem
	}
	return "deny", problem
}

func randomCedarQuery(r *rand.Rand) (broker.Query, time.Time) {
	in := cedarWorld("")
	rules := broker.Rules{Labels: in.Labels}
	pick := func(items ...string) string { return items[r.IntN(len(items))] }
	who := broker.Identity{ID: pick("spiffe://home.test/a", "spiffe://home.test/a/x", "spiffe://home.test/b/x", "spiffe://home.test/b", "spiffe://home.test/c"), Kind: broker.KindWorkload, TrustDomain: "home.test"}
	if r.IntN(4) == 0 {
		who = broker.Identity{ID: pick("login/p0", "login/p1"), Kind: broker.KindPerson}
	}
	q := broker.Query{
		Principal: rules.WithLabels(who), Action: broker.Action(pick("request", "request", "request", "view", "revoke", "approve", "audit")), Entitlement: in.Catalogue[fmt.Sprint("e", r.IntN(3))],
		Scopes: [][]string{{"a"}, {"b"}, {"a", "b"}}[r.IntN(3)], TTL: time.Duration(r.IntN(7200)) * time.Second, Duration: time.Duration(r.IntN(86400)) * time.Second,
		Justification: pick("", "a"), Ticket: pick("", "a", "prod"), BreakGlass: false,
	}
	if r.IntN(2) == 0 {
		q.Parameters = map[string]string{"p": pick("v", "w")}
	}
	if source := pick("", "10.1.2.3", "::1", "127.0.0.1", "2001:db8::5", "::ffff:10.1.2.3"); source != "" {
		q.SourceIP = netip.MustParseAddr(source)
	}
	if q.Action == broker.ActionApprove {
		q.Principal = broker.Identity{ID: pick("login/p0", "login/p1"), Kind: broker.KindPerson}
	}
	requester := rules.WithLabels(broker.Identity{ID: pick(who.ID, "spiffe://home.test/b/x"), Kind: broker.KindWorkload, TrustDomain: "home.test"})
	q.Request = &broker.Request{Requester: requester, Entitlement: q.Entitlement.Name, Scopes: q.Scopes}
	now := time.UnixMilli([]int64{0, -1, -86400000, -86399999, 1796000000123, 1, 253402300799999, -62167219200000}[r.IntN(8)] + int64(r.IntN(1000))).UTC()
	return q, now
}

// rustQuery writes a query as the documentation of the schema describes it, without
// the code that the broker uses for it.
func rustQuery(q broker.Query, now time.Time) map[string]any {
	type object = map[string]any
	uid := func(kind, id string) object { return object{"type": kind, "id": id} }
	extension := func(fn, arg string) object { return object{"__extn": object{"fn": fn, "arg": arg}} }
	duration := func(d time.Duration) object { return extension("duration", fmt.Sprintf("%dms", d.Milliseconds())) }

	who := q.Principal
	kind, attrs, parents := "Person", object{"id": who.ID, "provider": "login"}, []object{}
	if who.Kind == broker.KindPerson {
		if who.ID == "login/p0" {
			parents = append(parents, uid("Group", "g0"))
		}
	} else {
		kind, attrs = "Workload", object{"id": who.ID, "trust_domain": "home.test"}
		path := "spiffe://home.test"
		for _, segment := range strings.Split(strings.TrimPrefix(who.ID, path+"/"), "/") {
			path += "/" + segment
			parents = append(parents, uid("Path", path))
		}
		parents = append(parents, uid("TrustDomain", "home.test"), uid("Group", "g1"))
		if who.ID == "spiffe://home.test/a" || strings.HasPrefix(who.ID, "spiffe://home.test/a/") {
			parents = append(parents, uid("Group", "g0"))
		}
		if who.ID == "spiffe://home.test/b" || strings.HasPrefix(who.ID, "spiffe://home.test/b/") {
			kind = "Agent"
			attrs["team"], attrs["accountable"] = "t", []string{"login/p0"}
		}
	}
	entities := []object{{"uid": uid(kind, who.ID), "attrs": attrs, "parents": parents}}
	system := map[string]string{"e0": "s0", "e1": "s1"}
	for name, env := range map[string]string{"e0": "prod", "e1": "a", "e2": ""} {
		e := object{"uid": uid("Entitlement", name), "attrs": object{"issuer": "issuer", "scopes": []string{"a", "b"}}, "parents": []object{}, "tags": object{}}
		if name == "e0" {
			e["attrs"].(object)["owner"] = object{"__entity": uid("Group", "g0")}
		}
		if env != "" {
			e["parents"], e["tags"] = []object{uid("System", system[name])}, object{"env": env}
		}
		entities = append(entities, e)
	}
	context := object{"now": object{"__extn": object{"fn": "offset", "args": []any{extension("datetime", "1970-01-01"), extension("duration", fmt.Sprintf("%dms", now.UnixMilli()))}}}}
	if q.SourceIP.IsValid() {
		context["source_ip"] = extension("ip", q.SourceIP.Unmap().String())
	}
	resource := uid("Broker", "self")
	switch q.Action {
	case broker.ActionRequest:
		resource = uid("Entitlement", q.Entitlement.Name)
		context["scopes"], context["ttl"], context["duration"], context["break_glass"] = q.Scopes, duration(q.TTL), duration(q.Duration), q.BreakGlass
		for name, text := range map[string]string{"justification": q.Justification, "ticket": q.Ticket} {
			if text != "" {
				context[name] = text
			}
		}
		tags := object{}
		for k, v := range q.Parameters {
			tags[k] = v
		}
		entities = append(entities, object{"uid": uid("Parameters", "p"), "attrs": object{}, "parents": []object{}, "tags": tags})
		context["parameters"] = object{"__entity": uid("Parameters", "p")}
	case broker.ActionView, broker.ActionRevoke, broker.ActionApprove:
		resource = uid("Request", q.Request.ID.String())
		facts := object{"requester": q.Request.Requester.ID, "accountable": append([]string{}, q.Request.Requester.Accountable...), "scopes": q.Scopes}
		if q.Request.Requester.Team != "" {
			facts["team"] = q.Request.Requester.Team
		}
		above := []object{uid("Entitlement", q.Entitlement.Name)}
		if s := system[q.Entitlement.Name]; s != "" {
			above = append(above, uid("System", s))
		}
		entities = append(entities, object{"uid": resource, "attrs": facts, "parents": above})
	}
	return object{"principal": uid(kind, who.ID), "action": uid("Action", string(q.Action)), "resource": resource, "context": context, "entities": entities}
}
