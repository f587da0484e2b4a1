package main

import (
	"os"
	"syscall"
)

// endingSignals are the signals of Linux that end a process unless it handles them.
var endingSignals = []os.Signal{syscall.SIGPWR, syscall.SIGSTKFLT}

// endWithParent makes the system send SIGTERM to the command if this process is killed
// by a signal that it cannot handle. The lease then ends by itself.
func endWithParent(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGTERM }
