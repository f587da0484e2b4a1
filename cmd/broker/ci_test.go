//go:build linux

package main

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"accessbroker.internal/api"
	"accessbroker.internal/attest"
	"accessbroker.internal/internal/brokertest"
)

// requestToken is the token of the job at the platform's token service.
const requestToken = "request-token-of-this-job"

// A ciWorld runs "broker ci" in jobs of a platform. The tokens of the jobs are JWT-SVIDs
// of the agent.
type ciWorld struct {
	*execWorld
	env []string // of the jobs
	dir string
}

func newCIWorld(t *testing.T) *ciWorld {
	w := &ciWorld{execWorld: newExecWorld(t), dir: t.TempDir()}
	w.env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + w.dir, "XDG_RUNTIME_DIR=" + os.Getenv("XDG_RUNTIME_DIR"), "GOCOVERDIR=" + os.Getenv("GOCOVERDIR"),
		"BROKER_URL=" + w.URL(), "BROKER_CA=" + w.Bundle(),
	}
	return w
}

// jwt returns a token of the agent for the broker.
func (w *ciWorld) jwt() string {
	w.t.Helper()
	svids, err := attest.FetchJWT(w.t.Context(), "unix://"+w.Socket("agent"), "", []string{w.URL()})
	if err != nil {
		w.t.Fatal(err)
	}
	return svids[0].Token
}

// onGitHub makes the jobs those of GitHub Actions, with its token service.
func (w *ciWorld) onGitHub() {
	w.t.Helper()
	service := httptest.NewTLSServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+requestToken || r.URL.Query().Get("audience") != w.URL() {
			http.Error(rw, "no such job", http.StatusForbidden)
			return
		}
		_, _ = fmt.Fprintf(rw, `{"value":%q}`, w.jwt())
	}))
	w.t.Cleanup(service.Close)
	roots := filepath.Join(w.dir, "roots.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: service.Certificate().Raw})
	if err := os.WriteFile(roots, text, 0o600); err != nil {
		w.t.Fatal(err)
	}
	for _, name := range []string{"GITHUB_ENV", "GITHUB_OUTPUT", "GITHUB_STATE", "GITHUB_STEP_SUMMARY"} {
		path := filepath.Join(w.dir, name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			w.t.Fatal(err)
		}
		w.env = append(w.env, name+"="+path)
	}
	w.env = append(w.env, "GITHUB_ACTIONS=true", "CI=true", "GITHUB_REPOSITORY=acme/shop", "GITHUB_WORKFLOW=deploy", "GITHUB_RUN_ID=17", "GITHUB_RUN_ATTEMPT=1",
		"GITHUB_REF=refs/heads/main", "GITHUB_SHA=0123abcd", "GITHUB_ACTOR=octocat", "GITHUB_SERVER_URL=https://github.com",
		"ACTIONS_ID_TOKEN_REQUEST_URL="+service.URL+"/token?api-version=2.0", "ACTIONS_ID_TOKEN_REQUEST_TOKEN="+requestToken, "SSL_CERT_FILE="+roots)
}

// job returns a job that runs "broker ci".
func (w *ciWorld) job(args ...string) *exec.Cmd {
	cmd := exec.Command("broker", append([]string{"ci"}, args...)...)
	cmd.Env, cmd.Dir = w.env, w.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // no terminal
	return cmd
}

// run runs a job and returns what it printed.
func (w *ciWorld) run(code int, args ...string) (out, errs string) {
	w.t.Helper()
	cmd := w.job(args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); exitStatus(err) != code && (err != nil || code != 0) {
		w.t.Fatalf("broker ci %q: got %v, want exit code %d\n%s%s", args, err, code, stdout.String(), stderr.String())
	}
	return stdout.String(), stderr.String()
}

const reading = "tickets-api=tickets:read"

func TestCIOnGitHub(t *testing.T) {
	w := newCIWorld(t)
	w.onGitHub()
	copied := filepath.Join(w.dir, "copy")
	out, errs := w.run(0, reading, "--", "sh", "-c",
		`t=$(cat "$BROKER_ACCESS_TOKEN_FILE"); echo "$t" > `+copied+`; echo "the token is $t."; echo "$t" | base64 -w0; echo "$t" >&2; env`)
	text, err := os.ReadFile(copied)
	token := strings.TrimSpace(string(text))
	if err != nil || !strings.HasPrefix(token, "eyJ") {
		t.Fatalf("got the token %q, %v", text, err)
	}
	if want := "the token is " + strings.Repeat("*", len(token)) + ".\n"; !strings.Contains(out, want) {
		t.Errorf("got %q, want %q", out, want)
	}
	if form := base64.StdEncoding.EncodeToString([]byte(token))[:40]; strings.Contains(out, form) {
		t.Errorf("the output has the token in base64: %q", out)
	}
	mask := strings.Index(errs, "::add-mask::"+token+"\n")
	if mask < 0 || mask > strings.Index(errs, "broker: tickets-api until") {
		t.Errorf("the token is not masked first:\n%s", errs)
	}
	rest := regexp.MustCompile("(?m)^::add-mask::.*\n").ReplaceAllString(errs, "")
	if strings.Contains(rest+out, token) || strings.Contains(out, "add-mask") {
		t.Errorf("the token is in the log:\n%s%s", out, rest)
	}
	for _, secret := range []string{requestToken, "ACTIONS_ID_TOKEN_REQUEST", "BROKER_URL"} {
		if strings.Contains(out+errs, secret) {
			t.Errorf("%s is in the command's environment or the log:\n%s%s", secret, out, errs)
		}
	}
	for line := range strings.Lines(rest) {
		if strings.HasPrefix(line, "broker: ") && len(line) > 81 {
			t.Errorf("a line of %d columns: %s", len(line)-1, line)
		}
	}
	for _, name := range []string{"GITHUB_ENV", "GITHUB_OUTPUT", "GITHUB_STATE", "GITHUB_STEP_SUMMARY"} {
		if text, err := os.ReadFile(filepath.Join(w.dir, name)); err != nil || len(text) > 0 {
			t.Errorf("%s has %q, %v", name, text, err)
		}
	}
	page, err := w.Agent().Requests(t.Context(), api.RequestFilter{})
	if err != nil || len(page.Requests) != 1 {
		t.Fatalf("got %v, %v", page, err)
	}
	want := "GitHub Actions: acme/shop, deploy, run 17, ref refs/heads/main, commit 0123abcd, by octocat, https://github.com/acme/shop/actions/runs/17"
	if got := page.Requests[0].Justification; got != want {
		t.Errorf("got the justification %q", got)
	}
	w.wantReturned(1)
}

// The author of a branch does not control the terminal or the log of an approver.
func TestCITamesTheJob(t *testing.T) {
	w := newCIWorld(t)
	w.onGitHub()
	w.env = append(w.env, "GITHUB_REF=refs/heads/x\n::set-output name=a::b\x1b[2J\u202e", "GITHUB_ACTOR="+strings.Repeat("a", 4000))
	w.run(0, reading, "--why", "nightly report", "--", "true")
	page, err := w.Agent().Requests(t.Context(), api.RequestFilter{})
	if err != nil || len(page.Requests) != 1 {
		t.Fatalf("got %v, %v", page, err)
	}
	got := page.Requests[0].Justification
	if !strings.HasPrefix(got, "nightly report (GitHub Actions: acme/shop, ") || strings.ContainsAny(got, "\n\x1b\u202e") || len(got) > 2000 {
		t.Errorf("got the justification %q", got)
	}
}

func TestCIPassesTheExitCodeOn(t *testing.T) {
	w := newCIWorld(t)
	w.onGitHub()
	w.run(7, reading, "--", "sh", "-c", "exit 7")
	w.run(128+9, reading, "--", "sh", "-c", "kill -9 $$")
	w.run(127, reading, "--", "no-such-command")
	w.wantReturned(2)
}

// The platform's first signal goes to the command. If it survives, the time is bounded.
func TestCIEndsACanceledJob(t *testing.T) {
	w := newCIWorld(t)
	w.onGitHub()
	for _, signals := range [][]syscall.Signal{{syscall.SIGINT}, {syscall.SIGINT, syscall.SIGINT}} {
		grace := map[int]string{1: "100ms", 2: "10h"}[len(signals)]
		cmd := w.job(reading, "--grace", grace, "--", "signals")
		lines := startReady(t, cmd)
		for _, s := range signals {
			if err := cmd.Process.Signal(s); err != nil {
				t.Fatal(err)
			}
			wantLine(t, lines, "got "+s.String())
		}
		if code := exitCodeOf(t, cmd); code != 128+int(syscall.SIGKILL) {
			t.Errorf("got exit code %d", code)
		}
	}
	w.wantReturned(2)
}

// GitHub signals and kills the shell of a step, of which ci is a child.
func TestCIEndsWithItsShell(t *testing.T) {
	w := newCIWorld(t)
	w.onGitHub()
	cmd := exec.Command("sh", "-c", "broker ci "+reading+" -- signals; true")
	cmd.Env, cmd.Dir = w.env, w.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	lines := startReady(t, cmd)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	wantLine(t, lines, "got terminated")
	for lines.Scan() { // until ci has ended
		continue
	}
	exitCodeOf(t, cmd)
	w.wantReturned(1)
}

func TestCIWaitsForApproval(t *testing.T) {
	w := newCIWorld(t)
	w.onGitHub()
	closing := []string{"tickets-api=tickets:close", "--why", "a test"}
	_, errs := w.run(exitPending, append(closing, "--", "true")...)
	id := regexp.MustCompile(`req_[0-9a-v]+`).FindString(errs)
	for _, want := range []string{"broker: tickets-api needs approval by 1 of support\n  " + w.URL() + "/ui/requests/" + id + "\n", "once it is approved, run the job again"} {
		if !strings.Contains(errs, want) {
			t.Errorf("got %q, want %q", errs, want)
		}
	}
	// The next run of the job finds the request.
	_, errs = w.run(exitPending, append(closing, "--wait", "1ms", "--", "true")...)
	if !strings.Contains(errs, id) || !strings.Contains(errs, "was not approved in time") {
		t.Errorf("got %q, want %s", errs, id)
	}
	// A canceled job waits for nothing.
	cmd := w.job(append(closing, "--wait", "1h", "--", "true")...)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stderr)
	wantLine(t, lines, "waiting for at most 1h")
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	wantLine(t, lines, "broker: tickets-api withdrawn")
	if code := exitCodeOf(t, cmd); code != exitFailed {
		t.Errorf("got exit code %d", code)
	}
	if r, err := w.Agent().Request(t.Context(), id); err != nil || r.Status != api.StatusWithdrawn {
		t.Errorf("got %v, %v", r, err)
	}
	w.wantReturned(0)
}

func TestCIWithSeveralEntitlements(t *testing.T) {
	w := newCIWorld(t)
	w.onGitHub()
	out, _ := w.run(0, reading, "mcp", "--", "sh", "-c", `cd / && cat "$BROKER_CREDENTIAL_FILE_TICKETS_API" "$BROKER_CREDENTIAL_FILE_MCP" | wc -c; env`)
	if !regexp.MustCompile(`^[5-9]\d\d|\d{4}`).MatchString(out) {
		t.Errorf("the credentials have %q bytes", out)
	}
	for _, name := range []string{"BROKER_CREDENTIAL_FILE=", "BROKER_ACCESS_TOKEN_FILE=", "BROKER_LEASE="} {
		if strings.Contains(out, "\n"+name) {
			t.Errorf("%s names one of two credentials:\n%s", name, out)
		}
	}
	w.wantReturned(2)
	// Without one of them, the job gets none.
	_, errs := w.run(exitFailed, reading, "mcp=access:nonsense", "--", "true")
	if !strings.Contains(errs, "mcp: ") {
		t.Errorf("got %q", errs)
	}
	w.wantReturned(2)
}

func TestCIOnGitLab(t *testing.T) {
	w := newCIWorld(t)
	w.env = append(w.env, "GITLAB_CI=true", "CI_PROJECT_PATH=acme/shop", "CI_JOB_NAME=migrate", "CI_PIPELINE_ID=9")
	_, errs := w.run(exitUsage, reading, "--", "true")
	if !strings.Contains(errs, "BROKER_ID_TOKEN is empty, so this job of GitLab can't prove its identity: add id_tokens") {
		t.Errorf("got %q", errs)
	}
	token := w.jwt()
	w.env = append(w.env, "BROKER_ID_TOKEN="+token, "MY_TOKEN="+token)
	out, errs := w.run(0, reading, "--", "sh", "-c", `env; cat "$BROKER_ACCESS_TOKEN_FILE"`)
	if strings.Contains(errs, "add-mask") || strings.Contains(out, "BROKER_ID_TOKEN") || !regexp.MustCompile(`\n\*{100,}$`).MatchString(out) {
		t.Errorf("got %q and %q", out, errs)
	}
	if out, _ := w.run(0, reading, "--token-from", "env:MY_TOKEN", "--", "env"); strings.Contains(out, "\nMY_TOKEN=") {
		t.Errorf("the command has the token: %q", out)
	}
	if out, _ := w.run(0, reading, "--keep-identity", "--token-from", "env:MY_TOKEN", "--", "env"); !strings.Contains(out, "\nMY_TOKEN=") {
		t.Errorf("the command does not have the token: %q", out)
	}
	w.wantReturned(3)
}

func TestCIUsage(t *testing.T) {
	w := newCIWorld(t)
	w.env = append(w.env, "BROKER_ID_TOKEN=eyJ.eyJ.x")
	for want, args := range map[string][]string{
		"ci takes entitlements":                       {"tickets-api", "true"},
		"ci takes entitlements, -- and a command":     {"tickets-api", "--"},
		"name each entitlement once":                  {"tickets-api", "tickets-api", "--", "true"},
		"name scopes either after":                    {reading, "--scope", "tickets:read", "--", "true"},
		"write the scopes of several as ENTITLEMENT=": {"tickets-api", "mcp", "--scope", "tickets:read", "--", "true"},
		"--grace must be a duration":                  {"tickets-api", "--grace", "-1s", "--", "true"},
	} {
		if _, errs := w.run(exitUsage, args...); !strings.Contains(errs, want) {
			t.Errorf("%q: got %q, want %q", args, errs, want)
		}
	}
	w.env = slices.DeleteFunc(w.env, func(kv string) bool { return strings.HasPrefix(kv, "BROKER_URL=") })
	w.run(exitUsage, "tickets-api", "--", "true")
}

// A job that lasts longer than its credential gets another one, which is masked, too.
func TestCIRenews(t *testing.T) {
	t.Parallel() // it mostly waits
	w := newCIWorld(t)
	w.onGitHub()
	script := `first=$(cat "$BROKER_CREDENTIAL_FILE")
while second=$(cat "$BROKER_CREDENTIAL_FILE"); test "$second" = "$first"; do sleep 0.05; done
echo "$first"; echo "$second"`
	out, errs := w.run(0, reading, "--ttl", "9s", "--", "sh", "-c", script)
	if !regexp.MustCompile(`^\*{100,}\n\*{100,}\n$`).MatchString(out) {
		t.Errorf("got %q", out)
	}
	if masks := regexp.MustCompile(`(?m)^::add-mask::eyJ[^.]*\.[^.]*\.[^.]*$`).FindAllString(errs, -1); len(masks) != 2 {
		t.Errorf("got masks for %d tokens:\n%s", len(masks), errs)
	}
	w.wantReturned(2)
}

func TestCIWithoutMasks(t *testing.T) {
	w := newCIWorld(t)
	w.onGitHub()
	out, errs := w.run(0, reading, "--no-mask", "--", "sh", "-c", `cut -c1-3 "$BROKER_ACCESS_TOKEN_FILE"`)
	if out != "eyJ\n" || strings.Contains(errs, "add-mask") {
		t.Errorf("got %q and %q", out, errs)
	}
	w.wantReturned(1)
}

// A log that a person has sent to a file gets no secret.
func TestCIMasksNothingInAFile(t *testing.T) {
	w := newCIWorld(t)
	w.onGitHub()
	f, err := os.Create(filepath.Join(w.dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := w.job(reading, "--", "true")
	cmd.Stderr = f
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(f.Name())
	if err != nil || strings.Contains(string(text), "::add-mask::") || !strings.Contains(string(text), "standard error does not lead to the runner") {
		t.Errorf("got %q, %v", text, err)
	}
	brokertest.Eventually(t, "the lease is returned", func() bool { w.wantReturned(1); return true })
}

// Another command of the step, which may keep what it reads, gets no masks. A shell between
// the platform and ci changes nothing.
func TestCIMasksOnlyForThePlatform(t *testing.T) {
	w := newCIWorld(t)
	w.onGitHub()
	for script, masks := range map[string]bool{
		"broker ci " + reading + " -- true; true":                         true,
		"(broker ci " + reading + " -- true; true); true":                 true,
		"exec broker ci " + reading + " -- true":                          true,
		"broker ci " + reading + " -- true 2>&1 | tee log":                false,
		"(broker ci " + reading + " -- true; true) 2>&1 | tee log; true":  false,
		"{ broker ci " + reading + " -- true; true; } 2>log; cat log >&2": false,
	} {
		cmd := exec.Command("sh", "-c", script)
		cmd.Env, cmd.Dir = w.env, w.dir
		out, err := cmd.CombinedOutput()
		if err != nil || !bytes.Contains(out, []byte("broker: tickets-api returned")) {
			t.Fatalf("%s: %v\n%s", script, err, out)
		}
		if got := bytes.Contains(out, []byte("::add-mask::")); got != masks {
			t.Errorf("%s: got masks %t, want %t\n%s", script, got, masks, out)
		}
	}
	w.wantReturned(6)
}

// The action of deploy/ runs its command with the credential, and no input is a script.
func TestGitHubAction(t *testing.T) {
	text, err := os.ReadFile("../../deploy/github-action/action.yml")
	if err != nil {
		t.Fatal(err)
	}
	var action struct {
		Inputs map[string]struct{ Default string } `yaml:"inputs"`
		Runs   struct {
			Using string
			Steps []struct {
				Shell, Run string
				Env        map[string]string
			}
		} `yaml:"runs"`
	}
	parseYAML(t, string(text), &action)
	if action.Runs.Using != "composite" || len(action.Runs.Steps) != 1 || strings.Contains(action.Runs.Steps[0].Run, "${{") {
		t.Fatalf("got %+v", action)
	}
	w := newCIWorld(t)
	w.onGitHub()
	inputs := map[string]string{"server": w.URL(), "entitlements": "tickets-api=tickets:read  mcp", "why": "the nightly report"}
	copied := filepath.Join(w.dir, "copy")
	inputs["run"] = `wc -c < "$BROKER_CREDENTIAL_FILE_MCP" > ` + copied + `; exit 3`
	step := action.Runs.Steps[0]
	cmd := exec.Command(step.Shell, "-eo", "pipefail", "-c", step.Run)
	cmd.Env, cmd.Dir = w.env, w.dir
	for name, value := range step.Env {
		input := regexp.MustCompile(`^\$\{\{ inputs\.(\w+) \}\}$`).FindStringSubmatch(value)
		if input == nil {
			t.Fatalf("%s is %q", name, value)
		}
		given, ok := inputs[input[1]]
		if !ok {
			given = action.Inputs[input[1]].Default
		}
		cmd.Env = append(cmd.Env, name+"="+given)
	}
	out, err := cmd.CombinedOutput()
	if exitStatus(err) != 3 {
		t.Fatalf("got %v\n%s", err, out)
	}
	if n, err := os.ReadFile(copied); err != nil || len(strings.TrimSpace(string(n))) < 3 {
		t.Errorf("the command read %q, %v", n, err)
	}
	w.wantReturned(2)
}
