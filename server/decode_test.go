package server

import (
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
)

func TestDecodeJSON(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, body string
		code       error  // nil: accepted
		detail     string // a part of it
	}{
		{"plain", `{"entitlement":"tickets","scopes":["a","b"],"ttl":"15m"}`, nil, ""},
		{"empty object", `{}`, nil, ""},
		{"parameters keep their case", `{"entitlement":"x","parameters":{"A":"1","a":"2"}}`, nil, ""},
		{"white space around", " {\"entitlement\":\"x\"} \n", nil, ""},

		{"not an object", `[]`, broker.ErrInvalidRequest, "not a JSON object"},
		{"truncated", `{"entitlement":"x"`, broker.ErrInvalidRequest, ""},
		{"trailing", `{"entitlement":"x"} {}`, broker.ErrInvalidRequest, "continues after the JSON object"},
		{"trailing comma", `{"entitlement":"x",}`, broker.ErrInvalidRequest, ""},
		{"unknown field", `{"entitlment":"x"}`, broker.ErrInvalidRequest, `unknown field "entitlment"`},
		{"repeated", `{"entitlement":"x","entitlement":"y"}`, broker.ErrInvalidRequest, "is repeated"},
		{"repeated by escape", `{"entitlement":"x","\u0065ntitlement":"y"}`, broker.ErrInvalidRequest, "is repeated"},
		{"repeated inside", `{"parameters":{"a":"1","a":"2"}}`, broker.ErrInvalidRequest, "is repeated"},
		{"other case", `{"Entitlement":"x"}`, broker.ErrInvalidRequest, "unknown field"},
		{"long s folds to s", `{"ſcopes":["x"]}`, broker.ErrInvalidRequest, "unknown field"},
		{"Kelvin sign folds to k", `{"tic\u212aet":"x"}`, broker.ErrInvalidRequest, "unknown field"},
		{"null", `{"entitlement":null}`, broker.ErrInvalidRequest, "null"},
		{"wrong type", `{"entitlement":7}`, broker.ErrInvalidRequest, `"entitlement" has the wrong type`},
		{"wrong element", `{"scopes":["a",7]}`, broker.ErrInvalidRequest, "wrong type"},
		{"not UTF-8", "{\"justification\":\"\xff\"}", broker.ErrInvalidRequest, "UTF-8"},
		{"deep", `{"scopes":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `}`, broker.ErrInvalidRequest, "deep"},
		{"ttl zero", `{"ttl":"0s"}`, broker.ErrInvalidTTL, "positive"},
		{"ttl negative", `{"ttl":"-5m"}`, broker.ErrInvalidTTL, "positive"},
		{"ttl a number", `{"ttl":900}`, broker.ErrInvalidRequest, ""},
		{"ttl nonsense", `{"ttl":"soon"}`, broker.ErrInvalidTTL, "15m"},
		{"ttl overflow", `{"ttl":"99999999999h"}`, broker.ErrInvalidTTL, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var ask api.Ask
			err := decodeJSON([]byte(test.body), &ask)
			if !errors.Is(err, test.code) {
				t.Fatalf("got %v, want %v", err, test.code)
			}
			if detail := refusalOf(err).Detail; !strings.Contains(detail, test.detail) {
				t.Errorf("the detail %q lacks %q", detail, test.detail)
			}
		})
	}
}

func TestDecodeJSONNeverQuotesValues(t *testing.T) {
	t.Parallel()
	for _, body := range []string{`{"scopes":"s3cret"}`, `{"ticket":{"s3cret":1}}`, `{"entitlement":"x" "s3cret"}`} {
		var ask api.Ask
		err := decodeJSON([]byte(body), &ask)
		if err == nil || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: got %v", body, err)
		}
	}
}

// Any body that decodeJSON accepts, encoding/json reads in the same way.
func FuzzDecodeJSON(f *testing.F) {
	f.Add([]byte(`{"entitlement":"tickets","scopes":["a"],"ttl":"15m","parameters":{"p":"v"},"dry_run":true}`))
	f.Add([]byte(`{"entitlement":"a","\u0065ntitlement":"b"}`))
	f.Add([]byte(`{"ttl":"0s"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var ask api.Ask
		if err := decodeJSON(body, &ask); err != nil {
			if len(refusalOf(err).Detail) == 0 || len(err.Error()) > 1000 {
				t.Fatalf("the error has no detail or is too long: %v", err)
			}
			return
		}
		text, err := json.Marshal(ask)
		if err != nil {
			t.Fatal(err)
		}
		var decoded api.Ask
		if err := decodeJSON(text, &decoded); err != nil {
			t.Fatalf("decoding %s, encoded from %q: %v", text, body, err)
		}
		var generic map[string]any
		if err := json.Unmarshal(body, &generic); err != nil {
			t.Fatalf("encoding/json refuses an accepted body: %v", err)
		}
		if name, _ := generic["entitlement"].(string); name != ask.Entitlement {
			t.Fatalf("encoding/json reads the entitlement %q, decodeJSON %q", name, ask.Entitlement)
		}
	})
}

func TestParseForm(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, body string
		want       form // nil: refused
	}{
		{"plain", "grant_type=client_credentials&scope=a+b", form{"grant_type": {"client_credentials"}, "scope": {"a b"}}},
		{"empty value", "scope=&audience=x", form{"audience": {"x"}}},
		{"unknown parameter", "x=1", form{"x": {"1"}}},
		{"repeated audience", "audience=a&audience=b", form{"audience": {"a", "b"}}},
		{"nothing", "", form{}},
		{"repeated", "scope=a&scope=b", nil},
		{"repeated and empty", "grant_type=&grant_type=x", nil},
		{"repeated by escape", "scope=a&sc%6Fpe=b", nil},
		{"bad escape", "scope=%zz", nil},
		{"semicolons", "scope=a;b=c", nil},
		{"not UTF-8", "justification=%ff", nil},
		{"too many", strings.Repeat("a=1&", 40), nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := parseForm([]byte(test.body))
			if test.want == nil {
				if !errors.Is(err, broker.ErrInvalidRequest) {
					t.Fatalf("got %v, %v", got, err)
				}
				return
			}
			if err != nil || !reflect.DeepEqual(got, test.want) {
				t.Errorf("got %v, %v, want %v", got, err, test.want)
			}
		})
	}
}

func TestTokenProof(t *testing.T) {
	t.Parallel()
	const exchange = "grant_type=urn:ietf:params:oauth:grant-type:token-exchange"
	const jwt = "&subject_token_type=urn:ietf:params:oauth:token-type:jwt"
	tests := []struct {
		name, body string
		want       formProofs
		err        error
	}{
		{"exchange", exchange + "&subject_token=T" + jwt, formProofs{subject: "T"}, nil},
		{"exchange by assertion", exchange + "&subject_token=T" + jwt + "&client_assertion=U&client_assertion_type=" + api.AssertionTypeJWT, formProofs{assertion: "U", subject: "T"}, nil},
		{"credentials over TLS", "grant_type=client_credentials", formProofs{}, nil},
		{"credentials by assertion", "grant_type=client_credentials&client_assertion=T&client_assertion_type=" + api.AssertionTypeJWT, formProofs{assertion: "T"}, nil},
		{"credentials by SPIFFE assertion", "grant_type=client_credentials&client_assertion=T&client_assertion_type=" + assertionSPIFFE, formProofs{assertion: "T"}, nil},
		{"client credentials ignore subject_token", "grant_type=client_credentials&subject_token=T" + jwt, formProofs{}, nil},

		{"no grant", "subject_token=T" + jwt, formProofs{}, broker.ErrInvalidRequest},
		{"unknown grant", "grant_type=password", formProofs{}, errGrantType},
		{"no subject", exchange, formProofs{}, broker.ErrInvalidRequest},
		{"no subject type", exchange + "&subject_token=T", formProofs{}, broker.ErrInvalidRequest},
		{"another subject type", exchange + "&subject_token=T&subject_token_type=urn:ietf:params:oauth:token-type:id_token", formProofs{}, broker.ErrInvalidRequest},
		{"actor", exchange + "&subject_token=T" + jwt + "&actor_token=U&actor_token_type=" + api.TokenTypeJWT, formProofs{subject: "T", actor: "U"}, nil},
		{"for a person", exchange + "&subject_token=T&subject_token_type=" + api.TokenTypeIDJAG, formProofs{}, nil},
		{"for a person by assertion", exchange + "&subject_token=T&subject_token_type=" + api.TokenTypeAccessToken + "&client_assertion=U&client_assertion_type=" + api.AssertionTypeJWT, formProofs{assertion: "U"}, nil},
		{"for a person by actor", exchange + "&subject_token=T&subject_token_type=" + api.TokenTypeAccessToken + "&actor_token=U&actor_token_type=" + api.TokenTypeJWT, formProofs{actor: "U"}, nil},
		{"JWT bearer", "grant_type=" + api.GrantJWTBearer + "&assertion=T", formProofs{}, nil},
		{"JWT bearer by assertion", "grant_type=" + api.GrantJWTBearer + "&assertion=T&client_assertion=U&client_assertion_type=" + api.AssertionTypeJWT, formProofs{assertion: "U"}, nil},
		{"JWT bearer poll", "grant_type=" + api.GrantJWTBearer + "&request_id=R", formProofs{}, nil},
		{"poll for a person", exchange + "&request_id=R&subject_token_type=" + api.TokenTypeIDJAG, formProofs{}, nil},

		{"JWT bearer without assertion", "grant_type=" + api.GrantJWTBearer, formProofs{}, broker.ErrInvalidRequest},
		{"actor without type", exchange + "&subject_token=T" + jwt + "&actor_token=U", formProofs{}, broker.ErrInvalidRequest},
		{"actor type alone", exchange + "&subject_token=T" + jwt + "&actor_token_type=" + api.TokenTypeJWT, formProofs{}, broker.ErrInvalidRequest},
		{"another actor type", exchange + "&subject_token=T" + jwt + "&actor_token=U&actor_token_type=" + api.TokenTypeAccessToken, formProofs{}, broker.ErrInvalidRequest},
		{"exchange, assertion without type", exchange + "&subject_token=T" + jwt + "&client_assertion=U", formProofs{}, broker.ErrUnauthenticated},
		{"assertion without type", "grant_type=client_credentials&client_assertion=T", formProofs{}, broker.ErrUnauthenticated},
		{"type without assertion", "grant_type=client_credentials&client_assertion_type=" + api.AssertionTypeJWT, formProofs{}, broker.ErrUnauthenticated},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f, err := parseForm([]byte(test.body))
			if err != nil {
				t.Fatal(err)
			}
			got, err := tokenProofs(f)
			if !errors.Is(err, test.err) || err == nil && got != test.want {
				t.Errorf("got %+v, %v, want %+v, %v", got, err, test.want, test.err)
			}
		})
	}
}

func TestTarget(t *testing.T) {
	t.Parallel()
	catalogue := broker.Catalogue{
		"tickets":    {Name: "tickets", Audience: "https://tickets.test", Scopes: []string{"close", "read"}},
		"tickets-ro": {Name: "tickets-ro", Audience: "https://tickets.test", Scopes: []string{"list"}},
		"database":   {Name: "database"},
		"hidden":     {Name: "hidden", Audience: "https://hidden.test", Scopes: []string{"list"}},
		"tickets-rw": {Name: "tickets-rw", Audience: "https://tickets.test", Scopes: []string{"list"}},
	}
	hidden := []string{"hidden", "tickets-rw"}
	may := func(entitlement string) bool { return !slices.Contains(hidden, entitlement) }
	tests := []struct {
		name                       string
		audience, resource, scopes []string
		want                       string
		err                        error
	}{
		{"by name", []string{"tickets"}, nil, nil, "tickets", nil},
		{"by name and resource", []string{"tickets"}, []string{"https://tickets.test"}, nil, "tickets", nil},
		{"by resource and scope", nil, []string{"https://tickets.test"}, []string{"list"}, "tickets-ro", nil},
		{"unknown, denied by the domain", []string{"nope"}, nil, nil, "nope", nil},

		{"nothing", nil, nil, nil, "", broker.ErrInvalidRequest},
		{"two", []string{"tickets", "tickets-ro"}, nil, nil, "", broker.ErrInvalidTarget},
		{"no token, refused by the domain", []string{"database"}, nil, nil, "database", nil},
		{"mismatch, refused by the domain", []string{"tickets"}, []string{"https://other.test"}, nil, "tickets", nil},
		{"not permitted", nil, []string{"https://hidden.test"}, []string{"list"}, "", broker.ErrInvalidTarget},
		{"two fit", nil, []string{"https://tickets.test"}, nil, "", broker.ErrInvalidTarget},
		{"none fits", nil, []string{"https://tickets.test"}, []string{"list", "read"}, "", broker.ErrInvalidTarget},
		{"unknown resource", nil, []string{"https://other.test"}, []string{"list"}, "", broker.ErrInvalidTarget},
		{"empty audience of an entitlement without tokens", nil, []string{""}, nil, "", broker.ErrInvalidTarget},
		{"relative", nil, []string{"tickets"}, nil, "", broker.ErrInvalidTarget},
		{"fragment", nil, []string{"https://tickets.test#x"}, []string{"list"}, "", broker.ErrInvalidTarget},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := target(catalogue, test.audience, test.resource, test.scopes, may)
			if !errors.Is(err, test.err) || got != test.want {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

// No form makes the token endpoint panic, and tokenProof returns a proof only from the
// parameters of the grant.
func FuzzTokenForm(f *testing.F) {
	f.Add([]byte("grant_type=urn:ietf:params:oauth:grant-type:token-exchange&subject_token=T&subject_token_type=urn:ietf:params:oauth:token-type:jwt&audience=a&scope=b"))
	f.Add([]byte("grant_type=client_credentials&audience=a&audience=b"))
	f.Add([]byte("scope=%zz&&=&a"))
	catalogue := broker.Catalogue{"a": {Name: "a", Audience: "https://a.test", Scopes: []string{"b"}}}
	f.Fuzz(func(t *testing.T, body []byte) {
		parsed, err := parseForm(body)
		if err != nil {
			return
		}
		for name, list := range parsed {
			if len(list) == 0 || (len(list) > 1 && name != "audience" && name != "resource") {
				t.Fatalf("%q has %d values", name, len(list))
			}
		}
		proofs, err := tokenProofs(parsed)
		if err != nil {
			if len(refusalOf(err).Detail) > 1000 {
				t.Fatal(err)
			}
			return
		}
		if (proofs.subject != "") != (parsed.get("grant_type") == api.GrantTokenExchange) {
			t.Fatalf("got the proofs %+v from %v", proofs, parsed)
		}
		_, _ = target(catalogue, parsed["audience"], parsed["resource"], strings.Fields(parsed.get("scope")), func(string) bool { return true })
	})
}
