package servers

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The working directory of the tests and of cmd/servers is the module's folder.
func inModule(t *testing.T) {
	t.Helper()
	t.Chdir("..")
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
}

func TestDirOfMissingServer(t *testing.T) {
	inModule(t)
	if len(all) == 0 {
		t.Fatal("no servers")
	}
	for _, s := range all {
		if _, err := Dir(s.name); err == nil || !strings.Contains(err.Error(), s.commands[0]+" is not built: run make servers first") {
			t.Errorf("%s: got %v", s.name, err)
		}
	}
	if _, err := Dir("oracle"); err == nil {
		t.Error("an unknown server was found")
	}
}

func TestDirFindsWhatWasBuilt(t *testing.T) {
	inModule(t)
	want, err := all[0].dir()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(want, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, command := range all[0].commands {
		if err := os.WriteFile(filepath.Join(want, command), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := Dir(all[0].name); err != nil || got != want {
		t.Errorf("got %s, %v; want %s", got, err, want)
	}
	var out bytes.Buffer
	if err := all[0].ensure(t.Context(), &out); err != nil || out.String() != all[0].name+": ready\n" {
		t.Errorf("got %q, %v", out.String(), err)
	}
}

func TestRunReportsFailure(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "sh", "-c", "echo package/one; echo 'undefined: x' >&2; exit 3")
	var out bytes.Buffer
	err := all[0].run(t.Context(), cmd, &out)
	if err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "undefined: x") {
		t.Errorf("got %v", err)
	}
}

func TestRunStopsAtTheLimit(t *testing.T) {
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, os.ErrDeadlineExceeded)
	defer cancel()
	var out bytes.Buffer
	err := all[0].run(ctx, exec.CommandContext(ctx, "sleep", "600"), &out)
	if err == nil || !strings.Contains(err.Error(), "stopped after") || !strings.Contains(err.Error(), os.ErrDeadlineExceeded.Error()) {
		t.Errorf("got %v", err)
	}
}

func TestLockFileWaits(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := lockFile(t.Context(), path, func() { t.Error("waiting for a lock that is free") })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	waited := false
	if _, err := lockFile(ctx, path, func() { waited = true; cancel() }); err == nil || !waited {
		t.Errorf("got %v, waited %t; want an error after waiting", err, waited)
	}
	unlock()
	if unlock, err = lockFile(t.Context(), path, func() {}); err != nil {
		t.Fatal(err)
	}
	unlock()
}

func TestSettableClock(t *testing.T) {
	flag, err := settableClock(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, text := range map[string]string{
		"go.mod":  "module clock\n\ngo 1.26\n",
		"main.go": "package main\n\nimport \"time\"\n\nfunc main() { println(time.Now().Unix()) }\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	build := exec.Command("go", "vet", flag, ".") // type-checks the edited package without compiling it
	build.Dir, build.Env = dir, append(os.Environ(), "GOWORK=off")
	if out, err := build.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestCommandOfMissingPackage(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, err := Command("aws"); err == nil || !strings.Contains(err.Error(), "apt-get install awscli") {
		t.Errorf("got %v", err)
	}
	if _, err := Command("cobol"); err == nil {
		t.Error("an unknown command was found")
	}
}
