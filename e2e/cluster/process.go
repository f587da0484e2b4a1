// Package cluster runs several brokers, and what they need, as processes on loopback:
// PostgreSQL with a standby, PgBouncer, HAProxy, and relays that cut, delay and hold
// connections. Tests and "make cluster" use it. Every process ends with the program
// that started it.
package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// A Command describes a process.
type Command struct {
	Name, Path string
	Args       []string
	Env        []string // nil: the environment of the program
	Log        string   // a file to append the output to; empty: the output is kept in memory
}

// A Process is a running or ended process.
type Process struct {
	Cmd  *exec.Cmd
	Out  *Output
	Done chan struct{} // closed at its end
}

// An Output is what a process wrote to its standard output and standard error.
type Output struct {
	mu   sync.Mutex
	b    bytes.Buffer
	file string
}

func (o *Output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *Output) String() string {
	if o.file != "" {
		text, err := os.ReadFile(o.file)
		if err != nil {
			return err.Error()
		}
		return string(text)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// Launch starts a process.
func Launch(c Command) (*Process, error) {
	p := &Process{Cmd: exec.Command(c.Path, c.Args...), Out: &Output{file: c.Log}, Done: make(chan struct{})}
	p.Cmd.Stdout, p.Cmd.Stderr, p.Cmd.Env = p.Out, p.Out, c.Env
	if c.Log != "" {
		f, err := os.OpenFile(c.Log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			return nil, fmt.Errorf("starting %s: %w", c.Name, err)
		}
		defer func() { _ = f.Close() }() // the process has its own descriptor
		p.Cmd.Stdout, p.Cmd.Stderr = f, f
	}
	// If the program is killed, the kernel kills its processes, too.
	p.Cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := StartOnThread(p.Cmd); err != nil {
		return nil, fmt.Errorf("starting %s: %w", c.Name, err)
	}
	go func() { _ = p.Cmd.Wait(); close(p.Done) }()
	return p, nil
}

// starts are commands to start on the thread that does nothing else.
var starts = sync.OnceValue(func() chan<- func() {
	c := make(chan func())
	go func() {
		runtime.LockOSThread() // for the life of the program
		for start := range c {
			start()
		}
	}()
	return c
})

// StartOnThread starts a command on a thread that lives as long as the program. The signal of
// the parent's death is sent when the thread ends that started the process, and the thread of
// a goroutine that locked it ends with the goroutine.
func StartOnThread(cmd *exec.Cmd) error {
	started := make(chan error)
	starts() <- func() { started <- cmd.Start() }
	return <-started
}

// Stop sends SIGTERM and waits for the end of the process.
func (p *Process) Stop() { p.end(syscall.SIGTERM) }

func (p *Process) end(s syscall.Signal) {
	_ = p.Cmd.Process.Signal(s)
	_ = p.Cmd.Process.Signal(syscall.SIGCONT) // it may be suspended
	select {
	case <-p.Done:
	case <-time.After(30 * time.Second):
		_ = syscall.Kill(-p.Cmd.Process.Pid, syscall.SIGKILL)
		<-p.Done
	}
}

// Kill ends the process as a crash would and waits for its end.
func (p *Process) Kill() {
	_ = p.Cmd.Process.Kill()
	<-p.Done
}

// Ended reports whether the process has ended.
func (p *Process) Ended() bool {
	select {
	case <-p.Done:
		return true
	default:
		return false
	}
}

// errEnded means that waiting is in vain.
var errEnded = errors.New("it ended")

// Await calls check until it returns nil. The limit only bounds how long a failure takes.
func Await(ctx context.Context, what string, limit time.Duration, check func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := check()
		if err == nil {
			return nil
		}
		if errors.Is(err, errEnded) {
			return fmt.Errorf("waiting for %s: %w", what, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w: %w", what, context.Cause(ctx), err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

var ports struct {
	sync.Mutex
	taken map[int]bool
}

// FreePort returns a port of 127.0.0.1 on which no server listens. It is below the range of
// outgoing connections (from 32768 on Linux), so that none of them takes the port before
// its server does.
func FreePort() (int, error) {
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
		return port, nil
	}
	return 0, errors.New("no port is free")
}

// Build builds the broker. Flags are further flags of "go build".
func Build(ctx context.Context, path string, flags ...string) error {
	dir, err := moduleDir(ctx)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", append(append([]string{"build", "-buildvcs=false", "-o", path}, flags...), "./cmd/broker")...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building broker: %w\n%s", err, out)
	}
	return nil
}

// moduleDir returns the folder of the product's source. The working directory is in the
// e2e module.
func moduleDir(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "accessbroker.internal").Output()
	if err != nil {
		return "", fmt.Errorf("finding the product's source: %w", err)
	}
	return filepath.Clean(string(bytes.TrimSpace(out))), nil
}
