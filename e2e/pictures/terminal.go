// Package pictures makes the pictures of the README and of docs: recordings of commands
// in a terminal, and screenshots of the pages.
package pictures

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// The size of the recorded terminal.
const (
	columns = 80
	rows    = 24
)

// A run is text of one style. The style is the parameter of the escape sequence that
// began it, such as "32" for green, or empty.
type run struct{ style, text string }

// A line is what one line of a terminal shows.
type line []run

func (l line) String() string {
	var b strings.Builder
	for _, r := range l {
		b.WriteString(r.text)
	}
	return b.String()
}

// Capture runs a command in a terminal of 80 columns and 24 rows, and returns the lines
// that it printed.
func Capture(cmd *exec.Cmd) ([]line, error) {
	master, slave, err := openTerminal()
	if err != nil {
		return nil, fmt.Errorf("opening a terminal: %w", err)
	}
	defer func() { _ = master.Close() }()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	err = cmd.Start()
	if err = errors.Join(err, slave.Close()); err != nil {
		return nil, err
	}
	var screen bytes.Buffer
	if _, err := io.Copy(&screen, master); err != nil && !errors.Is(err, syscall.EIO) { // EIO: the command has ended
		return nil, fmt.Errorf("reading the terminal: %w", err)
	}
	if err := cmd.Wait(); err != nil {
		return nil, fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, screen.String())
	}
	return parse(screen.String())
}

// openTerminal returns both ends of a new pseudo-terminal.
func openTerminal() (master, slave *os.File, err error) {
	master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			_ = master.Close()
		}
	}()
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		return nil, nil, err
	}
	if err := unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns}); err != nil {
		return nil, nil, err
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		return nil, nil, err
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	return master, slave, err
}

// styles are the escape sequences of colours and weight (ECMA-48, section 8.3.117).
var styles = regexp.MustCompile("\x1b\\[([0-9]*)m")

// parse turns the output of a command into lines. It knows no other escape sequences than
// styles, and fails at one, because the picture would be wrong.
func parse(output string) (lines []line, err error) {
	style := ""
	for text := range strings.Lines(output) {
		text = strings.TrimRight(text, "\r\n")
		var l line
		add := func(part string) {
			if part != "" {
				l = append(l, run{style, part})
			}
		}
		at := 0
		for _, m := range styles.FindAllStringSubmatchIndex(text, -1) {
			add(text[at:m[0]])
			style, at = strings.TrimLeft(text[m[2]:m[3]], "0"), m[1]
		}
		add(text[at:])
		if i := strings.IndexFunc(l.String(), func(r rune) bool { return r < ' ' || r == 0x7f }); i >= 0 {
			return nil, fmt.Errorf("control character %q in %q", l.String()[i], text)
		}
		lines = append(lines, l)
	}
	return lines, nil
}
