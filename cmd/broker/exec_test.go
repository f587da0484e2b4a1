//go:build linux

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"accessbroker.internal/api"
	"accessbroker.internal/internal/brokertest"
)

// signals prints each signal that it gets. SIGTERM ends it.
func signals() {
	all := make(chan os.Signal, 16)
	signal.Notify(all, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGALRM, syscall.SIGTERM)
	fmt.Println("ready")
	for s := range all {
		fmt.Println("got", s)
		if s == syscall.SIGTERM {
			return
		}
	}
}

// An execWorld runs a broker, and "broker exec" in a process of its own.
type execWorld struct {
	*brokertest.World
	t *testing.T
}

func newExecWorld(t *testing.T) *execWorld {
	w := brokertest.NewWorld(t)
	w.StartIdentities()
	w.Start(io.Discard)
	return &execWorld{w, t}
}

func (w *execWorld) command(args ...string) *exec.Cmd {
	cmd := exec.Command("broker", args...)
	cmd.Env = append(os.Environ(), "BROKER_URL="+w.URL(), "SPIFFE_ENDPOINT_SOCKET=unix://"+w.Socket("agent"))
	return cmd
}

func (w *execWorld) exec(flags, command []string) *exec.Cmd {
	args := append([]string{"exec", "tickets-api", "--scope", "tickets:read", "--why", "a test"}, flags...)
	return w.command(append(append(args, "--"), command...)...)
}

// wantReturned checks that n leases were opened, and that each has been returned.
func (w *execWorld) wantReturned(n int) {
	w.t.Helper()
	page, err := w.Agent().Leases(w.t.Context(), api.LeaseFilter{})
	if err != nil {
		w.t.Fatal(err)
	}
	if len(page.Leases) != n {
		w.t.Errorf("got %d leases, want %d", len(page.Leases), n)
	}
	for _, l := range page.Leases {
		if l.Status != api.LeaseRevoked {
			w.t.Errorf("lease %s is %s, want %s", l.ID, l.Status, api.LeaseRevoked)
		}
	}
}

// exitCodeOf waits for the command.
func exitCodeOf(t *testing.T, cmd *exec.Cmd) int {
	t.Helper()
	_ = cmd.Wait() // the state has the exit code
	if cmd.ProcessState == nil {
		t.Fatal("the command did not start")
	}
	return cmd.ProcessState.ExitCode()
}

// startReady starts a command and returns its output after the line "ready".
func startReady(t *testing.T, cmd *exec.Cmd) *bufio.Scanner {
	t.Helper()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	wantLine(t, lines, "ready")
	return lines
}

// wantLine reads lines until one is want. It fails at another line about a signal.
func wantLine(t *testing.T, r *bufio.Scanner, want string) {
	t.Helper()
	for r.Scan() {
		line := strings.TrimPrefix(strings.TrimPrefix(strings.TrimSpace(r.Text()), "^C"), `^\`) // a terminal's echo
		if line == want {
			return
		}
		if strings.HasPrefix(line, "got ") {
			t.Fatalf("read %q, want %q", line, want)
		}
	}
	t.Fatalf("the output ended, want %q", want)
}

// terminate ends a command of exec by a signal to exec, and checks the end of both.
func (w *execWorld) terminate(cmd *exec.Cmd, lines *bufio.Scanner) {
	w.t.Helper()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		w.t.Fatal(err)
	}
	wantLine(w.t, lines, "got terminated")
	if code := exitCodeOf(w.t, cmd); code != 0 {
		w.t.Errorf("exit code %d, want 0", code)
	}
	w.wantReturned(1)
}

func TestExecRelaysSignals(t *testing.T) {
	w := newExecWorld(t)
	cmd := w.exec(nil, []string{"signals"})
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // no terminal
	lines := startReady(t, cmd)
	for _, s := range []syscall.Signal{syscall.SIGINT, syscall.SIGQUIT, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGALRM, syscall.SIGINT} {
		// The whole group, as a supervisor does it.
		if err := syscall.Kill(-cmd.Process.Pid, s); err != nil {
			t.Fatal(err)
		}
		wantLine(t, lines, "got "+s.String())
	}
	w.terminate(cmd, lines)
}

// A terminal sends Ctrl-C to its whole foreground group, in which the command is. A
// command may survive it; the credential then stays.
func TestExecInTerminal(t *testing.T) {
	w := newExecWorld(t)
	master, slave := openTerminal(t)
	cmd := w.exec(nil, []string{"signals"})
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(master)
	wantLine(t, lines, "ready")
	for _, key := range []struct{ key, want string }{{"\x03", "got interrupt"}, {"\x1c", "got quit"}, {"\x03", "got interrupt"}} {
		if _, err := master.WriteString(key.key); err != nil {
			t.Fatal(err)
		}
		wantLine(t, lines, key.want)
	}
	// A second delivery of one of them would arrive before this one.
	w.terminate(cmd, lines)
}

func TestKilledExecEndsItsCommand(t *testing.T) {
	w := newExecWorld(t)
	cmd := w.exec(nil, []string{"signals"})
	lines := startReady(t, cmd)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	wantLine(t, lines, "got terminated")
	exitCodeOf(t, cmd)
}

// A command that can't run costs no credential.
func TestExecLooksUpCommandFirst(t *testing.T) {
	w := newExecWorld(t)
	dir := t.TempDir()
	notExecutable := filepath.Join(dir, "data")
	if err := os.WriteFile(notExecutable, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	for command, want := range map[string]int{
		"no-such-command": 127, filepath.Join(dir, "missing"): 127, filepath.Join(notExecutable, "below"): 126,
		notExecutable: 126, dir: 126, "": 127,
	} {
		if out, err := w.exec(nil, []string{command}).CombinedOutput(); err == nil || exitStatus(err) != want {
			t.Errorf("%q: got %v, want exit code %d: %s", command, err, want, out)
		}
	}
	w.wantReturned(0)
}

func exitStatus(err error) int {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return -1
	}
	return exit.ExitCode()
}

// Whatever is at the path of --file and is not exec's stays as it is.
func TestExecKeepsOtherFiles(t *testing.T) {
	w := newExecWorld(t)
	dir := t.TempDir()
	target := filepath.Join(dir, "target")
	for name, create := range map[string]func(path string) error{
		"file":       func(path string) error { return os.WriteFile(path, []byte("a CA"), 0o600) },
		"empty file": func(path string) error { return os.WriteFile(path, nil, 0o600) },
		"folder":     func(path string) error { return os.Mkdir(path, 0o700) },
		"pipe":       func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"link": func(path string) error {
			return errors.Join(os.WriteFile(target, []byte("a key"), 0o600), os.Symlink(target, path))
		},
		"dangling link": func(path string) error { return os.Symlink(filepath.Join(dir, "none"), path) },
		"device":        func(path string) error { return os.Symlink("/dev/stdout", path) },
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
			if err := create(path); err != nil {
				t.Fatal(err)
			}
			before, err := os.Lstat(path)
			if err != nil {
				t.Fatal(err)
			}
			out, err := w.exec([]string{"--file", path}, []string{"true"}).CombinedOutput()
			if exitStatus(err) != exitFailed || !strings.Contains(string(out), path) {
				t.Errorf("got %v: %s", err, out)
			}
			after, err := os.Lstat(path)
			if err != nil || !os.SameFile(before, after) || before.Size() != after.Size() || before.Mode() != after.Mode() {
				t.Errorf("the file changed: %v", err)
			}
		})
	}
	if text, err := os.ReadFile(target); err != nil || string(text) != "a key" {
		t.Errorf("the link's target has %q, %v", text, err)
	}
	w.wantReturned(0)
}

func TestExecFile(t *testing.T) {
	w := newExecWorld(t)
	path := filepath.Join(t.TempDir(), "token")
	out, err := w.exec([]string{"--file", path}, []string{"sh", "-c", `test -s "$BROKER_CREDENTIAL_FILE" && stat -c %a "$BROKER_CREDENTIAL_FILE"`}).CombinedOutput()
	if err != nil || string(out) != "600\n" {
		t.Errorf("got %v: %s", err, out)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file remains: %v", err)
	}
	// A file that took its place is another program's.
	out, err = w.exec([]string{"--file", path}, []string{"sh", "-c", `rm "$BROKER_CREDENTIAL_FILE"; echo mine > "$BROKER_CREDENTIAL_FILE"`}).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "another program has replaced it") {
		t.Errorf("got %v: %s", err, out)
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "mine\n" {
		t.Errorf("the file has %q, %v", text, err)
	}
	w.wantReturned(2)
}

// A file that a killed exec left behind does not keep the next one from starting.
func TestExecReplacesItsOwnLeftover(t *testing.T) {
	w := newExecWorld(t)
	path := filepath.Join(t.TempDir(), "token")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	mark(f, credentialMark)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	out, err := w.exec([]string{"--file", path}, []string{"test", "-s", path}).CombinedOutput()
	if err != nil {
		t.Errorf("got %v: %s", err, out)
	}
	w.wantReturned(1)
}

// By default the credential is in files that end with the command, and neither in the
// environment nor in the arguments.
func TestExecPassesCredentialInMemory(t *testing.T) {
	w := newExecWorld(t)
	out, err := w.exec(nil, []string{"sh", "-c", `cat "$BROKER_CREDENTIAL_FILE"; echo; echo "$BROKER_CREDENTIAL_FILE"; cat /proc/self/environ /proc/$PPID/cmdline /proc/$PPID/environ | tr '\0' '\n'`}).Output()
	if err != nil {
		t.Fatal(err)
	}
	token, rest, _ := strings.Cut(string(out), "\n")
	path, rest, _ := strings.Cut(rest, "\n")
	if !strings.HasPrefix(token, "eyJ") || strings.Contains(rest, token) || !strings.Contains(rest, "BROKER_LEASE=") {
		t.Errorf("got the token %q, and then\n%s", token, rest)
	}
	if _, err := os.Lstat(filepath.Dir(filepath.Dir(path))); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the folder of %s remains: %v", path, err)
	}
	w.wantReturned(1)
}

// The files of an exec that was killed go with the next one.
func TestExecRemovesFilesOfKilledExec(t *testing.T) {
	w := newExecWorld(t)
	cmd := w.exec(nil, []string{"sh", "-c", `echo "$BROKER_CREDENTIAL_FILE"; exec signals`})
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	lines.Scan()
	path := lines.Text()
	wantLine(t, lines, "ready")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	wantLine(t, lines, "got terminated")
	exitCodeOf(t, cmd)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("the test needs a leftover: %v", err)
	}
	if out, err := w.exec(nil, []string{"true"}).CombinedOutput(); err != nil {
		t.Errorf("got %v: %s", err, out)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the leftover %s: %v", path, err)
	}
}

// A command that runs for longer than its credential finds a new one in the same file.
func TestExecRenewsInMemory(t *testing.T) {
	t.Parallel() // it mostly waits
	w := newExecWorld(t)
	script := `first=$(cat "$BROKER_CREDENTIAL_FILE"); while test "$(cat "$BROKER_CREDENTIAL_FILE")" = "$first"; do sleep 0.05; done`
	out, err := w.exec([]string{"--ttl", "9s"}, []string{"sh", "-c", script}).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("got %v: %s", err, out)
	}
	w.wantReturned(2)
	// A variable can't change, so the command ends with its credential.
	out, err = w.exec([]string{"--ttl", "2s", "--env"}, []string{"signals"}).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "no valid credential; ending the command") || !strings.Contains(string(out), "got terminated") {
		t.Errorf("got %v: %s", err, out)
	}
}
