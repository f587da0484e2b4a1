package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// readByStep reports whether a pipe leads to the process that started the step of a
// pipeline, and not to another command of the step, such as tee. Either an ancestor of
// this process reads it, or, in a container that the reader is outside of, the first
// process of the step writes to it, too.
func readByStep(f *os.File) bool {
	pipe, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil || !strings.HasPrefix(pipe, "pipe:") {
		return false
	}
	for pid := os.Getppid(); pid > 0; {
		writes := false
		for fd, link := range descriptors(pid) {
			if link != pipe {
				continue
			}
			if reads(pid, fd) {
				return true
			}
			writes = writes || fd == "1" || fd == "2"
		}
		parent := parentOf(pid)
		if parent == 0 {
			return writes
		}
		pid = parent
	}
	return false
}

// descriptors returns what the descriptors of a process lead to. It returns none if the
// process is another user's.
func descriptors(pid int) map[string]string {
	all := map[string]string{}
	paths, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid)) // the pattern is valid
	for _, path := range paths {
		if link, err := os.Readlink(path); err == nil {
			all[filepath.Base(path)] = link
		}
	}
	return all
}

// reads reports whether a descriptor is open for reading only (proc_pid_fdinfo(5)).
func reads(pid int, fd string) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%s", pid, fd))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "flags:"); ok {
			flags, err := strconv.ParseUint(strings.TrimSpace(value), 8, 64)
			return err == nil && flags&syscall.O_ACCMODE == syscall.O_RDONLY
		}
	}
	return false
}

// parentOf returns the parent of a process; zero: it is not visible.
func parentOf(pid int) int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The name of the command is in parentheses and may have spaces.
	_, rest, _ := strings.Cut(string(text[strings.LastIndexByte(string(text), ')')+1:]), " ")
	fields := strings.Fields(rest)
	if len(fields) < 2 {
		return 0
	}
	parent, err := strconv.Atoi(fields[1])
	if err != nil {
		return 0
	}
	return parent
}
