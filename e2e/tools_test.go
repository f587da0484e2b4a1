// Package e2e runs the product against real servers: SPIRE, built once into
// the user's cache. Every server is started by the test that needs it, on
// loopback, in a temporary folder, and ends with it.
package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var builds struct {
	sync.Mutex
	done map[string]string
}

// built builds once what build builds into an empty folder, and gives the
// folder. It is kept in the user's cache under the key.
func built(t *testing.T, name, key string, build func(dir string) *exec.Cmd) string {
	t.Helper()
	builds.Lock()
	defer builds.Unlock()
	if dir := builds.done[name]; dir != "" {
		return dir
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(cache, "access-broker", "e2e", name+"-"+key)
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	unlock := lockFile(t, dir+".lock")
	defer unlock()
	if _, err := os.Stat(dir); err != nil {
		buildInto(t, name, dir, build)
	}
	if builds.done == nil {
		builds.done = map[string]string{}
	}
	builds.done[name] = dir
	return dir
}

// buildInto builds beside the folder and renames, so that a build that was
// killed is not taken for one that ended.
func buildInto(t *testing.T, name, dir string, build func(dir string) *exec.Cmd) {
	t.Helper()
	temp := dir + ".building"
	if err := os.RemoveAll(temp); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(temp, 0o755); err != nil {
		t.Fatal(err)
	}
	fmt.Printf("building %s into %s: this takes 5 to 12 minutes, once\n", name, dir)
	began, done := time.Now(), make(chan struct{})
	go func() {
		tick := time.NewTicker(30 * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				fmt.Printf("building %s: for %s now\n", name, time.Since(began).Round(time.Second))
			}
		}
	}()
	out, err := build(temp).CombinedOutput()
	close(done)
	if err != nil {
		t.Fatalf("building %s: %v\n%s", name, err, out)
	}
	fmt.Printf("building %s: done after %s\n", name, time.Since(began).Round(time.Second))
	if err := os.Rename(temp, dir); err != nil {
		t.Fatal(err)
	}
}

// lockFile keeps a second run of the suite from building the same.
func lockFile(t *testing.T, path string) (unlock func()) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	return func() { _ = f.Close() }
}

// spireBinaries builds SPIRE's server and agent. Its SQLite is written in C:
// without a C compiler, what is built would not start.
func spireBinaries(t *testing.T) string {
	t.Helper()
	h := sha256.New()
	for _, f := range []string{"go.mod", "go.sum"} {
		text, err := os.ReadFile(filepath.Join("tools", "spire", f))
		if err != nil {
			t.Fatal(err)
		}
		h.Write(text)
	}
	return built(t, "spire", hex.EncodeToString(h.Sum(nil)[:6]), func(dir string) *exec.Cmd {
		if out, err := exec.Command("go", "env", "CC").Output(); err == nil {
			if _, err := exec.LookPath(strings.Fields(string(out) + " cc")[0]); err != nil {
				t.Fatalf("building SPIRE needs a C compiler: install one (gcc, or clang and CC=clang): %v", err)
			}
		}
		cmd := exec.Command("go", "build", "-o", dir+"/", "github.com/spiffe/spire/cmd/spire-server", "github.com/spiffe/spire/cmd/spire-agent")
		cmd.Dir = filepath.Join("tools", "spire")
		cmd.Env = append(os.Environ(), "GOFLAGS=-mod=readonly -buildvcs=false", "GOWORK=off", "CGO_ENABLED=1") // the last of a name wins
		return cmd
	})
}

var brokerOnce struct {
	sync.Once
	path string
	err  error
}

// brokerBinary builds the product, anew for each run of the suite.
func brokerBinary(t *testing.T) string {
	t.Helper()
	brokerOnce.Do(func() {
		dir, err := os.MkdirTemp("", "broker-e2e-")
		if err != nil {
			brokerOnce.err = err
			return
		}
		brokerOnce.path = filepath.Join(dir, "broker")
		brokerOnce.err = buildBroker(brokerOnce.path)
	})
	if brokerOnce.err != nil {
		t.Fatal(brokerOnce.err)
	}
	return brokerOnce.path
}

func buildBroker(path string, flags ...string) error {
	cmd := exec.Command("go", slices.Concat([]string{"build", "-buildvcs=false", "-o", path}, flags, []string{"./cmd/broker"})...)
	cmd.Dir = ".."
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building broker: %w\n%s", err, out)
	}
	return nil
}

func TestMain(m *testing.M) {
	if audience := os.Getenv(workloadEnv); audience != "" {
		os.Exit(beWorkload(audience))
	}
	code := m.Run()
	if brokerOnce.path != "" {
		_ = os.RemoveAll(filepath.Dir(brokerOnce.path))
	}
	os.Exit(code)
}
