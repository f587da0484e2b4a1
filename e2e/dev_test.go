package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/attest/localca"
	"accessbroker.internal/internal/devworld/browser"
)

// A devBroker is a "broker dev", whose certificate ordinary HTTPS clients verify.
type devBroker struct {
	bin, dir string
	url      string
	pages    string // the URL of the pages
	args     []string
	process  *process
}

func startDev(t *testing.T) *devBroker {
	t.Helper()
	dir, err := os.MkdirTemp("", "dev-") // short: sockets have short paths
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	address := func() string { return fmt.Sprintf("127.0.0.1:%d", freePort(t)) }
	listen, pages := address(), freePort(t)
	d := &devBroker{bin: brokerBinary(t), dir: dir, url: "https://" + listen, pages: fmt.Sprintf("http://localhost:%d", pages)}
	d.args = []string{"dev", "--dir", dir, "--listen", listen, "--pages", fmt.Sprintf("127.0.0.1:%d", pages), "--login", address(), "--tickets", address()}
	d.start(t)
	return d
}

func (d *devBroker) start(t *testing.T) {
	t.Helper()
	var err error
	if d.process, err = start(t, "broker dev", d.bin, d.args...); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the start of broker dev", time.Minute, func() error {
		_, err := d.get(t, "/readyz")
		return err
	})
}

// restart kills the broker as a crash would, and starts it again in its folder.
func (d *devBroker) restart(t *testing.T) {
	t.Helper()
	d.process.kill()
	d.start(t)
}

func (d *devBroker) bundle() string { return filepath.Join(d.dir, "bundle.pem") }

func (d *devBroker) get(t *testing.T, path string) ([]byte, error) {
	text, err := os.ReadFile(d.bundle())
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(text)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	defer transport.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.url+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s %s", path, resp.Status, body)
	}
	return body, err
}

// jwtSVID returns a JWT-SVID of the agent for the broker.
func (d *devBroker) jwtSVID(t *testing.T) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), d.bin, "svid", "jwt", "--audience", d.url)
	cmd.Env = append(os.Environ(), "SPIFFE_ENDPOINT_SOCKET=unix://"+filepath.Join(d.dir, "identities", "agent.sock"))
	return strings.TrimSpace(string(printed(t, cmd)))
}

// command returns a command in a terminal with the settings of the world's folder. home
// has the session of a person.
func (d *devBroker) command(ctx context.Context, home string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "sh", append([]string{"-c", `. "$0"; exec "$@"`, filepath.Join(d.dir, "env")}, args...)...)
	cmd.Env = append(os.Environ(), "XDG_CONFIG_HOME="+home)
	return cmd
}

// run runs a command of the broker that must succeed, and returns its output.
func (d *devBroker) run(t *testing.T, home string, args ...string) string {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := d.command(t.Context(), home, append([]string{"broker"}, args...)...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("broker %s: %v\n%s%s", strings.Join(args, " "), err, &out, &errs)
	}
	return out.String()
}

// logIn runs "broker login" and allows the terminal in a browser. It returns the folder
// of the session.
func (d *devBroker) logIn(t *testing.T, person string) (home string) {
	t.Helper()
	home = t.TempDir()
	shown, screen, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = shown.Close() }()
	cmd := d.command(t.Context(), home, "broker", "login", "--no-browser")
	cmd.Stderr = screen
	err = cmd.Start()
	_ = screen.Close()
	if err != nil {
		t.Fatal(err)
	}
	b, err := browser.LogIn(t.Context(), d.pages, person)
	if err == nil {
		err = b.AllowTerminal(t.Context(), shown)
	}
	if err = errors.Join(err, cmd.Wait()); err != nil {
		t.Fatalf("%s logs in: %v", person, err)
	}
	return home
}

var pendingID = regexp.MustCompile(`req_[0-9a-v]{26}`)

// decide waits for the agent's request, and decides it as Ben.
func (d *devBroker) decide(t *testing.T, ben string, args ...string) {
	t.Helper()
	id := ""
	eventually(t, "the program's request", time.Minute, func() error {
		if id = pendingID.FindString(d.run(t, ben, "requests", "--status", "pending")); id == "" {
			return errors.New("no request is pending")
		}
		return nil
	})
	d.run(t, ben, append(args, id)...)
}

// strictPython runs a program as Python 3.13 does, which verifies certificates strictly
// (RFC 5280).
const strictPython = `
import runpy, ssl, sys
create = ssl.create_default_context
def strict(*args, **kwargs):
    context = create(*args, **kwargs)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context
ssl.create_default_context = strict
runpy.run_path(sys.argv[1], run_name="__main__")
`

// TestFirstCredential runs the programs of docs/agents.md beside "broker dev". They
// verify the broker's certificate, and get a credential once a person has approved.
func TestFirstCredential(t *testing.T) {
	t.Parallel() // it mostly waits
	for name, program := range map[string][]string{
		"Python": {installed(t, "python3"), "-c", strictPython, filepath.Join("..", "docs", "examples", "first_credential.py")},
		"Node":   {installed(t, "node"), filepath.Join("..", "docs", "examples", "first_credential.mjs")},
	} {
		t.Run(name, func(t *testing.T) { testFirstCredential(t, program) })
	}
}

func testFirstCredential(t *testing.T, program []string) {
	d := startDev(t)
	ben := d.logIn(t, "ben")
	out, err := d.program(t, append([]string{"env", "BROKER_CA=" + foreignCA(t)}, program...), nil)
	if err == nil || !strings.Contains(strings.ToLower(out), "certificate") {
		t.Errorf("a broker with another authority: got %q, %v", out, err)
	}
	out, err = d.program(t, program, func() { d.decide(t, ben, "deny", "--yes", "--comment", "not today") })
	if err == nil || !strings.Contains(out, "denied, by login/ben: not today") {
		t.Errorf("denied: got %q, %v", out, err)
	}
	out, err = d.program(t, program, func() { d.decide(t, ben, "approve", "--yes") })
	if err != nil || !regexp.MustCompile(`^bearer credential until 20[0-9TZ:.-]+\n$`).MatchString(out) {
		t.Errorf("approved: got %q, %v", out, err)
	}
	if leases := d.run(t, ben, "leases"); !strings.Contains(leases, "revoked") || !strings.Contains(leases, "tickets:close") || strings.Contains(leases, "active") {
		t.Errorf("the program did not return its credential:\n%s", leases)
	}
}

// program runs a program until it ends. meanwhile runs beside it.
func (d *devBroker) program(t *testing.T, args []string, meanwhile func()) (output string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var out bytes.Buffer
	cmd := d.command(ctx, t.TempDir(), args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if meanwhile != nil {
		meanwhile()
	}
	err = cmd.Wait()
	return out.String(), err
}

// foreignCA returns the file of an authority that did not sign the broker's certificate.
func foreignCA(t *testing.T) string {
	t.Helper()
	ca, err := localca.New("acme.test")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "other.pem")
	if err := os.WriteFile(path, ca.X509Bundle(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
