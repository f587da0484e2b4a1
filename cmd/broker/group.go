//go:build unix

package main

import (
	"os/exec"
	"syscall"
)

// inOwnGroup puts a command into a process group of its own, which ends with its context.
func inOwnGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { endGroup(cmd); return nil }
}

// endGroup ends the command and all that it has started in its group.
func endGroup(cmd *exec.Cmd) { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) } // they may have ended
