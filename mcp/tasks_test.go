package mcp_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"accessbroker.internal/api"
	"accessbroker.internal/mcp"
)

// A raw client speaks the protocol itself, because the SDK's client has no part of the
// tasks extension.
type raw struct {
	t    testing.TB
	conn sdk.Connection
	next int64
	caps object
	meta object
}

const tasks = "io.modelcontextprotocol/tasks"

// newRaw returns a client that declares the extension, or not.
func (w *world) newRaw(b mcp.Broker, cfg mcp.Config, extension bool) *raw {
	c := &raw{t: w.t, conn: serve(w.t, b, cfg), caps: object{}}
	if extension {
		c.caps["extensions"] = object{tasks: object{}}
	}
	return c
}

// do calls a method and returns the result or the error.
func (c *raw) do(method string, params object) (object, *jsonrpc.Error) {
	c.t.Helper()
	c.next++
	meta := object{"io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": c.caps}
	for k, v := range c.meta {
		meta[k] = v
	}
	sent := object{"_meta": meta}
	for k, v := range params {
		sent[k] = v
	}
	text, err := json.Marshal(sent)
	must(c.t, err)
	id, err := jsonrpc.MakeID(float64(c.next))
	must(c.t, err)
	must(c.t, c.conn.Write(c.t.Context(), &jsonrpc.Request{ID: id, Method: method, Params: text}))
	msg, err := c.conn.Read(c.t.Context())
	must(c.t, err)
	resp := msg.(*jsonrpc.Response)
	var fault *jsonrpc.Error
	if errors.As(resp.Error, &fault) {
		return nil, fault
	}
	must(c.t, resp.Error)
	var out object
	must(c.t, json.Unmarshal(resp.Result, &out))
	return out, nil
}

func (c *raw) must(method string, params object) object {
	c.t.Helper()
	out, err := c.do(method, params)
	if err != nil {
		c.t.Fatalf("%s: %v", method, err)
	}
	return out
}

func (c *raw) refused(code int64, method string, params object) *jsonrpc.Error {
	c.t.Helper()
	out, err := c.do(method, params)
	if err == nil || err.Code != code {
		c.t.Errorf("%s: got %v, %v, want code %d", method, out, err, code)
	}
	return err
}

func callOf(name string, arguments object) object {
	return object{"name": name, "arguments": arguments}
}

// Approval is a task, from its creation to its result.
func TestApprovalIsATask(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ben := w.person("ben")
	c := w.newRaw(w.client(triage), mcp.Config{}, true)
	for _, test := range []struct {
		name, decision, status string
		isError                bool
	}{{"approved", api.Approve, api.StatusApproved, false}, {"denied", api.Deny, api.StatusDenied, true}} {
		t.Run(test.name, func(t *testing.T) {
			created := c.must("tools/call", callOf("request_access", object{"entitlement": "tickets-api", "scopes": []string{"tickets:close"}, "justification": test.name}))
			id, _ := created["taskId"].(string)
			if created["resultType"] != "task" || created["status"] != "working" || !strings.HasPrefix(id, "req_") || created["content"] != nil {
				t.Fatalf("got %v", created)
			}
			if ttl, has := created["ttlMs"]; !has || ttl != nil {
				t.Errorf("got ttlMs %v", ttl)
			}
			if got := c.must("tasks/get", object{"taskId": id}); got["resultType"] != "complete" || got["status"] != "working" {
				t.Errorf("got %v", got)
			}
			if got := c.must("tasks/update", object{"taskId": id, "inputResponses": object{"x": object{"action": "accept", "content": object{"decision": "approve"}}}}); got["resultType"] != "complete" {
				t.Errorf("got %v", got)
			}
			w.decide(ben, id, test.decision, "as agreed")
			// Another process, without any state of the first, has the same task.
			got := w.newRaw(w.client(triage), mcp.Config{}, true).must("tasks/get", object{"taskId": id})
			result, _ := got["result"].(object)
			if got["status"] != "completed" || result["resultType"] != "complete" || (result["isError"] == true) != test.isError {
				t.Fatalf("got %v", got)
			}
			if access := result["structuredContent"].(object); access["status"] != test.status || access["handle"] != id {
				t.Errorf("got %v", access)
			}
			if got := c.must("tasks/cancel", object{"taskId": id}); got["resultType"] != "complete" {
				t.Errorf("got %v", got)
			}
			if got := c.must("tasks/get", object{"taskId": id}); got["status"] != "completed" {
				t.Errorf("a decided task was canceled: %v", got)
			}
		})
	}
}

// To cancel the task is to withdraw the request.
func TestCancelWithdraws(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	client := w.client(triage)
	c := w.newRaw(client, mcp.Config{}, true)
	id := c.must("tools/call", callOf("request_access", closeTickets))["taskId"].(string)
	c.must("tasks/cancel", object{"taskId": id})
	if got := c.must("tasks/get", object{"taskId": id}); got["status"] != "cancelled" {
		t.Errorf("got %v", got)
	}
	r, err := client.Request(t.Context(), id)
	must(t, err)
	if r.Status != api.StatusWithdrawn {
		t.Errorf("the request is %s", r.Status)
	}
}

// A client without the extension gets a handle, and the methods of tasks refuse it.
func TestWithoutTasks(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.newRaw(w.client(triage), mcp.Config{}, false)
	got := c.must("tools/call", callOf("request_access", closeTickets))
	id := got["structuredContent"].(object)["handle"]
	if got["resultType"] != "complete" || got["taskId"] != nil || id == "" {
		t.Fatalf("got %v", got)
	}
	for _, method := range []string{"tasks/get", "tasks/update", "tasks/cancel"} {
		if err := c.refused(-32021, method, object{"taskId": id}); err != nil && !strings.Contains(string(err.Data), tasks) {
			t.Errorf("%s: got %s", method, err.Data)
		}
	}
	c.refused(jsonrpc.CodeMethodNotFound, "tasks/result", object{"taskId": id})
	// An approval that policy does not require is no task.
	c.caps["extensions"] = object{tasks: object{}}
	read := c.must("tools/call", callOf("request_access", object{"entitlement": "tickets-api", "justification": "triage"}))
	if read["resultType"] != "complete" || read["structuredContent"].(object)["status"] != api.StatusApproved {
		t.Errorf("got %v", read)
	}
}

// The trace context of the metadata is in the record, and nothing else is.
func TestTraceReachesTheRecord(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.newRaw(w.client(triage), mcp.Config{}, true)
	dan := w.person("dan")
	for _, test := range []struct{ name, traceparent, want string }{
		{"valid", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
		{"line break", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\nAuthorization: Bearer x", ""},
		{"malformed", "approved", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			c.meta = object{"traceparent": test.traceparent}
			c.must("tools/call", callOf("request_access", object{"entitlement": "tickets-api", "scopes": []string{"tickets:close"}, "justification": test.name}))
			page, err := dan.SearchAudit(t.Context(), api.AuditFilter{Kind: "request", Limit: 1})
			must(t, err)
			var record struct{ Traceparent string }
			must(t, json.Unmarshal(page.Records[0].Record, &record))
			if record.Traceparent != test.want {
				t.Errorf("got %q in %s", record.Traceparent, page.Records[0].Record)
			}
		})
	}
}
