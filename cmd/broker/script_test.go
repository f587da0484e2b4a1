package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// The scripts run this binary as the command itself: with its own process,
// environment, exit code and terminal.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"broker": func() {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		os.Exit(run(ctx, os.Args[1:], terminal{in: os.Stdin, out: os.Stdout, err: os.Stderr, getenv: os.Getenv}))
	}})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script", UpdateScripts: os.Getenv("UPDATE_SCRIPTS") != "",
		Setup: func(env *testscript.Env) error {
			// Sockets have short paths, and a script's folder a long one.
			dir, err := os.MkdirTemp("", "bs")
			if err != nil {
				return err
			}
			env.Defer(func() { _ = os.RemoveAll(dir) })
			env.Setenv("WORLD", dir+"/w")
			for _, name := range []string{"ADDRESS", "PAGES", "LOGIN"} {
				address, err := freeAddress()
				if err != nil {
					return err
				}
				env.Setenv(name, address)
			}
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"world": world, "setid": setID, "mode": mode, "flip": flip, "exits": exits,
		},
	})
}

// world waits until "broker dev" has all it needs, and sets the environment of
// its agent.
func world(ts *testscript.TestScript, _ bool, _ []string) {
	deadline := time.Now().Add(30 * time.Second)
	for {
		admin, err := net.Dial("unix", ts.Getenv("WORLD")+"/admin.sock")
		if err == nil {
			_ = admin.Close()
			break
		}
		if time.Now().After(deadline) {
			ts.Fatalf("broker dev did not start: %v", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	ts.Setenv("BROKER_URL", "https://"+ts.Getenv("ADDRESS"))
	ts.Setenv("BROKER_ADMIN_SOCKET", ts.Getenv("WORLD")+"/admin.sock")
	ts.Setenv("SPIFFE_ENDPOINT_SOCKET", "unix://"+ts.Getenv("WORLD")+"/identities/agent.sock")
}

// setid NAME REGEXP sets a variable to what the last command printed.
func setID(ts *testscript.TestScript, _ bool, args []string) {
	found := regexp.MustCompile(args[1]).FindString(ts.ReadFile("stdout") + ts.ReadFile("stderr"))
	if found == "" {
		ts.Fatalf("%s is not in the output", args[1])
	}
	ts.Setenv(args[0], found)
}

// mode PERMISSIONS FILE wants a file to have that mode.
func mode(ts *testscript.TestScript, _ bool, args []string) {
	info, err := os.Stat(ts.MkAbs(args[1]))
	ts.Check(err)
	if got := fmt.Sprintf("%04o", info.Mode().Perm()); got != args[0] {
		ts.Fatalf("%s has the mode %s, not %s", args[1], got, args[0])
	}
}

// flip FILE TEXT changes one letter of the first occurrence of a text.
func flip(ts *testscript.TestScript, _ bool, args []string) {
	path := ts.MkAbs(args[0])
	text, err := os.ReadFile(path)
	ts.Check(err)
	at := bytes.Index(text, []byte(args[1]))
	if at < 0 {
		ts.Fatalf("%s does not hold %q", args[0], args[1])
	}
	text[at] ^= 1
	ts.Check(os.WriteFile(path, text, 0o600))
}

// exits CODE COMMAND… wants a command to end with that code, exactly.
func exits(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	got := "0"
	if err != nil {
		got = strings.TrimPrefix(err.Error(), "exit status ")
	}
	if got != args[0] {
		ts.Fatalf("%s ended with %s, want %s", strings.Join(args[1:], " "), got, args[0])
	}
}
