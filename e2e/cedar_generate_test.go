package e2e

import (
	"fmt"
	"math/rand/v2"
	"strings"
)

// A cedarGenerator writes random policies from Cedar's grammar. With ill above zero,
// each expression has another type than its place needs with that probability.
type cedarGenerator struct {
	*rand.Rand
	ill float64
}

func (g cedarGenerator) pick(items ...string) string { return items[g.IntN(len(items))] }

func (g cedarGenerator) policy(id string) string {
	who := g.pick("", "", "", " is Agent", " is Workload", " is Person", ` in Path::"spiffe://home.test/a"`, ` in Group::"g0"`, ` is Agent in TrustDomain::"home.test"`, ` == Person::"login/p0"`)
	actions := g.pick(`== Action::"request"`, `== Action::"request"`, `== Action::"request"`, `in [Action::"request"]`, `in [Action::"view", Action::"revoke"]`, `== Action::"audit"`)
	effect, what := g.pick("permit", "permit", "forbid"), ""
	if strings.Contains(actions, "request") {
		what = g.pick("", "", ` == Entitlement::"e0"`, ` in System::"s0"`, " is Entitlement")
	}
	if effect == "forbid" && g.IntN(3) == 0 {
		actions = g.pick("", `in [Action::"request", Action::"view"]`, `== Action::"approve"`)
		who, what = "", ""
	}
	if actions != "" {
		actions = " " + actions
	}
	text := fmt.Sprintf("@id(%q)\n%s (principal%s, action%s, resource%s)", id, effect, who, actions, what)
	for range g.IntN(3) {
		guard := g.pick("", "", "context has ticket && ", `action == Action::"request" && `, "principal is Agent && ", "resource is Request && ", `principal is Agent in Path::"spiffe://home.test/b" && `, "context has source_ip && ")
		text += fmt.Sprintf("\n%s { %s%s }", g.pick("when", "when", "when", "unless"), guard, g.boolean(3))
	}
	return text + ";\n"
}

// Kinds of expressions that an ill-typed place gets.
func (g cedarGenerator) any(depth int) string {
	well := cedarGenerator{g.Rand, 0}
	return []func(int) string{well.boolean, well.long, well.text, well.texts, well.duration, well.datetime, well.ip, well.decimal, well.entity, well.record}[g.IntN(10)](depth)
}

func (g cedarGenerator) isIll() bool { return g.Float64() < g.ill }

func (g cedarGenerator) boolean(depth int) string {
	if g.isIll() {
		if g.IntN(2) == 0 {
			return g.pick("principal is Agnet", "resource is Entitlemnt", "context.parameters is Nope", "context.break_glas", "principal.tem == \"x\"", "context.now.year == 2026",
				`resource == Entitlemnt::"e0"`, `action == Action::"reqest"`, `resource.getTag("env") == "prod"`, `context.ticket == "x"`, `principal.team like "a*"`, `resource.owner == Group::"g0"`,
				`context.scopes == []`, `duration("1 h") < context.ttl`, `decimal("+1.0") == decimal("1.0")`, `ip("10.0.0.1/40").isLoopback()`, `datetime("2026-02-30") < context.now`)
		}
		return g.any(depth)
	}
	if depth == 0 {
		return g.pick("true", "false", "context.break_glass", "principal is Agent", "context has ticket", `resource.hasTag("env")`, "context has source_ip", `principal in Group::"g0"`, `principal has team`)
	}
	d := depth - 1
	order := func() string { return g.pick("<", "<=", ">", ">=") }
	equal := func() string { return g.pick("==", "!=") }
	switch g.IntN(24) {
	case 0:
		return fmt.Sprintf("(%s && %s)", g.boolean(d), g.boolean(d))
	case 1:
		return fmt.Sprintf("(%s || %s)", g.boolean(d), g.boolean(d))
	case 2:
		return "!(" + g.boolean(d) + ")"
	case 3:
		return fmt.Sprintf("(if %s then %s else %s)", g.boolean(d), g.boolean(d), g.boolean(d))
	case 4:
		return fmt.Sprintf("%s %s %s", g.long(d), order(), g.long(d))
	case 5:
		return fmt.Sprintf("%s %s %s", g.duration(d), order(), g.duration(d))
	case 6:
		return fmt.Sprintf("%s %s %s", g.datetime(d), order(), g.datetime(d))
	case 7:
		return fmt.Sprintf("%s %s %s", g.text(d), equal(), g.text(d))
	case 8:
		return fmt.Sprintf("%s %s %s", g.long(d), equal(), g.long(d))
	case 9:
		return fmt.Sprintf("%s like %s", g.text(d), g.pick(`"*"`, `"a*"`, `"*a"`, `"spiffe://*/b/*"`, `"a\*"`, `"\u{61}*"`))
	case 10:
		return fmt.Sprintf("%s.contains(%s)", g.texts(d), g.text(d))
	case 11:
		return fmt.Sprintf("%s.%s(%s)", g.texts(d), g.pick("containsAll", "containsAny"), g.texts(d))
	case 12:
		return fmt.Sprintf("%s %s %s", g.texts(d), equal(), g.texts(d))
	case 13:
		return g.texts(d) + ".isEmpty()"
	case 14:
		return fmt.Sprintf("principal in %s", g.pick(`Group::"g0"`, `Path::"spiffe://home.test/b"`, `TrustDomain::"home.test"`, `[Group::"g0", Group::"g1"]`, "principal", "resource"))
	case 15:
		return fmt.Sprintf("resource in %s", g.pick(`System::"s0"`, `Entitlement::"e0"`, `[System::"s0", System::"s1"]`, "resource"))
	case 16:
		return "(context has ticket && context.ticket " + g.pick("==", "!=") + " " + g.text(d) + ")"
	case 17:
		return `(resource.hasTag("env") && resource.getTag("env") == ` + g.text(d) + ")"
	case 18:
		return `(context has source_ip && ` + g.ip(d) + g.pick(".isLoopback()", ".isIpv4()", ".isIpv6()", ".isMulticast()") + ")"
	case 19:
		return fmt.Sprintf("%s.isInRange(%s)", g.ip(0), g.ip(0))
	case 20:
		return fmt.Sprintf("%s.%s(%s)", g.decimal(d), g.pick("lessThan", "lessThanOrEqual", "greaterThan", "greaterThanOrEqual"), g.decimal(d))
	case 21:
		return g.pick(`{a: {b: true}} has a.b`, `{a: 1, "b c": 2}["b c"] == 2`, `{a: 1} == {a: 2}`, `(principal is Agent && principal.accountable.contains("login/p0"))`, `(principal has team && principal.team == "t")`,
			`(resource has owner && resource.owner in Group::"g0")`, `action in [Action::"request", Action::"view"]`, `action == Action::"view"`, `(context has "ticket" && context["ticket"] like "*")`,
			`(resource is Request && resource.requester == principal.id)`, `(context.parameters.hasTag("p") && context.parameters.getTag("p") == "v")`, `Entitlement::"e1" in System::"s1"`)
	case 22:
		return fmt.Sprintf("%s == %s", g.entity(d), g.entity(d))
	}
	return fmt.Sprintf("%s %s %s", g.datetime(d), equal(), g.datetime(d))
}

func (g cedarGenerator) long(depth int) string {
	if g.isIll() {
		return g.any(depth)
	}
	if depth == 0 || g.IntN(3) == 0 {
		return g.pick("0", "1", "-1", "900", "9223372036854775807", "-9223372036854775808", "- 5", "----3", "007")
	}
	d := depth - 1
	switch g.IntN(4) {
	case 0:
		return fmt.Sprintf("(%s %s %s)", g.long(d), g.pick("+", "-", "*"), g.long(d))
	case 1:
		return fmt.Sprintf("-(%s)", g.long(d))
	case 2:
		return fmt.Sprintf("(if %s then %s else %s)", g.boolean(d), g.long(d), g.long(d))
	}
	return g.duration(d) + g.pick(".toDays()", ".toHours()", ".toMinutes()", ".toSeconds()", ".toMilliseconds()")
}

func (g cedarGenerator) text(depth int) string {
	if g.isIll() {
		return g.any(depth)
	}
	if depth > 0 && g.IntN(4) == 0 {
		return fmt.Sprintf("(if %s then %s else %s)", g.boolean(depth-1), g.text(depth-1), g.text(depth-1))
	}
	return g.pick(`"a"`, `"b"`, `"prod"`, `"login/p0"`, `"é\u{1F600}"`, `"\x41\n\t\0\"\\\'"`, "principal.id", `""`)
}

func (g cedarGenerator) texts(depth int) string {
	if g.isIll() {
		return g.any(depth)
	}
	if depth > 0 && g.IntN(2) == 0 {
		return fmt.Sprintf("[%s, %s]", g.text(depth-1), g.text(depth-1))
	}
	return g.pick(`["a"]`, `["a", "b"]`, `["b", "a", "a",]`, `["prod"]`)
}

func (g cedarGenerator) duration(depth int) string {
	if g.isIll() {
		return g.any(depth)
	}
	if depth > 0 && g.IntN(2) == 0 {
		return g.pick("context.now.toTime()", g.datetime(depth-1)+".toTime()", fmt.Sprintf("%s.durationSince(%s)", g.datetime(depth-1), g.datetime(depth-1)))
	}
	return g.pick(`duration("15m")`, `duration("1h")`, `duration("-1h30m")`, `duration("1d2h3m4s5ms")`, `duration("9223372036854775807ms")`, `duration("0ms")`)
}

func (g cedarGenerator) datetime(depth int) string {
	if g.isIll() {
		return g.any(depth)
	}
	if depth > 0 && g.IntN(2) == 0 {
		return g.pick(g.datetime(depth-1)+".toDate()", fmt.Sprintf("%s.offset(%s)", g.datetime(depth-1), g.duration(depth-1)))
	}
	return g.pick("context.now", "context.now", `datetime("2026-01-31")`, `datetime("1969-12-31T23:59:59.999Z")`, `datetime("0000-01-01")`, `datetime("9999-12-31T23:59:59.999+0100")`, `datetime("2026-01-31T12:00:00-2359")`)
}

func (g cedarGenerator) ip(depth int) string {
	if g.isIll() {
		return g.any(depth)
	}
	if depth > 0 {
		return "context.source_ip"
	}
	return g.pick(`ip("10.0.0.0/8")`, `ip("10.1.2.3")`, `ip("::1")`, `ip("2001:db8::/32")`, `ip("127.0.0.1/32")`, `ip("::/0")`, `ip("0.0.0.0/0")`, `ip("::ffff:a01:203")`, `ip("224.0.0.1")`)
}

func (g cedarGenerator) decimal(depth int) string {
	if g.isIll() {
		return g.any(depth)
	}
	return g.pick(`decimal("1.0")`, `decimal("-0.0001")`, `decimal("922337203685477.5807")`, `decimal("01.50")`)
}

func (g cedarGenerator) entity(int) string {
	return g.pick("principal", "resource", "principal", `Person::"login/p0"`, `Group::"g0"`, `Entitlement::"e0"`, `System::"s0"`)
}

func (g cedarGenerator) record(int) string {
	return g.pick(`{a: 1}`, `{"a": "b", c: [1]}`, "context", "{}")
}

// damage changes a policy's text at a random place, with what parsers disagree about.
func (g cedarGenerator) damage(text string) string {
	at := g.IntN(len(text) + 1)
	for at < len(text) && at > 0 && text[at]&0xC0 == 0x80 {
		at--
	}
	switch g.IntN(4) {
	case 0:
		end := min(len(text), at+1+g.IntN(6))
		for end < len(text) && text[end]&0xC0 == 0x80 {
			end++
		}
		return text[:at] + text[end:]
	case 1: // repeat an operator or a part
		end := min(len(text), at+1+g.IntN(12))
		for end < len(text) && text[end]&0xC0 == 0x80 {
			end++
		}
		return text[:end] + text[at:end] + text[end:]
	}
	what := g.pick("/* x */", "/**/", "// x\n", "-", "!", "----", "!!!!!", "- - - - - ", ",", ";", "__cedar", "__cedar::", `\q`, `\u{110000}`, `\x80`, `\0`, `"`, "'", `@a("b") `, "?principal", "0x1", "1_0",
		"99999999999999999999", "\u00a0", "\u2028", "\ufeff", "\x00", "\v", "é", "::", ".", "..", "(", ")", "[]", "{}", "{a: 1, a: 2}", " in ", " is ", " has ", " like ", "if ", " then true else false", "=", "%", "/", "&", "|", "true", "1.5", "@", "#")
	return text[:at] + what + text[at:]
}
