package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"accessbroker.internal/internal/devworld"
)

// A running server has no secrets in its environment, even in the block that it was
// started with, and no process of its user can read its memory or make it dump.
func TestServerProtectsItsMemory(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the protections are for Linux")
	}
	dir, err := os.MkdirTemp("", "bs") // the paths of sockets must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	binary := filepath.Join(dir, "broker") // TestMain runs the command of this name
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(self)
	if err := errors.Join(err, os.WriteFile(binary, text, 0o755)); err != nil {
		t.Fatal(err)
	}
	at, err := devworld.FreeAddresses()
	if err != nil {
		t.Fatal(err)
	}
	w, err := devworld.New(filepath.Join(dir, "w"), at)
	if err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(w.Path("seal.key"))
	if err != nil {
		t.Fatal(err)
	}
	secret := strings.TrimSpace(string(key))
	operatorsFile, err := os.ReadFile(w.ConfigFile())
	withoutKey := strings.Replace(string(operatorsFile), "seal_keys:", "# seal_keys:", 1)
	if err := errors.Join(err, os.WriteFile(w.ConfigFile(), []byte(withoutKey), 0o600)); err != nil || withoutKey == string(operatorsFile) {
		t.Fatalf("the operator's file has no seal_keys (%v)", err)
	}

	cmd := exec.Command(binary, "serve", "--config", w.ConfigFile())
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.Env = []string{"FIRST=1", sealKeyVar + "=" + secret, "AWS_SECRET_ACCESS_KEY=s3cret", "LAST=1"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if os.Getuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
		if err := giveAway(dir, 65534); err != nil {
			t.Fatal(err)
		}
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for admin := w.AdminSocket(); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(admin); err == nil {
			break
		}
		select {
		case err := <-ended:
			t.Fatalf("the broker did not start: %v\n%s", err, out.String())
		default:
		}
	}
	checkMemory(t, cmd.Process.Pid, secret)
	if err := errors.Join(cmd.Process.Signal(syscall.SIGTERM), <-ended); err != nil {
		t.Errorf("the broker ended with %v\n%s", err, out.String())
	}
	if strings.Contains(out.String(), "protecting") {
		t.Errorf("a protection is missing:\n%s", out.String())
	}
}

func giveAway(dir string, uid int) error {
	return filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, uid, uid))
	})
}

func checkMemory(t *testing.T, pid int, secret string) {
	t.Helper()
	proc := fmt.Sprintf("/proc/%d/", pid)
	info, err := os.Stat(proc + "environ")
	if err != nil {
		t.Fatal(err)
	}
	// The kernel gives the files of a process that is not dumpable to root (proc(5)).
	if owner := info.Sys().(*syscall.Stat_t).Uid; owner != 0 {
		t.Errorf("the process is dumpable: user %d owns %senviron", owner, proc)
	}
	limits, err := os.ReadFile(proc + "limits")
	if err != nil || !strings.Contains(strings.Join(strings.Fields(string(limits)), " "), "Max core file size 0 0 ") {
		t.Errorf("core dumps are not forbidden: %v\n%s", err, limits)
	}
	env, err := os.ReadFile(proc + "environ")
	switch {
	case os.Getuid() != 0:
		if !errors.Is(err, os.ErrPermission) {
			t.Errorf("the environment can be read: %v", err)
		}
	case err != nil:
		t.Error(err)
	case !strings.Contains(string(env), "FIRST=1") || !strings.Contains(string(env), "LAST=1"):
		t.Errorf("got the environment %q, want the other variables in it", env)
	case strings.Contains(string(env), secret) || strings.Contains(string(env), "s3cret"):
		t.Errorf("the environment has a secret: %q", env)
	}
}

// A hidden variable has left the environment, so that no child inherits it, and reloads
// still read it.
func TestHiddenVariables(t *testing.T) {
	t.Setenv(sealKeyVar, "s3cret")
	t.Setenv("OTHER", "1")
	own := new(memory)
	if err := own.hide([]string{sealKeyVar, "NOT_SET"}); err != nil {
		t.Fatal(err)
	}
	if value, ok := os.LookupEnv(sealKeyVar); ok || own.getenv(sealKeyVar) != "s3cret" || own.getenv("OTHER") != "1" || own.getenv("NOT_SET") != "" {
		t.Errorf("got %q in the environment, and %q", value, own.getenv(sealKeyVar))
	}
}
