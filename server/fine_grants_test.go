package server

import (
	"encoding/json"
	"net/http"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
)

// rowType is a type of authorization_details with every kind of field.
func rowType() *broker.DetailType {
	bound := func(b broker.ArgumentBound) broker.Argument { return broker.Argument{ArgumentBound: b} }
	note := bound(broker.ArgumentBound{MaxLength: 200})
	note.Pattern = regexp.MustCompile(`^(?:[^<>]*)$`)
	return &broker.DetailType{
		Actions: []string{"change", "read"}, Locations: []string{"https://guarded.acme.test"}, DataTypes: []string{"orders"}, Privileges: []string{"clerk"},
		Identifier: regexp.MustCompile(`^(?:row-.{1,20})$`),
		Tools: map[string]broker.Tool{
			"look": {},
			"refund": {Arguments: map[string]broker.Argument{
				"amount":   bound(broker.ArgumentBound{Number: true, Min: 0, Max: 100}),
				"currency": bound(broker.ArgumentBound{Values: []string{"CHF", "EUR"}}),
				"note":     note,
				"labels":   bound(broker.ArgumentBound{MaxItems: 3, MaxLength: 10}),
			}},
		},
	}
}

const (
	rowHead  = `"type":"row","actions":["read"],"locations":["https://guarded.acme.test"],"datatypes":["orders"],"privileges":["clerk"],"identifier":"row-1"`
	goodLook = `{` + rowHead + `,"tool":"look"}`
	refund   = `{` + rowHead + `,"tool":"refund","arguments":{"amount":{"minimum":0,"maximum":50},"currency":{"enum":["EUR"]},"note":{"maxLength":20},"labels":{"maxItems":2,"items":{"enum":["vip"]}}}}`
)

// What was granted is in the answer and in the introspection, exactly.
func TestFineGrantsAreInAnswers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	details := `[` + refund + `,{"type":"` + api.ParametersDetail + `","parameters":{"name":"billing"}},{"type":"urn:acme:export","actions":["export"]}]`
	status, answer, failed := w.post(credentials + "audience=repository&scope=clone&authorization_details=" + url.QueryEscape(details))
	if status != http.StatusOK {
		t.Fatalf("got %d %+v", status, failed)
	}
	var asked []api.AuthorizationDetail
	if err := json.Unmarshal([]byte(details), &asked); err != nil {
		t.Fatal(err)
	}
	want := []api.AuthorizationDetail{asked[1], asked[0], asked[2]}
	if !reflect.DeepEqual(answer.AuthorizationDetails, want) {
		t.Errorf("got the answer %+v, want %+v", answer.AuthorizationDetails, want)
	}
	want[0].Type = "repository"
	in, err := w.as(tickets).Introspect(t.Context(), answer.AccessToken)
	if err != nil || !reflect.DeepEqual(in.AuthorizationDetails, want) {
		t.Errorf("got the introspection %+v, %v", in, err)
	}
}

// A details array that the broker does not understand whole, or that allows more than its
// type, is refused with the error of RFC 9396, section 5.
func TestFineGrantsAreStrict(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	parameters := `{"type":"` + api.ParametersDetail + `","parameters":{"name":"billing"}}`
	with := func(arguments string) string {
		return `{` + rowHead + `,"tool":"refund","arguments":` + arguments + `}`
	}
	without := func(field string) string {
		return regexp.MustCompile(`,"`+field+`":(\[[^]]*\]|"[^"]*")`).ReplaceAllString(goodLook, "")
	}
	tests := map[string]string{
		"unknown type":          `{"type":"rows","actions":["read"]}`,
		"unknown field":         strings.Replace(goodLook, `"tool"`, `"until":"2030","tool"`, 1),
		"field in another case": strings.Replace(goodLook, `"actions"`, `"Actions"`, 1),
		"undeclared field":      `{"type":"urn:acme:export","actions":["export"],"identifier":"row-1"}`,
		"undeclared tool":       `{"type":"urn:acme:export","actions":["export"],"tool":"look"}`,
		"no actions":            without("actions"),
		"no locations":          without("locations"),
		"no datatypes":          without("datatypes"),
		"no privileges":         without("privileges"),
		"no identifier":         without("identifier"),
		"no tool":               without("tool"),
		"empty actions":         strings.Replace(goodLook, `["read"]`, `[]`, 1),
		"unknown action":        strings.Replace(goodLook, `["read"]`, `["read","drop"]`, 1),
		"repeated action":       strings.Replace(goodLook, `["read"]`, `["read","read"]`, 1),
		"repeated member":       strings.Replace(goodLook, `"tool":"look"`, `"tool":"refund","tool":"look"`, 1),
		"escaped repeat":        strings.Replace(goodLook, `"tool":"look"`, `"tool":"refund","\u0074ool":"look"`, 1),
		"repeated element":      goodLook + `,` + goodLook,
		"look-alike identifier": strings.Replace(goodLook, `row-1`, `row-а`, 1),
		"bidi identifier":       strings.Replace(goodLook, `row-1`, `row-\u202e1`, 1),
		"markup identifier":     strings.Replace(goodLook, `row-1`, `row- <b>`, 1),
		"other identifier":      strings.Replace(goodLook, `row-1`, `table-1`, 1),
		"long identifier":       strings.Replace(goodLook, `row-1`, `row-`+strings.Repeat("1", 10000), 1),
		"unknown tool":          strings.Replace(goodLook, `"look"`, `"drop"`, 1),
		"arguments of no tool":  strings.Replace(goodLook, `"tool":"look"`, `"tool":"look","arguments":{"amount":{"minimum":0,"maximum":1}}`, 1),
		"unknown argument":      with(`{"to":{"enum":["x"]}}`),
		"more than the maximum": with(`{"amount":{"minimum":0,"maximum":101}}`),
		"below the minimum":     with(`{"amount":{"minimum":-1,"maximum":1}}`),
		"an empty range":        with(`{"amount":{"minimum":51,"maximum":50}}`),
		"only a maximum":        with(`{"amount":{"maximum":1}}`),
		"a fraction":            with(`{"amount":{"minimum":0,"maximum":0.5}}`),
		"beyond every number":   with(`{"amount":{"minimum":0,"maximum":1e400}}`),
		"a text for a number":   with(`{"amount":{"enum":["1"]}}`),
		"another value":         with(`{"currency":{"enum":["EUR","USD"]}}`),
		"any value of an enum":  with(`{"currency":{"maxLength":3}}`),
		"an empty enum":         with(`{"currency":{"enum":[]}}`),
		"an empty bound":        with(`{"currency":{}}`),
		"two kinds of bounds":   with(`{"currency":{"enum":["EUR"],"maximum":3,"minimum":0}}`),
		"an enum and a length":  with(`{"note":{"enum":["x"],"maxLength":3}}`),
		"a longer text":         with(`{"note":{"maxLength":201}}`),
		"10,000 characters":     with(`{"note":{"enum":["` + strings.Repeat("x", 10000) + `"]}}`),
		"bidi in an argument":   with(`{"note":{"enum":["a\u202eb"]}}`),
		"a line in an argument": with(`{"note":{"enum":["a\nb"]}}`),
		"markup in an argument": with(`{"note":{"enum":["<script>"]}}`),
		"a longer list":         with(`{"labels":{"maxItems":4,"items":{"enum":["a"]}}}`),
		"a list without items":  with(`{"labels":{"maxItems":1}}`),
		"a text for a list":     with(`{"labels":{"enum":["a"]}}`),
		"no bound of a list":    with(`{"labels":{"maxItems":1,"items":{}}}`),
		"too many elements":     strings.Repeat(`{"type":"urn:acme:export","actions":["export"]},`, 16) + goodLook,
	}
	for name, element := range tests {
		details := `[` + parameters + `,` + element + `]`
		status, answer, failed := w.post(credentials + "audience=repository&scope=clone&authorization_details=" + url.QueryEscape(details))
		if status != 400 || failed.Error != "invalid_authorization_details" || failed.Code != api.InvalidDetails || failed.Description == "" || len(failed.Description) > 1000 || answer.AccessToken != "" {
			t.Errorf("%s: got %d %+v", name, status, failed)
		}
		var body struct {
			Details []json.RawMessage `json:"authorization_details"`
		}
		_ = json.Unmarshal([]byte(`{"authorization_details":`+details+`}`), &body)
		text, _ := json.Marshal(map[string]any{"entitlement": "repository", "scopes": []string{"clone"}, "authorization_details": body.Details})
		if resp := w.do("POST", "/v1/requests", "application/json", string(text), "Authorization", "Bearer "+agent); resp.StatusCode != 400 {
			t.Errorf("%s on /v1: got %d, want 400", name, resp.StatusCode)
		}
	}
	for name, element := range map[string]string{"a tool without arguments": goodLook, "a tool with bounds": refund, "no argument at all": with(`{}`)} {
		status, _, failed := w.post(credentials + "audience=repository&scope=clone&authorization_details=" + url.QueryEscape(`[`+parameters+`,`+element+`]`))
		if status != 200 {
			t.Errorf("%s: got %d %+v", name, status, failed)
		}
	}
}

// A poll may repeat the details in any order, and cannot change them.
func TestPollRepeatsFineGrants(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	_, _, failed := w.post(credentials + "audience=guarded&scope=read&justification=why&authorization_details=" + url.QueryEscape(`[`+strings.Replace(goodLook, `["read"]`, `["read","change"]`, 1)+`]`))
	if failed.Code != api.Pending {
		t.Fatalf("got %+v", failed)
	}
	poll := func(elements string) api.OAuthError {
		_, _, f := w.post(credentials + "request_id=" + failed.RequestID + "&authorization_details=" + url.QueryEscape(elements))
		return f
	}
	if got := poll(`[` + strings.Replace(goodLook, `["read"]`, `["change","read"]`, 1) + `]`); got.Code != api.Pending {
		t.Errorf("the same details: got %+v", got)
	}
	for _, other := range []string{`[` + goodLook + `]`, `[` + refund + `]`, `[` + goodLook + `,` + refund + `]`} {
		if got := poll(other); got.Code != api.InvalidDetails {
			t.Errorf("%s: got %+v", other, got)
		}
	}
}

// The metadata lists the types, and the offers have a JSON Schema of each that accepts what
// the broker accepts.
func TestTypesOfFineGrantsAreDescribed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	var metadata api.Metadata
	if _, text := w.fetch("/.well-known/oauth-authorization-server"); json.Unmarshal(text, &metadata) != nil {
		t.Fatalf("got metadata %s", text)
	}
	if want := []string{api.ParametersDetail, "row", "urn:acme:export"}; !slices.Equal(metadata.DetailTypes, want) {
		t.Errorf("got types %v, want %v", metadata.DetailTypes, want)
	}
	offers, err := w.as(agent).Entitlements(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(offers, func(o api.Offer) bool { return o.Entitlement == "repository" })
	if i < 0 {
		t.Fatal("no offer of repository")
	}
	document, err := jsonschema.UnmarshalJSON(strings.NewReader(string(offers[i].DetailTypes["row"])))
	if err != nil {
		t.Fatal(err)
	}
	compiler := jsonschema.NewCompiler()
	if err := compiler.AddResource("row.json", document); err != nil {
		t.Fatal(err)
	}
	row, err := compiler.Compile("row.json")
	if err != nil {
		t.Fatal(err)
	}
	for element, valid := range map[string]bool{
		goodLook: true, refund: true,
		strings.Replace(goodLook, `["read"]`, `[]`, 1):              false,
		strings.Replace(goodLook, `"look"`, `"drop"`, 1):            false,
		strings.Replace(refund, `"maximum":50`, `"maximum":500`, 1): false,
		strings.Replace(refund, `"EUR"`, `"USD"`, 1):                false,
	} {
		value, err := jsonschema.UnmarshalJSON(strings.NewReader(element))
		if err != nil {
			t.Fatal(err)
		}
		if err := row.Validate(value); (err == nil) != valid {
			t.Errorf("%s: got %v, want valid: %t", element, err, valid)
		}
	}
}
