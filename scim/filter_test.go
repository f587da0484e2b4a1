package scim

import (
	"strings"
	"testing"
)

const anaJSON = `{"userName":"Ana","externalId":"A1","active":true,"name":{"familyName":"Lopez"},
	"emails":[{"value":"ana@acme.test","type":"work","primary":true},{"value":"a@home.test","type":"home"}],
	"meta":{"created":"2026-05-01T00:00:00.000Z"},
	"urn:ietf:params:scim:schemas:extension:enterprise:2.0:User":{"department":"Ops","manager":{"value":"m1"}}}`

func TestFilterFollowsTheRFC(t *testing.T) {
	for expression, want := range map[string]bool{
		`userName eq "ANA"`:                          true, // caseExact is false
		`externalId eq "a1"`:                         false,
		`externalId eq "A1"`:                         true,
		`USERNAME Eq "ana"`:                          true,
		`active eq "True"`:                           true, // Entra ID
		`active eq true`:                             true,
		`active ne true`:                             false,
		`nickName eq null`:                           true,
		`userName eq null`:                           false,
		`userName ne null`:                           true,
		`nickName ne "x"`:                            false, // no value, nothing differs
		`emails co "acme"`:                           true,  // the value of a complex attribute
		`emails.type eq "WORK"`:                      true,
		`emails[type eq "work" and value co "home"]`: false, // of one and the same value
		`emails[type eq "home" and value co "home"]`: true,
		`not (emails[type eq "home"])`:               false,
		`userName eq "x" or active eq true and externalId eq "A1"`:                      true, // and binds more tightly
		`(userName eq "x" or active eq true) and externalId eq "other"`:                 false,
		`meta.created gt "2026-04-30T23:59:59+00:00"`:                                   true,
		`meta.created lt "2026-05-01T01:00:00+02:00"`:                                   false, // as a time, not as a text
		`urn:ietf:params:scim:schemas:extension:enterprise:2.0:User:department sw "op"`: true,
		`urn:ietf:params:scim:schemas:core:2.0:User:userName eq "ana"`:                  true,
		`urn:ietf:params:scim:schemas:extension:enterprise:2.0:User:manager eq "m1"`:    true,
		`urn:unknown:2.0:User:x pr`:                                                     false,
		`password pr`:                                                                   false,
	} {
		if got, err := Match("User", expression, []byte(anaJSON)); err != nil || got != want {
			t.Errorf("%s: got %v, %v, want %v", expression, got, err, want)
		}
	}
}

// Filters are bounded: a deep, long or wide one costs the sender an error, and the broker
// nothing.
func TestFilterBombsAreRefused(t *testing.T) {
	one := `userName eq "a"`
	for name, expression := range map[string]string{
		"deep parentheses": strings.Repeat("(", 100_000) + one + strings.Repeat(")", 100_000),
		"short and deep":   strings.Repeat("(", 20) + one + strings.Repeat(")", 20),
		"deep not":         strings.Repeat("not (", 20) + one + strings.Repeat(")", 20),
		"unclosed":         strings.Repeat("(", 15),
		"wide":             strings.Repeat(one+" or ", 64) + one,
		"long text":        `userName eq "` + strings.Repeat("a", maxFilter) + `"`,
		"nested paths":     `emails[emails[value eq "a"]]`,
		"path of a part":   `emails.value[value eq "a"]`,
		"object":           `userName eq {"a":1}`,
		"list":             `userName eq ["a"]`,
		"order of flags":   `active gt true`,
		"order of null":    `userName gt null`,
		"bad time":         `meta.created gt "yesterday"`,
		"no operator":      `userName`,
		"no value":         `userName eq`,
		"open text":        `userName eq "a`,
		"open escape":      `userName eq "a\`,
		"rest":             one + " x",
		"open bracket":     `emails[value eq "a"`,
		"not without (":    `not userName pr`,
		"empty":            "",
	} {
		if _, err := userType.parseFilter(expression); !isType(err, typeInvalidFilter) {
			t.Errorf("%s: got %v, want invalidFilter", name, err)
		}
	}
}

func FuzzFilter(f *testing.F) {
	f.Add(`emails[type eq "work" and value co "@x"] and not (active eq true) or urn:ietf:params:scim:schemas:core:2.0:User:title pr`)
	d, err := Decode([]byte(anaJSON))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if parsed, err := userType.parseFilter(text); err == nil {
			parsed.matches(d)
		} else if !isType(err, typeInvalidFilter) {
			t.Errorf("got %v, want invalidFilter", err)
		}
	})
}

func FuzzPatch(f *testing.F) {
	f.Add([]byte(`{"schemas":["urn:ietf:params:scim:api:messages:2.0:PatchOp"],"Operations":[{"op":"Replace","path":"emails[type eq \"work\"].value","value":"b"},{"op":"add","value":{"name.givenName":"x"}}]}`))
	f.Fuzz(func(t *testing.T, patch []byte) {
		after, err := Patch("User", []byte(anaJSON), patch)
		if err != nil {
			return
		}
		if d, err := Decode(after); err != nil || userType.check(d) != nil {
			t.Errorf("got %s, %v, want a valid user", after, err)
		}
	})
}
