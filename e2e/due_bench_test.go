//go:build bench

package e2e

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"accessbroker.internal/api"
)

// TestTenThousandDue measures how fast the broker revokes ten thousand tokens of a
// real Vault that expire within two seconds, while it issues its own tokens and
// others of that Vault. "make bench" runs it.
func TestTenThousandDue(t *testing.T) {
	const n = 10_000
	l := startLab(t, spireOf(t))
	// In production, Vault has a machine of its own. Here it gets one processor, and
	// the broker and its clients get the other, throughout the measurement.
	if runtime.NumCPU() > 1 {
		pin(t, l.vault.server.cmd.Process.Pid, 0)
		pin(t, l.broker.cmd.Process.Pid, 1)
		pin(t, os.Getpid(), 1)
	}
	r := fallDue(t, l, api.Ask{Entitlement: "kv-due"}, n)
	t.Logf("%d credentials of a real Vault that fell due within two seconds ended in %s, %.0f a second", n, r.took.Round(time.Millisecond), n/r.took.Seconds())
	t.Logf("the broker's own tokens: %s: %.2f of that (target 0.80 or more)", r.tokens, r.tokens.during/r.tokens.before)
	t.Logf("tokens of the same Vault, each returned at once: %s: %.2f of that", r.vault, r.vault.during/r.vault.before)
	t.Logf("resident memory at most %d MiB (target: bounded)", peakMemory(t, l.broker.cmd.Process.Pid)>>10)
	if left := l.vault.must(t, "LIST", "auth/token/accessors", nil).Data["keys"].([]any); len(left) > 50 {
		t.Errorf("Vault has %d tokens left", len(left))
	}
}

// pin binds a process, with all its threads, to one processor.
func pin(t testing.TB, pid, cpu int) {
	t.Helper()
	var set unix.CPUSet
	set.Set(cpu)
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, thread := range threads {
		id, err := strconv.Atoi(thread.Name())
		if err == nil {
			err = unix.SchedSetaffinity(id, &set)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
