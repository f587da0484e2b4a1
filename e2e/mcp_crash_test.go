package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"testing"
)

// A rawAgent speaks the protocol itself, because no SDK has the tasks extension yet.
type rawAgent struct {
	t       *testing.T
	in      io.Writer
	answers *json.Decoder
	id      int
}

// mcpAgent starts "broker mcp" and returns an agent that declares the tasks extension.
func (d *devBroker) mcpAgent(t *testing.T) *rawAgent {
	t.Helper()
	cmd := d.command(t.Context(), t.TempDir(), "broker", "mcp")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	return &rawAgent{t: t, in: in, answers: json.NewDecoder(bufio.NewReader(out))}
}

// call calls a method and returns its result. params begin the object of parameters.
func (a *rawAgent) call(method, params string) map[string]any {
	a.t.Helper()
	a.id++
	_, err := fmt.Fprintf(a.in, `{"jsonrpc":"2.0","id":%d,"method":%q,"params":{%s,"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28",`+
		`"io.modelcontextprotocol/clientCapabilities":{"extensions":{"io.modelcontextprotocol/tasks":{}}}}}}`+"\n", a.id, method, params)
	if err != nil {
		a.t.Fatal(err)
	}
	var answer struct {
		ID            int
		Result, Error map[string]any
	}
	if err := a.answers.Decode(&answer); err != nil || answer.ID != a.id || answer.Error != nil {
		a.t.Fatalf("%s: got %+v, %v", method, answer, err)
	}
	return answer.Result
}

// TestTaskSurvivesACrash kills the broker while an agent's task waits for a person. The
// agent and a second process of it, which has never seen the task, get its result.
func TestTaskSurvivesACrash(t *testing.T) {
	t.Parallel() // it mostly waits
	d := startDev(t)
	ben, agent := d.logIn(t, "ben"), d.mcpAgent(t)
	created := agent.call("tools/call", `"name":"request_access","arguments":{"entitlement":"tickets-api","scopes":["tickets:close"],"justification":"before the crash"}`)
	id, _ := created["taskId"].(string)
	if created["resultType"] != "task" || created["status"] != "working" || id == "" {
		t.Fatalf("got %v", created)
	}
	d.restart(t)
	d.run(t, ben, "approve", "--yes", id)
	for name, a := range map[string]*rawAgent{"the same process": agent, "another process": d.mcpAgent(t)} {
		task := a.call("tasks/get", fmt.Sprintf(`"taskId":%q`, id))
		result, _ := task["result"].(map[string]any)
		access, _ := result["structuredContent"].(map[string]any)
		if task["status"] != "completed" || result["isError"] == true || access["handle"] != id || access["status"] != "approved" {
			t.Errorf("%s: got %v", name, task)
		}
	}
}
