package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/modelcontextprotocol/go-sdk/mcp"

	"accessbroker.internal/e2e/servers"
)

// A nodeClient has the clients of npm for the Model Context Protocol, and the Node.js that
// they need.
type nodeClient struct{ node, dir, inspector string }

func newNodeClient(t *testing.T) *nodeClient {
	t.Helper()
	modules, err := servers.Modules("mcp")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir() // Node.js resolves imports from the program's folder
	text, err := os.ReadFile(filepath.Join("clients", "mcp", "agent.mjs"))
	if err == nil {
		err = errors.Join(os.WriteFile(filepath.Join(dir, "agent.mjs"), text, 0o600), os.Symlink(modules, filepath.Join(dir, "node_modules")))
	}
	if err != nil {
		t.Fatal(err)
	}
	architecture := map[string]string{"amd64": "x64", "arm64": "arm64"}[runtime.GOARCH]
	return &nodeClient{
		node: filepath.Join(modules, "node-linux-"+architecture, "bin", "node"), dir: dir,
		inspector: filepath.Join(modules, "@modelcontextprotocol", "inspector", "clients", "launcher", "build", "index.js"),
	}
}

// A scripted is an agent of clients/mcp that runs.
type scripted struct {
	t     *testing.T
	cmd   *exec.Cmd
	steps *bufio.Scanner
	goOn  io.Writer
	errs  *bytes.Buffer
}

// A step is what the agent reports.
type step struct {
	Step, Handle, Status, Collect, Text, Caller, Server string
	Tools, Entitlements, Returned                       []string
	Forms                                               int
}

// agent starts a scripted agent. args follow the mode of the protocol.
func (n *nodeClient) agent(t *testing.T, env []string, args ...string) *scripted {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	cmd := exec.CommandContext(ctx, n.node, append([]string{filepath.Join(n.dir, "agent.mjs")}, args...)...)
	cmd.Env = append(os.Environ(), env...)
	s := &scripted{t: t, cmd: cmd, errs: new(bytes.Buffer)}
	cmd.Stderr = s.errs
	out, err := cmd.StdoutPipe()
	in, err2 := cmd.StdinPipe()
	if err = errors.Join(err, err2, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); _ = cmd.Wait() })
	s.steps, s.goOn = bufio.NewScanner(out), in
	s.steps.Buffer(nil, 1<<20)
	return s
}

// next returns the agent's next step, which must be one of a name.
func (s *scripted) next(name string) (got step) {
	s.t.Helper()
	if !s.steps.Scan() {
		s.t.Fatalf("the agent ended before %q:\n%s", name, s.errs)
	}
	if err := json.Unmarshal(s.steps.Bytes(), &got); err != nil || got.Step != name {
		s.t.Fatalf("got %s, %v, want step %q", s.steps.Text(), err, name)
	}
	return got
}

// loop follows an agent to the end. approve decides on its request, and collect is its
// runtime, which returns the credential's lease.
func (s *scripted) loop(approve func(handle string), collect func(handle string) string) {
	s.t.Helper()
	tools := []string{"access_status", "list_access", "release_access", "request_access"}
	got := s.next("connected")
	got.Tools = slices.DeleteFunc(got.Tools, func(name string) bool { return name == "call_api" }) // of "broker mcp" alone
	if !slices.Equal(got.Tools, tools) || got.Server != "access-broker" {
		s.t.Errorf("got %+v", got)
	}
	if got := s.next("listed"); got.Caller != "spiffe://acme.test/agent/triage" || !slices.Contains(got.Entitlements, "tickets-api") {
		s.t.Errorf("got %+v", got)
	}
	asked := s.next("requested")
	if asked.Status != "pending" {
		s.t.Fatalf("got %+v", asked)
	}
	approve(asked.Handle)
	decided := s.next("decided")
	if decided.Status != "approved" || decided.Collect != "broker collect "+asked.Handle || strings.Contains(decided.Text, "eyJ") {
		s.t.Fatalf("got %+v", decided)
	}
	if secret := collect(asked.Handle); !strings.Contains(secret, "eyJ") {
		s.t.Errorf("the runtime collected %q", secret)
	}
	_, _ = fmt.Fprintln(s.goOn)
	if got := s.next("released"); !slices.Equal(got.Returned, []string{"revoked"}) {
		s.t.Errorf("got %+v", got)
	}
}

// TestMCPClients lets independent clients use "broker mcp" on standard streams.
func TestMCPClients(t *testing.T) {
	t.Parallel() // it mostly waits
	d, n := startDev(t), newNodeClient(t)
	ben := d.logIn(t, "ben")
	for _, mode := range []string{"legacy", "auto"} {
		t.Run("client of npm, "+mode, func(t *testing.T) {
			s := n.agent(t, nil, mode, "tickets-api", "tickets:close", "stdio", "sh", "-c", `. "$0"; exec broker mcp`, filepath.Join(d.dir, "env"))
			s.loop(func(id string) { d.run(t, ben, "approve", "--yes", id) }, func(id string) string { return d.run(t, t.TempDir(), "collect", id, "-o", "json") })
		})
	}
	t.Run("program of docs/agents.md", func(t *testing.T) {
		program := []string{installed(t, "python3"), filepath.Join("..", "docs", "examples", "mcp_agent.py")}
		out, err := d.program(t, program, func() { d.decide(t, ben, "approve", "--yes") })
		if err != nil || !strings.Contains(out, "\nlse_") || !strings.Contains(out, "none of its credentials works any more") || strings.Contains(out, "eyJ") {
			t.Errorf("got %q, %v", out, err)
		}
	})
	t.Run("calls of docs/agents.md", func(t *testing.T) {
		program := []string{installed(t, "python3"), filepath.Join("..", "docs", "examples", "call_api.py")}
		out, err := d.program(t, program, func() { d.decide(t, ben, "approve", "--yes") })
		if err != nil || !strings.Contains(out, "The till is stuck again") || !strings.Contains(out, "Bearer ****") || !strings.Contains(out, "pending: The call was not made") ||
			!strings.Contains(out, `"status":"escalated"`) || strings.Contains(out, "eyJ") {
			t.Errorf("got %q, %v", out, err)
		}
	})
	t.Run("client of the Go SDK", func(t *testing.T) {
		testGoClient(t, d, ben, &mcp.CommandTransport{Command: d.command(t.Context(), t.TempDir(), "broker", "mcp")})
	})
	t.Run("over HTTP", func(t *testing.T) { testMCPOverHTTP(t, d, n, ben) })
	t.Run("inspector", func(t *testing.T) { testInspector(t, d, n, ben) })
}

// testMCPOverHTTP lets the clients use /mcp: with a token for that endpoint, and with an
// X.509-SVID.
func testMCPOverHTTP(t *testing.T, d *devBroker, n *nodeClient, ben string) {
	token := strings.TrimSpace(d.run(t, t.TempDir(), "request", "mcp", "--scope", "access:list,access:request,access:release", "-o", "file"))
	endpoint := d.url + "/mcp"
	for _, mode := range []string{"legacy", "auto"} {
		t.Run("client of npm, "+mode, func(t *testing.T) {
			env := []string{"TOKEN=" + token, "NODE_EXTRA_CA_CERTS=" + d.bundle(), "WHY=over HTTP, " + mode}
			s := n.agent(t, env, mode, "tickets-api", "tickets:close", "http", endpoint)
			s.loop(func(id string) { d.run(t, ben, "approve", "--yes", id) }, func(id string) string { return d.run(t, t.TempDir(), "collect", id, "-o", "json") })
		})
	}
	t.Run("client of the Go SDK", func(t *testing.T) {
		dir := t.TempDir()
		d.run(t, t.TempDir(), "svid", "x509", "--write", dir)
		svid, err := tls.LoadX509KeyPair(filepath.Join(dir, "svid.0.pem"), filepath.Join(dir, "svid.0.key"))
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(d.bundle())
		if err != nil {
			t.Fatal(err)
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(text)
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{svid}}}}
		testGoClient(t, d, ben, &mcp.StreamableClientTransport{Endpoint: endpoint, HTTPClient: client, DisableStandaloneSSE: true})
	})
	t.Run("inspector", func(t *testing.T) {
		for _, era := range []string{"legacy", "modern"} {
			cmd := exec.CommandContext(t.Context(), n.node, n.inspector, "--cli", endpoint, "--transport", "http", "--header", "Authorization: Bearer "+token,
				"--protocol-era", era, "--format", "json", "--quiet", "--method", "tools/call", "--tool-name", "list_access")
			cmd.Env = append(os.Environ(), "HOME="+t.TempDir(), "MCP_INSPECTOR_SECRET_STORE=memory", "NODE_EXTRA_CA_CERTS="+d.bundle())
			if out := printed(t, cmd); !strings.Contains(string(out), "tickets-api") {
				t.Errorf("%s: got %s", era, out)
			}
		}
	})
}

func testGoClient(t *testing.T, d *devBroker, ben string, transport mcp.Transport) {
	s, err := mcp.NewClient(&mcp.Implementation{Name: "e2e", Version: "1"}, nil).Connect(t.Context(), transport, nil)
	if err != nil {
		t.Fatal(err)
	}
	call := func(name string, arguments map[string]any) map[string]any {
		t.Helper()
		res, err := s.CallTool(t.Context(), &mcp.CallToolParams{Name: name, Arguments: arguments})
		if err != nil || res.IsError {
			t.Fatalf("%s: %v %v", name, err, res)
		}
		return res.StructuredContent.(map[string]any)
	}
	id := call("request_access", map[string]any{"entitlement": "tickets-api", "scopes": []string{"tickets:close"}, "justification": "from Go, in " + t.Name()})["handle"].(string)
	d.run(t, ben, "approve", "--yes", id)
	if got := call("access_status", map[string]any{"handle": id, "wait_seconds": 30}); got["status"] != "approved" {
		t.Errorf("got %v", got)
	}
	if err := s.Close(); err != nil {
		t.Errorf("closing: %v", err)
	}
}

// testInspector runs the inspector's command line with the configuration that "broker mcp
// --print-config" prints. In the newest revision, it follows the request as a task.
func testInspector(t *testing.T, d *devBroker, n *nodeClient, ben string) {
	config := filepath.Join(t.TempDir(), "mcp.json")
	if err := os.WriteFile(config, []byte(d.run(t, t.TempDir(), "mcp", "--print-config")), 0o600); err != nil {
		t.Fatal(err)
	}
	inspect := func(args ...string) *exec.Cmd {
		all := append([]string{n.inspector, "--cli", "--config", config, "--server", "access-broker", "--format", "json", "--quiet"}, args...)
		cmd := exec.CommandContext(t.Context(), n.node, all...)
		cmd.Env = append(os.Environ(), "HOME="+t.TempDir(), "MCP_INSPECTOR_SECRET_STORE=memory")
		return cmd
	}
	for _, era := range []string{"legacy", "modern"} {
		// --strict also rejects schemas that some clients don't understand.
		list := printed(t, inspect("--protocol-era", era, "--method", "tools/list", "--strict"))
		if strings.Count(string(list), `"outputSchema"`) != 5 {
			t.Errorf("%s: got %s", era, list)
		}
	}
	ask := `{"entitlement":"tickets-api","scopes":["tickets:close"],"justification":"inspected"}`
	decided := make(chan error, 1)
	var out []byte
	go func() {
		var err error
		out, err = inspect("--protocol-era", "modern", "--method", "tools/call", "--tool-name", "request_access", "--tool-args-json", ask).Output()
		decided <- err
	}()
	d.decide(t, ben, "approve", "--yes")
	if err := <-decided; err != nil || !strings.Contains(string(out), `"status":"approved"`) || strings.Contains(string(out), `"isError":true`) {
		t.Errorf("the task: %v %s", err, out)
	}
}

// TestAgentLoopsWithPasskey lets a scripted agent over MCP and the Python program over the
// HTTP API request what a person approves in Chromium, with a passkey.
func TestAgentLoopsWithPasskey(t *testing.T) {
	t.Parallel()                  // it mostly waits
	const wait = 10 * time.Second // until a new passkey counts, instead of a day
	bin := filepath.Join(t.TempDir(), "broker")
	if err := buildBroker(bin, "-ldflags", "-X accessbroker.internal/internal/service.passkeyWait="+wait.String()); err != nil {
		t.Fatal(err)
	}
	o, n := startOffice(t, spireOf(t), bin), newNodeClient(t)
	ben := o.browser(t)
	o.logIn(t, ben, "ben", "/ui/")
	o.enrolPasskey(t, ben)
	approve := func(id string) {
		eventually(t, "ben's signed approval of "+id, 2*time.Minute, func() error {
			do(t, ben, "approving", chromedp.Navigate(o.web+"/ui/requests/"+id), chromedp.WaitVisible(css(`button[value="approve"]`)),
				chromedp.Click(css(`button[value="approve"]`)), chromedp.WaitVisible(css(`.done, .failed`)))
			text, err := chromedp.Run(ben, chromedp.Text(css(`.done p, .failed`)))
			if err == nil && text != "You approved this request." {
				err = fmt.Errorf("the page reads %q", text)
			}
			return err
		})
	}
	env := append(o.spire.environment(), "BROKER_URL=https://"+o.listen)
	n.agent(t, env, "auto", "tickets-api", "tickets:purge", "stdio", o.agent, "mcp").
		loop(approve, func(id string) string { return o.collect(t, id, 0) })

	program := o.purging(t)
	path := t.TempDir() // the attested program, by the name that the example uses
	if err := os.Symlink(o.agent, filepath.Join(path, "broker")); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), installed(t, "python3"), program)
	cmd.Env = append(os.Environ(), append(o.spire.environment(), "PATH="+path+":"+os.Getenv("PATH"), "BROKER_URL="+o.web, "BROKER_CA="+filepath.Join(o.dir, "web-ca.pem"))...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	id := ""
	eventually(t, "the program's request", time.Minute, func() error {
		list, _, _ := o.agentCLI("requests", "--status", "pending")
		if id = pendingID.FindString(list); id == "" {
			return fmt.Errorf("no request is pending: %s", out.String())
		}
		return nil
	})
	approve(id)
	if err := cmd.Wait(); err != nil || !strings.HasPrefix(out.String(), "bearer credential until ") {
		t.Errorf("the program: %v\n%s", err, &out)
	}
	o.approvers(t) // after their wait, which is shorter than a day
	o.knowApprovers()
}

// purging returns the Python program of docs/agents.md for a scope whose approval is signed.
func (o *office) purging(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "docs", "examples", "first_credential.py"))
	if err != nil {
		t.Fatal(err)
	}
	changed := strings.ReplaceAll(string(text), "tickets:close", "tickets:purge")
	if changed == string(text) {
		t.Fatal("the program does not request tickets:close")
	}
	o.write(t, "purge.py", changed)
	return filepath.Join(o.dir, "purge.py")
}
