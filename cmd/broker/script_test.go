package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"accessbroker.internal/internal/devworld"
	"accessbroker.internal/internal/devworld/browser"
)

// The scripts run this test binary as the command, in a process of its own with its
// own environment, exit code and terminal.
func TestMain(m *testing.M) {
	// Commands inherit ignored signals, as under nohup. A handled signal has its default
	// action in them.
	for _, s := range []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT} {
		if signal.Ignored(s) {
			signal.Notify(make(chan os.Signal, 1), s)
		}
	}
	testscript.Main(m, map[string]func(){"broker": main, "signals": signals, "dial": dial})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script", UpdateScripts: os.Getenv("UPDATE_SCRIPTS") != "",
		Setup: func(env *testscript.Env) error {
			// The path of a Unix socket is limited to about 100 bytes; a script's folder
			// is too long.
			dir, err := os.MkdirTemp("", "bs")
			if err != nil {
				return err
			}
			env.Defer(func() { _ = os.RemoveAll(dir) })
			env.Setenv("WORLD", dir+"/w")
			env.Setenv("TOMORROW", time.Now().Add(24*time.Hour).UTC().Format(time.RFC3339))
			at, err := devworld.FreeAddresses()
			if err != nil {
				return err
			}
			env.Setenv("ADDRESS", at.Broker)
			env.Setenv("PAGES", at.Pages)
			env.Setenv("LOGIN", at.Login)
			env.Setenv("TICKETS", at.Tickets)
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"world": world, "login": login, "idjag": idJAG, "waiting": waiting, "asks": asks, "setid": setID, "mode": mode, "flip": flip, "exits": exits, "answers": answers, "waitfile": waitFile,
		},
	})
}

// world waits until "broker dev" is ready and sets the environment of its agent.
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

// waitfile FILE waits until a file exists.
func waitFile(ts *testscript.TestScript, _ bool, args []string) {
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(ts.MkAbs(args[0])); err == nil {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s does not appear", args[0])
		}
	}
}

// setid NAME REGEXP sets a variable to what the last command printed.
func setID(ts *testscript.TestScript, _ bool, args []string) {
	found := regexp.MustCompile(args[1]).FindString(ts.ReadFile("stdout") + ts.ReadFile("stderr"))
	if found == "" {
		ts.Fatalf("%s is not in the output", args[1])
	}
	ts.Setenv(args[0], found)
}

// mode PERMISSIONS FILE checks the mode of a file.
func mode(ts *testscript.TestScript, _ bool, args []string) {
	info, err := os.Stat(ts.MkAbs(args[1]))
	ts.Check(err)
	if got := fmt.Sprintf("%04o", info.Mode().Perm()); got != args[0] {
		ts.Fatalf("%s: got mode %s, want %s", args[1], got, args[0])
	}
}

// flip FILE TEXT changes one bit of the first occurrence of a text.
func flip(ts *testscript.TestScript, _ bool, args []string) {
	path := ts.MkAbs(args[0])
	text, err := os.ReadFile(path)
	ts.Check(err)
	at := bytes.Index(text, []byte(args[1]))
	if at < 0 {
		ts.Fatalf("no %q in %s", args[1], args[0])
	}
	text[at] ^= 1
	ts.Check(os.WriteFile(path, text, 0o600))
}

// exits CODE COMMAND… checks the exit code of a command.
func exits(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	got := "0"
	if err != nil {
		got = strings.TrimPrefix(err.Error(), "exit status ")
	}
	if got != args[0] {
		ts.Fatalf("%s: got exit code %s, want %s", strings.Join(args[1:], " "), got, args[0])
	}
}

// answers STATUS HOST URL checks the status of the answer to a call that names another
// host than that of the URL, as a page does whose name was bound to this machine.
func answers(ts *testscript.TestScript, _ bool, args []string) {
	r, err := http.NewRequest(http.MethodGet, args[2], nil)
	ts.Check(err)
	r.Host = args[1]
	resp, err := http.DefaultTransport.RoundTrip(r) // follows no redirect
	ts.Check(err)
	_ = resp.Body.Close()
	if got := fmt.Sprint(resp.StatusCode); got != args[0] {
		ts.Fatalf("%s at %s: got %s, want %s", args[2], args[1], got, args[0])
	}
}

// login [--device] PERSON runs "broker login" and does in a browser what it prints.
func login(ts *testscript.TestScript, _ bool, args []string) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	person, flag := args[len(args)-1], "--no-browser"
	if len(args) == 2 {
		flag = args[0]
	}
	shown, screen, err := os.Pipe()
	ts.Check(err)
	defer func() { _ = shown.Close() }()
	ended := make(chan int, 1)
	go func() {
		code := run(ctx, []string{"login", flag}, terminal{in: strings.NewReader(""), out: io.Discard, err: screen, getenv: ts.Getenv})
		_ = screen.Close()
		ended <- code
	}()
	b, err := browser.LogIn(ctx, devworld.Addresses{Pages: ts.Getenv("PAGES")}.PagesURL(), person)
	ts.Check(err)
	ts.Check(b.AllowTerminal(ctx, shown))
	if code := <-ended; code != exitOK {
		ts.Fatalf("broker login %s: got exit code %d", flag, code)
	}
}

// waiting waits until a request of the agent is pending and sets REQUEST to its id.
func waiting(ts *testscript.TestScript, _ bool, _ []string) {
	id := regexp.MustCompile(`req_[0-9a-v]+`)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		ts.Check(ts.Exec("broker", "requests", "--status", "pending"))
		if found := id.FindString(ts.ReadFile("stdout")); found != "" {
			ts.Setenv("REQUEST", found)
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("no pending request")
		}
	}
}

// asks PERSON ENTITLEMENT FORM files a request in the browser and sets REQUEST to its id.
func asks(ts *testscript.TestScript, _ bool, args []string) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	b, err := browser.LogIn(ctx, devworld.Addresses{Pages: ts.Getenv("PAGES")}.PagesURL(), args[0])
	ts.Check(err)
	form, err := url.ParseQuery(args[2])
	ts.Check(err)
	filed, err := b.Follow(ctx, http.MethodPost, b.Pages()+"/ui/entitlements/"+args[1], form)
	ts.Check(err)
	id := regexp.MustCompile(`req_[0-9a-v]+`).FindString(filed)
	if id == "" {
		ts.Fatalf("no request id in %q", filed)
	}
	ts.Setenv("REQUEST", id)
}
