package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"accessbroker.internal/e2e/servers"
)

// entitlementsOfUpstream are for calls to the upstream. Deleting needs approval.
const entitlementsOfUpstream = `
  upstream:
    issuer: tickets
    scopes: [up:use]
    default_scopes: [up:use]
    egress:
      inject: {as: bearer}
      allow:
        - {hosts: ["api.acme.test:%[1]d"], methods: [GET, HEAD, PUT, POST, PATCH], paths: ["/api/**", "/npm/**", /events], headers: [x-*, npm-*, pacote-*], addresses: [127.0.0.0/8, "::1"]}
        - {hosts: ["api.acme.test:%[1]d"], methods: [GET], paths: [/ws], websocket: true, addresses: [127.0.0.0/8, "::1"]}
      max_request: 1GiB
  upstream-git:
    issuer: tickets
    scopes: [up:git]
    default_scopes: [up:git]
    egress:
      inject: {as: bearer}
      allow:
        - {hosts: ["api.acme.test:%[1]d"], methods: [GET, POST], paths: ["/git/**"], headers: [git-protocol], addresses: [127.0.0.0/8, "::1"]}
  upstream-delete:
    issuer: tickets
    scopes: [up:delete]
    default_scopes: [up:delete]
    egress:
      inject: {as: bearer}
      allow:
        - {hosts: ["api.acme.test:%[1]d"], methods: [DELETE], paths: ["/api/**"], addresses: [127.0.0.0/8, "::1"]}
`

const upstreamPolicy = `
@id("workloads-use-the-upstream")
permit (principal in TrustDomain::"acme.test", action == Action::"request", resource)
unless { [Entitlement::"upstream-delete", Entitlement::"tickets-api", Entitlement::"tickets-escalate"].contains(resource) };

@id("agents-delete-with-approval")
@approval("1 of support")
permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource == Entitlement::"upstream-delete");
`

// A proxied is a broker, a server that its agent may call, and the proxy between them.
type proxied struct {
	*devBroker
	t    *testing.T
	up   *upstream
	home string // of the clients: no settings of the user's

	hosts string // /etc/hosts of the proxy and its clients
}

// startProxied starts them. more are further entitlements of the operator's file.
func startProxied(t *testing.T, more ...string) *proxied {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a name for the upstream needs a mount namespace, and that needs root")
	}
	p := &proxied{devBroker: startDev(t), t: t, up: startUpstream(t), home: t.TempDir()}
	file := filepath.Join(p.dir, "broker.yaml")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	edited := strings.Replace(string(text), "\nentitlements:\n", "\nentitlements:"+fmt.Sprintf(entitlementsOfUpstream+strings.Join(more, ""), p.up.port), 1)
	if err := errors.Join(os.WriteFile(file, []byte(edited), 0o600), os.WriteFile(filepath.Join(p.dir, "policies", "upstream.cedar"), []byte(upstreamPolicy), 0o600)); err != nil || edited == string(text) {
		t.Fatal("the operator's file has no entitlements", err)
	}
	p.hosts = filepath.Join(p.dir, "hosts")
	if err := os.WriteFile(p.hosts, []byte("127.0.0.1 localhost "+upstreamName+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.restart(t)
	return p
}

// url returns a URL of the server.
func (p *proxied) url(path string) string {
	return fmt.Sprintf("https://%s:%d%s", upstreamName, p.up.port, path)
}

// proxy returns "broker proxy" with flags and a command.
func (p *proxied) proxy(flags []string, command ...string) *exec.Cmd {
	args := append([]string{"broker", "proxy", "--upstream-ca", p.up.caFile, "--why", "a test"}, flags...)
	return p.inside(append(append(args, "--"), command...)...)
}

// inside returns a command in a mount namespace that knows the upstream's name.
func (p *proxied) inside(args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(p.t.Context(), 3*time.Minute)
	p.t.Cleanup(cancel)
	cmd := p.devBroker.command(ctx, p.home, append([]string{"unshare", "-m", "sh", "-c", `mount --bind "$0" /etc/hosts && exec "$@"`, p.hosts}, args...)...)
	cmd.Env = append(cmd.Env, "HOME="+p.home, "NO_PROXY=localhost,127.0.0.1", "no_proxy=*", "GITHUB_TOKEN=of-the-user", "GIT_TERMINAL_PROMPT=0", "npm_config_cache="+p.home, "npm_config_update_notifier=false")
	cmd.Dir = p.home
	return cmd
}

// run runs a command behind the proxy that must succeed, and returns its output.
func (p *proxied) run(flags []string, command ...string) string {
	p.t.Helper()
	out, errs, err := outputOf(p.proxy(flags, command...))
	p.up.check(p.t, out+errs)
	if err != nil {
		p.t.Fatalf("%s: %v\n%s%s", strings.Join(command, " "), err, out, errs)
	}
	return out
}

func outputOf(cmd *exec.Cmd) (stdout, stderr string, err error) {
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

func wantAll(t *testing.T, got string, wants ...string) {
	t.Helper()
	for _, want := range wants {
		if !strings.Contains(got, want) {
			t.Errorf("got %q, want %q in it", got, want)
		}
	}
}

// TestProxyClients runs clients, as they are, through "broker proxy". None of them has a
// credential, and none of them prints one, though the server repeats it.
func TestProxyClients(t *testing.T) {
	t.Parallel() // it mostly waits
	p := startProxied(t)
	on := func(name string, f func(t *testing.T, p *proxied)) {
		t.Run(name, func(t *testing.T) {
			q := *p
			q.t, q.home = t, t.TempDir()
			f(t, &q)
		})
	}
	on("curl", testProxyCurl)
	on("git", testProxyGit)
	on("npm", testProxyNpm)
	on("Go", testProxyGo)
	on("Python", testProxyPython)
	on("Node", testProxyNode)
	on("approval", testProxyApproval)
	on("end", testProxyEnd)
}

func testProxyCurl(t *testing.T, p *proxied) {
	for flag, proto := range map[string]string{"--http1.1": "HTTP/1.1", "--http2": "HTTP/2.0"} {
		out := p.run(nil, "curl", "-sS", "-i", flag, p.url("/api/x?y=1"))
		wantAll(t, out, `"uri":"/api/x?y=1"`, `"authorization":"Bearer ****`)
		if short := strings.TrimSuffix(proto, ".0"); !strings.HasPrefix(out, "HTTP/1.1 200 Connection established") || !strings.Contains(out, "\n"+short+" 200") {
			t.Errorf("%s: got %q", flag, out)
		}
	}
	big := filepath.Join(p.home, "big")
	if err := os.WriteFile(big, bytes.Repeat([]byte("0123456789abcdef"), 4<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	wantAll(t, p.run(nil, "curl", "-sS", "-T", big, p.url("/api/upload")), `"bytes":67108864`, `"method":"PUT"`)
	wantAll(t, p.run(nil, "curl", "-sS", "-H", "Expect: 100-continue", "-d", "@"+big, p.url("/api/upload")), `"bytes":67108864`)
	wantAll(t, p.run(nil, "curl", "-sS", "-L", p.url("/api/here")), `"uri":"/api/there"`)
	wantAll(t, p.run(nil, "curl", "-sSN", p.url("/events")), "data: 0 Bearer ***", "data: 2 Bearer ***")
	wantAll(t, p.run(nil, "curl", "-sS", "-H", "Authorization: Bearer of-the-child", p.url("/api/x")), `"authorization":"Bearer ****`)
	for name, test := range map[string]struct{ url, want string }{
		"redirect": {p.url("/api/away"), "127.0.0.1"}, "host": {"https://evil.test/", "No rule of your entitlements allows calls to evil.test:443"},
		"metadata": {"https://169.254.169.254/latest", "No rule"}, "plain": {"http://evil.test/", "No rule"},
		"path": {p.url("/admin"), "No rule allows this path with GET"}, "dots": {p.url("/api/%2e%2e/admin"), "dot"},
	} {
		out, errs, err := outputOf(p.proxy(nil, "curl", "-sS", "-L", "--path-as-is", "--fail-with-body", test.url))
		if err == nil {
			t.Errorf("%s: got %q", name, out)
		}
		wantAll(t, out+errs, test.want, "broker: ")
		p.up.check(t, out+errs)
	}
	for _, call := range p.up.calls {
		if strings.Contains(call, "stolen") || strings.Contains(call, "admin") {
			t.Errorf("the server got %s", call)
		}
	}
}

func testProxyGit(t *testing.T, p *proxied) {
	script := `set -e
git clone -q "$0" work 2>&1
cd work
git config user.name ana && git config user.email ana@acme.test
dd if=/dev/urandom of=big bs=1M count=3 2>/dev/null
git add big && git commit -q -m "first" && git push -q origin HEAD:main
cd .. && git clone -q "$0" again && cmp work/big again/big && echo same
env | grep -c of-the-user || true`
	wantAll(t, p.run([]string{"--entitlement", "upstream-git"}, "sh", "-c", script, p.url("/git/orders.git")), "same\n0\n")
}

func testProxyNpm(t *testing.T, p *proxied) {
	script := `set -e
npm install --no-audit --no-fund --registry "$0" hello >/dev/null
node -e 'console.log(require("hello"))'`
	wantAll(t, p.run(nil, "sh", "-c", script, p.url("/npm/")), "hello from the registry")
}

const goProgram = `package main

import ("fmt"; "io"; "net/http"; "os"; "strings")

func main() {
	r, err := http.NewRequest("PATCH", os.Args[1], strings.NewReader("body"))
	if err != nil { panic(err) }
	r.Header.Set("Authorization", "token "+os.Getenv("GH_TOKEN"))
	resp, err := http.DefaultClient.Do(r)
	if err != nil { panic(err) }
	text, err := io.ReadAll(resp.Body)
	if err != nil { panic(err) }
	fmt.Println(resp.Proto, string(text))
}
`

// A Go program with net/http, as gh is: it needs a token to call at all.
func testProxyGo(t *testing.T, p *proxied) {
	source := filepath.Join(p.home, "main.go")
	if err := os.WriteFile(source, []byte(goProgram), 0o600); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(p.home, "client")
	if out, err := exec.Command("go", "build", "-o", program, source).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	wantAll(t, p.run([]string{"--placeholder", "GH_TOKEN"}, program, p.url("/api/repos")), "HTTP/2.0", `"method":"PATCH"`, `"bytes":4`, `"authorization":"Bearer ****`)
}

func testProxyPython(t *testing.T, p *proxied) {
	python := installed(t, "python3")
	wantAll(t, p.run(nil, python, "-c", `import urllib.request, sys; print(urllib.request.urlopen(sys.argv[1]).read().decode())`, p.url("/api/urllib")), `"uri":"/api/urllib"`)
	strict := filepath.Join(p.home, "client.py")
	if err := os.WriteFile(strict, []byte("import urllib.request, os\nprint(urllib.request.urlopen(os.environ['TARGET']).read().decode())\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	wantAll(t, p.run(nil, "env", "TARGET="+p.url("/api/strict"), python, "-c", strictPython, strict), `"uri":"/api/strict"`)
	if exec.Command(python, "-c", "import requests").Run() == nil {
		wantAll(t, p.run(nil, python, "-c", `import requests, sys; print(requests.put(sys.argv[1], data=b"x"*1000).text)`, p.url("/api/requests")), `"bytes":1000`)
	}
}

const nodeClientScript = `
const base = process.argv[1];
const answer = await (await fetch(base + "/api/fetch", {method: "POST", body: "hello"})).text();
console.log(answer);
const socket = new WebSocket(base.replace("https", "wss") + "/ws");
socket.onerror = (e) => { console.log("failed", e.message); process.exit(1); };
socket.onopen = () => socket.send("over a websocket");
socket.onmessage = (e) => { console.log(e.data); socket.close(); };
`

// Node's own fetch and WebSocket.
func testProxyNode(t *testing.T, p *proxied) {
	modules, err := servers.Modules("mcp") // for its Node.js, whose fetch uses proxies
	if err != nil {
		t.Fatal(err)
	}
	nodes, err := filepath.Glob(filepath.Join(modules, "node-linux-*", "bin", "node"))
	if err != nil || len(nodes) != 1 {
		t.Fatal(nodes, err)
	}
	out := p.run(nil, nodes[0], "--input-type=module", "-e", nodeClientScript, p.url(""))
	wantAll(t, out, `"method":"POST"`, `"bytes":5`, "OVER A WEBSOCKET ****")
}

// A call that needs approval is refused at once with the id of its request. Once a person
// has approved it, the same call passes.
func testProxyApproval(t *testing.T, p *proxied) {
	ben := p.logIn(t, "ben")
	script := `curl -sS -X DELETE "$0"; echo asked > asked; while [ ! -e approved ]; do sleep 0.1; done; curl -sS -X DELETE "$0"`
	done := make(chan string, 1)
	go func() {
		out, errs, err := outputOf(p.proxy(nil, "sh", "-c", script, p.url("/api/item")))
		done <- fmt.Sprint(out, errs, err)
	}()
	eventually(t, "the refusal", time.Minute, func() error { _, err := os.Stat(filepath.Join(p.home, "asked")); return err })
	p.decide(t, ben, "approve", "--yes")
	if err := os.WriteFile(filepath.Join(p.home, "approved"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	out := <-done
	p.up.check(t, out)
	wantAll(t, out, "The call needs an approval, and request req_", "broker: waiting DELETE api.acme.test", `"method":"DELETE"`, "<nil>")
}

// At the end, all credentials are returned and the exit code is the command's; also after
// a signal.
func testProxyEnd(t *testing.T, p *proxied) {
	_, errs, err := outputOf(p.proxy(nil, "sh", "-c", `curl -sS "$0" >/dev/null; exit 42`, p.url("/api/x")))
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 42 {
		t.Errorf("got %v, want exit code 42", err)
	}
	wantAll(t, errs, "broker: proxy for ", "api.acme.test:", "broker: 1 call, 0 refused, 0 waiting; 1 credential returned")
	cmd := p.proxy(nil, "sh", "-c", `trap 'echo ended; exit 3' TERM; curl -sS "$0" >/dev/null; touch ready; while :; do sleep 0.1; done`, p.url("/api/x"))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the call", time.Minute, func() error { _, err := os.Stat(filepath.Join(p.home, "ready")); return err })
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 3 {
		t.Errorf("got %v", err)
	}
	wantAll(t, out.String(), "ended", "1 credential returned")
	if leases := p.devBroker.run(t, p.home, "leases"); strings.Contains(leases, " active ") {
		t.Errorf("leases are active after the end:\n%s", leases)
	}
}
