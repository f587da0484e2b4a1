package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// dial [--hold] SOCKET is a client of a Unix socket on standard streams. It ends when the
// server does, or after the answer to the last of three lines; with --hold, it then creates
// SOCKET.answered and stays.
func dial() {
	path := os.Args[len(os.Args)-1]
	hold := len(os.Args) == 3
	c, err := net.Dial("unix", path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	_, _ = io.Copy(c, os.Stdin) // a server that refuses may have closed
	lines := bufio.NewScanner(c)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		fmt.Println(lines.Text())
		if !strings.Contains(lines.Text(), `"id":2,`) {
			continue
		}
		if !hold {
			return
		}
		if err := os.WriteFile(path+".answered", nil, 0o600); err != nil {
			os.Exit(1)
		}
	}
}

// The peer credentials decide, even if the socket's mode would let another user connect.
func TestSocketOfAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("starting a process of another user needs root")
	}
	const nobody = 65534
	dir, err := os.MkdirTemp("", "mcp")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	program := copied(t, dir)
	for _, test := range []struct {
		name, peer string
		uid        uint32
		served     bool
	}{
		{"own user", "", 0, true}, {"another user", "", nobody, false},
		{"the user of --peer", "65534", nobody, true}, {"root with --peer", "65534", 0, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(dir, "s.sock")
			ctx, stop := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			socket := peerSocket{path: path, peer: test.peer}
			go func() {
				ended <- socket.serveMCP(ctx, slog.New(slog.DiscardHandler), func(_ context.Context, s io.ReadWriteCloser) error {
					_, err := io.WriteString(s, `{"id":2,"result":"served"}`+"\n")
					return err
				})
			}()
			for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
				if os.Chmod(dir, 0o755) == nil && os.Chmod(path, 0o666) == nil { // the second wall stands alone
					break
				}
				if time.Now().After(deadline) {
					t.Fatal("the socket does not appear")
				}
			}
			client := exec.Command(program, path)
			client.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: test.uid, Gid: test.uid}}
			var out bytes.Buffer
			client.Stdout = &out
			if err := client.Run(); err != nil {
				t.Errorf("dial: %v", err)
			}
			if got := strings.Contains(out.String(), "served"); got != test.served {
				t.Errorf("got %q", out.String())
			}
			if !test.served && !strings.Contains(out.String(), "belongs to user") {
				t.Errorf("the refusal says %q", out.String())
			}
			stop()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
}

// copied returns a copy of this program as "dial", which other users can execute.
func copied(t *testing.T, dir string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "dial")
	if err := os.WriteFile(program, text, 0o755); err != nil {
		t.Fatal(err)
	}
	return program
}
