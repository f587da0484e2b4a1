package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/e2e/servers"
)

// TestSharedSignals has jose sign the events of a transmitter, which pushes them and lets
// them be polled.
func TestSharedSignals(t *testing.T) {
	t.Parallel()
	const audience, pushToken, pollToken, provider = "https://signals.acme.test", "s3cret-push-token-of-okta", "s3cret-poll-token-of-okta", "https://login.acme.test"
	modules, err := servers.Modules("javascript")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir() // Node.js resolves imports from the program's folder
	text, err := os.ReadFile(filepath.Join("clients", "javascript", "transmitter.mjs"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "transmitter.mjs"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(modules, filepath.Join(dir, "node_modules")); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), installed(t, "node"), filepath.Join(dir, "transmitter.mjs"), audience, pushToken, pollToken, provider)
	cmd.Env = append(os.Environ(), "NODE_TLS_REJECT_UNAUTHORIZED=0", "NODE_NO_WARNINGS=1") // an X.509-SVID
	var errs bytes.Buffer
	cmd.Stderr = &errs
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
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	lines := bufio.NewReader(out)
	line := func() string {
		t.Helper()
		text, err := lines.ReadString('\n')
		if err != nil {
			t.Fatalf("reading the transmitter's output: %v\n%s", err, errs.String())
		}
		return strings.TrimSpace(text)
	}
	issuer := line()
	s := startSPIRE(t, "acme.test")
	w := newBroker(t, s)
	w.write(t, "push.token", pushToken)
	w.write(t, "poll.token", pollToken)
	w.write(t, "client.secret", "s3cret-of-the-client")
	w.write(t, "policies/groups.yaml", "support: {members: [login/ana, login/ben]}\n")
	common := fmt.Sprintf("issuer: %q, jwks_uri: %q, allow_private: true, provider: login, page: support", issuer, issuer+"/jwks.json")
	w.entitlements = fmt.Sprintf("signals:\n  okta: {%[1]s, audience: \"%[2]s\", push: {token_files: [push.token]}}\n  polled: {%[1]s, audience: \"%[2]s/polled\", poll: {endpoint: %[3]q, token_file: poll.token, every: 1s}}\n",
		common, audience, issuer+"/poll")
	w.configure(t, []string{s.domain}, agentsPolicy)
	file, err := os.ReadFile(filepath.Join(w.dir, "broker.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	people := fmt.Sprintf("\n  people:\n    login: {issuer: %q, client_id: broker, client_secret_file: client.secret}\nstore:", provider)
	w.write(t, "broker.yaml", strings.Replace(string(file), "\nstore:", people, 1))
	w.start(t)
	triage := copyBinary(t, w.bin, "triage")
	s.register(t, "/agent/triage", triage)
	eventually(t, "a credential of the agent", time.Minute, func() error {
		if _, errs, code := w.cli(triage, "request", "tickets-api", "--scope", "tickets:read", "--why", "incident"); code != 0 {
			return errors.New(errs)
		}
		return nil
	})
	admin := func(args ...string) string {
		t.Helper()
		out, errs, code := w.cli(w.bin, append(args, "--admin-socket", filepath.Join(w.dir, "admin.sock"))...)
		if code != 0 {
			t.Fatalf("broker %q: exit code %d: %s", args, code, errs)
		}
		return out
	}
	holds := func(person string) bool {
		t.Helper()
		return !strings.Contains(admin("facts", "person", person), "no: account")
	}
	say := func(text string) {
		t.Helper()
		if _, err := io.WriteString(in, text+"\n"); err != nil {
			t.Fatal(err)
		}
	}
	say(w.url)
	if got := line(); got != "harmless" || !holds("login/ana") {
		t.Fatalf("after events that change nothing: got %q, ana holds: %t\n%s", got, holds("login/ana"), errs.String())
	}
	say("on")
	var got struct {
		Pushed map[string]struct {
			Status int
			Err    string
		}
		Acked  []string
		Errors map[string]string
	}
	if err := json.Unmarshal([]byte(line()), &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"audience": "invalid_audience", "typ": "invalid_request", "old": "invalid_request", "future": "invalid_request", "key": "invalid_key", "hmac": "invalid_key"}
	for name, r := range got.Pushed {
		status := 202
		if want[name] != "" {
			status = 400
		}
		if r.Status != status || r.Err != want[name] {
			t.Errorf("%s: got %d %q, want %d %q", name, r.Status, r.Err, status, want[name])
		}
	}
	if len(got.Pushed) != 14 || len(got.Acked) != 1 || got.Errors["foreign"] != "invalid_audience" {
		t.Errorf("got %+v", got)
	}
	if holds("login/ana") || holds("login/ben") {
		t.Error("want ana and ben ended")
	}
	// Ana alone was accountable for the agent, so it gets nothing more.
	if _, errs, code := w.cli(triage, "request", "tickets-api", "--scope", "tickets:read", "--why", "incident"); code != 3 || !strings.Contains(errs, "everyone accountable") {
		t.Errorf("a request of the agent: got exit code %d: %s", code, errs)
	}
	if out := w.records(t, "--kind", "fact.ended"); !strings.Contains(out, "ssf:okta") || !strings.Contains(out, "ssf:polled") {
		t.Errorf("the log has\n%s", out)
	}
	if out := admin("signals"); !strings.Contains(out, "okta") || !strings.Contains(out, "polled") {
		t.Errorf("got\n%s", out)
	}
}
