package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"accessbroker.internal/internal/devworld"
)

// The commands that "broker dev" prints can be copied: they find the program and the
// admin socket.
func TestDevPrintsCommandsToCopy(t *testing.T) {
	w, err := devworld.New(t.TempDir(), devworld.Addresses{Broker: "127.0.0.1:8443", Pages: "127.0.0.1:8480", Login: "127.0.0.1:8481"})
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	(&app{terminal: terminal{out: &out}}).welcome(w)
	for _, line := range []string{"  export BROKER_ADMIN_SOCKET=" + w.AdminSocket() + "\n", "  broker kill --under spiffe://acme.test/agent --why "} {
		if !strings.Contains(out.String(), line) {
			t.Errorf("got %s\nwant %q in it", out.String(), line)
		}
	}
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
