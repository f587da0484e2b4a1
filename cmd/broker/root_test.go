package main

import (
	"context"
	"errors"
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
		t.Skip("no terminals here:", err)
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
