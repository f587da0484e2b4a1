package mcp

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
)

// The SDK has no part of the tasks extension (SEP-2663, final), so this file builds it on
// the SDK's hooks: methods of its own, and a middleware that answers tools/call with a task.

// tasksExtension is the identifier of the extension.
const tasksExtension = "io.modelcontextprotocol/tasks"

// tasksSince is the first revision of the protocol that has the extension.
const tasksSince = "2026-07-28"

// States of a task.
const (
	TaskWorking       = "working"
	TaskInputRequired = "input_required"
	TaskCompleted     = "completed"
	TaskCancelled     = "cancelled"
	TaskFailed        = "failed"
)

// A Task is the state of a call that is not complete yet. A task of request_access is the
// row of its request, and its id is the request's: it has no state of its own.
type Task struct {
	ID             string              `json:"taskId"`
	Status         string              `json:"status"`
	Message        string              `json:"statusMessage,omitempty"`
	CreatedAt      time.Time           `json:"createdAt"`
	UpdatedAt      time.Time           `json:"lastUpdatedAt"`
	TTL            *int64              `json:"ttlMs"` // milliseconds; nil: unlimited
	PollIntervalMs int64               `json:"pollIntervalMs,omitempty"`
	InputRequests  sdk.InputRequestMap `json:"inputRequests,omitempty"` // of TaskInputRequired
	Result         *TaskResult         `json:"result,omitempty"`        // of TaskCompleted
	Error          *jsonrpc.Error      `json:"error,omitempty"`         // of TaskFailed
}

// A TaskResult is the result of the call that started a task.
type TaskResult struct {
	ResultType        string         `json:"resultType"` // complete
	Content           []sdk.Content  `json:"content"`
	StructuredContent any            `json:"structuredContent,omitempty"`
	IsError           bool           `json:"isError,omitempty"`
	Meta              map[string]any `json:"_meta,omitempty"`
}

// Tasks are tasks of other tools than request_access. An unknown id, or one of another
// caller, is ErrUnknownTask.
type Tasks interface {
	Get(ctx context.Context, id string) (*Task, error)
	Update(ctx context.Context, id string, answers sdk.InputResponseMap) error
	Cancel(ctx context.Context, id string) error
}

// ErrUnknownTask means that the caller has no such task.
var ErrUnknownTask = &jsonrpc.Error{Code: jsonrpc.CodeInvalidParams, Message: "unknown task: use the taskId of a task of yours"}

// A start carries the task that a tool has started out of the call of the tool.
type start struct{ task *Task }

type startKey struct{}

// StartTask answers the present call of a tool with a task instead of its result. It
// reports whether the client has the extension; if not, the result is the answer.
func StartTask(ctx context.Context, req *sdk.CallToolRequest, t *Task) bool {
	slot, ok := ctx.Value(startKey{}).(*start)
	if !ok || req.ProtocolVersion() < tasksSince || !declares(req.ClientCapabilities()) {
		return false
	}
	slot.task = t
	return true
}

func declares(client *sdk.ClientCapabilities) bool {
	if client == nil {
		return false
	}
	_, ok := client.Extensions[tasksExtension]
	return ok
}

type taskResult struct {
	sdk.ResultBase
	ResultType string `json:"resultType"`
	Task
}

type acknowledged struct {
	sdk.ResultBase
	ResultType string `json:"resultType"`
}

func createTask(t *Task) *taskResult {
	return &taskResult{ResultType: "task", Task: Task{
		ID: t.ID, Status: t.Status, Message: t.Message, CreatedAt: t.CreatedAt, UpdatedAt: t.UpdatedAt, TTL: t.TTL, PollIntervalMs: t.PollIntervalMs,
	}}
}

type taskParams struct {
	sdk.ParamsBase
	TaskID         string                     `json:"taskId"`
	InputResponses map[string]json.RawMessage `json:"inputResponses,omitempty"`
}

// answers returns the responses that have a known form. A client may send others, to
// questions that the task does not ask (SEP-2663).
func (p *taskParams) answers() sdk.InputResponseMap {
	known := sdk.InputResponseMap{}
	for key, response := range p.InputResponses {
		text, err := json.Marshal(map[string]json.RawMessage{key: response})
		var one sdk.InputResponseMap
		if err == nil && json.Unmarshal(text, &one) == nil {
			known[key] = one[key]
		}
	}
	return known
}

// addTasks adds the methods of the extension.
func (s *Server) addTasks() {
	methods := map[string]func(context.Context, *taskParams) (sdk.Result, error){
		"tasks/get": s.getTask, "tasks/update": s.updateTask, "tasks/cancel": s.cancelTask,
	}
	for name, run := range methods {
		err := sdk.AddReceivingCustomMethod(s.sdk, name, func(ctx context.Context, _ *sdk.ServerSession, p *taskParams) (sdk.Result, error) {
			if err := requireTasks(p); err != nil {
				return nil, err
			}
			return run(ctx, p)
		})
		if err != nil {
			panic(err) // the SDK has a method of this name by now
		}
	}
}

// requireTasks refuses a call of a client that has not declared the extension in it.
func requireTasks(p *taskParams) error {
	if p == nil {
		return ErrUnknownTask
	}
	version, _ := p.Meta[sdk.MetaKeyProtocolVersion].(string)
	client, _ := p.Meta[sdk.MetaKeyClientCapabilities].(map[string]any)
	extensions, _ := client["extensions"].(map[string]any)
	if _, declared := extensions[tasksExtension]; declared && version >= tasksSince {
		return nil
	}
	return &jsonrpc.Error{
		Code: sdk.CodeMissingRequiredClientCapabilities, Message: "this method needs the extension " + tasksExtension,
		Data: json.RawMessage(`{"requiredCapabilities":{"extensions":{"` + tasksExtension + `":{}}}}`),
	}
}

// A poll waits for the end of the task, at most taskWait, which is shorter than the time after
// which common HTTP clients give up. So tasks that wait for people cost what long polls do.
// Polls of a task younger than taskYoung answer at once. A client waits between polls: for
// taskPause, or once polls wait, for slowPause, after which a cycle is as long as that of a
// long poll.
const (
	taskWait  = 25 * time.Second
	taskYoung = 2 * time.Second
	taskPause = time.Second
	slowPause = 5 * time.Second
)

func (s *Server) getTask(ctx context.Context, p *taskParams) (sdk.Result, error) {
	wait := time.Duration(0)
	if id, err := broker.ParseRequestID(p.TaskID); err == nil && time.Since(id.Time()) > taskYoung {
		wait = taskWait
	}
	c, r, err := taskRequest(ctx, p.TaskID, wait)
	if errors.Is(err, ErrUnknownTask) && s.tasks != nil {
		t, err := s.tasks.Get(ctx, p.TaskID)
		if err != nil {
			return nil, err
		}
		return &taskResult{ResultType: "complete", Task: *t}, nil
	}
	if err != nil {
		return nil, err
	}
	t := taskOf(r, nil)
	if wait > 0 {
		t.PollIntervalMs = slowPause.Milliseconds()
	}
	if t.Status == TaskCompleted {
		a, err := c.access(ctx, r)
		if err != nil {
			return nil, taskError(err)
		}
		t = taskOf(r, a)
	}
	return &taskResult{ResultType: "complete", Task: *t}, nil
}

// updateTask acknowledges answers. A task of request_access has no questions: what a form
// can ask is asked before the task exists.
func (s *Server) updateTask(ctx context.Context, p *taskParams) (sdk.Result, error) {
	_, _, err := taskRequest(ctx, p.TaskID, 0)
	if errors.Is(err, ErrUnknownTask) && s.tasks != nil {
		err = s.tasks.Update(ctx, p.TaskID, p.answers())
	}
	if err != nil {
		return nil, err
	}
	return &acknowledged{ResultType: "complete"}, nil
}

// cancelTask withdraws a pending request. A task that has ended stays as it is.
func (s *Server) cancelTask(ctx context.Context, p *taskParams) (sdk.Result, error) {
	c, r, err := taskRequest(ctx, p.TaskID, 0)
	switch {
	case errors.Is(err, ErrUnknownTask) && s.tasks != nil:
		err = s.tasks.Cancel(ctx, p.TaskID)
	case err == nil && r.Status == api.StatusPending:
		if _, err = c.Withdraw(ctx, r.ID); errors.Is(err, api.NotPending) || errors.Is(err, api.Lapsed) {
			err = nil // decided in the meantime
		}
		err = taskError(err)
	}
	if err != nil {
		return nil, err
	}
	return &acknowledged{ResultType: "complete"}, nil
}

// taskRequest returns the caller's request that is a task, once it is no longer pending or
// wait has passed.
func taskRequest(ctx context.Context, id string, wait time.Duration) (*session, *api.Request, error) {
	c, err := begin(ctx)
	if err != nil {
		return nil, nil, taskError(err)
	}
	if !isRequest(id) {
		return nil, nil, ErrUnknownTask
	}
	r, err := c.decided(ctx, id, wait)
	if err != nil {
		return nil, nil, taskError(err)
	}
	return c, r, nil
}

// taskError returns an error of the protocol for a method without a tool's result.
func taskError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errUnknownHandle):
		return ErrUnknownTask
	}
	f := faultOf(err)
	return &jsonrpc.Error{Code: jsonrpc.CodeInternalError, Message: string(f.Code) + ": " + f.What}
}

// taskOf returns a request as a task. a is its outcome, once it is complete.
func taskOf(r *api.Request, a *Access) *Task {
	t := &Task{ID: r.ID, CreatedAt: r.CreatedAt.UTC(), UpdatedAt: lastChange(r).UTC(), PollIntervalMs: taskPause.Milliseconds()}
	if a == nil {
		a = accessOf(r, time.Now())
	}
	t.Message = a.Summary
	switch r.Status {
	case api.StatusPending:
		t.Status = TaskWorking
		return t
	case api.StatusWithdrawn:
		t.Status = TaskCancelled
		return t
	}
	t.Status = TaskCompleted
	t.Result = &TaskResult{
		ResultType: "complete", Content: []sdk.Content{&sdk.TextContent{Text: a.words()}},
		StructuredContent: a, IsError: r.Status != api.StatusApproved,
	}
	return t
}

// lastChange returns the time of the last known change of a request.
func lastChange(r *api.Request) time.Time {
	last := r.CreatedAt
	for _, v := range r.Approvals.Given {
		if v.At.After(last) {
			last = v.At
		}
	}
	return last
}
