package mcp

import (
	"context"
	"errors"
	"reflect"
	"time"

	"github.com/google/jsonschema-go/jsonschema"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"accessbroker.internal/api"
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

// add adds a tool whose call is run.
func add[In any, Out result](s *Server, t *sdk.Tool, run func(context.Context, *call, In) (Out, error)) {
	s.ours[t.Name] = true
	t.InputSchema, t.OutputSchema = schemaOf[In](), schemaOf[Out]()
	sdk.AddTool(s.sdk, t, func(ctx context.Context, req *sdk.CallToolRequest, in In) (*sdk.CallToolResult, Out, error) {
		var none Out
		caller, err := begin(ctx)
		if err != nil {
			return nil, none, faultOf(err)
		}
		c := &call{session: caller, s: s, req: req, now: time.Now()}
		if err := c.checkState(); err != nil {
			return nil, none, err // an error of the protocol
		}
		out, err := run(ctx, c, in)
		var more *inputNeeded
		switch {
		case errors.As(err, &more):
			return more.result, none, nil
		case err != nil:
			return nil, none, faultOf(err)
		}
		return &sdk.CallToolResult{Content: []sdk.Content{&sdk.TextContent{Text: out.words()}}}, out, nil
	})
}

// schemaOf returns the JSON schema of a type, as encoding/json writes it.
func schemaOf[T any]() *jsonschema.Schema {
	t := reflect.TypeFor[T]()
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	schema, err := jsonschema.ForType(t, &jsonschema.ForOptions{TypeSchemas: map[reflect.Type]*jsonschema.Schema{
		reflect.TypeFor[api.Duration](): {Type: "string"},
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
