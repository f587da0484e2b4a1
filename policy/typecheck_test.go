package policy_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/fstest"

	"accessbroker.internal/policy"
)

// loadCondition loads a forbid with one condition, which starts at column 1 of line 2.
// A forbid that is ill-typed would let everything through.
func loadCondition(t *testing.T, head, condition string) (*policy.Engine, error) {
	t.Helper()
	if head == "" {
		head = `principal, action == Action::"request", resource`
	}
	text := fmt.Sprintf("@id(\"x\") forbid (%s)\n%s;", head, condition)
	return policy.Load(inputs(fstest.MapFS{
		"a.cedar":     {Data: []byte(text)},
		"groups.yaml": {Data: []byte("support: {members: [login/ana]}\ndba: {members: [login/cleo]}\n")},
	}))
}

func TestLoadRejectsIllTypedConditions(t *testing.T) {
	t.Parallel()
	const not = " is not the caller, and a decision knows only its name"
	tests := []struct{ condition, want string }{
		// Names that do not exist.
		{`when { principal is Agnet }`, `2:21: policy "x": unknown entity type "Agnet": did you mean Agent?`},
		{`unless { principal is Agnet }`, `2:23: policy "x": unknown entity type "Agnet": did you mean Agent?`},
		{`when { principal is agent }`, `2:21: policy "x": unknown entity type "agent": did you mean Agent?`},
		{`when { resource is Entitlemnt }`, `2:20: policy "x": unknown entity type "Entitlemnt": did you mean Entitlement?`},
		{`when { context.parameters is Nope }`, `2:30: policy "x": unknown entity type "Nope": use one of Agent, Arguments, Broker`},
		{`when { resource has owner && resource.owner is Nope }`, `2:48: policy "x": unknown entity type "Nope"`},
		{`when { principal is Agnet in Group::"dba" }`, `2:21: policy "x": unknown entity type "Agnet"`},
		{`when { false && principal is Agnet }`, `2:30: policy "x": unknown entity type "Agnet"`},
		{`when { true || principal is Agnet }`, `2:29: policy "x": unknown entity type "Agnet"`},
		{`when { if context.break_glass then principal is Agnet else true }`, `2:49: policy "x": unknown entity type "Agnet"`},
		{`when { [principal is Agnet].contains(true) }`, `2:22: policy "x": unknown entity type "Agnet"`},
		{`when { {a: principal is Agnet}.a }`, `2:25: policy "x": unknown entity type "Agnet"`},
		{`when { [1].contains(if principal is Agnet then 1 else 2) }`, `2:37: policy "x": unknown entity type "Agnet"`},
		{`when { !(principal is Some::Agent) }`, `2:23: policy "x": unknown entity type "Some::Agent"`},
		{`when { principal == Persn::"login/ana" }`, `2:21: policy "x": unknown entity type "Persn": did you mean Person?`},
		{`when { action == Action::"reqest" }`, `2:18: policy "x": unknown action Action::"reqest": did you mean Action::"request"?`},
		{`when { context.break_glas }`, `2:16: policy "x": the context of Action::"request" has no attribute "break_glas": did you mean "break_glass"?`},
		{`when { context.Scopes.contains("a") }`, `2:16: policy "x": the context of Action::"request" has no attribute "Scopes": did you mean "scopes"?`},
		{`when { context.zone == "x" }`, `has no attribute "zone"; it has actor, break_glass, depth, detail, duration`},
		{`when { resource.env == "prod" }`, `entity type Entitlement has no attribute "env": a label is a tag, as in resource.hasTag("env") && resource.getTag("env")`},
		{`when { principal.accountable.contains("x") }`, `entity type Workload has no attribute "accountable": other types have it; check the type first, as in principal is …`},
		{`when { context has tickets }`, `2:20: policy "x": context has tickets is false for every request that the head matches, so the policy never applies: did you mean "ticket"?`},
		// Comparisons.
		{`when { context.ttl < 900 }`, `2:22: policy "x": context.ttl is a duration and 900 is a number, so they can't be compared: write duration("15m") for 900 seconds`},
		{`when { context.duration <= 3600 }`, `2:28: policy "x": context.duration is a duration and 3600 is a number, so they can't be compared: write duration("1h") for 3600 seconds`},
		{`when { context.now.toTime() < 8 }`, `2:31: policy "x": context.now.toTime() is a duration and 8 is a number, so they can't be compared: write a duration with its unit, such as duration("8s"), duration("8m") or duration("8h")`},
		{`when { context.now > duration("1d") }`, `so they can't be compared: compare context.now with a datetime, or context.now.toTime() with a duration`},
		{`when { 1 < context.ttl }`, `2:8: policy "x": 1 is a number and context.ttl is a duration`},
		{`when { context.ttl >= "15m" }`, `can't be compared: write duration("15m")`},
		{`when { context.now < "2026-01-31" }`, `can't be compared: write datetime("2026-01-31")`},
		{`when { context.ttl.toSeconds() < duration("1h") }`, `can't be compared`},
		{`when { "a" < "b" }`, `2:8: policy "x": "a" is a string and has no order`},
		{`when { decimal("1.0") < decimal("2.0") }`, `decimals have no operator <: use lessThan`},
		{`when { principal < resource }`, `principal is a Workload and has no order`},
		// Equality.
		{`when { context.ttl == 900 }`, `can't be equal: write duration("15m") for 900 seconds`},
		{`when { context.ttl == "15m" }`, `2:23: policy "x": context.ttl is a duration and "15m" is a string, so they can't be equal: write duration("15m")`},
		{`when { context.now != "tomorrow" }`, `write datetime("2026-01-31T12:00:00Z")`},
		{`when { context.break_glass == "true" }`, `can't be equal: write true without quotes`},
		{`when { context.scopes == "a" }`, `can't be equal: write ["a"]`},
		{`when { context has ticket && context.ticket == 1 }`, `can't be equal: write "1"`},
		{`when { context has source_ip && context.source_ip == "10.0.0.1" }`, `can't be equal: write ip("10.0.0.1")`},
		{`when { principal == "login/ana" }`, `2:21: policy "x": principal is a Workload and "login/ana" is a string, so they can't be equal: write Workload::"login/ana"`},
		{`when { 1 == "1" }`, `can't be equal: write 1 without quotes`},
		{`when { context.scopes == [1] }`, `can't be equal`},
		{`when { {a: 1} == {b: 1} }`, `can't be equal`},
		// Sets, strings, tags, attributes.
		{`when { context.scopes.contains(1) }`, `2:32: policy "x": 1 is a number, but this place needs a string, because the set holds values of another type: write "1"`},
		{`when { context.scopes.containsAny([1]) }`, `2:36: policy "x": 1 is a number, but this place needs a string`},
		{`when { context.scopes.containsAll("a") }`, `2:35: policy "x": "a" is a string, but this place needs a set, such as ["a"]`},
		{`when { context.ttl.toSeconds().contains(1) }`, `context.ttl.toSeconds() is a number, but this place needs a set`},
		{`when { context.break_glass.isEmpty() }`, `context.break_glass is true or false, but this place needs a set`},
		{`when { context.scopes == [] }`, `2:26: policy "x": Cedar does not allow an empty set literal: use isEmpty()`},
		{`when { [1, "a"].contains(1) }`, `"a" is a string, but this place needs a number, because all elements of a set must have the same type`},
		{`when { resource in [System::"orders", Group::"dba"] }`, `all elements of a set must have the same type`},
		{`when { context.ttl like "1*" }`, `context.ttl is a duration, but this place needs a string`},
		{`when { resource.hasTag(1) }`, `2:24: policy "x": 1 is a number, but this place needs a string: write "1"`},
		{`when { resource.getTag("env") == "prod" }`, `2:17: policy "x": the tag may be absent: check it first, as in resource.hasTag("env") && …`},
		{`when { resource.hasTag("env") && resource.getTag("zone") == "x" }`, `check it first, as in resource.hasTag("zone") && …`},
		{`when { context.hasTag("x") }`, `context is a record and has no tags`},
		{`when { principal.getTag("x") == "y" }`, `principal is a Workload and has no tags`},
		{`when { context.ticket == "x" }`, `2:16: policy "x": context.ticket may be absent: check it first, as in context has ticket && …`},
		{`when { context has ticket || context.ticket == "x" }`, `context.ticket may be absent`},
		{`when { !(context has ticket) && context.ticket == "x" }`, `context.ticket may be absent`},
		{`when { resource.owner == Group::"dba" }`, `resource.owner may be absent: check it first, as in resource has owner && …`},
		{`when { principal.id.length == 1 }`, `principal.id is a string and has no attributes`},
		// Entities.
		{`when { "x" in Group::"dba" }`, `"x" is a string, and only an entity can be in another`},
		{`when { principal in "dba" }`, `"dba" is a string, and an entity can only be in entities, such as Group::"dba"`},
		{`when { principal in context.scopes }`, `context.scopes is a set, and an entity can only be in entities`},
		{`when { principal.id is Agent }`, `principal.id is a string and not an entity`},
		{`when { Person::"login/ana" in Group::"dba" }`, `2:8: policy "x": Person::"login/ana"` + not},
		{`when { Workload::"spiffe://acme.test/x" in Path::"spiffe://acme.test/x" }`, `Workload::"spiffe://acme.test/x"` + not},
		{`when { Person::"login/ana".id == "x" }`, `Person::"login/ana"` + not},
		{`when { Person::"login/ana" has id }`, `Person::"login/ana"` + not},
		{`when { Group::"dba" in Group::"support" }`, `Group::"dba"` + not},
		{`when { {a: Person::"login/ana"}.a in Group::"dba" }`, not},
		{`when { (if context.break_glass then Person::"login/ana" else Person::"login/ben") in Group::"dba" }`, not},
		// Numbers and extensions.
		{`when { context.ttl + 1 < context.ttl }`, `context.ttl is a duration, and Cedar calculates only with numbers: write context.ttl.toSeconds()`},
		{`when { context.now - context.now == 0 }`, `context.now is a datetime, and Cedar calculates only with numbers`},
		{`when { -"a" == 1 }`, `"a" is a string, and Cedar calculates only with numbers`},
		{`when { context.now.offset("1h") < context.now }`, `"1h" is a string, but this place needs a duration: write duration("1h")`},
		{`when { context.now.offset(60) < context.now }`, `write duration("1m") for 60 seconds`},
		{`when { context.now.toDays() < 1 }`, `context.now is a datetime, but this place needs a duration`},
		{`when { duration("1 h") < context.ttl }`, `2:17: policy "x": "1 h" is not a duration: write, for example, duration("15m")`},
		{`when { datetime("2026-02-30") < context.now }`, `"2026-02-30" is not a datetime`},
		{`when { decimal("+1.0").lessThan(decimal("2.0")) }`, `2:16: policy "x": "+1.0" is not a decimal`},
		{`when { ip("10.0.0.0/33").isLoopback() }`, `"10.0.0.0/33" is not an IP address`},
		{`when { duration(principal.id) < context.ttl }`, `duration takes only a string literal`},
		{`when { duration("1h", "2h") < context.ttl }`, `duration takes 1 arguments, not 2`},
		{`when { context has source_ip && context.source_ip.isInRange("10.0.0.0/8") }`, `write ip("10.0.0.0/8")`},
		// Conditions.
		{`when { context.ttl }`, `2:16: policy "x": context.ttl is a duration, but this place needs a condition that is true or false`},
		{`when { 1 && true }`, `1 is a number, but this place needs a condition`},
		{`when { !principal }`, `principal is a Workload, but this place needs a condition`},
		{`when { if 1 then true else false }`, `1 is a number, but this place needs a condition`},
		{`when { (if context.break_glass then 1 else "a") == 1 }`, `both branches of an if must have the same type`},
		{`when { resource is Person }`, `2:20: policy "x": resource is Person is false for every request that the head matches, so the policy never applies`},
		{`when { principal == resource }`, `principal == resource is false for every request`},
		{`when { false }`, `the conditions are false for every request that the head matches, so the policy never applies: correct or remove it`},
		{`unless { true }`, `so the policy never applies`},
		// Text that is not Cedar.
		{`when { /* agents */ principal is Agent }`, `a.cedar:2:8: Cedar has no /* */ comments: start each line of the comment with //`},
		{`when { -----1 == -1 }`, `a.cedar:2:8: Cedar allows at most 4 unary operators`},
		{`when { !!!!!context.break_glass }`, `a.cedar:2:8: Cedar allows at most 4 unary operators`},
		{`when { 1 - - - - - -1 == 1 }`, `a.cedar:2:12: Cedar allows at most 4 unary operators`},
		{`when { context.ttl.toSeconds() == 9223372036854775808 }`, `a.cedar:2:35: Cedar syntax error: the number 9223372036854775808 does not fit into 64 bits`},
		{`when { context["a\q"] == 1 }`, `a.cedar:2:16: Cedar syntax error: a backslash begins an escape`},
		{`when { context.break_glass && "\xff" == "x" }`, `a.cedar:2:31: Cedar syntax error: a backslash begins an escape`},
		{`when { context.break_glass && "\*" == "x" }`, `a.cedar:2:31: Cedar syntax error: a backslash begins an escape`},
		{`when { context.__cedar == 1 }`, `a.cedar:2:24: Cedar syntax error near "=="`},
	}
	for _, test := range tests {
		t.Run(test.condition, func(t *testing.T) {
			_, err := loadCondition(t, "", test.condition)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got error\n  %v\nwant\n  %s", err, test.want)
			}
		})
	}
}

func TestLoadAcceptsWellTypedConditions(t *testing.T) {
	t.Parallel()
	const several = `principal, action in [Action::"request", Action::"view"], resource`
	tests := []struct{ head, condition string }{
		{"", `when { context.ttl < duration("15m") && context.now.toTime() < duration("8h") && context.now > datetime("2026-01-31") }`},
		{"", `when { context has ticket && context.ticket like "INC-*" }`},
		{"", `when { context has ticket } when { context.ticket like "INC-*" }`},
		{"", `when { if context has ticket then context.ticket == "x" else false }`},
		{"", `when { (context has ticket && context has justification || context has ticket) && context.ticket == "x" }`},
		{"", `when { {a: {b: 1}} has a.b && {a: {b: 1}}.a.b == 1 && context.break_glass }`},
		{"", `when { principal is Agent && principal.accountable.contains("login/ana") }`},
		{"", `when { principal is Agent in Path::"spiffe://acme.test/agent" && principal.accountable.contains("login/ana") }`},
		{"", `when { principal == Person::"login/ana" && principal.provider == "login" }`},
		{"", `when { resource.hasTag("env") && resource.getTag("env") == "prod" }`},
		{"", `when { resource has owner && resource.owner in Group::"dba" }`},
		{"", `when { Entitlement::"reports".issuer == "aws" && context.break_glass }`},
		{"", `when { Entitlement::"orders-db-ro" in System::"orders" && context.break_glass }`},
		{"", `when { 1 ----1 == 2 && !!!!context.break_glass }`},
		{"", "when { // guarded\n context.break_glass }"},
		{"", `when { principal.id like "/*x*/" }`},
		{"", `when { principal in [Group::"dba", Group::"support"] }`},
		{several, `when { action == Action::"request" && context has ticket && context.ticket == "x" }`},
		{several, `when { action != Action::"view" && context.ttl > duration("1h") }`},
		{several, `when { action in [Action::"view"] && resource.requester == principal.id }`},
		{`principal, action, resource`, `when { resource is Request && resource.requester == principal.id }`},
	}
	for _, test := range tests {
		t.Run(test.condition, func(t *testing.T) {
			if _, err := loadCondition(t, test.head, test.condition); err != nil {
				t.Errorf("got error %v", err)
			}
		})
	}
}

// A part of a condition that is never true is likely a mistake, but the rest of the
// condition may still apply.
func TestWarningsOnDeadClauses(t *testing.T) {
	t.Parallel()
	for condition, want := range map[string]string{
		`when { context.break_glass || resource is Person }`:          `a.cedar:2:43: policy "x": resource is Person is false for every request that the head matches`,
		`when { context.break_glass || context has tickets }`:         `a.cedar:2:43: policy "x": context has tickets is false for every request that the head matches: did you mean "ticket"?`,
		`unless { principal in System::"orders" }`:                    `principal in System::"orders" is false for every request`,
		`when { context.break_glass || principal == Group::"dba" }`:   `principal == Group::"dba" is false for every request`,
		`when { context.break_glass || principal is Agent }`:          "",
		`when { context.break_glass || (true || resource is Person)}`: "", // never evaluated
	} {
		e, err := loadCondition(t, "", condition)
		if err != nil {
			t.Fatalf("%s: %v", condition, err)
		}
		got := ""
		for _, w := range e.Warnings() {
			if strings.Contains(w, "is false for every request") {
				got += w
			}
		}
		if want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%s: got warnings %q, want %q", condition, got, want)
		}
	}
}

// One mistake in a policy for many types and actions is one problem.
func TestLoadReportsEachTypeErrorOnce(t *testing.T) {
	t.Parallel()
	_, err := loadCondition(t, `principal, action, resource`, `when { context.now > 5 && principal is Agnet || context.now > 5 }`)
	if err == nil || strings.Count(err.Error(), "\n") != 0 || !strings.Contains(err.Error(), "Agnet") {
		t.Errorf("got error %v, want one about Agnet", err)
	}
	_, err = loadCondition(t, `principal, action, resource`, `when { context.now > 5 }`)
	if err == nil || strings.Count(err.Error(), "\n") != 0 || !strings.Contains(err.Error(), "2:22") {
		t.Errorf("got error %v, want one at 2:22", err)
	}
}

// Cedar rounds days towards the past, so the time of day is never negative.
func TestTimesBefore1970(t *testing.T) {
	t.Parallel()
	for _, condition := range []string{
		`datetime("1969-12-31T23:00:00Z").toTime() == duration("23h")`,
		`datetime("1969-12-31T23:00:00Z").toDate() == datetime("1969-12-31")`,
		`datetime("0000-01-01T00:00:01Z").toTime() == duration("1s")`,
	} {
		e := load(t, fstest.MapFS{
			"a.cedar":     {Data: []byte(`@id("x") permit (principal, action == Action::"request", resource == Entitlement::"reports") when { ` + condition + ` };`)},
			"groups.yaml": {Data: []byte("support: {}\ndba: {}\n")},
		})
		if d := decide(t, e, query(billing, "reports", "read")); !d.Permit {
			t.Errorf("%s is false", condition)
		}
	}
}

// A policy can't use up the stack: it would end a running broker at a reload.
func TestLoadBoundsThePolicy(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ condition, want string }{
		{strings.Repeat("(", 1_000_000) + "true" + strings.Repeat(")", 1_000_000), "a.cedar:2:107: more than 100 brackets are open here: write a simpler policy"},
		{strings.Repeat("[", 1_000_000), "more than 100 brackets"},
		{strings.Repeat("! ", 1_000_000) + "true", "more than 100 signs in a row: remove some"},
		{"true" + strings.Repeat(" && true", 30_000), "the policy has 60022 words and signs, more than 50000: split it"},
		{strings.Repeat("if true then ", 12_000) + "true" + strings.Repeat(" else true", 12_000), "more than 50000: split it"},
	} {
		_, err := loadCondition(t, "", "when { "+test.condition+" }")
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("got error %.300v, want %s", err, test.want)
		}
	}
	if _, err := loadCondition(t, "", "when { context.break_glass"+strings.Repeat(` && principal.id != "((((["`, 5000)+" }"); err != nil {
		t.Errorf("got error %.300v", err)
	}
}
