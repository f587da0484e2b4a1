package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
)

// eraseInitial overwrites variables in the environment block that the kernel made for
// this process.
func eraseInitial(names []string) (err error) {
	start, end, err := initialEnvironment()
	if err != nil {
		return fmt.Errorf("finding the initial environment: %w", err)
	}
	mem, err := os.OpenFile("/proc/self/mem", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("erasing secrets from the initial environment: %w", err)
	}
	defer func() { err = errors.Join(err, mem.Close()) }()
	block := make([]byte, end-start)
	defer clear(block)
	if _, err := mem.ReadAt(block, start); err != nil {
		return fmt.Errorf("reading the initial environment: %w", err)
	}
	at := start
	for entry := range bytes.SplitAfterSeq(block, []byte{0}) {
		for _, name := range names {
			if bytes.HasPrefix(entry, []byte(name+"=")) {
				// The whole entry becomes empty strings, name included.
				if _, err := mem.WriteAt(make([]byte, len(entry)), at); err != nil {
					return fmt.Errorf("erasing %s from the initial environment: %w", name, err)
				}
			}
		}
		at += int64(len(entry))
	}
	return nil
}

// initialEnvironment returns the addresses of the block: fields 50 and 51 of
// /proc/PID/stat (proc_pid_stat(5)).
func initialEnvironment() (start, end int64, err error) {
	text, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return 0, 0, err
	}
	// The second field is the program's name in parentheses, which may contain both.
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	if len(fields) < 49 {
		return 0, 0, errors.New("/proc/self/stat has too few fields")
	}
	start, err = strconv.ParseInt(string(fields[47]), 10, 64)
	if err == nil {
		end, err = strconv.ParseInt(string(fields[48]), 10, 64)
	}
	if err == nil && (start <= 0 || end < start || end-start > 8<<20) {
		err = errors.New("/proc/self/stat has no addresses")
	}
	return start, end, err
}

// forbidDumps makes the process non-dumpable (prctl(2)): no core dumps, no debugger of
// the same user, and files in /proc/PID that belong to root. It ends with execve, so
// child processes are not affected.
func forbidDumps() error {
	const prSetDumpable = 4
	if _, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, prSetDumpable, 0, 0); errno != 0 {
		return fmt.Errorf("making the process non-dumpable: %w", errno)
	}
	return nil
}

// limitCore forbids core dumps of this process and its children.
func limitCore() error {
	if err := syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{}); err != nil {
		return fmt.Errorf("forbidding core dumps: %w", err)
	}
	return nil
}
