//go:build unix

package main

import (
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// A relay starts a command and passes this process's signals on to it, so that the
// command gets each signal once.
type relay struct {
	signals chan os.Signal
	process *os.Process
	tty     *os.File // the controlling terminal; nil: there is none
}

// relayedSignals returns a channel of the signals that would end this process. A signal
// that the parent ignores, such as SIGHUP under nohup, stays ignored.
func relayedSignals() chan os.Signal {
	signals := make(chan os.Signal, 16)
	for _, s := range append(endingSignals, syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGABRT, syscall.SIGTERM,
		syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGALRM, syscall.SIGVTALRM, syscall.SIGXCPU, syscall.SIGXFSZ, syscall.SIGIO) {
		if !signal.Ignored(s) {
			signal.Notify(signals, s)
		}
	}
	return signals
}

func newRelay(signals chan os.Signal) *relay {
	r := &relay{signals: signals}
	if tty, err := os.Open("/dev/tty"); err == nil {
		r.tty = tty
	}
	return r
}

func (r *relay) close() {
	if r.tty != nil {
		_ = r.tty.Close()
	}
}

// start starts the command. The channel receives its end. With a terminal, the command
// stays in this process's group, so that job control works and a pager in the same
// pipeline can read from the terminal. Without one, the command gets a group of its
// own, so that a signal to this process's group reaches the command only once.
func (r *relay) start(cmd *exec.Cmd) (<-chan error, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: r.tty == nil}
	done, err := started(cmd)
	if err != nil {
		return nil, err
	}
	r.process = cmd.Process
	return done, nil
}

// started starts a command that ends if this process is killed. The channel receives its
// end.
func started(cmd *exec.Cmd) (<-chan error, error) {
	endWithParent(cmd.SysProcAttr)
	started, done := make(chan error), make(chan error, 1)
	go func() {
		// The system signals the command when the thread that started it ends, so this
		// thread waits for the command. It is never unlocked and ends with this function.
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			done <- cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return done, nil
}

// relay passes a signal on, unless the terminal has sent it to the command as well.
func (r *relay) relay(s os.Signal) {
	if (s == syscall.SIGINT || s == syscall.SIGQUIT) && r.inForeground() {
		return
	}
	r.send(s)
}

// inForeground reports whether the terminal sends Ctrl-C to this process's group, in
// which the command is.
func (r *relay) inForeground() bool {
	if r.tty == nil {
		return false
	}
	group, err := unix.IoctlGetInt(int(r.tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

func (r *relay) send(s os.Signal) { _ = r.process.Signal(s) } // the command may have ended

// kill ends the command and, if it has a group of its own, its children.
func (r *relay) kill() {
	if r.tty == nil {
		_ = syscall.Kill(-r.process.Pid, syscall.SIGKILL)
		return
	}
	r.send(syscall.SIGKILL)
}
