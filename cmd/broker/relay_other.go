//go:build unix && !linux

package main

import (
	"os"
	"syscall"
)

var endingSignals []os.Signal

func endWithParent(*syscall.SysProcAttr) {}
