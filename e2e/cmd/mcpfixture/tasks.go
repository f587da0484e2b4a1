//go:build conformance

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/google/jsonschema-go/jsonschema"
	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	"github.com/modelcontextprotocol/go-sdk/mcp"

	product "accessbroker.internal/mcp"
)

// jobs are the tasks of the fixture tools, in memory.
type jobs struct {
	mu   sync.Mutex
	last int
	list map[string]*job
}

type job struct {
	product.Task
	due     time.Time // zero: it waits for answers
	outcome *product.TaskResult
	failure *jsonrpc.Error
}

func (j *jobs) add(one *job) *product.Task {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.last++
	now := time.Now().UTC()
	ttl := time.Hour.Milliseconds()
	one.ID, one.CreatedAt, one.UpdatedAt, one.TTL, one.PollIntervalMs = fmt.Sprintf("job_%d", j.last), now, now, &ttl, 100
	one.Status = product.TaskWorking
	if one.InputRequests != nil {
		one.Status = product.TaskInputRequired
	}
	if j.list == nil {
		j.list = map[string]*job{}
	}
	j.list[one.ID] = one
	task := one.Task
	return &task
}

// of returns a task after what is due has happened to it.
func (j *jobs) of(id string) (*job, error) {
	one := j.list[id]
	if one == nil {
		return nil, product.ErrUnknownTask
	}
	if one.Status == product.TaskWorking && !one.due.IsZero() && !time.Now().Before(one.due) {
		one.Status, one.Result, one.Error = product.TaskCompleted, one.outcome, one.failure
		if one.failure != nil {
			one.Status = product.TaskFailed
		}
		one.UpdatedAt = time.Now().UTC()
	}
	return one, nil
}

func (j *jobs) Get(_ context.Context, id string) (*product.Task, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	one, err := j.of(id)
	if err != nil {
		return nil, err
	}
	task := one.Task
	task.InputRequests = maps.Clone(one.InputRequests)
	return &task, nil
}

func (j *jobs) Update(_ context.Context, id string, answers mcp.InputResponseMap) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	one, err := j.of(id)
	if err != nil {
		return err
	}
	for key := range answers {
		delete(one.InputRequests, key)
	}
	if one.Status == product.TaskInputRequired && len(one.InputRequests) == 0 {
		one.Status, one.InputRequests, one.due = product.TaskWorking, nil, time.Now()
	}
	return nil
}

func (j *jobs) Cancel(_ context.Context, id string) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	one, err := j.of(id)
	if err == nil && (one.Status == product.TaskWorking || one.Status == product.TaskInputRequired) {
		one.Status, one.InputRequests = product.TaskCancelled, nil
	}
	return err
}

func text(words string) *product.TaskResult {
	return &product.TaskResult{ResultType: "complete", Content: []mcp.Content{&mcp.TextContent{Text: words}}}
}

func question(words string) *mcp.ElicitParams {
	return &mcp.ElicitParams{Message: words, RequestedSchema: &jsonschema.Schema{
		Type: "object", Properties: map[string]*jsonschema.Schema{"name": {Type: "string"}, "confirm": {Type: "boolean"}},
	}}
}

// register adds the tools of the suite's scenarios of the tasks extension.
func (j *jobs) register(s *mcp.Server) {
	add := func(name string, start func(*mcp.CallToolRequest, map[string]any) (*job, *mcp.CallToolResult)) {
		s.AddTool(&mcp.Tool{Name: name, Description: "a fixture of the tasks extension", InputSchema: &jsonschema.Schema{Type: "object"}}, func(ctx context.Context, req *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
			var arguments map[string]any
			_ = json.Unmarshal(req.Params.Arguments, &arguments)
			one, result := start(req, arguments)
			if one == nil {
				return result, nil
			}
			if product.StartTask(ctx, req, j.add(one)) {
				return &mcp.CallToolResult{}, nil
			}
			if name == "failing_job" { // it is registered as a task that is required
				return nil, &jsonrpc.Error{
					Code: mcp.CodeMissingRequiredClientCapabilities, Message: "this tool needs the extension io.modelcontextprotocol/tasks",
					Data: json.RawMessage(`{"requiredCapabilities":{"extensions":{"io.modelcontextprotocol/tasks":{}}}}`),
				}
			}
			return &mcp.CallToolResult{Content: one.outcome.Content}, nil
		})
	}
	add("greet", func(_ *mcp.CallToolRequest, a map[string]any) (*job, *mcp.CallToolResult) {
		return nil, &mcp.CallToolResult{Content: text(fmt.Sprintf("Hello, %v!", a["name"])).Content}
	})
	add("slow_compute", func(_ *mcp.CallToolRequest, a map[string]any) (*job, *mcp.CallToolResult) {
		seconds, _ := a["seconds"].(float64)
		return &job{due: time.Now().Add(time.Duration(seconds * float64(time.Second))), outcome: text("computed")}, nil
	})
	add("failing_job", func(*mcp.CallToolRequest, map[string]any) (*job, *mcp.CallToolResult) {
		failed := text("the job failed")
		failed.IsError = true
		return &job{due: time.Now().Add(time.Second), outcome: failed}, nil
	})
	add("protocol_error_job", func(*mcp.CallToolRequest, map[string]any) (*job, *mcp.CallToolResult) {
		return &job{due: time.Now().Add(time.Second), failure: &jsonrpc.Error{Code: jsonrpc.CodeInternalError, Message: "the job broke"}}, nil
	})
	add("confirm_delete", func(*mcp.CallToolRequest, map[string]any) (*job, *mcp.CallToolResult) {
		return &job{Task: product.Task{InputRequests: mcp.InputRequestMap{"confirm": question("Delete the file?")}}, outcome: text("deleted")}, nil
	})
	add("multi_input", func(*mcp.CallToolRequest, map[string]any) (*job, *mcp.CallToolResult) {
		return &job{Task: product.Task{InputRequests: mcp.InputRequestMap{"first": question("First?"), "second": question("Second?")}}, outcome: text("both")}, nil
	})
	add("test_tool_with_task", func(req *mcp.CallToolRequest, _ map[string]any) (*job, *mcp.CallToolResult) {
		if len(req.Params.InputResponses) == 0 {
			return nil, &mcp.CallToolResult{InputRequests: mcp.InputRequestMap{"user_name": question("Your name?")}}
		}
		answer, _ := req.Params.InputResponses["user_name"].(*mcp.ElicitResult)
		name := ""
		if answer != nil {
			name, _ = answer.Content["name"].(string)
		}
		return &job{due: time.Now().Add(time.Second), outcome: text("Hello, " + name + "!")}, nil
	})
}
