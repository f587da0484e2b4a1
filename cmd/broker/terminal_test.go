//go:build linux

package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"accessbroker.internal/internal/devworld"
)

// openTerminal returns both ends of a new pseudo-terminal.
func openTerminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = slave.Close() })
	return master, slave
}

// The reader of a pipe may leave early.
func TestClosedOutputIsQuiet(t *testing.T) {
	w := newExecWorld(t)
	for _, args := range [][]string{{"entitlements"}, {"whoami", "-o", "json"}} {
		read, write, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := read.Close(); err != nil {
			t.Fatal(err)
		}
		var errs bytes.Buffer
		cmd := w.command(args...)
		cmd.Stdout, cmd.Stderr = write, &errs
		err = cmd.Run()
		if errs.Len() > 0 || exitStatus(err) != exitOutputClosed {
			t.Errorf("%v: got %v, %q; want exit code %d and no message", args, err, errs.String(), exitOutputClosed)
		}
		if err := write.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// Lists fit a terminal of 80 columns.
func TestListsFitTerminal(t *testing.T) {
	w := newExecWorld(t)
	for range 2 {
		if out, err := w.exec(nil, []string{"true"}).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	for _, list := range []string{"requests", "leases", "entitlements"} {
		master, slave := openTerminal(t)
		if err := unix.IoctlSetWinsize(int(slave.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80}); err != nil {
			t.Fatal(err)
		}
		cmd := w.command(list)
		cmd.Stdout, cmd.Stderr = slave, slave
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
		if _, err := slave.WriteString("end\n"); err != nil {
			t.Fatal(err)
		}
		rows, lines := 0, bufio.NewScanner(master)
		for lines.Scan() && lines.Text() != "end" {
			if rows++; utf8.RuneCountInString(lines.Text()) > 80 {
				t.Errorf("%s: a line has more than 80 columns: %s", list, lines.Text())
			}
		}
		if rows < 3 {
			t.Errorf("%s: got %d lines, want a header and 2 rows", list, rows)
		}
	}
}

// The folder of "broker dev" has private keys. It does not outlive the terminal.
func TestDevRemovesItsFolder(t *testing.T) {
	for _, s := range []syscall.Signal{syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGTERM} {
		dir := t.TempDir()
		at, err := devworld.FreeAddresses()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("broker", "dev", "--listen", at.Broker, "--pages", at.Pages, "--login", at.Login, "--tickets", at.Tickets)
		cmd.Env = append(os.Environ(), "TMPDIR="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for lines.Scan() && !strings.Contains(lines.Text(), "Ctrl-C") {
			continue // the last line of the welcome
		}
		if made, err := os.ReadDir(dir); err != nil || len(made) == 0 {
			t.Fatalf("no folder was made: %v", err)
		}
		if err := cmd.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
		for lines.Scan() {
			continue
		}
		if code := exitCodeOf(t, cmd); code != 0 {
			t.Errorf("%s: exit code %d, want 0", s, code)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("%s: %v remains, %v", s, left, err)
		}
	}
}

// Output is coloured on a terminal only, and not if the user wants none.
func TestColourNeedsTerminal(t *testing.T) {
	_, slave := openTerminal(t)
	for name, test := range map[string]struct {
		environment map[string]string
		want        bool
	}{
		"terminal":       {map[string]string{"TERM": "xterm"}, true},
		"NO_COLOR":       {map[string]string{"TERM": "xterm", "NO_COLOR": "1"}, false},
		"empty NO_COLOR": {map[string]string{"TERM": "xterm", "NO_COLOR": ""}, true},
		"dumb terminal":  {map[string]string{"TERM": "dumb"}, false},
	} {
		a := &app{terminal: terminal{out: slave, getenv: func(name string) string { return test.environment[name] }}}
		if got := a.palette().Strong("x") != "x"; got != test.want {
			t.Errorf("%s: got colours %t, want %t", name, got, test.want)
		}
	}
}
