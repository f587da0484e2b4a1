package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"accessbroker.internal/e2e/cluster"
)

// A process is a server that ends with the test that owns it. If that test
// fails, it shows the server's output.
type process struct {
	*cluster.Process
	cmd  *exec.Cmd
	out  *cluster.Output
	done <-chan struct{}
}

// start starts a server that ends with its owner. The owner is not always the
// test that calls start: a subtest may restart a server that others use.
func start(owner testing.TB, name, path string, args ...string) (*process, error) {
	return startIn(nil, owner, name, path, args...)
}

// startIn is start with an environment; nil is the environment of the tests.
func startIn(env []string, owner testing.TB, name, path string, args ...string) (*process, error) {
	started, err := cluster.Launch(cluster.Command{Name: name, Path: path, Args: args, Env: env})
	if err != nil {
		return nil, err
	}
	owner.Cleanup(func() {
		started.Stop()
		if owner.Failed() {
			owner.Logf("the output of %s:\n%s", name, started.Out)
		}
	})
	return &process{Process: started, cmd: started.Cmd, out: started.Out, done: started.Done}, nil
}

func (p *process) stop()       { p.Stop() }
func (p *process) kill()       { p.Kill() }
func (p *process) ended() bool { return p.Ended() }

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

// freePort returns a port on which no server listens.
func freePort(t testing.TB) int {
	t.Helper()
	port, err := cluster.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	return port
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
