package mcp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/google/jsonschema-go/jsonschema"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"accessbroker.internal/api"
	"accessbroker.internal/internal/strictjson"
)

// A tool adds itself to a server. Its file has its description, its arguments and its
// result; the order of this list is not the order on the wire, which is by name.
var tools = []func(*Server){addListAccess, addRequestAccess, addAccessStatus, addReleaseAccess}

// A call is one call of a tool.
type call struct {
	*session
	s   *Server
	req *sdk.CallToolRequest
	now time.Time
}

// A result is what a tool returns: the structure, and the same in words.
type result interface{ words() string }

// tool describes a tool. Closed world: a tool reaches the broker alone.
func tool(name, title, description string, a sdk.ToolAnnotations) *sdk.Tool {
	closed := false
	a.Title, a.OpenWorldHint = title, &closed
	return &sdk.Tool{Name: name, Title: title, Description: description, Annotations: &a}
}

// add adds a tool whose call is run. It reads the arguments itself: the SDK would validate
// each result too, which costs more than the rest of a call, and its errors about
// arguments repeat them at any length.
func add[In any, Out result](s *Server, t *sdk.Tool, run func(context.Context, *call, In) (Out, error)) {
	input := schemaOf[In]()
	t.InputSchema, t.OutputSchema = input, schemaOf[Out]()
	handle := func(ctx context.Context, req *sdk.CallToolRequest) (*sdk.CallToolResult, error) {
		var in In
		if err := readArguments(req.Params.Arguments, input, &in); err != nil {
			return failed(err), nil
		}
		caller, err := begin(ctx)
		if err != nil {
			return failed(err), nil
		}
		c := &call{session: caller, s: s, req: req, now: time.Now()}
		if err := c.checkState(); err != nil {
			return nil, err // an error of the protocol
		}
		out, err := run(ctx, c, in)
		var more *inputNeeded
		switch {
		case errors.As(err, &more):
			return more.result, nil
		case err != nil:
			return failed(err), nil
		}
		return &sdk.CallToolResult{Content: []sdk.Content{&sdk.TextContent{Text: out.words()}}, StructuredContent: out}, nil
	}
	s.ours[t.Name] = handle
	s.sdk.AddTool(t, handle)
}

// maxArguments limits the nesting of arguments.
const maxArguments = 8

// readArguments reads arguments strictly: as an object with the properties of the schema
// and no others.
func readArguments(raw json.RawMessage, schema *jsonschema.Schema, into any) error {
	if len(raw) == 0 || string(raw) == "null" {
		raw = json.RawMessage("{}")
	}
	wrong := func(what string) error {
		return &fault{Code: api.InvalidRequest, What: what, Next: "Correct the arguments as the input schema of the tool says, then call again."}
	}
	members, err := strictjson.Object(raw, maxArguments)
	if err != nil {
		return wrong("The arguments are not a JSON object that every parser reads alike: the text " + err.Error() + ".")
	}
	for name := range members {
		if schema.Properties[name] == nil {
			return wrong(fmt.Sprintf("The tool has no argument %.60q.", quoted(name)))
		}
	}
	for _, name := range schema.Required {
		if members[name] == nil {
			return wrong("The argument " + name + " is missing.")
		}
	}
	var mistyped *json.UnmarshalTypeError
	if err := json.Unmarshal(raw, into); errors.As(err, &mistyped) {
		name, _, _ := strings.Cut(mistyped.Field, ".")
		return wrong("The argument " + quoted(name) + " has the wrong type.")
	} else if err != nil {
		return wrong("An argument has the wrong type.")
	}
	return nil
}

// schemaOf returns the JSON schema of a type, as encoding/json writes it.
func schemaOf[T any]() *jsonschema.Schema {
	t := reflect.TypeFor[T]()
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	schema, err := jsonschema.ForType(t, &jsonschema.ForOptions{TypeSchemas: map[reflect.Type]*jsonschema.Schema{
		reflect.TypeFor[api.Duration]():      {Type: "string"},
		reflect.TypeFor[detail]():            detailSchema(),
		reflect.TypeFor[jsonschema.Schema](): {Type: "object"},
	}})
	if err != nil {
		panic(err) // a type of this package without a schema: no tool works
	}
	oneType(schema)
	return schema
}

// oneType removes null from the types of a schema. Absent fields are absent, and some
// clients understand only schemas with one type.
func oneType(s *jsonschema.Schema) {
	if s == nil {
		return
	}
	if len(s.Types) == 2 && s.Types[0] == "null" {
		s.Type, s.Types = s.Types[1], nil
	}
	oneType(s.Items)
	oneType(s.AdditionalProperties)
	for _, property := range s.Properties {
		oneType(property)
	}
}

// duration parses the text of a duration; empty is zero.
func duration(name, text string) (api.Duration, error) {
	if text == "" {
		return 0, nil
	}
	var d api.Duration
	if err := d.UnmarshalText([]byte(text)); err != nil {
		return 0, &fault{Code: api.InvalidTTL, What: name + " is not a duration.", Next: `Write it as a number with a unit, such as "15m", or omit it.`}
	}
	return d, nil
}
