package server

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// A spec is an http.RoundTripper that validates calls and answers against the OpenAPI
// document and records the operations that succeeded.
type spec struct {
	t        testing.TB
	compiler *jsonschema.Compiler
	doc      map[string]any
	lax      bool // validates only answers

	seen *seenOperations
}

type seenOperations struct {
	mu   sync.Mutex
	list []string
}

const specURL = "https://broker.test/openapi.json"

func loadSpec(t testing.TB) *spec {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(openAPIDocument))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource(specURL, doc); err != nil {
		t.Fatal(err)
	}
	return &spec{t: t, compiler: c, doc: doc.(map[string]any), seen: new(seenOperations)}
}

// answersOnly returns a copy of s for deliberately malformed calls.
func (s *spec) answersOnly() *spec {
	lax := *s
	lax.lax = true
	return &lax
}

func (s *spec) RoundTrip(req *http.Request) (*http.Response, error) {
	var body []byte
	if req.Body != nil {
		var err error
		if body, err = io.ReadAll(req.Body); err != nil {
			return nil, err
		}
		req.Body = io.NopCloser(bytes.NewReader(body))
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	_ = resp.Body.Close()
	resp.Body = io.NopCloser(bytes.NewReader(answer))
	s.check(req, body, resp, answer)
	return resp, nil
}

// ofEveryOperation are the client errors that the document describes once, as default:
// 405, 413, 415 and 421.
var ofEveryOperation = []int{
	http.StatusMethodNotAllowed, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusMisdirectedRequest,
}

func (s *spec) check(req *http.Request, body []byte, resp *http.Response, answer []byte) {
	s.t.Helper()
	at := "/paths/" + escape(s.path(req.URL.Path)) + "/" + strings.ToLower(req.Method)
	operation, _ := s.at(at).(map[string]any)
	if operation == nil {
		if !s.lax {
			s.t.Errorf("%s %s is not in the OpenAPI document", req.Method, req.URL.Path)
		}
		return
	}
	if !s.lax {
		s.checkCall(at, req, body)
	}
	status := fmt.Sprint(resp.StatusCode)
	if _, named := operation["responses"].(map[string]any)[status]; !named {
		status = "default"
		if resp.StatusCode < 500 && !slices.Contains(ofEveryOperation, resp.StatusCode) {
			s.t.Errorf("%s %s: status %d is not in the OpenAPI document: %s", req.Method, req.URL.Path, resp.StatusCode, answer)
		}
	} else if resp.StatusCode < 400 {
		s.seen.mu.Lock()
		s.seen.list = append(s.seen.list, operation["operationId"].(string))
		s.seen.mu.Unlock()
	}
	s.checkContent(at+"/responses/"+status, resp.Header.Get("Content-Type"), answer)
}

func (s *spec) checkCall(at string, req *http.Request, body []byte) {
	known := map[string]bool{}
	for _, name := range s.queryParameters(at) {
		known[name] = true
	}
	for name := range req.URL.Query() {
		if !known[name] {
			s.t.Errorf("%s: the query parameter %s is not in the OpenAPI document", at, name)
		}
	}
	if len(body) > 0 {
		s.checkContent(at+"/requestBody", req.Header.Get("Content-Type"), body)
	}
}

// checkContent validates a body by the schema of its media type.
func (s *spec) checkContent(at, contentType string, body []byte) {
	s.t.Helper()
	at = s.resolve(at)
	if s.at(at+"/content") == nil {
		if len(body) > 0 {
			s.t.Errorf("%s: got the body %s, want none", at, body)
		}
		return
	}
	mediaType, _, _ := mime.ParseMediaType(contentType)
	at += "/content/" + escape(mediaType) + "/schema"
	if err := s.validate(at, instance(mediaType, body)); err != nil {
		s.t.Errorf("%s: %s: %v", at, body, err)
	}
}

// validate validates a value by the schema at a JSON pointer.
func (s *spec) validate(at string, value any) error {
	s.seen.mu.Lock() // a compiler is not safe for concurrent use
	schema, err := s.compiler.Compile(specURL + "#" + at)
	s.seen.mu.Unlock()
	if err != nil {
		return fmt.Errorf("compiling %s: %w", at, err)
	}
	return schema.Validate(value)
}

func instance(mediaType string, body []byte) any {
	switch {
	case strings.HasSuffix(mediaType, "json"):
		v, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
		if err != nil {
			return fmt.Sprintf("not JSON: %v", err)
		}
		return v
	case mediaType == "application/x-www-form-urlencoded":
		values, _ := url.ParseQuery(string(body))
		object := map[string]any{}
		for name, list := range values {
			object[name] = list[0]
		}
		return object
	}
	return string(body)
}

// path returns the template that matches a path.
func (s *spec) path(path string) string {
	for template := range s.doc["paths"].(map[string]any) {
		pattern := regexp.MustCompile(`\\\{[a-z]+\\\}`).ReplaceAllString(regexp.QuoteMeta(template), `[^/]+`)
		if regexp.MustCompile("^" + pattern + "$").MatchString(path) {
			return template
		}
	}
	return path
}

// at returns the value at a JSON pointer.
func (s *spec) at(pointer string) any {
	var v any = s.doc
	for _, token := range strings.Split(pointer, "/")[1:] {
		token = strings.ReplaceAll(strings.ReplaceAll(token, "~1", "/"), "~0", "~")
		switch container := v.(type) {
		case map[string]any:
			v = container[token]
		case []any:
			i, err := strconv.Atoi(token)
			if err != nil || i < 0 || i >= len(container) {
				return nil
			}
			v = container[i]
		default:
			return nil
		}
	}
	return v
}

// escape escapes a name for use in a JSON pointer (RFC 6901, section 3).
func escape(name string) string {
	return strings.ReplaceAll(strings.ReplaceAll(name, "~", "~0"), "/", "~1")
}

func (s *spec) operations() (all []string) {
	for _, methods := range s.doc["paths"].(map[string]any) {
		for _, operation := range methods.(map[string]any) {
			all = append(all, operation.(map[string]any)["operationId"].(string))
		}
	}
	slices.Sort(all)
	return all
}

// The routes and the document must agree on paths, methods, authentication and query
// parameters.
func TestOpenAPIMatchesRoutes(t *testing.T) {
	t.Parallel()
	s := &Server{external: &url.URL{Scheme: "https", Host: "broker.test"}}
	spec := loadSpec(t)
	inDocument := map[string]bool{}
	for path, methods := range spec.doc["paths"].(map[string]any) {
		for method := range methods.(map[string]any) {
			inDocument[strings.ToUpper(method)+" "+path] = true
		}
	}
	for _, rt := range s.routes() {
		if rt.audience == UI {
			continue // for browsers
		}
		name := rt.method + " " + rt.path
		if !inDocument[name] {
			t.Errorf("%s is not in the document", name)
		}
		delete(inDocument, name)
		at := "/paths/" + escape(rt.path) + "/" + strings.ToLower(rt.method)
		security, documented := spec.at(at + "/security").([]any)
		if open := documented && len(security) == 0; open != rt.open {
			t.Errorf("%s: open is %t, and %t in the document", name, rt.open, open)
		}
		if got := spec.queryParameters(at); !slices.Equal(got, slices.Sorted(slices.Values(rt.query))) {
			t.Errorf("%s: the query parameters are %q, and %q in the document", name, rt.query, got)
		}
	}
	for name := range inDocument {
		t.Errorf("%s is in the document but has no route", name)
	}
}

func (s *spec) queryParameters(at string) (names []string) {
	for _, at := range s.parametersOf(at) {
		if s.at(at+"/in") == "query" {
			names = append(names, s.at(at+"/name").(string))
		}
	}
	slices.Sort(names)
	return names
}

// parametersOf returns the JSON pointers of an operation's parameters.
func (s *spec) parametersOf(at string) (pointers []string) {
	list, _ := s.at(at + "/parameters").([]any)
	for i := range list {
		pointers = append(pointers, s.resolve(at+"/parameters/"+strconv.Itoa(i)))
	}
	return pointers
}

// resolve returns the JSON pointer of what the value at a pointer is or refers to.
func (s *spec) resolve(at string) string {
	if ref, ok := s.at(at + "/$ref").(string); ok {
		return strings.TrimPrefix(ref, "#")
	}
	return at
}

func TestOpenAPISchemasCompile(t *testing.T) {
	t.Parallel()
	spec := loadSpec(t)
	for name := range spec.at("/components/schemas").(map[string]any) {
		if _, err := spec.compiler.Compile(specURL + "#/components/schemas/" + name); err != nil {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if !json.Valid(openAPIDocument) {
		t.Error("the document is not JSON")
	}
}
