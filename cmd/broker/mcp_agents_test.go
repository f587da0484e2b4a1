//go:build linux

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"accessbroker.internal/api"
	"accessbroker.internal/internal/devworld"
	"accessbroker.internal/mcp"
)

// An agentOnHost is "broker mcp --socket" of one agent, whose user may connect.
type agentOnHost struct {
	path  string
	uid   uint32
	calls *mcpCalls
}

// Two agents on one host have two users, two identities and two sockets. They share no
// credential, neither sees the handles of the other one, and neither can use the socket
// of the other one.
func TestTwoAgentsOnOneHost(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("starting processes of other users needs root")
	}
	dir, err := os.MkdirTemp("", "two")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	at, err := devworld.FreeAddresses()
	if err != nil {
		t.Fatal(err)
	}
	w, err := devworld.New(filepath.Join(dir, "w"), at)
	if err != nil {
		t.Fatal(err)
	}
	program := copied(t, dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	err = w.Run(t.Context(), slog.New(slog.DiscardHandler), func(ctx context.Context) error {
		ctx, stop := context.WithCancel(ctx)
		ended := make(chan error, 2)
		var agents []*agentOnHost
		for i, name := range []string{"agent", "service"} {
			g := &agentOnHost{path: filepath.Join(dir, name+".sock"), uid: uint32(65533 + i)}
			agents = append(agents, g)
			listening := make(chan struct{})
			go func() { ended <- g.serve(ctx, w, name, listening) }()
			select {
			case <-listening:
			case err := <-ended:
				t.Errorf("serving %s: %v", name, err)
			}
		}
		checkTwoAgents(t, program, w, agents)
		stop()
		for range agents {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func (g *agentOnHost) serve(ctx context.Context, w *devworld.World, identity string, listening chan struct{}) error {
	a := &app{terminal: terminal{out: io.Discard, err: io.Discard, getenv: func(string) string { return "" }}}
	log := slog.New(slog.DiscardHandler)
	client, done, err := a.connect(ctx, clientConfig{server: w.URL(), socket: "unix://" + w.Socket(identity)})
	if err != nil {
		return err
	}
	defer done()
	if g.calls, err = (&callFlags{ca: w.Bundle()}).newCalls(a, client, log); err != nil {
		return err
	}
	l, err := (&peerSocket{path: g.path, peer: fmt.Sprint(g.uid)}).listen(log, refuseStream)
	if err != nil {
		return err
	}
	close(listening)
	server := mcp.New(mcp.Config{Calls: g.calls.calls})
	return g.calls.while(ctx, a, func(ctx context.Context) error {
		return serveStreams(ctx, l, log, func(ctx context.Context, s io.ReadWriteCloser) error { return server.Run(ctx, client, s, s) })
	})
}

// says sends one call of a tool as a user, and returns the answer.
func (g *agentOnHost) says(t *testing.T, program string, uid uint32, tool, arguments string) string {
	t.Helper()
	client := exec.Command(program, g.path)
	client.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	client.Stdin = strings.NewReader(`{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"` + tool + `","arguments":` + arguments +
		`,"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}}}` + "\n")
	var out bytes.Buffer
	client.Stdout = &out
	_ = client.Run() // a client that may not connect fails; the answer tells
	return out.String()
}

func checkTwoAgents(t *testing.T, program string, w *devworld.World, agents []*agentOnHost) {
	t.Helper()
	secrets := map[string]bool{}
	for i, g := range agents {
		arguments := fmt.Sprintf(`{"url":%q,"reason":"a test"}`, w.TicketsURL()+"/tickets/4711/headers")
		if answer := g.says(t, program, g.uid, "call_api", arguments); !strings.Contains(answer, `"scrubbed":true`) || strings.Contains(answer, "eyJ") {
			t.Errorf("agent %d: got %s", i, answer)
		}
		for _, c := range g.calls.keeper.Held() {
			secrets[c.Secret["token"]] = true
		}
		if answer := g.says(t, program, agents[1-i].uid, "call_api", arguments); strings.Contains(answer, "result") {
			t.Errorf("the other user on the socket of agent %d: got %s", i, answer)
		}
	}
	if len(secrets) != len(agents) {
		t.Errorf("the agents have %d credentials, want one each", len(secrets))
	}
	for i, g := range agents {
		for _, c := range agents[1-i].calls.keeper.Held() {
			for _, handle := range []string{c.Lease, c.Request} {
				for _, tool := range []string{"access_status", "release_access"} {
					if answer := g.says(t, program, g.uid, tool, fmt.Sprintf(`{"handle":%q}`, handle)); !strings.Contains(answer, "not_found") {
						t.Errorf("agent %d, %s of the handle of the other one: got %s", i, tool, answer)
					}
				}
			}
			if l, err := agents[1-i].calls.source.Client.Lease(t.Context(), c.Lease); err != nil || l.Status != api.LeaseActive {
				t.Errorf("the credential of the other agent: %+v, %v", l, err)
			}
		}
	}
}
