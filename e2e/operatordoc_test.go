package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// A guide is the quickstart of docs/operator.md, with the names and paths of a test.
type guide struct {
	text  string
	names *strings.Replacer
}

// readGuide reads the quickstart. pairs are names of the document and of the test.
func readGuide(t *testing.T, pairs ...string) guide {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "docs", "operator.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, after, found := strings.Cut(string(text), "\n## Quickstart")
	section, _, ends := strings.Cut(after, "\n## ")
	if !found || !ends {
		t.Fatal("docs/operator.md has no quickstart")
	}
	return guide{section, strings.NewReplacer(pairs...)}
}

// file returns the content of a file that the quickstart shows.
func (g guide) file(t *testing.T, path string) string {
	t.Helper()
	found := regexp.MustCompile("(?s)```[a-z]+\n(?:#|//) " + regexp.QuoteMeta(path) + "\n(.*?)```").FindStringSubmatch(g.text)
	if found == nil {
		t.Fatalf("the quickstart has no %s", path)
	}
	return g.names.Replace(found[1])
}

// commands returns the indented lines of a step.
func (g guide) commands(t *testing.T, step int) (lines []string) {
	t.Helper()
	_, after, found := strings.Cut(g.text, fmt.Sprintf("\n**%d. ", step))
	text, _, _ := strings.Cut(after, fmt.Sprintf("\n**%d. ", step+1))
	for line := range strings.Lines(text) {
		if command, ok := strings.CutPrefix(line, "    "); ok {
			lines = append(lines, g.names.Replace(strings.TrimSpace(command)))
		}
	}
	if !found || len(lines) == 0 {
		t.Fatalf("the quickstart has no commands in step %d", step)
	}
	return lines
}

// TestOperatorQuickstart follows the quickstart of docs/operator.md from step 4 on, with
// a real SPIRE, OpenID provider and browser, until a person has approved.
func TestOperatorQuickstart(t *testing.T) {
	t.Parallel() // it mostly waits
	s := spireOf(t)
	o := &office{world: newBroker(t, s)}
	webPort, loginPort := freePort(t), freePort(t)
	o.web = fmt.Sprintf("https://localhost:%d", webPort)
	issuer := fmt.Sprintf("https://localhost:%d/", loginPort)
	g := readGuide(t,
		"https://broker.acme.test:8443", o.url, "https://broker.acme.test:8444", o.web,
		"0.0.0.0:8443", o.listen, "0.0.0.0:8444", fmt.Sprintf("localhost:%d", webPort), "127.0.0.1:9464", fmt.Sprintf("127.0.0.1:%d", freePort(t)),
		"/etc/broker/", o.dir+"/", "/run/broker/", o.dir+"/", "/var/lib/broker/", o.dir+"/", "unix:///run/spire/agent.sock", s.socket(),
		"https://login.acme.test", issuer, "client_secret_file: client.secret", "client_secret_file: client.secret, ca_file: web-ca.pem",
		"sudo -u broker ", "")
	o.startProvider(t, issuer, loginPort)
	for _, name := range []string{"broker.yaml", "policies/tickets.cedar", "policies/groups.yaml", "policies/tickets_test.yaml"} {
		o.write(t, name, g.file(t, "/etc/broker/"+name))
	}
	start := g.commands(t, 6)
	for _, command := range start[:2] {
		if out, err := o.shell(o.bin, nil, command).CombinedOutput(); err != nil || strings.Contains(string(out), "warning") {
			t.Errorf("%s: %v\n%s", command, err, out)
		}
	}
	if want := "broker serve --config " + o.dir + "/broker.yaml"; len(start) != 3 || start[2] != want {
		t.Fatalf("got %q, want %s at the end", start, want)
	}
	o.start(t)
	o.approveAsInGuide(t, g)
	for _, command := range g.commands(t, 9) {
		out, err := o.shell(o.bin, nil, command).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "verified") && !strings.Contains(string(out), "login/ben") {
			t.Errorf("%s: %v\n%s", command, err, out)
		}
	}
}

// startProvider starts the OpenID provider of steps 1 to 3.
func (o *office) startProvider(t *testing.T, issuer string, port int) {
	t.Helper()
	at := func(name string) string { return filepath.Join(o.dir, name) }
	loopbackTLS(t, at("web-ca.pem"), at("web.pem"), at("web.key"))
	o.write(t, "client.secret", "only-in-tests")
	o.writePeople(t, staffOf("Dan"))
	var err error
	o.provider, err = start(t, "the OpenID provider", filepath.Join(built(t, "op"), "op"),
		"-listen", fmt.Sprintf("localhost:%d", port), "-issuer", issuer, "-cert", at("web.pem"), "-key", at("web.key"),
		"-people", at("people.json"), "-client", "broker", "-secret", "only-in-tests", "-redirect", o.web+"/ui/login/callback")
	if err != nil {
		t.Fatal(err)
	}
}

// shell returns a command of a shell that finds the binary bin as "broker".
func (o *office) shell(bin string, env []string, script string) *exec.Cmd {
	cmd := exec.Command("sh", "-euc", script)
	cmd.Env = slices.Concat(os.Environ(), env, []string{"PATH=" + filepath.Dir(bin) + ":" + os.Getenv("PATH")})
	return cmd
}

// approveAsInGuide requests as the agent of step 7 and approves as Ben in step 8.
func (o *office) approveAsInGuide(t *testing.T, g guide) {
	t.Helper()
	agent := copyBinary(t, o.bin, "broker")
	o.spire.register(t, "/agent/triage", agent)
	asked := g.commands(t, 7)
	last := len(asked) - 1
	eventually(t, "the agent's first credential", time.Minute, func() error {
		out, err := o.shell(agent, nil, strings.Join(asked[:last], "\n")).CombinedOutput()
		if err == nil && !strings.Contains(string(out), "token") {
			err = errors.New("it has no token")
		}
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return err
	})
	var printed bytes.Buffer
	waiting := o.shell(agent, nil, strings.Join(append(asked[:last-1:last-1], asked[last]), "\n"))
	waiting.Stdout, waiting.Stderr = &printed, &printed
	if err := waiting.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- waiting.Wait() }()
	t.Cleanup(func() { _ = waiting.Process.Kill() })

	home := t.TempDir()
	o.terminalLogin(t, home, "ben")
	said := g.commands(t, 8)
	if len(said) != 4 || said[1] != "broker login" {
		t.Fatalf("got step 8 %q", said)
	}
	id := ""
	eventually(t, "the request in Ben's list", time.Minute, func() error {
		out, err := o.shell(o.bin, o.terminalEnv(home), said[2]).CombinedOutput()
		if id = pendingID.FindString(string(out)); id == "" {
			return fmt.Errorf("%v: %s", err, out)
		}
		return nil
	})
	if out, err := o.shell(o.bin, o.terminalEnv(home), strings.Replace(said[3], "req_…", id, 1)+" --yes").CombinedOutput(); err != nil || !strings.Contains(string(out), "approved by") {
		t.Fatalf("approving: %v: %s", err, out)
	}
	select {
	case err := <-ended:
		if err != nil || !strings.Contains(printed.String(), "token") {
			t.Errorf("the agent's command: %v: %s", err, &printed)
		}
	case <-time.After(time.Minute):
		t.Error("the agent's command still waits")
	}
}
