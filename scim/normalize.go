package scim

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"accessbroker.internal/internal/strictjson"
)

// maxDepth is how deep the JSON of a request may be nested.
const maxDepth = 12

// parseObject parses the body of a request.
func parseObject(body []byte) (map[string]any, error) {
	if err := strictjson.Check(body, maxDepth); err != nil {
		return nil, bad(typeInvalidSyntax, "the body %v", err)
	}
	var value any
	if err := json.Unmarshal(body, &value); err != nil {
		return nil, bad(typeInvalidSyntax, "the body is not valid JSON")
	}
	object, ok := value.(map[string]any)
	if !ok {
		return nil, bad(typeInvalidSyntax, "the body is not a JSON object")
	}
	return object, nil
}

// member returns the member of an object with a name in any case. It refuses two
// spellings of the name.
func member(object map[string]any, name string) (value any, found bool, err error) {
	for key, v := range object {
		if !strings.EqualFold(key, name) {
			continue
		}
		if found {
			return nil, false, bad(typeInvalidSyntax, "%s appears twice", name)
		}
		value, found = v, true
	}
	return value, found, nil
}

// checkSchemas refuses an object whose schemas do not name the expected one.
func checkSchemas(object map[string]any, urn string) error {
	value, _, err := member(object, "schemas")
	if err != nil {
		return err
	}
	list, _ := value.([]any)
	if !slices.ContainsFunc(list, func(item any) bool { s, _ := item.(string); return strings.EqualFold(s, urn) }) {
		return bad(typeInvalidSyntax, "schemas must list %s", urn)
	}
	return nil
}

// document returns a client's representation of a resource, without what only the broker
// writes and what the schemas do not have.
func (t *resourceType) document(object map[string]any) (Document, error) {
	if err := checkSchemas(object, t.core.id); err != nil {
		return nil, err
	}
	d, err := t.root.pick(object)
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(object)) {
		s, rest := t.cutURN(name)
		if s == nil || s == t.core || rest != "" {
			continue
		}
		if d[s.id] != nil {
			return nil, bad(typeInvalidSyntax, "%s appears twice", s.id)
		}
		part, ok := object[name].(map[string]any)
		if !ok {
			return nil, bad(typeInvalidValue, "%s is an object", s.id)
		}
		more, err := s.attributes.pick(part)
		if err != nil {
			return nil, err
		}
		d[s.id] = more
	}
	return d, t.check(d)
}

// check tidies a document and checks what holds for it as a whole.
func (t *resourceType) check(d Document) error {
	d.tidy()
	for _, a := range t.root {
		if a.required && d[a.name] == nil {
			return bad(typeInvalidValue, "%s is required", a.name)
		}
		if list, ok := d[a.name].([]any); ok && primaries(list) > 1 {
			return bad(typeInvalidValue, "%s has more than one primary value", a.name)
		}
	}
	for _, name := range []string{"userName", "displayName", "externalId"} {
		if s, _ := d[name].(string); strings.ContainsAny(s, "\r\n\t") || s != strings.TrimSpace(s) {
			return bad(typeInvalidValue, "%s must be one line without white space around it", name)
		}
	}
	if encoded, err := json.Marshal(d); err != nil || len(encoded) > maxDocument {
		return bad(typeInvalidValue, "the resource is larger than %d bytes", maxDocument)
	}
	return nil
}

func primaries(list []any) (n int) {
	for _, item := range list {
		if d, ok := item.(Document); ok && d["primary"] == true {
			n++
		}
	}
	return n
}

// Decode returns a document from the JSON that Encode made.
func Decode(encoded []byte) (Document, error) {
	var object map[string]any
	if err := json.Unmarshal(encoded, &object); err != nil {
		return nil, err
	}
	return documentOf(object), nil
}

// Encode returns the document as JSON, for the store.
func (d Document) Encode() []byte {
	encoded, err := json.Marshal(d)
	if err != nil {
		panic("scim: a document has only values that JSON has")
	}
	return encoded
}

func documentOf(object map[string]any) Document {
	d := make(Document, len(object))
	for name, v := range object {
		d[name] = storedValue(v)
	}
	return d
}

func storedValue(v any) any {
	switch v := v.(type) {
	case map[string]any:
		return documentOf(v)
	case []any:
		for i, item := range v {
			v[i] = storedValue(item)
		}
	}
	return v
}
