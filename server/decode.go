package server

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
	"accessbroker.internal/internal/strictjson"
)

const (
	maxBody  = 64 << 10 // bytes of a request
	maxDepth = 8        // of nested JSON values
	maxForm  = 96       // parameters of a form
)

// checkEncoding refuses a body with a Content-Encoding, which the broker would read as if
// it were plain (RFC 9110, section 8.4).
func checkEncoding(values []string) error {
	for _, value := range values {
		if value != "" && !strings.EqualFold(value, "identity") {
			return refuse(errMediaType, fmt.Sprintf("the Content-Encoding is %s: send the body without one", quote(value)))
		}
	}
	return nil
}

// checkMediaType checks that the Content-Type is the wanted media type. It ignores the
// type's parameters: neither JSON (RFC 8259, section 11) nor forms define any, and a
// common client library always declares ISO-8859-1 for forms. Every body is read as
// UTF-8, and a body in another encoding is refused when it is decoded.
func checkMediaType(contentType []string, want string) error {
	switch {
	case len(contentType) == 0 || contentType[0] == "":
		return refuse(errMediaType, "the Content-Type is missing: send "+want)
	case len(contentType) > 1:
		return refuse(errMediaType, "send one Content-Type")
	}
	got, _, err := mime.ParseMediaType(contentType[0])
	switch {
	case err != nil:
		return refuse(errMediaType, "the Content-Type is malformed: send "+want+" without parameters")
	case got != want:
		return refuse(errMediaType, fmt.Sprintf("the Content-Type is %s: send %s", quote(got), want))
	}
	return nil
}

// decodeJSON decodes exactly one JSON object into a struct. It is strict, so that two
// parsers never read the same bytes differently: it refuses unknown and duplicate
// keys (parsers take the first or the last), keys in another case (encoding/json
// ignores case), invalid UTF-8 (encoding/json replaces it), null, and trailing data.
func decodeJSON(body []byte, into any) error {
	if !utf8.Valid(body) {
		return refuse(broker.ErrInvalidRequest, "the body is not UTF-8")
	}
	if err := strictjson.Check(body, 4*maxDepth); errors.Is(err, strictjson.ErrText) || errors.Is(err, strictjson.ErrNumber) {
		return refuse(broker.ErrInvalidRequest, "the body "+err.Error())
	}
	if err := walkJSON(body); err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	return explainJSON(dec.Decode(into))
}

// walkJSON makes the checks that encoding/json does not make.
func walkJSON(body []byte) error {
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	if first, err := dec.Token(); err != nil || first != json.Delim('{') {
		return refuse(broker.ErrInvalidRequest, "the body is not a JSON object")
	}
	if err := walkObject(dec, 1); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return refuse(broker.ErrInvalidRequest, "the body continues after the JSON object")
	}
	return nil
}

func walkObject(dec *json.Decoder, depth int) error {
	seen := map[string]bool{}
	for dec.More() {
		token, err := dec.Token()
		if err != nil {
			return explainJSON(err)
		}
		key, _ := token.(string)
		if seen[key] {
			return refuse(broker.ErrInvalidRequest, fmt.Sprintf("%s is repeated", quote(key)))
		}
		if depth == 1 && !isFieldName(key) {
			return refuse(broker.ErrInvalidRequest, fmt.Sprintf("unknown field %s", quote(key)))
		}
		seen[key] = true
		if err := walkValue(dec, depth); err != nil {
			return err
		}
	}
	_, err := dec.Token()
	return explainJSON(err)
}

func walkValue(dec *json.Decoder, depth int) error {
	token, err := dec.Token()
	switch {
	case err != nil:
		return explainJSON(err)
	case token == nil:
		return refuse(broker.ErrInvalidRequest, "null is not accepted: omit the field")
	case depth == maxDepth:
		return refuse(broker.ErrInvalidRequest, "the body is nested too deeply")
	case token == json.Delim('{'):
		return walkObject(dec, depth+1)
	case token == json.Delim('['):
		for dec.More() {
			if err := walkValue(dec, depth+1); err != nil {
				return err
			}
		}
		_, err := dec.Token()
		return explainJSON(err)
	}
	return nil
}

// isFieldName reports whether a key has the form of an API field. encoding/json would
// match other cases too, even a Kelvin sign for "k" and a long s for "s".
func isFieldName(key string) bool {
	return strings.IndexFunc(key, func(r rune) bool {
		return r != '_' && (r < 'a' || r > 'z')
	}) < 0
}

// explainJSON converts a decoding error into a refusal. It quotes names, never values,
// because a value may be a misplaced secret.
func explainJSON(err error) error {
	var duration *api.DurationError
	var kind *json.UnmarshalTypeError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &duration):
		return refuse(broker.ErrInvalidTTL, duration.Error())
	case errors.As(err, &kind):
		return refuse(broker.ErrInvalidRequest, fmt.Sprintf("%s has the wrong type", quote(kind.Field)))
	}
	if field, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
		return refuse(broker.ErrInvalidRequest, "unknown field "+quote(strings.Trim(field, `"`)))
	}
	return refuse(broker.ErrInvalidRequest, "the body is not valid JSON")
}

// quote quotes a name that a client sent and truncates it.
func quote(name string) string {
	const longest = 64
	if len(name) > longest {
		name = name[:longest] + "…"
	}
	return fmt.Sprintf("%q", name)
}

// A form holds the parameters of a form or a query. parseForm drops parameters without
// a value, because they count as omitted (RFC 6749, section 3.2).
type form map[string][]string

// repeatable are the parameters that may be repeated (RFC 8693, section 2.1). Others
// must not be (RFC 6749, section 3.2).
var repeatable = []string{"audience", "resource"}

// parseForm parses an application/x-www-form-urlencoded body. It accepts unknown
// parameters, which endpoints must ignore (RFC 6749, section 3.2).
func parseForm(body []byte) (form, error) {
	if bytes.Count(body, []byte("&")) >= maxForm {
		return nil, refuse(broker.ErrInvalidRequest, fmt.Sprintf("more than %d parameters", maxForm))
	}
	values, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, refuse(broker.ErrInvalidRequest, "the body is not a valid form")
	}
	for name, list := range values {
		if len(list) > 1 && !slices.Contains(repeatable, name) {
			return nil, refuse(broker.ErrInvalidRequest, fmt.Sprintf("the parameter %s is repeated", quote(name)))
		}
		list = slices.DeleteFunc(list, func(s string) bool { return s == "" })
		for _, value := range list {
			if !utf8.ValidString(name) || !utf8.ValidString(value) {
				return nil, refuse(broker.ErrInvalidRequest, fmt.Sprintf("the parameter %s is not UTF-8", quote(name)))
			}
		}
		if len(list) == 0 {
			delete(values, name)
		} else {
			values[name] = list
		}
	}
	return form(values), nil
}

// get returns the value of a parameter that may not be repeated; empty if omitted.
func (f form) get(name string) string {
	if list := f[name]; len(list) > 0 {
		return list[0]
	}
	return ""
}

// parseQuery parses the query of a call on /v1. It refuses unknown and repeated
// parameters.
func parseQuery(raw string, known []string) (form, error) {
	values, err := url.ParseQuery(raw)
	if err != nil {
		return nil, refuse(broker.ErrInvalidRequest, "the query is not valid")
	}
	for name, list := range values {
		if !slices.Contains(known, name) {
			return nil, refuse(broker.ErrInvalidRequest, fmt.Sprintf("unknown query parameter %s", quote(name)))
		}
		if len(list) > 1 {
			return nil, refuse(broker.ErrInvalidRequest, fmt.Sprintf("the query parameter %s is repeated", quote(name)))
		}
	}
	return form(values), nil
}

func encodeBase64URL(raw []byte) string { return base64.RawURLEncoding.EncodeToString(raw) }

func decodeBase64URL(text string) ([]byte, error) {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err == nil && strings.ContainsAny(text, "\r\n") { // which the decoder skips
		err = errors.New("base64url has no line ends")
	}
	return raw, err
}
