package policy_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/policy"
)

const peopleGroups = `
support: {members: [login/ana, login/ben]}
dba: {members: [login/cleo]}
oncall: {members: [login/dan]}
security: {members: [login/eve], claims: [{provider: login, group: sec}, {provider: partner, group: red-team}]}
`

func withPeople(t *testing.T, cedar string) (*policy.Engine, error) {
	t.Helper()
	in := inputs(fstest.MapFS{"a.cedar": {Data: []byte(cedar)}, "groups.yaml": {Data: []byte(peopleGroups)}})
	in.Providers = []string{"login", "partner"}
	return policy.Load(in)
}

// closing returns a permit with annotations.
func closing(annotations string) string {
	return `@id("x") ` + annotations + ` permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource == Entitlement::"tickets-api");`
}

func TestDecideReturnsApprovalObligations(t *testing.T) {
	t.Parallel()
	for annotations, want := range map[string]func(broker.Obligations) bool{
		`@approval("2 of support") @deny("2")`:                                 func(o broker.Obligations) bool { return o.Denials == 2 },
		`@approval("2 of support")`:                                            func(o broker.Obligations) bool { return o.Denials == 1 },
		`@approval("1 of support") @exclude_team("yes")`:                       func(o broker.Obligations) bool { return o.ExcludeTeam },
		`@approval("1 of support") @silent_denial("yes")`:                      func(o broker.Obligations) bool { return o.SilentDenial && !o.Comment },
		`@approval("1 of support") @comment("required")`:                       func(o broker.Obligations) bool { return o.Comment },
		`@approval("1 of support") @signed("required")`:                        func(o broker.Obligations) bool { return o.Signed },
		`@approval("1 of support") @lapse_after("4h")`:                         func(o broker.Obligations) bool { return o.LapseAfter == 4*time.Hour },
		`@approval("1 of support") @escalate("45m to security,15m to oncall")`: func(o broker.Obligations) bool { return len(o.Escalations) == 2 },
	} {
		e, err := withPeople(t, closing(annotations))
		if err != nil {
			t.Errorf("%s: %v", annotations, err)
			continue
		}
		if d := decide(t, e, query(triage, "tickets-api", "tickets:close")); !d.Permit || !want(d.Obligations) {
			t.Errorf("%s: got obligations %+v", annotations, d.Obligations)
		}
	}
}

func TestLoadRejectsAnnotationWithoutEffect(t *testing.T) {
	t.Parallel()
	for annotations, want := range map[string]string{
		`@deny("1")`:                                   "have no effect without @approval",
		`@exclude_team("yes")`:                         "have no effect without @approval",
		`@comment("required")`:                         "have no effect without @approval",
		`@silent_denial("yes")`:                        "have no effect without @approval",
		`@approval("1 of dba") @silent_denial("no")`:   `"yes"`,
		`@signed("required")`:                          "@signed has no effect without @approval or @break_glass",
		`@lapse_after("1h")`:                           "have no effect without @approval",
		`@escalate("1h to oncall")`:                    "have no effect without @approval",
		`@review_within("1h")`:                         "has no effect without @break_glass",
		`@approval("1 of dba") @break_glass("dba")`:    "exclude each other",
		`@approval("1 of dba") @deny("2")`:             "@approval requires only 1",
		`@approval("1 of dba") @deny("0")`:             "whole number",
		`@approval("1 of dba") @exclude_team("no")`:    `"yes"`,
		`@approval("1 of dba") @signed("please")`:      `"required"`,
		`@approval("1 of dba") @comment("")`:           `"required"`,
		`@approval("1 of dba") @lapse_after("-1h")`:    "duration",
		`@approval("1 of dba") @escalate("oncall")`:    "a group to notify",
		`@approval("1 of dba") @escalate("1h to ops")`: `group "ops" does not exist`,
		`@approval("1 of dba") @escalate("1m to dba,2m to dba,3m to dba,4m to dba,5m to dba")`: "more than 4 steps",
		`@break_glass("nobody")`: `group "nobody" does not exist`,
		`@break_glass("")`:       "write the group that reviews",
	} {
		if _, err := withPeople(t, closing(annotations)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got error %v\nwant %q", annotations, err, want)
		}
	}
}

func TestDecideCombinesApprovalObligations(t *testing.T) {
	t.Parallel()
	e, err := withPeople(t, strings.Replace(closing(`@approval("2 of support") @deny("2") @lapse_after("4h") @escalate("30m to oncall")`), `"x"`, `"a"`, 1)+
		strings.Replace(closing(`@approval("1 of dba") @lapse_after("1h") @signed("required") @comment("required") @exclude_team("yes")`), `"x"`, `"b"`, 1))
	if err != nil {
		t.Fatal(err)
	}
	o := decide(t, e, query(triage, "tickets-api", "tickets:close")).Obligations
	want := []broker.ApprovalNeed{{Group: "dba", Count: 1}, {Group: "support", Count: 2}}
	if !slices.Equal(o.Approvals, want) || o.Denials != 1 || o.LapseAfter != time.Hour || !o.Signed || !o.Comment || !o.ExcludeTeam || len(o.Escalations) != 1 {
		t.Errorf("%+v", o)
	}
}

// A denial needs no reason only if no permit that requires approval asks for one. Permits
// without approvals have no say, whatever their order.
func TestSilentDenial(t *testing.T) {
	t.Parallel()
	silent, strict, broad := `@approval("1 of dba") @silent_denial("yes")`, `@approval("1 of support")`, `@max_ttl("5m")`
	for name, test := range map[string]struct {
		permits []string
		want    bool
	}{
		"silent":                    {[]string{silent}, true},
		"strict":                    {[]string{strict}, false},
		"both":                      {[]string{silent, strict}, false},
		"both, the other order":     {[]string{strict, silent}, false},
		"a broad permit first":      {[]string{broad, silent}, true},
		"a broad permit afterwards": {[]string{silent, broad}, true},
		"all three":                 {[]string{silent, broad, strict}, false},
		"silent twice":              {[]string{silent, silent}, true},
	} {
		text := ""
		for i, annotations := range test.permits {
			text += strings.Replace(closing(annotations), `"x"`, fmt.Sprintf(`"p%d"`, i), 1)
		}
		e, err := withPeople(t, text)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got := decide(t, e, query(triage, "tickets-api", "tickets:close")).Obligations.SilentDenial; got != test.want {
			t.Errorf("%s: got %t, want %t", name, got, test.want)
		}
	}
}

// Break-glass turns approvals into a review and changes no other obligation. It
// needs a permit with @break_glass and overrides no forbid.
func TestDecideBreakGlass(t *testing.T) {
	t.Parallel()
	glass := strings.Replace(closing(`@break_glass("security") @review_within("2h") @max_ttl("5m")`), `"x"`, `"glass"`, 1)
	forbid := `@id("f") forbid (principal, action == Action::"request", resource) when { context.scopes.contains("tickets:comment") };`
	e, err := withPeople(t, closing(`@approval("1 of dba") @lapse_after("2h") @escalate("5m to oncall") @signed("required") @justification("required") @max_ttl("4m")`)+glass+forbid)
	if err != nil {
		t.Fatal(err)
	}
	plain := decide(t, e, query(triage, "tickets-api", "tickets:close"))
	if !plain.Permit || len(plain.Obligations.Approvals) != 1 || len(plain.Obligations.Review) != 0 || slices.Contains(plain.Policies, "glass") {
		t.Errorf("without break-glass: got %+v", plain)
	}
	q := query(triage, "tickets-api", "tickets:close")
	q.BreakGlass = true
	broken := decide(t, e, q)
	o := broken.Obligations
	if !broken.Permit || len(o.Approvals) != 0 || !o.Signed || o.ReviewWithin != 2*time.Hour || !o.Justification || o.MaxTTL != 4*time.Minute ||
		o.Denials != 0 || o.LapseAfter != 0 || len(o.Escalations) != 0 ||
		!slices.ContainsFunc(o.Review, func(n broker.ApprovalNeed) bool { return n.Group == "security" }) || !slices.ContainsFunc(o.Review, func(n broker.ApprovalNeed) bool { return n.Group == "dba" }) {
		t.Errorf("with break-glass: got %+v", broken)
	}
	unsigned, err := withPeople(t, closing(`@approval("1 of dba") @comment("required")`)+glass)
	if err != nil {
		t.Fatal(err)
	}
	if o := decide(t, unsigned, q).Obligations; o.Signed || o.Comment || len(o.Review) != 2 {
		t.Errorf("without @signed: got %+v", o)
	}
	signed, err := withPeople(t, closing(`@break_glass("security") @signed("required")`))
	if err != nil {
		t.Fatal(err)
	}
	if o := decide(t, signed, q).Obligations; !o.Signed || len(o.Review) != 1 {
		t.Errorf("with @signed on the break-glass permit: got %+v", o)
	}
	q.Scopes = []string{"tickets:close", "tickets:comment"}
	if d := decide(t, e, q); d.Permit {
		t.Error("break-glass overrides a forbid")
	}
	q = query(triage, "orders-db-ro")
	q.BreakGlass = true
	if d := decide(t, e, q); d.Permit {
		t.Error("break-glass is permitted without @break_glass")
	}
}

// Two providers may have groups or subjects of the same name.
func TestGroupsSeparatesProviders(t *testing.T) {
	t.Parallel()
	e, err := withPeople(t, closing(`@approval("1 of security")`))
	if err != nil {
		t.Fatal(err)
	}
	person := func(provider, sub string, groups ...string) broker.Identity {
		return broker.Identity{ID: provider + "/" + sub, Kind: broker.KindPerson, Person: &broker.Person{Provider: provider, Groups: groups}}
	}
	for _, test := range []struct {
		who             broker.Identity
		listed, claimed bool
	}{
		{person("login", "eve"), true, false},
		{person("partner", "eve"), false, false},
		{person("login", "x", "sec"), false, true},
		{person("partner", "x", "sec"), false, false},
		{person("partner", "x", "red-team"), false, true},
		{person("login", "x", "red-team"), false, false},
		{person("login", "x", "security"), false, false},
		{person("login", "x", "SEC", "sec "), false, false},
		{broker.Identity{ID: "login/eve", Kind: broker.KindWorkload}, false, false},
	} {
		listed, claimed := e.Groups(test.who)
		if slices.Contains(listed, "security") != test.listed || slices.Contains(claimed, "security") != test.claimed {
			t.Errorf("%s of %+v: got listed %v, claimed %v", test.who.ID, test.who.Person, listed, claimed)
		}
	}
}

func TestWarningsOnGroupWithClaimsOnly(t *testing.T) {
	t.Parallel()
	in := inputs(fstest.MapFS{
		"a.cedar":     {Data: []byte(closing(`@approval("1 of leads")`))},
		"groups.yaml": {Data: []byte("support: {}\ndba: {}\nleads: {claims: [{provider: login, group: leads}]}\n")},
	})
	e, err := policy.Load(in)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(strings.Join(e.Warnings(), "\n"), `@approval names group "leads", whose only members come from claims`) {
		t.Errorf("got warnings %q", e.Warnings())
	}
}

func TestDecideMarksLastingDenial(t *testing.T) {
	t.Parallel()
	dan := broker.Identity{ID: "login/dan", Kind: broker.KindPerson, Person: &broker.Person{Provider: "login"}}
	r := &broker.Request{Requester: broker.Identity{ID: triage, Kind: broker.KindAgent}, Entitlement: "tickets-api", Scopes: []string{"tickets:read"}}
	for conditions, want := range map[string]bool{
		``: true,
		`when { resource.scopes.contains("tickets:read") }`:                                                  true,
		`unless { principal in Group::"dba" }`:                                                               true,
		`unless { principal in Group::"security" }`:                                                          false,
		`unless { principal in [Group::"dba", Group::"security"] }`:                                          false,
		`when { true } unless { principal is Person in Group::"security" }`:                                  false,
		`unless { Entitlement::"tickets-api" has owner && principal in Entitlement::"tickets-api".owner }`:   true,
		`unless { Entitlement::"orders-db-ro" has owner && principal in Entitlement::"orders-db-ro".owner }`: false,
		`when { context.now > datetime("2026-01-01") }`:                                                      false,
		`unless { context has source_ip && context.source_ip.isLoopback() }`:                                 false,
	} {
		in := inputs(fstest.MapFS{
			"a.cedar":     {Data: []byte(`@id("f") forbid (principal in Group::"mixed", action == Action::"approve", resource) ` + conditions + ";")},
			"groups.yaml": {Data: []byte(peopleGroups + "mixed: {members: [login/dan], claims: [{provider: login, group: mixed}]}")},
		})
		in.Providers = []string{"login", "partner"}
		in.Catalogue["orders-db-ro"].Owner = "security"
		e, err := policy.Load(in)
		if err != nil {
			t.Errorf("%s: %v", conditions, err)
			continue
		}
		d := decide(t, e, broker.Query{Principal: dan, Action: broker.ActionApprove, Request: r})
		if d.Permit || d.Lasting != want {
			t.Errorf("%s: got %+v, want lasting %t", conditions, d, want)
		}
	}
}

// A permit with @break_glass alone permits nothing without break-glass.
func TestDecideIgnoresBreakGlassPermit(t *testing.T) {
	t.Parallel()
	e, err := withPeople(t, closing(`@break_glass("security")`))
	if err != nil {
		t.Fatal(err)
	}
	q := query(triage, "tickets-api", "tickets:close")
	if d := decide(t, e, q); d.Permit || d.Policies != nil {
		t.Errorf("without break-glass: got %+v", d)
	}
	q.BreakGlass = true
	if d := decide(t, e, q); !d.Permit || d.Obligations.ReviewWithin != 24*time.Hour {
		t.Errorf("with break-glass: got %+v", d)
	}
}

// A provider's group is what the file has: YAML's numbers would make 0777 the group
// 511, and other people would approve.
func TestClaimedGroupsAreReadAsWritten(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"0777", "1_000", "1.10", "0x1F", "00123", "1e3", "true", "12:30", "2026-01-01"} {
		for _, quoted := range []string{name, `"` + name + `"`} {
			e := load(t, fstest.MapFS{"groups.yaml": {Data: []byte("support: {}\ndba: {claims: [{provider: login, group: " + quoted + "}]}\n")}})
			for _, claimed := range []string{name, "511", "1000", "1.1", "31", "123"} {
				who := broker.Identity{ID: "login/ana", Kind: broker.KindPerson, Person: &broker.Person{Provider: "login", Groups: []string{claimed}}}
				if _, groups := e.Groups(who); (len(groups) == 1) != (claimed == name) {
					t.Errorf("group: %s: a person in %q is in %q", quoted, claimed, groups)
				}
			}
		}
	}
	for text, want := range map[string]string{
		"dba: {claims: [{provider: login, group: null}]}": `groups.yaml:1:41: dba.claims.0.group: null is null in YAML and no text: quote it, or remove the key`,
		"dba: {claims: [{provider: login, group: }]}":     `dba.claims.0.group: the key has no value`,
		"dba: {members: [~]}":                             `dba.members.0: ~ is null in YAML`,
		"dba: {members: [!!binary aGk=]}":                 `the tag !!binary is not supported`,
	} {
		_, err := policy.Load(inputs(fstest.MapFS{"groups.yaml": {Data: []byte(text + "\nsupport: {}\n")}}))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", text, err, want)
		}
	}
}
