package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/e2e/servers"
)

// A waitingClient is the program of clients/javascript that waits for people.
type waitingClient struct {
	t     *testing.T
	steps *bufio.Scanner
	goOn  io.Writer
	errs  *bytes.Buffer
}

func (d *devBroker) waitingClient(t *testing.T) *waitingClient {
	t.Helper()
	modules, err := servers.Modules("javascript")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir() // Node.js resolves imports from the program's folder
	text, err := os.ReadFile(filepath.Join("clients", "javascript", "waiting.mjs"))
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "waiting.mjs")
	if err := os.WriteFile(program, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(modules, filepath.Join(dir, "node_modules")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	cmd := exec.CommandContext(ctx, installed(t, "node"), program, d.url, "spiffe://acme.test/agent/triage")
	cmd.Env = append(os.Environ(), "SVID="+d.jwtSVID(t), "NODE_EXTRA_CA_CERTS="+d.bundle())
	w := &waitingClient{t: t, errs: new(bytes.Buffer)}
	cmd.Stderr = w.errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if w.goOn, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); _ = cmd.Wait() })
	w.steps = bufio.NewScanner(out)
	return w
}

// next returns the facts of the next step, which must be one of a name.
func (w *waitingClient) next(name string) (facts map[string]any) {
	w.t.Helper()
	if !w.steps.Scan() {
		w.t.Fatalf("the client ended before %q:\n%s", name, w.errs)
	}
	if err := json.Unmarshal(w.steps.Bytes(), &facts); err != nil || facts["step"] != name {
		w.t.Fatalf("got %s, %v, want step %q", w.steps.Text(), err, name)
	}
	return facts
}

func wantFacts(t *testing.T, what string, got any, want map[string]any) {
	t.Helper()
	all, _ := got.(map[string]any)
	for name, value := range want {
		if fmt.Sprint(all[name]) != fmt.Sprint(value) {
			t.Errorf("%s: got %s %v, want %v", what, name, all[name], value)
		}
	}
}

// TestWaitingClients lets openid-client and oauth4webapi wait for a person. The broker is
// killed while one of them waits: its code still works afterwards.
func TestWaitingClients(t *testing.T) {
	t.Parallel() // it mostly waits
	d := startDev(t)
	ben := d.logIn(t, "ben")
	w := d.waitingClient(t)
	if got := w.next("metadata"); got["deferred"] != true || !reflect.DeepEqual(got["modes"], []any{"poll"}) || !strings.Contains(fmt.Sprint(got["revocable"]), ":deferral-code") {
		t.Errorf("got the metadata %v", got)
	}
	asked := w.next("asked")
	d.restart(t)
	d.run(t, ben, "approve", "--yes", asked["request"].(string))
	got := w.next("token")
	wantFacts(t, "deferred", got, map[string]any{"type": "bearer", "scope": "tickets:close", "request": asked["request"]})
	wantFacts(t, "redeemed", got["again"], map[string]any{"status": 400, "error": "invalid_grant"})

	got = w.next("fast")
	wantFacts(t, "first poll", got["once"], map[string]any{"status": 400, "error": "authorization_pending"})
	wantFacts(t, "early poll", got["twice"], map[string]any{"status": 400, "error": "slow_down"})
	wantFacts(t, "cancelled", w.next("cancelled")["after"], map[string]any{"status": 400, "error": "access_denied"})

	asked = w.next("asked")
	shown := d.run(t, ben, "requests", "--status", "pending", "-o", "json")
	d.run(t, ben, "approve", "--yes", asked["request"].(string))
	if !strings.Contains(shown, `"binding_message"`) || !strings.Contains(shown, "W-3 ") || asked["expires"].(float64) > 600 {
		t.Errorf("got expires_in %v, and shown to the approver:\n%s", asked["expires"], shown)
	}
	wantFacts(t, "backchannel", w.next("token"), map[string]any{"type": "bearer", "scope": "tickets:close", "request": asked["request"]})

	asked = w.next("asked")
	wantFacts(t, "a person's name", asked["unknown"], map[string]any{"status": 400, "error": "unknown_user_id"})
	wantFacts(t, "pending", asked["pending"], map[string]any{"status": 400, "error": "authorization_pending"})
	d.run(t, ben, "deny", "--yes", "--comment", "not today", asked["request"].(string))
	_, _ = fmt.Fprintln(w.goOn)
	wantFacts(t, "denied", w.next("denied"), map[string]any{"status": 400, "error": "access_denied"})
}
