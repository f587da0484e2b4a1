package main

import (
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"accessbroker.internal/internal/config"
)

// What "broker dev" prints can be copied: the program is found, and so is the
// admin socket.
func TestDevSaysHowToReachIt(t *testing.T) {
	var out strings.Builder
	w := &devWorld{dir: "/w", settings: &config.Config{ExternalURL: &url.URL{Scheme: "https", Host: "127.0.0.1:8443"}, AdminSocket: "/w/admin.sock"}}
	w.welcome(&app{terminal: terminal{out: &out}})
	for _, line := range []string{"  export BROKER_ADMIN_SOCKET=/w/admin.sock\n", "  broker kill --under spiffe://acme.test/agent --why "} {
		if !strings.Contains(out.String(), line) {
			t.Errorf("without %q:\n%s", line, out.String())
		}
	}
	here, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	for arg0, want := range map[string]string{"broker": "", "bin/broker": filepath.Join(here, "bin"), "/usr/local/bin/broker": "/usr/local/bin"} {
		if got := foundIn(arg0); got != want {
			t.Errorf("started as %s, it is found in %q, want %q", arg0, got, want)
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
