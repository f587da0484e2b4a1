//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/mcp"
)

// runs calls run_command of "broker mcp" with flags, once for each list of arguments.
func (w *execWorld) runs(flags []string, calls ...map[string]any) (results []commandResult) {
	w.t.Helper()
	var in bytes.Buffer
	for i, arguments := range calls {
		in.Write(runCommandLine(w.t, i, arguments))
	}
	cmd := w.command(append([]string{"mcp"}, flags...)...)
	cmd.Stdin = &in
	out, err := cmd.Output()
	if err != nil {
		w.t.Fatalf("%v: %s", err, out)
	}
	results = make([]commandResult, len(calls))
	for line := range strings.Lines(string(out)) {
		var message struct {
			ID     int
			Result commandResult
			Error  json.RawMessage
		}
		if err := json.Unmarshal([]byte(line), &message); err != nil {
			w.t.Fatal(err)
		}
		message.Result.protocol = string(message.Error)
		results[message.ID] = message.Result
	}
	return results
}

// runCommandLine returns a call of run_command as a line.
func runCommandLine(t *testing.T, id int, arguments map[string]any) []byte {
	t.Helper()
	line, err := json.Marshal(map[string]any{"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": map[string]any{
		"name": "run_command", "arguments": arguments,
		"_meta": map[string]any{"io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": map[string]any{}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return append(line, '\n')
}

type commandResult struct {
	IsError           bool
	Content           []struct{ Text string }
	StructuredContent mcp.Run
	protocol          string
}

func (r *commandResult) text() string {
	if len(r.Content) == 0 {
		return r.protocol
	}
	return r.Content[0].Text
}

func readTickets(argv ...string) map[string]any {
	return map[string]any{"command": argv, "entitlement": "tickets-api", "scopes": []string{"tickets:read"}, "reason": "a test"}
}

// A command finds the credential in a file, in an environment of its own. What it prints
// of the credential is removed, in any form, and the credential is returned.
func TestRunCommand(t *testing.T) {
	w := newExecWorld(t)
	t.Setenv("A_SECRET_OF_THE_RUNTIME", "s3cret")
	t.Setenv("PASSED_ON", "yes")
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte(`#!/bin/sh
test -s "$BROKER_CREDENTIAL_FILE" || exit 9
env
cat "$BROKER_CREDENTIAL_FILE" "$BROKER_HEADER_FILE"
base64 -w0 "$BROKER_CREDENTIAL_FILE" >&2
pwd; ls -A; cat; echo "$1"
exit 7
`), 0o700); err != nil {
		t.Fatal(err)
	}
	arguments := readTickets(script, "$HOME;`id`")
	arguments["stdin"] = "from stdin"
	r := w.runs([]string{"--allow-command", script, "--command-env", "PASSED_ON"}, arguments)[0]
	got := r.StructuredContent
	if r.IsError || got.ExitCode != 7 || !got.Scrubbed || !strings.Contains(got.Stdout, "****") || !strings.Contains(got.Stderr, "****") {
		t.Fatalf("got %s", r.text())
	}
	for _, want := range []string{"PASSED_ON=yes", "from stdin", "$HOME;`id`\n", "BROKER_LEASE=lse_"} {
		if !strings.Contains(got.Stdout, want) {
			t.Errorf("the output has no %q: %s", want, got.Stdout)
		}
	}
	for _, gone := range []string{"eyJ", "s3cret", "SPIFFE_ENDPOINT_SOCKET", "BROKER_URL"} {
		if strings.Contains(r.text()+got.Stdout+got.Stderr, gone) {
			t.Errorf("the output has %q: %s", gone, got.Stdout)
		}
	}
	w.wantReturned(1)
}

// A command can read the files of another one that runs at the same time: both belong to
// the same user. Its output has nothing of the other credential.
func TestRunCommandRemovesOtherCredentials(t *testing.T) {
	w := newExecWorld(t)
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte(`#!/bin/sh
cd "$1" && echo "$BROKER_CREDENTIAL_FILE" > "path.$2"
meet() { n=0; until test -e "$1.1" -a -e "$1.2"; do n=$((n+1)); test $n -lt 600 || exit 9; sleep 0.05; done; }
meet path
for n in 1 2; do cat "$(cat path.$n)" && echo; done
touch "read.$2" && meet read
`), 0o700); err != nil {
		t.Fatal(err)
	}
	meeting := t.TempDir()
	for i, r := range w.runs([]string{"--allow-command", script}, readTickets(script, meeting, "1"), readTickets(script, meeting, "2")) {
		got := r.StructuredContent
		if r.IsError || got.ExitCode != 0 || !got.Scrubbed || strings.Count(got.Stdout, "\n") != 2 {
			t.Fatalf("command %d: got %s", i+1, r.text())
		}
		if strings.Contains(got.Stdout, "eyJ") { // a token begins so
			t.Errorf("command %d printed a credential: %s", i+1, got.Stdout)
		}
	}
	w.wantReturned(2)
}

// A command does not outlive a server that is killed, as clients do with servers that do
// not end at once.
func TestRunCommandEndsWithItsServer(t *testing.T) {
	w := newExecWorld(t)
	script, running := filepath.Join(t.TempDir(), "script"), filepath.Join(t.TempDir(), "pid")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho $$ > \"$1.new\" && mv \"$1.new\" \"$1\"\nexec sleep 600\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := w.command("mcp", "--allow-command", script)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_, err = in.Write(runCommandLine(t, 1, readTickets(script, running)))
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	waitUntil(t, "the start of the command", func() bool {
		text, err := os.ReadFile(running)
		if err != nil {
			return false
		}
		_, err = fmt.Sscan(string(text), &pid)
		return err == nil
	})
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	waitUntil(t, "the end of the command", func() bool { return startOf(pid) == "" })
}

// waitUntil polls until a condition is true.
func waitUntil(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waiting for %s: not within 30s", what)
		}
	}
}

// Only what the operator allows runs, and a refusal costs no credential.
func TestRunCommandAllowList(t *testing.T) {
	w := newExecWorld(t)
	echo, err := exec.LookPath("echo")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Symlink(echo, filepath.Join(dir, "echo")); err != nil {
		t.Fatal(err)
	}
	flags := []string{"--allow-command", "echo fetch *", "--allow-command", "printf exact"}
	refused := [][]string{
		{"echo"}, {"echo", "push"}, {"echo", "-c", "fetch"}, {"echo", "fetch2"}, {"printf"}, {"printf", "exact", "more"}, {"sh", "-c", "echo fetch"},
		{"./echo", "fetch"}, {filepath.Join(dir, "echo"), "fetch"}, {echo + "/../echo", "fetch"}, {" echo", "fetch"}, {"echo fetch"}, {"ECHO", "fetch"}, {"*"}, {""}, {},
	}
	var calls []map[string]any
	for _, argv := range refused {
		calls = append(calls, readTickets(argv...))
	}
	for i, r := range w.runs(flags, calls...) {
		if !r.IsError {
			t.Errorf("%q: got %s", refused[i], r.text())
		}
		if len(refused[i]) > 0 && refused[i][0] != "" && (!strings.HasPrefix(r.text(), "command_not_allowed: ") || !strings.Contains(r.text(), "\necho fetch *\nprintf exact")) {
			t.Errorf("%q: got %s", refused[i], r.text())
		}
	}
	w.wantReturned(0)
	allowed := [][]string{{"echo", "fetch"}, {"echo", "fetch", "--all"}, {echo, "fetch"}, {"printf", "exact"}}
	calls = nil
	for _, argv := range allowed {
		calls = append(calls, readTickets(argv...))
	}
	for i, r := range w.runs(flags, calls...) {
		if want := strings.Join(allowed[i][1:], " "); r.IsError || strings.TrimSpace(r.StructuredContent.Stdout) != want {
			t.Errorf("%q: got %s, want %q", allowed[i], r.text(), want)
		}
	}
	w.wantReturned(len(allowed))
	// Without the flag, there is no such tool.
	if r := w.runs(nil, readTickets("echo", "fetch"))[0]; r.protocol == "" || !strings.Contains(r.protocol, "run_command") {
		t.Errorf("got %s", r.text())
	}
}

// A command that takes too long ends with all that it has started, and output beyond the
// bound is read and left out.
func TestRunCommandIsBounded(t *testing.T) {
	w := newExecWorld(t)
	slow := readTickets("sh", "-c", "sleep 1000 & echo $!; wait")
	slow["timeout_seconds"] = 2
	r := w.runs([]string{"--allow-command", "sh -c *"}, slow, readTickets("sh", "-c", `printf x; yes ä | head -c 300000; cat "$BROKER_CREDENTIAL_FILE"`))
	got := r[0].StructuredContent
	if r[0].IsError || !got.TimedOut {
		t.Fatalf("got %s", r[0].text())
	}
	if stat := startOf(atoi(t, strings.TrimSpace(got.Stdout))); stat != "" {
		t.Errorf("the child of the command is alive: %s", got.Stdout)
	}
	if got = r[1].StructuredContent; !got.Truncated || len(got.Stdout) < maxOutput-4 || len(got.Stdout) > maxOutput || strings.ContainsRune(got.Stdout, '\uFFFD') {
		t.Errorf("got %d bytes, truncated: %v", len(got.Stdout), got.Truncated)
	}
	w.wantReturned(2)
}

func atoi(t *testing.T, text string) (n int) {
	t.Helper()
	if _, err := fmt.Sscan(text, &n); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	return n
}

// The credential that needs an approval is that of a request, by its handle.
func TestRunCommandWaitsForApproval(t *testing.T) {
	w := newExecWorld(t)
	arguments := readTickets("echo", "done")
	arguments["scopes"] = []string{"tickets:close"}
	r := w.runs([]string{"--allow-command", "echo"}, arguments)[0]
	if !r.IsError || !strings.HasPrefix(r.text(), "pending: The command was not run") || !strings.Contains(r.text(), "call run_command again with this handle") {
		t.Errorf("got %s", r.text())
	}
	none := map[string]any{"command": []string{"echo"}, "handle": "req_0658sg2b7puh5u0qv0s9k8g6nk"}
	if r := w.runs([]string{"--allow-command", "echo"}, none)[0]; !r.IsError || !strings.HasPrefix(r.text(), "not_found") {
		t.Errorf("a handle of another caller: got %s", r.text())
	}
}
