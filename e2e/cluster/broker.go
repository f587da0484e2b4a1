package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"accessbroker.internal/api"
)

// A Broker is one replica: the real program with an operator's file of its own.
type Broker struct {
	Name    string // such as broker-1
	Binary  string
	Address string   // for direct calls
	Proxied string   // for a load balancer that sends the PROXY protocol
	Metrics string   // address of /metrics, /healthz and /readyz
	Env     []string // added to the environment of the program, such as servers.ClockEnv

	dir     string
	process *Process
}

// ConfigFile returns the path of the operator's file.
func (b *Broker) ConfigFile() string { return filepath.Join(b.dir, b.Name+".yaml") }

// AdminSocket returns the path of the admin socket.
func (b *Broker) AdminSocket() string { return filepath.Join(b.dir, b.Name+".sock") }

// CheckpointFile returns the path of the replica's own copy of the last checkpoint.
func (b *Broker) CheckpointFile() string { return filepath.Join(b.dir, b.Name+".checkpoint") }

// LogFile returns the path of the log of all processes of the replica.
func (b *Broker) LogFile() string { return filepath.Join(b.dir, b.Name+".log") }

// Output returns the log of all processes of the replica.
func (b *Broker) Output() string { return (&Output{file: b.LogFile()}).String() }

// Process returns the last process of the replica. It is nil before Start.
func (b *Broker) Process() *Process { return b.process }

// Launch starts the replica and does not wait until it is ready.
func (b *Broker) Launch() (err error) {
	b.process, err = Launch(Command{
		Name: b.Name, Path: b.Binary, Args: []string{"serve", "--config", b.ConfigFile()},
		Env: slices.Concat(os.Environ(), b.Env), Log: b.LogFile(),
	})
	return err
}

// Start starts the replica and waits until it is ready.
func (b *Broker) Start(ctx context.Context) error {
	if err := b.Launch(); err != nil {
		return err
	}
	return b.AwaitReady(ctx)
}

// AwaitReady waits until the replica is ready.
func (b *Broker) AwaitReady(ctx context.Context) error {
	return Await(ctx, b.Name, time.Minute, func() error {
		if b.process.Ended() {
			return fmt.Errorf("%w with %s:\n%s", errEnded, b.process.Cmd.ProcessState, b.Output())
		}
		r, err := b.Ready(ctx)
		if err == nil && !r.Ready {
			err = fmt.Errorf("not ready: %v", r.NotReady)
		}
		return err
	})
}

// Stop ends the replica in an orderly way. It returns an error if that failed.
func (b *Broker) Stop() error {
	b.process.Stop()
	if code := b.process.Cmd.ProcessState.ExitCode(); code != 0 {
		return fmt.Errorf("%s ended with %s:\n%s", b.Name, b.process.Cmd.ProcessState, b.Output())
	}
	return nil
}

// Kill ends the replica as a crash would.
func (b *Broker) Kill() { b.process.Kill() }

// Pause suspends the replica.
func (b *Broker) Pause() error { return b.process.Cmd.Process.Signal(syscall.SIGSTOP) }

// Resume ends Pause.
func (b *Broker) Resume() error { return b.process.Cmd.Process.Signal(syscall.SIGCONT) }

// Ready returns the answer of /readyz.
func (b *Broker) Ready(ctx context.Context) (r api.Readiness, err error) {
	_, text, err := b.Probe(ctx, "/readyz")
	if err == nil {
		err = json.Unmarshal(text, &r)
	}
	return r, err
}

// Probe calls a path of the listener for metrics.
func (b *Broker) Probe(ctx context.Context, path string) (status int, text []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+b.Metrics+path, nil)
	if err != nil {
		return 0, nil, err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(r)
	if err != nil {
		return 0, nil, err
	}
	text, err = io.ReadAll(resp.Body)
	return resp.StatusCode, text, errors.Join(err, resp.Body.Close())
}

// CLI runs a command of the program to its end and returns its output.
func (b *Broker) CLI(ctx context.Context, args ...string) (stdout string, err error) {
	return run(ctx, b.Binary, b.Env, args...)
}

// run runs a command to its end. Its standard error is part of the error.
func run(ctx context.Context, path string, env []string, args ...string) (string, error) {
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = slices.Concat(os.Environ(), env), &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %v: %w: %s", filepath.Base(path), args, err, errs.String())
	}
	return out.String(), nil
}
