package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"reflect"
	"strings"
	"testing"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
)

const credentials = "grant_type=client_credentials&"

// post posts a form to the token endpoint as the agent.
func (w *world) post(form string, header ...string) (status int, answer api.TokenResponse, failed api.OAuthError) {
	w.t.Helper()
	resp := w.do("POST", "/oauth2/token", "application/x-www-form-urlencoded", form, append([]string{"Authorization", "Bearer " + agent}, header...)...)
	text := w.body(resp)
	var into any = &failed
	if resp.StatusCode == 200 {
		into = &answer
	}
	if err := json.Unmarshal(text, into); err != nil {
		w.t.Fatalf("got %s %s", resp.Status, text)
	}
	return resp.StatusCode, answer, failed
}

func TestAuthorizationDetailsHoldParameters(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	want := map[string]string{"name": "billing", "branch": "main"}
	for _, kind := range []string{api.ParametersDetail, "repository"} {
		for _, target := range []string{"audience=repository", "resource=https://git.acme.test"} {
			details := url.QueryEscape(`[ {"type":"` + kind + `", "parameters":{"name":"billing","branch":"main"}} ]`)
			status, answer, failed := w.post(credentials + target + "&scope=clone&authorization_details=" + details)
			if status != 200 || !reflect.DeepEqual(answer.AuthorizationDetails, []api.AuthorizationDetail{{Type: kind, Parameters: want}}) {
				t.Fatalf("%s, %s: got %d %+v %+v", kind, target, status, answer, failed)
			}
			in := must[*api.Introspection](t)(w.as(tickets).Introspect(t.Context(), answer.AccessToken))
			if !reflect.DeepEqual(in.AuthorizationDetails, []api.AuthorizationDetail{{Type: "repository", Parameters: want}}) {
				t.Errorf("introspection: got %+v", in)
			}
		}
	}
	// Package api sends them.
	answer := must[*api.TokenResponse](t)(w.as(agent).Exchange(t.Context(), api.TokenRequest{SubjectToken: agent, Audience: "repository", Scopes: []string{"clone"}, Parameters: want}))
	if len(answer.AuthorizationDetails) != 1 || !maps.Equal(answer.AuthorizationDetails[0].Parameters, want) {
		t.Errorf("got %+v", answer)
	}
}

// Invalid details are never ignored: no token is issued.
func TestAuthorizationDetailsAreStrict(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	element := func(kind, parameters string) string {
		return fmt.Sprintf(`{"type":%q,"parameters":%s}`, kind, parameters)
	}
	good := element(api.ParametersDetail, `{"name":"billing"}`)
	tests := map[string]string{
		"no JSON":                   `billing`,
		"an object":                 good,
		"null":                      `null`,
		"a null element":            `[null]`,
		"no element":                `[]`,
		"two elements":              `[` + good + `,` + good + `]`,
		"an array in the array":     `[[` + good + `]]`,
		"a text as element":         `["` + api.ParametersDetail + `"]`,
		"trailing data":             `[` + good + `] []`,
		"truncated":                 `[` + good,
		"no type":                   `[{"parameters":{"name":"billing"}}]`,
		"unknown type":              `[` + element("payment_initiation", `{"name":"billing"}`) + `]`,
		"type of another":           `[` + element("tickets", `{"name":"billing"}`) + `]`,
		"type in another case":      `[` + element(strings.ToUpper(api.ParametersDetail), `{"name":"billing"}`) + `]`,
		"type that is not text":     `[{"type":7,"parameters":{"name":"billing"}}]`,
		"repeated type":             `[{"type":"x","type":"` + api.ParametersDetail + `","parameters":{"name":"billing"}}]`,
		"field in another case":     `[{"Type":"` + api.ParametersDetail + `","parameters":{"name":"billing"}}]`,
		"unknown field":             `[{"type":"` + api.ParametersDetail + `","actions":["read"],"parameters":{"name":"billing"}}]`,
		"no parameters":             `[{"type":"` + api.ParametersDetail + `"}]`,
		"empty parameters":          `[` + element(api.ParametersDetail, `{}`) + `]`,
		"null parameter":            `[` + element(api.ParametersDetail, `{"name":null}`) + `]`,
		"number as parameter":       `[` + element(api.ParametersDetail, `{"name":7}`) + `]`,
		"list as parameter":         `[` + element(api.ParametersDetail, `{"name":["billing"]}`) + `]`,
		"repeated parameter":        `[` + element(api.ParametersDetail, `{"name":"a","name":"b"}`) + `]`,
		"unknown parameter":         `[` + element(api.ParametersDetail, `{"name":"billing","nmae":"x"}`) + `]`,
		"required parameter lacks":  `[` + element(api.ParametersDetail, `{"branch":"main"}`) + `]`,
		"parameter against pattern": `[` + element(api.ParametersDetail, `{"name":"../billing"}`) + `]`,
		"parameter too long":        `[` + element(api.ParametersDetail, `{"name":"billing","branch":"`+strings.Repeat("x", 5000)+`"}`) + `]`,
		"nested deeply":             strings.Repeat("[", 2000) + strings.Repeat("]", 2000),
	}
	for name, details := range tests {
		status, answer, failed := w.post(credentials + "audience=repository&scope=clone&authorization_details=" + url.QueryEscape(details))
		if status != 400 || failed.Error != "invalid_authorization_details" || failed.Code != api.InvalidParameter && failed.Code != api.InvalidDetails || failed.Description == "" || answer.AccessToken != "" {
			t.Errorf("%s: got %d %+v", name, status, failed)
		}
	}
	if status, _, failed := w.post(credentials + "audience=repository&scope=clone"); status != 400 || failed.Error != "invalid_authorization_details" {
		t.Errorf("without the required parameter: got %d %+v", status, failed)
	}
	// An entitlement without parameters has none to restrict.
	if status, _, failed := w.post(credentials + "audience=tickets&scope=tickets:read&authorization_details=" + url.QueryEscape(`[`+good+`]`)); status != 400 || failed.Error != "invalid_authorization_details" {
		t.Errorf("for another entitlement: got %d %+v", status, failed)
	}
	if status, _, failed := w.post(credentials + "audience=repository&scope=clone&authorization_details=a&authorization_details=b"); status != 400 || failed.Error != "invalid_request" {
		t.Errorf("repeated: got %d %+v", status, failed)
	}
}

// A poll may repeat the details, and cannot change them.
func TestPollRepeatsAuthorizationDetails(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	req := api.TokenRequest{SubjectToken: agent, Audience: "guarded-repository", Scopes: []string{"clone"}, Parameters: map[string]string{"name": "billing"}}
	_, err := w.as(agent).Exchange(t.Context(), req)
	var pending *api.Error
	if !errors.As(err, &pending) || pending.Code != api.Pending {
		t.Fatalf("got %v", err)
	}
	req.RequestID = pending.RequestID
	if _, err := w.as(agent).Exchange(t.Context(), req); !errors.Is(err, api.Pending) {
		t.Errorf("the same parameters: got %v", err)
	}
	req.Parameters = map[string]string{"name": "billing", "branch": "main"}
	if _, err := w.as(agent).Exchange(t.Context(), req); !errors.Is(err, api.InvalidDetails) {
		t.Errorf("other parameters: got %v", err)
	}
}

// A parameter that would narrow or bind the token is refused, not ignored.
func TestNarrowingParametersAreRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	const good = credentials + "audience=tickets&scope=tickets:read"
	if status, _, failed := w.post(good + "&unknown=1&state=x"); status != 200 {
		t.Fatalf("unknown parameters: got %d %+v", status, failed)
	}
	for name := range narrowing {
		if status, _, failed := w.post(good + "&" + name + "=x"); status != 400 || failed.Error != "invalid_request" || !strings.Contains(failed.Description, name) {
			t.Errorf("%s: got %d %+v", name, status, failed)
		}
		if status, _, failed := w.post(good + "&" + name + "="); status != 200 {
			t.Errorf("%s without a value counts as omitted: got %d %+v", name, status, failed)
		}
	}
	for _, name := range exchangeOnly {
		if status, _, failed := w.post(good + "&" + name + "=x"); status != 400 {
			t.Errorf("%s with client credentials: got %d %+v", name, status, failed)
		}
	}
	if status, _, failed := w.post(good, "DPoP", "eyJ"); status != 400 || !strings.Contains(failed.Description, "DPoP") {
		t.Errorf("a malformed DPoP proof: got %d %+v", status, failed)
	}
	if status, _, failed := w.post(good + "&dpop_jkt=x"); status != 400 || !strings.Contains(failed.Description, "dpop_jkt") {
		t.Errorf("dpop_jkt without a proof: got %d %+v", status, failed)
	}
	for _, repeated := range []string{"scope", "ttl", "requested_token_type", "authorization_details", "client_id", "resource", "audience", "justification", "unknown"} {
		if status, _, failed := w.post(good + "&" + repeated + "=a&" + repeated + "=b"); status != 400 {
			t.Errorf("%s twice: got %d %+v", repeated, status, failed)
		}
	}
}

// Parameters of the endpoint have no effect in the query, so they are refused there.
func TestTokenQueryIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	ask := func(query string) int {
		resp := w.do("POST", "/oauth2/token?"+query, "application/x-www-form-urlencoded", credentials+"audience=tickets&scope=tickets:read", "Authorization", "Bearer "+agent)
		return resp.StatusCode
	}
	for _, query := range []string{"ttl=1m", "scope=tickets:read", "authorization_details=[]", "claims={}", "subject_token=x", "a=%zz", "request=x"} {
		if got := ask(query); got != 400 {
			t.Errorf("%s: got %d, want 400", query, got)
		}
	}
	if got := ask("tenant=a"); got != 200 {
		t.Errorf("an unknown parameter: got %d, want 200", got)
	}
}

// Any details that parseDetails accepts are one element with a type and parameters that
// encoding/json reads in the same way.
func FuzzAuthorizationDetails(f *testing.F) {
	f.Add(`[{"type":"` + api.ParametersDetail + `","parameters":{"name":"billing"}}]`)
	f.Add(`[{"type":"a","\u0074ype":"b","parameters":{"n":"v"}}]`)
	f.Add(`[{"type":"a","parameters":{"n":"v"}}] `)
	f.Add(strings.Repeat("[", 20))
	f.Fuzz(func(t *testing.T, text string) {
		detail, err := parseDetails(text)
		if err != nil {
			if !errors.Is(err, broker.ErrInvalidDetails) || len(refusalOf(err).Detail) > 1000 {
				t.Fatal(err)
			}
			return
		}
		if text == "" {
			return
		}
		var generic []map[string]any
		if err := json.Unmarshal([]byte(text), &generic); err != nil || len(generic) == 0 || len(generic) != len(detail.fine)+min(1, len(detail.kind)) {
			t.Fatalf("%q: got %+v, and encoding/json reads %v, %v", text, detail, generic, err)
		}
		for _, element := range generic {
			parameters, _ := element["parameters"].(map[string]any)
			if parameters == nil {
				continue
			}
			for name, value := range detail.parameters {
				if element["type"] != detail.kind || parameters[name] != value {
					t.Fatalf("%q: the parameter %q is %q, and %v for encoding/json", text, name, value, parameters[name])
				}
			}
		}
	})
}
