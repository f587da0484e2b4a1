package main

import (
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

// A signal while a question waits for its answer is a no, at once.
func TestSignalAtAQuestion(t *testing.T) {
	silent, err := os.Open("/dev/ptmx") // a terminal at which nobody types
	if err != nil {
		t.Fatal("a terminal is needed: ", err)
	}
	t.Cleanup(func() { _ = silent.Close() })
	ctx, signal := context.WithCancel(t.Context())
	screen := &signalling{at: "[y/N] ", signal: signal}
	a := &app{terminal: terminal{in: silent, err: screen}}
	ended := make(chan error, 1)
	go func() { ended <- a.confirm(ctx, requestToShow(), api.Approve, false) }()
	select {
	case err := <-ended:
		if !errors.Is(err, errNotConfirmed) || exitCode(err) != exitFailed || !strings.HasSuffix(screen.String(), "[y/N] \n") {
			t.Errorf("it ends with %v, and shows %q", err, screen)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("it goes on waiting")
	}
}

// A signalling screen sends a signal once it shows a text.
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
		{usage("say more"), exitUsage},
		{errInterrupted, exitFailed},
	} {
		if got := exitCode(test.err); got != test.want {
			t.Errorf("%v: %d, want %d", test.err, got, test.want)
		}
	}
}

func TestAnswerOfAProxy(t *testing.T) {
	var said strings.Builder
	a := &app{terminal: terminal{err: &said, getenv: func(string) string { return "" }}, client: clientFlags{server: "https://elsewhere.test"}}
	a.complain(&api.Error{Status: http.StatusBadRequest, Title: "Bad Request"})
	if said.String() != "broker: HTTP 400 Bad Request: that is not the broker's API; is https://elsewhere.test its URL?\n" {
		t.Errorf("it says %q", said.String())
	}
}

func TestInterrupted(t *testing.T) {
	ctx, signal := context.WithCancel(t.Context())
	signal()
	var said strings.Builder
	code := run(ctx, []string{"login", "--no-browser", "--server", "https://127.0.0.1:1"}, terminal{out: io.Discard, err: &said, getenv: func(string) string { return "" }})
	if code != exitFailed || said.String() != "broker: interrupted\n" {
		t.Errorf("it ends with %d, and says %q", code, said.String())
	}
}

// The null device is no terminal, though it is a device.
func TestNobodyAtTheNullDevice(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = null.Close() }()
	if interactive(null) {
		t.Error("somebody is asked at the null device")
	}
}
