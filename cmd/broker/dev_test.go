package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"accessbroker.internal/internal/devworld"
)

func newDevWorld(t *testing.T) *devworld.World {
	t.Helper()
	dir, err := os.MkdirTemp("", "broker-dev-") // as short as without --dir
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	w, err := devworld.New(dir, devworld.Addresses{Broker: "127.0.0.1:8443", Pages: "127.0.0.1:8480", Login: "127.0.0.1:8481", Tickets: "127.0.0.1:8482"})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// What "broker dev" prints is short, names the page, three commands and the rest, and
// fits a terminal of 80 columns and 24 lines, as does the file with the rest.
func TestDevFitsTerminal(t *testing.T) {
	w := newDevWorld(t)
	if err := writeDevFiles(w, "/usr/local/bin"); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	(&app{terminal: terminal{out: &out, getenv: func(string) string { return "" }}}).welcome(w)
	for _, part := range []string{
		w.PagesURL() + "/ui/", ". " + w.Path("env"), "broker request tickets-api --scope tickets:read", "broker request tickets-api --scope tickets:close",
		w.Path("commands.txt"), "Ctrl-C",
	} {
		if !strings.Contains(out.String(), part) {
			t.Errorf("got %s\nwant %q in it", out.String(), part)
		}
	}
	if lines := strings.Count(out.String(), "\n"); lines > 10 || strings.Contains(out.String(), "\x1b") {
		t.Errorf("got %d lines, want at most 10 without colours:\n%s", lines, out.String())
	}
	rest, err := os.ReadFile(w.Path("commands.txt"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out.String() + string(rest)) {
		if utf8.RuneCountInString(strings.TrimSuffix(line, "\n")) > 80 {
			t.Errorf("a line has more than 80 columns: %s", line)
		}
	}
}

// The settings and commands in the folder can be copied, whatever the paths: they find
// the program and the admin socket.
func TestDevWritesCommandsToCopy(t *testing.T) {
	w := newDevWorld(t)
	w.Dir = filepath.Join(w.Dir, "it's a $HOME")
	if err := os.MkdirAll(w.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := writeDevFiles(w, "/opt/access broker/bin"); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("sh", "-ec", `. "$0/env"; printenv PATH BROKER_URL BROKER_CA BROKER_ADMIN_SOCKET SPIFFE_ENDPOINT_SOCKET`, w.Dir).Output()
	if err != nil {
		t.Fatal(err)
	}
	want := "/opt/access broker/bin:" + os.Getenv("PATH") + "\n" + w.URL() + "\n" + w.Bundle() + "\n" + w.AdminSocket() + "\nunix://" + w.Socket("agent") + "\n"
	if string(out) != want {
		t.Errorf("got %s\nwant %s", out, want)
	}
	commands, err := os.ReadFile(w.Path("commands.txt"))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"\n  . " + shellQuote(w.Path("env")) + "\n", "\n  broker kill --under spiffe://acme.test/agent --why ", "\n  broker audit verify " + shellQuote(w.Database()) + "\n",
	} {
		if !strings.Contains(string(commands), line) {
			t.Errorf("got %s\nwant %q in it", commands, line)
		}
	}
}

func TestProgramDir(t *testing.T) {
	here, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	for arg0, want := range map[string]string{"broker": "", "bin/broker": filepath.Join(here, "bin"), "/usr/local/bin/broker": "/usr/local/bin"} {
		if got := programDir(arg0); got != want {
			t.Errorf("%s: got %q, want %q", arg0, got, want)
		}
	}
}

// The example's admin socket is where commands look for it, and the README agrees.
func TestExampleHasTheUsualAdminSocket(t *testing.T) {
	text, err := os.ReadFile("../../deploy/broker.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"the example": string(text), "the README": string(readme)} {
		if !strings.Contains(text, "admin_socket: "+usualAdminSocket+"\n") {
			t.Errorf("%s does not place the admin socket at %s", name, usualAdminSocket)
		}
	}
}
