package strictjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
)

const depth = 4

func TestCheckRejectsWhatParsersReadDifferently(t *testing.T) {
	t.Parallel()
	var many string
	for _, c := range "abcdefghijkl" {
		many += `"` + string(c) + `":1,`
	}
	for doc, want := range map[string]error{
		`{"a":1,"b":[true,false,null,-0.5e+10,"\ud83d\ude00\u0041\n"]}`: nil,
		" \t\r\n{ \"a\" : 1 } \n": nil,
		`0`:                       nil,
		`"é"`:                     nil,
		`{"a":1,"A":2}`:           nil,
		`[[[[]]]]`:                nil,
		`{` + many + `"m":1}`:     nil,

		`{"a":1,"a":2}`:                ErrDuplicate,
		`{"a":1,"\u0061":2}`:           ErrDuplicate,
		`[{"x":{"a":1,"b":2,"a":3}}]`:  ErrDuplicate,
		`{` + many + `"l":1}`:          ErrDuplicate,
		`{` + many + `"m":1,"m":1}`:    ErrDuplicate,
		`"\ud800"`:                     ErrText,
		`"\uDBFFx"`:                    ErrText,
		`"\udc00\ud800"`:               ErrText,
		`"\ud800\u0041"`:               ErrText,
		`"\ud800\ud800"`:               ErrText,
		`{"\udfff":1}`:                 ErrText,
		"\"\xff\"":                     ErrText,
		"\"\xed\xa0\x80\"":             ErrText,
		`1e309`:                        ErrNumber,
		`[-1E+400]`:                    ErrNumber,
		`1` + strings.Repeat("0", 310): ErrNumber,
		`1e308`:                        nil,
		`1e-400`:                       nil,
		`1` + strings.Repeat("0", 300): nil,
		`[[[[[]]]]]`:                   ErrDepth,
		`{"a":{"a":{"a":{"a":{}}}}}`:   ErrDepth,
		"\ufeff{}":                     ErrSyntax,
		``:                             ErrSyntax,
		` `:                            ErrSyntax,
		`{} {}`:                        ErrSyntax,
		`{}x`:                          ErrSyntax,
		"{}\x00":                       ErrSyntax,
		`01`:                           ErrSyntax,
		`+1`:                           ErrSyntax,
		`-`:                            ErrSyntax,
		`1.`:                           ErrSyntax,
		`.5`:                           ErrSyntax,
		`1e`:                           ErrSyntax,
		`0x1`:                          ErrSyntax,
		`1_000`:                        ErrSyntax,
		`NaN`:                          ErrSyntax,
		`True`:                         ErrSyntax,
		`tru`:                          ErrSyntax,
		`'a'`:                          ErrSyntax,
		`{a:1}`:                        ErrSyntax,
		`{"a":1,}`:                     ErrSyntax,
		`{"a"}`:                        ErrSyntax,
		`{"a":}`:                       ErrSyntax,
		`{"a":1`:                       ErrSyntax,
		`{1:1}`:                        ErrSyntax,
		`[1,]`:                         ErrSyntax,
		`[1 2]`:                        ErrSyntax,
		`[`:                            ErrSyntax,
		`"`:                            ErrSyntax,
		`"\x"`:                         ErrSyntax,
		`"\u12g4"`:                     ErrSyntax,
		`"\u12`:                        ErrSyntax,
		"\"a\nb\"":                     ErrSyntax,
		`// comment` + "\n{}":          ErrSyntax,
		`{"a":1}/**/`:                  ErrSyntax,
	} {
		if err := Check([]byte(doc), depth); !errors.Is(err, want) {
			t.Errorf("%q: got %v, want %v", doc, err, want)
		}
	}
}

func TestObject(t *testing.T) {
	t.Parallel()
	got, err := Object([]byte(` {"a" : [1, 2] ,"\u0062":"x"} `), depth)
	want := map[string]json.RawMessage{"a": json.RawMessage("[1, 2]"), "b": json.RawMessage(`"x"`)}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %s, %v, want %s", got, err, want)
	}
	for doc, want := range map[string]error{`[]`: ErrNotObject, `null`: ErrNotObject, ``: ErrNotObject, `{}{}`: ErrSyntax, "{\"a\":\"\xff\"}": ErrText, `{"a":1,"a":1}`: ErrDuplicate} {
		if _, err := Object([]byte(doc), depth); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", doc, err, want)
		}
	}
}

// An outline checks its own names, and only the syntax of its values.
func TestOutline(t *testing.T) {
	t.Parallel()
	got, err := Outline([]byte(`{"a":[{"x":1,"x":2},"\ud800"],"b":{"\udc00":{"y":1,"y":2}},"c":0}`), depth)
	if err != nil || len(got) != 3 || string(got["a"]) != `[{"x":1,"x":2},"\ud800"]` {
		t.Errorf("got %s, %v", got, err)
	}
	for doc, want := range map[string]error{`{"a":[{}],"a":1}`: ErrDuplicate, `{"a":{"b":1},"\ud800":1}`: ErrText, `{"a":[1 2]}`: ErrSyntax, `[]`: ErrNotObject, `{"a":[[[[[]]]]]}`: ErrDepth} {
		if _, err := Outline([]byte(doc), depth); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", doc, err, want)
		}
	}
}

func TestElements(t *testing.T) {
	t.Parallel()
	if list, ok := Elements([]byte(`[1,"a",[2]]`)); !ok || len(list) != 3 || string(list[2]) != "[2]" {
		t.Errorf("got %s, %t", list, ok)
	}
	for _, raw := range []string{``, `{}`, `"[]"`, `null`, `[1`} {
		if list, ok := Elements([]byte(raw)); ok {
			t.Errorf("%s: got %s, want no list", raw, list)
		}
	}
}

func TestText(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]string{`"a\n"`: "a\n", `""`: ""} {
		if got, ok := Text(json.RawMessage(raw)); !ok || got != want {
			t.Errorf("%s: got %q, %t, want %q", raw, got, ok, want)
		}
	}
	for _, raw := range []string{``, `1`, `null`, `["a"]`, `"\ud800"`, `"a`} {
		if got, ok := Text(json.RawMessage(raw)); ok {
			t.Errorf("%s: got %q, want no text", raw, got)
		}
	}
}

// FuzzCheck compares with encoding/json: what Check accepts, encoding/json accepts, and
// writing what it read loses nothing. What Check refuses for its syntax,
// encoding/json refuses too.
func FuzzCheck(f *testing.F) {
	for _, seed := range []string{`{"a":[1,-2.5e3,"\ud83d\ude00"],"b":{"c":null}}`, `{"a":1,"\u0061":2}`, `"\ud800"`, "\ufeff{}", `[01]`, `{"":""}`, "\xff", `[[[[[[`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		err := Check(b, 64)
		if syntax := err == nil || !errors.Is(err, ErrSyntax) && json.Valid(b); syntax != json.Valid(b) {
			t.Fatalf("%q: got %v, but encoding/json accepts it: %t", b, err, json.Valid(b))
		}
		if err != nil {
			return
		}
		var value any
		dec := json.NewDecoder(bytes.NewReader(b))
		dec.UseNumber()
		if err := dec.Decode(&value); err != nil {
			t.Fatalf("%q: encoding/json returned %v", b, err)
		}
		again, err := json.Marshal(value)
		if err != nil || Check(again, 64) != nil {
			t.Fatalf("%q: read as %q, %v", b, again, err)
		}
		members, err := Object(b, 64)
		object, isObject := value.(map[string]any)
		if isObject != (err == nil) || len(members) != len(object) {
			t.Fatalf("%q: got %d members, %v, want %d", b, len(members), err, len(object))
		}
		for name, raw := range members {
			if _, known := object[name]; !known || !json.Valid(raw) {
				t.Fatalf("%q: member %q is %q", b, name, raw)
			}
		}
	})
}
