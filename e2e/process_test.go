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

// A process is a server that ends with the test that owns it. If that test
// fails, it shows the server's output.
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

// start starts a server that ends with its owner. The owner is not always the
// test that calls start: a subtest may restart a server that others use.
func start(owner testing.TB, name, path string, args ...string) (*process, error) {
	return startIn(nil, owner, name, path, args...)
}

// startIn is start with an environment; nil is the environment of the tests.
func startIn(env []string, owner testing.TB, name, path string, args ...string) (*process, error) {
	p := &process{cmd: exec.Command(path, args...), out: &output{}, done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.Env = p.out, p.out, env
	// If the test binary is killed, the kernel kills its servers, too.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	go func() { _ = p.cmd.Wait(); close(p.done) }()
	owner.Cleanup(func() {
		p.stop()
		if owner.Failed() {
			owner.Logf("the output of %s:\n%s", name, p.out)
		}
	})
	return p, nil
}

// stop sends SIGTERM and waits for the end of the process.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(30 * time.Second):
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		<-p.done
	}
}

// kill ends the process as a crash would and waits for its end.
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

// eventually calls check until it returns nil. The limit only bounds how long a
// failing test waits: choose it so large that a slow machine never reaches it.
func eventually(t testing.TB, what string, limit time.Duration, check func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for %s: %v", limit, what, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

var ports struct {
	sync.Mutex
	taken map[int]bool
}

// freePort returns a port on which no server listens. It is below the range of
// outgoing connections (from 32768 on Linux), so that none of them takes the
// port before its server does.
func freePort(t testing.TB) int {
	t.Helper()
	ports.Lock()
	defer ports.Unlock()
	if ports.taken == nil {
		ports.taken = map[int]bool{}
	}
	for range 1000 {
		port := 20000 + rand.IntN(12000)
		if ports.taken[port] {
			continue
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		_ = l.Close()
		ports.taken[port] = true
		return port
	}
	t.Fatal("no port is free")
	return 0
}

// copyBinary returns another path for a binary. SPIRE tells workloads apart by
// their paths, so the copy is another workload. The copy is a hard link if
// possible: a file that was just written can't be executed while a child that was
// forked in the meantime has it open (golang/go#22315).
func copyBinary(t testing.TB, binary, name string) string {
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

// ownBinary returns the path of the test binary, as the SPIRE agent sees it.
func ownBinary(t testing.TB) string {
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
