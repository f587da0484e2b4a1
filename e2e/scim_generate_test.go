package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
)

// A scimGenerator makes random users, filters and PATCHes of RFC 7643 and 7644. It stays
// where the two oracles follow the RFCs: it leaves out null, orders of booleans, the case
// of text, and the forms that only Entra ID and Okta send.
type scimGenerator struct{ *rand.Rand }

func (g scimGenerator) pick(items ...string) string { return items[g.IntN(len(items))] }

// word returns one of few texts, so that comparisons often hold.
func (g scimGenerator) word() string {
	return g.pick("ana", "bo", "banana", "an", "nab", "b", "zoe", "a.b", `q"t`)
}

const enterpriseURN = "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User"

var (
	scimTexts  = []string{"userName", "displayName", "nickName", "title", "userType"}
	scimNames  = []string{"formatted", "familyName", "givenName"}
	scimPlural = []string{"emails", "phoneNumbers", "ims"}
	scimTypes  = []string{"work", "home", "other"}
)

func (g scimGenerator) some(p float64) bool { return g.Float64() < p }

func (g scimGenerator) value() map[string]any {
	v := map[string]any{"value": g.word()}
	if g.some(0.7) {
		v["type"] = g.pick(scimTypes...)
	}
	if g.some(0.3) {
		v["display"] = g.word()
	}
	return v
}

// values returns a list without equal items.
func (g scimGenerator) values(most int) []any {
	var list []any
	seen := map[string]bool{}
	for range 1 + g.IntN(most) {
		v := g.value()
		if key := fmt.Sprint(v); !seen[key] {
			seen[key] = true
			list = append(list, v)
		}
	}
	return list
}

func (g scimGenerator) user() map[string]any {
	u := map[string]any{"schemas": []any{"urn:ietf:params:scim:schemas:core:2.0:User"}, "userName": g.word()}
	for _, name := range scimTexts[1:] {
		if g.some(0.5) {
			u[name] = g.word()
		}
	}
	if g.some(0.7) {
		u["active"] = g.some(0.5)
	}
	if g.some(0.6) {
		name := map[string]any{}
		for _, part := range scimNames {
			if g.some(0.6) {
				name[part] = g.word()
			}
		}
		if len(name) > 0 {
			u["name"] = name
		}
	}
	for _, name := range scimPlural {
		if g.some(0.6) {
			u[name] = g.values(3)
		}
	}
	if g.some(0.5) {
		u[enterpriseURN] = map[string]any{"department": g.word(), "manager": map[string]any{"value": g.word()}}
	}
	return u
}

// cased returns a word in another case.
func (g scimGenerator) cased(s string) string {
	switch g.IntN(6) {
	case 0:
		return strings.ToUpper(s)
	case 1:
		return strings.ToUpper(s[:1]) + s[1:]
	}
	return s
}

func (g scimGenerator) quoted() string {
	text, _ := json.Marshal(g.word())
	return string(text)
}

// comparison compares an attribute of texts.
func (g scimGenerator) comparison(attr string) string {
	if g.some(0.15) {
		return attr + " " + g.cased("pr")
	}
	return fmt.Sprintf("%s %s %s", attr, g.cased(g.pick("eq", "eq", "ne", "co", "sw", "ew", "gt", "ge", "lt", "le")), g.quoted())
}

func (g scimGenerator) filter(depth int) string {
	if depth > 0 && g.some(0.6) {
		switch g.IntN(4) {
		case 0:
			return g.filter(depth-1) + " " + g.cased("and") + " " + g.filter(depth-1)
		case 1:
			return g.filter(depth-1) + " " + g.cased("or") + " " + g.filter(depth-1)
		case 2:
			return "(" + g.filter(depth-1) + ")"
		}
		return g.cased("not") + " (" + g.filter(depth-1) + ")"
	}
	switch g.IntN(8) {
	case 0:
		return fmt.Sprintf("active %s %s", g.cased(g.pick("eq", "ne")), g.pick("true", "false"))
	case 1:
		return g.comparison("name." + g.cased(g.pick(scimNames...)))
	case 2:
		return g.comparison(g.pick(scimPlural...) + "." + g.pick("value", "type", "display"))
	case 3:
		return g.pick("emails", "phoneNumbers", "name", "active", "title") + " pr"
	case 4:
		// scim2-parse-filter does not apply both sides of an "and" to the same value, as
		// RFC 7644, section 3.4.2.2, requires.
		return fmt.Sprintf("%s[%s]", g.cased(g.pick(scimPlural...)), g.inner(1, " or "))
	case 5:
		return g.comparison(enterpriseURN + ":" + g.pick("department", "manager.value"))
	case 6:
		return g.comparison(g.pick("nothing", "name.nothing", "urn:example:2.0:User:thing"))
	}
	return g.comparison(g.cased(g.pick(scimTexts...)))
}

// inner is a filter of the values of an attribute.
func (g scimGenerator) inner(depth int, ops ...string) string {
	if depth > 0 && g.some(0.4) {
		return g.inner(depth-1) + g.pick(ops...) + g.inner(depth-1)
	}
	return g.comparison(g.pick("value", "type", "display"))
}

// patch returns a PATCH of a user.
func (g scimGenerator) patch(u map[string]any) map[string]any {
	var ops []any
	for range 1 + g.IntN(4) {
		ops = append(ops, g.operation(u))
	}
	return map[string]any{"schemas": []any{"urn:ietf:params:scim:api:messages:2.0:PatchOp"}, "Operations": ops}
}

func (g scimGenerator) operation(u map[string]any) map[string]any {
	set := g.pick("add", "replace", "Add", "Replace")
	op := func(name, path string, value any) map[string]any {
		o := map[string]any{"op": name, "path": path}
		if value != nil {
			o["value"] = value
		}
		return o
	}
	list, kind := g.pick(scimPlural...), g.pick(scimTypes...)
	switch g.IntN(15) {
	case 0:
		return op(set, "active", g.some(0.5))
	case 1:
		return op(set, "name."+g.pick(scimNames...), g.word())
	case 2:
		return op(set, "name", map[string]any{g.pick(scimNames...): g.word()})
	case 3:
		return op(set, list, g.values(3))
	case 4:
		return op("add", list, g.values(1))
	case 5:
		return op(set, fmt.Sprintf("%s[type eq %q].%s", list, kind, g.pick("value", "display")), g.word())
	case 6:
		return op("remove", fmt.Sprintf("%s[%s]", list, g.inner(1, " and ", " or ")), nil)
	case 7:
		return op("Remove", fmt.Sprintf("%s[type eq %q].display", list, kind), nil)
	case 8:
		return op("remove", g.pick("displayName", "title", "name.givenName", "name", list, enterpriseURN+":department"), nil)
	case 9:
		return op(set, enterpriseURN+":"+g.pick("department", "employeeNumber", "manager.value"), g.word())
	case 10:
		return map[string]any{"op": set, "value": g.object()}
	case 11:
		if old, _ := u[list].([]any); len(old) > 0 {
			return op("remove", list, []any{old[g.IntN(len(old))]})
		}
		return op(set, "title", g.word())
	case 12:
		return op("replace", fmt.Sprintf("%s[value eq %s]", list, g.quoted()), g.value())
	case 13:
		return op(set, "urn:ietf:params:scim:schemas:core:2.0:User:"+g.pick("title", "name.familyName"), g.word())
	}
	return op(set, g.pick(scimTexts...), g.word())
}

// object is a value without a path.
func (g scimGenerator) object() map[string]any {
	v := map[string]any{g.pick(scimTexts...): g.word()}
	if g.some(0.5) {
		v["active"] = g.some(0.5)
	}
	if g.some(0.5) {
		v["name."+g.pick(scimNames...)] = g.word()
	}
	if g.some(0.3) {
		v[enterpriseURN+":department"] = g.word()
	}
	if g.some(0.2) {
		v["ims"] = []any{map[string]any{"value": fmt.Sprint("new", g.IntN(1<<30)), "type": "xmpp"}}
	}
	return v
}

// scimPlain returns a document without what means the same as nothing.
func scimPlain(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for name, part := range v {
			if part = scimPlain(part); part != nil && name != "schemas" {
				out[name] = part
			}
		}
		if len(out) == 0 {
			return nil
		}
		return out
	case []any:
		var out []any
		for _, item := range v {
			if item = scimPlain(item); item != nil {
				out = append(out, item)
			}
		}
		if out == nil {
			return nil
		}
		return out
	}
	return v
}

// scimGroup returns a group and a PATCH of its members.
func (g scimGenerator) group() (group, patch map[string]any) {
	member := func() any { return map[string]any{"value": fmt.Sprint("u", g.IntN(8))} }
	members := func() []any {
		list := map[string]any{}
		for range 1 + g.IntN(4) {
			m := member()
			list[fmt.Sprint(m)] = m
		}
		var out []any
		for _, key := range slices.Sorted(maps.Keys(list)) {
			out = append(out, list[key])
		}
		return out
	}
	group = map[string]any{"schemas": []any{"urn:ietf:params:scim:schemas:core:2.0:Group"}, "displayName": "g", "members": members()}
	var ops []any
	for range 1 + g.IntN(4) {
		switch g.IntN(5) {
		case 0:
			ops = append(ops, map[string]any{"op": g.pick("add", "Add"), "path": "members", "value": members()})
		case 1:
			ops = append(ops, map[string]any{"op": "replace", "path": "members", "value": members()})
		case 2:
			ops = append(ops, map[string]any{"op": "remove", "path": fmt.Sprintf("members[value eq \"u%d\"]", g.IntN(8))})
		case 3:
			ops = append(ops, map[string]any{"op": "Remove", "path": "members", "value": []any{member()}})
		case 4:
			ops = append(ops, map[string]any{"op": "replace", "path": "displayName", "value": g.pick("g", "h")})
		}
	}
	return group, map[string]any{"schemas": []any{"urn:ietf:params:scim:api:messages:2.0:PatchOp"}, "Operations": ops}
}
