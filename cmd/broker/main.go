// Command broker is the access broker: the server, a development world on one machine
// (dev), and the client for agents, services, people, operators and auditors.
package main

import (
	"context"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"accessbroker.internal/internal/handoff"
)

func main() {
	if filepath.Base(os.Args[0]) == handoff.TokenHelper {
		os.Exit(tokenHelper(os.Args[0], os.Args[1:], os.Stdout, os.Stderr))
	}
	log.SetOutput(unquoted{os.Stderr})
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	// If the reader of standard output has gone, a write must fail instead of ending
	// the process, so that the credential can be returned. Notify, unlike Ignore, does
	// not affect child processes.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	own := new(memory)
	os.Exit(run(ctx, os.Args[1:], terminal{in: os.Stdin, out: os.Stdout, err: os.Stderr, getenv: own.getenv, protect: own.protect}))
}
