package policy_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"accessbroker.internal/broker"
	"accessbroker.internal/policy"
)

// permit returns a valid policy with an annotation and a condition.
func permit(annotation, condition string) string {
	return `@id("x") ` + annotation + `
permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource == Entitlement::"tickets-api")
` + condition + `;`
}

func TestLoadRejectsPolicy(t *testing.T) {
	t.Parallel()
	const groups = "support: {members: [login/ana]}\ndba: {members: [login/cleo]}\n"
	tests := []struct {
		name, cedar string
		want        string
	}{
		{"syntax error", "permit (principal, action resource);", `a.cedar:1:35: Cedar syntax error near ")": found "resource", expected ","`},
		{"a template", permit("", `when { principal == ?principal }`), `a.cedar:3:22: Cedar syntax error`},
		{"a template of principals", "permit (principal == ?principal, action, resource);", `a.cedar:1:23: Cedar syntax error: templates (?principal, ?resource) are not supported: write a policy for each`},
		{"an end too early", "permit (principal, action, resource)", `a.cedar:1:37: Cedar syntax error at the end: the file ends here, expected ";"`},
		{"an unknown effect", "permt (principal, action, resource);", `a.cedar:1:7: Cedar syntax error near "(": found "permt", expected permit or forbid`},
		{"no condition", "permit (principal, action, resource) when { ;", `Cedar syntax error at the end: a value or a condition is missing here`},
		{"no operand", permit("", `when { context.ttl < }`), `a.cedar:3:23: Cedar syntax error near ";": a value or a condition is missing here`},
		{"an annotation without quotation marks", "@id(x) permit (principal, action, resource);", `a.cedar:1:6: Cedar syntax error near ")": a text in quotation marks is missing here`},
		{"a text without an end", permit("", `when { context.ticket == "INC }`), `Cedar syntax error: the closing quotation mark is missing`},
		{"a function that does not exist", permit("", `when { lower("x") == "x" }`), "`lower` is not a function"},
		{"no id", `permit (principal, action == Action::"audit", resource);`, `a.cedar:1:1: the policy has no id: add one`},
		{"an invalid id", `@id("Über") permit (principal, action == Action::"audit", resource);`, `a.cedar:1:1: @id: an id has 1 to 64 characters of a-z`},
		{"a duplicate id", permit("", "") + "\n\n" + permit("", ""), `a.cedar:5:1: policy "x": the policy at a.cedar:1 has the same id`},
		{"an annotation with a typo", permit(`@aprove("1 of dba")`, ""), `a.cedar:1:10: policy "x": @aprove: unknown annotation: use one of @approval, @binding, @break_glass, @change_window, @comment`},
		{"a duplicate annotation", permit(`@max_ttl("1h") @max_ttl("1m")`, ""), `a.cedar:1:33: Cedar syntax error near "(": duplicate annotation`},
		{"an obligation on a forbid", strings.Replace(permit(`@max_ttl("1h")`, ""), "permit", "forbid", 1), `@max_ttl: a forbid can't have obligations`},
		{"an unknown group in an approval", permit(`@approval("1 of dbaa")`, ""), `a.cedar:1:10: policy "x": @approval: group "dbaa" does not exist: did you mean "dba"?`},
		{"an approval by the owner of an entitlement without owner",
			`@id("x") @approval("1 of owner") permit (principal, action == Action::"request", resource);`,
			`@approval requires the owner, but entitlement "reports" has no owner`},
		{"an approval by owners of several entitlements without owner",
			`@id("x") @approval("1 of owner") permit (principal, action == Action::"request", resource in System::"plain");`,
			`but each of the entitlements "p1", "p2", "p3" and 1 more has no owner`},
		{"an approval by owners of three entitlements without owner",
			`@id("x") @approval("1 of owner") permit (principal, action == Action::"request", resource in System::"three");`,
			`but each of the entitlements "t1", "t2", "t3" has no owner`},
		{"a problem before the id", `@aprove("x") @id("late") permit (principal, action == Action::"audit", resource);`, `policy "late": @aprove: unknown`},
		{"an empty subject", permit("", `unless { principal == Person::"login/" }`), `"login/" is not a person`},
		{"an empty provider", permit("", `unless { principal == Person::"/ana" }`), `"/ana" is not a person`},
		{"a long path", permit("", `when { principal in Path::"spiffe://acme.test/`+strings.Repeat("a", 2030)+`" }`), `longer than the 2048 bytes`},
		{"an unknown group", `@id("x") permit (principal in Group::"dbaa", action == Action::"audit", resource);`, `a.cedar:1:31: policy "x": group "dbaa" does not exist`},
		{"a reserved group", `@id("x") permit (principal in Group::"owner", action == Action::"audit", resource);`, `"owner" is reserved for @approval and is not a group`},
		{"an unknown entitlement in the head", strings.Replace(permit("", ""), "tickets-api", "ticket-api", 1), `a.cedar:2:97: policy "x": entitlement "ticket-api" does not exist`},
		{"an unknown entitlement in a condition", permit("", `when { resource == Entitlement::"nope" }`), `a.cedar:3:20: policy "x": entitlement "nope" does not exist`},
		{"an unknown system", `@id("x") forbid (principal, action, resource in System::"ordres");`, `system "ordres" does not exist: did you mean "orders"?`},
		{"an unlisted trust domain", permit("", `unless { principal in TrustDomain::"evil.test" }`), `trust domain "evil.test" does not exist: list it in attest.trust_domains`},
		{"a path in an unlisted trust domain", permit("", `when { principal in Path::"spiffe://evil.test/x" }`), `trust domain "evil.test" does not exist`},
		{"a domain as path", permit("", `when { principal in Path::"spiffe://acme.test" }`), `is a whole trust domain: write TrustDomain::"acme.test"`},
		{"a path with a wildcard", permit("", `when { principal in Path::"spiffe://acme.test/agent/*" }`), `there are no wildcards`},
		{"a path with a slash at the end", permit("", `when { principal in Path::"spiffe://acme.test/agent/" }`), `has an empty segment`},
		{"a path with dots", permit("", `when { principal in Path::"spiffe://acme.test/agent/../x" }`), `has the segment '.' or '..'`},
		{"an agent named as a workload", permit("", `when { principal == Workload::"spiffe://acme.test/agent/triage" }`), `has kind agent: write Agent::"spiffe://acme.test/agent/triage"`},
		{"a person of an unknown provider", permit("", `unless { principal == Person::"google/ana" }`), `provider "google" does not exist`},
		{"a person without a provider", permit("", `unless { principal == Person::"ana" }`), `is not a person: write <provider>/<subject>`},
		{"a single request", `@id("x") forbid (principal, action == Action::"view", resource == Request::"req_x");`, `a policy can't name a single Request`},
		{"an unknown action", `@id("x") forbid (principal, action == Action::"aprove", resource);`, `a.cedar:1:39: policy "x": unknown action Action::"aprove": did you mean Action::"approve"?`},
		{"an unknown attribute", permit("", `when { context.scope.contains("a") }`), `a.cedar:3:16: policy "x": the context of Action::"request" has no attribute "scope": did you mean "scopes"?`},
		{"an unguarded optional attribute", permit("", `when { context.ticket like "INC-*" }`), `a.cedar:3:16: policy "x": context.ticket may be absent: check it first, as in context has ticket && …`},
		{"another broker", `@id("x") permit (principal, action == Action::"audit", resource == Broker::"other");`, `broker "other" does not exist: write Broker::"self"`},
		{"an action with the wrong resource", `@id("x") permit (principal, action == Action::"request", resource == Broker::"self");`, `a.cedar:1:18: policy "x": no request matches the head: "request" applies to Workload, Agent, Person as principal and Entitlement as resource`},
		{"a permit for every action", `@id("x") permit (principal, action, resource);`, `a.cedar:1:29: policy "x": a permit must name its actions`},
		{"a permit for approve", `@id("x") permit (principal, action in [Action::"view", Action::"approve"], resource);`, `policies can only forbid "approve"`},
		{"an obligation on another action", `@id("x") @max_ttl("1h") permit (principal, action == Action::"view", resource);`, `only a permit for Action::"request" alone may have obligations`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			in := inputs(fstest.MapFS{"a.cedar": {Data: []byte(test.cedar)}, "groups.yaml": {Data: []byte(groups)}})
			for _, name := range []string{"p1", "p2", "p3", "p4", "t1", "t2", "t3"} {
				if system := map[byte]string{'p': "plain", 't': "three"}[name[0]]; strings.Contains(test.cedar, system) {
					in.Catalogue[name] = &broker.Entitlement{Name: name, Issuer: "vault", System: system}
				}
			}
			_, err := policy.Load(in)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got error\n  %v\nwant\n  %s", err, test.want)
			}
		})
	}
}

func TestLoadRejectsGroups(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, groups, want string }{
		{"an unknown key", "support: {}\ndba:\n  members: [login/ana]\n  member: [login/ben]\n", `groups.yaml:4:3: unknown key "member"`},
		{"a member of an unknown provider", "support: {}\ndba:\n  members:\n  - login/ana\n  - google/ben\n", `groups.yaml:5:5: group "dba": provider "google" does not exist`},
		{"a workload of an unknown domain", "support: {}\ndba: {workloads: [spiffe://evil.test/x]}\n", `groups.yaml:2:19: group "dba": trust domain "evil.test" does not exist`},
		{"a malformed workload", "support: {}\ndba: {workloads: [acme.test/x]}\n", `is not a SPIFFE ID`},
		{"a claim without a group after a good one", "support: {claims: [{provider: login, group: a}]}\ndba: {claims: [{provider: login}]}\n",
			`groups.yaml:2:7: group "dba": a claim needs both`},
		{"a claim of an unknown provider", "support: {}\ndba: {claims: [{provider: google, group: a}]}\n", `groups.yaml:2:27: group "dba": provider "google" does not exist`},
		{"a duplicate group in another document", "support: {}\ndba: {}\n---\ndba: {}\n", `groups.yaml:4:1: group "dba" appears twice`},
		{"a claim without a group", "support: {}\ndba: {claims: [{provider: login}]}\n", `a claim needs both provider and group`},
		{"a duplicate member", "support: {}\ndba: {members: [login/ana, login/ana]}\n", `"login/ana" appears twice`},
		{"an unknown channel", "support: {}\ndba: {notify: [slack:dba, slack:dbs]}\n", `groups.yaml:2:27: group "dba": channel "slack:dbs" does not exist: configure it in notify`},
		{"a duplicate channel", "support: {}\ndba: {notify: [slack:dba, slack:dba]}\n", `"slack:dba" appears twice`},
		{"a reserved name", "support: {}\ndba: {}\nowner: {}\n", `groups.yaml:3:1: "owner" can't name a group`},
		{"a duplicate group", "support: {}\ndba: {}\ndba: {}\n", `groups.yaml:3:1:`},
		{"a list", "- dba\n", `groups.yaml:1:1: the file must be a mapping of group names`},
		{"a YAML syntax error", "dba: [\n", `groups.yaml:1:6: the closing ] is missing`},
		{"a null name", "support: {}\ndba: {}\nnull: {}\n", `groups.yaml:3:1: the key null is null in YAML: quote it, or write another name`},
		{"a tilde as a name", "support: {}\ndba: {}\n~: {}\n", `groups.yaml:3:1: the key ~ is null in YAML`},
		{"members that are no list", "support: {}\ndba: {members: login/ana}\n", `groups.yaml:2:16: dba.members: write a list, such as [login/ana]`},
		{"an owner that is not a group", "support: {}\n", `entitlements.orders-db-ro: owner: group "dba" does not exist`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := policy.Load(inputs(fstest.MapFS{"groups.yaml": {Data: []byte(test.groups)}}))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got error\n  %v\nwant\n  %s", err, test.want)
			}
		})
	}
}

// A mistake in groups.yaml does not lead to others about the groups that it has.
func TestMistakeInGroupsIsReportedOnce(t *testing.T) {
	t.Parallel()
	const odd = `@id("y") forbid (principal in Group::"Dba", action, resource);`
	for name, test := range map[string]struct{ groups, cedar, want string }{
		"syntax":          {"support: {}\ndba: [\n", odd, "groups.yaml:2:6: the closing ] is missing"},
		"another form":    {"- support\n- dba\n", odd, "groups.yaml:1:1: the file must be a mapping"},
		"a scalar":        {"support\n", odd, "groups.yaml:1:1: the file must be a mapping"},
		"a name":          {"support: {}\nDba: {}\ndba: {}\n", odd, "groups.yaml:2:1: \"Dba\" can't name a group"},
		"a group":         {"support: {}\ndba: {member: [login/ana]}\n", "", `groups.yaml:2:7: unknown key "member"`},
		"a group's value": {"support: {}\ndba: {members: login/ana}\n", "", "groups.yaml:2:16: dba.members: write a list"},
	} {
		_, err := policy.Load(inputs(fstest.MapFS{
			"groups.yaml": {Data: []byte(test.groups)},
			"a.cedar":     {Data: []byte(permit(`@approval("1 of dba")`, `when { principal in Group::"support" || principal in Group::"dba" }`) + test.cedar)},
		}))
		if err == nil || !strings.HasPrefix(err.Error(), test.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: got error\n  %v\nwant only\n  %s", name, err, test.want)
		}
	}
}

func TestLoadReportsEveryProblem(t *testing.T) {
	t.Parallel()
	_, err := policy.Load(inputs(fstest.MapFS{
		"b/two.cedar": {Data: []byte(permit(`@aprove("x")`, ""))},
		"a.cedar":     {Data: []byte(`permit (principal in Group::"nobody", action == Action::"audit", resource);`)},
		"groups.yaml": {Data: []byte("support: {}\ndba: {}\n")},
	}))
	var p *policy.Problem
	if !errors.As(err, &p) || p.File != "a.cedar" || p.Line != 1 {
		t.Errorf("got first problem %+v, want the one in a.cedar:1", p)
	}
	for _, want := range []string{"the policy has no id", `group "nobody"`, "b/two.cedar:1:10", "@aprove"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("got no problem with %q in:\n%v", want, err)
		}
	}
}

func TestLoadRejectsLabels(t *testing.T) {
	t.Parallel()
	for want, labels := range map[string]broker.WorkloadLabels{
		`trust domain "evil.test" does not exist`: {Under: "spiffe://evil.test/x", Kind: broker.KindAgent},
		`kind "robot": write workload or agent`:   {Under: "spiffe://acme.test/x", Kind: "robot"},
		`provider "google" does not exist`:        {Under: "spiffe://acme.test/x", Kind: broker.KindAgent, Accountable: []string{"google/x"}},
	} {
		in := inputs(fstest.MapFS{"groups.yaml": {Data: []byte("support: {}\ndba: {}\n")}})
		in.Labels = []broker.WorkloadLabels{labels}
		if _, err := policy.Load(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got error %v, want %s", err, want)
		}
	}
}

func TestLoadRejectsUnlistedHomeDomain(t *testing.T) {
	t.Parallel()
	in := inputs(fstest.MapFS{})
	in.HomeDomain = "other.test"
	if _, err := policy.Load(in); err == nil || !strings.Contains(err.Error(), "other.test") {
		t.Errorf("got error %v", err)
	}
}

// The folder has the layout of a Kubernetes volume.
func TestLoadSkipsHiddenFiles(t *testing.T) {
	t.Parallel()
	groups := &fstest.MapFile{Data: []byte("support: {}\ndba: {}\n")}
	e := load(t, fstest.MapFS{
		"..2026_11_23/a.cedar": {Data: []byte(permit("", ""))}, "a.cedar": {Data: []byte(permit("", ""))}, ".a.cedar.swp": {Data: []byte("x")},
		"groups.yaml": groups, "README.md": {Data: []byte("x")},
	})
	if e.Len() != 1 {
		t.Errorf("got %d policies, want 1", e.Len())
	}
}

// Some editors start a file with a byte order mark. Positions do not count it, and
// the digest is that of the file.
func TestLoadAcceptsByteOrderMark(t *testing.T) {
	t.Parallel()
	const mark = "\ufeff"
	folder := fstest.MapFS{
		"a.cedar":     {Data: []byte(mark + permit("", ""))},
		"groups.yaml": {Data: []byte(mark + "support: {members: [login/ana]}\ndba: {}\n")},
	}
	e := load(t, folder)
	if e.Len() != 1 || sum(folder["a.cedar"].Data) != e.Files()["a.cedar"] || sum(folder["groups.yaml"].Data) != e.Files()["groups.yaml"] {
		t.Errorf("got %d policies and digests %v", e.Len(), e.Files())
	}
	folder["a.cedar"].Data = []byte(mark + `permit (principal, action resource);`)
	if _, err := policy.Load(inputs(folder)); err == nil || !strings.Contains(err.Error(), "a.cedar:1:35:") {
		t.Errorf("got error %v, want one at a.cedar:1:35", err)
	}
}

func TestLoadRejectsOversizedFile(t *testing.T) {
	t.Parallel()
	_, err := policy.Load(inputs(fstest.MapFS{"a.cedar": {Data: make([]byte, 5<<20)}}))
	if err == nil || !strings.Contains(err.Error(), "more than 4194304: split the file") {
		t.Errorf("got error %v", err)
	}
}

func TestRevisionCoversEveryInput(t *testing.T) {
	t.Parallel()
	folder := func() fstest.MapFS {
		return fstest.MapFS{"a.cedar": {Data: []byte(permit("", ""))}, "groups.yaml": {Data: []byte("support: {}\ndba: {}\n")}}
	}
	base := load(t, folder())
	if same := load(t, folder()); same.Revision() != base.Revision() {
		t.Error("equal inputs have different revisions")
	}
	changes := map[string]func(in *policy.Inputs, dir fstest.MapFS){
		"policy":    func(_ *policy.Inputs, dir fstest.MapFS) { dir["a.cedar"].Data = append(dir["a.cedar"].Data, '\n') },
		"file name": func(_ *policy.Inputs, dir fstest.MapFS) { dir["b.cedar"] = dir["a.cedar"]; delete(dir, "a.cedar") },
		"groups": func(_ *policy.Inputs, dir fstest.MapFS) {
			dir["groups.yaml"].Data = append(dir["groups.yaml"].Data, '\n')
		},
		"entitlement": func(in *policy.Inputs, _ fstest.MapFS) { in.Catalogue["reports"].MinTTL++ },
		"effect":      func(in *policy.Inputs, _ fstest.MapFS) { in.Catalogue["reports"].Effect[0]++ },
		"labels":      func(in *policy.Inputs, _ fstest.MapFS) { in.Labels = nil },
		"domains":     func(in *policy.Inputs, _ fstest.MapFS) { in.TrustDomains = append(in.TrustDomains, "third.test") },
		"home":        func(in *policy.Inputs, _ fstest.MapFS) { in.HomeDomain = "supplier.test" },
	}
	for name, change := range changes {
		dir := folder()
		in := inputs(dir)
		change(&in, dir)
		e, err := policy.Load(in)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if e.Revision() == base.Revision() {
			t.Errorf("%s: the revision does not change", name)
		}
	}
}

func TestFilesMatchContents(t *testing.T) {
	t.Parallel()
	e := sample(t)
	var names []string
	for name, d := range e.Files() {
		names = append(names, name)
		if content := e.Contents()[name]; sum(content) != d {
			t.Errorf("%s: the digest does not match the content", name)
		}
	}
	slices.Sort(names)
	want := []string{"catalogue.json", "databases.cedar", "groups.yaml", "identities.json", "people.cedar", "schema.cedarschema", "tickets.cedar"}
	if !slices.Equal(names, want) {
		t.Errorf("got files %q, want %q", names, want)
	}
}

func TestLoadRejectsBinaryFile(t *testing.T) {
	t.Parallel()
	_, err := policy.Load(inputs(fstest.MapFS{"a.cedar": {Data: []byte("x"), Mode: fs.ModeDir}, "a.cedar/b.cedar": {Data: []byte{0xff}}}))
	if err == nil || !strings.Contains(err.Error(), "is not UTF-8") {
		t.Errorf("got error %v", err)
	}
}

// FuzzPolicies loads arbitrary text. If it loads, Decide and Explain must agree and
// must not panic.
func FuzzPolicies(f *testing.F) {
	for _, name := range []string{"tickets", "people", "databases"} {
		seed, err := os.ReadFile("testdata/sample/" + name + ".cedar")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(seed))
	}
	f.Add(`// "`)
	f.Add("@id(\"\\u{0}\") permit (principal, action, resource) when { \"//\" == \"\\\"\" };")
	groups := []byte("support: {members: [login/ana]}\ndba: {members: [login/cleo]}\nbatch: {}\nsupplier-jobs: {}\n")
	f.Fuzz(func(t *testing.T, cedar string) {
		e, err := policy.Load(inputs(fstest.MapFS{"a.cedar": {Data: []byte(cedar)}, "groups.yaml": {Data: groups}}))
		if err != nil {
			return
		}
		q := query(triage, "tickets-api", "tickets:read")
		d, _ := e.Decide(context.Background(), q, noon)
		if x := e.Explain(context.Background(), q, noon); x.Permit != d.Permit {
			t.Errorf("Decide permits: %v, Explain permits: %v", d.Permit, x.Permit)
		}
	})
}

// An author's longest path loads.
func TestLoadAcceptsLongestPath(t *testing.T) {
	t.Parallel()
	const prefix = "spiffe://acme.test/"
	path := prefix + strings.Repeat("a", 2048-len(prefix))
	load(t, fstest.MapFS{
		"a.cedar":     {Data: []byte(permit("", `when { principal in Path::"`+path+`" }`))},
		"groups.yaml": {Data: []byte("support: {}\ndba: {}\n")},
	})
}

func TestLoadRejectsMisnamedEntitlement(t *testing.T) {
	t.Parallel()
	in := inputs(fstest.MapFS{"groups.yaml": {Data: []byte("support: {}\ndba: {}\n")}})
	in.Catalogue["reports"].Name = "report"
	if _, err := policy.Load(in); err == nil || !strings.Contains(err.Error(), `entitlements.reports: the entitlement is named "report"`) {
		t.Errorf("got error %v", err)
	}
}

// The revision hashes identities.json, so renaming a Go field must not change it.
func TestIdentitiesContent(t *testing.T) {
	t.Parallel()
	golden(t, "testdata/identities.golden", string(sample(t).Contents()["identities.json"]))
}
