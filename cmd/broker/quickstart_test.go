package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/internal/devworld"
)

// A newcomer follows the README from the build to the first credential: these are its
// own lines, and its own program.
func TestQuickstartOfReadme(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(readme), "\n## Quickstart")
	section, _, _ = strings.Cut(section, "\n## ")
	program, err := os.ReadFile("../../docs/examples/quickstart.py")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(section, "```python\n"+string(program)+"```\n") {
		t.Error("the program in the README is not docs/examples/quickstart.py")
	}
	blocks := regexp.MustCompile("(?s)```sh\n(.*?)```\n").FindAllStringSubmatch(section, -1)
	if len(blocks) < 2 {
		t.Fatalf("got %d blocks of commands, want at least 2: one for each terminal", len(blocks))
	}
	q := newQuickstart(t)
	stop := q.startDev(strings.TrimPrefix(blocks[0][1], "make build\n"))
	out, err := q.shell(t.Context(), blocks[1][1]).CombinedOutput()
	if err != nil || !regexp.MustCompile(`^a bearer token until 20\d\d-\S+Z\n$`).Match(out) {
		t.Errorf("the program: got %v and %s", err, out)
	}
	stop()
}

// A quickstart is a folder like that of the repository after "make build", and a home.
type quickstart struct {
	t    *testing.T
	dir  string
	home string
}

func newQuickstart(t *testing.T) *quickstart {
	t.Helper()
	if _, err := exec.LookPath("python3"); err != nil {
		t.Fatal("no python3: install it (apt-get install python3)")
	}
	home, err := os.MkdirTemp("", "qs") // short, because paths of Unix sockets are
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(home) })
	docs, err := filepath.Abs("../../docs")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if out, err := exec.Command("go", "build", "-o", filepath.Join(dir, "bin", "broker"), ".").CombinedOutput(); err != nil {
		t.Fatalf("building the broker: %v\n%s", err, out)
	}
	if err := os.Symlink(docs, filepath.Join(dir, "docs")); err != nil {
		t.Fatal(err)
	}
	return &quickstart{t, dir, home}
}

// shell returns a shell for commands of the README, without the broker of this test.
func (q *quickstart) shell(ctx context.Context, script string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "sh", "-euc", script)
	cmd.Dir = q.dir
	cmd.Env = []string{"HOME=" + q.home, "PATH=" + withoutBroker(os.Getenv("PATH")), "TMPDIR=" + q.home}
	return cmd
}

// withoutBroker removes the folders that have a broker from a path.
func withoutBroker(path string) string {
	var kept []string
	for _, dir := range filepath.SplitList(path) {
		if _, err := os.Stat(filepath.Join(dir, "broker")); err != nil {
			kept = append(kept, dir)
		}
	}
	return strings.Join(kept, string(filepath.ListSeparator))
}

// startDev runs the line of "broker dev", on free ports, until stop.
func (q *quickstart) startDev(line string) (stop func()) {
	q.t.Helper()
	at, err := devworld.FreeAddresses()
	if err != nil {
		q.t.Fatal(err)
	}
	line = strings.TrimSpace(line) + " --listen " + at.Broker + " --pages " + at.Pages + " --login " + at.Login + " --tickets " + at.Tickets
	ctx, cancel := context.WithCancel(q.t.Context())
	cmd := q.shell(ctx, "exec "+line)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 30 * time.Second
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		q.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		q.t.Fatal(err)
	}
	stop = func() { cancel(); _ = cmd.Wait() }
	q.t.Cleanup(stop)
	buf, said := make([]byte, 4096), ""
	for !strings.Contains(said, "Ctrl-C") { // the last line of the welcome
		n, err := out.Read(buf)
		if err != nil {
			q.t.Fatalf("%s: %v\n%s%s", line, err, said, errs.String())
		}
		said += string(buf[:n])
	}
	return stop
}
