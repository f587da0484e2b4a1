package scim

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

// patched applies operations to a user and returns the result without the schemas.
func patched(t *testing.T, document, operations string) (map[string]any, error) {
	t.Helper()
	after, err := Patch("User", []byte(document), []byte(`{"schemas":["`+urnPatch+`"],"Operations":`+operations+`}`))
	if err != nil {
		return nil, err
	}
	var got map[string]any
	if err := json.Unmarshal(after, &got); err != nil {
		t.Fatal(err)
	}
	return got, nil
}

func TestPatchSpeaksTheDialects(t *testing.T) {
	const user = `{"userName":"ana","active":true,"emails":[{"value":"a@x","type":"work","primary":true}]}`
	for name, c := range map[string]struct{ operations, want string }{
		"Entra ID, flag as text":    {`[{"op":"Replace","path":"active","value":"False"}]`, `{"userName":"ana","active":false,"emails":[{"value":"a@x","type":"work","primary":true}]}`},
		"Entra ID, wrapped value":   {`[{"op":"Replace","path":"active","value":[{"$ref":null,"value":"False"}]}]`, `{"userName":"ana","active":false,"emails":[{"value":"a@x","type":"work","primary":true}]}`},
		"Entra ID, missing value":   {`[{"op":"Add","path":"emails[type eq \"home\"].value","value":"h@x"}]`, `{"userName":"ana","active":true,"emails":[{"value":"a@x","type":"work","primary":true},{"value":"h@x","type":"home"}]}`},
		"Entra ID, two conditions":  {`[{"op":"Add","path":"phoneNumbers[type eq \"work\" and primary eq true].value","value":"1"}]`, `{"userName":"ana","active":true,"emails":[{"value":"a@x","type":"work","primary":true}],"phoneNumbers":[{"type":"work","primary":true,"value":"1"}]}`},
		"Entra ID, paths as names":  {`[{"op":"replace","value":{"emails[type eq \"work\"].value":"b@x","name.givenName":"Ana","urn:ietf:params:scim:schemas:extension:enterprise:2.0:User:department":"Ops"}}]`, `{"userName":"ana","active":true,"name":{"givenName":"Ana"},"emails":[{"value":"b@x","type":"work","primary":true}],"urn:ietf:params:scim:schemas:extension:enterprise:2.0:User":{"department":"Ops"}}`},
		"Entra ID, manager as text": {`[{"op":"Add","path":"urn:ietf:params:scim:schemas:extension:enterprise:2.0:User:manager","value":"m1"}]`, `{"userName":"ana","active":true,"emails":[{"value":"a@x","type":"work","primary":true}],"urn:ietf:params:scim:schemas:extension:enterprise:2.0:User":{"manager":{"value":"m1"}}}`},
		"Okta, without a path":      {`[{"op":"replace","value":{"active":false}}]`, `{"userName":"ana","active":false,"emails":[{"value":"a@x","type":"work","primary":true}]}`},
		"Okta, repeated id":         {`[{"op":"replace","value":{"id":"x","schemas":["a"],"password":"p","title":"T"}}]`, `{"userName":"ana","active":true,"title":"T","emails":[{"value":"a@x","type":"work","primary":true}]}`},
		"case of names":             {`[{"OP":"REPLACE","PATH":"UserName","VALUE":"bo"}]`, `{"userName":"bo","active":true,"emails":[{"value":"a@x","type":"work","primary":true}]}`},
		"one primary":               {`[{"op":"add","path":"emails","value":[{"value":"h@x","primary":true}]}]`, `{"userName":"ana","active":true,"emails":[{"value":"a@x","type":"work","primary":false},{"value":"h@x","primary":true}]}`},
		"null is unassigned":        {`[{"op":"replace","path":"active","value":null}]`, `{"userName":"ana","emails":[{"value":"a@x","type":"work","primary":true}]}`},
		"an extension as a whole":   {`[{"op":"add","path":"urn:ietf:params:scim:schemas:extension:enterprise:2.0:User","value":{"division":"D","manager":{"value":"m"}}}]`, `{"userName":"ana","active":true,"emails":[{"value":"a@x","type":"work","primary":true}],"urn:ietf:params:scim:schemas:extension:enterprise:2.0:User":{"division":"D","manager":{"value":"m"}}}`},
		"nothing to remove":         {`[{"op":"remove","path":"emails[type eq \"other\"]"},{"op":"remove","path":"name.givenName"}]`, user},
		"the only value disappears": {`[{"op":"remove","path":"emails[type eq \"work\"]"}]`, `{"userName":"ana","active":true}`},
	} {
		var want map[string]any
		if err := json.Unmarshal([]byte(c.want), &want); err != nil {
			t.Fatal(name, err)
		}
		if got, err := patched(t, user, c.operations); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %v, %v, want %v", name, got, err, want)
		}
	}
}

func TestPatchRefuses(t *testing.T) {
	long := strings.Repeat("a", maxText+1)
	many := strings.TrimSuffix(strings.Repeat(`{"op":"add","path":"title","value":"x"},`, maxOperations+1), ",")
	var values []string
	for i := range maxValues + 1 {
		values = append(values, fmt.Sprintf(`{"value":"v%d"}`, i))
	}
	for name, c := range map[string]struct{ operations, scimType string }{
		"misspelled active":       {`[{"op":"replace","path":"actve","value":false}]`, typeInvalidPath},
		"misspelled in the value": {`[{"op":"replace","value":{"actve":false}}]`, typeInvalidPath},
		"two spellings":           {`[{"op":"replace","value":{"active":true,"Active":false}}]`, typeInvalidSyntax},
		"two spellings of op":     {`[{"op":"add","OP":"remove","path":"title","value":"x"}]`, typeInvalidSyntax},
		"id":                      {`[{"op":"replace","path":"id","value":"x"}]`, typeMutability},
		"meta":                    {`[{"op":"replace","path":"meta.version","value":"x"}]`, typeMutability},
		"groups":                  {`[{"op":"add","path":"groups","value":[{"value":"g"}]}]`, typeMutability},
		"required":                {`[{"op":"remove","path":"userName"}]`, typeInvalidValue},
		"remove without a path":   {`[{"op":"remove"}]`, typeNoTarget},
		"no value":                {`[{"op":"add","path":"title"}]`, typeInvalidValue},
		"unknown op":              {`[{"op":"move","path":"title"}]`, typeInvalidSyntax},
		"no operations":           {`[]`, typeInvalidSyntax},
		"too many operations":     {`[` + many + `]`, typeInvalidSyntax},
		"too many values":         {`[{"op":"add","path":"emails","value":[` + strings.Join(values, ",") + `]}]`, typeInvalidValue},
		"long text":               {`[{"op":"add","path":"title","value":"` + long + `"}]`, typeInvalidValue},
		"control characters":      {`[{"op":"add","path":"displayName","value":"a\u001b[31mb"}]`, typeInvalidValue},
		"two lines":               {`[{"op":"add","path":"displayName","value":"a\nb"}]`, typeInvalidValue},
		"wrong type":              {`[{"op":"add","path":"active","value":"perhaps"}]`, typeInvalidValue},
		"number":                  {`[{"op":"add","path":"title","value":5}]`, typeInvalidValue},
		"no match":                {`[{"op":"replace","path":"emails[type ne \"work\"].value","value":"x"}]`, typeNoTarget},
		"whole value, no match":   {`[{"op":"replace","path":"emails[type eq \"home\"]","value":{"value":"x"}}]`, typeNoTarget},
		"filter of a single one":  {`[{"op":"add","path":"name[x eq \"y\"].givenName","value":"x"}]`, typeInvalidPath},
		"bad filter":              {`[{"op":"remove","path":"emails[type]"}]`, typeInvalidFilter},
		"foreign schema":          {`[{"op":"add","path":"urn:other:User:tag","value":"x"}]`, typeInvalidPath},
		"base64":                  {`[{"op":"add","path":"x509Certificates","value":[{"value":"%%"}]}]`, typeInvalidValue},
	} {
		_, err := patched(t, `{"userName":"ana","emails":[{"value":"a@x","type":"work"}]}`, c.operations)
		if !isType(err, c.scimType) {
			t.Errorf("%s: got %v, want %s", name, err, c.scimType)
		}
	}
}

// The filters of a PATCH over a large group have a budget.
func TestMemberFiltersAreBounded(t *testing.T) {
	all := make([]string, 50_000)
	m := newMemberChange(func() []string { return all })
	p := patcher{resource: groupType, doc: Document{"displayName": "g"}, members: m}
	op := operation{op: "remove", path: `members[type eq "Nothing"]`}
	var err error
	for i := 0; i < maxOperations && err == nil; i++ {
		err = p.apply(op)
	}
	if !isType(err, typeTooMany) {
		t.Errorf("got %v, want tooMany", err)
	}
}

func TestMembersAreUsers(t *testing.T) {
	for _, value := range []string{`[{"value":"g1","type":"Group"}]`, `[{"display":"x"}]`, `[5]`, `[{"value":"a","Value":"b"}]`} {
		_, err := Patch("Group", []byte(`{"displayName":"g"}`), []byte(`{"schemas":["`+urnPatch+`"],"Operations":[{"op":"add","path":"members","value":`+value+`}]}`))
		if err == nil {
			t.Errorf("%s: got no error, want one", value)
		}
	}
}
