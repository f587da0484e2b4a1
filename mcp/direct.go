package mcp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"accessbroker.internal/internal/strictjson"
)

// The SDK makes a session for every HTTP request, with goroutines of its own, and reads
// the message a dozen times: a call costs five times the work that it asks for. The calls
// of this package's tools and the polls of tasks are almost all calls, so those of the
// stateless revision take a direct way to the same functions. Whatever is not in its
// plainest form goes through the SDK, which answers it or states what is wrong.

// A directCall is a call in its plainest form.
type directCall struct {
	id           json.RawMessage
	method       string
	name, taskID string
	arguments    json.RawMessage
	meta         map[string]any
}

// readDirectly reads a call. It compares names of members exactly, as the gate in front
// does: what the gate has judged is what runs.
func readDirectly(body []byte) (c directCall, ok bool) {
	members, err := strictjson.Object(body, maxDepth)
	if err != nil {
		return c, false
	}
	params, err := strictjson.Object(members["params"], maxDepth)
	if err != nil || params["inputResponses"] != nil || params["requestState"] != nil {
		return c, false // a later round
	}
	if version, _ := strictjson.Text(members["jsonrpc"]); version != "2.0" || json.Unmarshal(params["_meta"], &c.meta) != nil {
		return c, false
	}
	c.id, c.arguments = members["id"], params["arguments"]
	c.method, _ = strictjson.Text(members["method"])
	c.name, _ = strictjson.Text(params["name"])
	c.taskID, _ = strictjson.Text(params["taskId"])
	return c, c.complete()
}

// complete reports whether a call has an id, and the metadata of its revision.
func (c *directCall) complete() bool {
	if len(c.id) == 0 || c.id[0] != '"' && (c.id[0] < '0' || c.id[0] > '9') {
		return false
	}
	if info, has := c.meta[sdk.MetaKeyClientInfo]; has {
		fields, _ := info.(map[string]any)
		_, hasName := fields["name"].(string)
		_, hasVersion := fields["version"].(string)
		if !hasName || !hasVersion {
			return false
		}
	}
	_, capable := c.meta[sdk.MetaKeyClientCapabilities].(map[string]any)
	return capable && c.meta[sdk.MetaKeyProtocolVersion] == stateless
}

// serveDirectly reports whether it has answered a call. If not, the request is unread.
func (s *Server) serveDirectly(w http.ResponseWriter, r *http.Request) bool {
	accept := r.Header.Get("Accept")
	if r.Method != http.MethodPost || r.Header.Get(versionHeader) != stateless || !strings.Contains(accept, "application/json") || !strings.Contains(accept, "text/event-stream") {
		return false
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil {
		return false // the SDK gets the same error
	}
	rest := r.Body
	r.Body = io.NopCloser(io.MultiReader(bytes.NewReader(body), rest))
	c, plain := readDirectly(body)
	if len(body) > maxBody || !plain {
		return false
	}
	run, req := s.directly(&c, r.Header)
	if run == nil {
		return false
	}
	res, err := s.receive(run)(r.Context(), c.method, req)
	s.writeDirectly(w, c.id, res, err)
	return true
}

// directly returns the function for a call, and its argument; nil for other calls.
func (s *Server) directly(c *directCall, header http.Header) (sdk.MethodHandler, sdk.Request) {
	extra := &sdk.RequestExtra{Header: header}
	switch c.method {
	case "tools/call":
		handle := s.ours[c.name]
		if handle == nil {
			return nil, nil
		}
		req := &sdk.CallToolRequest{Extra: extra, Params: &sdk.CallToolParamsRaw{Meta: c.meta, Name: c.name, Arguments: c.arguments}}
		return func(ctx context.Context, _ string, _ sdk.Request) (sdk.Result, error) {
			res, err := handle(ctx, req)
			if err != nil {
				return nil, err // not a nil result in an interface
			}
			return res, nil
		}, req
	case "tasks/get":
		p := &taskParams{ParamsBase: sdk.ParamsBase{Meta: c.meta}, TaskID: c.taskID}
		return func(ctx context.Context, _ string, _ sdk.Request) (sdk.Result, error) {
			if err := requireTasks(p); err != nil {
				return nil, err
			}
			return s.getTask(ctx, p)
		}, &sdk.ServerRequest[*taskParams]{Extra: extra, Params: p}
	}
	return nil, nil
}

// A directResult is the result of a tool, which is complete.
type directResult struct {
	sdk.ResultBase
	ResultType        string        `json:"resultType"`
	Content           []sdk.Content `json:"content"`
	StructuredContent any           `json:"structuredContent,omitempty"`
	IsError           bool          `json:"isError,omitempty"`
}

// writeDirectly answers a call, with the statuses that the revision wants for errors
// (Streamable HTTP, "Sending Messages to the Server").
func (s *Server) writeDirectly(w http.ResponseWriter, id json.RawMessage, res sdk.Result, err error) {
	answer := struct {
		Version string          `json:"jsonrpc"`
		ID      json.RawMessage `json:"id"`
		Result  any             `json:"result,omitempty"`
		Error   *jsonrpc.Error  `json:"error,omitempty"`
	}{Version: "2.0", ID: id}
	status := http.StatusOK
	if err != nil {
		if !errors.As(err, &answer.Error) {
			answer.Error = errFailed
		}
		switch answer.Error.Code {
		case jsonrpc.CodeInvalidParams, sdk.CodeMissingRequiredClientCapabilities:
			status = http.StatusBadRequest
		}
	} else {
		if r, ok := res.(*sdk.CallToolResult); ok {
			res = &directResult{ResultType: "complete", Content: r.Content, StructuredContent: r.StructuredContent, IsError: r.IsError}
		}
		res.SetMeta(map[string]any{sdk.MetaKeyServerInfo: s.info})
		answer.Result = res
	}
	text, err := json.Marshal(answer)
	if err != nil { // never: all types are ours
		s.log.Error("encoding an answer", "err", err)
		http.Error(w, http.StatusText(http.StatusInternalServerError), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(text) // the client may have gone
}
