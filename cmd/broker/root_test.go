package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
)

// A signal answers a question with no, at once.
func TestSignalAtAQuestion(t *testing.T) {
	silent, err := os.Open("/dev/ptmx") // a terminal without input
	if err != nil {
		t.Fatal("a terminal is needed: ", err)
	}
	t.Cleanup(func() { _ = silent.Close() })
	ctx, signal := context.WithCancel(t.Context())
	screen := &signalling{at: "[y/N] ", signal: signal}
	a := &app{terminal: terminal{in: silent, err: screen}}
	ended := make(chan error, 1)
	go func() { ended <- a.confirm(ctx, bufio.NewReader(a.in), requestToShow(), api.Approve, false) }()
	select {
	case err := <-ended:
		if !errors.Is(err, errNotConfirmed) || exitCode(err) != exitFailed || !strings.HasSuffix(screen.String(), "[y/N] \n") {
			t.Errorf("got %v, and the screen shows %q", err, screen)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the question still waits for an answer")
	}
}

// A signalling screen sends a signal when it shows a text.
type signalling struct {
	strings.Builder
	at     string
	signal func()
}

func (s *signalling) Write(b []byte) (int, error) {
	n, err := s.Builder.Write(b)
	if strings.HasSuffix(s.String(), s.at) {
		s.signal()
	}
	return n, err
}

func TestExitCodes(t *testing.T) {
	for _, test := range []struct {
		err  error
		want int
	}{
		{&net.OpError{Op: "listen", Err: io.EOF}, exitFailed},
		{&net.OpError{Op: "dial", Err: io.EOF}, exitUnreachable},
		{fmt.Errorf("calling: %w", errUnreachable), exitUnreachable},
		{&api.Error{Status: http.StatusForbidden}, exitUnreachable}, // a proxy's
		{fmt.Errorf("reading: %w", api.ErrNotBroker), exitUnreachable},
		{&api.Error{Status: http.StatusForbidden, Code: api.Denied}, exitDenied},
		{&api.Error{Status: http.StatusUnauthorized, Code: api.ProofExpired}, exitDenied},
		{&api.Error{Status: http.StatusBadRequest, Code: api.InvalidTTL}, exitFailed},
		{&api.Error{Status: http.StatusConflict, Code: api.Pending}, exitPending},
		{usage("wrong flag"), exitUsage},
		{errInterrupted, exitFailed},
	} {
		if got := exitCode(test.err); got != test.want {
			t.Errorf("%v: %d, want %d", test.err, got, test.want)
		}
	}
}

func TestResponseOfAProxy(t *testing.T) {
	var screen strings.Builder
	a := &app{terminal: terminal{err: &screen, getenv: func(string) string { return "" }}, client: clientFlags{server: "https://elsewhere.test"}}
	a.printError(&api.Error{Status: http.StatusBadRequest, Title: "Bad Request"})
	if screen.String() != "broker: HTTP 400 Bad Request: not a response of the broker's API; check the URL https://elsewhere.test\n" {
		t.Errorf("got %q", screen.String())
	}
}

func TestInterrupted(t *testing.T) {
	ctx, signal := context.WithCancel(t.Context())
	signal()
	var screen strings.Builder
	code := run(ctx, []string{"login", "--no-browser", "--server", "https://127.0.0.1:1"}, terminal{out: io.Discard, err: &screen, getenv: func(string) string { return "" }})
	if code != exitFailed || screen.String() != "broker: interrupted\n" {
		t.Errorf("got code %d and %q", code, screen.String())
	}
}

// The null device is a character device, but not a terminal.
func TestNullDeviceIsNotInteractive(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = null.Close() }()
	if interactive(null) {
		t.Error("the null device counts as a terminal")
	}
}
