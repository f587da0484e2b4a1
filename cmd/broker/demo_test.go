//go:build linux

package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The whole demo is short, and each chapter fits in a terminal of 24 lines, with the
// prompt of --step and the blank line before it.
func TestDemoIsShort(t *testing.T) {
	out, err := exec.Command("broker", "demo").Output()
	if err != nil {
		t.Fatal(err)
	}
	if lines := strings.Count(string(out), "\n"); lines < 115 || lines > 135 {
		t.Errorf("got %d lines, want about 125", lines)
	}
	stories := regexp.MustCompile(`(?m)^\d+\. `).Split(string(out), -1)
	if len(stories) != chapters+1 {
		t.Fatalf("got %d chapters, want %d", len(stories)-1, chapters)
	}
	for i, chapter := range stories {
		if lines := strings.Count(chapter, "\n"); lines > 22 {
			t.Errorf("chapter %d: got %d lines, want at most 22", i, lines)
		}
	}
}

// A demoTerminal is a terminal in which "broker demo" runs.
type demoTerminal struct {
	t      *testing.T
	cmd    *exec.Cmd
	master *os.File
	seen   strings.Builder
	read   int // the end of the text that until has found
}

func startDemo(t *testing.T, env string, args ...string) *demoTerminal {
	t.Helper()
	master, slave := openTerminal(t)
	if err := unix.IoctlSetWinsize(int(slave.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80}); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("broker", append([]string{"demo"}, args...)...)
	cmd.Env = append(os.Environ(), "NO_COLOR=", "TERM=xterm", env)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if err := slave.Close(); err != nil {
		t.Fatal(err)
	}
	return &demoTerminal{t: t, cmd: cmd, master: master}
}

// until reads until the output has a text, after the one of the last call.
func (d *demoTerminal) until(text string) {
	d.t.Helper()
	buf := make([]byte, 4096)
	for ; ; d.seen.Write(buf) {
		if at := strings.Index(d.seen.String()[d.read:], text); at >= 0 {
			d.read += at + len(text)
			return
		}
		n, err := d.master.Read(buf[:cap(buf)])
		if err != nil {
			d.t.Fatalf("%v, before %q; got\n%s", err, text, d.seen.String())
		}
		buf = buf[:n]
	}
}

// end reads the rest and returns the exit code.
func (d *demoTerminal) end() int {
	d.t.Helper()
	_, _ = io.Copy(&d.seen, d.master) // ends with EIO when the terminal closes
	return exitCodeOf(d.t, d.cmd)
}

func (d *demoTerminal) types(keys string) {
	d.t.Helper()
	if _, err := d.master.WriteString(keys); err != nil {
		d.t.Fatal(err)
	}
}

func TestDemoIsColouredInTerminal(t *testing.T) {
	for env, want := range map[string]bool{"TERM=xterm": true, "NO_COLOR=1": false, "TERM=dumb": false} {
		d := startDemo(t, env)
		if code := d.end(); code != exitOK {
			t.Fatalf("%s: got exit code %d\n%s", env, code, d.seen.String())
		}
		for _, coloured := range []string{"\x1b[32mpermit\x1b[0m ", "\x1b[31mrefused\x1b[0m ", "\x1b[33mpending\x1b[0m ", "\x1b[32mverified\x1b[0m ", "\x1b[1m1. "} {
			if got := strings.Contains(d.seen.String(), coloured); got != want {
				t.Errorf("%s: %q in the output: got %t, want %t", env, coloured, got, want)
			}
		}
		if !want && strings.Contains(d.seen.String(), "\x1b") {
			t.Errorf("%s: got an escape sequence", env)
		}
	}
}

// With --step, the demo waits for Enter before each chapter.
func TestDemoWaitsForEnter(t *testing.T) {
	d := startDemo(t, "", "--step")
	heading := regexp.MustCompile(`\x1b\[1m\d+\. `)
	for chapter := 2; chapter <= chapters; chapter++ {
		d.until(fmt.Sprintf("Press Enter for chapter %d of %d, or Ctrl-C to stop. ", chapter, chapters))
		if got := len(heading.FindAllString(d.seen.String()[:d.read], -1)); got != chapter-1 {
			t.Errorf("before Enter: got %d chapters, want %d\n%s", got, chapter-1, d.seen.String())
		}
		if chapter < chapters {
			d.types("\n")
			d.until("\x1b[2A\r\x1b[J") // the prompt is erased
		}
	}
	d.types("\x03") // Ctrl-C
	if code := d.end(); code != exitFailed || !strings.Contains(d.seen.String(), "broker: interrupted") || strings.Contains(d.seen.String(), fmt.Sprintf("\x1b[1m%d. ", chapters)) {
		t.Errorf("after Ctrl-C: got exit code %d and\n%s\nwant no chapter %d", code, d.seen.String(), chapters)
	}
}

// Input that ends, as with Ctrl-D, ends the demo.
func TestDemoEndsWithItsInput(t *testing.T) {
	d := startDemo(t, "", "--step")
	d.until("Press Enter for chapter 2")
	d.types("\x04") // Ctrl-D
	if code := d.end(); code != exitFailed || !strings.Contains(d.seen.String(), "the demo stopped after chapter 1: the input has ended") {
		t.Errorf("got exit code %d and\n%s", code, d.seen.String())
	}
}
