package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMakeCluster does what the output of "make cluster" says: a token, the end of a replica,
// a failover of PostgreSQL, load, and Ctrl-C, which leaves no process and no file.
func TestMakeCluster(t *testing.T) {
	t.Parallel()
	own := filepath.Join(t.TempDir(), "cluster")
	if out, err := exec.Command("go", "build", "-o", own, "./cmd/cluster").CombinedOutput(); err != nil {
		t.Fatalf("building: %v\n%s", err, out)
	}
	p, err := start(t, "cluster", own, "run", "-broker", brokerBinary(t))
	if err != nil {
		t.Fatal(err)
	}
	see := func(text string) {
		t.Helper()
		eventually(t, text, 2*time.Minute, func() error {
			switch out := p.out.String(); {
			case strings.Contains(out, text):
				return nil
			case p.ended():
				t.Fatalf("it ended with %s:\n%s", p.cmd.ProcessState, out)
			}
			return errors.New("it is not there")
		})
	}
	see("Ctrl-C ends everything.")
	out := p.out.String()
	for _, line := range strings.Split(out, "\n") {
		if len(line) > 80 {
			t.Errorf("a line of %d columns: %s", len(line), line)
		}
	}
	env := regexp.MustCompile(`(?m)^  \. (/\S+)/env$`).FindStringSubmatch(out)
	kills := regexp.MustCompile(`(?m)^  kill (-\w+) (\d+) `).FindAllStringSubmatch(out, -1)
	pids := regexp.MustCompile(`(?m)^  (?:broker-\d|primary|standby|PgBouncer) +(\d+) `).FindAllStringSubmatch(out, -1)
	if env == nil || len(kills) != 2 || len(pids) != 6 {
		t.Fatalf("%q, %q, %q", env, kills, pids)
	}
	token := func() error {
		cmd := exec.Command("sh", "-c", ". "+env[1]+"/env && broker request tickets-api --scope tickets:read --why test -o json")
		if text, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(text, []byte(`"token"`)) {
			return fmt.Errorf("%w: %.300s", err, text)
		}
		return nil
	}
	if err := token(); err != nil {
		t.Fatal(err)
	}
	if text, err := exec.Command("sh", "-c", ". "+env[1]+"/env && broker replicas").CombinedOutput(); err != nil || strings.Count(string(text), " ready ") != 3 {
		t.Errorf("replicas: %v\n%s", err, text)
	}
	for i, after := range []string{"broker-2 is ready again", "accepts writes"} {
		if text, err := exec.Command("kill", kills[i][1], kills[i][2]).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		if i == 0 {
			eventually(t, "a token without one replica", time.Minute, token)
		}
		see(after)
		eventually(t, "a token afterwards", time.Minute, token)
	}
	if text, err := exec.Command(own, "load", "-clients", "4", "-for", "2s", env[1]).CombinedOutput(); err != nil || !strings.Contains(string(text), " tokens/s ") {
		t.Errorf("load: %v\n%s", err, text)
	}
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.done:
	case <-time.After(time.Minute):
		t.Fatal("it does not end")
	}
	if code := p.cmd.ProcessState.ExitCode(); code != 0 || !strings.Contains(p.out.String(), "Everything has ended, and the files are removed.") {
		t.Errorf("on Ctrl-C, it ended with %s", p.cmd.ProcessState)
	}
	for _, pid := range pids {
		n, err := strconv.Atoi(pid[1])
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(n, 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("the process %s is left: %v", strings.TrimSpace(pid[0]), err)
		}
	}
	if _, err := os.Stat(env[1]); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder is left: %v", err)
	}
}
