package server

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
)

// A metadataField is the rule for one field of the discovery documents.
type metadataField struct {
	kind     string // string, url, strings, bool
	required bool
}

// metadataFields are the fields that RFC 8414, section 2, RFC 8705, section 3.3, RFC 9396, section 10, and OpenID
// Connect Discovery, section 3, define, and the broker's extensions. The fields that
// only an authorization endpoint needs are missing.
var metadataFields = map[string]metadataField{
	"issuer":                                          {"url", true},
	"token_endpoint":                                  {"url", true},
	"introspection_endpoint":                          {"url", true},
	"revocation_endpoint":                             {"url", true},
	"jwks_uri":                                        {"url", true},
	"service_documentation":                           {"url", false},
	"grant_types_supported":                           {"strings", true},
	"authorization_grant_profiles_supported":          {"strings", false},
	"response_types_supported":                        {"strings", true},
	"token_endpoint_auth_methods_supported":           {"strings", true},
	"introspection_endpoint_auth_methods_supported":   {"strings", true},
	"revocation_endpoint_auth_methods_supported":      {"strings", true},
	"subject_types_supported":                         {"strings", true},
	"id_token_signing_alg_values_supported":           {"strings", false},
	"claims_supported":                                {"strings", false},
	"tls_client_certificate_bound_access_tokens":      {"bool", false},
	"authorization_details_types_supported":           {"strings", false},
	"jwt_svid_audiences":                              {"strings", false},
	"deferred_token_response_supported":               {"bool", false},
	"revocation_endpoint_token_type_values_supported": {"strings", false},
	"backchannel_authentication_endpoint":             {"url", false},
	"backchannel_token_delivery_modes_supported":      {"strings", false},
	"backchannel_user_code_parameter_supported":       {"bool", false},
	"code_challenge_methods_supported":                {"strings", false},
	"protected_resources":                             {"strings", false},
	"pages":                                           {"url", false},
	"dpop_signing_alg_values_supported":               {"strings", false},
	"status_list_aggregation_endpoint":                {"url", false},
}

// checkMetadata returns the faults of a discovery document as a strict reader sees them.
func checkMetadata(document []byte, issuer string) (faults []string) {
	fault := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	if err := walkJSON(document); err != nil {
		fault("not one JSON object without repeated keys and nulls: %v", err)
	}
	var fields map[string]any
	if err := json.NewDecoder(bytes.NewReader(document)).Decode(&fields); err != nil {
		return append(faults, err.Error())
	}
	for name, rule := range metadataFields {
		if _, ok := fields[name]; rule.required && !ok {
			fault("%s is missing", name)
		}
	}
	for name, value := range fields {
		rule, known := metadataFields[name]
		if !known {
			fault("%s is not a known field", name)
			continue
		}
		if problem := checkMetadataValue(rule.kind, value); problem != "" {
			fault("%s %s", name, problem)
		}
	}
	if fields["issuer"] != issuer {
		fault("the issuer is %v, want %s", fields["issuer"], issuer)
	}
	return faults
}

func checkMetadataValue(kind string, value any) string {
	switch kind {
	case "url":
		text, _ := value.(string)
		if u, err := url.Parse(text); err != nil || u.Scheme != "https" || u.Host == "" || u.Fragment != "" {
			return fmt.Sprintf("is not an https URL without a fragment: %v", value)
		}
	case "strings":
		list, _ := value.([]any)
		if len(list) == 0 {
			return "is not a list with at least one element (RFC 8414, section 3.2)"
		}
		var seen []string
		for _, element := range list {
			text, _ := element.(string)
			if text == "" || slices.Contains(seen, text) {
				return fmt.Sprintf("has an element that is repeated or not a string: %v", element)
			}
			seen = append(seen, text)
		}
	case "bool":
		if _, ok := value.(bool); !ok {
			return "is not a boolean"
		}
	}
	return ""
}

func TestMetadataSatisfiesStrictReader(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Config){
		"minimal": nil,
		"full": func(cfg *Config) {
			withPeople(cfg)
			cfg.Algorithms = func() []string { return []string{"ES256", "RS256"} }
			cfg.SVIDAudiences = []string{"https://broker.acme.test"}
		},
		"no keys and no audiences": func(cfg *Config) {
			cfg.Algorithms, cfg.SVIDAudiences = func() []string { return []string{} }, []string{}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, change)
			documents := map[string]string{}
			for _, path := range []string{"/.well-known/openid-configuration", "/.well-known/oauth-authorization-server"} {
				documents[path] = w.get(t, path)
				for _, fault := range checkMetadata([]byte(documents[path]), "https://broker.acme.test") {
					t.Errorf("%s: %s", path, fault)
				}
			}
			if documents["/.well-known/openid-configuration"] != documents["/.well-known/oauth-authorization-server"] {
				t.Errorf("the documents differ: %v", documents)
			}
		})
	}
}

// The strict reader can fail.
func TestStrictReaderRefuses(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	good := w.get(t, "/.well-known/openid-configuration")
	for name, change := range map[string][2]string{
		"empty list":   {`["id_token"]`, `[]`},
		"null":         {`["id_token"]`, `null`},
		"not a list":   {`["id_token"]`, `"id_token"`},
		"empty text":   {`["id_token"]`, `[""]`},
		"wrong issuer": {`"issuer":"https://broker.acme.test"`, `"issuer":"https://other.test"`},
		"plain HTTP":   {`"jwks_uri":"https:`, `"jwks_uri":"http:`},
		"missing":      {`"subject_types_supported":["public"],`, ``},
		"unknown":      {`{"issuer"`, `{"foo":1,"issuer"`},
		"repeated":     {`{"issuer"`, `{"issuer":"https://broker.acme.test","issuer"`},
	} {
		bad := strings.Replace(good, change[0], change[1], 1)
		if bad == good || len(checkMetadata([]byte(bad), "https://broker.acme.test")) == 0 {
			t.Errorf("%s: got no fault in %s", name, bad)
		}
	}
}
