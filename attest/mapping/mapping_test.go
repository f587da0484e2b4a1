package mapping

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"

	"accessbroker.internal/internal/strictjson"
)

// texts returns a condition on a claim that is a text.
func texts(values ...string) (w Want) {
	for _, v := range values {
		w.Values = append(w.Values, Text(v))
	}
	return w
}

func claimsOf(t testing.TB, text string) map[string]json.RawMessage {
	t.Helper()
	claims, err := strictjson.Object([]byte(text), 16)
	if err != nil {
		t.Fatal(err)
	}
	return claims
}

func compile(t testing.TB, rules ...Rule) (list []*Compiled) {
	t.Helper()
	for _, r := range rules {
		c, err := Compile(r)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, c)
	}
	return list
}

// shop maps pushes to main of one repository.
func shop(t testing.TB) []*Compiled {
	return compile(t, Rule{
		Claims: map[string]Want{
			"repository": texts("acme/shop"), "repository_owner_id": texts("65"), "ref": texts("refs/heads/main", "refs/heads/release"), "event_name": texts("push"),
		},
		SPIFFEID: "spiffe://ci.acme.test/github/${repository_owner_id}/${repository_id}",
	})
}

const push = `{"repository": "acme/shop", "repository_id": "74", "repository_owner_id": "65", "ref": "refs/heads/main", "event_name": "push"}`

func TestMapComparesByValue(t *testing.T) {
	t.Parallel()
	rules := shop(t)
	if id, err := Map(rules, claimsOf(t, push)); err != nil || id != "spiffe://ci.acme.test/github/65/74" {
		t.Fatalf("got %q, %v", id, err)
	}
	tried := 0
	for name, change := range map[string][2]string{
		"another repository":       {`"acme/shop"`, `"acme/shop2"`},
		"a fork":                   {`"acme/shop"`, `"mallory/shop"`},
		"another case":             {`"acme/shop"`, `"Acme/shop"`},
		"a prefix":                 {`"acme/shop"`, `"acme/sho"`},
		"a path below":             {`"acme/shop"`, `"acme/shop/x"`},
		"a space":                  {`"acme/shop"`, `"acme/shop "`},
		"a NUL":                    {`"acme/shop"`, `"acme/shop\u0000"`},
		"a look-alike":             {`"acme/shop"`, `"аcme/shop"`}, // CYRILLIC SMALL LETTER A
		"a full-width letter":      {`"acme/shop"`, `"ａcme/shop"`},
		"a combining accent":       {`"acme/shop"`, `"acme/shop\u0301"`},
		"percent-encoding":         {`"acme/shop"`, `"acme%2Fshop"`},
		"a dot segment":            {`"acme/shop"`, `"acme/../acme/shop"`},
		"a pull request":           {`"push"`, `"pull_request"`},
		"a pull request's target":  {`"push"`, `"pull_request_target"`},
		"another branch":           {`"refs/heads/main"`, `"refs/heads/main2"`},
		"a tag of the same name":   {`"refs/heads/main"`, `"refs/tags/main"`},
		"a list with the value":    {`"push"`, `["push"]`},
		"an object with the value": {`"push"`, `{"push": "push"}`},
		"null":                     {`"push"`, `null`},
		"a number":                 {`"repository_owner_id": "65"`, `"repository_owner_id": 65`},
		"a truth value":            {`"push"`, `true`},
		"an absent claim":          {`"event_name": "push"`, `"event": "push"`},
		"the name in another case": {`"event_name"`, `"Event_name"`},
	} {
		tried++
		text := strings.Replace(push, change[0], change[1], 1)
		if text == push {
			t.Fatalf("%s: the change has no effect", name)
		}
		if id, err := Map(rules, claimsOf(t, text)); !errors.Is(err, ErrNoRule) || id != "" {
			t.Errorf("%s: got %q, %v, want no rule", name, id, err)
		}
	}
	if tried == 0 {
		t.Error("nothing was tried")
	}
}

func TestValuesOfAnotherKindDiffer(t *testing.T) {
	t.Parallel()
	values := map[string]Value{
		`"1"`: Text("1"), `1`: Whole(1), `"true"`: Text("true"), `true`: Truth(true), `false`: Truth(false), `"false"`: Text("false"), `0`: Whole(0), `-1`: Whole(-1), `"-1"`: Text("-1"),
		`999999999999999`: Whole(999999999999999),
	}
	for text := range values {
		for written, want := range values {
			rules := compile(t, Rule{map[string]Want{"c": {Values: []Value{want}}}, "spiffe://ci.acme.test/a"})
			_, err := Map(rules, claimsOf(t, `{"c": `+text+`}`))
			if got := err == nil; got != (text == written) {
				t.Errorf("the claim %s fits %s: got %t", text, written, got)
			}
		}
	}
	for _, text := range []string{`1.0`, `1e0`, `10e-1`, `-0`, `1000000000000000`, `0.1`, `[1]`, `{}`} {
		for _, want := range values {
			rules := compile(t, Rule{map[string]Want{"c": {Values: []Value{want}}}, "spiffe://ci.acme.test/a"})
			if id, err := Map(rules, claimsOf(t, `{"c": `+text+`}`)); err == nil {
				t.Errorf("the claim %s fits %s: got %s", text, want, id)
			}
		}
	}
}

// A value of a claim is one segment, whatever it contains.
func TestClaimIsOneSegment(t *testing.T) {
	t.Parallel()
	rules := compile(t, Rule{map[string]Want{"x": texts("y")}, "spiffe://ci.acme.test/a/${who}/b"})
	for value, want := range map[string]string{
		`"shop"`: "spiffe://ci.acme.test/a/shop/b", `"Shop-1_2.3"`: "spiffe://ci.acme.test/a/Shop-1_2.3/b", `"..."`: "spiffe://ci.acme.test/a/.../b", `74`: "spiffe://ci.acme.test/a/74/b", `0`: "spiffe://ci.acme.test/a/0/b",
		`""`: "", `"."`: "", `".."`: "", `"/"`: "", `"a/b"`: "", `"a/"`: "", `"/a"`: "", `"%2F"`: "", `"a%2Fb"`: "", `"a b"`: "", `"a\u0000"`: "", `"a\n"`: "", `"ä"`: "", `"а"`: "", `"a:b"`: "", `"a@b"`: "",
		`"*"`: "", `"${x}"`: "", `"?"`: "", `"#"`: "", `"\\"`: "", `"a\u002fb"`: "", `"\uff0f"`: "", `-1`: "", `1.5`: "", `1e3`: "", `true`: "", `null`: "", `["a"]`: "", `{"a": "b"}`: "",
		`"` + strings.Repeat("a", 2048) + `"`: "",
	} {
		id, err := Map(rules, claimsOf(t, `{"x": "y", "who": `+value+`}`))
		var segment *SegmentError
		switch {
		case want != "" && (err != nil || id != want):
			t.Errorf("%.40s: got %q, %v, want %q", value, id, err, want)
		case want == "" && id != "":
			t.Errorf("%.40s: got %q, want a refusal", value, id)
		case want == "" && !errors.As(err, &segment) && !errors.Is(err, ErrTooLong):
			t.Errorf("%.40s: got %v", value, err)
		}
	}
	if _, err := Map(rules, claimsOf(t, `{"x": "y"}`)); err == nil {
		t.Error("a claim that is absent is a segment")
	}
}

func TestMembersOfClaims(t *testing.T) {
	t.Parallel()
	rules := compile(t, Rule{
		map[string]Want{"kubernetes.io": {Members: map[string]Want{"namespace": texts("payments", "orders"), "serviceaccount": {Members: map[string]Want{"name": texts("api")}}}}},
		"spiffe://k8s.acme.test/ns/${/kubernetes.io/namespace}/sa/${/kubernetes.io/serviceaccount/name}",
	})
	for text, want := range map[string]string{
		`{"kubernetes.io": {"namespace": "orders", "serviceaccount": {"name": "api", "uid": "1"}}}`:                 "spiffe://k8s.acme.test/ns/orders/sa/api",
		`{"kubernetes.io": {"namespace": "kube-system", "serviceaccount": {"name": "api"}}}`:                        "",
		`{"kubernetes.io": {"namespace": "orders", "serviceaccount": {"name": "web"}}}`:                             "",
		`{"kubernetes.io": {"namespace": "orders", "serviceaccount": "api"}}`:                                       "",
		`{"kubernetes.io": {"namespace": "orders", "serviceaccount": [{"name": "api"}]}}`:                           "",
		`{"kubernetes.io": "orders", "namespace": "orders", "serviceaccount": {"name": "api"}}`:                     "",
		`{"kubernetes.io/namespace": "orders", "kubernetes": {"io": {"namespace": "orders"}}}`:                      "",
		`{"kubernetes.io": [{"namespace": "orders", "serviceaccount": {"name": "api"}}]}`:                           "",
		`{"kubernetes.io": {"Namespace": "orders", "namespace": "kube-system", "serviceaccount": {"name": "api"}}}`: "",
	} {
		if id, err := Map(rules, claimsOf(t, text)); id != want || (err == nil) != (want != "") {
			t.Errorf("%s: got %q, %v, want %q", text, id, err, want)
		}
	}
	escaped := compile(t, Rule{map[string]Want{"x": texts("y")}, "spiffe://ci.acme.test/${/https:~1~1acme.test~1claims/team~0id}/z"})
	if id, err := Map(escaped, claimsOf(t, `{"x": "y", "https://acme.test/claims": {"team~id": "shop"}}`)); err != nil || id != "spiffe://ci.acme.test/shop/z" {
		t.Errorf("got %q, %v", id, err)
	}
	plain := compile(t, Rule{map[string]Want{"x": texts("y")}, "spiffe://ci.acme.test/${https://acme.test/team}/z"})
	if id, err := Map(plain, claimsOf(t, `{"x": "y", "https://acme.test/team": "shop"}`)); err != nil || id != "spiffe://ci.acme.test/shop/z" {
		t.Errorf("got %q, %v", id, err)
	}
}

func TestSeveralRules(t *testing.T) {
	t.Parallel()
	rule := func(claim, value, id string) Rule { return Rule{map[string]Want{claim: texts(value)}, id} }
	one, two := rule("a", "1", "spiffe://ci.acme.test/one"), rule("b", "2", "spiffe://ci.acme.test/two")
	same, broken := rule("b", "2", "spiffe://ci.acme.test/one"), rule("b", "2", "spiffe://ci.acme.test/${c}")
	for name, c := range map[string]struct {
		rules []Rule
		want  error
	}{
		"different IDs":         {[]Rule{one, two}, ErrAmbiguous},
		"in another order":      {[]Rule{two, one}, ErrAmbiguous},
		"the same ID":           {[]Rule{one, same}, nil},
		"one cannot be applied": {[]Rule{one, broken}, &SegmentError{}},
	} {
		id, err := Map(compile(t, c.rules...), claimsOf(t, `{"a": "1", "b": "2", "c": "x/y"}`))
		var segment *SegmentError
		if _, want := c.want.(*SegmentError); want {
			if !errors.As(err, &segment) || id != "" {
				t.Errorf("%s: got %q, %v", name, id, err)
			}
			continue
		}
		if !errors.Is(err, c.want) || (id == "") != (c.want != nil) {
			t.Errorf("%s: got %q, %v, want %v", name, id, err, c.want)
		}
	}
}

func TestCompileRefusesOpenRules(t *testing.T) {
	t.Parallel()
	some := map[string]Want{"x": texts("y")}
	deep := map[string]Want{"a": {Members: map[string]Want{"b": {Members: map[string]Want{"c": {Members: map[string]Want{"d": {Members: map[string]Want{"e": texts("f")}}}}}}}}}
	many := map[string]Want{}
	for i := range maxClaims + 1 {
		many[fmt.Sprint(i)] = texts("y")
	}
	for name, r := range map[string]Rule{
		"no claim":                {nil, "spiffe://ci.acme.test/a"},
		"claims of every token":   {map[string]Want{"iss": texts("https://i"), "aud": texts("b"), "exp": {Values: []Value{Whole(1)}}}, "spiffe://ci.acme.test/a"},
		"no value":                {map[string]Want{"x": {}}, "spiffe://ci.acme.test/a"},
		"an empty value":          {map[string]Want{"x": texts("")}, "spiffe://ci.acme.test/a"},
		"a value twice":           {map[string]Want{"x": texts("a", "a")}, "spiffe://ci.acme.test/a"},
		"an empty object":         {map[string]Want{"x": {Members: map[string]Want{}}}, "spiffe://ci.acme.test/a"},
		"a claim without a name":  {map[string]Want{"": texts("a")}, "spiffe://ci.acme.test/a"},
		"too deep":                {deep, "spiffe://ci.acme.test/a"},
		"too many claims":         {many, "spiffe://ci.acme.test/a"},
		"no ID":                   {some, ""},
		"no path":                 {some, "spiffe://ci.acme.test"},
		"a slash at the end":      {some, "spiffe://ci.acme.test/"},
		"another scheme":          {some, "https://ci.acme.test/a"},
		"a claim as trust domain": {some, "spiffe://${x}/a"},
		"a claim as scheme":       {some, "${x}//ci.acme.test/a"},
		"a claim in a segment":    {some, "spiffe://ci.acme.test/a-${x}"},
		"two claims in a segment": {some, "spiffe://ci.acme.test/${x}${y}"},
		"two claims with a dash":  {some, "spiffe://ci.acme.test/${x}-${y}"},
		"an open claim":           {some, "spiffe://ci.acme.test/${x"},
		"a claim without a name ": {some, "spiffe://ci.acme.test/${}"},
		"an empty pointer":        {some, "spiffe://ci.acme.test/${/}"},
		"a wrong escape":          {some, "spiffe://ci.acme.test/${/a~2}"},
		"an upper-case domain":    {some, "spiffe://CI.acme.test/a"},
		"a wildcard":              {some, "spiffe://ci.acme.test/*"},
		"a dot segment":           {some, "spiffe://ci.acme.test/../${x}"},
		"an empty segment":        {some, "spiffe://ci.acme.test//${x}"},
	} {
		if c, err := Compile(r); err == nil {
			t.Errorf("%s: got %+v, want an error", name, c)
		}
	}
}

func TestOverlaps(t *testing.T) {
	t.Parallel()
	some := map[string]Want{"x": texts("y")}
	for pair, want := range map[[2]string]bool{
		{"a/${x}", "a/${y}"}:     true,
		{"a/${x}", "a/b"}:        true,
		{"a/b", "a/b"}:           true,
		{"a/${x}", "b/${x}"}:     false,
		{"a/${x}", "a/b/${x}"}:   false,
		{"${x}/b", "a/${x}"}:     true,
		{"a/${x}/c", "a/b/${d}"}: true,
	} {
		two := compile(t, Rule{some, "spiffe://ci.acme.test/" + pair[0]}, Rule{some, "spiffe://ci.acme.test/" + pair[1]})
		if got := two[0].Overlaps(two[1]); got != want || two[1].Overlaps(two[0]) != want {
			t.Errorf("%v: got %t, want %t", pair, got, want)
		}
	}
}

// FuzzMap maps arbitrary claims. Whatever they are, the ID is one that a rule may make: each
// of its segments is the literal of the rule or the value of the claim that the rule names.
func FuzzMap(f *testing.F) {
	rules := compile(f,
		Rule{map[string]Want{"repository_owner_id": texts("65"), "event_name": texts("push")}, "spiffe://ci.acme.test/github/${repository_owner_id}/${repository_id}"},
		Rule{map[string]Want{"n": {Values: []Value{Whole(1), Truth(true)}}}, "spiffe://ci.acme.test/n/${n}/${/o/p}"},
	)
	f.Add([]byte(push))
	f.Add([]byte(`{"n": 1, "o": {"p": "a/../b"}}`))
	f.Add([]byte(`{"n": true, "o": {"p": "x"}, "repository_owner_id": "65", "event_name": "push", "repository_id": "n"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		claims, err := strictjson.Object(text, 16)
		if err != nil {
			return
		}
		id, err := Map(rules, maps.Clone(claims))
		if err != nil {
			if id != "" {
				t.Fatalf("got %q with the error %v", id, err)
			}
			return
		}
		parts := strings.Split(id, "/")
		value := func(raw json.RawMessage) string {
			if s, ok := strictjson.Text(raw); ok {
				return s
			}
			return string(raw)
		}
		switch {
		case len(parts) != 6 || parts[0] != "spiffe:" || parts[1] != "" || parts[2] != "ci.acme.test":
			t.Fatalf("got %q", id)
		case parts[3] == "github" && parts[4] == "65" && parts[5] == value(claims["repository_id"]):
		case parts[3] == "n" && parts[4] == "1":
			o, err := strictjson.Object(claims["o"], 16)
			if err != nil || parts[5] != value(o["p"]) {
				t.Fatalf("got %q of %s", id, text)
			}
		default:
			t.Fatalf("got %q of %s", id, text)
		}
	})
}
