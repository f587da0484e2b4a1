package server

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
)

// A content is a body of an operation in the document: of the request if status is
// empty, otherwise of a response.
type content struct {
	method, path, status string
	mediaType            string
	at                   string // the JSON pointer of the media type
	examples             map[string]any
}

func (c content) String() string {
	return strings.TrimSpace(c.method + " " + c.path + " " + c.status)
}

// contents returns the bodies of all operations, sorted.
func (s *spec) contents() (all []content) {
	s.t.Helper()
	for path, methods := range s.doc["paths"].(map[string]any) {
		for method, operation := range methods.(map[string]any) {
			at := "/paths/" + escape(path) + "/" + method
			one := content{method: strings.ToUpper(method), path: path}
			all = append(all, s.contentsAt(one, at+"/requestBody")...)
			for status := range operation.(map[string]any)["responses"].(map[string]any) {
				one.status = status
				all = append(all, s.contentsAt(one, at+"/responses/"+status)...)
			}
		}
	}
	slices.SortFunc(all, func(a, b content) int { return strings.Compare(a.String(), b.String()) })
	if len(all) < 100 {
		s.t.Fatalf("found only %d bodies in the document", len(all))
	}
	return all
}

func (s *spec) contentsAt(one content, at string) (found []content) {
	at = s.resolve(at)
	types, _ := s.at(at + "/content").(map[string]any)
	for mediaType := range types {
		one.mediaType, one.at = mediaType, at+"/content/"+escape(mediaType)
		one.examples = map[string]any{}
		named, _ := s.at(one.at + "/examples").(map[string]any)
		for name := range named {
			one.examples[name] = s.at(s.resolve(one.at+"/examples/"+name) + "/value")
		}
		found = append(found, one)
	}
	return found
}

// Each operation is described, has a client error, and has valid examples of its
// parameters, its body and each of its answers.
func TestEveryOperationHasExamples(t *testing.T) {
	t.Parallel()
	s := loadSpec(t)
	for path, methods := range s.doc["paths"].(map[string]any) {
		for method, value := range methods.(map[string]any) {
			name, operation := method+" "+path, value.(map[string]any)
			for _, key := range []string{"operationId", "summary", "description", "tags"} {
				if operation[key] == nil {
					t.Errorf("%s has no %s", name, key)
				}
			}
			if !slices.ContainsFunc(slices.Collect(maps.Keys(operation["responses"].(map[string]any))), func(status string) bool { return status[0] == '4' }) {
				t.Errorf("%s has no client error", name)
			}
			for _, at := range s.parametersOf("/paths/" + escape(path) + "/" + method) {
				if err := s.validate(at+"/schema", s.at(at+"/example")); err != nil || s.at(at+"/description") == nil {
					t.Errorf("%s: the parameter %s has no description or no valid example: %v", name, s.at(at+"/name"), err)
				}
			}
		}
	}
	for _, c := range s.contents() {
		if len(c.examples) == 0 {
			t.Errorf("%s has no example", c)
		}
		for name, value := range c.examples {
			if err := s.validate(c.at+"/schema", value); err != nil {
				t.Errorf("%s: the example %s: %v", c, name, err)
			}
			checkErrorExample(t, c, name, value)
		}
	}
}

// checkErrorExample compares an error with the table of errors.
func checkErrorExample(t *testing.T, c content, name string, value any) {
	t.Helper()
	object, _ := value.(map[string]any)
	code, _ := object["code"].(string)
	if code == "" || c.status == "" {
		return
	}
	i := slices.IndexFunc(errorTable, func(row errorRow) bool { return string(row.code()) == code })
	if i < 0 {
		t.Errorf("%s: the example %s has the unknown code %s", c, name, code)
		return
	}
	row := errorTable[i]
	if title, isProblem := object["title"]; isProblem && (title != row.title || fmt.Sprint(object["status"]) != strconv.Itoa(row.status)) {
		t.Errorf("%s: the example %s has the title %q and the status %s, want %q and %d", c, name, title, object["status"], row.title, row.status)
	}
	status := row.status
	if strings.HasPrefix(c.path, "/oauth2/") {
		status = row.oauthStatus()
	}
	if c.path == backchannelPath && row.oauth == "access_denied" {
		status = 403
	}
	if c.status != "default" && c.status != strconv.Itoa(status) {
		t.Errorf("%s: the example %s has the code %s, whose status is %d", c, name, code, status)
	}
}

// The broker understands every example of a request: it may refuse the example, because
// the rules of this test are others, but not as malformed.
func TestRequestExamplesAreUnderstood(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	sent := 0
	for _, c := range w.spec.contents() {
		if c.status != "" {
			continue
		}
		for name, value := range c.examples {
			sent++
			path := strings.NewReplacer("/requests/{id}", "/requests/"+exampleOf(w.spec, "RequestApproved", "id"), "/leases/{id}", "/leases/"+exampleOf(w.spec, "LeaseActive", "id")).Replace(c.path)
			req, err := http.NewRequestWithContext(t.Context(), c.method, w.url+path, strings.NewReader(encodeExample(t, c, value)))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", c.mediaType)
			req.Header.Set("Authorization", "Bearer "+exampleCaller(c.path))
			resp, err := w.spec.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			var answer struct{ Code string }
			_ = json.Unmarshal(w.body(resp), &answer)
			malformed := []string{broker.ErrInvalidRequest.Error(), broker.ErrUnauthenticated.Error(), errMediaType.Error(), errMethod.Error(), errGrantType.Error()}
			if slices.Contains(malformed, answer.Code) || resp.StatusCode >= 500 {
				t.Errorf("%s: got %s %s for the example %s", c, resp.Status, answer.Code, name)
			}
		}
	}
	if sent < 20 {
		t.Errorf("sent only %d examples", sent)
	}
}

// exampleCaller returns a caller who may call the path.
func exampleCaller(path string) string {
	switch {
	case strings.HasSuffix(path, "/approvals"), strings.HasSuffix(path, "/review"):
		return "login/ben"
	case path == "/v1/blocks", path == "/v1/revocations", strings.HasSuffix(path, "/abandon"):
		return operator
	}
	return agent
}

// exampleOf returns a member of an example.
func exampleOf(s *spec, name, member string) string {
	return s.at("/components/examples/" + name + "/value").(map[string]any)[member].(string)
}

func encodeExample(t *testing.T, c content, value any) string {
	t.Helper()
	if strings.HasSuffix(c.mediaType, "json") {
		text, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	form := url.Values{}
	for key, v := range value.(map[string]any) {
		form.Set(key, v.(string))
	}
	if form.Has("subject_token") {
		form.Set("subject_token", agent)
	}
	return form.Encode()
}

// A credential is a union by type: a secret fits exactly the type that it comes with.
func TestCredentialsAreAUnionByType(t *testing.T) {
	t.Parallel()
	s := loadSpec(t)
	const schema = "/components/schemas/Credential"
	mapping := s.at(schema + "/discriminator/mapping").(map[string]any)
	if members := s.at(schema + "/oneOf").([]any); len(members) != len(mapping) || len(mapping) != 7 {
		t.Fatalf("the union has %d members and %d types, want 7", len(members), len(mapping))
	}
	examples := map[string]map[string]any{}
	for name, example := range s.at("/components/examples").(map[string]any) {
		value, _ := example.(map[string]any)["value"].(map[string]any)
		if kind, ok := value["type"].(string); ok && strings.HasPrefix(name, "Credential") {
			examples[kind] = value
			member := strings.TrimPrefix(mapping[kind].(string), "#")
			if err := s.validate(member, value); err != nil {
				t.Errorf("%s is not a %s: %v", name, member, err)
			}
		}
	}
	if len(examples) != len(mapping) {
		t.Fatalf("got examples of %d types, want %d", len(examples), len(mapping))
	}
	token := map[string]bool{"bearer": true, "vault": true} // the secrets of both are a token
	for kind, example := range examples {
		for foreign, with := range examples {
			fits := kind == foreign || kind == "data" && foreign != api.TypeMembership || token[kind] && token[foreign]
			mixed := maps.Clone(example)
			for _, content := range []string{"secret", "membership"} { // a type has one of them
				if delete(mixed, content); with[content] != nil {
					mixed[content] = with[content]
				}
			}
			if err := s.validate(schema, mixed); (err == nil) != fits {
				t.Errorf("the type %s with the secret of %s: got %v, want valid %t", kind, foreign, err, fits)
			}
		}
		content := "secret"
		if kind == api.TypeMembership {
			content = "membership"
		}
		for _, member := range []string{"type", content, "lease", "expires_at", "receipt"} {
			without := maps.Clone(example)
			delete(without, member)
			if s.validate(schema, without) == nil {
				t.Errorf("a credential of type %s without %s is valid", kind, member)
			}
		}
		more := maps.Clone(example)
		more["password"] = "x"
		if s.validate(schema, more) == nil {
			t.Errorf("a credential of type %s with an unknown member is valid", kind)
		}
	}
	unknown := maps.Clone(examples["data"])
	unknown["type"] = "other"
	if s.validate(schema, unknown) == nil {
		t.Error("an unknown type is valid")
	}
}

// The served document names the broker's own URL, with its path.
func TestServedDocumentNamesItsServer(t *testing.T) {
	t.Parallel()
	for _, external := range []string{"https://broker.acme.test", "https://acme.test:8443/broker"} {
		w := newPublicWorld(t, func(cfg *Config) { cfg.ExternalURL = external })
		_, body := w.fetch("/openapi.json")
		var document struct{ Servers []struct{ URL string } }
		if err := json.Unmarshal(body, &document); err != nil {
			t.Fatal(err)
		}
		if len(document.Servers) != 1 || document.Servers[0].URL != external {
			t.Errorf("got the servers %+v, want %s", document.Servers, external)
		}
	}
}
