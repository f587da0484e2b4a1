package mcp_test

import (
	"encoding/json"
	"testing"

	"github.com/google/jsonschema-go/jsonschema"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"accessbroker.internal/api"
	"accessbroker.internal/mcp"
)

// Every result fits the outputSchema of its tool, which clients validate.
func TestResultsFitTheirSchemas(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	client := w.client(triage)
	s := connect(t, client, nil, mcp.Config{})
	list, err := s.ListTools(t.Context(), nil)
	must(t, err)
	schemas := map[string]*jsonschema.Resolved{}
	for _, tool := range list.Tools {
		text, err := json.Marshal(tool.OutputSchema)
		must(t, err)
		var schema jsonschema.Schema
		must(t, json.Unmarshal(text, &schema))
		schemas[tool.Name], err = schema.Resolve(nil)
		must(t, err)
		if tool.Annotations == nil || tool.Annotations.Title == "" || tool.Annotations.OpenWorldHint == nil {
			t.Errorf("%s has annotations %+v", tool.Name, tool.Annotations)
		}
		if reads := tool.Name == "list_access" || tool.Name == "access_status"; tool.Annotations.ReadOnlyHint != reads {
			t.Errorf("%s: readOnlyHint is %t", tool.Name, tool.Annotations.ReadOnlyHint)
		}
	}
	check := func(name string, arguments object) *sdk.CallToolResult {
		t.Helper()
		res := call(t, s, name, arguments)
		if res.IsError {
			t.Fatalf("%s: %s", name, textOf(res))
		}
		if err := schemas[name].Validate(res.StructuredContent); err != nil {
			t.Errorf("%s %v: %v in %v", name, arguments, err, res.StructuredContent)
		}
		return res
	}
	check("list_access", object{})
	check("list_access", object{"search": "nothing fits"})
	check("access_status", object{})
	asked := structured[mcp.Access](t, check("request_access", closeTickets))
	check("access_status", object{"handle": asked.Handle})
	w.decide(w.person("ben"), asked.Handle, api.Approve, "checked")
	credential, err := client.Collect(t.Context(), asked.Handle)
	must(t, err)
	check("access_status", object{"handle": credential.Lease})
	check("access_status", object{})
	check("release_access", object{"handle": credential.Lease})
	check("release_access", object{"handle": asked.Handle})
}
