package servers

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Ensure builds the servers that are missing and installs the packages that are
// missing, one after another, and writes its progress to out. It continues after
// a failure, so that one run shows every failure.
func Ensure(ctx context.Context, out io.Writer) error {
	var all []error
	for _, d := range dependencies {
		if err := d.ensure(ctx, out); err != nil {
			all = append(all, err)
		}
	}
	all = append(all, ensureNPM(ctx, out), ensureGenerator(ctx, out))
	return errors.Join(append(all, ensureBuilt(ctx, out)...)...)
}

func ensureBuilt(ctx context.Context, out io.Writer) (failures []error) {
	for _, s := range all {
		if err := s.ensure(ctx, out); err != nil {
			fmt.Fprintf(out, "%s: %v\n", s.name, err)
			failures = append(failures, fmt.Errorf("%s could not be built", s.name))
		}
	}
	return failures
}

// ensure installs the package with apt-get. Only root can do that.
func (d dependency) ensure(ctx context.Context, out io.Writer) error {
	if d.find() != "" {
		return nil
	}
	apt, err := exec.LookPath("apt-get")
	if err != nil || os.Getuid() != 0 {
		return fmt.Errorf("%s is missing: install Debian's package %s or its equivalent", d.command, d.debian)
	}
	for _, args := range [][]string{{"update"}, {"install", "-y", "--no-install-recommends", d.debian}} {
		fmt.Fprintf(out, "%s: apt-get %s\n", d.command, strings.Join(args, " "))
		cmd := exec.CommandContext(ctx, apt, append([]string{"-o", "DPkg::Lock::Timeout=300"}, args...)...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if text, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("apt-get %s: %w\n%s", strings.Join(args, " "), err, text)
		}
	}
	if d.find() == "" {
		return fmt.Errorf("package %s is installed, but it has no %s", d.debian, d.command)
	}
	return nil
}

// ensure builds the server next to its folder and renames the result, so that an
// interrupted build is never mistaken for a finished one. A lock keeps two runs
// from building the same server.
func (s server) ensure(ctx context.Context, out io.Writer) error {
	dir, err := s.dir()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	unlock, err := lockFile(ctx, dir+".lock", func() { fmt.Fprintf(out, "%s: waiting for another build of it\n", s.name) })
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := os.Stat(dir); err == nil {
		fmt.Fprintf(out, "%s: ready\n", s.name)
		return nil
	}
	temp := dir + ".building"
	if err := os.RemoveAll(temp); err != nil {
		return err
	}
	if err := os.Mkdir(temp, 0o755); err != nil {
		return err
	}
	if err := s.build(ctx, temp, out); err != nil {
		return err
	}
	return os.Rename(temp, dir)
}

func (s server) build(ctx context.Context, dir string, out io.Writer) error {
	if s.name == "spire" {
		if err := needCompiler(); err != nil {
			return err
		}
	}
	work, err := os.MkdirTemp("", "servers-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(work) }()
	args := []string{"build", "-v", "-trimpath"}
	if s.strip {
		args = append(args, "-ldflags=-s -w")
	}
	if s.clock {
		flag, err := settableClock(work)
		if err != nil {
			return err
		}
		args = append(args, flag)
	}
	if s.name == "vault" {
		mod, err := patchVaultSDK(ctx, s, work)
		if err != nil {
			return err
		}
		args = append(args, "-modfile="+mod)
	}
	cmd := exec.CommandContext(ctx, "go", append(append(args, "-o", dir+"/"), s.packages...)...)
	cmd.Dir, cmd.Env = s.tool(), s.environment()
	// The compilers are children of the go command and have to end with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	return s.run(ctx, cmd, out)
}

// environment returns the environment of the build. The last value of a name
// wins.
func (s server) environment() []string {
	cgo := "0"
	if s.cgo {
		cgo = "1"
	}
	return append(os.Environ(), "GOFLAGS=-mod=readonly -buildvcs=false", "GOWORK=off", "CGO_ENABLED="+cgo)
}

// run runs a build and reports every 30 s how far it is. On failure, the error
// ends with the last lines of the compiler's output.
func (s server) run(ctx context.Context, cmd *exec.Cmd, out io.Writer) error {
	fmt.Fprintf(out, "%s: building; this takes 5 to 12 minutes, once\n", s.name)
	log, began, done := &buildLog{}, time.Now(), make(chan struct{})
	cmd.Stdout, cmd.Stderr = log, log
	var reporter sync.WaitGroup
	reporter.Go(func() {
		tick := time.NewTicker(30 * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				fmt.Fprintf(out, "%s: building for %s, %s\n", s.name, time.Since(began).Round(time.Second), log)
			}
		}
	})
	err := cmd.Run()
	close(done)
	reporter.Wait()
	if ctx.Err() != nil {
		return fmt.Errorf("stopped after %s (%s): %w; a later run reuses the compiled packages", time.Since(began).Round(time.Second), log, context.Cause(ctx))
	}
	if err != nil {
		return fmt.Errorf("%w\n%s", err, log.tail())
	}
	fmt.Fprintf(out, "%s: built in %s\n", s.name, time.Since(began).Round(time.Second))
	return nil
}

// A buildLog keeps the output of go build -v: a line for each package.
type buildLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *buildLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *buildLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return fmt.Sprintf("%d packages compiled", bytes.Count(l.b.Bytes(), []byte("\n")))
}

func (l *buildLog) tail() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	lines := strings.Split(strings.TrimSpace(l.b.String()), "\n")
	return strings.Join(lines[max(0, len(lines)-40):], "\n")
}

func needCompiler() error {
	out, err := exec.Command("go", "env", "CC").Output()
	if err != nil {
		return fmt.Errorf("reading the name of the C compiler: %w", err)
	}
	if _, err := exec.LookPath(strings.Fields(string(out) + " cc")[0]); err != nil {
		return fmt.Errorf("building SPIRE needs a C compiler: install one (gcc, or clang and CC=clang): %w", err)
	}
	return nil
}

// lockFile takes the lock. It calls waiting once if another process has it.
func lockFile(ctx context.Context, path string, waiting func()) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	for first := true; ; first = false {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errors.Join(err, f.Close())
		}
		if first {
			waiting()
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(context.Cause(ctx), f.Close())
		case <-time.After(time.Second):
		}
	}
}

// Vault's published modules and its published SDK differ in one line.
const (
	vaultSDK       = "github.com/hashicorp/vault/sdk"
	vaultSDKBefore = "ActivationFunc func(context.Context, *logical.Request, string) error"
	vaultSDKAfter  = "ActivationFunc func(context.Context, *logical.Request) error"
)

// patchVaultSDK copies the SDK that the tool's go.mod names from the module cache,
// edits the line, and returns the path of a go.mod that uses the copy. This
// repository contains no source of Vault.
func patchVaultSDK(ctx context.Context, s server, work string) (modfile string, err error) {
	cmd := exec.CommandContext(ctx, "go", "mod", "download", "-json", vaultSDK)
	cmd.Dir, cmd.Env = s.tool(), s.environment()
	out, err := cmd.Output()
	var module struct{ Dir string }
	if err := errors.Join(err, json.Unmarshal(out, &module)); err != nil || module.Dir == "" {
		return "", fmt.Errorf("downloading %s: %w\n%s", vaultSDK, err, out)
	}
	sdk := filepath.Join(work, "sdk")
	if err := os.CopyFS(sdk, os.DirFS(module.Dir)); err != nil {
		return "", err
	}
	path := filepath.Join(sdk, "framework", "backend.go")
	text, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	if bytes.Count(text, []byte(vaultSDKBefore)) != 1 {
		return "", fmt.Errorf("the line to edit is not in %s of %s", path, vaultSDK)
	}
	if err := os.Chmod(path, 0o644); err != nil { // the module cache is read-only
		return "", err
	}
	if err := os.WriteFile(path, bytes.Replace(text, []byte(vaultSDKBefore), []byte(vaultSDKAfter), 1), 0o644); err != nil {
		return "", err
	}
	for _, f := range []string{"go.mod", "go.sum"} {
		text, err := os.ReadFile(filepath.Join(s.tool(), f))
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(work, f), text, 0o644); err != nil {
			return "", err
		}
	}
	mod := filepath.Join(work, "go.mod")
	if out, err := exec.CommandContext(ctx, "go", "mod", "edit", "-replace", vaultSDK+"="+sdk, mod).CombinedOutput(); err != nil {
		return "", fmt.Errorf("replacing %s by the copy: %w\n%s", vaultSDK, err, out)
	}
	return mod, nil
}
