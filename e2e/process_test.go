package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A process is a server that ends with the test that owns it. Its output is
// shown if that test fails.
type process struct {
	cmd  *exec.Cmd
	out  *output
	done chan struct{}
}

type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// start starts a server. The owner is the test at whose end it ends, which is
// not always the one that starts it: a subtest may restart what others use.
func start(owner *testing.T, name, path string, args ...string) (*process, error) {
	return startIn(nil, owner, name, path, args...)
}

// startIn is start, in another environment than the tests'.
func startIn(env []string, owner *testing.T, name, path string, args ...string) (*process, error) {
	p := &process{cmd: exec.Command(path, args...), out: &output{}, done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.Env = p.out, p.out, env
	// A test binary that is killed takes its servers with it.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	go func() { _ = p.cmd.Wait(); close(p.done) }()
	owner.Cleanup(func() {
		p.stop()
		if owner.Failed() {
			owner.Logf("%s said:\n%s", name, p.out)
		}
	})
	return p, nil
}

// stop ends the process in order, and waits for it.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(30 * time.Second):
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		<-p.done
	}
}

// kill ends the process as a crash would, and waits for it.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// eventually polls until the condition holds.
func eventually(t *testing.T, what string, within time.Duration, holds func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := holds()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s did not happen within %s: %v", what, within, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

var ports struct {
	sync.Mutex
	given map[int]bool
}

// freePort gives a port that nobody listens on. It is below those that systems
// give to outgoing connections (from 32768 on Linux), so that none of these
// takes it before its server does.
func freePort(t *testing.T) int {
	t.Helper()
	ports.Lock()
	defer ports.Unlock()
	if ports.given == nil {
		ports.given = map[int]bool{}
	}
	for range 1000 {
		port := 20000 + rand.IntN(12000)
		if ports.given[port] {
			continue
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		_ = l.Close()
		ports.given[port] = true
		return port
	}
	t.Fatal("no port is free")
	return 0
}

// another gives a binary under another path, which makes another workload of
// it. It is a link, for a file that was just written can't be executed as long
// as any child that was forked meanwhile holds it open (golang/go#22315).
func another(t *testing.T, binary, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.Link(binary, path); err == nil {
		return path
	}
	text, err := os.ReadFile(binary)
	if err == nil {
		err = os.WriteFile(path, text, 0o755)
	}
	if err != nil {
		t.Fatalf("copying %s: %v", binary, err)
	}
	return path
}

// self is the test's own binary, as the agent sees it.
func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		t.Fatalf("finding the test's own binary: %v", err)
	}
	return path
}
